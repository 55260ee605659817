package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDamagedRevocations breaks the file in every place where one bit or the end of it can be lost: the proxy starts with
// all that it was told, or says which file is damaged and what to do. A grant that it was told of is never forgotten.
func TestDamagedRevocations(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	path := filepath.Join(t.TempDir(), "revocations.json")
	open := func() (*revocations, error) {
		return openRevocations(&config{
			stateFile: path, skew: time.Minute, now: func() time.Time { return now }, log: slog.New(slog.DiscardHandler),
		})
	}
	whole, err := open()
	if err != nil {
		t.Fatal(err)
	}
	err = whole.apply(feedDoc{
		Epoch: 2, Revision: 10, VerifiedAt: now,
		Grants:  []feedEntry{{"0199a", now.Add(time.Hour)}, {ID: "0199b"}},
		Issuers: []feedEntry{{"c0ffee", now.Add(time.Hour)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := whole.cur.Load()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := open()
		if err != nil {
			if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), path+" is damaged; restore it") {
				t.Errorf("%s: refused with %q", what, err)
			}
			return
		}
		got := r.cur.Load()
		if !maps.Equal(got.grants, want.grants) || !maps.Equal(got.issuers, want.issuers) ||
			got.epoch != want.epoch || got.revision != want.revision || !r.fresh.Load().verified.Equal(now) {
			t.Errorf("%s: believed:\n%s", what, data)
		}
	}
	for i := range good {
		try(fmt.Sprintf("cut after %d bytes", i), good[:i])
		for bit := range 8 {
			data := bytes.Clone(good)
			data[i] ^= 1 << bit
			try(fmt.Sprintf("bit %d of byte %d flipped", bit, i), data)
		}
		try(fmt.Sprintf("zeros from byte %d", i), append(bytes.Clone(good[:i]), make([]byte, len(good)-i)...))
	}
	// What a version before the sum wrote is read.
	old := []byte(`{"epoch":2,"revision":10,"grants":[{"id":"0199a","until":"2026-11-23T13:00:00Z"},` +
		`{"id":"0199b","until":"0001-01-01T00:00:00Z"}],"issuers":[{"id":"c0ffee","until":"2026-11-23T13:00:00Z"}],` +
		`"verified_at":"2026-11-23T12:00:00Z"}` + "\n")
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := open(); err != nil || !maps.Equal(r.cur.Load().grants, want.grants) {
		t.Errorf("a file without a sum: %v", err)
	}
}
