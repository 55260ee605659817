//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/faults/failpoint"
	"github.com/hallpass/hallpass/internal/ledger"
	"github.com/hallpass/hallpass/internal/loopback"
)

const (
	// bearable is how long anything may take on a loaded machine.
	bearable = time.Minute

	seed = `persons:
  - {name: alice, ids: ["spiffe://acme.test/user/alice"]}
  - {name: erin, ids: ["spiffe://acme.test/user/erin"]}
  - {name: frank, ids: ["spiffe://acme.test/user/frank"]}
groups:
  - {name: engineers, members: [alice, erin, frank]}
  - {name: owners, members: [bob]}
policy: |
  version: 1
  rules:
    - name: payments-read
      service: payments
      requesters: [group:engineers]
      permissions: ["GET,HEAD /accounts/**"]
      require: [{group: owners, approvals: 1}]
      max_duration: 1h
`
)

func engineers() []string { return []string{"alice", "erin", "frank"} }

// cluster is three control nodes, each a process of its own.
type cluster struct {
	dir    string
	binary string
	nodes  []*node
}

// node is a control node that is started again and again on its files.
type node struct {
	name            string
	dir             string // with its configuration, keys and data
	binary          string
	api, raft, http string // addresses; http is the admin one

	mu   sync.Mutex
	proc *process // guarded by mu; nil before the first start
}

// process is one run of a node.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// newCluster makes the keys and the configuration; nothing is started.
func newCluster(t *testing.T, binary, logStore string) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), binary: binary}
	t.Cleanup(func() { c.end(t) })
	offline := filepath.Join(c.dir, "offline")
	write(t, filepath.Join(c.dir, "seed.yaml"), seed)
	c.must(t, "ca", "init", "--dir", offline, "--trust-domain", "acme.test", "--dev", "--admin", "bob,carol,dana", "--seed", filepath.Join(c.dir, "seed.yaml"))
	sign := []string{"ca", "sign-node", "--dir", offline}
	addresses := keep(t, 9)
	for i, name := range []string{"n1", "n2", "n3"} {
		n := &node{name: name, dir: filepath.Join(c.dir, name), binary: binary, api: addresses[3*i], raft: addresses[3*i+1], http: addresses[3*i+2]}
		c.must(t, "server", "init", "--dir", filepath.Join(n.dir, "keys"), "--node", name, "--trust-domain", "acme.test",
			"--raft-address", n.raft, "--api-address", n.api, "--ip", "127.0.0.1", "--dns", "localhost")
		write(t, filepath.Join(n.dir, "server.yaml"), fmt.Sprintf("node: %s\ndata_dir: %s\nkeys_dir: %s\nmanifest: %s\nlisten: {api: %q, raft: %q, admin: %q}\ndev: true\nlimits: {reads_per_second: 1000000, writes_per_second: 1000000}\nlog_store: %s\n",
			name, n.data(), filepath.Join(n.dir, "keys"), filepath.Join(offline, "manifest.json"), n.api, n.raft, n.http, logStore))
		sign = append(sign, filepath.Join(n.dir, "keys", "node-request.json"))
		c.nodes = append(c.nodes, n)
	}
	c.must(t, sign...)
	for _, name := range engineers() {
		c.must(t, "identity", "issue", "user/"+name, "--root", offline, "--out", filepath.Join(offline, "persons", name))
	}
	return c
}

// end kills what still runs, and says what the nodes said when the test has failed.
func (c *cluster) end(t *testing.T) {
	for _, n := range c.nodes {
		n.kill()
		if t.Failed() {
			t.Logf("the end of what %s said:\n%s", n.name, n.said(40))
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// keep takes n loopback addresses that nobody else gets while the nodes on them are down.
func keep(t *testing.T, n int) (addresses []string) {
	t.Helper()
	for range n {
		kept, err := loopback.Reserve()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = kept.Release() }) // the end of the process does it too
		addresses = append(addresses, kept.Address())
	}
	return addresses
}

// must runs a command of the binary that has to succeed.
func (c *cluster) must(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bearable)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.binary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("hallpass %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// client calls the API of the given nodes, or of all, as a person.
func (c *cluster) client(t *testing.T, who string, at ...*node) *api.Client {
	t.Helper()
	if len(at) == 0 {
		at = c.nodes
	}
	var servers []string
	for _, n := range at {
		servers = append(servers, "https://"+n.api)
	}
	client, err := api.NewClient(api.ClientConfig{
		Servers: servers, Identity: filepath.Join(c.dir, "offline", "persons", who), Timeout: 5 * time.Second, RetryFor: 2 * bearable,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// writing opens a ledger.
func (c *cluster) writing(t *testing.T) *ledger.Ledger {
	t.Helper()
	conf := ledger.Config{
		Ask:   api.RequestInput{Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(50 * time.Minute)},
		Pause: 30 * time.Millisecond,
	}
	for _, name := range engineers() {
		conf.Writers = append(conf.Writers, ledger.Writer{Name: name, Asker: c.client(t, name), Owner: c.client(t, "bob"), Voter: "bob"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := ledger.Open(ctx, conf)
	t.Cleanup(func() {
		cancel()
		end, done := context.WithTimeout(context.WithoutCancel(ctx), bearable)
		defer done()
		_, _ = l.Close(end) // the test has said what there is to say
	})
	return l
}

func (n *node) data() string    { return filepath.Join(n.dir, "data") }
func (n *node) order() string   { return filepath.Join(n.dir, "failpoint") }
func (n *node) logFile() string { return filepath.Join(n.dir, "log") }
func (n *node) command() []string {
	return []string{n.binary, "server", "--config", filepath.Join(n.dir, "server.yaml")}
}

// said is the end of a node's log.
func (n *node) said(lines int) string {
	text, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// start runs the node again.
func (n *node) start(t *testing.T) {
	t.Helper()
	out, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }() // the child has its own
	args := n.command()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), failpoint.Variable+"="+n.order())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.proc = p
}

func (n *node) process() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// kill ends the node as a power cut would, unless it has ended already.
func (n *node) kill() {
	if p := n.process(); p != nil {
		_ = p.cmd.Process.Kill() // it may be gone
		<-p.done
	}
}

// ended says how the node's last run ended, once it has.
func (n *node) ended(within time.Duration) (status syscall.WaitStatus, ok bool) {
	p := n.process()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		select {
		case <-p.done: // both were there
		default:
			return 0, false
		}
	}
	return p.cmd.ProcessState.Sys().(syscall.WaitStatus), true
}

// ready waits until the node says that it is.
func (n *node) ready(ctx context.Context) error {
	var last string
	for {
		if status, ok := n.ended(0); ok {
			return fmt.Errorf("%s has ended, with %v", n.name, status)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			last = string(text)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %s: %w", n.name, last, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
