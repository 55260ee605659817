package audit

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Chunk is how many entries a store of tree hashes may leave to be computed
// from the bodies: of a complete chunk, entries k*Chunk to (k+1)*Chunk, its root
// and all above are enough to prove anything, with a chunk or two of bodies. A
// log of ten million entries has 640 MB of tree hashes, and 2.5 MB of those.
const (
	Chunk      = 1 << ChunkLevel
	ChunkLevel = 8 // of a complete chunk's root
)

// CheckChunk checks that bodies are entries of the log over the first size
// leaves: those from first, which begins a chunk, to the end of the chunk or of
// the log. It asks s for the chunk's root if it is complete, and otherwise for
// the roots of the complete subtrees of which the log's end consists. A failure
// wraps [ErrProof].
func CheckChunk(s HashReader, size, first int64, bodies [][]byte) error {
	if first < 0 || first%Chunk != 0 || first >= size || int64(len(bodies)) != min(Chunk, size-first) {
		return fmt.Errorf("%w: %d entries from %d on of %d", ErrRange, len(bodies), first, size)
	}
	tree := treeOf(bodies)
	for level := range ChunkLevel + 1 {
		if len(bodies)>>level&1 == 0 {
			continue // no subtree of this size at the edge
		}
		n := int64(len(bodies)>>level) - 1
		want, ok := s.GetHash(tlog.StoredHashIndex(level, first>>level+n))
		if !ok {
			return fmt.Errorf("%w: level %d of the chunk at %d", ErrStorage, level, first)
		}
		if tree[level][n] != want {
			return fmt.Errorf("%w: entries %d to %d are not the log's", ErrProof, first, first+int64(len(bodies))-1)
		}
	}
	return nil
}

// treeOf returns the hashes of the complete subtrees over a chunk's bodies, by
// level.
func treeOf(bodies [][]byte) (tree [ChunkLevel + 1][]tlog.Hash) {
	for _, body := range bodies {
		tree[0] = append(tree[0], LeafHash(body))
	}
	for level := 1; level < len(tree); level++ {
		below := tree[level-1]
		for i := 0; i+1 < len(below); i += 2 {
			tree[level] = append(tree[level], tlog.NodeHash(below[i], below[i+1]))
		}
	}
	return tree
}

// Chunks is a [HashReader] over one that lacks hashes inside of chunks.
type Chunks struct {
	under HashReader
	trees map[int64][ChunkLevel + 1][]tlog.Hash // by the chunk's number
}

// WithChunks completes s with the bodies of the chunks that begin at these
// entries. The bodies MUST have been checked, or what is computed from them
// MUST be checked against something else.
func WithChunks(s HashReader, bodies map[int64][][]byte) Chunks {
	c := Chunks{under: s, trees: make(map[int64][ChunkLevel + 1][]tlog.Hash, len(bodies))}
	for first, list := range bodies {
		c.trees[first>>ChunkLevel] = treeOf(list)
	}
	return c
}

// GetHash implements [HashReader].
func (c Chunks) GetHash(index int64) (tlog.Hash, bool) {
	level, n := tlog.SplitStoredHashIndex(index)
	if level < ChunkLevel {
		first := n << level
		hashes := c.trees[first>>ChunkLevel][level]
		if at := n - first>>ChunkLevel<<(ChunkLevel-level); at < int64(len(hashes)) {
			return hashes[at], true
		}
	}
	return c.under.GetHash(index)
}

// ProofChunks returns the first entries of the chunks whose bodies a proof may
// need, of leaf or of the size older, in the tree over the first size leaves.
func ProofChunks(size, of int64) []int64 {
	chunks := []int64{of >> ChunkLevel << ChunkLevel}
	if last := size >> ChunkLevel << ChunkLevel; last != chunks[0] {
		chunks = append(chunks, last)
	}
	return chunks
}
