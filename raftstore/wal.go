package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// This file and walscan.go are all that know raft-wal. It is kept to v0.4.2 exactly: v0.4.0, which is what "latest" says,
// cannot open a log again that was cut at its end (raft-wal#31).
//
// One defect of it is mended here. The append that fills a segment seals it, and a goroutine makes the next segment
// afterwards. A node that stops in between, killed or closed in order, finds a sealed segment at the end when it starts
// again, and every append then fails. So what that goroutine would have done is done before the log is opened: see Load.
//
// And one assumption is not shared. raft-wal takes whatever it cannot read at the end of the last segment for a write
// that a crash tore, forgets it, and writes over it in part; and it never looks at a checksum again once a segment is
// full. A bit that flipped would so become an acknowledged entry that is forgotten, or another than it was. So all
// segments are read through at every start.

const (
	walDir         = "wal"
	walSegmentSize = 64 << 20
)

// walLog is the LogStore of LogWAL: segments that are only ever appended to, one sync a write, behind the same cache as
// boltLog.
type walLog struct {
	*raft.LogCache
	raft.StableStore
	file *wal.WAL
}

func openWAL(dir string, segmentSize int) (LogStore, error) {
	path := filepath.Join(dir, walDir)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	meta := &walMeta{}
	file, err := wal.Open(path, wal.WithMetaStore(meta), wal.WithSegmentSize(segmentSize))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), meta.Close())
	}
	cache, err := raft.NewLogCache(logCacheSize, walEntries{file})
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &walLog{LogCache: cache, StableStore: file, file: file}, nil
}

// walEntries hides entries that were deleted and whose segment still holds them: raft-wal gives those of its last one.
type walEntries struct{ *wal.WAL }

func (w walEntries) GetLog(index uint64, log *raft.Log) error {
	first, err := w.FirstIndex()
	if err != nil {
		return err
	}
	if index < first {
		return raft.ErrLogNotFound
	}
	return w.WAL.GetLog(index, log)
}

func (l *walLog) Close() error { return l.file.Close() }

// walMeta keeps which segments there are, and the votes.
type walMeta struct{ metadb.BoltMetaDB }

// Load reads which segments there are, checks what is in them, and finishes the change of segments that a stop cut short.
func (m *walMeta) Load(dir string) (types.PersistentState, error) {
	if err := notInUse(filepath.Join(dir, metadb.FileName)); err != nil {
		return types.PersistentState{}, err
	}
	state, err := m.BoltMetaDB.Load(dir)
	if err == nil { // as for a bbolt log: what can be read must have reached the disk
		err = syncFile(filepath.Join(dir, metadb.FileName))
	}
	if err != nil {
		return state, err
	}
	for _, info := range state.Segments {
		if info.SealTime.IsZero() {
			continue
		}
		if err := checkSealed(dir, info); err != nil {
			return state, err
		}
	}
	if n := len(state.Segments); n > 0 && state.Segments[n-1].SealTime.IsZero() {
		return m.mendTail(dir, state)
	}
	return state, nil
}

// mendTail cuts off what a crash tore, and rotates a segment that is full.
func (m *walMeta) mendTail(dir string, state types.PersistentState) (types.PersistentState, error) {
	tail := &state.Segments[len(state.Segments)-1]
	scan, err := checkTail(dir, *tail)
	if errors.Is(err, fs.ErrNotExist) {
		return state, nil // it was about to be made
	}
	if err != nil || scan.index == 0 {
		return state, err
	}
	now := time.Now()
	tail.SealTime, tail.IndexStart, tail.MaxIndex = now, uint64(scan.index), tail.BaseIndex+scan.entries-1
	state.Segments = append(state.Segments, types.SegmentInfo{
		ID: state.NextSegmentID, BaseIndex: tail.MaxIndex + 1, MinIndex: tail.MaxIndex + 1,
		Codec: tail.Codec, SizeLimit: tail.SizeLimit, CreateTime: now,
	})
	state.NextSegmentID++
	return state, m.CommitState(state)
}

func syncFile(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// notInUse refuses a log that another process has open. raft-wal itself would wait for it, for ever and silently.
func notInUse(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return inUse(path)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return db.Close()
}
