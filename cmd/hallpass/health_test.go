package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What `health` says of a node's and of a proxy's answer is for people to read.
func TestHealth(t *testing.T) {
	node := func(ready, status string) string {
		return `{"ready":` + ready + `,"node":"n1","findings":[{"check":"store","status":"ok"},
		{"check":"leader","status":"` + status + `","detail":"no leader is known here"},{"check":"grant issuer","status":"warn","detail":"ends soon"}]}`
	}
	for _, tt := range []struct {
		name         string
		status       int
		body         string
		args         []string
		exit         int
		stdout, errs string
	}{
		{"a node", 200, node("true", "ok"), nil, exitOK, "ready\nwarning: grant issuer: ends soon\n", ""},
		{"a node without a leader", 503, node("false", "fail"), nil, exitError, "", "hallpass: not ready: 503 Service Unavailable: leader: no leader is known here\n"},
		{"a proxy", 200, `{"ready":true,"connections":3}`, nil, exitOK, "ready\n", ""},
		{"a proxy that drains", 503, `{"ready":false,"problems":["draining","stale"]}`, nil, exitError, "", "hallpass: not ready: 503 Service Unavailable: draining; stale\n"},
		{"for a script", 200, `{"ready":true,"connections":3}`, []string{"-o", "json"}, exitOK, "{\n  \"detail\": {\n    \"ready\": true,\n    \"connections\": 3\n  },\n  \"ready\": true\n}\n", ""},
		{"something else", 503, "upstream gone", nil, exitError, "", "hallpass: not ready: 503 Service Unavailable: upstream gone\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body)) // the caller may be gone
			}))
			defer s.Close()
			got := run(t, nil, append([]string{"health", strings.TrimPrefix(s.URL, "http://")}, tt.args...)...)
			if want := (ran{tt.exit, tt.stdout, tt.errs}); got != want {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
		})
	}
}
