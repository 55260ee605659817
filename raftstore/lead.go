package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Lead runs fn each time this node leads, in a goroutine of the store. It begins once everything committed before is
// applied here. Its ctx ends as soon as this node knows that it no longer leads, which another node may know earlier:
// what fn does MUST be safe for two leaders to do, and is when it is done by Propose. fn MUST return when ctx ends; if it
// returns sooner it is not run again before the next leadership. Several fns run beside each other.
func (s *Store) Lead(fn func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return
	}
	s.duties.Go(func() { s.gate.attend(s.ctx, fn) })
}

// leaderGate holds the leadership that is current, if there is one.
type leaderGate struct {
	mu      sync.Mutex
	current *leadership   // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced with current
}

type leadership struct {
	ctx context.Context // ends with it
	end context.CancelFunc
}

func newLeaderGate() *leaderGate { return &leaderGate{changed: make(chan struct{})} }

func (g *leaderGate) open(parent context.Context) {
	l := &leadership{}
	l.ctx, l.end = context.WithCancel(parent)
	g.set(l)
}

func (g *leaderGate) shut() { g.set(nil) }

func (g *leaderGate) set(l *leadership) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.current == nil && l == nil {
		return
	}
	if g.current != nil {
		g.current.end()
	}
	g.current = l
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *leaderGate) get() (*leadership, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current, g.changed
}

// attend runs fn in each leadership until ctx ends.
func (g *leaderGate) attend(ctx context.Context, fn func(context.Context)) {
	for {
		l, changed := g.get()
		if l != nil && l.ctx.Err() == nil {
			fn(l.ctx) //nolint:contextcheck // a leadership ends with the store, whose context is its parent
			<-l.ctx.Done()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// watchLeadership turns raft's signals into leaderships. It listens to LeaderCh, which drops what it cannot deliver;
// raft's NotifyCh would stop raft itself while nobody reads it. Two signals may have been dropped between two that
// arrive, so each ends what was before.
func (s *Store) watchLeadership() {
	defer s.gate.shut()
	for {
		select {
		case <-s.ctx.Done():
			return
		case leads := <-s.raft.LeaderCh():
			s.gate.shut()
			if leads {
				s.assume()
			}
		}
	}
}

// assume opens the gate once a barrier of this leadership is applied: raft signals before the term's first entry is
// committed, when this node may not yet know what its predecessor acknowledged.
func (s *Store) assume() {
	for s.raft.State() == raft.Leader {
		term := s.raft.CurrentTerm()
		err := s.enter()
		if err != nil {
			return
		}
		err = s.catchUp(term)
		s.ops.Done()
		if err == nil {
			s.gate.open(s.ctx)
			return
		}
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(s.cfg.Timing.Commit):
		}
	}
}

// TransferLeadership hands leadership to the most up-to-date other node and returns once this node follows.
//
// Raft's own transfer waits, where it cannot be called off, for the other node to catch up; if leadership is lost in that
// wait, a later leadership of this node accepts nothing ever again (raft#696). So everything is committed first, with
// nothing new let in, which leaves raft nothing to wait for. Should it hang all the same, the node halts and says so.
func (s *Store) TransferLeadership() error { return s.TransferLeadershipTo("") }

// TransferLeadershipTo is TransferLeadership to the node named, which MUST be a voter that can be reached.
func (s *Store) TransferLeadershipTo(id string, first ...func() error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.ops.Done()
	return s.transfer(id, first...)
}

func (s *Store) transfer(to string, first ...func() error) error {
	if s.raft.State() != raft.Leader {
		return s.notLeading()
	}
	switch all := voters(s.configuration()); {
	case len(all) == 1:
		return fmt.Errorf("%w: no other node votes, so none can lead", ErrMembership)
	case to == s.cfg.ID:
		return fmt.Errorf("%w: %q leads already", ErrMembership, to)
	case to != "" && !all[to]:
		return fmt.Errorf("%w: %q does not vote, so it cannot lead", ErrMembership, to)
	case to != "" && !s.soon(func() bool { return s.reachable(to) }):
		return fmt.Errorf("%w: %q has not been heard lately", ErrMembership, to)
	}
	if err := all(first); err != nil { // a command: before commands are held back
		return err
	}
	if !s.passing.CompareAndSwap(false, true) {
		return fmt.Errorf("%w: it is being handed over already", ErrTransfer)
	}
	defer s.passing.Store(false)
	if err := s.raft.Barrier(enqueueTimeout).Error(); err != nil {
		return s.readError(err)
	}
	s.passed.Store(int64(max(time.Since(s.origin), 1)))
	handOver := s.raft.LeadershipTransfer
	if to != "" {
		handOver = func() raft.Future {
			return s.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
		}
	}
	if err := handOver().Error(); err != nil {
		return fmt.Errorf("%w: %w", ErrTransfer, err)
	}
	return nil
}

var errWedged = errors.New("raft refuses all commands because of a leadership transfer that never ends; " +
	"start the node again")

// watchTransfer halts the node when raft still refuses commands for a transfer that must long be over.
func (s *Store) watchTransfer() {
	limit := 2*s.cfg.Timing.Election + s.cfg.Timing.rpcTimeout()
	if began := s.passed.Load(); began != 0 && time.Since(s.origin)-time.Duration(began) > limit {
		s.halt(errWedged)
	}
}
