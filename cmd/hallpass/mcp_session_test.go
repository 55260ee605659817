package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

// transcript is all that has been said to an agent.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// agentSession is an agent's client of `hallpass mcp`.
type agentSession struct {
	*mcp.ClientSession
	t        *testing.T
	process  *background
	said     *transcript
	waits    sync.Map               // tokens of the calls that the agent was told wait
	calls    atomic.Int64           // for tokens
	progress atomic.Pointer[func()] // what happens when it is told next
}

// startMCP runs `hallpass mcp` as who and connects the SDK's client to it.
func startMCP(t *testing.T, env *testenv.Env, who string, args ...string) *agentSession {
	t.Helper()
	s := &agentSession{t: t, process: runInBackground(t, env, who, append([]string{"mcp"}, args...)...), said: new(transcript)}
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
			s.waits.Store(fmt.Sprint(r.Params.ProgressToken), true)
			if act := s.progress.Swap(nil); act != nil {
				(*act)()
			}
		},
	})
	var err error
	s.ClientSession, err = client.Connect(t.Context(), &mcp.IOTransport{
		Reader: io.NopCloser(io.TeeReader(s.process.stdout, s.said)), Writer: s.process.stdin,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// end closes the session as clients do, by closing stdin, and returns the process's status.
func (s *agentSession) end() int {
	s.t.Helper()
	_ = s.process.stdin.Close() // at once; the SDK's client would wait for its calls first
	status := <-s.process.status
	_ = s.Close() // there is nobody at the other end
	return status
}

// try calls a tool. Its error is what the agent is told.
func (s *agentSession) try(tool string, in, out any) error {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	params := &mcp.CallToolParams{Name: tool, Arguments: in}
	params.SetProgressToken(fmt.Sprint("call ", s.calls.Add(1)))
	res, err := s.CallTool(ctx, params)
	if err != nil {
		return err
	}
	text, ok := res.Content[0].(*mcp.TextContent)
	if !ok || len(res.Content) != 1 {
		s.t.Fatalf("%s: %+v", tool, res.Content)
	}
	if res.IsError {
		return fmt.Errorf("%s", text.Text)
	}
	return json.Unmarshal([]byte(text.Text), out)
}

func (s *agentSession) ask(permissions ...string) mcpRequest {
	s.t.Helper()
	r, err := s.tryAsk("5m", permissions...)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *agentSession) tryAsk(d string, permissions ...string) (mcpRequest, error) {
	s.t.Helper()
	var r mcpRequest
	err := s.try("request_access", mcpRequestInput{mcpAccessInput{Service: "payments", Permissions: permissions, Duration: d}, "ticket 4711"}, &r)
	return r, err
}

// wait waits for a decision, which act makes once the agent is told that it waits.
func (s *agentSession) wait(id string, act func()) mcpRequest {
	s.t.Helper()
	s.progress.Store(&act)
	var r mcpRequest
	if err := s.try("get_request", mcpGetInput{ID: id, Wait: 60}, &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *agentSession) use(method, path string) (mcpAnswer, error) {
	s.t.Helper()
	var out mcpAnswer
	err := s.try("call_service", mcpCallInput{Service: "payments", Method: method, Path: path}, &out)
	return out, err
}

// wantError demands that an agent was told no, in words that hold these.
func wantError(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s passes", what)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", what, err, w)
		}
	}
}

// decide has bob decide on a request as it is now.
func decide(t *testing.T, env *testenv.Env, id string, in api.DecisionInput) {
	t.Helper()
	bob := env.Client("bob")
	r, err := bob.Request(t.Context(), id)
	if err != nil {
		t.Error(err)
		return
	}
	in.Hash = r.Hash
	if _, err := bob.DecideRequest(t.Context(), id, in); err != nil {
		t.Error(err)
	}
}

// payments is a proxy whose upstream says what it was asked, and how often.
func paymentsOf(t *testing.T, env *testenv.Env, next http.HandlerFunc) (p *testenv.Proxy, served *atomic.Int64) {
	t.Helper()
	served = new(atomic.Int64)
	p = env.Proxy("payments", testenv.ProxyOptions{Upstream: env.HTTPUpstream(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if next != nil {
			next(w, r)
			return
		}
		_, _ = io.WriteString(w, r.Method+" "+r.RequestURI+" under "+r.Header.Get("X-Hallpass-Grant"))
	}))})
	return p, served
}
