package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestNotifyCommands: what the commands ask for, and what they make of the answers.
func TestNotifyCommands(t *testing.T) {
	f := newFake(t)
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	target := api.NotifyTarget{Name: "siem", Configured: true, Kind: "webhook", Host: "https://siem.acme.test", Events: []string{"*"}, Open: []api.NotifyOpen{}, Sent: 7, Dead: 1}
	failing, paused, gone := target, target, target
	failing.Name, failing.Open = "post", []api.NotifyOpen{{Entry: 41, Tries: 3, Cause: "answered 500"}}
	paused.Name, paused.PausedAt, paused.Cause = "chat", &at, "answered 410 Gone"
	gone.Name, gone.Configured = "old", false
	f.answer("GET /v1/notify/targets", http.StatusOK, api.NotifyTargets{Targets: []api.NotifyTarget{target, failing, paused, gone}, Missing: []string{"pager"}})
	f.mux.HandleFunc("GET /v1/notify/dead", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, api.DeadLetters{Letters: []api.DeadLetter{{Target: "siem" + r.URL.Query().Get("target"), Entry: 41, Kind: "request.create", Object: "r1", At: at, Tries: 9, Cause: "answered 500"}}})
	})
	var replays []api.ReplayInput
	f.mux.HandleFunc("POST /v1/notify/targets/siem/replay", func(w http.ResponseWriter, r *http.Request) {
		var in api.ReplayInput
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		replays = append(replays, in)
		reply(w, http.StatusOK, target)
	})
	f.answer("POST /v1/notify/targets/siem/forget", http.StatusOK, target)
	f.answer("POST /v1/notify/targets/siem/test", http.StatusOK, api.NotifyTested{Target: "siem", Delivery: "test_1", Delivered: true, TookMS: 12})
	f.answer("POST /v1/notify/targets/post/test", http.StatusOK, api.NotifyTested{Target: "post", Delivery: "test_2", Cause: "answered 500"})
	for _, c := range []struct {
		args   string
		status int
		want   []string
	}{
		{"notify list", exitOK, []string{"siem", "https://siem.acme.test", " ok", "entry 41 failed 3 times: answered 500", "paused: answered 410 Gone", "not in the answering node's configuration", "pager", "the policy names it"}},
		{"notify dead", exitOK, []string{"siem ", "41", "request.create", "r1", "answered 500"}},
		{"notify dead siem", exitOK, []string{"siemsiem"}},
		{"notify dead a b", exitUsage, []string{"one TARGET or none"}},
		{"notify replay siem 41 42", exitOK, []string{"0 on their way, 1 dead letters left"}},
		{"notify replay siem --all", exitOK, nil},
		{"notify replay siem", exitOK, nil},
		{"notify replay siem --all 41", exitUsage, []string{"give one of them"}},
		{"notify replay siem x", exitUsage, []string{`"x" is no ENTRY`}},
		{"notify replay", exitUsage, []string{"no TARGET given"}},
		{"notify test siem", exitOK, []string{"has the test message test_1, after 12 ms"}},
		{"notify test post", exitError, []string{"post: the test message was not delivered: answered 500"}},
		{"notify forget siem", exitOK, []string{"siem is forgotten"}},
	} {
		got := f.as(t, f.identity, strings.Fields(c.args)...)
		if got.status != c.status {
			t.Errorf("%s: %+v", c.args, got)
		}
		for _, want := range c.want {
			if !strings.Contains(got.stdout+got.stderr, want) {
				t.Errorf("%s: %+v, want %q", c.args, got, want)
			}
		}
	}
	if len(replays) != 3 || !slices.Equal(replays[0].Entries, []uint64{41, 42}) || !replays[1].All || replays[2].All || len(replays[2].Entries) > 0 {
		t.Errorf("%+v", replays)
	}
}
