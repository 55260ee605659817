package raftstore

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A follower waits for a heartbeat to be overdue before it asks for votes, and gives none before its own is: with the
// followers' timers as they fall, that is up to three times the time-out. Of a leader whose process was killed they can
// know sooner. Its connections end, and nothing listens where it did: then no message of it is on its way. To be wrong
// costs an election and nothing else, since raft counts votes as ever.

const (
	goneTries = 3
	goneAgain = 10 * time.Millisecond
)

// watchStreams looks after a leader whose streams end.
func (s *Store) watchStreams() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case peer := <-s.mux.ended:
			s.standIn(peer)
		}
	}
}

// standIn asks for votes when the peer led and is gone. The voters do so in the order of their names, with half a
// heartbeat's time-out between them: of two that began together, each would keep its vote for itself.
func (s *Store) standIn(peer string) {
	if !s.follows(peer) || !s.gone(peer) {
		return
	}
	all := voters(s.configuration())
	if !all[s.cfg.ID] {
		return
	}
	rank := 0
	for id := range all {
		if id != peer && id < s.cfg.ID {
			rank++
		}
	}
	if !s.pause(time.Duration(rank)*s.cfg.Timing.Heartbeat/2) || !s.follows(peer) {
		return
	}
	if n := behind(s.raft.LastIndex(), s.Index()); n > 0 {
		// Its log may be the best, and it would lead once it had gone through it; till then nobody would.
		s.logger.Info("the leader's process is gone, and this node is behind: the others are to ask for votes", "leader", peer, "behind", n)
		return
	}
	s.logger.Info("the leader's process is gone, asking for votes", "leader", peer)
	answer := make(chan raft.RPCResponse, 1)
	select {
	case s.trans.own <- raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, RespChan: answer}:
	case <-s.ctx.Done():
		return
	}
	select {
	case <-answer:
	case <-s.ctx.Done():
	}
}

// follows reports whether this node takes the peer for its leader.
func (s *Store) follows(peer string) bool {
	leader, ok := s.Leader()
	return ok && leader == peer && s.raft.State() == raft.Follower
}

// gone reports whether nothing listens at the peer's address any more. A process that ends closes one after the other.
func (s *Store) gone(peer string) bool {
	member, ok := s.roster.get(peer)
	if !ok {
		return false
	}
	dialer := net.Dialer{Timeout: s.cfg.Timing.Heartbeat}
	for try := range goneTries {
		if try > 0 && !s.pause(goneAgain) {
			return false
		}
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Timing.Heartbeat)
		conn, err := dialer.DialContext(ctx, "tcp", member.Address)
		cancel()
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return true
		case err != nil:
			return false // it may be there, and only hard to reach
		}
		_ = conn.Close()
	}
	return false
}

// pause waits; false when the node stops meanwhile.
func (s *Store) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// LeaderChanged returns a channel that is closed soon after Leader gives another answer. Get it before asking Leader.
func (s *Store) LeaderChanged() <-chan struct{} { return s.leaders.changed() }

// watchLeaders passes on what raft says of leaders.
func (s *Store) watchLeaders(seen <-chan raft.Observation) {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-seen:
			s.leaders.tell()
		}
	}
}
