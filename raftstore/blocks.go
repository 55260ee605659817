package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// blockWriter writes pairs as a snapshot's blocks.
type blockWriter struct {
	w      io.Writer
	zip    *zstd.Encoder
	block  []byte
	packed []byte
	last   []byte // key of the last pair
}

func newBlockWriter(w io.Writer) (*blockWriter, error) {
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(blockSize), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	return &blockWriter{w: w, zip: zip}, nil
}

func (b *blockWriter) release() { _ = b.zip.Close() } // it holds nothing back

func (b *blockWriter) pair(k, v []byte) error {
	if len(k)+len(v) > maxBlockSize-blockSize {
		return fmt.Errorf("a pair of %d bytes is too large for a snapshot", len(k)+len(v))
	}
	shared := 0
	for shared < len(k) && shared < len(b.last) && k[shared] == b.last[shared] {
		shared++
	}
	b.block = binary.AppendUvarint(b.block, uint64(shared))
	b.block = binary.AppendUvarint(b.block, uint64(len(k)-shared))
	b.block = append(b.block, k[shared:]...)
	b.block = binary.AppendUvarint(b.block, uint64(len(v)))
	b.block = append(b.block, v...)
	b.last = append(b.last[:0], k...)
	if len(b.block) < blockSize {
		return nil
	}
	return b.flush()
}

func (b *blockWriter) flush() error {
	if len(b.block) == 0 {
		return nil
	}
	b.packed = b.zip.EncodeAll(b.block, b.packed[:0])
	head := binary.BigEndian.AppendUint32(make([]byte, 0, 8), uint32(len(b.block)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(b.packed)))
	b.block = b.block[:0]
	if _, err := b.w.Write(head); err != nil {
		return err
	}
	_, err := b.w.Write(b.packed)
	return err
}

// blockReader reads what a blockWriter wrote. What it reads was not checked yet and may be anything.
type blockReader struct {
	r      io.Reader
	zip    *zstd.Decoder
	packed []byte
	block  []byte
	key    []byte // of the last pair
	any    bool   // there was one
}

func newBlockReader(r io.Reader) (*blockReader, error) {
	zip, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxBlockSize))
	if err != nil {
		return nil, err
	}
	return &blockReader{r: r, zip: zip}, nil
}

func (b *blockReader) release() { b.zip.Close() }

// next calls fn, unless it is nil, with the pairs of the next block; false after the last one.
func (b *blockReader) next(fn func(k, v []byte) error) (more bool, err error) {
	var head [8]byte
	if _, err := io.ReadFull(b.r, head[:]); err != nil {
		return false, cutShort(err)
	}
	size, packed := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if size == 0 && packed == 0 {
		return false, nil
	}
	if size == 0 || size > maxBlockSize || packed == 0 || packed > maxBlockSize {
		return false, fmt.Errorf("%w: no block has %d bytes in %d", ErrDamagedSnapshot, size, packed)
	}
	if fn == nil {
		_, err := io.CopyN(io.Discard, b.r, int64(packed))
		return true, cutShort(err)
	}
	if b.packed, err = readInto(b.packed, b.r, int(packed)); err != nil {
		return false, cutShort(err)
	}
	if b.block, err = b.zip.DecodeAll(b.packed, b.block[:0]); err != nil {
		return false, fmt.Errorf("%w: unpack a block: %w", ErrDamagedSnapshot, err)
	}
	if len(b.block) != int(size) {
		return false, fmt.Errorf("%w: a block unpacks to %d bytes, not %d", ErrDamagedSnapshot, len(b.block), size)
	}
	return true, b.pairs(fn)
}

// readInto reads n bytes, with no more memory than the bytes that come: n may be anything.
func readInto(buffer []byte, r io.Reader, n int) ([]byte, error) {
	buffer = buffer[:0]
	for len(buffer) < n {
		step := min(n-len(buffer), 1<<20)
		at := len(buffer)
		buffer = append(buffer, make([]byte, step)...)
		if _, err := io.ReadFull(r, buffer[at:]); err != nil {
			return buffer, err
		}
	}
	return buffer, nil
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut short", ErrDamagedSnapshot)
	}
	return err
}

func (b *blockReader) pairs(fn func(k, v []byte) error) error {
	rest := b.block
	number := func() uint64 {
		n, size := binary.Uvarint(rest)
		if size <= 0 {
			rest = nil
			return maxBlockSize // more than there can be
		}
		rest = rest[size:]
		return n
	}
	for len(rest) > 0 {
		shared := number()
		own := number()
		if shared > uint64(len(b.key)) || own > uint64(len(rest)) {
			return fmt.Errorf("%w: a key goes beyond its block", ErrDamagedSnapshot)
		}
		if own == 0 || b.any && shared < uint64(len(b.key)) && rest[0] <= b.key[shared] {
			return fmt.Errorf("%w: its keys are empty, or not in order", ErrDamagedSnapshot)
		}
		b.key, b.any = append(b.key[:shared], rest[:own]...), true
		rest = rest[own:]
		size := number()
		if size > uint64(len(rest)) {
			return fmt.Errorf("%w: a value goes beyond its block", ErrDamagedSnapshot)
		}
		if err := fn(b.key, rest[:size]); err != nil {
			return err
		}
		rest = rest[size:]
	}
	return nil
}
