package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

func TestClusterCommands(t *testing.T) {
	f := newFake(t)
	silent, behind := api.Duration(12*time.Second), uint64(7)
	n4 := api.Node{ID: "n4", Role: "nonvoter", APIAddress: "n4:8443", RaftAddress: "n4:7443"}
	cl := api.Cluster{
		ID: "c1", Node: "n1", Leader: "n1", Manifest: 5, Commands: 1, Issuers: []api.Issuer{}, Blocked: []api.Block{},
		Nodes: []api.Node{
			{ID: "n1", Role: "voter", Leader: true},
			{ID: "n2", Role: "voter", SilentFor: &silent, Behind: &behind},
			{ID: "n3", Role: "voter"},
			n4,
			{ID: "n5", Role: "none"},
		},
	}
	f.answer("GET /v1/cluster", http.StatusOK, cl)
	f.answer("POST /v1/nodes/{id}/join", http.StatusOK, n4)
	f.answer("POST /v1/nodes/{id}/promote", http.StatusOK, api.Node{ID: "n4", Role: "voter"})
	f.answer("POST /v1/nodes/n1/lead", http.StatusConflict, api.NewProblem(api.CodeConflict, "it has not been heard lately", "look"))
	bodies := map[string]map[string]any{}
	record := func(route string, answer any) {
		f.mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
			var body map[string]any
			_ = json.NewDecoder(r.Body).Decode(&body) // what is missing the test sees
			bodies[r.URL.Path] = body
			reply(w, http.StatusOK, answer)
		})
	}
	record("POST /v1/nodes/{id}/remove", api.Node{ID: "n3", Role: "none"})
	record("POST /v1/cluster/manifest", cl)
	manifest := filepath.Join(t.TempDir(), "manifest.json")
	if err := os.WriteFile(manifest, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args           []string
		status         int
		stdout, stderr string
	}{
		{[]string{"cluster", "status"}, exitOK, "n2    follower    12s ago  7", ""},
		{[]string{"cluster", "status"}, exitOK, "n3    follower    never    -", ""},
		{[]string{"cluster", "status"}, exitOK, "n5    not joined  -        -", ""},
		{[]string{"cluster", "status"}, exitOK, "manifest     5", ""},
		{[]string{"cluster", "adopt", manifest}, exitOK, "n4    nonvoter", "next: start n5 with this manifest, then: hallpass cluster join n5"},
		{[]string{"cluster", "adopt", manifest + "x"}, exitError, "", "no such file"},
		{[]string{"cluster", "join", "n4"}, exitOK, "role  nonvoter", "next: promote it once it has caught up: hallpass cluster promote n4"},
		{[]string{"cluster", "promote", "n4", "--wait", "1ms"}, exitOK, "role  follower", ""},
		{[]string{"cluster", "remove", "n3"}, exitUsage, "", "--reason"},
		{[]string{"cluster", "remove", "n3", "--reason", "gone"}, exitOK, "role  not joined", "identities n3 signed get new ones"},
		{[]string{"cluster", "transfer-leader", "n1"}, exitError, "", "not been heard lately"},
		{[]string{"cluster", "transfer-leader"}, exitUsage, "", "NODE"},
		{[]string{"cluster"}, exitUsage, "transfer-leader", "say which"},
	} {
		got := f.as(t, f.identity, tt.args...)
		if got.status != tt.status || !strings.Contains(got.stdout, tt.stdout) || !strings.Contains(got.stderr, tt.stderr) {
			t.Errorf("%s: want status %d, %q, %q, got %+v", strings.Join(tt.args, " "), tt.status, tt.stdout, tt.stderr, got)
		}
	}
	if got := f.as(t, f.identity, "cluster", "remove", "n3", "--reason", "sold", "--retired"); got.status != exitOK || strings.Contains(got.stderr, "next:") {
		t.Errorf("retired: %+v", got)
	}
	if b := bodies["/v1/nodes/n3/remove"]; b["reason"] != "sold" || b["retired"] != true {
		t.Errorf("sent %v", b)
	}
	if b := bodies["/v1/cluster/manifest"]; b["manifest"] != "{}" {
		t.Errorf("sent %v", b)
	}
}
