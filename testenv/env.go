package testenv

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/internal/loopback"
	"github.com/hallpass/hallpass/raftstore"
)

// T is the part of *testing.T that an Env uses; a benchmark or a simulation may
// bring its own. Fatalf MUST NOT return.
type T interface {
	Helper()
	Context() context.Context
	TempDir() string
	Cleanup(fn func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

const (
	// TrustDomain is the identities' domain, and "grants." before it the grants'.
	TrustDomain = "acme.test"

	// patience bounds every wait for the cluster to do what it must do.
	patience = time.Minute
)

// DefaultPolicy lets engineers ask for anything of payments with one approval
// of an owner, and workloads under job/ ask for reads without any.
const DefaultPolicy = `version: 1
rules:
  - name: payments
    service: payments
    requesters: [group:engineers]
    permissions: ["* /**", "grpc hallpass.test.Echo/*", "tcp"]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
  - name: jobs
    service: payments
    requesters: ["spiffe://acme.test/job/*"]
    permissions: ["GET /accounts/**"]
    auto: true
    max_duration: 10m
`

// Options says what kind of cluster to start. The zero value is three nodes,
// DefaultPolicy, and the people alice (an engineer), bob (an engineer and an
// owner), carol, dana and erin (admins).
type Options struct {
	Nodes   int
	Policy  string
	Persons []ca.Person // besides the default people
	Groups  []ca.Group  // besides engineers, owners and admins
	Now     func(node string) func() time.Time
	Tracer  trace.TracerProvider             // of nodes, clients, proxies and connectors
	Logger  *slog.Logger                     // nil discards
	KMS     ca.OpenKMS                       // opens what Roots name
	Roots   ca.RootKeys                      // where the roots' keys are
	Issuers ca.SignOptions                   // of the nodes; Life and Now are looked at
	Notify  func(node string) control.Notify // whom a node tells what happens; nil: nobody
}

// Env is a running cluster with its people and proxies.
type Env struct {
	t        T
	log      *slog.Logger
	opts     Options
	dir      string
	manifest ca.Manifest
	nodes    []*Node
	roots    roots

	mu      sync.Mutex // guards what follows
	handed  []handed   // every certificate that a test was given
	folders map[string]string
}

// Admins are the names of the first admins.
func Admins() []string { return []string{"carol", "dana", "erin"} }

// Start runs a cluster and waits until it has a leader and is bootstrapped. When
// the test ends, its invariants are checked and it is stopped.
func Start(t T, o Options) *Env {
	t.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Policy == "" {
		o.Policy = DefaultPolicy
	}
	e := &Env{t: t, log: o.Logger, opts: o, dir: t.TempDir(), folders: make(map[string]string)}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	td := spiffeid.RequireTrustDomainFromString(TrustDomain)
	offline := e.Offline()
	e.must(ca.Init(offline, ca.InitOptions{TrustDomain: td, Admins: Admins(), Seed: e.seed(), Dev: true, Open: o.KMS, Keys: o.Roots}))
	var requests []ca.NodeRequest
	for i := range o.Nodes {
		n := e.newNode(fmt.Sprintf("n%d", i+1))
		request, err := ca.NewNode(n.keys, ca.NodeOptions{
			ID: n.ID, TrustDomain: td, RaftAddress: n.raft, APIAddress: n.api,
			DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
		})
		e.must(err)
		requests = append(requests, request)
		e.nodes = append(e.nodes, n)
	}
	var err error
	e.manifest, err = ca.SignNodes(offline, requests, ca.SignOptions{Life: o.Issuers.Life, Now: o.Issuers.Now, Open: o.KMS})
	e.must(err)
	e.roots = newRoots(e.manifest)
	t.Cleanup(e.stop)
	for _, n := range e.nodes {
		n.Start()
	}
	e.WaitReady()
	return e
}

func (e *Env) seed() *ca.Seed {
	person := func(name string) ca.Person {
		return ca.Person{Name: name, IDs: []string{"spiffe://" + TrustDomain + "/user/" + name}}
	}
	return &ca.Seed{
		Persons: append([]ca.Person{person("alice"), person("bob")}, e.opts.Persons...),
		Groups: append([]ca.Group{
			{Name: "engineers", Members: []string{"alice", "bob"}},
			{Name: "owners", Members: []string{"bob"}},
		}, e.opts.Groups...),
		Policy: e.opts.Policy,
	}
}

// Manifest is what is public about the cluster.
func (e *Env) Manifest() ca.Manifest { return e.manifest }

// Offline is the folder of the cluster's roots.
func (e *Env) Offline() string { return filepath.Join(e.dir, "offline") }

// Servers are the URLs of the nodes' APIs.
func (e *Env) Servers() []string {
	urls := make([]string, len(e.nodes))
	for i, n := range e.nodes {
		urls[i] = "https://" + n.api
	}
	return urls
}

// Nodes are the control nodes, n1 first.
func (e *Env) Nodes() []*Node { return e.nodes }

// Leader waits for a node that leads and returns it.
func (e *Env) Leader() *Node {
	e.t.Helper()
	var leader *Node
	e.Eventually("a node leads", func() bool {
		for _, n := range e.nodes {
			if s := n.server(); s != nil && s.Store().IsLeader() {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// WaitReady waits until a client is answered by a cluster that has been
// bootstrapped.
func (e *Env) WaitReady() {
	e.t.Helper()
	c := e.Client(Admins()[0])
	defer c.Close()
	e.Eventually("the cluster answers", func() bool {
		_, err := c.Cluster(e.t.Context())
		return err == nil
	})
}

// Eventually waits until ok says true, and ends the test when it never does.
func (e *Env) Eventually(what string, ok func() bool) {
	e.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			e.t.Fatalf("testenv: after %s it is not so that %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (e *Env) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatalf("testenv: %v", err)
	}
}

func (e *Env) stop() {
	if err := e.CheckInvariants(); err != nil {
		e.t.Errorf("testenv: %v", err)
	}
	for _, n := range e.nodes {
		n.Stop()
	}
}

// Node is one control node.
type Node struct {
	ID   string
	env  *Env
	keys string
	data string
	api  string // host:port
	raft string

	mu     sync.Mutex // guards what follows
	srv    *control.Server
	cancel context.CancelFunc
	ended  chan struct{}
}

func (e *Env) newNode(id string) *Node {
	e.t.Helper()
	n := &Node{ID: id, env: e, keys: filepath.Join(e.dir, id, "keys"), data: filepath.Join(e.dir, id, "data")}
	n.api, n.raft = e.freeAddress(), e.freeAddress()
	return n
}

// Keys is the folder of the node's keys, for who has stolen them.
func (n *Node) Keys() string { return n.keys }

// Start runs the node on its files. Its addresses stay the same.
func (n *Node) Start() {
	t := n.env.t
	t.Helper()
	node, err := ca.LoadNode(n.keys, n.env.manifest)
	n.env.must(err)
	cfg := control.Config{
		Node: node, Manifest: n.env.manifest, DataDir: n.data,
		API: n.env.listen(n.api), Raft: n.env.listen(n.raft),
		Logger: n.env.log, Tracer: n.env.opts.Tracer,
		// A machine that many tests keep busy stands still for longer than a leader's lease is by default.
		Timing: raftstore.Timing{Heartbeat: 600 * time.Millisecond, Election: 600 * time.Millisecond, Lease: 600 * time.Millisecond},
		// A few identities stand for many callers.
		Limits: control.Limits{ReadsPerSecond: 1e6, WritesPerSecond: 1e6, WritesPerCaller: 1e6, Writes: 1e6},
	}
	if n.env.opts.Notify != nil {
		cfg.Notify = n.env.opts.Notify(n.ID)
	}
	if n.env.opts.Now != nil {
		cfg.Now = n.env.opts.Now(n.ID)
	}
	srv, err := control.New(cfg)
	n.env.must(err)
	// A test's context ends before its cleanups run, which still need the node.
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.Run(ctx); err != nil {
			n.env.log.LogAttrs(ctx, slog.LevelError, "node ended", slog.String("node", n.ID), slog.String("error", err.Error()))
		}
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.srv, n.cancel, n.ended = srv, cancel, ended
}

// Stop ends the node as SIGTERM does: calls at work finish, leadership is
// handed over. A stopped node stays stopped.
func (n *Node) Stop() {
	n.mu.Lock()
	cancel, ended := n.cancel, n.ended
	n.srv, n.cancel = nil, nil
	n.mu.Unlock()
	if cancel == nil {
		return
	}
	cancel()
	<-ended
}

// Kill ends the node as SIGKILL does: nothing is finished, nobody is told, and
// what was not on disk is gone.
func (n *Node) Kill() {
	if srv := n.server(); srv != nil {
		// Its error is that of closing files under a store that is being torn down.
		_ = srv.Store().Abort()
	}
	n.Stop()
}

// Running reports whether the node was started and not stopped since.
func (n *Node) Running() bool { return n.server() != nil }

// Server is the running control server; it ends the test when there is none.
func (n *Node) Server() *control.Server {
	n.env.t.Helper()
	s := n.server()
	if s == nil {
		n.env.t.Fatalf("testenv: node %s is not running", n.ID)
	}
	return s
}

func (n *Node) server() *control.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.srv
}

// freeAddress returns a loopback address that stays the test's while nobody
// listens on it.
func (e *Env) freeAddress() string {
	e.t.Helper()
	kept, err := loopback.Reserve()
	e.must(err)
	e.t.Cleanup(func() { e.must(kept.Release()) })
	return kept.Address()
}

func (e *Env) listen(address string) net.Listener {
	e.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var l net.Listener
		l, err = (&net.ListenConfig{}).Listen(context.WithoutCancel(e.t.Context()), "tcp", address)
		if err == nil {
			return l
		}
		if !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	e.t.Fatalf("testenv: listen %s: %v", address, err)
	return nil
}
