package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// manyNotes is more than a chunk, and no whole number of them.
const manyNotes = RecordChunk + 150

// note has the cluster append records, and returns the index of the last.
func (c *cluster) note(from, to int) (index uint64) {
	c.t.Helper()
	for i := from; i < to; i++ {
		index, _ = c.propose("note %d", i)
	}
	return index
}

// compact has the nodes that run take a snapshot and drop their logs.
func (c *cluster) compact(index uint64) {
	c.t.Helper()
	for _, s := range c.nodes {
		await(c.t, s, index)
		eventually(c.t, "snapshot", s.Snapshot)
	}
}

// whole waits until the node lacks no record, and compares what it has itself with what was appended.
func whole(t testing.TB, s *Store, n int) {
	t.Helper()
	eventually(t, "all records at "+s.cfg.ID, func() error {
		if total, missing := s.records.count(); total != uint64(n) || missing > 0 {
			return fmt.Errorf("%d of %d are missing, want %d", missing, total, n)
		}
		return nil
	})
	got, err := readAll(s.records, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, record := range got {
		if record != fmt.Sprintf("note %d", i) {
			t.Fatalf("%s: record %d is %q", s.cfg.ID, i, record)
		}
	}
}

// A node that was sent a snapshot has the state at once and fetches the records, also when it is made anew from nothing.
func TestRecordsAreFetchedAfterASnapshot(t *testing.T) {
	for name, prepare := range map[string]func(c *cluster, id string){
		"that was away": func(*cluster, string) {},
		"with an empty disk": func(c *cluster, id string) {
			if err := os.RemoveAll(c.dirs[id]); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, func(_ string, cfg *Config) { cfg.TrailingLogs = 10 })
			c.note(0, 10)
			id := c.followers()[0].cfg.ID
			c.kill(id)
			c.compact(c.note(10, manyNotes))
			prepare(c, id)
			s := c.start(id)
			whole(t, s, manyNotes)
			index := c.note(manyNotes, manyNotes+5)
			await(t, s, index)
			whole(t, s, manyNotes+5)
			// What it fetched is as good as what it wrote: it serves a third one, and comes back with it.
			c.stop(id)
			s = c.start(id)
			index = c.note(manyNotes+5, manyNotes+6)
			await(t, s, index)
			whole(t, s, manyNotes+6)
		})
	}
}

// While records are missing a reader gets them from another node, or hears that they are missing.
func TestReadingMissingRecords(t *testing.T) {
	c := newCluster(t, nil)
	index := c.note(0, manyNotes)
	for _, s := range c.nodes {
		await(t, s, index)
	}
	s := c.followers()[0]
	s.records.writing.Lock() // so that nothing is filled in
	defer s.records.writing.Unlock()
	for len(s.records.segments) > 0 {
		if err := s.records.drop(0); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	read := func(ctx context.Context) error {
		return s.ReadRecords(ctx, 3, func(number uint64, record []byte) bool {
			if want := fmt.Sprintf("note %d", 3+n); string(record) != want || number != uint64(3+n) {
				t.Errorf("record %d is %q, want %q", number, record, want)
			}
			n++
			return true
		})
	}
	if err := read(t.Context()); err != nil || n != manyNotes-3 {
		t.Errorf("%d records, %v", n, err)
	}
	for _, m := range c.members {
		if m.ID != s.cfg.ID {
			c.kill(m.ID)
		}
	}
	n = 0
	if err := read(t.Context()); !errors.Is(err, ErrRecordsMissing) || n != 0 {
		t.Errorf("with nobody to ask: %d records, %v", n, err)
	}
}

// forge rewrites a record in a stopped node's segment, with the right checksum.
func forge(t *testing.T, dir string, number uint64, record string) {
	t.Helper()
	path := filepath.Join(dir, recordsDir, (&recordSegment{}).name())
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := appendFrame(nil, number, fmt.Appendf(nil, "note %d", number))
	forged := appendFrame(nil, number, []byte(record))
	if len(old) != len(forged) || bytes.Count(b, old) != 1 {
		t.Fatal("the record to be forged is not there")
	}
	if err := os.WriteFile(path, bytes.Replace(b, old, forged, 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Nobody is believed: records that another node has wrong are not taken from it, and what lies wrong on a node's own disk
// is found when it starts after a crash.
func TestForgedRecordsAreRefused(t *testing.T) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.TrailingLogs = 10 })
	index := c.note(0, manyNotes)
	c.compact(index)
	followers := c.followers()
	liar, id := followers[0].cfg.ID, followers[1].cfg.ID
	c.stop(liar)
	forge(t, c.dirs[liar], 7, "evil 7")
	c.start(liar)
	c.stop(id)
	if err := os.RemoveAll(c.dirs[id]); err != nil {
		t.Fatal(err)
	}
	s := c.start(id)
	await(t, s, index)
	whole(t, s, manyNotes)
	list, err := s.fetchFrom(t.Context(), liar, 0)
	if err == nil || !strings.Contains(err.Error(), "evil 7") {
		t.Errorf("from the liar: %d records, %v", len(list), err)
	}

	c.kill(liar)
	s = c.start(liar)
	eventually(t, "the forgery to be found", func() error {
		if got, err := readAll(s.records, 7); err != nil || got[0] != "note 7" {
			return fmt.Errorf("record 7: %q, %w", got, err)
		}
		return nil
	})
	whole(t, s, manyNotes)
}

// A crash between the records and the state that counts them leaves too many; a power failure leaves too few, of which
// some are torn. Either way the log is applied again and the records are what they were.
func TestRecordsAfterACrash(t *testing.T) {
	c := newCluster(t, nil)
	index := c.note(0, 20)
	c.compact(index)
	c.note(20, manyNotes)
	for name, spoil := range map[string]func(b []byte) []byte{
		"records that no state counts": func(b []byte) []byte {
			return appendFrame(appendFrame(b, manyNotes, []byte("never acknowledged")), manyNotes+1, []byte("nor this"))
		},
		"a torn one":             func(b []byte) []byte { return append(b, appendFrame(nil, manyNotes, noted(36))[:20]...) },
		"a hole":                 func(b []byte) []byte { return append(b, make([]byte, 4096)...) },
		"half of them":           func(b []byte) []byte { return b[:len(b)/2] },
		"pages that never came":  func(b []byte) []byte { clear(b[len(b)/2:]); return b },
		"nothing but the header": func(b []byte) []byte { return b[:segmentHeader] },
		"not even that":          func([]byte) []byte { return nil },
		"another file's bytes":   func(b []byte) []byte { return bytes.Repeat([]byte{0xa5}, len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			id := c.followers()[0].cfg.ID
			c.kill(id)
			growing, err := filepath.Glob(filepath.Join(c.dirs[id], recordsDir, "*.log"))
			if err != nil || len(growing) == 0 {
				t.Fatalf("segments: %v, %v", growing, err)
			}
			path := growing[len(growing)-1]
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			s := c.start(id)
			index, _ := c.propose("set after crash")
			await(t, s, index)
			whole(t, s, manyNotes)
			c.agree(index)
		})
	}
}

// Without the directory, and also when nobody else has what was in it, a node starts and says what it lacks.
func TestLostRecords(t *testing.T) {
	c := newCluster(t, nil)
	index := c.note(0, manyNotes)
	c.compact(index)
	id := c.followers()[0].cfg.ID
	c.stop(id)
	if err := os.RemoveAll(filepath.Join(c.dirs[id], recordsDir)); err != nil {
		t.Fatal(err)
	}
	s := c.start(id)
	whole(t, s, manyNotes)

	for _, m := range c.members {
		c.stop(m.ID)
		if err := os.RemoveAll(filepath.Join(c.dirs[m.ID], recordsDir)); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.members {
		c.start(m.ID)
	}
	index = c.note(manyNotes, manyNotes+3)
	for id, s := range c.nodes {
		await(t, s, index)
		if st := s.Status(); st.Records != manyNotes+3 || st.RecordsMissing != manyNotes {
			t.Errorf("%s: %d records, %d missing", id, st.Records, st.RecordsMissing)
		}
		err := s.ReadRecords(t.Context(), 0, func(uint64, []byte) bool { return true })
		if !errors.Is(err, ErrRecordsMissing) {
			t.Errorf("%s: %v, want ErrRecordsMissing", id, err)
		}
		if got, err := readAll(s.records, manyNotes); err != nil || len(got) != 3 {
			t.Errorf("%s: what came since: %q, %v", id, got, err)
		}
	}
}

// Entries are dropped from the log once a snapshot covers them, so a snapshot waits for the records; if they cannot be
// brought to the disk, the node halts before anything is lost.
func TestSnapshotWaitsForRecords(t *testing.T) {
	c := newCluster(t, nil)
	index := c.note(0, 10)
	s := c.followers()[0]
	await(t, s, index)
	s.records.mu.Lock()
	s.records.dir = filepath.Join(s.records.dir, "gone") // as good as a disk that fails
	s.records.mu.Unlock()
	if err := s.Snapshot(); err == nil {
		t.Error("a snapshot was taken that covers records which are nowhere")
	}
	select {
	case <-s.Done():
	default:
		t.Error("the node goes on")
	}
	c.stop(s.cfg.ID)
	s = c.start(s.cfg.ID)
	index = c.note(10, 11)
	await(t, s, index)
	whole(t, s, 11)
}
