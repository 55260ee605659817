package proxy

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestRevocationsAreKept is the table of what news may and may not change.
func TestRevocationsAreKept(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	clk := now
	open := func(path string) *revocations {
		r, err := openRevocations(&config{stateFile: path, skew: time.Minute, now: func() time.Time { return clk }, log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	path := filepath.Join(t.TempDir(), "state.json")
	r := open(path)
	entry := func(id string, in time.Duration) feedEntry { return feedEntry{id, now.Add(in)} }
	has := func(id string) bool { _, ok := r.cur.Load().grants[id]; return ok }

	steps := []struct {
		name  string
		doc   feedDoc
		err   bool
		known []string
		gone  []string
	}{
		{"the first list", feedDoc{Epoch: 2, Revision: 10, Grants: []feedEntry{entry("a", time.Hour), entry("b", 10*time.Minute)}}, false, []string{"a", "b"}, nil},
		{"an entry left out is kept", feedDoc{Epoch: 2, Revision: 11, Grants: []feedEntry{entry("c", time.Hour)}}, false, []string{"a", "b", "c"}, nil},
		{"an older revision", feedDoc{Epoch: 2, Revision: 9, Grants: []feedEntry{entry("late", time.Hour)}}, true, []string{"a", "b", "c", "late"}, nil},
		{"an older epoch", feedDoc{Epoch: 1, Revision: 99}, true, []string{"a", "b", "c"}, nil},
		{"no epoch", feedDoc{}, true, []string{"a", "b", "c"}, nil},
		{"a new epoch with a lower revision", feedDoc{Epoch: 3, Revision: 1, Grants: []feedEntry{entry("d", time.Hour)}}, false, []string{"a", "b", "c", "d"}, nil},
		{"an earlier end does not shorten", feedDoc{Epoch: 3, Revision: 2, Grants: []feedEntry{entry("a", -time.Hour)}}, false, []string{"a"}, nil},
		{"no end is for ever", feedDoc{Epoch: 3, Revision: 3, Grants: []feedEntry{{ID: "e"}}}, false, []string{"e"}, nil},
	}
	for _, s := range steps {
		err := r.apply(s.doc)
		if (err != nil) != s.err {
			t.Errorf("%s: %v", s.name, err)
		}
		for _, id := range s.known {
			if !has(id) {
				t.Errorf("%s: %s is forgotten", s.name, id)
			}
		}
	}
	clk = now.Add(10*time.Minute + 30*time.Second) // past b's end, within the skew
	if err := r.apply(feedDoc{Epoch: 3, Revision: 4}); err != nil || !has("b") {
		t.Errorf("b is forgotten within the skew: %v", err)
	}
	clk = now.Add(12 * time.Minute)
	if err := r.apply(feedDoc{Epoch: 3, Revision: 5}); err != nil || has("b") || !has("a") {
		t.Errorf("b is kept beyond its time, or a is not: %v", err)
	}
	again := open(path)
	if d := again.cur.Load(); d.epoch != 3 || d.revision != 5 || len(d.grants) != len(r.cur.Load().grants) {
		t.Errorf("from disk: %+v", d)
	}
	if err := again.apply(feedDoc{Epoch: 3, Revision: 4}); err == nil {
		t.Error("a restart made the revision go back")
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("%d files left, %v", len(left), err)
	}
}

// TestStateThatCannotBeSaved: the revocation counts at once; saving is tried again.
func TestStateThatCannotBeSaved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	r, err := openRevocations(&config{stateFile: filepath.Join(dir, "state.json"), skew: time.Minute, now: time.Now, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.apply(feedDoc{Epoch: 1, Revision: 1, Grants: []feedEntry{{ID: "a"}}}); err != nil || !r.unsaved {
		t.Errorf("%v, unsaved %v", err, r.unsaved)
	}
	if r.cur.Load().denies(&admission{grantID: "a"}) != reasonRevoked {
		t.Error("not revoked")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.beat(heartbeat{Revision: 1, VerifiedAt: time.Now()}); err != nil || r.unsaved {
		t.Errorf("%v, unsaved %v", err, r.unsaved)
	}
	if _, err := os.Stat(filepath.Join(dir, "state.json")); err != nil {
		t.Error(err)
	}
}

// TestFreshnessIsNotFooled by a node whose clock is ahead, nor by our own being set back.
func TestFreshnessIsNotFooled(t *testing.T) {
	now := time.Now()
	clk := now
	r := &revocations{maxStale: 10 * time.Second, now: func() time.Time { return clk }, log: slog.New(slog.DiscardHandler)}
	r.cur.Store(&denials{})
	r.fresh.Store(&freshness{})
	if !r.stale() {
		t.Error("fresh without any news")
	}
	if err := r.apply(feedDoc{Epoch: 1, Revision: 1, VerifiedAt: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if r.stale() {
		t.Error("stale at once")
	}
	heard := r.fresh.Load().received
	if err := r.beat(heartbeat{Revision: 1, VerifiedAt: now.Add(time.Hour)}); !errors.Is(err, errBehind) || r.fresh.Load().received != heard {
		t.Errorf("a repeated heartbeat is news: %v", err)
	}
	if err := r.beat(heartbeat{Revision: 1}); !errors.Is(err, errBehind) || r.stale() {
		t.Errorf("a heartbeat of a node that knows nothing: %v", err)
	}
	if err := r.apply(feedDoc{Epoch: 1, Revision: 0, VerifiedAt: now.Add(2 * time.Hour)}); !errors.Is(err, errBehind) || r.fresh.Load().received != heard {
		t.Errorf("a list that is behind is news: %v", err)
	}
	clk = now.Add(11 * time.Second)
	if !r.stale() {
		t.Error("a node whose clock is an hour ahead keeps the list fresh")
	}
	clk = now.Add(-time.Hour)
	r.fresh.Store(&freshness{verified: now, received: now.Add(-11 * time.Second)})
	if !r.stale() {
		t.Error("our clock, set back, keeps the list fresh")
	}
}
