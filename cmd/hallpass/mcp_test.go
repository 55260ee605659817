package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/testenv"
)

// TestMCP on a real cluster: an agent finds a service, asks, waits while a person approves, uses
// what it was given and nothing else, and leaves nothing behind.
func TestMCP(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p, served := paymentsOf(t, env, nil)
	hers := env.Approve("bob", env.Request("alice", "payments", time.Hour, "POST /**")).ID // for other work
	s := startMCP(t, env, "alice", "--service", "payments="+p.Address())

	var listed mcpListOutput
	if err := s.try("list_services", mcpListInput{}, &listed); err != nil || len(listed.Services) != 1 || listed.Services[0].Name != "payments" ||
		listed.Identity != "spiffe://acme.test/user/alice" || len(listed.Services[0].Requests) != 0 {
		t.Errorf("%+v, %v", listed, err)
	}
	if err := s.try("list_services", mcpListInput{Query: "nothing"}, &listed); err != nil || len(listed.Services) != 0 {
		t.Errorf("%+v, %v", listed, err)
	}
	var rules mcpCheckOutput
	if err := s.try("check_access", mcpAccessInput{Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: "5m"}, &rules); err != nil ||
		!rules.Allowed || rules.Automatic || !slices.Equal(rules.Needs, []string{"owners (0 of 1)"}) || rules.MaxDuration != "1h" {
		t.Errorf("%+v, %v", rules, err)
	}
	if _, err := s.use("GET", "/accounts/1"); err == nil || !strings.Contains(err.Error(), "no live grant of this session allows GET /accounts/1") {
		t.Errorf("before it was granted: %v", err)
	}

	r := s.ask("GET /accounts/**")
	if r.State != api.RequestPending || r.Next == "" || !slices.Equal(r.Needs, []string{"owners (0 of 1)"}) {
		t.Errorf("%+v", r)
	}
	if again := s.ask("GET /accounts/**"); again.ID != r.ID {
		t.Error("asking twice makes people decide twice")
	}
	if seen, err := env.Client("bob").Request(t.Context(), r.ID); err != nil || !strings.HasSuffix(seen.Reason, "by an AI agent, over MCP)") {
		t.Errorf("an approver reads %q, %v", seen.Reason, err)
	}
	_, err := s.use("GET", "/accounts/1")
	wantError(t, "a call while it is undecided", err, "no_grant")
	r = s.wait(r.ID, func() { decide(t, env, r.ID, api.DecisionInput{Decision: "approve"}) })
	if r.State != api.GrantActive || r.Until == "" {
		t.Fatalf("%+v", r)
	}
	if a, err := s.use("GET", "/accounts/1?x=1"); err != nil || a.Status != 200 || a.Body != "GET /accounts/1?x=1 under "+r.ID || a.Notice != mcpNotice {
		t.Errorf("%+v, %v", a, err)
	}
	before := served.Load()
	_, err = s.use("GET", "/reports")
	wantError(t, "a call outside of the scope", err, "no live grant of this session allows GET /reports")
	_, err = s.use("POST", "/accounts/1")
	wantError(t, "a call with alice's other grant", err, "no live grant of this session")
	if n := served.Load() - before; n != 0 {
		t.Errorf("%d of them were served", n)
	}
	takenOver(t, env, p, r.ID)

	// What is not the session's is not to be seen, and not to be ended.
	for _, tool := range []string{"get_request", "return_access"} {
		wantError(t, tool+" of another's", s.try(tool, mcpReturnInput{ID: hers}, &r), "no request of this session")
	}
	left := s.ask("GET /left/**")
	if status := s.end(); status != exitOK {
		t.Errorf("status %d", status)
	}
	states := map[string]string{}
	list, err := env.Client("alice").Requests(t.Context(), api.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list.Requests {
		states[one.ID] = one.State
		if one.Grant != nil {
			states[one.ID] = one.Grant.State
		}
	}
	if states[hers] != api.GrantActive || states[r.ID] != api.GrantReturned || states[left.ID] != api.RequestCancelled {
		t.Errorf("afterwards: %v", states)
	}
	noSecrets(t, env, s.said.String())
}

// takenOver: whoever takes the process over and skips its checks gets no further than the
// certificate says. The proxy refuses what is outside of the scope.
func takenOver(t *testing.T, env *testenv.Env, p *testenv.Proxy, id string) {
	t.Helper()
	client := env.HTTPClient(env.Mint("alice", id))
	for path, want := range map[string]int{"/accounts/1": 200, "/reports": 403} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL(path), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s with the agent's certificate: %d, want %d", path, res.StatusCode, want)
		}
	}
}

// noSecrets: nothing that was said to an agent opens anything.
func noSecrets(t *testing.T, env *testenv.Env, said string) {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(env.Folder("alice"), ca.FolderKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"PRIVATE KEY", "BEGIN CERTIFICATE", strings.Split(string(key), "\n")[1], env.Folder("alice")} {
		if strings.Contains(said, secret) {
			t.Errorf("an agent was told %.30q", secret)
		}
	}
	if len(said) < 1000 {
		t.Errorf("only %d bytes were said", len(said))
	}
}

// TestMCPNoDecisions: the tools are these, and an agent that serves an approver, talked into
// approving by what it has read, has no tool that does.
func TestMCPNoDecisions(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p, _ := paymentsOf(t, env, nil)
	waiting := env.Request("alice", "payments", time.Minute, "GET /a")
	s := startMCP(t, env, "bob", "--service", "payments="+p.Address())
	tools, err := s.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range tools.Tools {
		names = append(names, tool.Name)
		text, err := json.Marshal(tool)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{`"decision`, `"approve`, `"deny`, `"hash"`, `"subject"`, `"policy`} { // as an argument
			if strings.Contains(string(text), word) {
				t.Errorf("%s has %s", tool.Name, word)
			}
		}
	}
	slices.Sort(names)
	if want := []string{"call_service", "check_access", "get_request", "list_services", "request_access", "return_access"}; !slices.Equal(names, want) {
		t.Errorf("tools %v, want %v", names, want)
	}
	var out map[string]any
	for _, tool := range []string{"approve", "approve_request", "review", "decide", "deny", "change_policy"} {
		wantError(t, tool, s.try(tool, map[string]any{"id": waiting.ID, "hash": waiting.Hash, "decision": "approve"}, &out))
	}
	wantError(t, "a request for somebody else", s.try("request_access", map[string]any{
		"service": "payments", "permissions": []string{"GET /a"}, "duration": "1m", "reason": "r", "subject": "spiffe://acme.test/user/alice",
	}, &out), "subject")
	wantError(t, "return_access of another's request", s.try("return_access", mcpReturnInput{ID: waiting.ID}, &out), "no request of this session")
	if r, err := env.Client("alice").Request(t.Context(), waiting.ID); err != nil || r.State != api.RequestPending {
		t.Errorf("alice's request is %s, %v", r.State, err)
	}
	if status := s.end(); status != exitOK {
		t.Errorf("status %d", status)
	}
}

// TestMCPDecisions: a no is told with its reason and stands; an agent that asks for more than
// was approved uses what was approved; what ends, ends.
func TestMCPDecisions(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p, served := paymentsOf(t, env, nil)
	s := startMCP(t, env, "alice", "--service", "payments="+p.Address())

	r := s.ask("DELETE /**")
	r = s.wait(r.ID, func() { decide(t, env, r.ID, api.DecisionInput{Decision: "deny", Comment: "why delete?"}) })
	if r.State != api.RequestDenied || !slices.Equal(r.Comments, []string{"deny: why delete?"}) || r.Next == "" {
		t.Errorf("denied: %+v", r)
	}
	_, err := s.tryAsk("5m", "DELETE /**")
	wantError(t, "asking again after a no", err, "denied a moment ago")
	_, err = s.use("DELETE", "/accounts/1")
	wantError(t, "a call that was denied", err, "no_grant")

	r = s.ask("* /**")
	r = s.wait(r.ID, func() {
		decide(t, env, r.ID, api.DecisionInput{Decision: "approve", Permissions: []string{"GET /accounts/*"}, Duration: api.Duration(2 * time.Minute)})
	})
	if r.State != api.GrantActive || !slices.Equal(r.Permissions, []string{"GET /accounts/*"}) {
		t.Errorf("narrowed: %+v", r)
	}
	if a, err := s.use("GET", "/accounts/1"); err != nil || a.Status != 200 {
		t.Errorf("within it: %+v, %v", a, err)
	}
	before := served.Load()
	_, err = s.use("POST", "/accounts/1")
	wantError(t, "what was asked for and not given", err, "no_grant")

	var back mcpRequest
	if err := s.try("return_access", mcpReturnInput{ID: r.ID}, &back); err != nil || back.State != api.GrantReturned {
		t.Errorf("returned: %+v, %v", back, err)
	}
	_, err = s.use("GET", "/accounts/1")
	wantError(t, "a call with what was returned", err, "no_grant")
	if n := served.Load() - before; n != 0 {
		t.Errorf("%d calls were served that must not be", n)
	}

	r = s.ask("GET /reports")
	r = s.wait(r.ID, func() { decide(t, env, r.ID, api.DecisionInput{Decision: "approve"}) })
	if a, err := s.use("GET", "/reports"); err != nil || a.Status != 200 {
		t.Errorf("%+v, %v", a, err)
	}
	env.Revoke("bob", r.ID)
	env.Eventually("a revoked grant is of no use", func() bool {
		a, err := s.use("GET", "/reports")
		return err != nil || a.Status != 200
	})
	if err := s.try("get_request", mcpGetInput{ID: r.ID}, &r); err != nil || r.State != api.GrantRevoked {
		t.Errorf("%+v, %v", r, err)
	}
	_, err = s.use("GET", "/reports")
	wantError(t, "a call with a revoked grant", err, "no_grant")
	if status := s.end(); status != exitOK {
		t.Errorf("status %d", status)
	}
}

// TestMCPExpiry: a grant that has ended opens nothing, and is over for the agent as well.
func TestMCPExpiry(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p, served := paymentsOf(t, env, nil)
	s := startMCP(t, env, "job/nightly", "--service", "payments="+p.Address()) // whom the rules grant at once
	r, err := s.tryAsk("3s", "GET /accounts/**")
	if err != nil || r.State != api.GrantActive {
		t.Fatalf("%+v, %v", r, err)
	}
	env.Eventually("the grant has expired", func() bool {
		_, _ = s.use("GET", "/accounts/1") // while it lives, so that there is a certificate and a connection
		err := s.try("get_request", mcpGetInput{ID: r.ID}, &r)
		return err == nil && r.State == api.GrantExpired
	})
	before := served.Load()
	_, err = s.use("GET", "/accounts/1")
	wantError(t, "a call with an expired grant", err, "no_grant")
	if served.Load() != before {
		t.Error("it was served")
	}
	if again, err := s.tryAsk("5m", "GET /accounts/**"); err != nil || again.ID == r.ID || again.State != api.GrantActive {
		t.Errorf("asking anew: %+v, %v", again, err)
	}
	if status := s.end(); status != exitOK {
		t.Errorf("status %d", status)
	}
}

// TestPageMCP: the page's configuration of a client is one that works, and the page has every
// flag, every tool and the test of each attack.
func TestPageMCP(t *testing.T) {
	t.Parallel()
	page := pages(t)["../../docs/mcp.md"]
	_, blocks := fence(page, "json")
	if len(blocks) != 1 {
		t.Fatalf("%d configurations", len(blocks))
	}
	var config struct {
		MCPServers map[string]struct {
			Command string
			Args    []string
			Env     map[string]string
		}
	}
	if err := json.Unmarshal([]byte(blocks[0]), &config); err != nil {
		t.Fatal(err)
	}
	c := config.MCPServers["hallpass"]
	if c.Command != "hallpass" || c.Args[0] != "mcp" || c.Env["HALLPASS_SERVER"] == "" || c.Env["HALLPASS_IDENTITY"] == "" || len(c.Env) != 2 {
		t.Fatalf("%+v", c)
	}
	env := testenv.Start(t, testenv.Options{})
	p, _ := paymentsOf(t, env, nil)
	args := strings.Split(strings.ReplaceAll(strings.Join(c.Args[1:], "\n"), "payments.acme.test:9443", p.Address()), "\n")
	s := startMCP(t, env, "agent/alice-coder", args...)
	var listed mcpListOutput
	if err := s.try("list_services", mcpListInput{}, &listed); err != nil || len(listed.Services) != 1 ||
		!slices.Equal(listed.Services[0].MayAskFor, []string{"GET /accounts/**"}) || listed.Services[0].AtMostFor != "30m" {
		t.Errorf("%+v, %v", listed, err)
	}
	tools, err := s.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range tools.Tools {
		if !strings.Contains(page, "| `"+tool.Name+"` |") {
			t.Errorf("%s is not on the page", tool.Name)
		}
	}
	for _, flag := range []string{"service", "at-most", "max-for", "call-timeout"} {
		if !strings.Contains(page, "| `--"+flag+"` |") {
			t.Errorf("--%s is not on the page", flag)
		}
	}
	if status := s.end(); status != exitOK {
		t.Errorf("status %d", status)
	}
}
