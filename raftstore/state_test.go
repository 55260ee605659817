package raftstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func newTestState(t *testing.T) *state {
	t.Helper()
	s, err := openState(filepath.Join(t.TempDir(), stateFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.close(false); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

// write runs fn in a transaction of the Machine's state.
func (s *state) write(at position, fn func(tx *boltTx)) error {
	_, err := s.update(func(t *boltTx, _ position) (position, error) {
		fn(t)
		return at, nil
	})
	return err
}

// A boltTx behaves as a sorted map does, also while a Scan's own fn writes.
func TestTxIsAMap(t *testing.T) {
	s := newTestState(t)
	key := rapid.SliceOfN(rapid.SampledFrom([]byte("ab\x00\xff")), 1, 4)
	rapid.Check(t, func(rt *rapid.T) {
		want := map[string]string{}
		err := s.write(position{1, 1}, func(tx *boltTx) {
			var old [][]byte
			tx.Scan(nil, nil, func(k, _ []byte) bool { old = append(old, bytes.Clone(k)); return true })
			for _, k := range old {
				tx.Delete(k)
			}
			for range rapid.IntRange(1, 60).Draw(rt, "steps") {
				k := key.Draw(rt, "key")
				switch rapid.IntRange(0, 4).Draw(rt, "what") {
				case 4: // what comes after an entry at which nodes compare their states
					if err := tx.flush(); err != nil {
						rt.Fatal(err)
					}
				case 0:
					v := rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(rt, "value")
					tx.Put(k, v)
					want[string(k)] = string(v)
					clear(v) // the caller may use its buffer again
				case 1:
					tx.Delete(k)
					delete(want, string(k))
				case 2:
					v := tx.Get(k)
					w, ok := want[string(k)]
					if (v != nil) != ok || string(v) != w {
						rt.Fatalf("Get(%q) = %q, want %q, %v", k, v, w, ok)
					}
				default:
					checkScan(rt, tx, want, key)
				}
			}
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func checkScan(rt *rapid.T, tx *boltTx, want map[string]string, key *rapid.Generator[[]byte]) {
	prefix := rapid.SliceOfN(rapid.SampledFrom([]byte("ab\xff")), 0, 2).Draw(rt, "prefix")
	from := rapid.Ptr(key, true).Draw(rt, "from")
	var start []byte
	if from != nil {
		start = *from
	}
	last := ""
	tx.Scan(prefix, start, func(k, v []byte) bool {
		if string(k) <= last && last != "" {
			rt.Fatalf("Scan went from %q to %q", last, k)
		}
		next, ok := least(want, string(prefix), string(start), last)
		if !ok || next != string(k) || want[next] != string(v) {
			rt.Fatalf("Scan(%q, %q) gives %q=%q after %q, want %q=%q", prefix, start, k, v, last, next, want[next])
		}
		last = string(k)
		for range rapid.IntRange(0, 2).Draw(rt, "writes in the scan") {
			w := key.Draw(rt, "key in the scan")
			if rapid.Bool().Draw(rt, "delete") {
				tx.Delete(w)
				delete(want, string(w))
			} else {
				tx.Put(w, []byte("new"))
				want[string(w)] = "new"
			}
		}
		return true
	})
	if next, ok := least(want, string(prefix), string(start), last); ok {
		rt.Fatalf("Scan(%q, %q) ended after %q and left %q out", prefix, start, last, next)
	}
}

// least is the least key of the map with the prefix, not below from and above last; "" is no last.
func least(m map[string]string, prefix, from, last string) (string, bool) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if strings.HasPrefix(k, prefix) && k >= from && (last == "" || k > last) {
			return k, true
		}
	}
	return "", false
}

func TestEmptyKey(t *testing.T) {
	s := newTestState(t)
	err := s.write(position{1, 1}, func(tx *boltTx) {
		if v := tx.Get(nil); v != nil {
			t.Errorf("Get of the empty key = %q", v)
		}
		tx.Put(nil, []byte("x"))
	})
	if err == nil {
		t.Error("a Put that bbolt refuses went unnoticed")
	}
}

func TestStateHashIsOfTheContent(t *testing.T) {
	a, b := newTestState(t), newTestState(t)
	for _, k := range []string{"1", "2", "3"} {
		if err := a.write(position{7, 1}, func(tx *boltTx) { tx.Put([]byte(k), []byte("v"+k)) }); err != nil {
			t.Fatal(err)
		}
	}
	err := b.write(position{7, 1}, func(tx *boltTx) {
		for _, k := range []string{"3", "x", "1", "2"} {
			tx.Put([]byte(k), []byte("v"+k))
		}
		tx.Delete([]byte("x"))
	})
	if err != nil {
		t.Fatal(err)
	}
	hash := func(s *state) [32]byte {
		_, c, err := s.content()
		if err != nil {
			t.Fatal(err)
		}
		return c.hash()
	}
	if hash(a) != hash(b) {
		t.Error("one content, two hashes")
	}
	// The same bytes, split differently between key and value.
	if err := b.write(position{7, 1}, func(tx *boltTx) {
		tx.Delete([]byte("1"))
		tx.Put([]byte("1v"), []byte("1"))
	}); err != nil {
		t.Fatal(err)
	}
	if hash(a) == hash(b) {
		t.Error("two contents, one hash")
	}
}

func TestReaderKeepsItsState(t *testing.T) {
	s := newTestState(t)
	put := func(v string) {
		if err := s.write(position{1, 1}, func(tx *boltTx) { tx.Put([]byte("k"), []byte(v)) }); err != nil {
			t.Fatal(err)
		}
	}
	put("old")
	err := s.view(func(r *boltTx, _ position) error {
		put("new")
		if got := string(r.Get([]byte("k"))); got != "old" {
			t.Errorf("a view saw a later write: %q", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWatermark(t *testing.T) {
	w := newWatermark()
	w.set(5)
	w.set(3)
	if got, _ := w.get(); got != 5 {
		t.Errorf("it fell to %d", got)
	}
	type result struct {
		Index uint64
		Err   error
	}
	results := make(chan result)
	closed := make(chan struct{})
	for range 3 {
		go func() {
			i, err := w.wait(context.Background(), 5, closed)
			results <- result{i, err}
		}()
	}
	time.Sleep(time.Millisecond)
	w.set(9)
	for range 3 {
		if diff := cmp.Diff(result{9, nil}, <-results); diff != "" {
			t.Error(diff)
		}
	}
	close(closed)
	if _, err := w.wait(context.Background(), 9, closed); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// rot changes bytes of a file under whoever has it open.
func rot(t *testing.T, path, from, to string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte(from))
		if i < 0 {
			break
		}
		found = true
		if _, err := file.WriteAt([]byte(to), int64(at+i)); err != nil {
			t.Fatal(err)
		}
		at += i + len(from)
	}
	if err := file.Close(); err != nil || !found {
		t.Fatalf("%s is not there, %v", from, err)
	}
}
