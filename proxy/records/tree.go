package records

import (
	"crypto/sha256"
	"encoding/hex"

	"golang.org/x/mod/sumdb/tlog"
)

// Head is a tree's state: which one, how many lines, and their root in hex.
type Head struct {
	Log  string `json:"log"`
	Size int64  `json:"size"`
	Root string `json:"root"`
}

// Tree is a Merkle tree over lines. Its zero value is the empty tree.
type Tree struct {
	size int64
	edge []tlog.Hash // the roots of complete subtrees, widest first
}

// Append adds a line, given without its end.
func (t *Tree) Append(line []byte) {
	t.edge = append(t.edge, tlog.RecordHash(line))
	for n := t.size; n&1 == 1; n >>= 1 { // each trailing 1 completes a subtree
		last := len(t.edge) - 1
		t.edge[last-1] = tlog.NodeHash(t.edge[last-1], t.edge[last])
		t.edge = t.edge[:last]
	}
	t.size++
}

// Size is how many lines there are.
func (t *Tree) Size() int64 { return t.size }

// Root is the root in hex; of the empty tree it is the hash of nothing (RFC 6962 §2.1).
func (t *Tree) Root() string {
	if len(t.edge) == 0 {
		sum := sha256.Sum256(nil)
		return hex.EncodeToString(sum[:])
	}
	h := t.edge[len(t.edge)-1]
	for i := len(t.edge) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.edge[i], h)
	}
	return hex.EncodeToString(h[:])
}

// Head is the state of the tree, under the name that its first line gives it.
func (t *Tree) Head(log string) Head { return Head{Log: log, Size: t.size, Root: t.Root()} }
