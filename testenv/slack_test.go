package testenv_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/bridge"
	"github.com/hallpass/hallpass/approval/notify"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/testenv"
)

const (
	slackSecret = "8f742231b10e8888abcd99yyyzzz85a5"
	slackRules  = `version: 3
channels:
  slack: {team: T024BE7LH, bridge: spiffe://acme.test/bridge/slack}
rules:
  - name: read
    service: payments
    requesters: [group:engineers]
    permissions: ["GET /**"]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
    channels: [slack]
  - name: vip
    service: payments
    requesters: [group:engineers]
    permissions: ["GET /vip/**"]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
`
)

// slackApp is a stand-in for Slack: a channel that is posted to, buttons that are
// pressed, and where answers go.
type slackApp struct {
	server *httptest.Server

	mu      sync.Mutex
	posted  []json.RawMessage // blocks of each message
	answers []map[string]any
}

func newSlackApp(t *testing.T) *slackApp {
	t.Helper()
	s := &slackApp{}
	s.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/api/chat.postMessage":
			s.posted = append(s.posted, json.RawMessage(r.FormValue("blocks")))
			_, _ = io.WriteString(w, `{"ok":true,"channel":"C1","ts":"1.1"}`)
		case "/api/conversations.history":
			_, _ = io.WriteString(w, `{"ok":true,"messages":[]}`)
		default:
			var a map[string]any
			if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
				t.Error(err)
			}
			s.answers = append(s.answers, a)
		}
	}))
	t.Cleanup(s.server.Close)
	return s
}

// value is that of a button in the message about a request, "" while there is none.
func (s *slackApp) value(action, request string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, blocks := range s.posted {
		var all []struct {
			Elements []struct {
				ActionID string `json:"action_id"`
				Value    string `json:"value"`
			} `json:"elements"`
		}
		if json.Unmarshal(blocks, &all) != nil {
			continue
		}
		for _, b := range all {
			for _, e := range b.Elements {
				if e.ActionID == action && strings.HasPrefix(e.Value, request+" ") {
					return e.Value
				}
			}
		}
	}
	return ""
}

func (s *slackApp) told(request string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.posted, func(blocks json.RawMessage) bool { return bytes.Contains(blocks, []byte(request)) })
}

func (s *slackApp) answered() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.answers)
}

// press has Slack call the bridge, as user.
func (s *slackApp) press(t *testing.T, b http.Handler, user, action, value string) {
	t.Helper()
	payload, err := json.Marshal(map[string]any{
		"type": "block_actions", "team": map[string]any{"id": "T024BE7LH"}, "user": map[string]any{"id": user},
		"actions":      []any{map[string]any{"type": "button", "block_id": "hallpass", "action_id": action, "value": value}},
		"response_url": s.server.URL + "/actions/T024BE7LH/1", "trigger_id": fmt.Sprint(time.Now().UnixNano()),
	})
	if err != nil {
		t.Fatal(err)
	}
	body := url.Values{"payload": {string(payload)}}.Encode()
	at := time.Now().Unix()
	mac := hmac.New(sha256.New, []byte(slackSecret))
	_, _ = fmt.Fprintf(mac, "v0:%d:%s", at, body)
	r := httptest.NewRequest(http.MethodPost, bridge.Path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("X-Slack-Request-Timestamp", fmt.Sprint(at))
	r.Header.Set("X-Slack-Signature", "v0="+hex.EncodeToString(mac.Sum(nil)))
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Errorf("the bridge answers %d", w.Code)
	}
}

// TestDecidedInSlack: a message has buttons where the policy lets it be decided in Slack;
// one that is pressed is a decision of whose account it is, which the message then says;
// who may not decide is told so alone, and nobody decides without the bridge's identity.
func TestDecidedInSlack(t *testing.T) {
	app := newSlackApp(t)
	pool := app.server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	e := testenv.Start(t, testenv.Options{
		Policy: slackRules, Persons: []ca.Person{{Name: "olga", IDs: []string{"spiffe://acme.test/user/olga"}}},
		Notify: func(string) control.Notify {
			target, err := notify.NewTarget(notify.TargetConfig{
				Name: "chat", Kind: notify.KindSlack, Secret: "xoxb-test", Channel: "C1", URL: app.server.URL + "/api/", Roots: pool, Events: []string{"request.create"},
			}, time.Now)
			if err != nil {
				t.Error(err)
				return control.Notify{}
			}
			return control.Notify{Targets: []*notify.Target{target}}
		},
	})
	admin := e.Client("carol")
	e.Eventually("the channel is known", func() bool {
		all, err := admin.AuditEntries(t.Context(), 0, 1000)
		return err == nil && slices.ContainsFunc(all.Entries, func(body json.RawMessage) bool { return bytes.Contains(body, []byte(`"kind":"outbox.settle"`)) })
	})
	persons, err := admin.Persons(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"alice", "bob"} {
		ch, err := admin.ProposeChange(t.Context(), api.ChangeInput{
			Change:       api.ChangeSpec{Kind: api.ChangePersonSet, Name: name, IDs: []string{"spiffe://acme.test/user/" + name}, Slack: "T024BE7LH/U0" + strings.ToUpper(name)},
			BaseRevision: persons.Revision + uint64(i),
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, who := range []string{"dana", "erin"} {
			if _, err := e.Client(who).DecideChange(t.Context(), ch.ID, api.ChangeDecisionInput{Decision: "approve", Hash: ch.Hash}); err != nil {
				t.Fatal(err)
			}
		}
	}
	b, err := bridge.New(bridge.Config{
		Secret: []byte(slackSecret), Team: "T024BE7LH", API: e.Client("bridge/slack"), Hooks: app.server.URL, Client: app.server.Client().Transport,
	})
	if err != nil {
		t.Fatal(err)
	}
	shown := func(permission string) (api.Request, string) {
		t.Helper()
		r := e.Request("alice", "payments", time.Hour, permission)
		e.Eventually("Slack shows the request", func() bool { return app.told(r.ID) })
		return r, app.value("hallpass_approve", r.ID)
	}
	outcome := func(n int) string {
		t.Helper()
		e.Eventually("Slack is told what came of it", func() bool { return len(app.answered()) == n })
		a := app.answered()[n-1]
		return fmt.Sprintf("%v %v", a["replace_original"], a["text"])
	}

	r, value := shown("GET /accounts/1")
	if value != r.ID+" "+r.Hash {
		t.Fatalf("the button says %q", value)
	}
	app.press(t, b, "U0ALICE", "hallpass_approve", value)
	if got := outcome(1); !strings.HasPrefix(got, "false ") || !strings.Contains(got, "may not decide on it") {
		t.Error(got)
	}
	app.press(t, b, "U0OLGA", "hallpass_approve", value)
	if got := outcome(2); !strings.Contains(got, "is nobody's") {
		t.Error(got)
	}
	other, otherValue := shown("GET /accounts/2")
	app.press(t, b, "U0BOB", "hallpass_approve", r.ID+" "+other.Hash)
	if got := outcome(3); !strings.Contains(got, "changed since") {
		t.Error(got)
	}
	in := api.DecisionInput{Decision: "approve", Hash: r.Hash, Slack: "T024BE7LH/U0BOB"}
	for _, who := range []string{"carol", "bob", "alice", "service/slack", "bridge/other"} {
		if _, err := e.Client(who).DecideRequest(t.Context(), r.ID, in); err == nil || !strings.Contains(err.Error(), "is not who brings in") {
			t.Errorf("%s in Slack's name: %v", who, err)
		}
	}
	in.Slack = ""
	if _, err := e.Client("bridge/slack").DecideRequest(t.Context(), r.ID, in); err == nil {
		t.Error("the bridge decided as itself")
	}
	if _, err := e.Client("bridge/slack").Request(t.Context(), r.ID); err == nil {
		t.Error("the bridge reads requests")
	}
	app.press(t, b, "U0BOB", "hallpass_approve", value)
	if got := outcome(4); got != "true bob approved it in Slack." {
		t.Error(got)
	}
	app.press(t, b, "U0BOB", "hallpass_deny", otherValue)
	if got := outcome(5); got != "true bob denied it in Slack." {
		t.Error(got)
	}
	for id, want := range map[string]string{r.ID: api.RequestApproved, other.ID: api.RequestDenied} {
		got, err := admin.Request(t.Context(), id)
		if err != nil || got.State != want || len(got.Decisions) != 1 || got.Decisions[0].Slack != "T024BE7LH/U0BOB" || got.Decisions[0].Person != "bob" {
			t.Errorf("%+v, %v", got, err)
		}
	}
	app.press(t, b, "U0BOB", "hallpass_deny", value)
	if got := outcome(6); !strings.Contains(got, "is approved already") {
		t.Error(got)
	}
	if r, value := shown("GET /vip/1"); value != "" || app.value("hallpass_deny", r.ID) != "" {
		t.Error("what certificates alone decide has a button")
	}
	if _, value := shown("GET /" + strings.Repeat("long", 400)); value != "" {
		t.Error("what a message shortens has a button to approve it")
	}
}
