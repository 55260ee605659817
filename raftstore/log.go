package raftstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	logFile      = "raft.db"
	logCacheSize = 1024
	logMapSize   = 256 << 20

	// The log is compacted in steps, so that an append never waits for more than one of them.
	compactionStep = 4096
)

// boltLog is the default LogStore: one bbolt file, synced with every write, behind a cache of the newest entries.
type boltLog struct {
	*raft.LogCache
	raft.StableStore
	file *raftboltdb.BoltStore
}

func openLog(dir string) (LogStore, error) {
	path := filepath.Join(dir, logFile)
	file, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout:         lockTimeout,
			NoFreelistSync:  true,
			FreelistType:    bbolt.FreelistMapType,
			InitialMmapSize: logMapSize,
		},
		MsgpackUseNewTimeFormat: true,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is in use: another process runs on this directory", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	cache, err := raft.NewLogCache(logCacheSize, file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &boltLog{LogCache: cache, StableStore: file, file: file}, nil
}

func (l *boltLog) Close() error { return l.file.Close() }

// watchedLog notices a disk that fails or hangs.
//
// A failed write halts the node: it would be elected again and again and accept nothing (raft#614). A write that hangs
// cannot be called off, nor may it be reported as failed, since it can still land; raft's heartbeats go on meanwhile
// and no one else is elected (raft#503). So the write is left alone, and the transport falls silent: see stalled.
type watchedLog struct {
	LogStore
	limit  time.Duration
	halt   func(error)
	origin time.Time
	since  atomic.Int64 // when the write under way began, in ns after origin; 0 when there is none
}

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
	l.since.Store(int64(max(time.Since(l.origin), 1)))
	err := fn()
	l.since.Store(0)
	if err != nil {
		l.halt(fmt.Errorf("%s: %w", op, err))
	}
	return err
}

func (l *watchedLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l *watchedLog) StoreLogs(entries []*raft.Log) error {
	return l.write("append to the log", func() error { return l.LogStore.StoreLogs(entries) })
}

func (l *watchedLog) Set(key, value []byte) error {
	return l.write("write a vote", func() error { return l.LogStore.Set(key, value) })
}

func (l *watchedLog) SetUint64(key []byte, value uint64) error {
	return l.write("write a term", func() error { return l.LogStore.SetUint64(key, value) })
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
