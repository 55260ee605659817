package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

// onBothLogs runs a test with each format of the log.
func onBothLogs(t *testing.T, test func(t *testing.T, format LogFormat)) {
	for _, format := range []LogFormat{LogBolt, LogWAL} {
		t.Run(string(format), func(t *testing.T) { test(t, format) })
	}
}

// smallSegment makes a WAL rotate every few entries.
const smallSegment = 4096

func openTestLog(t *testing.T, dir string, format LogFormat) LogStore {
	t.Helper()
	open := openBolt
	if format == LogWAL {
		open = func(dir string) (LogStore, error) { return openWAL(dir, smallSegment) }
	}
	log, err := open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() }) // a second one does nothing
	return log
}

// entry is what the log holds at an index; the sizes differ, and some are larger than a page.
func entry(index uint64) *raft.Log {
	return &raft.Log{
		Index: index, Term: 1 + index/10, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(index) | 1}, int(index*337%5000)+1),
		Extensions: []byte{byte(index)}, AppendedAt: time.Unix(1_700_000_000, int64(index)).UTC(),
	}
}

func appendTo(t *testing.T, log LogStore, from, to uint64) {
	t.Helper()
	var batch []*raft.Log
	for i := from; i <= to; i++ {
		batch = append(batch, entry(i))
	}
	if err := log.StoreLogs(batch); err != nil {
		t.Fatalf("append %d to %d: %v", from, to, err)
	}
}

// holds checks that a log holds exactly the entries of a range; 0, 0 is an empty one.
func holds(t *testing.T, log LogStore, from, to uint64) {
	t.Helper()
	first, err := log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	if first != from || last != to {
		t.Errorf("the log holds %d to %d, want %d to %d", first, last, from, to)
		return
	}
	for i := from; i <= to && i > 0; i++ {
		var got raft.Log
		if err := log.GetLog(i, &got); err != nil {
			t.Errorf("entry %d: %v", i, err)
		} else if diff := cmp.Diff(entry(i), &got); diff != "" {
			t.Errorf("entry %d (-want +got):\n%s", i, diff)
		}
	}
	for _, i := range []uint64{from - 1, to + 1} {
		if err := log.GetLog(i, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("entry %d, which is not there: %v, want ErrLogNotFound", i, err)
		}
	}
}

func reopened(t *testing.T, log LogStore, dir string, format LogFormat) LogStore {
	t.Helper()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return openTestLog(t, dir, format)
}

func TestLogKeepsWhatItWasGiven(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		dir := t.TempDir()
		log := openTestLog(t, dir, format)
		holds(t, log, 0, 0)
		appendTo(t, log, 1, 1)
		appendTo(t, log, 2, 30)
		if err := log.StoreLog(entry(31)); err != nil {
			t.Fatal(err)
		}
		holds(t, log, 1, 31)
		for i := uint64(32); i <= 44; i++ {
			log = reopened(t, log, dir, format) // at each fill of the last segment
			appendTo(t, log, i, i)
		}
		holds(t, reopened(t, log, dir, format), 1, 44)
	})
}

func TestLogKeepsVotes(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		dir := t.TempDir()
		log := openTestLog(t, dir, format)
		if v, err := log.Get([]byte("vote")); len(v) != 0 || err != nil && err.Error() != "not found" {
			t.Errorf("a vote never given: %q, %v", v, err)
		}
		if n, err := log.GetUint64([]byte("term")); n != 0 || err != nil && err.Error() != "not found" {
			t.Errorf("a term never seen: %d, %v", n, err)
		}
		for i := uint64(1); i < 4; i++ {
			if err := errors.Join(log.Set([]byte("vote"), fmt.Appendf(nil, "n%d", i)), log.SetUint64([]byte("term"), i<<40)); err != nil {
				t.Fatal(err)
			}
		}
		log = reopened(t, log, dir, format)
		vote, err := log.Get([]byte("vote"))
		if err != nil || string(vote) != "n3" {
			t.Errorf("vote %q, %v", vote, err)
		}
		if term, err := log.GetUint64([]byte("term")); err != nil || term != 3<<40 {
			t.Errorf("term %d, %v", term, err)
		}
	})
}

// Cut at the beginning by compaction, at the end where it conflicts with a leader's, and whole when a snapshot replaces it.
func TestLogIsCut(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		for name, tt := range map[string]struct {
			cut      [2]uint64
			from, to uint64 // what is left
			next     uint64
		}{
			"beginning":            {[2]uint64{1, 17}, 18, 40, 41},
			"all but one":          {[2]uint64{1, 39}, 40, 40, 41},
			"end":                  {[2]uint64{23, 40}, 1, 22, 23},
			"last":                 {[2]uint64{40, 40}, 1, 39, 40},
			"everything":           {[2]uint64{1, 40}, 0, 0, 41},
			"everything, gap":      {[2]uint64{1, 40}, 0, 0, 1000},
			"what was never there": {[2]uint64{41, 50}, 1, 40, 41},
		} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				log := openTestLog(t, dir, format)
				appendTo(t, log, 1, 40)
				if err := log.DeleteRange(tt.cut[0], tt.cut[1]); err != nil {
					t.Fatal(err)
				}
				holds(t, log, tt.from, tt.to)
				log = reopened(t, log, dir, format)
				holds(t, log, tt.from, tt.to)
				appendTo(t, log, tt.next, tt.next+20)
				log = reopened(t, log, dir, format)
				if tt.from == 0 {
					tt.from = tt.next
				}
				holds(t, log, tt.from, tt.next+20)
			})
		}
	})
}

func TestLogIsCutWithinASegment(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		dir := t.TempDir()
		log := openTestLog(t, dir, format)
		appendTo(t, log, 1, 4)
		if err := log.DeleteRange(1, 2); err != nil {
			t.Fatal(err)
		}
		holds(t, log, 3, 4)
		if err := log.DeleteRange(4, 4); err != nil {
			t.Fatal(err)
		}
		holds(t, log, 3, 3)
		log = reopened(t, log, dir, format)
		appendTo(t, log, 4, 4)
		holds(t, log, 3, 4)
	})
}

// killedCopy is the directory as a process leaves it that is killed at this moment.
func killedCopy(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Whatever was acknowledged is there after a kill, at every entry, and the log takes more.
func TestLogSurvivesKills(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		dir := t.TempDir()
		log := openTestLog(t, dir, format)
		for i := uint64(1); i <= 16; i++ {
			appendTo(t, log, i, i)
			if i%7 == 0 {
				if err := log.DeleteRange(i-2, i); err != nil {
					t.Fatal(err)
				}
				appendTo(t, log, i-2, i)
			}
			to := killedCopy(t, dir)
			after := openTestLog(t, to, format)
			holds(t, after, 1, i)
			appendTo(t, after, i+1, i+3)
			holds(t, reopened(t, after, to, format), 1, i+3)
		}
	})
}

func TestLogInUse(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		t.Parallel()
		dir := t.TempDir()
		openTestLog(t, dir, format)
		log, err := openLog(dir, format)
		if err == nil {
			t.Fatal(errors.Join(errors.New("two have one log open"), log.Close()))
		}
		if !strings.Contains(err.Error(), "another process") {
			t.Errorf("error %q", err)
		}
	})
}

// A node that began with an empty log in another format would vote as if it had never promised anything.
func TestLogOfAnotherFormat(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		dir := t.TempDir()
		if err := openTestLog(t, dir, format).Close(); err != nil {
			t.Fatal(err)
		}
		other := map[LogFormat]LogFormat{LogBolt: LogWAL, LogWAL: LogBolt}[format]
		log, err := openLog(dir, other)
		if err == nil {
			t.Fatal(errors.Join(fmt.Errorf("a %s log is made beside a %s log", other, format), log.Close()))
		}
		if !errors.Is(err, ErrWrongNode) || !strings.Contains(err.Error(), string(format)) {
			t.Errorf("error %q", err)
		}
		if _, err := os.Stat(filepath.Join(dir, other.file())); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was made: %v", other.file(), err)
		}
	})
}

// Raft must know that a WAL takes no gaps, through all that wraps it.
func TestWatchedLogSaysWhetherItTakesGaps(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		l := newWatchedLog(openTestLog(t, t.TempDir(), format), time.Second, func(err error) { t.Error(err) })
		if got := l.IsMonotonic(); got != (format == LogWAL) {
			t.Errorf("IsMonotonic = %v", got)
		}
	})
}
