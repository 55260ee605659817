package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

// TestReviewWatch: what waits is shown, then what comes and what becomes of it, each once, and
// nothing that the person has no vote on.
func TestReviewWatch(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{Nodes: 1})
	waits := env.Request("alice", "payments", time.Hour, "GET /accounts/1")
	b := runInBackground(t, env, "bob", "review", "watch", "-o", "json")
	next := func(what, event, id string) api.Request {
		t.Helper()
		text, err := b.stdout.ReadString('\n')
		var got reviewEvent
		if err != nil || json.Unmarshal([]byte(text), &got) != nil || got.Event != event || got.Request.ID != id {
			t.Fatalf("%s: %q, %v; want %s %s", what, text, err, event, id)
		}
		return got.Request
	}
	next("what waited before", "waits", waits.ID)
	if _, err := env.Client("bob").CreateRequest(t.Context(), api.RequestInput{
		Service: "payments", Permissions: []string{"GET /accounts/9"}, Reason: "his own", Duration: api.Duration(time.Minute),
	}); err != nil {
		t.Logf("bob may not ask: %v", err) // then there is one less that must not be shown
	}
	comes := env.Request("alice", "payments", time.Hour, "GET /accounts/2")
	if r := next("what comes", "waits", comes.ID); r.Permissions[0] != "GET /accounts/2" {
		t.Errorf("%+v", r)
	}
	env.Approve("bob", waits)
	next("what was decided", api.RequestApproved, waits.ID)
	if _, err := env.Client("alice").CancelRequest(t.Context(), comes.ID); err != nil {
		t.Fatal(err)
	}
	next("what was withdrawn", api.RequestCancelled, comes.ID)
	b.stop()
	if status := <-b.status; status != exitOK {
		t.Errorf("it ended with %d", status)
	}
	if rest, _ := b.stdout.ReadString('\n'); rest != "" {
		t.Errorf("and %q", rest)
	}

	job := runInBackground(t, env, "job/nightly", "review", "watch")
	job.line("hallpass: your identity belongs to no person")
	if status := <-job.status; status != exitError {
		t.Errorf("a job's ended with %d", status)
	}

	// For people, a line each, in which nothing that was typed begins another.
	people := runInBackground(t, env, "bob", "review", "watch")
	r, err := env.Client("alice").CreateRequest(t.Context(), api.RequestInput{
		Service: "payments", Permissions: []string{"GET /accounts/3"}, Reason: "ticket\nwaits     forged", Duration: api.Duration(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := people.stdout.ReadString('\n')
	if err != nil || !strings.HasPrefix(text, "waits     "+r.ID+"  spiffe://acme.test/user/alice → payments  GET /accounts/3  for 1h: ticket") || !strings.Contains(text, "forged") {
		t.Errorf("%q, %v", text, err)
	}
}

// TestRequestReturn: one gives back what one does not need any more.
func TestRequestReturn(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{Nodes: 1})
	g := env.Grant("alice", "payments", time.Hour, "GET /accounts/1")
	b := runInBackground(t, env, "alice", "request", "return", g.ID, "-o", "json")
	var got api.Grant
	if err := json.NewDecoder(b.stdout).Decode(&got); err != nil || got.ID != g.ID || got.State != api.GrantReturned {
		t.Errorf("%+v, %v", got, err)
	}
	if status := <-b.status; status != exitOK {
		t.Errorf("status %d", status)
	}
	bob := runInBackground(t, env, "bob", "request", "return", env.Grant("alice", "payments", time.Hour, "GET /accounts/1").ID)
	bob.line("hallpass: ")
	if status := <-bob.status; status == exitOK {
		t.Error("another's grant is returned without a reason")
	}
}

func TestHowLong(t *testing.T) {
	more := request(func(r *api.Request) { r.Extends = &api.Extends{} })
	handed := request(func(r *api.Request) { r.Delegation = &api.Delegation{} })
	for want, r := range map[string]api.Request{"30m": request(nil), "30m more": more, "30m, delegable": handed} {
		if got := howLong(r); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
