package audit

import "golang.org/x/mod/sumdb/tlog"

// frontier is the right edge of a growing tree: the roots of its complete
// subtrees, widest first. It computes the root at every size in log₂(size)
// memory.
type frontier struct {
	size int64
	edge []tlog.Hash
}

func (f *frontier) append(leaf tlog.Hash) {
	f.edge = append(f.edge, leaf)
	for n := f.size; n&1 == 1; n >>= 1 { // each trailing 1 completes a subtree
		last := len(f.edge) - 1
		f.edge[last-1] = tlog.NodeHash(f.edge[last-1], f.edge[last])
		f.edge = f.edge[:last]
	}
	f.size++
}

func (f *frontier) root() tlog.Hash {
	if len(f.edge) == 0 {
		return emptyRoot()
	}
	h := f.edge[len(f.edge)-1]
	for i := len(f.edge) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.edge[i], h)
	}
	return h
}
