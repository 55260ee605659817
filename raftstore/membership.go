package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Role is what a node is in the membership.
type Role string

// The roles.
const (
	RoleNone     Role = ""         // known, and not a member
	RoleNonvoter Role = "nonvoter" // is sent the log
	RoleVoter    Role = "voter"    // counts for the quorum
)

// ErrMembership is returned when a change of the membership would be unsafe, or makes no sense now. Nothing was changed.
var ErrMembership = errors.New("raftstore: the membership is left as it is")

const (
	// A nonvoter that lacks no more than this many entries has caught up: it gets them in the next message or two.
	caughtUpWithin = maxAppendEntries

	// What a node was heard within to count as reachable, in heartbeats.
	reachableWithin = 4

	catchUpCheck = 50 * time.Millisecond
)

// Membership says what each member is, by ID, as this node has heard last.
func (s *Store) Membership() map[string]Role {
	all := map[string]Role{}
	for _, server := range s.configuration().Servers {
		all[string(server.ID)] = roleOf(server)
	}
	return all
}

func roleOf(server raft.Server) Role {
	if server.Suffrage == raft.Voter {
		return RoleVoter
	}
	return RoleNonvoter
}

// AddNonvoter makes a node of the roster a member that is sent the log and does not vote, so that it can catch up without
// counting for the quorum. The node must run, with the same settings, and hold nothing of another history.
//
// Like each change of the membership it is made on the leader; an error that wraps ErrAmbiguous means that it may still
// come about, any other that it does not. Each of first is called once the change was found safe and before it is made,
// for writing down that it is wanted; an error of one calls the change off.
func (s *Store) AddNonvoter(ctx context.Context, id string, first ...func() error) error {
	return s.change(ctx, func() (raft.Future, error) {
		if role := s.Membership()[id]; role != RoleNone {
			return nil, fmt.Errorf("%w: %q is a %s already", ErrMembership, id, role)
		}
		if _, ok := s.roster.get(id); !ok {
			return nil, fmt.Errorf("%w: no node %q is known here", ErrMembership, id)
		}
		if s.mux != nil {
			if _, err := s.mux.hello(ctx, id); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrMembership, err)
			}
		}
		if err := all(first); err != nil {
			return nil, err
		}
		return s.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, enqueueTimeout), nil
	})
}

// Promote gives a nonvoter a vote, once it has caught up and would use it; until then it waits for ctx.
func (s *Store) Promote(ctx context.Context, id string, first ...func() error) error {
	if role := s.Membership()[id]; role != RoleNonvoter {
		if !s.leads() {
			return s.notLeading()
		}
		return fmt.Errorf("%w: %q is %s: only a nonvoter is promoted", ErrMembership, id, orNone(role))
	}
	if err := s.awaitCaughtUp(ctx, id); err != nil {
		return err
	}
	return s.change(ctx, func() (raft.Future, error) {
		if s.Membership()[id] != RoleNonvoter || !s.caughtUp(id) {
			return nil, fmt.Errorf("%w: %q has fallen behind", ErrMembership, id)
		}
		after := voters(s.configuration())
		after[id] = true
		if len(after) > maxMembers {
			return nil, fmt.Errorf("%w: %d nodes vote, which is as many as can", ErrMembership, maxMembers)
		}
		if err := s.quorumReachable(after); err != nil {
			return nil, err
		}
		if err := all(first); err != nil {
			return nil, err
		}
		return s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, enqueueTimeout), nil
	})
}

// Remove takes a member out. It refuses this node itself, which is to hand leadership over first, and a change after which
// those that can be reached would be no quorum.
func (s *Store) Remove(ctx context.Context, id string, first ...func() error) error {
	return s.change(ctx, func() (raft.Future, error) {
		role := s.Membership()[id]
		if role == RoleNone {
			return nil, fmt.Errorf("%w: %q is no member", ErrMembership, id)
		}
		if id == s.cfg.ID {
			return nil, fmt.Errorf("%w: %q leads: hand leadership over first", ErrMembership, id)
		}
		after := voters(s.configuration())
		delete(after, id)
		if role == RoleVoter {
			if err := s.quorumReachable(after); err != nil {
				return nil, err
			}
		}
		if err := all(first); err != nil {
			return nil, err
		}
		return s.raft.RemoveServer(raft.ServerID(id), 0, enqueueTimeout), nil
	})
}

func all(first []func() error) error {
	for _, fn := range first {
		if err := fn(); err != nil {
			return err
		}
	}
	return nil
}

func orNone(r Role) string {
	if r == RoleNone {
		return "no member"
	}
	return "a " + string(r)
}

// change makes one change at a time, so that what start has looked at still holds when raft gets to it: a membership
// changes through its leader alone, and of two leaders only the newer one's change commits.
func (s *Store) change(ctx context.Context, start func() (raft.Future, error)) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("raftstore: membership: %w", context.Cause(ctx))
	}
	if err := s.enter(); err != nil {
		return err
	}
	select {
	case s.changing <- struct{}{}:
	case <-ctx.Done():
		s.ops.Done()
		return fmt.Errorf("raftstore: membership: %w", context.Cause(ctx))
	}
	done := make(chan error, 1)
	go func() { // ends when raft answers, which stop waits for
		defer s.ops.Done()
		defer func() { <-s.changing }()
		if !s.leads() {
			done <- s.notLeading()
			return
		}
		future, err := start()
		if err == nil {
			if err = future.Error(); err != nil {
				err = s.translate(err)
			}
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrAmbiguous, context.Cause(ctx))
	}
}

// quorumReachable refuses a set of voters of which fewer than a quorum answer: the change itself would commit, perhaps,
// and nothing after it.
func (s *Store) quorumReachable(after map[string]bool) error {
	need, heard := len(after)/2+1, 0
	enough := s.soon(func() bool {
		heard = 0
		for id := range after {
			if id == s.cfg.ID || s.reachable(id) {
				heard++
			}
		}
		return heard >= need
	})
	if len(after) == 0 || !enough {
		return fmt.Errorf("%w: %d of %d voters would be reachable, and a quorum is %d", ErrMembership, heard, len(after), need)
	}
	return nil
}

// soon waits for what a leader learns within its first heartbeats.
func (s *Store) soon(fn func() bool) bool {
	tick := time.NewTicker(s.cfg.Timing.Heartbeat / 10)
	defer tick.Stop()
	for range 10 * reachableWithin {
		if fn() {
			return true
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return false
		}
	}
	return fn()
}

func (s *Store) reachable(id string) bool {
	contact := s.trans.contact(id)
	return contact >= 0 && contact < reachableWithin*s.cfg.Timing.Heartbeat
}

func (s *Store) caughtUp(id string) bool {
	match := s.match(id)
	return s.reachable(id) && match > 0 && match+caughtUpWithin >= s.raft.LastIndex()
}

func (s *Store) match(id string) uint64 { return s.trans.match(id, s.raft.CurrentTerm()) }

func (s *Store) awaitCaughtUp(ctx context.Context, id string) error {
	tick := time.NewTicker(catchUpCheck)
	defer tick.Stop()
	for {
		var behind error
		if !s.caughtUp(id) {
			behind = fmt.Errorf("its log is known to agree up to %d of %d", s.match(id), s.raft.LastIndex())
		} else if behind = s.trans.votes(s.cfg.ID, id); behind == nil {
			return nil
		}
		if !s.leads() {
			return s.notLeading()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %q has not caught up: %w: %w", ErrMembership, id, behind, context.Cause(ctx))
		case <-s.ctx.Done():
			return ErrClosed
		}
	}
}
