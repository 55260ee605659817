package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestDelegateCommand: what is asked for, and that a delegable request says so to whom it is
// shown.
func TestDelegateCommand(t *testing.T) {
	f := newFake(t)
	var asked api.DelegateInput
	f.mux.HandleFunc("POST /v1/grants/{id}/delegate", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		reply(w, http.StatusOK, request(func(q *api.Request) {
			q.State, q.Parent, q.Subject = api.RequestApproved, r.PathValue("id"), asked.Subject
		}))
	})
	var wanted api.RequestInput
	f.mux.HandleFunc("POST /v1/requests", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
			t.Error(err)
		}
		reply(w, http.StatusCreated, request(func(q *api.Request) {
			q.Delegation = &api.Delegation{To: []string{"spiffe://acme.test/agent/*"}, Most: 2, MaxDuration: api.Duration(10 * time.Minute)}
		}))
	})
	const id, agent = "01a20afa-e731-7f26-a3d8-3e7dc7f78186", "spiffe://acme.test/agent/helper"
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"grant", "delegate", id, "--to", agent, "--for", "10m", "--reason", "r", "--allow", "GET /a"}, exitOK, "made of"},
		{[]string{"grant", "delegate", id, "--for", "10m", "--reason", "r"}, exitUsage, "nobody given"},
		{[]string{"grant", "delegate", id, "--to", agent, "--reason", "r"}, exitUsage, "no duration given"},
		{[]string{"grant", "delegate", id, "--to", agent, "--for", "10m"}, exitUsage, "no reason given"},
		{[]string{"grant", "delegate", id, "--to", agent, "--for", "10m", "--reason", "r", "--allow", "GETT"}, exitUsage, "--allow"},
		{[]string{"request", "create", "payments", "--allow", "GET /a", "--for", "1h", "--reason", "r", "--delegable"}, exitOK, "2 at a time, for 10m each"},
	} {
		got := f.as(t, f.identity, c.args...)
		if got.status != c.status || !strings.Contains(got.stdout+got.stderr, c.want) {
			t.Errorf("%q: %+v", c.args, got)
		}
	}
	if asked.Subject != agent || asked.Duration != api.Duration(10*time.Minute) || len(asked.Permissions) != 1 || !wanted.Delegable {
		t.Errorf("%+v and %+v", asked, wanted)
	}
}
