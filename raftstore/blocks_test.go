package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// Many blocks, pairs larger than a block, empty values and keys that begin as others do: what comes out went in.
func TestSnapshotOfManyBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	want := map[string]string{}
	for i := range 5000 {
		v := make([]byte, r.IntN(8000))
		for j := range v {
			v[j] = byte(r.Uint32())
		}
		want[fmt.Sprintf("key %d", i*i)] = string(v)
	}
	want["big"] = strings.Repeat("abcdefg", blockSize/3)
	want["big\x00"] = ""
	want["bigger"] = string(bytes.Repeat([]byte{0}, 3*blockSize))
	want[strings.Repeat("k", 32768)] = "the longest key"
	from, to := newTestState(t), newTestState(t)
	if err := from.write(position{9, 2}, func(tx *boltTx) {
		for k, v := range want {
			tx.Put([]byte(k), []byte(v))
		}
	}); err != nil {
		t.Fatal(err)
	}
	snap := snapshotOf(t, from, position{10, 2}, 0)
	if len(snap) < 2*blockSize {
		t.Fatalf("a snapshot of %d bytes has no two blocks", len(snap))
	}
	f := testFSM(t, to)
	if err := f.Restore(readCloser{bytes.NewReader(snap)}); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	if err := to.view(func(r *boltTx, at position) error {
		r.Scan(nil, nil, func(k, v []byte) bool {
			got[string(k)] = string(v)
			return true
		})
		if sum := sumOf(r); sum != r.content.sum || at.index != 10 {
			t.Errorf("at %d with the sum %x, kept as %x", at.index, sum, r.content.sum)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d pairs came out, %d went in", len(got), len(want))
	}
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// What a block may not hold is refused whatever checksum it has.
func TestMalformedBlocks(t *testing.T) {
	zip, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = zip.Close() }()
	head := func(size, packed int) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(size))
		return binary.BigEndian.AppendUint32(b, uint32(packed))
	}
	block := func(pairs ...string) []byte {
		raw := []byte(strings.Join(pairs, ""))
		packed := zip.EncodeAll(raw, nil)
		return slices.Concat(head(len(raw), len(packed)), packed, make([]byte, 8))
	}
	pair := func(shared int, rest, value string) string {
		b := binary.AppendUvarint(nil, uint64(shared))
		b = append(binary.AppendUvarint(b, uint64(len(rest))), rest...)
		return string(append(binary.AppendUvarint(b, uint64(len(value))), value...))
	}
	read := func(b []byte) (pairs int, err error) {
		in, err := newBlockReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		defer in.release()
		for more := true; more && err == nil; {
			more, err = in.next(func(_, _ []byte) error { pairs++; return nil })
		}
		return pairs, err
	}
	if n, err := read(block(pair(0, "a", "1"), pair(1, "b", ""), pair(0, "b", "2"))); n != 3 || err != nil {
		t.Errorf("a good block: %d pairs, %v", n, err)
	}
	lying := block(pair(0, "a", "1"))
	lying[3]++
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"no end":             block(pair(0, "a", "1"))[:20],
		"out of order":       block(pair(0, "b", "1"), pair(0, "a", "1")),
		"twice":              block(pair(0, "a", "1"), pair(0, "a", "1")),
		"twice, shared":      block(pair(0, "a", "1"), pair(1, "", "1")),
		"shorter":            block(pair(0, "ab", "1"), pair(1, "", "1")),
		"shares too much":    block(pair(0, "a", "1"), pair(2, "b", "1")),
		"key too long":       block(pair(0, "a", "1"), "\x00\x09b"),
		"value too long":     block("\x00\x01a\x05b"),
		"cut in a number":    block("\x00\x01a\x80"),
		"endless number":     block(strings.Repeat("\xff", 11)),
		"another size":       lying,
		"not compressed":     slices.Concat(head(3, 3), []byte("abc"), make([]byte, 8)),
		"an impossible size": head(maxBlockSize+1, 10),
		"an empty block":     head(0, 10),
		"says gigabytes":     append(head(100, maxBlockSize), "abc"...),
	} {
		if n, err := read(b); !errors.Is(err, ErrDamagedSnapshot) {
			t.Errorf("%s: %d pairs, %v", name, n, err)
		}
	}
}

// A state file whose bytes changed on the disk is found when a snapshot is to be made of it, and is not handed on.
func TestRottenStateFileHalts(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a %s", strings.Repeat("sound ", 20))
	index, _ := c.propose("set b 1")
	s := c.followers()[0]
	await(t, s, index)
	rot(t, s.state.path, "sound sound", "rotten rott")
	if err := s.Snapshot(); err == nil {
		t.Error("a snapshot of a damaged state")
	}
	select {
	case <-s.Done():
	default:
		t.Fatal("the node goes on")
	}
	if err := s.Err(); !strings.Contains(err.Error(), "Start the node again") {
		t.Errorf("it does not say what to do: %v", err)
	}
	c.stop(s.cfg.ID)
	s = c.start(s.cfg.ID)
	await(t, s, index)
	if got := get(t, s, "a"); strings.Contains(got, "rotten") || got == "" {
		t.Errorf("a = %q", got)
	}
	index, _ = c.propose("set b 2")
	c.agree(index)
}
