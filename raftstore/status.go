package raftstore

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// Status is what metrics and `cluster status` show.
type Status struct {
	ID             string
	State          string // "leader", "follower", "candidate", or "halted"
	Leader         string // as this node knows; "" when it knows none
	Term           uint64
	LastLog        uint64        // index of the last entry in the log
	Commit         uint64        // index up to which entries are committed
	Applied        uint64        // index of the last command in the state
	Snapshot       uint64        // index of the newest snapshot, 0 without one
	Records        uint64        // how many records there are as of the state
	RecordsMissing uint64        // how many of them this node does not have yet
	LastContact    time.Duration // since the leader was heard; 0 on the leader, -1 when never
	Differing      []string      // voters that had another state than this node when states were last compared
	DiskStalled    bool          // a write to the log hangs
	Waiting        string        // why this node has no log yet, or does not vote yet; "" once it does
	Peers          []PeerStatus  // all nodes known in order of their IDs, this one among them
}

// PeerStatus is one node as this one knows it.
type PeerStatus struct {
	ID, Address string
	Self        bool
	Role        Role
	LastContact time.Duration // on the leader: since the peer last answered as a follower; else -1
	Match       uint64        // on the leader: index up to which the peer's log agrees with its own; 0 when not known
}

// Behind is how many entries of its own log a node has yet to apply; 0 when they are no more than come in one message.
// Who was killed has all that came since its last snapshot before it: until it is through it answers nothing, and
// would lead nobody.
func (st Status) Behind() uint64 { return behind(st.LastLog, st.Applied) }

func behind(lastLog, applied uint64) uint64 {
	if lastLog <= applied+caughtUpWithin {
		return 0
	}
	return lastLog - applied
}

// Status says how this node is.
func (s *Store) Status() Status {
	leader, _ := s.Leader()
	state := s.raft.State()
	st := Status{
		ID: s.cfg.ID, State: strings.ToLower(state.String()), Leader: leader,
		Term: s.raft.CurrentTerm(), LastLog: s.raft.LastIndex(), Commit: s.raft.CommitIndex(), Applied: s.Index(),
		DiskStalled: s.log.stalled(), Differing: s.checkpoints.differing(),
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
	st.Records, st.RecordsMissing = s.records.count()
	if list, err := s.snaps.List(); err == nil && len(list) > 0 {
		st.Snapshot = list[0].Index
	}
	st.Waiting = s.place.waiting()
	roles := s.Membership()
	for _, m := range s.roster.list() {
		st.Peers = append(st.Peers, s.peerStatus(m, roles[m.ID], state == raft.Leader))
		delete(roles, m.ID)
	}
	for id, role := range roles { // forgotten, and not removed yet
		st.Peers = append(st.Peers, s.peerStatus(Member{ID: id}, role, state == raft.Leader))
	}
	slices.SortFunc(st.Peers, func(a, b PeerStatus) int { return cmp.Compare(a.ID, b.ID) })
	return st
}

func (s *Store) peerStatus(m Member, role Role, leads bool) PeerStatus {
	p := PeerStatus{ID: m.ID, Address: m.Address, Self: m.ID == s.cfg.ID, Role: role, LastContact: -1}
	switch {
	case leads && p.Self:
		p.Match = s.raft.LastIndex()
	case leads && role != RoleNone:
		p.LastContact, p.Match = s.trans.contact(m.ID), s.match(m.ID)
	}
	return p
}
