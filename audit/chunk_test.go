package audit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// sparse keeps what a state keeps: the roots of complete chunks and what is
// above them, and of each level below the last hash alone.
type sparse struct {
	whole map[int64]tlog.Hash
	edge  [ChunkLevel]struct {
		n int64
		h tlog.Hash
	}
}

func (s *sparse) GetHash(index int64) (tlog.Hash, bool) {
	if level, n := tlog.SplitStoredHashIndex(index); level < ChunkLevel {
		return s.edge[level].h, s.edge[level].n == n
	}
	h, ok := s.whole[index]
	return h, ok
}

func (s *sparse) PutHash(index int64, h tlog.Hash) {
	if level, n := tlog.SplitStoredHashIndex(index); level < ChunkLevel {
		s.edge[level].n, s.edge[level].h = n, h
		return
	}
	s.whole[index] = h
}

// grown returns a log of n entries, in full and as a state keeps it.
func grown(t testing.TB, n int) (full *Memory, kept *sparse, bodies [][]byte) {
	t.Helper()
	full, kept = &Memory{}, &sparse{whole: map[int64]tlog.Hash{}}
	for i := range n {
		body := fmt.Appendf(nil, "entry %d", i)
		bodies = append(bodies, body)
		for _, s := range []HashStore{full, kept} {
			if _, err := Append(s, int64(i), body); err != nil {
				t.Fatal(err)
			}
		}
	}
	return full, kept, bodies
}

// chunksOf gives the bodies of chunks up to a size.
func chunksOf(bodies [][]byte, size int64, firsts []int64) map[int64][][]byte {
	chunks := map[int64][][]byte{}
	for _, first := range firsts {
		if first < size {
			chunks[first] = bodies[first:min(first+Chunk, size)]
		}
	}
	return chunks
}

// TestProofsFromSparseHashes: with a chunk or two of bodies, the few hashes
// prove the same as all of them, byte for byte.
func TestProofsFromSparseHashes(t *testing.T) {
	const n = 3*Chunk + 77
	full, kept, bodies := grown(t, n)
	if want := 4; len(kept.whole) != want { // three chunks, and a pair of them
		t.Errorf("%d hashes are kept, want %d", len(kept.whole), want)
	}
	if a, err := Root(kept, n); err != nil {
		t.Error(err)
	} else if b, err := Root(full, n); err != nil || a != b {
		t.Errorf("root %s, want %s, %v", a, b, err)
	}
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, n).Draw(t, "size")
		index := rapid.Int64Range(0, size-1).Draw(t, "index")
		with := WithChunks(kept, chunksOf(bodies, size, ProofChunks(size, index)))
		want, err := InclusionProof(full, size, index)
		if err != nil {
			t.Fatal(err)
		}
		got, err := InclusionProof(with, size, index)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("inclusion of %d in %d: %v, %v, want %v", index, size, got, err, want)
		}
		older := rapid.Int64Range(0, size).Draw(t, "older")
		with = WithChunks(kept, chunksOf(bodies, size, ProofChunks(size, older)))
		if want, err = ConsistencyProof(full, older, size); err != nil {
			t.Fatal(err)
		}
		if got, err = ConsistencyProof(with, older, size); err != nil || !slices.Equal(got, want) {
			t.Fatalf("consistency of %d with %d: %v, %v, want %v", older, size, got, err, want)
		}
	})
}

// TestCheckChunk: no other bodies pass for a chunk's.
func TestCheckChunk(t *testing.T) {
	for _, n := range []int{1, 2, 255, 256, 257, 2*Chunk + 100, 3 * Chunk} {
		_, kept, bodies := grown(t, n)
		for first := 0; first < n; first += Chunk {
			chunk := bodies[first:min(first+Chunk, n)]
			check := func(what string, list [][]byte, want error) {
				t.Helper()
				if err := CheckChunk(kept, int64(n), int64(first), list); !errors.Is(err, want) {
					t.Errorf("chunk at %d of %d: %s: %v, want %v", first, n, what, err, want)
				}
			}
			check("as it is", chunk, nil)
			for _, i := range []int{0, len(chunk) / 2, len(chunk) - 1} {
				wrong := slices.Clone(chunk)
				wrong[i] = append(bytes.Clone(wrong[i]), ' ')
				check(fmt.Sprintf("another entry %d", i), wrong, ErrProof)
			}
			check("one too few", chunk[:len(chunk)-1], ErrRange)
			check("one too many", append(slices.Clone(chunk), []byte("more")), ErrRange)
			if len(chunk) > 1 {
				wrong := slices.Clone(chunk)
				wrong[0], wrong[1] = wrong[1], wrong[0]
				check("two changed places", wrong, ErrProof)
			}
		}
		if err := CheckChunk(kept, int64(n), 1, bodies[1:]); !errors.Is(err, ErrRange) {
			t.Errorf("not the beginning of a chunk: %v", err)
		}
		if err := CheckChunk(kept, int64(n), int64(n+Chunk)/Chunk*Chunk, nil); !errors.Is(err, ErrRange) {
			t.Errorf("past the end: %v", err)
		}
	}
	if err := CheckChunk(&Memory{}, 5, 0, make([][]byte, 5)); !errors.Is(err, ErrStorage) {
		t.Errorf("without hashes: %v", err)
	}
}
