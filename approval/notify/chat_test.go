package notify

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval"
)

// workspace is a stand-in for Slack's API: one channel, of which it keeps the messages.
type workspace struct {
	mu     sync.Mutex
	posts  []map[string]any
	answer func(w http.ResponseWriter, method string) bool // true: it has answered
	asked  int                                             // for the channel's messages
}

func (s *workspace) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	method := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if err := r.ParseForm(); err != nil || r.Form.Get("token") != slackToken && r.Header.Get("Authorization") != "Bearer "+slackToken || r.Form.Get("channel") != "C024BE91L" {
		_, _ = io.WriteString(w, `{"ok":false,"error":"invalid_auth"}`)
		return
	}
	if s.answer != nil && s.answer(w, method) {
		return
	}
	switch method {
	case "chat.postMessage":
		var metadata any
		_ = json.Unmarshal([]byte(r.Form.Get("metadata")), &metadata)
		s.posts = append(s.posts, map[string]any{"type": "message", "text": r.Form.Get("text"), "blocks": r.Form.Get("blocks"), "metadata": metadata})
		_, _ = io.WriteString(w, `{"ok":true,"channel":"C024BE91L","ts":"1.2"}`)
	case "conversations.history":
		s.asked++
		var all []map[string]any
		for _, p := range s.posts {
			all = append(all, map[string]any{"type": "message", "text": p["text"], "metadata": p["metadata"]})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"ok": true, "messages": all, "has_more": false})
	}
}

const slackToken = "xoxb-secret-token"

func slackTarget(t *testing.T, s *workspace) *Target {
	t.Helper()
	server, roots := tlsServer(t, s.serve)
	target, err := NewTarget(TargetConfig{Name: "chat", Kind: KindSlack, URL: server.URL + "/api/", Roots: roots, Secret: slackToken, Channel: "C024BE91L"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// TestSlack: other people's words are plain text; what may have been posted before is
// looked for, and posted once.
func TestSlack(t *testing.T) {
	s := &workspace{}
	target := slackTarget(t, s)
	d := delivery()
	if err := target.channel.Send(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if s.asked != 0 {
		t.Error("what cannot have been sent before is looked for")
	}
	d.Again = true
	if err := target.channel.Send(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	other := d
	other.ID = "msg_other"
	if err := target.channel.Send(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if len(s.posts) != 2 || s.asked != 2 {
		t.Fatalf("%d messages, after %d looks", len(s.posts), s.asked)
	}
	text, ok := s.posts[0]["blocks"].(string)
	var blocks []struct {
		Type string
		Text struct{ Type, Text string }
	}
	if err := json.Unmarshal([]byte(text), &blocks); err != nil || !ok {
		t.Fatalf("%v: %s", err, text)
	}
	marked := 0
	for _, b := range blocks {
		if b.Text.Type != "plain_text" {
			if marked++; b.Text.Text != "<"+d.Link+"|Look at it>" {
				t.Errorf("%+v", b)
			}
		}
		if b.Type == "actions" {
			t.Error("a button would be pressed by somebody who has shown no certificate")
		}
	}
	if marked != 1 || !strings.Contains(text, "!channel") {
		t.Errorf("%d blocks with markup: %s", marked, text)
	}
	loud := d
	loud.ID, loud.Again, loud.Actor = "msg_loud", false, "spiffe://acme.test/<!here>"
	if err := target.channel.Send(t.Context(), loud); err != nil || strings.Contains(s.posts[2]["text"].(string), "<!here>") {
		t.Errorf("%v, %v", s.posts[2]["text"], err)
	}
}

// TestSlackButtons: a button carries which request and the hash of what is shown, and
// there is none to approve what the message leaves out.
func TestSlackButtons(t *testing.T) {
	buttons := func(change func(*Delivery)) string {
		t.Helper()
		s := &workspace{}
		d := delivery()
		of := *d.Request
		of.Reason = "ticket 17"
		d.Request, d.Buttons = &of, []approval.Verdict{approval.Approve, approval.Deny}
		change(&d)
		if err := slackTarget(t, s).channel.Send(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		var blocks []struct {
			BlockID  string `json:"block_id"`
			Elements []struct {
				ActionID string `json:"action_id"`
				Value    string `json:"value"`
			} `json:"elements"`
		}
		if err := json.Unmarshal([]byte(s.posts[0]["blocks"].(string)), &blocks); err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, b := range blocks {
			for _, e := range b.Elements {
				if b.BlockID != "hallpass" || e.Value != of.ID+" "+of.Hash {
					t.Errorf("%+v", b)
				}
				all = append(all, e.ActionID)
			}
		}
		return strings.Join(all, " ")
	}
	for what, c := range map[string]struct {
		change func(*Delivery)
		want   string
	}{
		"all is shown":           {func(*Delivery) {}, "hallpass_approve hallpass_deny"},
		"certificates alone":     {func(d *Delivery) { d.Buttons = nil }, ""},
		"about no request":       {func(d *Delivery) { d.Request = nil }, ""},
		"more than is shown":     {func(d *Delivery) { d.Request.Permissions = []string{"GET /" + strings.Repeat("a", maxValue), "* /**"} }, "hallpass_deny"},
		"what does not show":     {func(d *Delivery) { d.Request.Reason = "ticket \u202e17" }, "hallpass_deny"},
		"an approval is there":   {func(d *Delivery) { d.Buttons = d.Buttons[1:] }, "hallpass_deny"},
		"a subject without end":  {func(d *Delivery) { d.Request.Subject = "spiffe://acme.test/" + strings.Repeat("a", maxValue) }, "hallpass_deny"},
		"a reason of many lines": {func(d *Delivery) { d.Request.Reason = "one\ntwo" }, "hallpass_approve hallpass_deny"},
	} {
		if got := buttons(c.change); got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

// TestSlackInWords: who decided is the person whose account it was, and that nobody's
// certificate was seen is said.
func TestSlackInWords(t *testing.T) {
	d := delivery()
	d.Kind, d.Actor = approval.KindDecideRequest, "spiffe://acme.test/bridge/slack"
	d.Details = json.RawMessage(`{"decision":"deny","person":"bob","slack":"T024BE7LH/U024BE7LH","state":"denied"}`)
	if text := d.words().text(); !strings.Contains(text, "bob, in Slack, denies") || !strings.Contains(text, "in Slack by bob, account T024BE7LH/U024BE7LH: no certificate was seen") {
		t.Error(text)
	}
}

// TestSlackRefusals: that the channel cannot be looked at is no reason to post twice, and
// what Slack says is kept as far as it is one of its words.
func TestSlackRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, method string) bool
		want   Failure
	}{
		"no right to look": {func(w http.ResponseWriter, method string) bool {
			if method == "conversations.history" {
				_, _ = io.WriteString(w, `{"ok":false,"error":"missing_scope"}`)
			}
			return method == "conversations.history"
		}, Failure{Cause: "Slack says missing_scope"}},
		"too fast": {func(w http.ResponseWriter, _ string) bool {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(429)
			return true
		}, Failure{Cause: "answered 429 Too Many Requests", After: 30 * time.Second}},
		"broken": {func(w http.ResponseWriter, _ string) bool { w.WriteHeader(500); return true }, Failure{Cause: "answered 500 Internal Server Error"}},
		"its own words": {func(w http.ResponseWriter, _ string) bool {
			_, _ = io.WriteString(w, `{"ok":false,"error":"come to https://evil.test"}`)
			return true
		}, Failure{Cause: "Slack refused the call"}},
	} {
		s := &workspace{answer: c.answer}
		d := delivery()
		d.Again = true
		var f *Failure
		if err := slackTarget(t, s).channel.Send(t.Context(), d); !errors.As(err, &f) || *f != c.want {
			t.Errorf("%s: %+v, want %+v", name, err, c.want)
		}
		if len(s.posts) > 0 {
			t.Errorf("%s: posted all the same", name)
		}
	}
}

// TestTeams: an Adaptive Card whose texts know no markup, to an address that is in nothing
// that is said of the target.
func TestTeams(t *testing.T) {
	var got card
	server, roots := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.URL.RawQuery != "sig=secret" {
			w.WriteHeader(400)
		}
	})
	target, err := NewTarget(TargetConfig{Name: "teams", Kind: KindTeams, Secret: server.URL + "/workflows/1?sig=secret", Roots: roots}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	d := delivery()
	if err := target.channel.Send(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got.Type != "message" || len(got.Attachments) != 1 || got.Attachments[0].ContentType != "application/vnd.microsoft.card.adaptive" {
		t.Fatalf("%+v", got)
	}
	c, reason := got.Attachments[0].Content, false
	for _, b := range c.Body {
		for _, r := range b.Inlines {
			if b.Type != "RichTextBlock" || r.Type != "TextRun" {
				t.Errorf("%+v may have markup", b)
			}
			reason = reason || strings.Contains(r.Text, "[x](https://evil.test)")
		}
	}
	if len(c.Actions) != 1 || c.Actions[0].Type != "Action.OpenUrl" || c.Actions[0].URL != d.Link || !reason || c.Body[len(c.Body)-1].Inlines[0].Text != "delivery "+d.ID {
		t.Errorf("%+v", c)
	}
	if strings.Contains(target.Host(), "secret") {
		t.Error(target.Host())
	}
}

// TestPagerDuty: what is sent again is the same alert.
func TestPagerDuty(t *testing.T) {
	const integration = "0123456789abcdef0123456789ABCDEF"
	alerts := map[string]int{}
	status := 202
	server, roots := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		var e struct {
			RoutingKey  string `json:"routing_key"`
			EventAction string `json:"event_action"`
			DedupKey    string `json:"dedup_key"`
			Payload     struct {
				Summary, Source, Severity string
				Details                   map[string]string `json:"custom_details"`
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil || e.RoutingKey != integration || e.EventAction != "trigger" || len(e.DedupKey) > 255 ||
			e.Payload.Summary == "" || len(e.Payload.Summary) > 1024 || e.Payload.Source == "" || e.Payload.Severity != "warning" || e.Payload.Details["service"] != "payments" {
			t.Errorf("%+v, %v", e, err)
		}
		alerts[e.DedupKey]++
		w.WriteHeader(status)
	})
	target, err := NewTarget(TargetConfig{Name: "page", Kind: KindPagerDuty, URL: server.URL, Secret: integration, Roots: roots}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := target.channel.Send(t.Context(), delivery()); err != nil {
			t.Fatal(err)
		}
	}
	if len(alerts) != 1 {
		t.Errorf("%d alerts of one event", len(alerts))
	}
	for code, permanent := range map[int]bool{400: true, 429: false, 500: false} {
		status = code
		var f *Failure
		if err := target.channel.Send(t.Context(), delivery()); !errors.As(err, &f) || f.Permanent != permanent || strings.Contains(f.Cause, integration) {
			t.Errorf("%d: %+v", code, err)
		}
	}
}

// TestChatRefuses what cannot be meant, and says nothing of a secret.
func TestChatRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		config TargetConfig
		field  string
	}{
		"a user's token":         {TargetConfig{Kind: KindSlack, Secret: "xoxp-hush", Channel: "C1"}, "token_file"},
		"a channel by its name":  {TargetConfig{Kind: KindSlack, Secret: "xoxb-hush", Channel: "#general"}, "channel"},
		"Slack in the clear":     {TargetConfig{Kind: KindSlack, Secret: "xoxb-hush", Channel: "C1", URL: "http://slack.test/api/"}, "url"},
		"no slash at the end":    {TargetConfig{Kind: KindSlack, Secret: "xoxb-hush", Channel: "C1", URL: "https://slack.test/api"}, "url"},
		"Teams in the clear":     {TargetConfig{Kind: KindTeams, Secret: "http://teams.test/hush"}, "url_file"},
		"nothing for Teams":      {TargetConfig{Kind: KindTeams}, "url_file"},
		"a short key":            {TargetConfig{Kind: KindPagerDuty, Secret: "hush"}, "key_file"},
		"PagerDuty in the clear": {TargetConfig{Kind: KindPagerDuty, Secret: strings.Repeat("a", 32), URL: "http://events.test/"}, "url"},
	} {
		c.config.Name = "chat"
		var f *FieldError
		if _, err := NewTarget(c.config, time.Now); !errors.As(err, &f) || f.Field != c.field || strings.Contains(f.Text, "hush") {
			t.Errorf("%s: %v, want it at %s", name, err, c.field)
		}
	}
}

// TestAgainIsSaid: a first try says that it is one; a second, and what an earlier leader
// may have sent, that it is not.
func TestAgainIsSaid(t *testing.T) {
	c := &fakeChannel{}
	seen := map[uint64][]bool{}
	c.answer = func(_ context.Context, d Delivery, try int) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		seen[d.Index] = append(seen[d.Index], d.Again)
		if try == 1 {
			return errors.New("no route")
		}
		return nil
	}
	againIsSaid(t, c, seen)
}

// TestHeadlines: what was taken without approval does not read like what was given.
func TestHeadlines(t *testing.T) {
	for _, c := range []struct {
		kind    approval.Kind
		details string
		want    string
	}{
		{approval.KindCreateRequest, `{"state":"pending"}`, "user/alice asks for payments for user/alice"},
		{approval.KindCreateRequest, `{"state":"approved"}`, "user/alice was given payments for user/alice, by the policy alone"},
		{approval.KindCreateRequest, `{"state":"approved","break_glass":{"groups":["owners"]}}`, "GLASS BROKEN: user/alice took payments for user/alice without approval"},
		{approval.KindDecideRequest, `{"decision":"approve","state":"approved"}`, "user/alice approves payments for user/alice"},
		{approval.KindDecideRequest, `{"decision":"approve","state":"pending"}`, "user/alice approves payments for user/alice, which waits for others"},
		{approval.KindDecideRequest, `{"decision":"deny","state":"denied"}`, "user/alice denies payments for user/alice"},
		{approval.KindCancelRequest, `{}`, "user/alice withdraws the request of payments for user/alice"},
		{approval.KindEscalateRequest, `{}`, "payments for user/alice is escalated: nobody has decided on it in time"},
		{approval.KindRevokeGrant, `{}`, "user/alice revokes payments for user/alice"},
		{approval.KindTick, `{"stand_ins":[{"group":"owners","for":"bob","by":"dave"}]}`, "expired: 0 requests, 0 grants, 0 changes, 1 who stood in for others"},
	} {
		d := delivery()
		d.Kind, d.Details = c.kind, json.RawMessage(c.details)
		if got := d.words().title; got != c.want {
			t.Errorf("%s %s: %q, want %q", c.kind, c.details, got, c.want)
		}
	}
	const standIn = `{"by":"dave","for":"bob","until":"2026-03-04T09:00:00.000Z","reason":"on holiday"}`
	for kind, want := range map[approval.Kind]string{
		approval.KindNameStandIn: "dave stands in for bob in owners, until 2026-03-04T09:00:00.000Z",
		approval.KindEndStandIn:  "bob is back in owners, for whom dave stood in: ended by user/alice",
	} {
		d := delivery()
		d.Kind, d.Details, d.Object, d.Request = kind, json.RawMessage(standIn), "owners", nil
		if got := d.words().title; got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
}
