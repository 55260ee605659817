package control

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

// TestTimePasses: the leader ends what is due, once, and says so in the log.
func TestTimePasses(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	c := newCluster(t, func(cfg *Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	ctx := t.Context()
	pending, err := c.as("user/alice").CreateRequest(ctx, readAccounts())
	must(t, err)
	granted := c.granted()
	later := time.Now().Add(50 * time.Minute)
	in := readAccounts()
	in.Start = &later
	scheduled, err := c.as("user/alice").CreateRequest(ctx, in)
	must(t, err)
	scheduled, err = c.as("user/bob").DecideRequest(ctx, scheduled.ID, api.DecisionInput{Decision: "approve", Hash: scheduled.Hash})
	must(t, err)
	if scheduled.Grant.State != api.GrantScheduled {
		t.Errorf("a grant of later is %s", scheduled.Grant.State)
	}
	csr, _ := newCSR(t)
	_, err = c.as("user/alice").GrantCertificate(ctx, scheduled.ID, csr)
	wantProblem(t, err, api.CodeConflict)

	// Identities of an hour: the clock of the nodes may go 40 minutes ahead.
	ahead.Store(int64(40 * time.Minute))
	_, err = c.as("user/alice").GrantCertificate(ctx, granted.ID, csr)
	wantProblem(t, err, api.CodeExpired)
	c.until("the grant has expired in the log", func() bool {
		var ended approval.GrantState
		must(t, c.live()[0].Store().View(func(v raftstore.Reader, _ uint64) error {
			g, err := approval.Read(v).Grant(granted.ID)
			ended = g.State
			return err
		}))
		return ended == approval.GrantExpired
	})
	got, err := c.as("user/alice").Request(ctx, pending.ID)
	must(t, err)
	if got.State != api.RequestPending {
		t.Errorf("the request of a day is %s", got.State)
	}
	ahead.Store(int64(51 * time.Minute))
	cert, err := c.as("user/alice").GrantCertificate(ctx, scheduled.ID, csr)
	must(t, err)
	if cert.NotBefore.Before(later.Add(-approval.MaxBackdate - time.Second)) {
		t.Errorf("the certificate begins at %s, its grant at %s", cert.NotBefore, later)
	}
	c.check()
}

// TestRestart: a cluster that was stopped goes on where it was, and is not
// bootstrapped twice.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	var ids []string
	for _, n := range c.live() {
		ids = append(ids, n.ID())
	}
	c.crash(ids[0])
	c.halt(ids[1])
	c.halt(ids[2])
	for _, id := range ids {
		c.start(id)
	}
	c.awaitReady()
	got, err := c.as("user/alice").Request(t.Context(), r.ID)
	must(t, err)
	if got.State != api.RequestApproved || got.Hash != r.Hash {
		t.Errorf("after the restart: %+v", got)
	}
	entries, err := c.as("user/bob").AuditEntries(t.Context(), 0, 1000)
	must(t, err)
	for i, e := range entries.Entries {
		if boot := strings.Contains(string(e), `"kind":"bootstrap"`); boot != (i == 0) {
			t.Errorf("entry %d: %s", i, e)
		}
	}
	c.checkAudit(t)
	c.check()
}

// TestStopWithOpenStreams: a node that is told to stop ends its streams and
// blocking reads at once, and their readers go on elsewhere.
func TestStopWithOpenStreams(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r, err := c.as("user/alice").CreateRequest(t.Context(), readAccounts())
	must(t, err)
	node := c.follower()
	streams := c.at(node, "user/bob")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	open, ended := make(chan struct{}), make(chan struct{})
	go func() {
		var once sync.Once
		_ = streams.WatchRevocations(ctx, func(api.FeedEvent) error {
			once.Do(func() { close(open) })
			return nil
		})
		close(ended)
	}()
	<-open
	waited := make(chan error, 1)
	go func() {
		_, err := c.as("user/alice").WaitRequest(ctx, r.ID)
		waited <- err
	}()
	began := time.Now()
	c.halt(node.ID())
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("stopping took %s", took)
	}
	_, err = c.as("user/bob").DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "deny", Hash: r.Hash})
	must(t, err)
	must(t, <-waited)
	cancel()
	<-ended
}

// TestConfigIsChecked: a node that cannot be right does not start.
func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	o, strangers := newOffline(t, 1), newOffline(t, 1)
	node := o.nodes[0]
	good := func() Config {
		return Config{
			Node: node, Manifest: o.manifest, DataDir: filepath.Join(t.TempDir(), "data"),
			API: listen(t), Raft: listen(t), Logger: slog.New(slog.DiscardHandler),
		}
	}
	everywhere, err := net.Listen("tcp", "0.0.0.0:0")
	must(t, err)
	for name, spoil := range map[string]func(*Config){
		"no node":        func(c *Config) { c.Node = nil },
		"no directory":   func(c *Config) { c.DataDir = "" },
		"no API":         func(c *Config) { c.API = nil },
		"no Raft":        func(c *Config) { c.Raft = nil },
		"no logger":      func(c *Config) { c.Logger = nil },
		"negative skew":  func(c *Config) { c.Skew = -1 },
		"skew too long":  func(c *Config) { c.Skew = time.Hour },
		"public admin":   func(c *Config) { c.Admin = everywhere },
		"other manifest": func(c *Config) { c.Node, c.Manifest = o.nodes[0], strangers.manifest; c.Node.ID = "n9" },
	} {
		cfg := good()
		own := *node
		cfg.Node = &own
		spoil(&cfg)
		if s, err := New(cfg); err == nil {
			t.Errorf("%s: it starts", name)
			_ = s.Close()
		}
	}
	if err := everywhere.Close(); err == nil {
		t.Error("a node that does not start keeps its listeners open")
	}
}

// TestAnotherClustersState: a node refuses a data directory of another cluster.
func TestAnotherClustersState(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	start := func(o *offline) (*Server, error) {
		ls := o.listen["n1"]
		return New(Config{
			Node: o.nodes[0], Manifest: o.manifest, DataDir: dir, API: ls[0], Raft: ls[1],
			Logger: slog.New(slog.DiscardHandler),
		})
	}
	s, err := start(newOffline(t, 1))
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for deadline := time.Now().Add(time.Minute); !s.Health().Ready; {
		if time.Now().After(deadline) {
			t.Fatalf("a cluster of one is not ready: %+v", s.Health())
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	must(t, <-done)
	if s, err := start(newOffline(t, 1)); err == nil || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("got %v", err)
		if s != nil {
			_ = s.Close()
		}
	}
}
