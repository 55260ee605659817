package raftstore

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// content is what a state holds, apart from where in the log it stands: how many records were appended, and the sum of
// its pairs. Two states with one content are the same, however each came to it.
type content struct {
	records uint64
	sum     pairSum
}

// hash is what nodes compare.
func (c content) hash() [sha256.Size]byte {
	return sha256.Sum256(append([]byte("hallpass state v1\x00"), c.encode()...))
}

const contentSize = 8 + sha256.Size

func (c content) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, contentSize), c.records)
	for _, w := range c.sum {
		b = binary.BigEndian.AppendUint64(b, w)
	}
	return b
}

// decodeContent reads contentSize bytes.
func decodeContent(b []byte) (c content) {
	c.records = binary.BigEndian.Uint64(b)
	for i := range c.sum {
		c.sum[i] = binary.BigEndian.Uint64(b[8+8*i:])
	}
	return c
}

// pairSum is the sum, modulo 2^256, of a SHA-256 of each pair. It follows each write at the cost of one or two hashes,
// whatever the size of the state, and does not depend on the order of the writes. It finds a state that went another way
// by a fault of memory, disk or program; someone who may choose the pairs could make two states of one sum, and might as
// well choose the commands. Words are the most significant first.
type pairSum [4]uint64

func (s *pairSum) add(key, value []byte) {
	var carry uint64
	h := hashPair(key, value)
	for i := len(s) - 1; i >= 0; i-- {
		s[i], carry = bits.Add64(s[i], h[i], carry)
	}
}

func (s *pairSum) remove(key, value []byte) {
	var borrow uint64
	h := hashPair(key, value)
	for i := len(s) - 1; i >= 0; i-- {
		s[i], borrow = bits.Sub64(s[i], h[i], borrow)
	}
}

// hashPair hashes the key's length in 8 bytes, the key and the value: no two pairs are hashed as the same bytes.
func hashPair(key, value []byte) (words pairSum) {
	var buffer [256]byte
	b := binary.BigEndian.AppendUint64(buffer[:0], uint64(len(key)))
	b = append(append(b, key...), value...)
	sum := sha256.Sum256(b)
	for i := range words {
		words[i] = binary.BigEndian.Uint64(sum[8*i:])
	}
	return words
}

// sumOf is the sum of all pairs.
func sumOf(r Reader) (s pairSum) {
	r.Scan(nil, nil, func(k, v []byte) bool {
		s.add(k, v)
		return true
	})
	return s
}
