package raftstore

import (
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// Status is what metrics and `cluster status` show.
type Status struct {
	ID          string
	State       string // "leader", "follower", "candidate", or "halted"
	Leader      string // as this node knows; "" when it knows none
	Term        uint64
	LastLog     uint64        // index of the last entry in the log
	Commit      uint64        // index up to which entries are committed
	Applied     uint64        // index of the last command in the state
	Snapshot    uint64        // index of the newest snapshot, 0 without one
	LastContact time.Duration // since the leader was heard; 0 on the leader, -1 when never
	DiskStalled bool          // a write to the log hangs
	Peers       []PeerStatus  // all members in order of their IDs, this one among them
}

// PeerStatus is one member as this node knows it.
type PeerStatus struct {
	ID, Address string
	Self        bool
	LastContact time.Duration // on the leader: since the peer last answered as a follower; else -1
}

// Status says how this node is.
func (s *Store) Status() Status {
	leader, _ := s.Leader()
	state := s.raft.State()
	st := Status{
		ID: s.cfg.ID, State: strings.ToLower(state.String()), Leader: leader,
		Term: s.raft.CurrentTerm(), LastLog: s.raft.LastIndex(), Commit: s.raft.CommitIndex(), Applied: s.Index(),
		DiskStalled: s.log.stalled(),
	}
	if state == raft.Shutdown {
		st.State = "halted"
	}
	switch heard := s.raft.LastContact(); {
	case state == raft.Leader:
	case heard.IsZero():
		st.LastContact = -1
	default:
		st.LastContact = time.Since(heard)
	}
	if list, err := s.snaps.List(); err == nil && len(list) > 0 {
		st.Snapshot = list[0].Index
	}
	for _, m := range s.cfg.Members {
		p := PeerStatus{ID: m.ID, Address: m.Address, Self: m.ID == s.cfg.ID, LastContact: -1}
		if state == raft.Leader && !p.Self {
			p.LastContact = s.trans.contact(m.ID)
		}
		st.Peers = append(st.Peers, p)
	}
	return st
}
