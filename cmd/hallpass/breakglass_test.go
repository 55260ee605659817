package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestBreakGlassCommands: breakglass asks for it in so many words, and what there is to
// review is said loudly.
func TestBreakGlassCommands(t *testing.T) {
	f := newFake(t)
	due := time.Now().Add(-time.Hour)
	broken := request(func(r *api.Request) {
		r.State = api.RequestApproved
		r.BreakGlass = &api.BreakGlass{
			DueAt: &due, Overdue: true, WaitsFor: []string{"security"}, Review: []api.Requirement{{Group: "security", Approvals: 1}},
		}
		r.Grant = &api.Grant{ID: r.ID, State: api.GrantActive, BreakGlass: true}
	})
	var asked api.RequestInput
	f.mux.HandleFunc("POST /v1/requests", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		if asked.DryRun {
			reply(w, http.StatusOK, api.DryRun{
				Allowed: true, BreakGlass: &api.BreakGlass{Within: api.Duration(72 * time.Hour), WaitsFor: []string{"security"}},
			})
			return
		}
		reply(w, http.StatusCreated, broken)
	})
	f.answer("GET /v1/reviews", http.StatusOK, api.RequestList{Requests: []api.Request{broken}})
	var finding api.ReviewInput
	f.mux.HandleFunc("POST /v1/requests/{id}/review", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&finding); err != nil {
			t.Error(err)
		}
		reply(w, http.StatusOK, broken)
	})
	flags := []string{"--allow", "POST /queue", "--for", "10m", "--reason", "INC-7"}
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{append([]string{"breakglass", "payments"}, flags...), exitOK, "without the approvals that it needs"},
		{append([]string{"breakglass", "payments", "--dry-run"}, flags...), exitOK, "to be reviewed within 72h"},
		{[]string{"breakglass", "payments", "--allow", "GET /x", "--for", "1m"}, exitUsage, "no reason given"},
		{[]string{"review", "open"}, exitOK, "OVERDUE"},
		{[]string{"review", "close", broken.ID}, exitUsage, "no finding given"},
		{[]string{"review", "close", broken.ID, "--comment", "all was well"}, exitOK, "still to be heard: security"},
	} {
		asked = api.RequestInput{}
		got := f.as(t, f.identity, c.args...)
		if got.status != c.status || !strings.Contains(got.stdout+got.stderr, c.want) {
			t.Errorf("%q: %+v", c.args, got)
		}
		if c.args[0] == "breakglass" && c.status == exitOK && !asked.BreakGlass {
			t.Errorf("%q asks as everybody does: %+v", c.args, asked)
		}
	}
	if finding.Finding != "all was well" {
		t.Errorf("%+v", finding)
	}
}
