package raftstore

import (
	"bufio"
	"bytes"
	"crypto/sha256"
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
//	magic 8 | index 8 | term 8 | size 8 | size bytes of bbolt file | state hash 32 | CRC-32C of all before 4
//
// The CRC finds bytes that changed; the state hash finds a state that is not the one its writer had.
const (
	snapshotMagic   = "hpsnap\x00\x01"
	snapshotHeader  = len(snapshotMagic) + 3*8
	snapshotTrailer = sha256.Size + crc32.Size
)

type snapshotInfo struct {
	at  position
	sum [sha256.Size]byte
}

func newCRC() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// stateSnapshot is a state to be written; its transaction keeps it as it was.
type stateSnapshot struct {
	tx *bbolt.Tx
	at position
}

func (s *stateSnapshot) Persist(sink raft.SnapshotSink) error {
	sum := hashState(newBoltTx(s.tx))
	crc := newCRC()
	w := io.MultiWriter(sink, crc)
	head := []byte(snapshotMagic)
	for _, n := range []uint64{s.at.index, s.at.term, uint64(s.tx.Size())} {
		head = binary.BigEndian.AppendUint64(head, n)
	}
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := s.tx.WriteTo(w); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := w.Write(sum[:]); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := sink.Write(crc.Sum(nil)); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

func (s *stateSnapshot) Release() { _ = s.tx.Rollback() } // of a read transaction: nothing is lost

// readSnapshot copies the bbolt file in a snapshot to w. Only when it returns nil may what was written be used.
func readSnapshot(r io.Reader, w io.Writer) (info snapshotInfo, err error) {
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
	size := binary.BigEndian.Uint64(numbers[16:])
	if size > 1<<62 {
		return damaged("its size is not one")
	}
	if _, err := io.CopyN(w, in, int64(size)); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return damaged("it is cut short")
		}
		return info, fmt.Errorf("copy snapshot: %w", err)
	}
	if _, err := io.ReadFull(in, info.sum[:]); err != nil {
		return damaged("it is cut short")
	}
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

// writeStateFile makes a state file of a snapshot, checks that its state is the one that was hashed, and syncs it.
func writeStateFile(path string, source io.Reader) (info snapshotInfo, err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return info, fmt.Errorf("create: %w", err)
	}
	w := bufio.NewWriterSize(file, 1<<20)
	info, err = readSnapshot(source, w)
	if err == nil {
		err = errors.Join(w.Flush(), file.Sync())
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return info, err
	}
	return info, checkStateFile(path, info)
}

func checkStateFile(path string, info snapshotInfo) (err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamagedSnapshot, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bbolt.Tx) error {
		for _, name := range []string{bucketState, bucketRecords, bucketMeta} {
			if tx.Bucket([]byte(name)) == nil {
				return fmt.Errorf("%w: it holds no %s", ErrDamagedSnapshot, name)
			}
		}
		at, err := readPosition(tx)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamagedSnapshot, err)
		}
		if sum := hashState(newBoltTx(tx)); at != info.at || sum != info.sum {
			return fmt.Errorf("%w: its state is not the one it names", ErrDamagedSnapshot)
		}
		return nil
	})
}

// snapshots is raft's directory of snapshots; one that arrives damaged never becomes one there.
type snapshots struct{ *raft.FileSnapshotStore }

func (s snapshots) Create(version raft.SnapshotVersion, index, term uint64, members raft.Configuration,
	membersIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, members, membersIndex, trans)
	if err != nil {
		return nil, err
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
