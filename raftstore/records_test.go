package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// newRecords has small segments.
func newRecords(t interface {
	Helper()
	Fatal(args ...any)
}, dir string,
) *records {
	t.Helper()
	r, err := openRecords(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r.full = 600
	return r
}

// readAll is every record up to the first that is missing.
func readAll(r *records, from uint64) (list []string, err error) {
	_, err = r.read(from, func(_ uint64, record []byte) bool {
		list = append(list, string(record))
		return true
	})
	return list, err
}

func noted(n int) []byte { return fmt.Appendf(nil, "record %d%s", n, strings.Repeat(".", n%37)) }

func notes(from, to int) (list [][]byte) {
	for n := from; n < to; n++ {
		list = append(list, noted(n))
	}
	return list
}

// Whatever is appended, cut back, synced, left out and filled in, also with stops in between: what is read is what was
// written last, and gap says what is not there.
func TestRecordsAreAList(t *testing.T) {
	top := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		dir := filepath.Join(top, fmt.Sprint(runs))
		r := newRecords(t, dir)
		defer func() { _ = r.close() }()
		var want []string // "" is missing
		life := 0
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0: // entries applied again after a crash
				at := rapid.IntRange(0, len(want)).Draw(t, "cut")
				life++
				want = append(want[:at:at], fmt.Sprintf("life %d", life))
				if err := r.append(uint64(at), [][]byte{[]byte(want[at])}); err != nil {
					t.Fatal(err)
				}
			case 1: // a snapshot that is ahead
				for range rapid.IntRange(1, 150).Draw(t, "ahead") {
					want = append(want, "")
				}
				r.expect(uint64(len(want)), false)
			case 2: // some of a gap is fetched
				at := slices.Index(want, "")
				if at < 0 {
					continue
				}
				var list [][]byte
				for n := at; n < len(want) && want[n] == "" && len(list) < 40; n++ {
					want[n] = string(noted(n))
					list = append(list, noted(n))
				}
				if err := r.fill(uint64(at), append(list, []byte("not to be written over the next"))[:len(list)]); err != nil {
					t.Fatal(err)
				}
			case 3:
				if err := r.sync(); err != nil {
					t.Fatal(err)
				}
			case 4:
				if err := r.close(); err != nil {
					t.Fatal(err)
				}
				r = newRecords(t, dir)
				r.expect(uint64(len(want)), false)
			default:
				n := len(want)
				list := notes(n, n+rapid.IntRange(1, 90).Draw(t, "more"))
				for _, record := range list {
					want = append(want, string(record))
				}
				if err := r.append(uint64(n), list); err != nil {
					t.Fatal(err)
				}
			}
			checkRecords(t, r, want)
		}
	})
}

// checkRecords reads from each place where reading begins anew.
func checkRecords(t *rapid.T, r *records, want []string) {
	missing := uint64(0)
	for n := 0; n < len(want); {
		if want[n] == "" {
			missing++
			n++
			continue
		}
		end := n
		for end < len(want) && want[end] != "" {
			end++
		}
		from := rapid.IntRange(n, end-1).Draw(t, "from")
		got, err := readAll(r, uint64(from))
		if end < len(want) != errors.Is(err, ErrRecordsMissing) || err != nil && end == len(want) {
			t.Fatalf("records from %d to %d of %d: %v", from, end, len(want), err)
		}
		if !slices.Equal(got, want[from:end]) {
			t.Fatalf("records from %d are %q, want %q", from, got, want[from:end])
		}
		n = end
	}
	if total, n := r.count(); total != uint64(len(want)) || n != missing {
		t.Fatalf("%d records, %d missing, want %d and %d", total, n, len(want), missing)
	}
	gap, ok := r.gap()
	if at := slices.Index(want, ""); ok != (at >= 0) || ok && gap.first != uint64(at) {
		t.Fatalf("the gap is %v, want one at %d", gap, at)
	}
}

// No damage to a file yields a record that is not what was written: it is found, and what is fetched again heals it.
func TestDamagedSegments(t *testing.T) {
	const n = 105
	pristine := filepath.Join(t.TempDir(), "pristine")
	r := newRecords(t, pristine)
	for at := 0; at < n; at += 20 {
		if err := errors.Join(r.append(uint64(at), notes(at, min(at+20, n))), r.sync()); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(pristine)
	if err != nil || len(files) < 3 || !strings.HasSuffix(files[0].Name(), ".seg") || !strings.HasSuffix(files[len(files)-1].Name(), ".log") {
		t.Fatalf("segments: %v, %v", files, err)
	}
	for _, e := range []os.DirEntry{files[0], files[1], files[len(files)-1]} {
		whole, err := os.ReadFile(filepath.Join(pristine, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(whole); at += 7 {
			flipped := bytes.Clone(whole)
			flipped[at] ^= 0x20
			for what, b := range map[string][]byte{"flipped": flipped, "cut": whole[:at], "torn": append(bytes.Clone(whole[:at]), make([]byte, 50)...)} {
				healsFrom(t, pristine, fmt.Sprintf("%s: %s at %d", e.Name(), what, at), e.Name(), b, n)
			}
		}
		healsFrom(t, pristine, e.Name()+": gone", e.Name(), nil, n)
	}
}

func healsFrom(t *testing.T, pristine, what, name string, content []byte, n int) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "records")
	if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	err := os.Remove(path)
	if content != nil {
		err = os.WriteFile(path, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := newRecords(t, dir)
	defer func() { _ = r.close() }()
	r.expect(uint64(n), false)
	for range 2 * n {
		got, err := readAll(r, 0)
		for i, record := range got {
			if record != string(noted(i)) {
				t.Fatalf("%s: record %d is %q", what, i, record)
			}
		}
		if err == nil && len(got) == n {
			return
		}
		if err == nil || !errors.Is(err, ErrRecordsMissing) {
			t.Fatalf("%s: %d records, %v", what, len(got), err)
		}
		gap, ok := r.gap()
		if !ok || gap.first != uint64(len(got)) {
			t.Fatalf("%s: after %d records the gap is %v", what, len(got), gap)
		}
		if err := r.fill(gap.first, notes(int(gap.first), int(gap.end))); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("%s: it does not heal", what)
}

// A damaged file is kept, for whoever has no other.
func TestDamagedSegmentIsKept(t *testing.T) {
	dir := t.TempDir()
	r := newRecords(t, dir)
	if err := errors.Join(r.append(0, notes(0, 60)), r.sync()); err != nil {
		t.Fatal(err)
	}
	damage(t, filepath.Join(dir, r.segments[0].name()))
	if _, err := readAll(r, 0); !errors.Is(err, ErrRecordsMissing) {
		t.Fatalf("read: %v", err)
	}
	kept, err := filepath.Glob(filepath.Join(dir, "*.damaged"))
	if err != nil || len(kept) != 1 {
		t.Errorf("kept: %v, %v", kept, err)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	r = newRecords(t, dir)
	if err := r.close(); err != nil || len(r.segments) != 1 {
		t.Errorf("after a start: %d segments, %v", len(r.segments), err)
	}
}

// Readers are not disturbed by what is appended, sealed and cut meanwhile.
func TestRecordsAreReadWhileTheyChange(t *testing.T) {
	r := newRecords(t, t.TempDir())
	defer func() { _ = r.close() }()
	const n = 3000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for at := 0; at < n; at += 10 {
			err := r.append(uint64(at), notes(at, at+10))
			if at%200 == 0 {
				err = errors.Join(err, r.sync())
			}
			if at%500 == 490 { // applied again
				err = errors.Join(err, r.append(uint64(at-300), notes(at-300, at+10)))
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		got, err := readAll(r, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, record := range got {
			if record != string(noted(i)) {
				t.Fatalf("record %d is %q", i, record)
			}
		}
	}
	if got, err := readAll(r, 0); err != nil || len(got) != n {
		t.Errorf("%d records, %v", len(got), err)
	}
}
