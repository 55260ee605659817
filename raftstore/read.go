package raftstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"
)

// View calls fn with the state as of index. What it reads may be older than what others have acknowledged: call Linearize
// first where that matters. fn MUST be short, MUST NOT keep what it reads, and MUST NOT call Propose or Snapshot.
func (s *Store) View(fn func(r Reader, index uint64) error) error {
	return s.state.read(func(r Reader, at position) error { return fn(r, at.index) })
}

// ReadRecords calls fn with the records from the one of that number on, in order, until fn returns false or there are no
// more. Those that are not here are asked of the others; the error wraps ErrRecordsMissing when nobody has them for now.
// fn MUST NOT keep a record. ReadRecords MUST NOT be called in a View.
func (s *Store) ReadRecords(ctx context.Context, from uint64, fn func(number uint64, record []byte) bool) error {
	for {
		next, err := s.records.read(from, fn)
		if !errors.Is(err, ErrRecordsMissing) {
			return err
		}
		list, fetchErr := s.fetchFor(ctx, next)
		if fetchErr != nil {
			return errors.Join(err, fetchErr)
		}
		for _, record := range list {
			if !fn(next, record) {
				return nil
			}
			next++
		}
		from = next
	}
}

// Index is the index of the last entry applied here.
func (s *Store) Index() uint64 {
	index, _ := s.applied.get()
	return index
}

// Wait returns the applied index as soon as it is above the given one.
func (s *Store) Wait(ctx context.Context, index uint64) (uint64, error) {
	reached, err := s.applied.wait(ctx, index, s.ctx.Done())
	if err != nil {
		return reached, fmt.Errorf("wait for an index above %d: %w", index, err)
	}
	return reached, nil
}

// StateHash returns a hash of the state and the index it was taken at. Nodes that have applied the same index have the
// same hash, or one of them is wrong.
func (s *Store) StateHash() (index uint64, hash [sha256.Size]byte, err error) {
	at, c, err := s.state.content()
	return at.index, c.hash(), err
}

// Linearize returns nil when a View on this node that begins afterwards sees every command that was acknowledged, by any
// node, before the call. Only the leader can say so; elsewhere it returns ErrNotLeader or ErrNoQuorum.
func (s *Store) Linearize(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	s.ops.Done() // a round has its own
	round := s.reads.join(s)
	select {
	case <-round.done:
		return round.err
	case <-ctx.Done():
		return fmt.Errorf("raftstore: linearize: %w", context.Cause(ctx))
	}
}

// readRounds lets the reads that arrive while one round of confirmation is under way share the next. A read MUST NOT join
// a round that has begun: what that round proves lies before the read.
type readRounds struct {
	mu   sync.Mutex
	next *readRound // guarded by mu; not begun
	busy bool       // guarded by mu; a goroutine runs rounds
}

type readRound struct {
	done chan struct{}
	err  error // written before done is closed
}

func (r *readRounds) join(s *Store) *readRound {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = &readRound{done: make(chan struct{})}
	}
	if !r.busy {
		r.busy = true
		go r.run(s) // ends when nobody waits for a round
	}
	return r.next
}

func (r *readRounds) run(s *Store) {
	for {
		r.mu.Lock()
		round := r.next
		r.next = nil
		r.busy = round != nil
		r.mu.Unlock()
		if round == nil {
			return
		}
		round.err = s.confirm()
		close(round.done)
	}
}

// confirm proves that this node led, with all that was committed before applied here, at some moment since the call.
func (s *Store) confirm() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.ops.Done()
	term := s.raft.CurrentTerm()
	if !s.leads() {
		return s.notLeading()
	}
	if s.caught.Load() != term {
		if err := s.catchUp(term); err != nil {
			return err
		}
	}
	mark := s.trans.mark()
	for {
		if err := s.verifyLeader(); err != nil {
			return s.notLeading()
		}
		if err := s.stillLeads(term); err != nil {
			return err
		}
		if s.confirmedBy(mark, term) {
			return nil
		}
		// The answers that VerifyLeader counted were to requests sent before this read. It has sent new ones since.
	}
}

// verifyLeader has raft ask everybody, and waits for what comes of it, but not for longer than an election takes: raft
// counts on for ever when one of those that it asked is no member any more. What counts is confirmedBy.
func (s *Store) verifyLeader() error {
	future := s.raft.VerifyLeader()
	answered := make(chan error, 1)
	go func() { answered <- future.Error() }() // ends with the leadership at the latest
	patience := time.NewTimer(s.cfg.Timing.Election)
	defer patience.Stop()
	select {
	case err := <-answered:
		return err
	case <-patience.C:
		return nil
	}
}

// confirmedBy reports whether a quorum of the voters, this node among them, has agreed since mark.
func (s *Store) confirmedBy(mark, term uint64) bool {
	all := voters(s.configuration())
	heard := s.trans.confirmed(mark, term, all)
	if all[s.cfg.ID] {
		heard++
	}
	return heard > len(all)/2
}

// catchUp commits a barrier, once a term: entries of earlier terms count as committed only once one of this term is.
func (s *Store) catchUp(term uint64) error {
	if err := s.raft.Barrier(enqueueTimeout).Error(); err != nil {
		return s.readError(err)
	}
	if err := s.stillLeads(term); err != nil {
		return err
	}
	s.caught.Store(term)
	return nil
}

// readError is translate for a barrier, of which nobody minds whether it commits.
func (s *Store) readError(err error) error {
	if err := s.translate(err); !errors.Is(err, ErrAmbiguous) {
		return err
	}
	return s.notLeading()
}

// stillLeads reports whether what was proved since the term was read holds for that term: a node can lose leadership and
// win it again in between, and would then have proved a term whose beginning it has not applied.
func (s *Store) stillLeads(term uint64) error {
	if err := s.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrHalted, err)
	}
	if !s.leads() || s.raft.CurrentTerm() != term {
		return s.notLeading()
	}
	return nil
}
