package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/raft-wal/segment"
)

// tailOf returns the newest segment of the log in dir.
func tailOf(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, walDir, "*.wal"))
	if err != nil || len(names) == 0 {
		t.Fatalf("segments: %v, %v", names, err)
	}
	return slices.Max(names)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// damaged is a copy of dir in which one segment has other content.
func damaged(t *testing.T, dir, path string, content []byte) string {
	t.Helper()
	to := killedCopy(t, dir)
	if err := os.WriteFile(filepath.Join(to, walDir, filepath.Base(path)), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// tornLog is a log that holds entries 1 to 5, and its last segment as it is once a batch up to 9 was added between two
// offsets. With fills, that batch fills the segment.
func tornLog(t *testing.T, fills bool) (dir, path string, whole []byte, from, to int) {
	t.Helper()
	size := 64 << 10
	if fills {
		size = 8192
	}
	live := t.TempDir()
	log, err := openWAL(live, size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	appendTo(t, log, 1, 2)
	appendTo(t, log, 3, 5)
	dir, path = killedCopy(t, live), tailOf(t, live)
	end := func() int { return (len(bytes.TrimRight(readFile(t, path), "\x00")) + 7) &^ 7 }
	from = end()
	appendTo(t, log, 6, 9)
	return dir, path, readFile(t, path), from, end()
}

// However a crash tears the last batch, what was acknowledged before is known from it.
func TestTornBatchIsSeen(t *testing.T) {
	for _, fills := range []bool{false, true} {
		_, _, whole, from, to := tornLog(t, fills)
		if to-from < 4*walSector {
			t.Fatalf("the last batch has %d bytes: too few to be torn", to-from)
		}
		for what, content := range torn(whole, from, to) {
			scan, torn, err := judgeTail(bytes.NewReader(content), int64(len(content)))
			if err != nil || scan.entries != 5 || scan.index != 0 || scan.end != int64(from) {
				t.Errorf("fills %v, %s: %+v, %v, want 5 entries", fills, what, scan, err)
			}
			if rest := len(bytes.Trim(content[from:], "\x00")) > 0; torn != rest {
				t.Errorf("fills %v, %s: torn: %v, and something is left: %v", fills, what, torn, rest)
			}
		}
	}
}

// torn is a segment as a crash can leave it while the batch between two offsets is written.
func torn(whole []byte, from, to int) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for at := from; at < to; at += 8 {
			prefix := slices.Clone(whole)
			clear(prefix[at:])
			if !yield(fmt.Sprintf("written up to %d", at), prefix) || !yield(fmt.Sprintf("of length %d", at), slices.Clone(whole[:at])) {
				return
			}
		}
		// The last sector holds the end of the batch: without it this is a prefix.
		for at := from; at < to; at = (at + walSector) &^ (walSector - 1) {
			hole := slices.Clone(whole)
			clear(hole[at:min((at+walSector)&^(walSector-1), to)])
			if !yield(fmt.Sprintf("without the sector at %d", at), hole) {
				return
			}
		}
	}
}

// A log with a torn batch opens, takes more, and does not find the torn one again after the next kill.
func TestTornLogGoesOn(t *testing.T) {
	for _, fills := range []bool{false, true} {
		dir, path, whole, from, to := tornLog(t, fills)
		n := 0
		for what, content := range torn(whole, from, to) {
			if n++; n%97 != 0 {
				continue
			}
			bad := damaged(t, dir, path, content)
			log := openTestLog(t, bad, LogWAL)
			holds(t, log, 1, 5)
			appendTo(t, log, 6, 6)
			again := killedCopy(t, bad)
			log = openTestLog(t, again, LogWAL)
			holds(t, log, 1, 6)
			appendTo(t, log, 7, 12)
			holds(t, log, 1, 12)
			if t.Failed() {
				t.Fatalf("fills %v, %s", fills, what)
			}
		}
	}
}

// A bit that flips in what was acknowledged is noticed, wherever it is: in the last batch, in one before, in a segment
// that is full, in the index of one.
func TestFlippedBitIsNoticed(t *testing.T) {
	dir := t.TempDir()
	log, err := openWAL(dir, smallSegment)
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, log, 1, 1)
	for i := uint64(2); i <= 12; i += 2 {
		appendTo(t, log, i, i+1)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	var m walMeta
	state, err := m.BoltMetaDB.Load(filepath.Join(dir, walDir))
	if err != nil || len(state.Segments) < 3 {
		t.Fatalf("segments %+v, %v", state.Segments, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, info := range state.Segments {
		name := segment.FileName(info)
		whole := readFile(t, filepath.Join(dir, walDir, name))
		check := func() error { return judgeSealed(bytes.NewReader(whole), info) }
		if info.SealTime.IsZero() {
			check = func() error { _, _, err := judgeTail(bytes.NewReader(whole), int64(len(whole))); return err }
		}
		if err := check(); err != nil {
			t.Fatal(err)
		}
		for bit := 0; bit < 8*len(bytes.TrimRight(whole, "\x00")); bit += 3 {
			whole[bit/8] ^= 1 << (bit % 8)
			if err := check(); !errors.Is(err, ErrDamagedLog) {
				t.Errorf("%s: bit %d of byte %d: %v, want ErrDamagedLog", name, bit%8, bit/8, err)
			}
			whole[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func TestDamagedLogDoesNotOpen(t *testing.T) {
	dir := t.TempDir()
	log := openTestLog(t, dir, LogWAL)
	appendTo(t, log, 1, 20)
	appendTo(t, log, 21, 30)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(dir, walDir, "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	for name, harm := range map[string]func(dir string) error{
		"flipped": func(dir string) error {
			damage(t, filepath.Join(dir, walDir, filepath.Base(segments[1])))
			return nil
		},
		"gone": func(dir string) error { return os.Remove(filepath.Join(dir, walDir, filepath.Base(segments[0]))) },
	} {
		bad := killedCopy(t, dir)
		if err := harm(bad); err != nil {
			t.Fatal(err)
		}
		log, err := openLog(bad, LogWAL)
		if err == nil {
			t.Fatal(errors.Join(fmt.Errorf("%s: it opens", name), log.Close()))
		}
		if !errors.Is(err, ErrDamagedLog) {
			t.Errorf("%s: error %v, want ErrDamagedLog", name, err)
		}
	}
}
