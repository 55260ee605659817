package raftstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// standing is what a node tells others of its log.
type standing byte

const (
	standingEmpty    standing = 'e' // there is none
	standingFounding standing = 'f' // it holds the first members and nothing else
	standingMember   standing = 'm' // it holds more
)

// phase is how a node takes part.
type phase int32

const (
	// undecided: it has no log, and whether it is to make a new cluster with others that have none, or belongs to one that
	// is there already, is not known yet. It takes no message of raft's.
	undecided phase = iota
	// joining: it belongs to a cluster that was there before it had a log. It takes entries and casts no vote until it has
	// caught up with a leader: its disk may have been lost, and with it the memory of what it has promised.
	joining
	// settled: it takes part in full.
	settled
)

const (
	lineageKey = "hallpass.lineage" // of the log
	joiningKey = "hallpass.joining" // present and not empty while the phase is joining

	askAgain = 50 * time.Millisecond
)

var (
	errUndecided = errors.New("raftstore: this node does not know yet where it belongs")
	errJoining   = errors.New("raftstore: this node casts no vote before it has caught up")
)

// place is where a node stands: in which history, and how far it takes part in it.
type place struct {
	s       *Store
	first   [sha256.Size]byte // identifies the first members that this node was configured with
	phase   atomic.Int32
	commit  atomic.Uint64 // the highest commit index that a leader has told a node that is joining
	hadSnap bool          // there was a snapshot at the start

	mu   sync.Mutex
	line lineage // guarded by mu
	why  string  // guarded by mu; what an undecided node waits for
}

// findPlace reads where this node stands; no message MUST have come or gone before.
func (s *Store) findPlace() (*place, error) {
	p := &place{s: s, first: s.cfg.foundingHash()}
	list, err := s.snaps.List()
	if err != nil {
		return nil, err
	}
	last, err := s.log.LastIndex()
	if err != nil {
		return nil, err
	}
	line, err := s.stable(lineageKey)
	if err != nil {
		return nil, err
	}
	join, err := s.stable(joiningKey)
	if err != nil {
		return nil, err
	}
	p.hadSnap = len(list) > 0
	switch {
	case len(join) > 0:
		copy(p.line[:], line)
		p.become(joining)
	case last > 0 || p.hadSnap:
		copy(p.line[:], line)
		p.become(settled)
		if len(line) == 0 {
			return p, p.enter(p.foundingLineage(), false)
		}
	case s.cfg.Transport != nil && s.cfg.Join:
		return p, p.enter(p.foundingLineage(), true)
	}
	return p, nil
}

// foundsAtOnce reports whether nobody has to be asked before this node makes the cluster.
func (p *place) foundsAtOnce() bool {
	if p.now() != undecided || p.s.cfg.Join {
		return false
	}
	return p.s.cfg.Transport != nil || len(p.s.cfg.Members) == 1
}

func (p *place) now() phase       { return phase(p.phase.Load()) }
func (p *place) become(now phase) { p.phase.Store(int32(now)) }

// foundingLineage is the first history's of a cluster with these first members.
func (p *place) foundingLineage() lineage {
	return lineage(p.first[:lineageSize])
}

// enter keeps which history this node belongs to, before it takes part in it.
func (p *place) enter(line lineage, join bool) error {
	if join {
		if err := p.s.log.LogStore.Set([]byte(joiningKey), []byte("yes")); err != nil {
			return fmt.Errorf("keep that this node joins: %w", err)
		}
	}
	if err := p.s.log.LogStore.Set([]byte(lineageKey), line[:]); err != nil {
		return fmt.Errorf("keep the lineage: %w", err)
	}
	p.mu.Lock()
	p.line = line
	p.mu.Unlock()
	if join {
		p.become(joining)
	}
	return nil
}

func (p *place) founding() [sha256.Size]byte { return p.first }

func (p *place) lineage() lineage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.line
}

func (p *place) standing() standing {
	if p.now() == undecided {
		return standingEmpty
	}
	last, err := p.s.log.LastIndex()
	switch {
	case err != nil, last > 1, p.hadSnap, p.s.Index() > 1: // what cannot be read is not taken for nothing
		return standingMember
	case last == 0:
		return standingEmpty
	}
	return standingFounding
}

// waiting says what a node that does not take part in full waits for.
func (p *place) waiting() string {
	switch p.now() {
	case settled:
		return ""
	case joining:
		return "to be made a member, and to catch up"
	case undecided:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.why
}

func (p *place) wait(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.why != why {
		p.s.logger.Info("this node has no log yet", "waiting", why)
	}
	p.why = why
}

// admits says which of raft's messages this node takes.
func (p *place) admits(request any) error {
	switch p.now() {
	case undecided:
		return errUndecided
	case joining:
	case settled:
		return nil
	}
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		if r.LeaderCommitIndex > p.commit.Load() {
			p.commit.Store(r.LeaderCommitIndex) // relay is the only writer
		}
	case *raft.InstallSnapshotRequest:
	default:
		return errJoining
	}
	return nil
}

// settle finds where a node without a log belongs, and has a joining one take part once it has caught up.
func (s *Store) settle() {
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for s.place.now() != settled {
		if err := s.place.step(s.ctx); err != nil {
			s.place.wait(err.Error())
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
	}
}

func (p *place) step(ctx context.Context) error {
	if p.now() == joining {
		return p.finishJoining()
	}
	return p.decide(ctx)
}

// decide asks all others. If one has a log with more in it than the first members, this node belongs to that cluster; it
// may have lost its disk, and must not make another. A new cluster is made when all first members have answered that
// they have nothing: were fewer enough, those that lost their disks would make one while the rest, which have it all, are
// down.
func (p *place) decide(ctx context.Context) error {
	s := p.s
	if s.mux == nil {
		return errors.New("for nothing") // a simulation's node has decided at the start
	}
	var missing error
	var others int
	for _, m := range s.roster.list() {
		if m.ID == s.cfg.ID {
			continue
		}
		others++
		r, err := s.mux.hello(ctx, m.ID)
		switch {
		case err != nil:
			missing = errors.Join(missing, err)
		case r.standing == standingMember:
			s.logger.Info("there is a cluster that this node belongs to", "found", m.ID, "lineage", r.lineage.String())
			return p.enter(r.lineage, true)
		case r.founding != p.first:
			missing = errors.Join(missing, fmt.Errorf("%q was given other first members than this node", m.ID))
		}
	}
	switch {
	case s.cfg.Join || others == 0 && len(s.cfg.Members) > 1:
		return errors.New("for a member of the cluster to answer")
	case missing != nil:
		return fmt.Errorf("for all first members to answer: %w", missing)
	}
	if err := s.cfg.canFound(); err != nil {
		return err
	}
	return p.found()
}

// found makes the cluster, as each of its first members does.
func (p *place) found() error {
	if err := p.enter(p.foundingLineage(), false); err != nil {
		return err
	}
	err := p.s.raft.BootstrapCluster(p.s.cfg.raftMembers()).Error()
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("bootstrap: %w", err)
	}
	p.become(settled)
	return nil
}

// finishJoining ends the joining once this node has all that a leader has told it was committed.
func (p *place) finishJoining() error {
	s := p.s
	leader, ok := s.Leader()
	commit := p.commit.Load()
	if !ok || commit == 0 || s.raft.LastIndex() < commit || s.Index() < commit {
		return nil
	}
	// A vote that this node may have cast in this term before its disk was lost is cast for whoever won.
	term := s.raft.CurrentTerm()
	err := errors.Join(
		s.log.LogStore.SetUint64([]byte("LastVoteTerm"), term),
		s.log.LogStore.Set([]byte("LastVoteCand"), []byte(leader)),
		s.log.LogStore.Set([]byte(joiningKey), []byte{}),
	)
	if err != nil {
		s.halt(fmt.Errorf("keep that this node has joined: %w", err))
		return err
	}
	s.logger.Info("this node has caught up", "index", commit)
	p.become(settled)
	return nil
}
