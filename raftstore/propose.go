package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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
func (s *Store) Propose(ctx context.Context, data []byte) (index uint64, result any, err error) {
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
	p := &proposal{data: bytes.Clone(data), answers: make(chan answer, 1)} // raft's cache keeps the data
	p.until, _ = ctx.Deadline()
	s.proposals.add(s, p)
	select {
	case a := <-p.answers:
		return a.index, a.result, a.err
	case <-ctx.Done():
	}
	if s.proposals.withdraw(p) {
		s.ops.Done()
		return 0, nil, fmt.Errorf("%w: %w", ErrBusy, context.Cause(ctx))
	}
	select {
	case a := <-p.answers: // in the same moment
		return a.index, a.result, a.err
	default:
		return 0, nil, fmt.Errorf("%w: %w", ErrAmbiguous, context.Cause(ctx))
	}
}

// proposal is a command that waits to be handed to raft, or for raft's answer.
type proposal struct {
	data    []byte
	until   time.Time   // room in the log is waited for; zero: for enqueueTimeout
	answers chan answer // has room for one
}

type answer struct {
	index  uint64
	result any
	err    error
}

// proposals hands commands to raft together. Raft begins to write the first one that comes, and whatever comes in the next
// instant waits for that write, and makes the next one: with many callers it writes, sends and applies many small batches,
// each at a price of its own on every node. So while maxRounds batches are under way, what comes waits and goes as one.
type proposals struct {
	mu      sync.Mutex
	waiting []*proposal // guarded by mu
	rounds  int         // guarded by mu; under way
}

// maxRounds is how many batches are under way: one that is being applied, and one that is being written.
const maxRounds = 2

func (q *proposals) add(s *Store, p *proposal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, p)
	if q.rounds < maxRounds {
		q.rounds++
		go q.run(s) // ends when nothing waits; stop waits for the proposals
	}
}

// withdraw takes back what raft was not given.
func (q *proposals) withdraw(p *proposal) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, p)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	return true
}

func (q *proposals) next() []*proposal {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.waiting), maxAppendEntries)
	round := slices.Clone(q.waiting[:n])
	if q.waiting = slices.Delete(q.waiting, 0, n); n == 0 {
		q.rounds--
	}
	return round
}

func (q *proposals) run(s *Store) {
	for round := q.next(); len(round) > 0; round = q.next() {
		futures := make([]raft.ApplyFuture, len(round))
		for i, p := range round {
			if s.leads() { // a hand-over may have begun since
				patience := enqueueTimeout
				if !p.until.IsZero() {
					patience = max(time.Until(p.until), time.Millisecond)
				}
				futures[i] = s.raft.Apply(p.data, patience)
			}
		}
		for i, p := range round {
			p.answers <- s.answer(futures[i])
			s.ops.Done()
		}
	}
}

// answer waits for raft's; nil was not given to raft.
func (s *Store) answer(future raft.ApplyFuture) answer {
	if future == nil {
		return answer{err: s.notLeading()}
	}
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
