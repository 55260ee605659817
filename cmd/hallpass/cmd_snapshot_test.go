package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
)

// A backup that was cut off, or is none, never gets the name of one, and does not take the last one's place.
func TestSnapshotSaveIsAllOrNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		stderr string
		status int
	}{
		"no snapshot": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, "at byte 5", exitError},
		"nothing":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }, "cut short", exitError},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<17))
			panic(http.ErrAbortHandler)
		}, "the answer was cut off", exitError},
		"denied": {func(w http.ResponseWriter, _ *http.Request) {
			reply(w, http.StatusForbidden, api.NewProblem(api.CodeDenied, "only an admin takes a snapshot", "ask"))
		}, "only an admin", exitDenied},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.mux.HandleFunc("GET /v1/cluster/snapshot", tt.answer)
			path := filepath.Join(t.TempDir(), "cluster.snapshot")
			if err := os.WriteFile(path, []byte("yesterday's"), 0o600); err != nil {
				t.Fatal(err)
			}
			got := f.as(t, f.identity, "snapshot", "save", path)
			if got.status != tt.status || got.stdout != "" || !strings.Contains(got.stderr, tt.stderr) {
				t.Errorf("want status %d and %q, got %+v", tt.status, tt.stderr, got)
			}
			if kept, err := os.ReadFile(path); err != nil || string(kept) != "yesterday's" {
				t.Errorf("in its place is %q, %v", kept, err)
			}
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestSnapshotAsksForBodies(t *testing.T) {
	f := newFake(t)
	var asked []string
	f.mux.HandleFunc("GET /v1/cluster/snapshot", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		reply(w, http.StatusForbidden, api.NewProblem(api.CodeDenied, "no", ""))
	})
	path := filepath.Join(t.TempDir(), "s")
	f.as(t, f.identity, "snapshot", "save", path)
	f.as(t, f.identity, "snapshot", "save", "--without-audit-bodies", path)
	if len(asked) != 2 || asked[0] != "" || asked[1] != "audit_bodies=false" {
		t.Errorf("asked with %q", asked)
	}
	for where, says := range map[string]string{
		t.TempDir():                   "is not a file",
		filepath.Join(path, "a", "b"): "no file can be made in " + filepath.Join(path, "a") + ": no such file or directory",
	} {
		if got := f.as(t, f.identity, "snapshot", "save", where); got.status != exitError || !strings.Contains(got.stderr, says) {
			t.Errorf("%s: %+v", where, got)
		}
	}
	if len(asked) != 2 {
		t.Errorf("a snapshot is asked for that has no place: %q", asked)
	}
	for _, args := range [][]string{{"snapshot"}, {"snapshot", "save"}, {"snapshot", "inspect"}, {"snapshot", "inspect", "a", "b"}} {
		if got := run(t, nil, args...); got.status != exitUsage {
			t.Errorf("%v: %+v", args, got)
		}
	}
}
