package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// LogFormat is how a node keeps its log on disk.
type LogFormat string

// A node's log stays in the format it was made in: votes and entries in another would be those of a node that has
// forgotten them.
const (
	LogBolt LogFormat = "bolt" // raft.db, a bbolt file
	LogWAL  LogFormat = "wal"  // the folder wal, of github.com/hashicorp/raft-wal
)

// Valid refuses what is none of them; "" is the default.
func (f LogFormat) Valid() error {
	switch f {
	case "", LogBolt, LogWAL:
		return nil
	}
	return fmt.Errorf("%q: want %s or %s", string(f), LogBolt, LogWAL)
}

// file is its name in the node's directory.
func (f LogFormat) file() string {
	if f == LogWAL {
		return walDir
	}
	return logFile
}

const (
	logFile      = "raft.db"
	logCacheSize = 1024
	logMapSize   = 256 << 20

	// The log is compacted in steps, so that an append never waits for more than one of them.
	compactionStep = 4096
)

// openLog opens the log in dir, and refuses one that is kept in another format.
func openLog(dir string, format LogFormat) (LogStore, error) {
	for _, other := range []LogFormat{LogBolt, LogWAL} {
		path := filepath.Join(dir, other.file())
		if _, err := os.Stat(path); other != format && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(fmt.Errorf("%w: its log is %s, in the format %q, and the config says %q: "+
				"say what it was made with, or replace the node by a new one", ErrWrongNode, path, other, format), err)
		}
	}
	if format == LogWAL {
		return openWAL(dir, walSegmentSize)
	}
	return openBolt(dir)
}

func inUse(path string) error {
	return fmt.Errorf("%s is in use: another process runs on this directory", path)
}

// watchedLog notices a disk that fails or hangs.
//
// A failed write halts the node: it would be elected again and again and accept nothing (raft#614). Nor does raft get
// another request, see Store.admits: when entries were deleted, and those in their place could not be written, raft goes
// on with the old end of the log, and panics when it is told that entries up to there are committed. A write that hangs
// cannot be called off, nor may it be reported as failed, since it can still land; raft's heartbeats go on meanwhile
// and no one else is elected (raft#503). So the write is left alone, and the transport falls silent: see stalled.
type watchedLog struct {
	LogStore
	limit  time.Duration
	halt   func(error)
	origin time.Time
	since  atomic.Int64 // when the write under way began, in ns after origin; 0 when there is none
	failed atomic.Bool  // a write has failed: no other is tried
}

var errWriteFailed = errors.New("an earlier write to the log has failed")

// termKey is where raft keeps the current term.
const termKey = "CurrentTerm"

func newWatchedLog(store LogStore, limit time.Duration, halt func(error)) *watchedLog {
	return &watchedLog{LogStore: store, limit: limit, halt: halt, origin: time.Now()}
}

// stalled reports whether a write has been under way for longer than the limit.
func (l *watchedLog) stalled() bool {
	since := l.since.Load()
	return since != 0 && time.Since(l.origin)-time.Duration(since) > l.limit
}

// write runs one of raft's writes, all of which come from raft's main goroutine.
func (l *watchedLog) write(op string, fn func() error) error {
	if l.failed.Load() {
		return errWriteFailed
	}
	l.since.Store(int64(max(time.Since(l.origin), 1)))
	err := fn()
	l.since.Store(0)
	if err != nil {
		l.failed.Store(true)
		l.halt(fmt.Errorf("%s: %w", op, err))
	}
	return err
}

// IsMonotonic reports whether the log takes no gaps. Raft asks, and clears such a log when a snapshot goes past its end;
// hidden behind this wrapper, a node that was away for long would never get an entry again.
func (l *watchedLog) IsMonotonic() bool {
	log, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && log.IsMonotonic()
}

// whole returns the entry from which on none was missing when the log was opened, 0 when there was none.
func (l *watchedLog) whole() (uint64, error) {
	if log, ok := l.LogStore.(interface{ whole() uint64 }); ok {
		return log.whole(), nil
	}
	return l.FirstIndex()
}

func (l *watchedLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l *watchedLog) StoreLogs(entries []*raft.Log) error {
	return l.write("append to the log", func() error { return l.LogStore.StoreLogs(entries) })
}

func (l *watchedLog) Set(key, value []byte) error {
	return l.write("write a vote", func() error { return l.LogStore.Set(key, value) })
}

// SetUint64 hides from raft that a term could not be kept, as raft panics then and would take the whole process along,
// with no word of why. The node halts, and does no harm on its way there: a term alone promises nothing, and the vote or
// the entry that would come next fails.
func (l *watchedLog) SetUint64(key []byte, value uint64) error {
	err := l.write("write a term", func() error { return l.LogStore.SetUint64(key, value) })
	if string(key) == termKey {
		return nil
	}
	return err
}

// DeleteRange compacts in steps from the old end. A suffix that conflicts with the leader's log goes at once: half of it
// gone would leave a hole.
func (l *watchedLog) DeleteRange(from, to uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	if from > first || to >= last {
		return l.write("truncate the log", func() error { return l.LogStore.DeleteRange(from, to) })
	}
	for from <= to {
		end := min(from+compactionStep-1, to)
		if err := l.LogStore.DeleteRange(from, end); err != nil {
			l.halt(fmt.Errorf("compact the log: %w", err))
			return err
		}
		from = end + 1
	}
	return nil
}
