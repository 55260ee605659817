package control

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/internal/loopback"
	"github.com/hallpass/hallpass/raftstore"
)

const testPolicy = `version: 1
rules:
  - name: payments-read
    service: payments
    requesters: [group:engineers, "spiffe://acme.test/agent/*"]
    permissions: ["GET,HEAD /accounts/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    certificate_ttl: 5m
  - name: ledger
    service: ledger
    requesters: [group:engineers, "spiffe://acme.test/agent/*"]
    permissions: ["GET,HEAD /accounts/**"]
    require: [{group: payments-owners, approvals: 2}]
    max_duration: 1h
  - name: wiki
    service: wiki
    requesters: [group:engineers]
    permissions: ["GET /**"]
    auto: true
    max_duration: 1h
`

// directory of the tests: admins ann, ben and cid; engineers alice and erin;
// owners of payments bob, who also is user/bob-phone, carol and alice, who also is
// user/alice-laptop and owns agent/robot.
func testSeed() *ca.Seed {
	person := func(name string, more ...string) ca.Person {
		return ca.Person{Name: name, IDs: append([]string{"spiffe://acme.test/user/" + name}, more...)}
	}
	alice := person("alice", "spiffe://acme.test/user/alice-laptop")
	alice.Owns = []string{"spiffe://acme.test/agent/robot"}
	return &ca.Seed{
		Persons: []ca.Person{alice, person("erin"), person("bob", "spiffe://acme.test/user/bob-phone"), person("carol")},
		Groups: []ca.Group{
			{Name: "engineers", Members: []string{"alice", "erin"}},
			{Name: "payments-owners", Members: []string{"bob", "carol", "alice"}},
		},
		Policy: testPolicy,
	}
}

// offline is a certificate authority's folder, with three nodes signed.
type offline struct {
	dir      string
	manifest ca.Manifest
	listen   map[string][2]net.Listener // API and Raft, held until the node starts
	nodes    []*ca.Node
	believed []*x509.Certificate // the roots that clients go by; nil: the manifest's
}

func newOffline(t testing.TB, size int) *offline {
	t.Helper()
	o := &offline{dir: filepath.Join(t.TempDir(), "ca"), listen: map[string][2]net.Listener{}}
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	must(t, ca.Init(o.dir, ca.InitOptions{TrustDomain: td, Admins: []string{"ann", "ben", "cid"}, Seed: testSeed()}))
	var requests []ca.NodeRequest
	for i := range size {
		id := fmt.Sprintf("n%d", i+1)
		ls := [2]net.Listener{listen(t), listen(t)}
		o.listen[id] = ls
		r, err := ca.NewNode(filepath.Join(o.dir, "nodes", id), ca.NodeOptions{
			ID: id, TrustDomain: td, APIAddress: ls[0].Addr().String(), RaftAddress: ls[1].Addr().String(),
		})
		must(t, err)
		requests = append(requests, r)
	}
	var err error
	o.manifest, err = ca.SignNodes(o.dir, requests, ca.SignOptions{})
	must(t, err)
	for _, e := range o.manifest.Nodes {
		n, err := ca.LoadNode(filepath.Join(o.dir, "nodes", e.ID), o.manifest)
		must(t, err)
		o.nodes = append(o.nodes, n)
	}
	return o
}

// listen takes an address that stays the test's while nobody listens on it.
func listen(t testing.TB) net.Listener {
	t.Helper()
	kept, err := loopback.Reserve()
	must(t, err)
	t.Cleanup(func() { must(t, kept.Release()) })
	l, err := net.Listen("tcp", kept.Address())
	must(t, err)
	return l
}

// relisten takes an address that a stopped node has let go.
func relisten(t testing.TB, addr string) net.Listener {
	t.Helper()
	for range 200 {
		if l, err := net.Listen("tcp", addr); err == nil {
			return l
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is still in use", addr)
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// identity issues an identity from the offline root.
func (o *offline) identity(t testing.TB, id string, life ...time.Duration) tls.Certificate {
	t.Helper()
	key, err := ca.GenerateKey()
	must(t, err)
	spec := ca.IdentitySpec{
		ID: spiffeid.RequireFromString(id), PublicKey: key.Public(), Now: time.Now(), TTL: time.Hour, Skew: time.Minute,
	}
	if len(life) > 0 {
		spec.TTL = life[0]
	}
	chain, err := ca.IssueOffline(o.dir, spec)
	must(t, err)
	return certificate(chain, key)
}

func certificate(chain []*x509.Certificate, key crypto.Signer) tls.Certificate {
	c := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}

func (o *offline) roots() *x509.CertPool {
	p := x509.NewCertPool()
	roots := o.believed
	if roots == nil {
		roots = o.manifest.IdentityRoots
	}
	for _, c := range roots {
		p.AddCert(c)
	}
	return p
}

// cluster is a live cluster in this process.
type cluster struct {
	*offline
	t      testing.TB
	cfg    func(*Config)
	logs   *logBuffer
	mu     sync.Mutex
	people map[string]*api.Client // guarded by mu, as nodes is
	nodes  map[string]*running
}

type running struct {
	*Server
	dir  string
	stop context.CancelFunc
	done chan error
}

// logBuffer keeps what all nodes log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newCluster starts three nodes and waits until they answer. cfg may change
// each node's configuration.
func newCluster(t testing.TB, cfg func(*Config)) *cluster {
	t.Helper()
	c := &cluster{
		offline: newOffline(t, 3), t: t, cfg: cfg, logs: &logBuffer{},
		people: map[string]*api.Client{}, nodes: map[string]*running{},
	}
	t.Cleanup(func() {
		for id := range c.nodes {
			c.halt(id)
		}
		if t.Failed() && testing.Verbose() {
			_, _ = io.Copy(os.Stderr, &c.logs.b)
		}
	})
	for _, n := range c.offline.nodes {
		c.start(n.ID)
	}
	c.awaitReady()
	return c
}

func (c *cluster) start(id string) *running {
	c.t.Helper()
	cfg := c.config(id)
	s, err := New(cfg)
	must(c.t, err)
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Server: s, dir: cfg.DataDir, stop: stop, done: make(chan error, 1)}
	go func() { r.done <- s.Run(ctx) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[id] = r
	return r
}

// startFails starts a node that must refuse.
func (c *cluster) startFails(id string) error {
	c.t.Helper()
	s, err := New(c.config(id))
	if err == nil {
		must(c.t, s.Close())
		c.t.Fatalf("node %s starts", id)
	}
	return err
}

func (c *cluster) config(id string) Config {
	c.t.Helper()
	var node *ca.Node
	for _, n := range c.offline.nodes {
		if n.ID == id {
			node = n
		}
	}
	ls, ok := c.listen[id]
	if !ok {
		e, _ := c.manifest.Node(id)
		ls = [2]net.Listener{relisten(c.t, e.APIAddress), relisten(c.t, e.RaftAddress)}
	}
	delete(c.listen, id)
	cfg := Config{
		Node: node, Manifest: c.manifest, DataDir: filepath.Join(c.dir, "data", id),
		API: ls[0], Raft: ls[1], Admin: listen(c.t),
		Logger: slog.New(slog.NewTextHandler(c.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Timing: raftstore.Timing{Heartbeat: 600 * time.Millisecond, Election: 600 * time.Millisecond, Lease: 600 * time.Millisecond},
		Limits: Limits{Tick: 100 * time.Millisecond, Heartbeat: 200 * time.Millisecond},
	}
	if c.cfg != nil {
		c.cfg(&cfg)
	}
	return cfg
}

// halt stops a node in order.
func (c *cluster) halt(id string) {
	c.mu.Lock()
	r := c.nodes[id]
	delete(c.nodes, id)
	c.mu.Unlock()
	if r == nil {
		return
	}
	r.stop()
	if err := <-r.done; err != nil {
		c.t.Errorf("node %s: %v", id, err)
	}
}

// crash stops a node as SIGKILL would, as far as others can tell.
func (c *cluster) crash(id string) {
	c.mu.Lock()
	r := c.nodes[id]
	delete(c.nodes, id)
	c.mu.Unlock()
	_ = r.Store().Abort()
	r.stop()
	_, _ = fmt.Fprintf(c.logs, "node %s was crashed: %v\n", id, <-r.done)
}

// live are the nodes that run.
func (c *cluster) live() []*running {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*running
	for _, r := range c.nodes {
		out = append(out, r)
	}
	return out
}

func (c *cluster) node(id string) *running {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

// until polls for a condition, generously.
func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			c.t.Fatalf("waited too long until %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *cluster) awaitReady() {
	c.t.Helper()
	c.until("all nodes are ready", func() bool {
		for _, r := range c.live() {
			if !r.Health().Ready {
				return false
			}
		}
		return c.leading() != nil
	})
}

// leader waits for a node that leads and knows it.
func (c *cluster) leader() (l *running) {
	c.t.Helper()
	c.until("a node leads", func() bool {
		l = c.leading()
		return l != nil
	})
	return l
}

// leading is the node that leads and knows it, nil when there is none.
func (c *cluster) leading() *running {
	for _, r := range c.live() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := r.Store().Linearize(ctx)
		cancel()
		if err == nil {
			return r
		}
	}
	return nil
}

func (c *cluster) follower() *running {
	c.t.Helper()
	for _, r := range c.live() {
		if !r.Store().IsLeader() {
			return r
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func (c *cluster) urls() []string {
	var out []string
	for _, e := range c.manifest.Nodes {
		out = append(out, "https://"+e.APIAddress)
	}
	return out
}

func (r *running) url() string { return "https://" + r.api.Addr().String() }

// as is a client of the given path, such as user/alice, at the whole cluster.
func (c *cluster) as(path string) *api.Client {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.people[path]; cl != nil {
		return cl
	}
	c.people[path] = c.client(c.identity(c.t, "spiffe://acme.test/"+path), c.urls()...)
	return c.people[path]
}

func (c *cluster) client(cert tls.Certificate, servers ...string) *api.Client {
	c.t.Helper()
	cl, err := api.NewClient(api.ClientConfig{
		Servers: servers, Certificate: &cert, Roots: c.roots(), RetryFor: 45 * time.Second, Timeout: 15 * time.Second,
	})
	must(c.t, err)
	c.t.Cleanup(cl.Close)
	return cl
}

// at is a client of the given path at one node.
func (c *cluster) at(r *running, path string) *api.Client {
	c.t.Helper()
	return c.client(c.identity(c.t, "spiffe://acme.test/"+path), r.url())
}

// once is a client of the given path at one node, which does not try again.
func (c *cluster) once(r *running, path string) *api.Client {
	c.t.Helper()
	cert := c.identity(c.t, "spiffe://acme.test/"+path)
	cl, err := api.NewClient(api.ClientConfig{
		Servers: []string{r.url()}, Certificate: &cert, Roots: c.roots(), RetryFor: -1, Timeout: 20 * time.Second,
	})
	must(c.t, err)
	c.t.Cleanup(cl.Close)
	return cl
}

func newCSR(t testing.TB) (string, crypto.Signer) {
	t.Helper()
	key, err := ca.GenerateKey()
	must(t, err)
	csr, err := ca.MakeCSR(key, "test")
	must(t, err)
	return string(csr), key
}

func readAccounts() api.RequestInput {
	return api.RequestInput{
		Service: "payments", Permissions: []string{"GET /accounts/**"}, Reason: "ticket 7", Duration: api.Duration(30 * time.Minute),
	}
}

// granted has alice ask and bob approve.
func (c *cluster) granted() api.Request {
	c.t.Helper()
	r, err := c.as("user/alice").CreateRequest(c.t.Context(), readAccounts())
	must(c.t, err)
	r, err = c.as("user/bob").DecideRequest(c.t.Context(), r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash})
	must(c.t, err)
	if r.State != api.RequestApproved || r.Grant == nil {
		c.t.Fatalf("after the approval: %+v", r)
	}
	return r
}

// check looks at every node's state for what must never be.
func (c *cluster) check() {
	c.t.Helper()
	for _, r := range c.live() {
		err := CheckStore(c.t.Context(), r.Store())
		if err != nil {
			c.t.Errorf("node %s: %v", r.ID(), err)
		}
	}
}

// wantProblem checks that a call was refused with a code.
func wantProblem(t testing.TB, err error, code api.Code) {
	t.Helper()
	_ = theProblem(t, err, code)
}

// theProblem is wantProblem, and returns what was said.
func theProblem(t testing.TB, err error, code api.Code) *api.Problem {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) || p.Code != code {
		t.Fatalf("got %v, want code %s", err, code)
	}
	return p
}
