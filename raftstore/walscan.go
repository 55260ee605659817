package raftstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// What is read here of raft-wal's format is what its documentation fixes for version 0 of a segment: a header of 32
// bytes, then frames of 8 bytes with a payload that is padded to a multiple of 8. A batch is the frames of some entries,
// that of an index where it fills the segment, and one with a CRC-32C over everything since the batch before. Behind the
// last batch there are zeros.
const (
	walHeader     = 32
	walFrame      = 8
	walFrameLimit = 64 << 20
	walBuffer     = 64 << 10
	walSector     = 512 // a disk writes it whole or not at all
)

// walScan is how far a segment can be believed.
type walScan struct {
	end     int64  // of the last whole batch
	entries uint64 // in whole batches
	index   int64  // where the index of a full segment is; 0: there is none
	zeros   int64  // where the frames end, when nothing but zeros follows; 0: they end otherwise
}

// scanSegment reads whole batches from the beginning, and stops at the first that is none.
func scanSegment(file io.Reader) (s walScan, err error) {
	hash := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	in := io.TeeReader(bufio.NewReaderSize(file, walBuffer), hash)
	if _, err := io.CopyN(io.Discard, in, walHeader); err != nil {
		return s, notEnd(err)
	}
	var batch walScan
	for at := int64(walHeader); ; {
		sum := hash.Sum32() // a frame that ends a batch is no part of it
		var frame [walFrame]byte
		if _, err := io.ReadFull(in, frame[:]); err != nil {
			s.zeros = at
			return s, notEnd(err)
		}
		size := int64(binary.LittleEndian.Uint32(frame[4:]))
		switch kindOf(frame) {
		case segment.FrameInvalid:
			s.zeros = at
			return s, nil
		case segment.FrameCommit:
			if uint32(size) != sum {
				return s, nil
			}
			at += walFrame
			batch.end = at
			s = batch
			hash.Reset()
			continue
		case segment.FrameEntry:
			batch.entries++
		case segment.FrameIndex:
			batch.index = at + walFrame
		default:
			return s, nil
		}
		if size > walFrameLimit {
			return s, nil
		}
		padded := (size + 7) &^ 7
		at += walFrame + padded
		if _, err := io.CopyN(io.Discard, in, padded); err != nil {
			s.zeros = at
			return s, notEnd(err)
		}
	}
}

// kindOf is the kind of a frame; the bytes that mean nothing are zeros.
func kindOf(frame [walFrame]byte) byte {
	if frame[1]|frame[2]|frame[3] != 0 {
		return 0xff
	}
	return frame[0]
}

// notEnd is nil for the end of a file, wherever it is.
func notEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// checkSealed refuses a full segment that is not byte for byte what was written.
func checkSealed(dir string, info types.SegmentInfo) error {
	path := filepath.Join(dir, segment.FileName(info))
	file, err := os.Open(path)
	if err != nil {
		return damagedFile(path, err)
	}
	defer func() { _ = file.Close() }() // only read
	if err := judgeSealed(file, info); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func judgeSealed(file io.Reader, info types.SegmentInfo) error {
	scan, err := scanSegment(file)
	if err != nil {
		return err
	}
	if scan.index != int64(info.IndexStart) || info.BaseIndex+scan.entries <= info.MaxIndex {
		return damagedLog(scan.end)
	}
	return nil
}

// checkTail reads the segment that is written to, and cuts off a batch that a crash tore while it was written: nobody
// was told that it is there. What is left has reached the disk when it returns; a process that was killed may not have
// waited for that, and whoever starts after it believes what it reads.
func checkTail(dir string, info types.SegmentInfo) (scan walScan, err error) {
	path := filepath.Join(dir, segment.FileName(info))
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return scan, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return scan, err
	}
	scan, torn, err := judgeTail(file, size)
	if err != nil {
		return scan, fmt.Errorf("%s: %w", path, err)
	}
	if torn {
		// Not only where the next batch overwrites it: what then remained of it behind that batch could be taken for a part
		// of it after the next crash.
		err = errors.Join(file.Truncate(scan.end), file.Truncate(size))
	}
	return scan, errors.Join(err, file.Sync())
}

// judgeTail says how far a segment holds whole batches, and whether something torn follows. It refuses one in which
// anything else follows.
func judgeTail(file io.ReaderAt, size int64) (scan walScan, torn bool, err error) {
	if scan, err = scanSegment(io.NewSectionReader(file, 0, size)); err != nil {
		return scan, false, err
	}
	last, hole, err := leftover(file, scan.end, size)
	if err != nil || last == scan.end {
		return scan, false, err
	}
	// A process that is killed leaves the first part of a batch, and a disk that loses power a batch with holes. Anything
	// else was whole once, and may have been acknowledged.
	whole, err := endsBatch(file, last)
	if err != nil {
		return scan, false, err
	}
	if prefix := scan.zeros >= last && !whole; !prefix && !hole {
		return scan, false, damagedLog(scan.end)
	}
	return scan, true, nil
}

// leftover looks behind the last whole batch: where the last byte ends that is not zero, and whether a sector before it
// is nothing but zeros.
func leftover(file io.ReaderAt, from, size int64) (last int64, hole bool, err error) {
	zeros := make([]byte, walSector)
	last = from
	in := bufio.NewReaderSize(io.NewSectionReader(file, from, size-from), walBuffer)
	gap := false
	for at := from; at < size; {
		sector := make([]byte, min(walSector-at%walSector, size-at))
		if _, err := io.ReadFull(in, sector); err != nil {
			return last, hole, err
		}
		at += int64(len(sector))
		if bytes.Equal(sector, zeros[:len(sector)]) {
			gap = true
			continue
		}
		hole = hole || gap
		last = at - int64(len(sector)) + int64(len(bytes.TrimRight(sector, "\x00")))
	}
	return last, hole, nil
}

// endsBatch reports whether the last that is there is the frame that ends a batch.
func endsBatch(file io.ReaderAt, last int64) (bool, error) {
	var frame [walFrame]byte
	_, err := file.ReadAt(frame[:], (last+walFrame-1)&^(walFrame-1)-walFrame)
	return kindOf(frame) == segment.FrameCommit, notEnd(err)
}

func damagedLog(at int64) error {
	return fmt.Errorf("%w: from byte %d on it is not what was written, so this node may have forgotten what it helped to "+
		"acknowledge. %s", ErrDamagedLog, at, anew)
}
