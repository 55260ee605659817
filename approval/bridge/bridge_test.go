package bridge

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

const (
	secret = "8f742231b10e8888abcd99yyyzzz85a5"
	asked  = "019ca8a0-3e80-7000-8000-000000000001"
)

func hash() string { return strings.Repeat("ab", 32) }

// cluster is a stand-in for the API.
type cluster struct {
	mu    sync.Mutex
	calls []api.DecisionInput
	err   error
	hold  chan struct{}
	panic bool
}

func (c *cluster) DecideRequest(_ context.Context, id string, in api.DecisionInput, opts ...api.CallOption) (api.Request, error) {
	if c.hold != nil {
		<-c.hold
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.panic {
		panic("a mistake of ours")
	}
	if id != asked || len(opts) != 1 {
		return api.Request{}, errors.New("another request, or no key")
	}
	c.calls = append(c.calls, in)
	return api.Request{ID: id, State: "approved", Decisions: []api.Decision{{Decision: in.Decision, Person: "bob", Slack: in.Slack}}}, c.err
}

// hooks is a stand-in for where Slack takes answers.
type hooks struct {
	server *httptest.Server
	mu     sync.Mutex
	got    []outcome
}

func newHooks(t *testing.T) *hooks {
	t.Helper()
	h := &hooks{}
	h.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/actions/T024BE7LH/elsewhere" {
			http.Redirect(w, r, "/actions/T024BE7LH/1", http.StatusTemporaryRedirect)
			return
		}
		var o outcome
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			t.Error(err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.got = append(h.got, o)
	}))
	t.Cleanup(h.server.Close)
	return h
}

type stage struct {
	*Bridge

	cluster *cluster
	hooks   *hooks
	at      time.Time
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{cluster: &cluster{}, hooks: newHooks(t), at: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)}
	var err error
	s.Bridge, err = New(Config{
		Secret: []byte(secret), Team: "T024BE7LH", API: s.cluster, Hooks: s.hooks.server.URL, Client: s.hooks.server.Client().Transport,
		Now: func() time.Time { return s.at },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pressed is what Slack sends of a button; change makes it something else.
func (s *stage) pressed(change func(map[string]any)) string {
	in := map[string]any{
		"type": "block_actions", "team": map[string]any{"id": "T024BE7LH"}, "user": map[string]any{"id": "U0BOB", "team_id": "T024BE7LH"},
		"actions":      []any{map[string]any{"type": "button", "block_id": "hallpass", "action_id": "hallpass_approve", "value": asked + " " + hash()}},
		"response_url": s.hooks.server.URL + "/actions/T024BE7LH/1",
		"message": map[string]any{"blocks": []any{
			map[string]any{"type": "header", "text": map[string]any{"type": "plain_text", "text": "alice asks"}}, map[string]any{"type": "actions"},
		}},
	}
	if change != nil {
		change(in)
	}
	text, err := json.Marshal(in)
	if err != nil {
		panic(err)
	}
	return url.Values{"payload": {string(text)}}.Encode()
}

func signed(body, key string, at time.Time) *http.Request {
	r := httptest.NewRequest(http.MethodPost, Path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	mac := hmac.New(sha256.New, []byte(key))
	_, _ = fmt.Fprintf(mac, "v0:%d:%s", at.Unix(), body)
	r.Header.Set(headerTime, fmt.Sprint(at.Unix()))
	r.Header.Set(headerSignature, "v0="+hex.EncodeToString(mac.Sum(nil)))
	return r
}

// call answers one call, and is over when all that came of it is.
func (s *stage) call(r *http.Request) int {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	s.settled()
	return w.Code
}

func (s *stage) settled() {
	s.drain()
	for range atOnce {
		<-s.places
	}
}

func action(name, value any) func(map[string]any) {
	return func(in map[string]any) {
		a := in["actions"].([]any)[0].(map[string]any)
		a["action_id"], a["value"] = name, value
	}
}

// TestBridge: a button becomes one decision of that account on what was shown, and the
// message says who decided, without buttons.
func TestBridge(t *testing.T) {
	s := newStage(t)
	if got := s.call(signed(s.pressed(nil), secret, s.at)); got != http.StatusOK {
		t.Fatal(got)
	}
	if got := s.call(signed(s.pressed(action("hallpass_deny", asked+" "+hash())), secret, s.at)); got != http.StatusOK {
		t.Fatal(got)
	}
	want := api.DecisionInput{Decision: "approve", Hash: hash(), Slack: "T024BE7LH/U0BOB"}
	if c := s.cluster.calls; len(c) != 2 || fmt.Sprint(c[0]) != fmt.Sprint(want) || c[1].Decision != "deny" {
		t.Errorf("%+v", c)
	}
	if o := s.hooks.got; len(o) != 2 || !o[0].Replace || len(o[0].Blocks) != 2 || o[0].Text != "bob approved it in Slack." || o[1].Text != "bob denied it in Slack." ||
		strings.Contains(fmt.Sprintf("%s", o[0].Blocks), "actions") {
		t.Errorf("%+v", o)
	}
	s.cluster.err = api.NewProblem(api.CodeDenied, "<!channel> is\nwhom it is for", "ask someone")
	s.call(signed(s.pressed(nil), secret, s.at.Add(time.Second)))
	if o := s.hooks.got[2]; o.Replace || o.Type != "ephemeral" || strings.Contains(o.Text, "<!") || !strings.Contains(string(o.Blocks[0]), "plain_text") {
		t.Errorf("%+v", o)
	}
	s.cluster.err = api.NewProblem(api.CodeAmbiguous, "internal words", "")
	s.call(signed(s.pressed(nil), secret, s.at.Add(2*time.Second)))
	if o := s.hooks.got[3]; !strings.Contains(o.Text, "not known") || strings.Contains(o.Text, "internal words") {
		t.Errorf("%+v", o)
	}
}

// TestBridgeAttacks: none of these reaches the cluster.
func TestBridgeAttacks(t *testing.T) {
	s := newStage(t)
	body := s.pressed(nil)
	with := func(change func(*http.Request)) *http.Request {
		r := signed(body, secret, s.at)
		change(r)
		return r
	}
	for what, c := range map[string]struct {
		r    *http.Request
		want int
	}{
		"another's signature":   {signed(body, strings.Repeat("x", 32), s.at), 401},
		"an empty key's":        {signed(body, "", s.at), 401},
		"of another body":       {with(func(r *http.Request) { r.Body = signed(body+"&x=y", secret, s.at).Body }), 401},
		"of another time":       {with(func(r *http.Request) { r.Header.Set(headerTime, fmt.Sprint(s.at.Unix()+1)) }), 401},
		"no signature":          {with(func(r *http.Request) { r.Header.Del(headerSignature) }), 401},
		"two signatures":        {with(func(r *http.Request) { r.Header.Add(headerSignature, r.Header.Get(headerSignature)) }), 401},
		"no time":               {with(func(r *http.Request) { r.Header.Del(headerTime) }), 401},
		"a version to come":     {with(func(r *http.Request) { r.Header.Set(headerSignature, "v1"+r.Header.Get(headerSignature)[2:]) }), 401},
		"half a signature":      {with(func(r *http.Request) { r.Header.Set(headerSignature, r.Header.Get(headerSignature)[:35]) }), 401},
		"an old one":            {signed(body, secret, s.at.Add(-5*time.Minute-time.Second)), 401},
		"one to come":           {signed(body, secret, s.at.Add(5*time.Minute+time.Second)), 401},
		"GET":                   {with(func(r *http.Request) { r.Method = http.MethodGet }), 405},
		"another path":          {with(func(r *http.Request) { r.URL.Path = "/" }), 404},
		"JSON":                  {with(func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }), 415},
		"without an end":        {signed(strings.Repeat("x", maxBody+1), secret, s.at), 413},
		"another workspace":     {signed(s.pressed(func(in map[string]any) { in["team"] = map[string]any{"id": "T0EVIL"} }), secret, s.at), 403},
		"a guest of another":    {signed(s.pressed(func(in map[string]any) { in["user"] = map[string]any{"id": "U0BOB", "team_id": "T0EVIL"} }), secret, s.at), 403},
		"another app's button":  {signed(s.pressed(action("approve", asked+" "+hash())), secret, s.at), 200},
		"a third verdict":       {signed(s.pressed(action("hallpass_revoke", asked+" "+hash())), secret, s.at), 200},
		"no hash":               {signed(s.pressed(action("hallpass_approve", asked)), secret, s.at), 200},
		"another path in an id": {signed(s.pressed(action("hallpass_approve", "../changes/1 "+hash())), secret, s.at), 200},
		"a form of a modal":     {signed(s.pressed(func(in map[string]any) { in["type"] = "view_submission" }), secret, s.at), 200},
		"two buttons": {signed(s.pressed(func(in map[string]any) {
			in["actions"] = append(in["actions"].([]any), in["actions"].([]any)[0])
		}), secret, s.at), 200},
		"two payloads": {signed(body+"&"+body, secret, s.at), 200},
		"no payload":   {signed("ssl_check=1", secret, s.at), 200},
	} {
		if got := s.call(c.r); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
	if len(s.cluster.calls)+len(s.hooks.got) > 0 {
		t.Errorf("%+v, %+v", s.cluster.calls, s.hooks.got)
	}
}

// TestBridgeReplay: a call that was recorded does nothing again, within the window or
// after it, however its signature is spelled.
func TestBridgeReplay(t *testing.T) {
	s := newStage(t)
	body, began := s.pressed(nil), s.at
	for _, later := range []time.Duration{0, 0, time.Minute, 5 * time.Minute} {
		s.at = began.Add(later)
		r := signed(body, secret, began)
		if later == time.Minute {
			r.Header.Set(headerSignature, "v0="+strings.ToUpper(r.Header.Get(headerSignature)[3:]))
		}
		if got := s.call(r); got != http.StatusOK {
			t.Errorf("%s later: %d", later, got)
		}
	}
	s.at = began.Add(11 * time.Minute)
	if got := s.call(signed(body, secret, began)); got != http.StatusUnauthorized {
		t.Error(got)
	}
	if len(s.cluster.calls) != 1 {
		t.Errorf("%d decisions", len(s.cluster.calls))
	}
	for i := range maxSeen {
		s.memory.first(sha256.Sum256(fmt.Append(nil, i)), s.at)
	}
	if got := s.call(signed(body, secret, s.at)); got != http.StatusServiceUnavailable {
		t.Errorf("with no room to remember: %d", got)
	}
	s.at = s.at.Add(2*window + 2*time.Second)
	if got := s.call(signed(body, secret, s.at)); got != http.StatusOK || len(s.cluster.calls) != 2 || len(s.memory.seen) != 1 {
		t.Errorf("%d, %d decisions, %d remembered", got, len(s.cluster.calls), len(s.memory.seen))
	}
}

// TestBridgeAnswersSlackAlone: a response_url to another host is not called, whatever it
// looks like, nor a redirect followed; the decision stands.
func TestBridgeAnswersSlackAlone(t *testing.T) {
	s := newStage(t)
	host := strings.TrimPrefix(s.hooks.server.URL, "https://")
	for i, to := range []string{
		"http://" + host + "/actions/T024BE7LH/1", "https://169.254.169.254/latest", "https://" + host + ".evil.test/", "https://" + host + "@evil.test/", "https://evil@" + host + "/",
		"https://evil.test/" + host, "//" + host + "/", "file:///etc/passwd", "", "https://" + host + "/actions/T024BE7LH/elsewhere", "https://" + host + "/services/T0EVIL/1", "https://" + host + "/actions/T0EVIL/1",
	} {
		s.call(signed(s.pressed(func(in map[string]any) { in["response_url"] = to }), secret, s.at.Add(time.Duration(i)*time.Second)))
	}
	if len(s.hooks.got) != 0 || len(s.cluster.calls) != 12 {
		t.Errorf("%d answers, %d decisions", len(s.hooks.got), len(s.cluster.calls))
	}
}

// TestBridgeAtOnce: Slack is answered before the cluster is, and no more than so many
// decisions are under way.
func TestBridgeAtOnce(t *testing.T) {
	s := newStage(t)
	s.cluster.hold = make(chan struct{})
	codes := map[int]int{}
	for i := range atOnce + 1 {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, signed(s.pressed(nil), secret, s.at.Add(time.Duration(i)*time.Second)))
		codes[w.Code]++
	}
	close(s.cluster.hold)
	s.settled()
	if codes[200] != atOnce || codes[503] != 1 || len(s.cluster.calls) != atOnce {
		t.Errorf("%v, %d decisions", codes, len(s.cluster.calls))
	}
}

// TestBridgeOutlivesAPanic: one call that ends in a mistake of ours keeps no place, and ends no other.
func TestBridgeOutlivesAPanic(t *testing.T) {
	s := newStage(t)
	s.cluster.panic = true
	for i := range atOnce + 1 {
		if got := s.call(signed(s.pressed(nil), secret, s.at.Add(time.Duration(i)*time.Second))); got != http.StatusOK {
			t.Fatalf("call %d: %d", i, got)
		}
	}
}

// TestBridgeLog: what anybody can send fills no log; what Slack has signed and is refused is in it.
func TestBridgeLog(t *testing.T) {
	s := newStage(t)
	var said strings.Builder
	s.log = slog.New(slog.NewTextHandler(&said, nil))
	s.call(signed(s.pressed(nil), "another key, as long as that one", s.at))
	if said.Len() > 0 {
		t.Errorf("of a call that Slack did not sign: %s", said.String())
	}
	s.call(signed(s.pressed(func(in map[string]any) { in["team"] = map[string]any{"id": "T0EVIL"} }), secret, s.at))
	if !strings.Contains(said.String(), `a call was refused`) || !strings.Contains(said.String(), "T0EVIL") {
		t.Errorf("of another workspace: %q", said.String())
	}
}

// TestBridgeConfig: what cannot be safe does not start.
func TestBridgeConfig(t *testing.T) {
	good := Config{Secret: []byte(secret), Team: "T024BE7LH", API: &cluster{}}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Config){
		"no secret": func(c *Config) { c.Secret = nil }, "no team": func(c *Config) { c.Team = "" }, "a team's name": func(c *Config) { c.Team = "acme" },
		"no cluster": func(c *Config) { c.API = nil }, "hooks in the clear": func(c *Config) { c.Hooks = "http://hooks.slack.com" }, "hooks with a path": func(c *Config) { c.Hooks = "https://hooks.slack.com/x" },
	} {
		c := good
		change(&c)
		if _, err := New(c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestBridgeServes: it takes calls until it is to end, and ends when what it took is done.
func TestBridgeServes(t *testing.T) {
	s := newStage(t)
	s.cluster.hold = make(chan struct{})
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- s.Serve(ctx, l) }()
	made := signed(s.pressed(nil), secret, s.at)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+l.Addr().String()+Path, made.Body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = made.Header
	res, err := http.DefaultClient.Do(r)
	if err != nil || res.StatusCode != http.StatusOK || res.Body.Close() != nil {
		t.Fatalf("%v, %v", res, err)
	}
	cancel()
	select {
	case err := <-over:
		t.Fatalf("it ended while a decision was under way: %v", err)
	default:
	}
	close(s.cluster.hold)
	if err := <-over; err != nil || len(s.cluster.calls) != 1 || len(s.hooks.got) != 1 {
		t.Errorf("%v, %d decisions, %d answers", err, len(s.cluster.calls), len(s.hooks.got))
	}
}
