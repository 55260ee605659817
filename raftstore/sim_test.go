package raftstore

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// simNet carries raft's messages inside one process and breaks as told. It hands heartbeats to a heartbeat handler, as
// raft's own network transport does.
type simNet struct {
	mu      sync.Mutex
	nodes   map[raft.ServerAddress]*simTransport // guarded by mu
	cut     map[simLink]bool                     // guarded by mu; requests and answers in this direction are lost
	only    func(m simMessage) bool              // guarded by mu; nil passes all requests
	answers map[simLink]<-chan struct{}          // guarded by mu; answers in this direction wait for it
	slow    map[simLink]time.Duration            // guarded by mu; answers in this direction take this long
}

type simLink struct{ from, to raft.ServerAddress }

type simMessage struct {
	simLink
	command any
}

// heartbeat tells a heartbeat as raft's network transport does.
func (m simMessage) heartbeat() bool {
	a, ok := m.command.(*raft.AppendEntriesRequest)
	return ok && a.Term != 0 && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

const (
	simLatency = time.Millisecond
	simTimeout = 200 * time.Millisecond
)

var errSimLost = errors.New("no answer")

func newSimNet() *simNet {
	return &simNet{
		nodes: map[raft.ServerAddress]*simTransport{}, cut: map[simLink]bool{},
		answers: map[simLink]<-chan struct{}{}, slow: map[simLink]time.Duration{},
	}
}

func (n *simNet) change(fn func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fn()
}

// isolate cuts the node from all others, both ways.
func (n *simNet) isolate(id string) {
	n.change(func() {
		for other := range n.nodes {
			n.cut[simLink{raft.ServerAddress(id), other}] = true
			n.cut[simLink{other, raft.ServerAddress(id)}] = true
		}
	})
}

func (n *simNet) heal() {
	n.change(func() {
		clear(n.cut)
		clear(n.slow)
		n.only = nil
	})
}

// join gives the node a transport, replacing the one of its earlier life.
func (n *simNet) join(id string) *simTransport {
	t := &simTransport{
		net: n, addr: raft.ServerAddress(id), requests: make(chan raft.RPC), closed: make(chan struct{}),
	}
	n.change(func() { n.nodes[t.addr] = t })
	return t
}

type simTransport struct {
	net      *simNet
	addr     raft.ServerAddress
	requests chan raft.RPC
	closed   chan struct{}
	once     sync.Once

	mu   sync.Mutex
	fast func(raft.RPC) // guarded by mu
}

func (t *simTransport) Consumer() <-chan raft.RPC                               { return t.requests }
func (t *simTransport) LocalAddr() raft.ServerAddress                           { return t.addr }
func (t *simTransport) DecodePeer(b []byte) raft.ServerAddress                  { return raft.ServerAddress(b) }
func (t *simTransport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

func (t *simTransport) SetHeartbeatHandler(fn func(raft.RPC)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fast = fn
}

func (t *simTransport) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

func (t *simTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (t *simTransport) AppendEntries(_ raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse,
) error {
	return simCall(t, to, args, nil, resp)
}

func (t *simTransport) RequestVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest,
	resp *raft.RequestVoteResponse,
) error {
	return simCall(t, to, args, nil, resp)
}

func (t *simTransport) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest,
	resp *raft.RequestPreVoteResponse,
) error {
	return simCall(t, to, args, nil, resp)
}

func (t *simTransport) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest,
	resp *raft.InstallSnapshotResponse, data io.Reader,
) error {
	return simCall(t, to, args, data, resp)
}

func (t *simTransport) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest,
	resp *raft.TimeoutNowResponse,
) error {
	return simCall(t, to, args, nil, resp)
}

// simCall sends a copy of args and copies the answer to resp.
func simCall[A, R any](t *simTransport, to raft.ServerAddress, args *A, data io.Reader, resp *R) error {
	command := new(A)
	*command = *args
	m := simMessage{simLink{t.addr, to}, command}
	peer := t.net.route(m)
	if peer == nil {
		time.Sleep(simTimeout)
		return errSimLost
	}
	time.Sleep(simLatency)
	answer, err := peer.handle(m, data)
	if err != nil {
		return err
	}
	if err := t.back(simLink{to, t.addr}); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	r, ok := answer.Response.(*R)
	if !ok {
		return fmt.Errorf("answer is %T", answer.Response)
	}
	*resp = *r
	return nil
}

func (n *simNet) route(m simMessage) *simTransport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[m.simLink] || n.only != nil && !n.only(m) {
		return nil
	}
	return n.nodes[m.to]
}

// back is the answer's way.
func (t *simTransport) back(l simLink) error {
	n := t.net
	n.mu.Lock()
	held, slow := n.answers[l], n.slow[l]
	n.mu.Unlock()
	time.Sleep(simLatency + slow)
	if held != nil {
		select {
		case <-held:
			return nil // it was under way before whatever was cut since
		case <-t.closed:
			return errSimLost
		}
	}
	n.mu.Lock()
	lost := n.cut[l]
	n.mu.Unlock()
	if lost {
		time.Sleep(simTimeout)
		return errSimLost
	}
	return nil
}

// handle gives a request to raft and waits for its answer.
func (t *simTransport) handle(m simMessage, data io.Reader) (raft.RPCResponse, error) {
	answers := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: m.command, Reader: data, RespChan: answers}
	t.mu.Lock()
	fast := t.fast
	t.mu.Unlock()
	timeout := time.After(10 * simTimeout)
	if fast != nil && m.heartbeat() {
		fast(rpc)
	} else {
		select {
		case t.requests <- rpc:
		case <-t.closed:
			return raft.RPCResponse{}, errSimLost
		case <-timeout:
			return raft.RPCResponse{}, errSimLost
		}
	}
	select {
	case a := <-answers:
		return a, nil
	case <-t.closed:
		return raft.RPCResponse{}, errSimLost
	case <-timeout:
		return raft.RPCResponse{}, errSimLost
	}
}

// simDisk is a log store that outlives its node, as a disk does.
type simDisk struct{ *raft.InmemStore }

func (simDisk) Close() error { return nil }

// simCluster is Stores on a simNet, with logs in memory and state in files.
type simCluster struct {
	t       *testing.T
	net     *simNet
	members []Member
	disks   map[string]LogStore
	dir     string
	timing  map[string]Timing // of nodes that differ
	nodes   map[string]*Store
	joins   bool // nodes without a log wait to be made members
}

// newSimCluster MUST be called in a synctest bubble, and closed there.
func newSimCluster(t *testing.T, timing map[string]Timing, disk ...func(id string) LogStore) *simCluster {
	c := &simCluster{
		t: t, net: newSimNet(), disks: map[string]LogStore{}, dir: t.TempDir(), timing: timing, nodes: map[string]*Store{},
	}
	for _, id := range []string{"n1", "n2", "n3"} {
		c.members = append(c.members, Member{ID: id})
		c.disks[id] = simDisk{raft.NewInmemStore()}
		if len(disk) > 0 {
			c.disks[id] = disk[0](id)
		}
	}
	for _, m := range c.members {
		c.start(m.ID)
	}
	return c
}

func (c *simCluster) start(id string) {
	c.t.Helper()
	s, err := Open(Config{
		ID: id, Dir: filepath.Join(c.dir, id), Members: c.members, Machine: kv{}, Timing: c.timing[id],
		Transport: c.net.join(id), LogStore: c.disks[id], TrailingLogs: 64, Join: c.joins,
	})
	if err != nil {
		c.t.Fatalf("open %s: %v", id, err)
	}
	c.nodes[id] = s
}

func (c *simCluster) close() {
	for id, s := range c.nodes {
		if err := s.Abort(); err != nil && s.Err() == nil {
			c.t.Errorf("abort %s: %v", id, err)
		}
	}
}

// leaderAmong waits until one of the nodes leads in a term after the given one.
func (c *simCluster) leaderAmong(after uint64, ids ...string) *Store {
	c.t.Helper()
	for range 3000 {
		for _, id := range ids {
			if s := c.nodes[id]; s != nil && s.raft.State() == raft.Leader && s.raft.CurrentTerm() > after {
				return s
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("none of %v leads after term %d", ids, after)
	return nil
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }
