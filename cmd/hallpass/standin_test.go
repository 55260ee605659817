package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestStandInCommands: what is typed is what is asked for, and what is missing is said before anyone is asked.
func TestStandInCommands(t *testing.T) {
	f := newFake(t)
	until := time.Now().Add(72 * time.Hour)
	in := api.StandIn{Group: "payments-owners", For: "alice", By: "bob", Reason: "on holiday", Since: time.Now(), Until: until}
	var asked api.StandInInput
	f.mux.HandleFunc("POST /v1/groups/payments-owners/stand-in", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		reply(w, http.StatusOK, in)
	})
	var ended api.EndStandInInput
	f.mux.HandleFunc("POST /v1/groups/payments-owners/stand-in/end", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&ended); err != nil {
			t.Error(err)
		}
		reply(w, http.StatusOK, in)
	})
	f.answer("GET /v1/groups", http.StatusOK, api.Groups{Groups: []api.Group{
		{Name: "payments-owners", Members: []string{"alice", "carol"}, Substitutes: []string{"bob"}, StandIns: []api.StandIn{in}}, {Name: "security", Members: []string{"carol"}},
	}})
	begin := []string{"group", "stand-in", "payments-owners", "--by", "bob", "--for", "72h", "--reason", "on holiday"}
	if got := f.as(t, f.identity, begin...); got.status != exitOK || !strings.Contains(got.stdout, "bob stands in for alice in payments-owners until ") {
		t.Errorf("%+v", got)
	}
	if want := (api.StandInInput{By: "bob", Duration: api.Duration(72 * time.Hour), Reason: "on holiday"}); asked != want {
		t.Errorf("asked for %+v", asked)
	}
	for _, person := range []string{"", "alice"} {
		args := []string{"group", "stand-in", "end", "payments-owners"}
		if person != "" {
			args = append(args, "--person", person)
		}
		if got := f.as(t, f.identity, args...); got.status != exitOK || !strings.Contains(got.stdout, "alice counts in payments-owners again, and bob does not in their place") || ended.For != person {
			t.Errorf("%+v, ended %+v", got, ended)
		}
	}
	if got := f.as(t, f.identity, "group", "list"); got.status != exitOK || !strings.Contains(got.stdout, "alice (bob stands in until ") {
		t.Errorf("%+v", got)
	}
	for _, missing := range []string{"--by", "--for", "--reason"} {
		var args []string
		for i := 0; i < len(begin); i++ {
			if begin[i] == missing {
				i++
				continue
			}
			args = append(args, begin[i])
		}
		if got := f.as(t, f.identity, args...); got.status != exitUsage || !strings.Contains(got.stderr, missing) {
			t.Errorf("without %s: %+v", missing, got)
		}
	}
}
