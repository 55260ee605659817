package raftstore

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// With a disk that hangs raft cannot be stopped; a stop gives up after this long.
const stopTimeout = 15 * time.Second

var errStopTimeout = errors.New("raftstore: a disk write does not end, so the node cannot be stopped in order")

// Close hands leadership over if this node leads, stops it, and leaves the state file so that the next start can use it.
// It waits for the functions given to Lead and MUST NOT be called by one, nor in a View.
func (s *Store) Close() error { return s.stop(true) }

// Abort stops the node the way a crash would, as far as the others and the next start can tell: it falls silent at once,
// hands nothing over and leaves the state file to be rebuilt.
func (s *Store) Abort() error { return s.stop(false) }

// Done is closed when the node has halted by itself; Err then says why.
func (s *Store) Done() <-chan struct{} { return s.halted }

// Err is why the node halted, or nil.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// halt stops a node that must not go on. It may be called from raft's own goroutines.
func (s *Store) halt(why error) {
	s.mu.Lock()
	first := s.failure == nil
	if first {
		s.failure = why
		close(s.halted)
	}
	running := s.started && !s.closing
	s.mu.Unlock()
	if !first {
		return
	}
	s.logger.Error("this node halts", "error", why)
	if running {
		go func() { _ = s.stop(false) }() // ends with stop; Close waits for it
	}
}

// stop runs once; who comes later waits for it.
func (s *Store) stop(clean bool) error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	s.mu.Unlock()
	if !first {
		<-s.stopped
		return s.stopErr
	}
	defer close(s.stopped)
	if clean && s.Err() == nil && s.raft.State() == raft.Leader && len(voters(s.configuration())) > 1 {
		if err := s.transfer(""); err != nil {
			s.logger.Warn("stopping without handing leadership over", "error", err)
		}
	}
	s.trans.silence()
	s.cancel()
	// A crash can leave commands under way in doubt, so they may end in any way; but each caller gets an answer.
	if !within(stopTimeout, &s.ops) {
		s.stopErr = errStopTimeout
		return s.stopErr
	}
	s.stopErr = s.release(clean && s.Err() == nil)
	return s.stopErr
}

// release closes what is open, raft before what it stands on.
func (s *Store) release(clean bool) (err error) {
	s.cancel()
	var done raft.Future
	if s.raft != nil {
		done = s.raft.Shutdown()
	}
	if s.mux != nil {
		err = errors.Join(err, s.mux.close()) // also ends a snapshot transfer that raft is reading
	}
	if s.split != nil {
		err = errors.Join(err, s.split.close())
	}
	if s.trans != nil {
		err = errors.Join(err, s.trans.Close())
	}
	if done != nil {
		err = errors.Join(err, done.Error())
	}
	s.duties.Wait()
	if s.records != nil {
		if clean {
			err = errors.Join(err, s.records.sync())
		}
		err = errors.Join(err, s.records.close())
	}
	if s.state != nil {
		at, closeErr := s.state.close(clean)
		err = errors.Join(err, closeErr)
		if clean && err == nil {
			err = leaveMarker(s.cfg.Dir, at)
		}
	}
	if s.log != nil {
		err = errors.Join(err, s.log.Close())
	} else if s.cfg.LogStore != nil {
		err = errors.Join(err, s.cfg.LogStore.Close())
	}
	if err != nil {
		return fmt.Errorf("raftstore: stop: %w", err)
	}
	return nil
}

func within(limit time.Duration, group *sync.WaitGroup) bool {
	done := make(chan struct{})
	go func() { // ends with the group
		group.Wait()
		close(done)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// Snapshot takes a snapshot now, unless nothing was applied since the last.
func (s *Store) Snapshot() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.ops.Done()
	if err := s.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("raftstore: snapshot: %w", err)
	}
	return nil
}
