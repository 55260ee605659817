package raftstore

import (
	"encoding/binary"
	"encoding/json"
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
	file  *wal.WAL
	mark  *logMark
	first uint64 // at the start; 0 when there was none
}

// walIndex is the bbolt file that says which segments there are, and has the votes.
func walIndex(dir string) string { return filepath.Join(dir, walDir, metadb.FileName) }

func openWAL(dir string, segmentSize int) (_ LogStore, err error) {
	path := filepath.Join(dir, walDir)
	index := walIndex(dir)
	defer func() {
		if p := recover(); p != nil { // of bbolt's, of what was looked through: then not well enough
			err = damagedFile(path, fmt.Errorf("it cannot be read: %v", p))
		}
	}()
	mark, err := readMark(dir, binary.LittleEndian)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(mark.lost(index), lostIndex(path, index)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	meta := &walMeta{mark: mark}
	file, err := wal.Open(path, wal.WithMetaStore(meta), wal.WithSegmentSize(segmentSize))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), meta.Close())
	}
	log, err := newWALLog(index, file, mark)
	if err != nil {
		return nil, errors.Join(err, file.Close(), mark.close())
	}
	return log, nil
}

func newWALLog(index string, file *wal.WAL, mark *logMark) (LogStore, error) {
	first, err := file.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := file.LastIndex()
	if err != nil {
		return nil, err
	}
	if err := mark.checkLast(filepath.Dir(index), last); err != nil {
		return nil, err
	}
	if err := mark.start(index, last); err != nil {
		return nil, err
	}
	cache, err := raft.NewLogCache(logCacheSize, walEntries{file})
	if err != nil {
		return nil, err
	}
	return &walLog{LogCache: cache, StableStore: file, file: file, mark: mark, first: first}, nil
}

// lostIndex refuses segments of which nothing says that they are some: raft-wal would begin anew and delete them.
func lostIndex(dir, index string) error {
	segments, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(segments) == 0 {
		return err
	}
	if info, err := os.Stat(index); err == nil && info.Size() > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return lostLog(index, "there are segments beside it")
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

func (l *walLog) whole() uint64 { return l.first }

func (l *walLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l *walLog) StoreLogs(entries []*raft.Log) error {
	err := l.LogCache.StoreLogs(entries)
	if n := len(entries); err == nil && n > 0 {
		l.mark.ends(entries[n-1].Index)
	}
	return err
}

func (l *walLog) DeleteRange(from, to uint64) error {
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	if to >= last { // where it will end is known once it is through, and the segments say so before
		l.mark.ends(0)
	}
	if err := l.LogCache.DeleteRange(from, to); err != nil {
		return err
	}
	if last, err = l.LastIndex(); err == nil {
		l.mark.ends(last)
	}
	return err
}

func (l *walLog) Close() error { return errors.Join(l.file.Close(), l.mark.close()) }

// walMeta keeps which segments there are, and the votes.
type walMeta struct {
	metadb.BoltMetaDB
	mark *logMark
}

// Load reads which segments there are, checks what is in them, and finishes the change of segments that a stop cut short.
func (m *walMeta) Load(dir string) (types.PersistentState, error) {
	path := filepath.Join(dir, metadb.FileName)
	if err := m.check(path); err != nil {
		return types.PersistentState{}, err
	}
	state, err := m.BoltMetaDB.Load(dir)
	if err == nil { // as for a bbolt log: what can be read must have reached the disk
		err = syncFile(path)
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

// check reads the file's pages through, and refuses one that another process has open: raft-wal itself would wait for it,
// for ever and silently.
func (m *walMeta) check(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	buckets := 0
	meta, err := checkBolt(path, func(bucket string, key, value []byte) error {
		switch {
		case bucket != metadb.MetaBucket && bucket != metadb.StableBucket, bucket == metadb.MetaBucket && key != nil && string(key) != metadb.MetaKey:
			return fmt.Errorf("it has %q in a bucket %q", key, bucket)
		case key == nil:
			buckets++
		case bucket == metadb.MetaBucket:
			m.mark.keep(walSegments, value)
		default:
			m.mark.keep(string(key), value)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case buckets != 2:
		return damagedFile(path, errors.New("a bucket is missing"))
	}
	return m.mark.check(path, meta.txid)
}

// walSegments is by what name the mark knows which segments there are.
const walSegments = metadb.MetaBucket + "/" + metadb.MetaKey

func (m *walMeta) SetStable(key, value []byte) error {
	if value == nil {
		value = []byte{} // as a bbolt log keeps it; raft-wal would delete the key
	}
	return m.mark.commit(func() error {
		err := m.BoltMetaDB.SetStable(key, value)
		if err == nil {
			m.mark.keep(string(key), value)
		}
		return err
	})
}

// CommitState is called by whoever appends, deletes or changes the segment.
func (m *walMeta) CommitState(state types.PersistentState) error {
	text, err := json.Marshal(state) // as it will be in the file
	if err != nil {
		return err
	}
	return m.mark.commit(func() error {
		if err := m.BoltMetaDB.CommitState(state); err != nil {
			return err
		}
		m.mark.keep(walSegments, text)
		return nil // the next segment is entered
	})
}
