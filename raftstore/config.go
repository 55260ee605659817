package raftstore

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Member is one node of the cluster.
type Member struct {
	ID      string            // a name such as "n1", unique in the cluster
	Address string            // host:port the others dial
	Key     ed25519.PublicKey // the node's own long-lived transport key
}

// Timing holds the settings that MUST be the same on every node: nodes with other values refuse each other's
// connections. The zero Timing is the recommended one; a zero field takes its default.
type Timing struct {
	Heartbeat time.Duration // a follower that hears nothing for this long asks for votes; default 300 ms
	Election  time.Duration // a candidate starts anew after this long, at least Heartbeat; default 300 ms
	Lease     time.Duration // a leader without a quorum for this long steps down, at most Heartbeat; default 150 ms
	Commit    time.Duration // how soon followers learn of a commit when nothing else is sent; default 10 ms
	DiskStall time.Duration // a node whose log write takes this long stops leading; default 2 s
}

// LogStore keeps the log and the votes. StoreLogs, DeleteRange, Set and SetUint64 MUST have reached stable storage when
// they return, and MUST be all or nothing.
type LogStore interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// Config describes one node.
type Config struct {
	ID         string             // which of Members this node is
	Dir        string             // made when missing, mode 0700
	Listener   net.Listener       // plain TCP; the store puts TLS on it and owns it from then on
	Key        ed25519.PrivateKey // of this node's Member.Key
	Cluster    string             // its name, the same on every node and no other cluster's
	Members    []Member           // the nodes it talks to; those of a new cluster are its first members
	Join       bool               // never make a cluster: wait to be made a member of one
	Machine    Machine
	Logger     *slog.Logger // nil discards
	Timing     Timing
	LogFormat  LogFormat // how the log in Dir is kept; default LogBolt
	MaxCommand int       // largest command in bytes; default 1 MiB

	MembersRevision uint64 // of Members; a newer list that SetMembers was given in an earlier run holds over it

	SnapshotThreshold uint64 // entries between snapshots; default 65,536
	TrailingLogs      uint64 // entries kept behind a snapshot; default 131,072
	StateCheck        uint64 // nodes compare their states every so many entries; default 1,024

	Transport raft.Transport // replaces Listener, Key and TLS, for simulations
	Streams   Streams        // with Transport, what carries application streams; nil: there are none
	LogStore  LogStore       // replaces the log in Dir; owned by the store
}

// Streams carries application streams between nodes where Config.Transport replaces the network. It accepts what the
// others dial; each accepted stream has a method PeerID, as *PeerConn has. The store owns it from Open on.
type Streams interface {
	net.Listener
	Dial(ctx context.Context, id string) (net.Conn, error)
}

const (
	defaultMaxCommand        = 1 << 20
	defaultSnapshotThreshold = 64 << 10
	defaultTrailingLogs      = 128 << 10
	defaultStateCheck        = 1 << 10
	maxMembers               = 9
	snapshotsKept            = 2
	snapshotCheck            = 30 * time.Second
	maxAppendEntries         = 512
)

// settings is a Config that was checked and filled in.
type settings struct {
	Config
	self    Member
	members map[string]Member
}

func (c Config) settings() (settings, error) {
	c.Timing = c.Timing.withDefaults()
	c.LogFormat = cmp.Or(c.LogFormat, LogBolt)
	c.MaxCommand = cmp.Or(c.MaxCommand, defaultMaxCommand)
	c.SnapshotThreshold = cmp.Or(c.SnapshotThreshold, defaultSnapshotThreshold)
	c.TrailingLogs = cmp.Or(c.TrailingLogs, defaultTrailingLogs)
	c.StateCheck = cmp.Or(c.StateCheck, defaultStateCheck)
	c.Members = slices.Clone(c.Members)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := settings{Config: c}
	switch {
	case c.Dir == "":
		return s, errors.New("no Dir")
	case c.Machine == nil:
		return s, errors.New("no Machine")
	case c.MaxCommand < 0:
		return s, errors.New("MaxCommand is negative")
	case c.Transport == nil && c.Listener == nil:
		return s, errors.New("no Listener")
	}
	if err := c.LogFormat.Valid(); err != nil {
		return s, fmt.Errorf("LogFormat: %w", err)
	}
	if err := s.readMembers(); err != nil {
		return s, err
	}
	if err := c.Timing.valid(); err != nil {
		return s, err
	}
	return s, raft.ValidateConfig(s.raftConfig())
}

// readMembers checks the list and that this node is in it, with its key.
func (s *settings) readMembers() (err error) {
	slices.SortFunc(s.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	if s.members, err = readRoster(s.Members, s.Transport == nil); err != nil {
		return err
	}
	self, ok := s.members[s.ID]
	if !ok {
		return fmt.Errorf("this node, %q, is not among the members", s.ID)
	}
	s.self = self
	if s.Transport != nil {
		return nil
	}
	if len(s.Key) != ed25519.PrivateKeySize {
		return fmt.Errorf("the private key is %d bytes, want %d", len(s.Key), ed25519.PrivateKeySize)
	}
	if pub, ok := s.Key.Public().(ed25519.PublicKey); !ok || !pub.Equal(self.Key) {
		return fmt.Errorf("the private key is not the one the membership pins for %q", s.ID)
	}
	return nil
}

func validID(id string) bool {
	if id == "" || len(id) > 63 || id[0] == '-' || id[len(id)-1] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func (t Timing) withDefaults() Timing {
	return Timing{
		Heartbeat: cmp.Or(t.Heartbeat, 300*time.Millisecond),
		Election:  cmp.Or(t.Election, 300*time.Millisecond),
		Lease:     cmp.Or(t.Lease, 150*time.Millisecond),
		Commit:    cmp.Or(t.Commit, 10*time.Millisecond),
		DiskStall: cmp.Or(t.DiskStall, 2*time.Second),
	}
}

func (t Timing) valid() error {
	if t.DiskStall < t.Lease {
		return fmt.Errorf("Timing: DiskStall %v is below Lease %v", t.DiskStall, t.Lease)
	}
	return nil // the others are raft.ValidateConfig's
}

// rpcTimeout bounds one message between nodes: above any usual write to a log, and short enough that a connection that
// a cut network swallowed does not keep a healed node away.
func (t Timing) rpcTimeout() time.Duration { return 10 * t.Heartbeat }

func (s settings) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(s.ID)
	c.HeartbeatTimeout = s.Timing.Heartbeat
	c.ElectionTimeout = s.Timing.Election
	c.LeaderLeaseTimeout = s.Timing.Lease
	c.CommitTimeout = s.Timing.Commit
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.SnapshotThreshold = s.SnapshotThreshold
	c.SnapshotInterval = snapshotCheck
	c.TrailingLogs = s.TrailingLogs
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.Logger = newRaftLogger(s.Logger)
	return c
}

// raftMembers is the configuration a new cluster begins with. An entry's address is the node's ID, which the transport
// resolves: where a node lives can change without a change of membership.
func (s settings) raftMembers() raft.Configuration {
	var c raft.Configuration
	for _, m := range s.Members {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.ID)})
	}
	return c
}

// canFound refuses first members whose even number makes a cluster no stronger than one node fewer would.
func (s settings) canFound() error {
	if n := len(s.Members); n > maxMembers || n%2 == 0 {
		return fmt.Errorf("%d members: a new cluster has an odd number, at most %d", n, maxMembers)
	}
	return nil
}

// foundingHash identifies the first members: nodes that were given different ones do not make a cluster together.
func (s settings) foundingHash() [sha256.Size]byte {
	h := sha256.New()
	field := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		_, _ = h.Write(n[:]) // a hash's Write never fails
		_, _ = h.Write(b)
	}
	field([]byte("hallpass raftstore founding v1"))
	field([]byte(s.Cluster))
	for _, m := range s.Members {
		field([]byte(m.ID))
		field(m.Key)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
