package raftstore

import (
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// This schedule shows hashicorp/raft#695 and that the transport keeps it away. Time-outs are unequal so that the old
// leader's lease does not run out first; with equal ones it takes a process that was paused, or luck.
//
//	n1 leads in term T and is cut off. Its main goroutine waits for something to do.
//	n2 or n3 is elected in T+1 and commits its first entry, at index i.
//	One heartbeat of it reaches n1. On the fast path that sets n1's term to T+1 behind its main goroutine's back.
//	A client gives n1 the command "wrong". Raft's main goroutine, which still is in its leader's loop, appends it at
//	index i with the current term, T+1: an entry that the leader of T+1 never had.
//	The network heals. The leader's entry at i has the index and the term of n1's, so n1 takes the two for one and keeps
//	its own; when i is committed it applies "wrong", and the others do not.
func TestHeartbeatFastPathDiverges(t *testing.T) {
	logs := run695(t, func(under *simTransport) raft.Transport { return under })
	if slices.Equal(logs["n1"], logs["n2"]) || !slices.Contains(logs["n1"], "wrong") {
		t.Errorf("the schedule no longer shows raft#695, so it no longer guards against it: applied %v", logs)
	}
}

func TestTransportKeepsLogsEqual(t *testing.T) {
	logs := run695(t, func(under *simTransport) raft.Transport {
		return newTransport(under, func() bool { return false })
	})
	for _, id := range []string{"n1", "n3"} {
		if !slices.Equal(logs[id], logs["n2"]) {
			t.Errorf("%s and n2 applied different commands: %v", id, logs)
		}
	}
	if slices.Contains(logs["n1"], "wrong") {
		t.Errorf("n1 applied what it proposed under another's term: %v", logs["n1"])
	}
}

// recorder is an FSM that keeps what it was given.
type recorder struct {
	mu      sync.Mutex
	applied []string // guarded by mu
}

func (r *recorder) Apply(l *raft.Log) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applied = append(r.applied, string(l.Data))
	return nil
}

func (r *recorder) has(command string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.applied, command)
}

func (r *recorder) Snapshot() (raft.FSMSnapshot, error) { return nil, raft.ErrNothingNewToSnapshot }
func (r *recorder) Restore(io.ReadCloser) error         { return nil }

func run695(t *testing.T, wrap func(*simTransport) raft.Transport) (applied map[string][]string) {
	synctest.Test(t, func(t *testing.T) {
		n := newSimNet()
		c := &raw{t: t, net: n, nodes: map[string]*raft.Raft{}, machines: map[string]*recorder{}}
		for _, id := range []string{"n1", "n2", "n3"} {
			c.start(id, wrap(n.join(id)))
		}
		defer c.stop()
		n1, term := c.makeLeader("n1")
		if err := n1.Apply([]byte("first"), 0).Error(); err != nil {
			t.Fatal(err)
		}
		c.await("first", "n1", "n2", "n3")

		n.isolate("n1")
		leader := c.leader(term, "n2", "n3")
		c.settled(leader)

		// One heartbeat passes, from the new leader to n1.
		beat := make(chan struct{})
		n.change(func() {
			clear(n.cut)
			passed := false
			n.only = func(m simMessage) bool {
				if m.from != "n1" && m.to != "n1" {
					return true
				}
				if m.to == "n1" && m.heartbeat() && !passed {
					passed = true
					close(beat)
					return true
				}
				return false
			}
		})
		<-beat
		for n1.CurrentTerm() == term {
			time.Sleep(simLatency)
		}
		_ = n1.Apply([]byte("wrong"), 0).Error() // refused or in doubt, either way not acknowledged
		n.heal()
		if err := leader.Apply([]byte("last"), 0).Error(); err != nil {
			t.Fatal(err)
		}
		c.await("last", "n1", "n2", "n3")
		applied = map[string][]string{}
		for id, m := range c.machines {
			applied[id] = slices.Clone(m.applied)
		}
	})
	t.Logf("applied: %v", applied)
	return applied
}

// raw is raft without a Store around it.
type raw struct {
	t        *testing.T
	net      *simNet
	nodes    map[string]*raft.Raft
	machines map[string]*recorder
}

func (c *raw) start(id string, trans raft.Transport) {
	c.t.Helper()
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(id)
	conf.Logger = hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout = 300*time.Millisecond, 300*time.Millisecond
	conf.LeaderLeaseTimeout = 150 * time.Millisecond
	if id == "n1" {
		conf.HeartbeatTimeout, conf.ElectionTimeout = 20*time.Second, 20*time.Second
		conf.LeaderLeaseTimeout = 20 * time.Second
	}
	var servers []raft.Server
	for _, s := range []string{"n1", "n2", "n3"} {
		servers = append(servers, raft.Server{ID: raft.ServerID(s), Address: raft.ServerAddress(s)})
	}
	store := raft.NewInmemStore()
	snaps := raft.NewInmemSnapshotStore()
	if err := raft.BootstrapCluster(conf, store, store, snaps, trans, raft.Configuration{Servers: servers}); err != nil {
		c.t.Fatal(err)
	}
	machine := &recorder{}
	node, err := raft.NewRaft(conf, machine, store, store, snaps, trans)
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[id], c.machines[id] = node, machine
}

func (c *raw) stop() {
	for id, node := range c.nodes {
		if err := node.Shutdown().Error(); err != nil {
			c.t.Errorf("stop %s: %v", id, err)
		}
	}
	c.net.change(func() {
		for _, trans := range c.net.nodes {
			_ = trans.Close()
		}
	})
}

func (c *raw) leader(after uint64, ids ...string) *raft.Raft {
	c.t.Helper()
	for range 3000 {
		for _, id := range ids {
			if node := c.nodes[id]; node.State() == raft.Leader && node.CurrentTerm() > after {
				return node
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatal("nobody leads")
	return nil
}

// makeLeader has leadership handed to the node.
func (c *raw) makeLeader(id string) (node *raft.Raft, term uint64) {
	c.t.Helper()
	first := c.leader(0, "n1", "n2", "n3")
	c.settled(first)
	if first != c.nodes[id] {
		if err := first.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id)).Error(); err != nil {
			c.t.Fatal(err)
		}
	}
	node = c.leader(0, id)
	c.settled(node)
	return node, node.CurrentTerm()
}

// settled waits until what the leader has in its log is committed.
func (c *raw) settled(node *raft.Raft) {
	c.t.Helper()
	for range 3000 {
		if node.CommitIndex() == node.LastIndex() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatal("it does not commit")
}

func (c *raw) await(command string, ids ...string) {
	c.t.Helper()
	for range 3000 {
		n := 0
		for _, id := range ids {
			if c.machines[id].has(command) {
				n++
			}
		}
		if n == len(ids) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("%q is not applied on all of %v", command, ids)
}
