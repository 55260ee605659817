package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/testenv"
)

// endable is a cluster whose requests can be withdrawn.
type endable struct {
	mcpAPI

	create func(ctx context.Context) (api.Request, error)
	cancel func(ctx context.Context) error
	mu     sync.Mutex // owns what follows
	ended  []string
	now    int // that are being ended
	most   int // of now
}

func (e *endable) CreateRequest(ctx context.Context, _ api.RequestInput, _ ...api.CallOption) (api.Request, error) {
	return e.create(ctx)
}

func (e *endable) CancelRequest(ctx context.Context, id string, _ ...api.CallOption) (api.Request, error) {
	e.mu.Lock()
	e.now++
	e.most = max(e.most, e.now)
	e.mu.Unlock()
	var err error
	if e.cancel != nil {
		err = e.cancel(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now--
	if err == nil {
		e.ended = append(e.ended, id)
	}
	return api.Request{}, err
}

func (e *endable) PollRequest(_ context.Context, id string, _ uint64, _ time.Duration) (api.Request, uint64, error) {
	return api.Request{ID: id, State: api.RequestCancelled}, 1, nil
}

// sessionOf is a session that has n requests.
func sessionOf(t *testing.T, cluster mcpAPI, n int) *mcpServer {
	t.Helper()
	s := &mcpService{name: "payments", wallet: new(wallet)}
	m := &mcpServer{
		api: cluster, log: slog.New(slog.DiscardHandler), now: time.Now, longest: time.Hour, services: []*mcpService{s}, slots: make(chan struct{}, mcpCallsAtATime),
		asked: map[string]*mcpAsked{}, asking: map[grant.Scope]bool{}, denied: map[grant.Scope]time.Time{},
	}
	for i := range n {
		id := fmt.Sprint("r", i)
		m.asked[id] = &mcpAsked{id: id, service: s, last: request(func(r *api.Request) { r.ID = id })}
	}
	return m
}

// stuckWriter is a pipe that is full, of a client that has stopped reading.
type stuckWriter struct {
	stuck   chan struct{} // closed when the first write blocks
	release chan struct{}
	once    sync.Once
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.stuck) })
	<-w.release
	return len(p), nil
}

// TestMCPUnread: a client that has stopped reading and goes away keeps nothing.
func TestMCPUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := new(endable)
		m := sessionOf(t, cluster, 1)
		out := &stuckWriter{stuck: make(chan struct{}), release: make(chan struct{})}
		stdin, client := io.Pipe()
		type end struct{ lost, err error }
		ended := make(chan end, 1)
		go func() {
			lost, err := m.serve(t.Context(), stdin, out)
			ended <- end{lost, err}
		}()
		if _, err := io.WriteString(client, handshake); err != nil {
			t.Fatal(err)
		}
		<-out.stuck
		_ = client.Close()
		select {
		case e := <-ended:
			if e.lost != nil || e.err != nil {
				t.Error(e)
			}
		case <-time.After(time.Hour):
			t.Error("it waits for somebody to read")
		}
		if len(cluster.ended) != 1 {
			t.Errorf("given back: %q", cluster.ended)
		}
		close(out.release)
	})
}

const handshake = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
`

// TestMCPGivesBackAtOnce: a slow cluster does not have the last of many grants live on, and is
// not asked for everything at a time.
func TestMCPGivesBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := &endable{cancel: func(ctx context.Context) error {
			select {
			case <-time.After(4 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		m := sessionOf(t, cluster, 50)
		if err := m.giveBack(t.Context()); err != nil {
			t.Error(err)
		}
		if len(cluster.ended) != 50 || cluster.most != mcpEndAtATime {
			t.Errorf("%d were given back, %d at a time", len(cluster.ended), cluster.most)
		}

		cluster.cancel = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		m = sessionOf(t, cluster, 50)
		began := time.Now()
		err := m.giveBack(t.Context())
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || strings.Count(err.Error(), "could not be ended") != 50 || took != mcpEndLimit {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

// TestMCPLateRequest: a request that comes to be while the session ends is ended by who makes
// it, and the end waits for that; no other is made.
func TestMCPLateRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asking, goOn := make(chan struct{}), make(chan struct{})
		cluster := &endable{create: func(context.Context) (api.Request, error) {
			close(asking)
			<-goOn
			return request(nil), nil
		}}
		m := sessionOf(t, cluster, 0)
		in := mcpRequestInput{mcpAccessInput{Service: "payments", Permissions: request(nil).Permissions, Duration: "5m"}, "r"}
		answers := make(chan mcpRequest, 1)
		go func() {
			r, err := m.request(t.Context(), nil, in)
			if err != nil {
				t.Error(err)
			}
			answers <- r
		}()
		<-asking
		back := make(chan error, 1)
		go func() { back <- m.giveBack(t.Context()) }()
		synctest.Wait() // giveBack has begun, and found nothing to end
		close(goOn)
		if err := <-back; err != nil {
			t.Error(err)
		}
		if len(cluster.ended) != 1 || cluster.ended[0] != request(nil).ID {
			t.Errorf("given back: %q", cluster.ended)
		}
		if r := <-answers; r.State != api.RequestCancelled {
			t.Errorf("the agent is told %+v", r)
		}
		_, err := m.request(t.Context(), nil, in)
		wantError(t, "a request after the end", err, "the session has ended")
	})
}

// TestMCPStaysOver: a poll that was answered before a grant was returned, and is read after,
// does not have the grant used again.
func TestMCPStaysOver(t *testing.T) {
	m := sessionOf(t, new(endable), 1)
	r := m.asked["r0"]
	granted := request(func(q *api.Request) {
		q.ID, q.State, q.Grant = "r0", api.RequestApproved, &api.Grant{ID: "r0", State: api.GrantActive, ExpiresAt: time.Now().Add(time.Hour)}
	})
	if m.saw(r, granted); !m.mine("r0") || r.service.wallet.expected != 1 {
		t.Errorf("what was granted is not used: %+v", r.last)
	}
	over := granted
	over.Grant = &api.Grant{ID: "r0", State: api.GrantReturned}
	m.saw(r, over)
	expected := r.service.wallet.expected
	if told := m.saw(r, granted); told.Grant.State != api.GrantReturned || m.mine("r0") || r.service.wallet.expected != expected {
		t.Errorf("a slower poll brings it back: the agent is told %+v", told.Grant)
	}
}

// crashing is a client of the process itself, on pipes that it can let go of.
type crashing struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr *os.File
	answers        *json.Decoder
	granted, asked string
}

// crash starts `hallpass mcp` as a process, with a grant and with a request that is undecided.
func crash(t *testing.T, env *testenv.Env, via string) *crashing {
	t.Helper()
	in, stdin := pipe(t)
	stdout, out := pipe(t)
	stderr, errs := pipe(t)
	c := &crashing{t: t, stdin: stdin, stdout: stdout, stderr: stderr, answers: json.NewDecoder(stdout)}
	c.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), "hallpass", "mcp", "--service", "payments="+via)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = in, out, errs
	c.cmd.Env = append(os.Environ(), "HALLPASS_SERVER="+strings.Join(env.Servers(), ","), "HALLPASS_IDENTITY="+env.Folder("alice"))
	hangup := make(chan os.Signal, 1) // so that the process does not inherit that it is ignored, as under nohup
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it has ended, unless the test failed
		_ = c.cmd.Wait()
	})
	_, _, _ = in.Close(), out.Close(), errs.Close()
	c.say(handshake)
	c.hear(nil)
	c.granted, c.asked = c.ask("GET /accounts/**"), c.ask("DELETE /**")
	decide(t, env, c.granted, api.DecisionInput{Decision: "approve"})
	return c
}

func (c *crashing) say(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.stdin, text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *crashing) hear(out *mcpRequest) {
	c.t.Helper()
	var answer struct {
		Result struct{ StructuredContent json.RawMessage }
	}
	if err := c.answers.Decode(&answer); err != nil {
		c.t.Fatal(err)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal(answer.Result.StructuredContent, out); err != nil {
		c.t.Fatal(err)
	}
}

func (c *crashing) ask(permission string) string {
	c.t.Helper()
	in, err := json.Marshal(mcpRequestInput{mcpAccessInput{Service: "payments", Permissions: []string{permission}, Duration: "5m"}, "ticket 4711"})
	if err != nil {
		c.t.Fatal(err)
	}
	c.say(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"request_access","arguments":` + string(in) + "}}\n")
	var r mcpRequest
	if c.hear(&r); r.State != api.RequestPending {
		c.t.Fatalf("%+v", r)
	}
	return r.ID
}

// over demands that nothing is left of the session once the process has ended.
func (c *crashing) over(env *testenv.Env) {
	c.t.Helper()
	_ = c.cmd.Wait() // its status is nobody's any more
	if status := c.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		c.t.Errorf("killed: %s", status.Signal())
	}
	client := env.Client("alice")
	if g, err := client.Grant(c.t.Context(), c.granted); err != nil || g.State != api.GrantReturned {
		c.t.Errorf("the grant is %s, %v", g.State, err)
	}
	if r, err := client.Request(c.t.Context(), c.asked); err != nil || r.State != api.RequestCancelled {
		c.t.Errorf("the request is %s, %v", r.State, err)
	}
}

// TestMCPCrash: a client that is gone from one moment to the next, or whose terminal is, takes
// what it was granted with it.
func TestMCPCrash(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p, _ := paymentsOf(t, env, nil)
	for name, act := range map[string]func(c *crashing){
		"crashed": func(c *crashing) {
			_, _ = c.stdout.Close(), c.stderr.Close()
			// One call whose answer, and whose line in the log, have nowhere to go.
			c.say(`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"get_request","arguments":{"id":"` + c.asked + `","wait_seconds":-1}}}` + "\n")
			_ = c.stdin.Close()
		},
		"stdout alone": func(c *crashing) { // that stdin stays open must not keep it
			_ = c.stdout.Close()
			c.say(`{"jsonrpc":"2.0","id":3,"method":"tools/list"}` + "\n")
		},
		"hung up": func(c *crashing) {
			if err := c.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				c.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := crash(t, env, p.Address())
			act(c)
			c.over(env)
		})
	}
}
