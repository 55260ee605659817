package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The buckets of a bbolt log are raft-boltdb's.
const (
	boltLogs = "logs"
	boltKept = "conf"
)

// boltLog is the default LogStore: one bbolt file, synced with every write, behind a cache of the newest entries.
type boltLog struct {
	*raft.LogCache
	file  *raftboltdb.BoltStore
	mark  *logMark
	first uint64 // at the start, no entry was missing from this one on; 0 when there was none
}

// openBolt reads all of the log through before it is believed.
func openBolt(dir string) (_ LogStore, err error) {
	path := filepath.Join(dir, logFile)
	defer func() {
		if p := recover(); p != nil { // of bbolt's, of what was looked through: then not well enough
			err = damagedFile(path, fmt.Errorf("it cannot be read: %v", p))
		}
	}()
	mark, err := readMark(dir, binary.BigEndian)
	if err != nil {
		return nil, err
	}
	if err := mark.lost(path); err != nil {
		return nil, err
	}
	var runs []span
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		if runs, err = checkBoltLog(path, mark); err != nil {
			return nil, err
		}
	}
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
		return nil, inUse(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	log, err := newBoltLog(path, file, mark, runs)
	if err != nil {
		return nil, errors.Join(err, file.Close(), mark.close())
	}
	return log, nil
}

func newBoltLog(path string, file *raftboltdb.BoltStore, mark *logMark, runs []span) (LogStore, error) {
	// Whoever was killed here may not have waited for its last write to reach the disk, and it can be read all the same.
	if err := file.Sync(); err != nil {
		return nil, err
	}
	var last, first uint64
	for _, run := range runs {
		first, last = run.first, run.end-1
	}
	if err := mark.checkLast(path, last); err != nil {
		return nil, err
	}
	if err := mark.start(path, last); err != nil {
		return nil, err
	}
	cache, err := raft.NewLogCache(logCacheSize, boltEntries{file})
	if err != nil {
		return nil, err
	}
	return &boltLog{LogCache: cache, file: file, mark: mark, first: first}, nil
}

// checkBoltLog checks the pages and the entries, and that the log is not behind its mark. It returns which entries there
// are: behind a snapshot that was sent, a bbolt log has a gap. It reads the file rather than the pages that bbolt maps:
// those would count as this process's memory for as long as it runs.
func checkBoltLog(path string, mark *logMark) (runs []span, err error) {
	buckets := 0
	decoder := codec.NewDecoderBytes(nil, &codec.MsgpackHandle{}) // as raft-boltdb has it
	meta, err := checkBolt(path, func(bucket string, key, value []byte) error {
		switch {
		case bucket == boltLogs && key == nil, bucket == boltKept && key == nil:
			buckets++
		case bucket == boltKept:
			mark.keep(string(key), value)
		case bucket != boltLogs || len(key) != 8:
			return fmt.Errorf("%q in bucket %q is not what was written", key, bucket)
		default:
			index := binary.BigEndian.Uint64(key)
			var entry raft.Log
			decoder.ResetBytes(value)
			if err := errors.Join(decoder.Decode(&entry), unseal(index, &entry)); err != nil {
				return fmt.Errorf("entry %d: %w", index, err)
			}
			if n := len(runs); n == 0 || runs[n-1].end != index {
				runs = append(runs, span{index, index})
			}
			runs[len(runs)-1].end = index + 1
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case buckets == 0 && meta.txid <= 1:
		return nil, nil // killed between making the file and making the buckets
	case buckets != 2:
		return nil, damagedFile(path, errors.New("a bucket is missing"))
	}
	return runs, mark.check(path, meta.txid)
}

func (l *boltLog) whole() uint64 { return l.first }

func (l *boltLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l *boltLog) StoreLogs(entries []*raft.Log) error {
	return l.mark.commit(func() error {
		err := l.LogCache.StoreLogs(entries)
		if n := len(entries); err == nil && n > 0 {
			l.mark.now.last = entries[n-1].Index
		}
		return err
	})
}

func (l *boltLog) DeleteRange(from, to uint64) error {
	return l.mark.commit(func() (err error) {
		if err = l.LogCache.DeleteRange(from, to); err == nil {
			l.mark.now.last, err = l.LastIndex()
		}
		return err
	})
}

func (l *boltLog) Get(key []byte) ([]byte, error)       { return l.file.Get(key) }
func (l *boltLog) GetUint64(key []byte) (uint64, error) { return l.file.GetUint64(key) }

func (l *boltLog) Set(key, value []byte) error {
	return l.mark.commit(func() error {
		err := l.file.Set(key, value)
		if err == nil {
			l.mark.keep(string(key), value)
		}
		return err
	})
}

func (l *boltLog) SetUint64(key []byte, value uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

func (l *boltLog) Close() error { return errors.Join(l.file.Close(), l.mark.close()) }

// boltEntries gives each entry a checksum, as raft-boltdb does not and bbolt has none of its pages. It travels in the
// entry's Extensions, which raft leaves to whoever stores it, and does not leave this file: an entry without one was
// written by an earlier version, and an earlier version reads one that has it.
type boltEntries struct{ *raftboltdb.BoltStore }

const sealTag = "\x00hp1"

func sealOf(entry *raft.Log, extensions []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, entry.Index)
	b = binary.BigEndian.AppendUint64(b, entry.Term)
	b = binary.BigEndian.AppendUint64(append(b, byte(entry.Type)), uint64(len(entry.Data)))
	sum := crc32.Update(crc32.Checksum(b, castagnoli()), castagnoli(), entry.Data)
	sum = crc32.Update(sum, castagnoli(), extensions)
	return binary.BigEndian.AppendUint32([]byte(sealTag), sum)
}

func (b boltEntries) StoreLog(entry *raft.Log) error { return b.StoreLogs([]*raft.Log{entry}) }

func (b boltEntries) StoreLogs(entries []*raft.Log) error {
	sealed := make([]raft.Log, len(entries)) // raft and the cache go on with theirs
	list := make([]*raft.Log, len(entries))
	for i, entry := range entries {
		sealed[i] = *entry
		ext := entry.Extensions
		sealed[i].Extensions = slices.Concat(ext, sealOf(entry, ext))
		list[i] = &sealed[i]
	}
	return b.BoltStore.StoreLogs(list)
}

func (b boltEntries) GetLog(index uint64, entry *raft.Log) error {
	*entry = raft.Log{}
	if err := b.BoltStore.GetLog(index, entry); err != nil {
		return err
	}
	return unseal(index, entry)
}

// unseal takes the checksum off an entry, once it was found right.
func unseal(index uint64, entry *raft.Log) error {
	at := len(entry.Extensions) - len(sealTag) - crc32.Size
	if at < 0 && len(entry.Extensions) == 0 {
		at = 0
	} else if at < 0 || string(entry.Extensions[at:]) != string(sealOf(entry, entry.Extensions[:at])) {
		return fmt.Errorf("%w: entry %d: its checksum does not match", ErrDamagedLog, index)
	}
	if entry.Index != index {
		return fmt.Errorf("%w: entry %d is in the place of entry %d", ErrDamagedLog, entry.Index, index)
	}
	if entry.Extensions = entry.Extensions[:at]; at == 0 {
		entry.Extensions = nil
	}
	return nil
}
