package raftstore

import (
	"cmp"
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// maxKnown bounds a roster: members, and nodes that are about to be or no longer are.
const maxKnown = 32

// roster is which nodes this one talks to, with their keys and addresses. It is more than the membership: a node is in
// the roster before it is made a member, and raft's configuration alone says who is one and who votes.
type roster struct {
	self string

	mu       sync.RWMutex
	revision uint64            // guarded by mu; of two rosters the one with the higher revision holds
	members  map[string]Member // guarded by mu; replaced, never written to
}

func newRoster(s settings) *roster {
	return &roster{self: s.ID, revision: s.MembersRevision, members: s.members}
}

func (r *roster) get(id string) (Member, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m, ok := r.members[id]
	return m, ok
}

// list is in order of IDs.
func (r *roster) list() []Member {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.SortedFunc(maps.Values(r.members), func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
}

// holder names the other node that the key is pinned for. All pins are compared, each in constant time, so that the time
// to refuse tells nothing of how near a guessed key came. A node never calls itself: its own key at the other end is a
// stolen one or a mirror.
func (r *roster) holder(key ed25519.PublicKey) (id string, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, m := range r.members {
		if m.ID != r.self && subtle.ConstantTimeCompare(key, m.Key) == 1 {
			id, ok = m.ID, true
		}
	}
	return id, ok
}

// set replaces the roster by a newer one and names the nodes whose connections are not theirs any more.
func (r *roster) set(revision uint64, members map[string]Member) (dropped []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if revision <= r.revision {
		return nil
	}
	for id, old := range r.members {
		if now, still := members[id]; !still || !now.Key.Equal(old.Key) {
			dropped = append(dropped, id)
		}
	}
	r.revision, r.members = revision, members
	return dropped
}

// readRoster refuses nodes of which one could count as two. Without keys they are a simulation's.
func readRoster(list []Member, keys bool) (map[string]Member, error) {
	if len(list) == 0 || len(list) > maxKnown {
		return nil, fmt.Errorf("%d members: want 1 to %d", len(list), maxKnown)
	}
	members := make(map[string]Member, len(list))
	addresses := make(map[string]string, len(list))
	for i, m := range list {
		if !validID(m.ID) {
			return nil, fmt.Errorf("member ID %q: want 1 to 63 of a-z, 0-9 and inner -", m.ID)
		}
		if _, dup := members[m.ID]; dup {
			return nil, fmt.Errorf("member %q is listed twice", m.ID)
		}
		members[m.ID] = m
		if !keys {
			continue
		}
		if _, _, err := net.SplitHostPort(m.Address); err != nil {
			return nil, fmt.Errorf("member %q: address: %w", m.ID, err)
		}
		if other, dup := addresses[m.Address]; dup {
			return nil, fmt.Errorf("members %q and %q have one address, %s", other, m.ID, m.Address)
		}
		addresses[m.Address] = m.ID
		if len(m.Key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("member %q: the key is %d bytes, want %d", m.ID, len(m.Key), ed25519.PublicKeySize)
		}
		for _, other := range list[:i] {
			if other.Key.Equal(m.Key) {
				return nil, fmt.Errorf("members %q and %q have one key: a stolen key would count as two nodes", other.ID, m.ID)
			}
		}
	}
	return members, nil
}

// rosterKey is where the log store keeps the newest roster that SetMembers was given.
const rosterKey = "hallpass.members"

type storedRoster struct {
	Revision uint64
	Members  []Member
}

// SetMembers replaces the nodes that this one knows, if revision is above that of those it knows now. They are kept, and
// hold at the next start unless Config.MembersRevision is higher. Connections to nodes that are gone, or have another key
// now, end. Whoever is new is not a member yet: see AddNonvoter. This node itself may be missing: others have forgotten
// it, then.
//
// The roster is not replicated. Whoever hosts the store MUST give every node the same one, in time before a node that is
// only in the new one is made a member.
func (s *Store) SetMembers(revision uint64, members []Member) error {
	known, err := readRoster(members, s.cfg.Transport == nil)
	if err != nil {
		return fmt.Errorf("raftstore: members of revision %d: %w", revision, err)
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.ops.Done()
	s.settingMembers.Lock()
	defer s.settingMembers.Unlock()
	text, err := json.Marshal(storedRoster{revision, members})
	if err != nil {
		return fmt.Errorf("raftstore: members: %w", err)
	}
	if revision <= s.MembersRevision() {
		return nil
	}
	if err := s.log.LogStore.Set([]byte(rosterKey), text); err != nil {
		return fmt.Errorf("raftstore: keep members: %w", err)
	}
	if dropped := s.roster.set(revision, known); s.mux != nil {
		s.mux.drop(dropped)
	}
	return nil
}

// Members are the nodes that this one knows, in order of their IDs.
func (s *Store) Members() []Member { return s.roster.list() }

// MembersRevision is the revision of the nodes that this one knows.
func (s *Store) MembersRevision() uint64 {
	s.roster.mu.RLock()
	defer s.roster.mu.RUnlock()
	return s.roster.revision
}

// loadRoster takes the roster of an earlier run where that is the newer one.
func (s *Store) loadRoster() error {
	text, err := s.stable(rosterKey)
	if err != nil || len(text) == 0 {
		return err
	}
	var stored storedRoster
	if err := json.Unmarshal(text, &stored); err != nil {
		return fmt.Errorf("stored members: %w", err)
	}
	known, err := readRoster(stored.Members, s.cfg.Transport == nil)
	if err != nil {
		return fmt.Errorf("stored members: %w", err)
	}
	s.roster.set(stored.Revision, known)
	return nil
}

// stable reads a value of the log store's, nil when there is none.
func (s *Store) stable(key string) ([]byte, error) {
	value, err := s.log.Get([]byte(key))
	if err != nil && err.Error() != "not found" { // raft's stable stores agree on the text alone
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return value, nil
}

// checkMembership refuses a log whose members this node knows none of: it is another cluster's.
func (s *Store) checkMembership() error {
	servers := s.configuration().Servers
	if len(servers) == 0 {
		return nil
	}
	for _, server := range servers {
		if _, ok := s.roster.get(string(server.ID)); ok && string(server.ID) != s.cfg.ID {
			return nil
		}
	}
	if len(servers) == 1 && string(servers[0].ID) == s.cfg.ID {
		return nil
	}
	return fmt.Errorf("%w: its log lists the members %v, and this node knows none of the others", ErrWrongNode, servers)
}

// configuration is raft's newest one, committed or not: the one it counts its quorum by.
func (s *Store) configuration() raft.Configuration {
	future := s.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return raft.Configuration{} // it never fails
	}
	return future.Configuration()
}

// voters are the IDs of those who vote.
func voters(c raft.Configuration) map[string]bool {
	all := make(map[string]bool, len(c.Servers))
	for _, server := range c.Servers {
		if server.Suffrage == raft.Voter {
			all[string(server.ID)] = true
		}
	}
	return all
}
