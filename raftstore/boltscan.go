package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// What is read here of a bbolt file is its format, version 2, as it has been for ten years. bbolt itself believes what it
// maps: on a damaged page it panics, kills the process with a fault, loops or gives what is there; and where the newer of
// the two meta pages has a wrong checksum it takes the older one, in which the last write never happened. So what the log
// rests on is read through by whoever can say no, before bbolt sees it.
//
//	meta:    magic 4 | version 4 | page size 4 | 4 | root page 8 | 8 | free list's page 8 | pages 8 | transaction 8 | FNV-64a 8
//	page:    number 8 | kind 2 | elements 2 | pages that it goes on over 4 | elements
//	branch:  offset of the key, from here 4 | its length 4 | page 8
//	leaf:    flags 4 | offset of the key, from here 4 | its length 4 | length of the value behind it 4
//	bucket:  root page 8, 0 when the page is in the value | 8 | that page
//
// All integers are of the machine's order; every machine this runs on has the least byte first.
const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	boltPageHeader = 16
	boltElement    = 16
	boltMetaSize   = 64
	boltNoFreelist = 1<<64 - 1

	boltBranch   = 0x01
	boltLeaf     = 0x02
	boltFreelist = 0x10
	boltBucket   = 0x01 // flag of an element

	boltDepth   = 32 // no tree is as deep
	boltMaxPage = 64 << 10
	boltMaxRun  = 256 << 20 // bytes of a page with all that it goes on over
)

// boltMeta is what a meta page says.
type boltMeta struct {
	pageSize             int64
	root, freelist, high uint64
	txid                 uint64
}

// parseBoltMeta reads a meta page from its first byte on.
func parseBoltMeta(page []byte) (m boltMeta, ok bool) {
	if len(page) < boltPageHeader+boltMetaSize {
		return m, false
	}
	b := page[boltPageHeader : boltPageHeader+boltMetaSize]
	le := binary.LittleEndian
	sum := fnv.New64a()
	_, _ = sum.Write(b[:boltMetaSize-8]) // a hash's Write never fails
	m = boltMeta{
		pageSize: int64(le.Uint32(b[8:])), root: le.Uint64(b[16:]), freelist: le.Uint64(b[32:]), high: le.Uint64(b[40:]),
		txid: le.Uint64(b[48:]),
	}
	whole := le.Uint32(b) == boltMagic && le.Uint32(b[4:]) == boltVersion && le.Uint64(b[56:]) == sum.Sum64()
	return m, whole && m.pageSize >= 1<<10 && m.pageSize <= boltMaxPage && m.pageSize&(m.pageSize-1) == 0
}

// readBoltMeta returns the newer meta page. It wants both whole: of two of which one is broken, the broken one may be
// the newer, and what the other one does not know of may have been acknowledged. A crash breaks none, since a meta is in
// the first 80 bytes of its page, and a disk writes a sector whole or not at all.
func readBoltMeta(file io.ReaderAt) (boltMeta, error) {
	var metas [2]boltMeta
	found, known := int64(0), false
	head := make([]byte, boltPageHeader+boltMetaSize)
	for size := int64(1 << 10); size <= boltMaxPage && !known; size <<= 1 { // by the second, should the first be broken
		if _, err := file.ReadAt(head, size); err == nil {
			if m, ok := parseBoltMeta(head); ok && m.pageSize == size {
				found, known, metas[1] = size, true, m
			}
		}
	}
	if _, err := file.ReadAt(head, 0); err != nil {
		return boltMeta{}, errors.New("it ends in its first page")
	}
	first, ok := parseBoltMeta(head)
	metas[0] = first
	switch {
	case !ok:
		return boltMeta{}, errors.New("its meta page 0 is broken")
	case !known || found != first.pageSize:
		return boltMeta{}, errors.New("its meta page 1 is broken")
	case metas[0].txid%2 != 0 || metas[1].txid%2 != 1:
		return boltMeta{}, errors.New("its meta pages are in each other's place")
	case metas[0].txid > metas[1].txid:
		return metas[0], nil
	}
	return metas[1], nil
}

// boltScan reads a bbolt file through, page by page, and stops at what bbolt did not write.
type boltScan struct {
	file io.ReaderAt
	size int64 // of the file
	meta boltMeta
	used []bool   // pages that were come by
	kept [][]byte // by depth, of the last page there: a log has ten thousands
	pair func(bucket string, key, value []byte) error
}

// scanBolt checks all that can be reached, and calls fn with each pair of each bucket, in order of their keys. Buckets are
// at the root alone, and nothing else is there. What fn is given is good until it returns.
func scanBolt(file io.ReaderAt, size int64, fn func(bucket string, key, value []byte) error) (boltMeta, error) {
	meta, err := readBoltMeta(file)
	if err != nil {
		return meta, err
	}
	s := &boltScan{file: file, size: size, meta: meta, pair: fn}
	if pages := uint64(size / meta.pageSize); meta.high > pages {
		return meta, fmt.Errorf("it has %d pages of %d: it was cut short", pages, meta.high)
	}
	s.used = make([]bool, meta.high)
	if meta.high < 2 {
		return meta, errors.New("it says that it has no pages")
	}
	s.used[0], s.used[1] = true, true
	if err := s.tree(meta.root, "", nil, nil, 0); err != nil {
		return meta, err
	}
	return meta, s.freelist()
}

// page reads a page, with what it goes on over, that nothing else refers to. It is good until the next one of this depth.
func (s *boltScan) page(number uint64, depth int) ([]byte, error) {
	if number < 2 || number >= s.meta.high {
		return nil, fmt.Errorf("page %d: there is none", number)
	}
	at := int64(number) * s.meta.pageSize
	head := make([]byte, boltPageHeader)
	if _, err := s.file.ReadAt(head, at); err != nil {
		return nil, fmt.Errorf("page %d: %w", number, err)
	}
	run := uint64(binary.LittleEndian.Uint32(head[12:])) + 1
	if binary.LittleEndian.Uint64(head) != number || number+run > s.meta.high || int64(run)*s.meta.pageSize > boltMaxRun {
		return nil, fmt.Errorf("page %d: its header is not what was written", number)
	}
	for i := number; i < number+run; i++ {
		if s.used[i] {
			return nil, fmt.Errorf("page %d: it is referred to twice", i)
		}
		s.used[i] = true
	}
	page := s.room(int(run)*int(s.meta.pageSize), depth)
	if _, err := s.file.ReadAt(page, at); err != nil {
		return nil, fmt.Errorf("page %d: %w", number, err)
	}
	return page, nil
}

func (s *boltScan) room(size, depth int) []byte {
	for len(s.kept) <= depth {
		s.kept = append(s.kept, nil)
	}
	if cap(s.kept[depth]) < size {
		s.kept[depth] = make([]byte, size)
	}
	return s.kept[depth][:size]
}

// tree checks the page and all below it, whose keys are from low on and below high; nil is no bound.
func (s *boltScan) tree(number uint64, bucket string, low, high []byte, depth int) error {
	if depth > boltDepth {
		return fmt.Errorf("page %d: the tree has no end", number)
	}
	page, err := s.page(number, depth)
	if err != nil {
		return err
	}
	if err := s.elements(page, bucket, low, high, depth); err != nil {
		return fmt.Errorf("page %d: %w", number, err)
	}
	return nil
}

func (s *boltScan) elements(page []byte, bucket string, low, high []byte, depth int) error {
	le := binary.LittleEndian
	kind, count := le.Uint16(page[8:]), int(le.Uint16(page[10:]))
	if kind != boltBranch && kind != boltLeaf || kind == boltBranch && count == 0 || boltPageHeader+count*boltElement > len(page) {
		return errors.New("its header is not what was written")
	}
	var before []byte
	for i := range count {
		e := boltPageHeader + i*boltElement
		var key, value []byte
		var ok bool
		if kind == boltBranch {
			key, value, ok = boltPair(page, e, le.Uint32(page[e:]), le.Uint32(page[e+4:]), 0)
		} else {
			key, value, ok = boltPair(page, e, le.Uint32(page[e+4:]), le.Uint32(page[e+8:]), le.Uint32(page[e+12:]))
		}
		switch {
		case !ok || len(key) == 0:
			return errors.New("an element goes beyond it")
		case i > 0 && bytes.Compare(before, key) >= 0, bytes.Compare(key, low) < 0, high != nil && bytes.Compare(key, high) >= 0:
			return errors.New("its keys are not in order")
		}
		before = key
		if kind == boltLeaf {
			if err := s.leaf(le.Uint32(page[e:]), bucket, key, value, depth); err != nil {
				return err
			}
			continue
		}
		below := high
		if i+1 < count {
			n := e + boltElement
			next, _, ok := boltPair(page, n, le.Uint32(page[n:]), le.Uint32(page[n+4:]), 0)
			if !ok {
				return errors.New("an element goes beyond it")
			}
			below = next
		}
		if err := s.tree(le.Uint64(page[e+8:]), bucket, key, below, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// boltPair cuts a key and the value behind it out of a page; the offset is from the element.
func boltPair(page []byte, element int, offset, key, value uint32) (k, v []byte, ok bool) {
	from := int64(element) + int64(offset)
	end := from + int64(key) + int64(value)
	if offset < boltElement || end > int64(len(page)) {
		return nil, nil, false
	}
	return page[from : from+int64(key)], page[from+int64(key) : end], true
}

// leaf checks what an element holds: at the root a bucket, in a bucket a pair.
func (s *boltScan) leaf(flags uint32, bucket string, key, value []byte, depth int) error {
	switch {
	case bucket != "" && flags == 0:
		return s.pair(bucket, key, value)
	case bucket != "" || flags != boltBucket || len(value) < boltPageHeader:
		return fmt.Errorf("%q is not what it was", key)
	}
	if err := s.pair(string(key), nil, nil); err != nil {
		return err
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return s.tree(root, string(key), nil, nil, depth+1)
	}
	page := value[boltPageHeader:]
	if len(page) < boltPageHeader || binary.LittleEndian.Uint16(page[8:]) != boltLeaf {
		return fmt.Errorf("bucket %q is not what it was", key)
	}
	return s.elements(page, string(key), nil, nil, depth+1)
}

// freelist checks, where the file has a list of its free pages, that each page is either free or in use: bbolt would
// write over one that is both.
func (s *boltScan) freelist() error {
	if s.meta.freelist == boltNoFreelist {
		return nil
	}
	page, err := s.page(s.meta.freelist, 0)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	le := binary.LittleEndian
	count, list := uint64(le.Uint16(page[10:])), page[boltPageHeader:]
	if count == 0xFFFF {
		count, list = le.Uint64(list), list[8:]
	}
	if le.Uint16(page[8:]) != boltFreelist || count > uint64(len(list)/8) {
		return errors.New("list of free pages: its header is not what was written")
	}
	for i := range count {
		free := le.Uint64(list[8*i:])
		if free >= s.meta.high || s.used[free] {
			return fmt.Errorf("list of free pages: page %d is in use", free)
		}
		s.used[free] = true
	}
	for i, known := range s.used {
		if !known {
			return fmt.Errorf("page %d is neither free nor in use", i)
		}
	}
	return nil
}

// checkBolt scans a bbolt file that no other process has open. One that is missing or empty holds nothing.
func checkBolt(path string, fn func(bucket string, key, value []byte) error) (meta boltMeta, err error) {
	file, err := os.Open(path)
	if err != nil {
		return meta, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	// For its lock alone: it maps what is there and looks at nothing but the meta pages.
	lock, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, ReadOnly: true})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return meta, inUse(path)
	case err == nil:
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	info, err := file.Stat()
	if err != nil {
		return meta, err
	}
	if meta, err = scanBolt(file, info.Size(), fn); err != nil {
		return meta, damagedFile(path, err)
	}
	return meta, nil
}

// anew is what to do with a node whose votes or entries cannot be believed. Started under its name with an empty folder,
// while it still has a vote, it could promise in a term what it has promised to another before.
const anew = "Do not delete it and start again: remove this node from the membership, move its folder away, and let it join anew"

// damagedFile says of a file with votes or entries in it that it cannot be believed, and what to do.
func damagedFile(path string, why error) error {
	return fmt.Errorf("%w: %s: %w. This node may have forgotten how it voted or what it helped to acknowledge. %s",
		ErrDamagedLog, path, why, anew)
}
