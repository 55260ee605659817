package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// A segment is a file of consecutive records, all integers big-endian:
//
//	magic 8 | number of the first record 8 | CRC-32C of both 4
//	one frame a record: length 4 | CRC-32C of the record's number in 8 bytes and the record 4 | record
//
// One that may still grow is named FIRST.log and read to its end at each start. One that is full and has reached the disk
// is named FIRST-END.seg, both numbers in 16 hex digits, END the number after its last: there can be hundreds, and none is
// opened before somebody reads it.
const (
	segmentMagic  = "hprecs\x00\x01"
	segmentHeader = len(segmentMagic) + 8 + crc32.Size
	frameHeader   = 4 + crc32.Size

	segmentSize = 16 << 20 // one that has reached this size is full
	maxRecord   = 16 << 20
	markEvery   = 64 // records from one remembered offset to the next
)

// errDamagedSegment is what a segment's reader returns at the first frame that is not whole.
var errDamagedSegment = errors.New("raftstore: damaged segment")

// recordSegment is a file of records as it is known in memory.
type recordSegment struct {
	first  uint64
	count  uint64
	size   int64   // up to the end of the last frame; 0 for a sealed one
	marks  []int64 // offsets of its record 0, markEvery, …; nil for a sealed one that was not read yet
	sealed bool
}

func (g *recordSegment) end() uint64 { return g.first + g.count }

func (g *recordSegment) name() string {
	if g.sealed {
		return fmt.Sprintf("%016x-%016x.seg", g.first, g.end())
	}
	return fmt.Sprintf("%016x.log", g.first)
}

// parseSegment reads a file's name.
func parseSegment(name string) (*recordSegment, bool) {
	var g recordSegment
	var end uint64
	if n, _ := fmt.Sscanf(name, "%16x-%16x.seg", &g.first, &end); n == 2 && end > g.first {
		g.count, g.sealed = end-g.first, true
	} else {
		_, _ = fmt.Sscanf(name, "%16x.log", &g.first) // compared below
	}
	return &g, g.name() == name
}

func segmentHead(first uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte(segmentMagic), first)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// frameSum is the checksum of a frame. The number is in it, so that a frame in another's place is damage too.
func frameSum(number uint64, record []byte) uint32 {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], number)
	return crc32.Update(crc32.Checksum(n[:], castagnoli()), castagnoli(), record)
}

// appendFrame appends a record's frame.
func appendFrame(b []byte, number uint64, record []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(record)))
	b = binary.BigEndian.AppendUint32(b, frameSum(number, record))
	return append(b, record...)
}

// frames reads a segment's records in order.
type frames struct {
	in     *bufio.Reader
	number uint64 // of the next record
	offset int64  // where its frame begins
	buffer []byte
}

// openFrames reads from the header on. The caller closes the file.
func openFrames(file *os.File, first uint64) (*frames, error) {
	head := make([]byte, segmentHeader)
	if _, err := io.ReadFull(file, head); err != nil {
		return nil, fmt.Errorf("%w: it ends in its header", errDamagedSegment)
	}
	if string(head) != string(segmentHead(first)) {
		return nil, fmt.Errorf("%w: it does not begin as the segment from record %d on", errDamagedSegment, first)
	}
	return &frames{in: bufio.NewReaderSize(file, 64<<10), number: first, offset: int64(segmentHeader)}, nil
}

// framesAt reads from a frame on.
func framesAt(file *os.File, number uint64, offset int64) (*frames, error) {
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	return &frames{in: bufio.NewReaderSize(file, 64<<10), number: number, offset: offset}, nil
}

// next returns a record, which is good until the next call; io.EOF after the last, and errDamagedSegment at a frame that
// is not whole.
func (f *frames) next() ([]byte, error) {
	var head [frameHeader]byte
	switch _, err := io.ReadFull(f.in, head[:]); {
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("%w: record %d: it is cut short", errDamagedSegment, f.number)
	case err != nil:
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxRecord {
		return nil, fmt.Errorf("%w: record %d: no record has %d bytes", errDamagedSegment, f.number, size)
	}
	if cap(f.buffer) < int(size) {
		f.buffer = make([]byte, size, max(int(size), 4<<10))
	}
	record := f.buffer[:size]
	switch _, err := io.ReadFull(f.in, record); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("%w: record %d: it is cut short", errDamagedSegment, f.number)
	case err != nil:
		return nil, err
	}
	if frameSum(f.number, record) != binary.BigEndian.Uint32(head[4:]) {
		return nil, fmt.Errorf("%w: record %d: its checksum does not match", errDamagedSegment, f.number)
	}
	f.number++
	f.offset += int64(frameHeader) + int64(size)
	return record, nil
}

// scan reads the whole file and fills in what it holds up to the first damage, if there is any.
func (g *recordSegment) scan(path string) (damage error, err error) {
	g.count, g.size, g.marks = 0, 0, nil
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	f, err := openFrames(file, g.first)
	if errors.Is(err, errDamagedSegment) {
		return err, nil
	}
	if err != nil {
		return nil, err
	}
	g.size = f.offset
	for {
		at := f.offset
		_, err := f.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil, nil
		case errors.Is(err, errDamagedSegment):
			return err, nil
		case err != nil:
			return nil, err
		}
		g.mark(at)
		g.count, g.size = g.count+1, f.offset
	}
}

// mark remembers where the next record begins, when it is one of those.
func (g *recordSegment) mark(offset int64) {
	if g.count%markEvery == 0 {
		g.marks = append(g.marks, offset)
	}
}
