package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestExtendCommand: what is asked, and what is said of the answer.
func TestExtendCommand(t *testing.T) {
	f := newFake(t)
	var asked api.ExtendInput
	f.mux.HandleFunc("POST /v1/grants/{id}/extend", func(w http.ResponseWriter, r *http.Request) {
		asked = api.ExtendInput{}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		if asked.DryRun {
			reply(w, http.StatusOK, api.DryRun{Reason: "rule \"x\" lets no grant be extended"})
			return
		}
		reply(w, http.StatusCreated, request(func(q *api.Request) {
			q.Extends = &api.Extends{Grant: r.PathValue("id"), From: time.Now(), To: time.Now().Add(time.Hour)}
		}))
	})
	const id = "01a20afa-e731-7f26-a3d8-3e7dc7f78186"
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--for", "30m", "--reason", "not done"}, exitOK, "grant " + id},
		{[]string{"--for", "30m", "--reason", "not done", "--dry-run"}, exitDenied, "lets no grant be extended"},
		{[]string{"--reason", "not done"}, exitUsage, "no duration given"},
		{[]string{"--for", "30m"}, exitUsage, "no reason given"},
	} {
		got := f.as(t, f.identity, append([]string{"request", "extend", id}, c.args...)...)
		if got.status != c.status || !strings.Contains(got.stdout+got.stderr, c.want) {
			t.Errorf("%q: %+v", c.args, got)
		}
	}
	if asked.Duration != api.Duration(30*time.Minute) || asked.Reason != "not done" {
		t.Errorf("%+v", asked)
	}
}
