//go:build integration

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/realpg"
	"github.com/hallpass/hallpass/proxy"
	"github.com/hallpass/hallpass/testenv"
)

// connectPolicy gives jobs at once what engineers have to wait for, and a database
// with certificates that live no longer than they must.
const connectPolicy = testenv.DefaultPolicy + `  - name: orders
    service: orders
    requesters: [group:engineers]
    permissions: ["postgres orders as readonly"]
    auto: true
    max_duration: 10m
    certificate_ttl: 1m
`

// connecting is a cluster, and bin/hallpass as people type it.
type connecting struct {
	*testenv.Env
	t      *testing.T
	binary string
	dir    string // short enough for the path of a socket
}

func newConnecting(t *testing.T) connecting {
	t.Helper()
	dir, err := os.MkdirTemp("", "hallpass-connect") //nolint:usetesting // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := connecting{testenv.Start(t, testenv.Options{Policy: connectPolicy}), t, filepath.Join(dir, "hallpass"), dir}
	buildHallpass(t, c.binary, "", "0")
	return c
}

// program is a running process.
type program struct {
	t      *testing.T
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr *bufio.Reader
	ended  chan ended // one
}

type ended struct {
	at     time.Time
	err    error
	stdout string // what had not been read
	stderr string
}

// start runs a program as who.
func (c connecting) start(who, name string, args ...string) *program {
	c.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(c.t.Context()), name, args...)
	cmd.Dir = c.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "LANG=C.UTF-8", "NO_COLOR=1",
		"HALLPASS_SERVER=" + strings.Join(c.Servers(), ","), "HALLPASS_IDENTITY=" + c.Folder(who),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &program{t: c.t, ended: make(chan ended, 1)}
	pipe := func() (*os.File, *bufio.Reader) {
		r, w, err := os.Pipe()
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { _ = r.Close() })
		return w, bufio.NewReader(r)
	}
	var out, errs *os.File
	out, p.stdout = pipe()
	errs, p.stderr = pipe()
	cmd.Stdout, cmd.Stderr = out, errs
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	_, _ = out.Close(), errs.Close() // the program has its own
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		err := cmd.Wait()
		p.ended <- ended{at: time.Now(), err: err}
	}()
	c.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		select {
		case <-gone:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-gone
		}
	})
	return p
}

// end waits for its end, for so long, and reads what it said last.
func (p *program) end(within time.Duration) ended {
	p.t.Helper()
	select {
	case e := <-p.ended:
		out, _ := io.ReadAll(p.stdout)
		errs, _ := io.ReadAll(p.stderr)
		e.stdout, e.stderr = string(out), string(errs)
		return e
	case <-time.After(within):
		p.t.Fatalf("it has not ended after %s", within)
		return ended{}
	}
}

// connect runs `hallpass connect` as who and returns where it listens.
func (c connecting) connect(who, service string, via *testenv.Proxy, args ...string) string {
	c.t.Helper()
	p := c.start(who, c.binary, append([]string{"connect", service, "--via", via.Address()}, args...)...)
	line, err := p.stderr.ReadString('\n')
	f := strings.Fields(line)
	if err != nil || len(f) < 2 || f[0] != "carrying" {
		c.t.Fatalf("connect says %q, %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, p.stderr) }() // ends with it
	return f[1]
}

// TestCurlOnDemand: what was never granted is had with one plain curl through `hallpass connect`, by
// the rules at once, or when a person has approved; and a no is an answer that curl's user can read.
func TestCurlOnDemand(t *testing.T) {
	t.Parallel()
	c := newConnecting(t)
	var served atomic.Int64
	p := c.Proxy("payments", testenv.ProxyOptions{Upstream: c.HTTPUpstream(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		_, _ = fmt.Fprintf(w, "payments: %s %s for %s\n", r.Method, r.URL.Path, r.Header.Get("X-Hallpass-Subject"))
	}))})
	gets := func(e ended, want string, calls int64) {
		t.Helper()
		if e.err != nil || e.stdout != want || served.Load() != calls {
			t.Errorf("curl: %v: %q %q; the service was called %d times, want %d", e.err, e.stdout, e.stderr, served.Load(), calls)
		}
	}

	at := c.connect("job/nightly", "payments", p, "--listen", "127.0.0.1:0", "--on-demand", "--reason", "a test", "--for", "5m")
	gets(c.start("alice", "curl", "-sS", "--fail-with-body", "http://"+at+"/accounts/1").end(patience),
		"payments: GET /accounts/1 for spiffe://acme.test/job/nightly\n", 1)

	sock := filepath.Join(c.dir, "payments.sock")
	c.connect("alice", "payments", p, "--listen", "unix://"+sock, "--on-demand", "--reason", "a test")
	curl := func(path string) *program {
		return c.start("alice", "curl", "-sS", "--fail-with-body", "--unix-socket", sock, "http://payments"+path)
	}
	waits := curl("/accounts/2")
	r := pending(t, c.Env, "alice", "GET /accounts/2")
	if n := served.Load(); n != 1 {
		t.Errorf("the service was called before anybody approved")
	}
	c.Approve("bob", r)
	gets(waits.end(patience), "payments: GET /accounts/2 for spiffe://acme.test/user/alice\n", 2)
	gets(curl("/accounts/2").end(patience), "payments: GET /accounts/2 for spiffe://acme.test/user/alice\n", 3)

	waits = curl("/accounts/3")
	r = pending(t, c.Env, "alice", "GET /accounts/3")
	if _, err := c.Client("bob").DecideRequest(t.Context(), r.ID, api.DecisionInput{Decision: "deny", Hash: r.Hash}); err != nil {
		t.Fatal(err)
	}
	e := waits.end(patience)
	if code, next := problemCode(t, e.stdout); e.err == nil || code != "request_denied" || next == "" || served.Load() != 3 {
		t.Errorf("denied: curl: %v: %q %q, called %d times", e.err, e.stdout, e.stderr, served.Load())
	}
}

// TestPsqlOutlivesCertificates: one psql session, through `hallpass connect` to a real PostgreSQL, is
// answered behind each of three renewals, by the same backend, and ends with the grant, in words.
func TestPsqlOutlivesCertificates(t *testing.T) {
	t.Parallel()
	c := newConnecting(t)
	db := realpg.Start(t, realpg.Options{HBA: "local all readonly trust\n"})
	for _, sql := range []string{"CREATE ROLE readonly LOGIN", "CREATE DATABASE orders"} {
		if _, err := db.Query(t.Context(), "postgres", sql); err != nil {
			t.Fatal(err)
		}
	}
	p := c.Proxy("orders", testenv.ProxyOptions{Upstream: "unix://" + db.Socket(), Protocol: "postgres", Change: func(s *proxy.Settings) {
		s.Hosts, s.Postgres.Auth = nil, "peer"
	}})
	asked := c.start("alice", c.binary, "request", "create", "orders", "--allow", "postgres orders as readonly", "--for", "150s", "--reason", "a test", "--quiet").end(patience)
	if asked.err != nil {
		t.Fatalf("%v: %s", asked.err, asked.stderr)
	}
	grant, err := c.Client("alice").Grant(t.Context(), strings.TrimSpace(asked.stdout))
	if err != nil {
		t.Fatal(err)
	}
	c.connect("alice", "orders", p, "--tcp", "--listen", "unix://"+filepath.Join(c.dir, ".s.PGSQL.5432"))
	session := c.start("alice", "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "host="+c.dir+" dbname=orders user=readonly")
	ask := func(sql string) string {
		t.Helper()
		if _, err := io.WriteString(session.stdin, sql+";\n"); err != nil {
			t.Fatal(err)
		}
		line, err := session.stdout.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: %v: %q", sql, err, session.end(patience).stderr)
		}
		return strings.TrimSpace(line)
	}
	backend := ask("SELECT pg_backend_pid()")
	for i := range 3 {
		within(t, fmt.Sprintf("renewal %d", i+1), func() error {
			log, err := os.ReadFile(p.AccessLog())
			if n := strings.Count(string(log), `"kind":"renewal"`); err != nil || n <= i {
				return fmt.Errorf("%d renewals: %w", n, err)
			}
			return nil
		})
		if got := ask("SELECT pg_backend_pid()"); got != backend {
			t.Errorf("after renewal %d: answered by backend %s, want %s", i+1, got, backend)
		}
	}
	end := grant.ExpiresAt.Truncate(time.Second) // certificates know no less
	lag := make(chan time.Duration, 1)
	go func() { lag <- worstStall(t.Context(), end.Add(5*time.Second)) }()
	if _, err := io.WriteString(session.stdin, "SELECT pg_sleep(600);\n"); err != nil {
		t.Fatal(err)
	}
	e := session.end(time.Until(end) + patience)
	if late, stall := e.at.Sub(end), <-lag; late < 0 || late > time.Second+stall {
		t.Errorf("psql ended %s after the grant (machine stalls up to %s)", late, stall)
	}
	if e.err == nil || !strings.Contains(e.stderr, "FATAL:  hallpass: terminating connection: the grant certificate has expired") {
		t.Errorf("psql ended with %v: %q", e.err, e.stderr)
	}
	within(t, "the backend's end", func() error {
		left, err := db.Query(t.Context(), "postgres", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'readonly'")
		if err != nil || left[0] != "0" {
			return fmt.Errorf("%v backends are left: %w", left, err)
		}
		return nil
	})
	if again := c.start("alice", "psql", "-X", "host="+c.dir+" dbname=orders user=readonly", "-c", "SELECT 1").end(patience); again.err == nil {
		t.Errorf("a new session after the grant's end: %q", again.stdout)
	}
}

// worstStall is how late this machine ran a timer, at the worst, until a moment.
func worstStall(ctx context.Context, until time.Time) (worst time.Duration) {
	for time.Now().Before(until) && ctx.Err() == nil {
		began := time.Now()
		time.Sleep(5 * time.Millisecond)
		worst = max(worst, time.Since(began)-5*time.Millisecond)
	}
	return worst
}
