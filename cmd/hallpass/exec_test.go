package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

// background is a command that runs until it is stopped. Its stderr is read line by line.
type background struct {
	t      *testing.T
	stop   context.CancelFunc
	stdin  *os.File
	stdout *bufio.Reader
	stderr *bufio.Reader
	status chan int
}

// pipe is closed at the end of the test, unless it was before.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

// runInBackground starts a command as who.
func runInBackground(t *testing.T, env *testenv.Env, who string, args ...string) *background {
	t.Helper()
	in, stdin := pipe(t)
	stdout, out := pipe(t)
	stderr, errs := pipe(t)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	a := &app{stdin: in, stdout: out, stderr: errs, now: time.Now, environ: func() []string {
		return []string{"PATH=" + os.Getenv("PATH"), "HALLPASS_SERVER=" + strings.Join(env.Servers(), ","), "HALLPASS_IDENTITY=" + env.Folder(who)}
	}}
	b := &background{t: t, stop: stop, stdin: stdin, stdout: bufio.NewReader(stdout), stderr: bufio.NewReader(stderr), status: make(chan int, 1)}
	var once sync.Once
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		status := a.run(ctx, args)
		_, _, _ = in.Close(), out.Close(), errs.Close()
		b.status <- status
	}()
	t.Cleanup(func() { once.Do(func() { stop(); <-ended }) })
	return b
}

// line reads from stderr until a line that begins so, and returns the rest of it.
func (b *background) line(prefix string) string {
	b.t.Helper()
	for {
		text, err := b.stderr.ReadString('\n')
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			return strings.TrimSpace(rest)
		}
		if err != nil {
			b.t.Fatalf("no %q on stderr: %q, %v", prefix, text, err)
		}
	}
}

// getLocal sends one request on a connection of its own.
func getLocal(t *testing.T, base, path string) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func problemCode(t *testing.T, body string) (code, next string) {
	t.Helper()
	var p struct{ Code, Next string }
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return p.Code, p.Next
}

// pending waits for who's one undecided request for a permission.
func pending(t *testing.T, env *testenv.Env, who, permission string) api.Request {
	t.Helper()
	var found []api.Request
	c := env.Client(who)
	env.Eventually("a request for "+permission, func() bool {
		list, err := c.Requests(t.Context(), api.Filter{State: api.RequestPending})
		if err != nil {
			return false
		}
		found = nil
		for _, r := range list.Requests {
			if len(r.Permissions) == 1 && r.Permissions[0] == permission {
				found = append(found, r)
			}
		}
		return len(found) > 0
	})
	if len(found) != 1 {
		t.Fatalf("%d requests for %s", len(found), permission)
	}
	return found[0]
}

// TestAccessOnDemand on a real cluster: what was never granted is had with one plain call, by
// the rules at once or after a person's word; a no is a clear answer; two calls are one request.
func TestAccessOnDemand(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	var served atomic.Int64
	p := env.Proxy("payments", testenv.ProxyOptions{Upstream: env.HTTPUpstream(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		_, _ = io.WriteString(w, "served")
	}))})
	connect := func(who string, more ...string) (string, *background) {
		t.Helper()
		b := runInBackground(t, env, who, append([]string{"connect", "payments", "--via", p.Address(), "--listen", "127.0.0.1:0", "--on-demand", "--reason", "a test"}, more...)...)
		at, _, _ := strings.Cut(b.line("carrying "), " ")
		return "http://" + at, b
	}
	job, running := connect("job/nightly", "--for", "5m") // the rules give jobs ten minutes at most
	if status, body := getLocal(t, job, "/accounts/1"); status != 200 || body != "served" {
		t.Errorf("granted by the rules: %d %s", status, body)
	}
	if status, body := getLocal(t, job, "/secrets"); status != 403 {
		t.Errorf("forbidden by the rules: %d %s", status, body)
	} else if code, _ := problemCode(t, body); code != "request_refused" {
		t.Errorf("forbidden by the rules: %s", body)
	}
	running.stop()
	if status := <-running.status; status != exitOK {
		t.Errorf("it ended with status %d", status)
	}

	alice, _ := connect("alice")
	before := served.Load()
	var calls sync.WaitGroup
	for range 2 {
		calls.Go(func() {
			if status, body := getLocal(t, alice, "/accounts/2"); status != 200 || body != "served" {
				t.Errorf("approved while it waited: %d %s", status, body)
			}
		})
	}
	r := pending(t, env, "alice", "GET /accounts/2")
	if served.Load() != before {
		t.Error("it was served before anybody approved")
	}
	env.Approve("bob", r)
	calls.Wait()
	if n := served.Load() - before; n != 2 {
		t.Errorf("served %d times, want once for each call", n)
	}
	calls.Go(func() {
		status, body := getLocal(t, alice, "/accounts/3")
		if code, next := problemCode(t, body); status != 403 || code != "request_denied" || !strings.Contains(next, "follow request") {
			t.Errorf("denied: %d %s", status, body)
		}
	})
	r = pending(t, env, "alice", "GET /accounts/3")
	if _, err := env.Client("bob").DecideRequest(t.Context(), r.ID, api.DecisionInput{Decision: "deny", Hash: r.Hash}); err != nil {
		t.Error(err)
	}
	calls.Wait()

	// Nobody decides in time; and another program that asks for the same finds the request.
	for range 2 {
		short, _ := connect("alice", "--hold", "100ms")
		status, body := getLocal(t, short, "/accounts/4")
		if code, next := problemCode(t, body); status != 504 || code != "approval_pending" || next == "" {
			t.Errorf("undecided: %d %s", status, body)
		}
	}
	pending(t, env, "alice", "GET /accounts/4")
}

// TestExec on a real cluster: a command finds its services in its environment, its status is
// ours, and what was asked for is returned when it ends.
func TestExec(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p := env.Proxy("payments", testenv.ProxyOptions{Upstream: env.HTTPUpstream(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "served")
	}))})
	b := runInBackground(t, env, "job/nightly", "exec", "--service", "payments="+p.Address(),
		"--allow", "GET /accounts/**", "--for", "5m", "--reason", "a test", "--",
		"sh", "-c", `echo "$HALLPASS_PAYMENTS_URL $HALLPASS_PAYMENTS_SOCKET $HALLPASS_PAYMENTS_ADDR"; read line; exit 7`)
	text, err := b.stdout.ReadString('\n')
	f := strings.Fields(text)
	if err != nil || len(f) != 3 || "http://"+f[2] != f[0] {
		t.Fatalf("the command saw %q, %v", text, err)
	}
	if status, body := getLocal(t, f[0], "/accounts/1"); status != 200 || body != "served" {
		t.Errorf("%d %s", status, body)
	}
	if info, err := os.Lstat(f[1]); err != nil || info.Mode().Type() != os.ModeSocket || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Dir(f[1])); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its folder: %v, %v", info, err)
	}
	grants := func() []api.Grant {
		t.Helper()
		list, err := env.Client("job/nightly").Grants(t.Context(), api.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		return list.Grants
	}
	if all := grants(); len(all) != 1 || all[0].State != api.GrantActive {
		t.Errorf("while it runs: %+v", all)
	}
	if _, err := io.WriteString(b.stdin, "\n"); err != nil {
		t.Fatal(err)
	}
	if status := <-b.status; status != 7 {
		t.Errorf("status %d, want the command's", status)
	}
	if all := grants(); len(all) != 1 || all[0].State != api.GrantReturned {
		t.Errorf("when it has ended: %+v", all)
	}
	if _, err := os.Lstat(filepath.Dir(f[1])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder stays: %v", err)
	}
	if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", f[2]); err == nil {
		_ = c.Close()
		t.Error("its port stays")
	}
}

// TestAgent on a real cluster: several services from one file, each call with a grant that
// allows it.
func TestAgent(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p := env.Proxy("payments", testenv.ProxyOptions{Upstream: env.HTTPUpstream(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Hallpass-Grant"))
	}))})
	first := env.Approve("bob", env.Request("alice", "payments", time.Minute, "GET /accounts/**")).ID
	second := env.Approve("bob", env.Request("alice", "payments", time.Minute, "GET /reports/**")).ID
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf("identity: %s\nservices:\n  - {name: payments, via: %q, listen: \"127.0.0.1:0\"}\n  - {name: payments-db, via: %q, protocol: tcp, listen: \"unix:%s/db.sock\"}\n",
		env.Folder("alice"), p.Address(), p.Address(), dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b := runInBackground(t, env, "alice", "agent", "--config", file)
	at, _, _ := strings.Cut(b.line("carrying "), " ")
	for path, want := range map[string]string{"/accounts/1": first, "/reports/1": second} {
		if status, body := getLocal(t, "http://"+at, path); status != 200 || body != want {
			t.Errorf("%s: %d %q, want grant %s", path, status, body, want)
		}
	}
	status, body := getLocal(t, "http://"+at, "/other")
	if code, _ := problemCode(t, body); status != 403 || code != "no_grant" {
		t.Errorf("nobody's: %d %s", status, body)
	}
	env.Revoke("bob", second)
	env.Eventually("the end of a revoked grant", func() bool {
		status, _ := getLocal(t, "http://"+at, "/reports/1")
		return status != 200
	})
	if status, _ := getLocal(t, "http://"+at, "/accounts/1"); status != 200 {
		t.Errorf("the other: %d", status)
	}
	b.stop()
	if status := <-b.status; status != exitOK {
		t.Errorf("status %d", status)
	}
}

// TestAgentMistakes are told with their lines, all at once.
func TestAgentMistakes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.yaml")
	text := `services:
  - name: Payments
    via: payments
    listen: 0.0.0.0:80
    protocol: udp
    standing: [nothing]
  - name: orders
    via: orders.acme.test:9443
    on_demand: {duration: 5m}
  - name: db
    via: db.acme.test:9443
    protocol: postgres
    on_demand: {reason: x}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := loadAgent(file)
	for _, want := range []string{
		"agent.yaml:2: services[0].name: ", "agent.yaml:3: services[0].via: ", "agent.yaml:4: services[0].listen: ",
		"agent.yaml:5: services[0].protocol: ", "agent.yaml:6: services[0].standing: ",
		"agent.yaml:9: services[1].on_demand: reason: is missing", "agent.yaml:13: services[2].on_demand: permission: is missing",
	} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

// The page's configuration of an agent is one that it takes, and names every setting.
func TestPageAgent(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "connect.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocksOf("connect.md", string(text)) {
		if b.language != "yaml" {
			continue
		}
		file := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(file, []byte(b.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if kind, err := kindOf(file); kind != "agent" {
			t.Errorf("%s is taken for %q, %v", b, kind, err)
		}
		if s, err := loadAgent(file); err != nil || len(s.Services) != 2 || !s.Services[1].OnDemand.set() {
			t.Errorf("%s: %+v, %v", b, s, err)
		}
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[agentSettings](), reflect.TypeFor[agentService](), reflect.TypeFor[askSettings]()} {
		for f := range typ.Fields() {
			if key := f.Tag.Get("yaml"); !strings.Contains(string(text), "`"+key+"`") && !strings.Contains(string(text), key+":") {
				t.Errorf("%s is not on the page", key)
			}
		}
	}
}

// TestRunForwarding: signals reach the command, and its end is told as shells tell it.
func TestRunForwarding(t *testing.T) {
	sh := func(script string) (*exec.Cmd, *bytes.Buffer) {
		c := exec.CommandContext(t.Context(), "sh", "-c", script)
		out := new(bytes.Buffer)
		c.Stderr = out
		return c, out
	}
	for script, want := range map[string]int{"exit 0": 0, "exit 3": 3, "kill -TERM $$": 128 + 15} {
		c, _ := sh(script)
		if got := exitStatus(runForwarding(c, false)); got != want {
			t.Errorf("%s: status %d, want %d", script, got, want)
		}
	}
	if got := exitStatus(runForwarding(exec.CommandContext(t.Context(), "no-such-command-there-is"), false)); got != 127 {
		t.Errorf("status %d of a command that there is not", got)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	c, _ := sh(`trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done`)
	c.Stdout = w
	ended := make(chan error, 1)
	go func() { ended <- runForwarding(c, false) }()
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if got := exitStatus(<-ended); got != 9 {
		t.Errorf("status %d, want that of the command's handler", got)
	}
	_ = w.Close() // the command has its own
}
