package raftstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// A snapshot is, all integers big-endian:
//
//	magic 8 | index 8 | term 8 | blocks | 0 in 8 bytes | content 40 | CRC-32C of all before 4
//	block:  length 4, not 0 | length compressed 4 | pairs, compressed as one zstd frame
//	pair:   bytes of the key that it shares with the key before | length of the rest | the rest | length of the value |
//	        the value; each length an unsigned varint, the pairs of all blocks in ascending order of their keys
//
// The CRC finds bytes that changed; the content finds a state that is not the one its writer had. The pairs rather than
// the file they are kept in: that has pages which are free, or half full.
const (
	snapshotMagic   = "hpsnap\x00\x02"
	snapshotHeader  = len(snapshotMagic) + 2*8
	snapshotTrailer = contentSize + crc32.Size

	blockSize    = 8 << 20   // a block is full from here
	maxBlockSize = 256 << 20 // a block with a pair as large as any may be
)

type snapshotInfo struct {
	at      position
	content content
}

func newCRC() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// stateSnapshot is a state to be written; its transaction keeps it as it was.
type stateSnapshot struct {
	tx      *bbolt.Tx
	state   *boltTx
	at      position
	records *records
	halt    func(error)
}

func (s *stateSnapshot) Persist(sink raft.SnapshotSink) error {
	// Once raft has the snapshot it drops the entries that made the records up to here.
	if err := s.records.sync(); err != nil {
		// What a failed sync leaves on the disk nobody knows, and a later one would not say.
		err = fmt.Errorf("snapshot: %w", err)
		s.halt(err)
		return err
	}
	if err := s.writeTo(sink); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// writeTo writes all of a snapshot.
func (s *stateSnapshot) writeTo(w io.Writer) error {
	crc := newCRC()
	if err := s.write(io.MultiWriter(w, crc)); err != nil {
		return err
	}
	_, err := w.Write(crc.Sum(nil))
	return err
}

func (s *stateSnapshot) write(w io.Writer) error {
	head := binary.BigEndian.AppendUint64([]byte(snapshotMagic), s.at.index)
	if _, err := w.Write(binary.BigEndian.AppendUint64(head, s.at.term)); err != nil {
		return err
	}
	blocks, err := newBlockWriter(w)
	if err != nil {
		return err
	}
	defer blocks.release()
	var sum pairSum
	s.state.Scan(nil, nil, func(k, v []byte) bool {
		sum.add(k, v)
		err = blocks.pair(k, v)
		return err == nil
	})
	if err != nil {
		return err
	}
	if sum != s.state.content.sum {
		// To hand on what the disk made of it would spread the damage to whoever asks for a snapshot.
		err := errors.New("the state file is damaged: what it holds is not what was written. " +
			"Start the node again: it makes the file anew from its snapshot and its log")
		s.halt(err)
		return err
	}
	if err := blocks.flush(); err != nil {
		return err
	}
	_, err = w.Write(append(make([]byte, 8), s.state.content.encode()...))
	return err
}

func (s *stateSnapshot) Release() { _ = s.tx.Rollback() } // of a read transaction: nothing is lost

// readSnapshot calls fn with the pairs of a snapshot; nil checks the snapshot's bytes alone. Only when it returns nil may
// what fn was given be used. What fn gets is good until it returns.
func readSnapshot(r io.Reader, fn func(k, v []byte) error) (info snapshotInfo, err error) {
	damaged := func(what string) (snapshotInfo, error) {
		return info, fmt.Errorf("%w: %s", ErrDamagedSnapshot, what)
	}
	crc := newCRC()
	in := io.TeeReader(r, crc)
	head := make([]byte, snapshotHeader)
	if _, err := io.ReadFull(in, head); err != nil {
		return damaged("it ends in the header")
	}
	if !bytes.HasPrefix(head, []byte(snapshotMagic)) {
		return damaged("it does not start as a snapshot of this version")
	}
	numbers := head[len(snapshotMagic):]
	info.at = position{binary.BigEndian.Uint64(numbers), binary.BigEndian.Uint64(numbers[8:])}
	blocks, err := newBlockReader(in)
	if err != nil {
		return info, err
	}
	defer blocks.release()
	for more := true; more; {
		if more, err = blocks.next(fn); err != nil {
			return info, err
		}
	}
	tail := make([]byte, contentSize)
	if _, err := io.ReadFull(in, tail); err != nil {
		return damaged("it is cut short")
	}
	info.content = decodeContent(tail)
	want := crc.Sum(nil)
	got := make([]byte, crc32.Size)
	if _, err := io.ReadFull(r, got); err != nil {
		return damaged("it is cut short")
	}
	if !bytes.Equal(want, got) {
		return damaged("its checksum does not match")
	}
	if n, _ := io.Copy(io.Discard, r); n > 0 {
		return damaged("it goes on after its end")
	}
	return info, nil
}

// loadBatch is how many bytes of pairs go into the state file in one transaction.
const loadBatch = 16 << 20

// writeStateFile makes a state file of a snapshot, checks that its state is the one that was hashed, and syncs it.
func writeStateFile(path string, source io.Reader) (info snapshotInfo, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return info, err
	}
	db, err := openStateFile(path, 0)
	if err != nil {
		return info, err
	}
	load := &loader{db: db}
	info, err = readSnapshot(bufio.NewReaderSize(source, 1<<20), load.pair)
	if err == nil {
		err = load.finish(info)
	}
	return info, errors.Join(err, load.end(), db.Close())
}

// loader writes ascending pairs to an empty state file.
type loader struct {
	db     *bbolt.DB
	tx     *bbolt.Tx // nil between two
	bucket *bbolt.Bucket
	size   int
	sum    pairSum
}

func (l *loader) pair(k, v []byte) (err error) {
	if l.tx == nil {
		if l.tx, err = l.db.Begin(true); err != nil {
			return err
		}
		l.bucket = l.tx.Bucket([]byte(bucketState))
		l.bucket.FillPercent = 0.9 // pages that are filled in order are not split later
	}
	l.sum.add(k, v)
	if err := l.bucket.Put(k, append(make([]byte, 0, len(v)), v...)); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if l.size += len(k) + len(v); l.size < loadBatch {
		return nil
	}
	return l.commit()
}

func (l *loader) commit() error {
	if l.tx == nil {
		return nil
	}
	err := l.tx.Commit()
	l.tx, l.size = nil, 0
	return err
}

func (l *loader) finish(info snapshotInfo) error {
	if l.sum != info.content.sum {
		return fmt.Errorf("%w: its state is not the one it names", ErrDamagedSnapshot)
	}
	if err := l.commit(); err != nil {
		return err
	}
	err := l.db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(writePosition(tx, info.at), writeContent(tx, info.content))
	})
	return errors.Join(err, l.db.Sync())
}

// end gives up what was not committed.
func (l *loader) end() error {
	if l.tx == nil {
		return nil
	}
	return l.tx.Rollback()
}

// snapshots is raft's directory of snapshots; one that arrives damaged never becomes one there.
type snapshots struct {
	*raft.FileSnapshotStore
	dir string // where it keeps them
}

func (s snapshots) Create(version raft.SnapshotVersion, index, term uint64, members raft.Configuration,
	membersIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, members, membersIndex, trans)
	if err != nil {
		return nil, err
	}
	if err := s.writeMetaSum(sink.ID()); err != nil {
		return nil, errors.Join(fmt.Errorf("begin snapshot: %w", err), sink.Cancel())
	}
	return &checkedSink{SnapshotSink: sink, crc: newCRC()}, nil
}

// checkedSink follows what is written and refuses to finish a snapshot whose checksum is wrong. Without it a damaged
// transfer would be kept as the newest snapshot and, twice in a row, push the last good one out.
type checkedSink struct {
	raft.SnapshotSink
	crc  hash.Hash32
	tail []byte // the last bytes, which may be the checksum
}

func (s *checkedSink) Write(p []byte) (int, error) {
	n, err := s.SnapshotSink.Write(p)
	s.tail = append(s.tail, p[:n]...)
	if over := len(s.tail) - crc32.Size; over > 0 {
		_, _ = s.crc.Write(s.tail[:over]) // a hash's Write never fails
		s.tail = append(s.tail[:0], s.tail[over:]...)
	}
	return n, err
}

func (s *checkedSink) Close() error {
	if !bytes.Equal(s.tail, s.crc.Sum(nil)) {
		err := fmt.Errorf("%w: the checksum of what was received does not match", ErrDamagedSnapshot)
		return errors.Join(err, s.Cancel())
	}
	return s.SnapshotSink.Close()
}
