package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Without a deadline of its own a command waits this long for room in the log.
const enqueueTimeout = 10 * time.Second

// Propose commits data and returns the index it committed at and what the Machine made of it. It returns once this node
// has applied the command, so that a View that follows sees it.
//
// An error that wraps ErrAmbiguous means that the command may still commit, also after a ctx that ended meanwhile; any
// other error means that it never will.
func (s *Store) Propose(ctx context.Context, data []byte) (index uint64, result []byte, err error) {
	if len(data) > s.cfg.MaxCommand {
		return 0, nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), s.cfg.MaxCommand)
	}
	if err := ctx.Err(); err != nil {
		return 0, nil, fmt.Errorf("raftstore: not proposed: %w", context.Cause(ctx))
	}
	if err := s.enter(); err != nil {
		return 0, nil, err
	}
	if !s.leads() {
		s.ops.Done()
		return 0, nil, s.notLeading()
	}
	data = bytes.Clone(data) // raft's cache keeps it
	patience := enqueueTimeout
	if deadline, ok := ctx.Deadline(); ok {
		patience = max(time.Until(deadline), time.Millisecond)
	}
	answers := make(chan answer, 1)
	go func() { // ends when raft answers, which stop waits for
		defer s.ops.Done()
		answers <- s.ask(data, patience)
	}()
	select {
	case a := <-answers:
		return a.index, a.result, a.err
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("%w: %w", ErrAmbiguous, context.Cause(ctx))
	}
}

type answer struct {
	index  uint64
	result []byte
	err    error
}

func (s *Store) ask(data []byte, patience time.Duration) answer {
	future := s.raft.Apply(data, patience)
	if err := future.Error(); err != nil {
		return answer{err: s.translate(err)}
	}
	out, ok := future.Response().(outcome)
	if !ok {
		return answer{err: fmt.Errorf("%w: the machine gave no outcome", ErrAmbiguous)}
	}
	if out.err != nil {
		// It is committed, and this node will not say what became of it.
		return answer{err: fmt.Errorf("%w: %w: %w", ErrAmbiguous, ErrHalted, out.err)}
	}
	return answer{index: future.Index(), result: out.result}
}

// translate says what a raft error means for the entry: the ones named here come before raft has written it anywhere.
func (s *Store) translate(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return s.notLeading()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		s.watchTransfer()
		return s.notLeading()
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrBusy
	}
	return fmt.Errorf("%w: %w", ErrAmbiguous, err)
}

// leads reports whether this node believes that it leads and can act on it.
func (s *Store) leads() bool {
	return s.raft.State() == raft.Leader && !s.passing.Load() && !s.log.stalled()
}

// notLeading tells a caller who can go elsewhere from one who cannot.
func (s *Store) notLeading() error {
	if id, ok := s.Leader(); ok && id != s.cfg.ID {
		return fmt.Errorf("%w: %q does", ErrNotLeader, id)
	}
	if s.raft.State() == raft.Leader {
		return fmt.Errorf("%w: it is about to be replaced", ErrNotLeader)
	}
	return ErrNoQuorum
}

// Leader names the leader this node knows of; it may have been deposed since.
func (s *Store) Leader() (id string, ok bool) {
	_, leader := s.raft.LeaderWithID()
	return string(leader), leader != ""
}

// IsLeader reports whether this node believes that it leads; it may have been deposed since. Use Linearize to know.
func (s *Store) IsLeader() bool { return s.leads() }
