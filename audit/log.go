package audit

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

var (
	// ErrStorage is returned when a hash that the log must hold is missing.
	ErrStorage = errors.New("audit: hash missing from storage")
	// ErrRange is returned for a size or an index outside the log.
	ErrRange = errors.New("audit: out of range")
	// ErrProof is returned when a proof does not connect what it claims to.
	ErrProof = errors.New("audit: proof does not hold")
)

// HashReader reads stored tree hashes. GetHash MUST return the hash put at
// index (as [tlog.StoredHashIndex] counts), and false when there is none.
type HashReader interface {
	GetHash(index int64) (tlog.Hash, bool)
}

// HashStore also writes them. PutHash MUST be visible to later GetHash calls,
// and MUST share the transaction of the change that the entry records: a leaf
// without its change, or a change without its leaf, is a forged history.
type HashStore interface {
	HashReader
	PutHash(index int64, h tlog.Hash)
}

// reader adapts a HashReader to tlog.
func reader(s HashReader) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			h, ok := s.GetHash(index)
			if !ok {
				return nil, fmt.Errorf("%w: index %d", ErrStorage, index)
			}
			hashes[i] = h
		}
		return hashes, nil
	})
}

// Append adds body as leaf number size to the log of that size and returns the
// new size. It writes at most 1 + log₂(size) hashes, two on average, and none
// when it fails.
func Append(s HashStore, size int64, body []byte) (int64, error) {
	if size < 0 || size >= MaxSize {
		return size, fmt.Errorf("%w: size %d", ErrRange, size)
	}
	if len(body) == 0 || len(body) > MaxBody {
		return size, fmt.Errorf("%w: a body of %d bytes", ErrEntry, len(body))
	}
	if err := appendLeaf(s, size, LeafHash(body)); err != nil {
		return size, err
	}
	return size + 1, nil
}

func appendLeaf(s HashStore, size int64, leaf tlog.Hash) error {
	hashes, err := tlog.StoredHashesForRecordHash(size, leaf, reader(s))
	if err != nil {
		return fmt.Errorf("append entry %d: %w", size, err)
	}
	first := tlog.StoredHashIndex(0, size)
	for i, h := range hashes {
		s.PutHash(first+int64(i), h)
	}
	return nil
}

// AppendEntry gives e the index size, encodes it and appends it. It returns
// the body to be stored and the new size.
func AppendEntry(s HashStore, size int64, e Entry) (body []byte, newSize int64, err error) {
	if size < 0 {
		return nil, size, fmt.Errorf("%w: size %d", ErrRange, size)
	}
	e.Index = uint64(size)
	if body, err = e.Canonical(); err != nil {
		return nil, size, err
	}
	if newSize, err = Append(s, size, body); err != nil {
		return nil, size, err
	}
	return body, newSize, nil
}

// Root returns the RFC 6962 §2.1 tree hash over the first size leaves.
func Root(s HashReader, size int64) (tlog.Hash, error) {
	if size < 0 || size > MaxSize {
		return tlog.Hash{}, fmt.Errorf("%w: size %d", ErrRange, size)
	}
	root, err := tlog.TreeHash(size, reader(s))
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("root at size %d: %w", size, err)
	}
	return root, nil
}

// InclusionProof returns the RFC 6962 §2.1.1 audit path of leaf index in the
// tree over the first size leaves.
func InclusionProof(s HashReader, size, index int64) ([]tlog.Hash, error) {
	if size < 0 || size > MaxSize || index < 0 || index >= size {
		return nil, fmt.Errorf("%w: entry %d of %d", ErrRange, index, size)
	}
	proof, err := tlog.ProveRecord(size, index, reader(s))
	if err != nil {
		return nil, fmt.Errorf("inclusion of %d in %d: %w", index, size, err)
	}
	return proof, nil
}

// CheckInclusion checks that body is leaf number index of the log c is the
// head of. A failure wraps [ErrProof].
func CheckInclusion(c Checkpoint, index int64, body []byte, proof []tlog.Hash) error {
	if c.Size < 0 || c.Size > MaxSize || index < 0 || index >= c.Size {
		return fmt.Errorf("%w: entry %d of %d", ErrRange, index, c.Size)
	}
	if err := tlog.CheckRecord(proof, c.Size, c.Root, index, LeafHash(body)); err != nil {
		return fmt.Errorf("%w: entry %d is not in the log of %d entries", ErrProof, index, c.Size)
	}
	return nil
}

// ConsistencyProof returns the RFC 6962 §2.1.2 proof that the tree over the
// first older leaves is a prefix of the one over the first newer leaves. It is
// empty when older is 0 or equal to newer.
func ConsistencyProof(s HashReader, older, newer int64) ([]tlog.Hash, error) {
	if older < 0 || newer > MaxSize || older > newer {
		return nil, fmt.Errorf("%w: from %d to %d", ErrRange, older, newer)
	}
	if older == 0 || older == newer {
		return []tlog.Hash{}, nil
	}
	proof, err := tlog.ProveTree(newer, older, reader(s))
	if err != nil {
		return nil, fmt.Errorf("consistency of %d with %d: %w", older, newer, err)
	}
	return proof, nil
}

// CheckConsistency checks that the log newer is the head of begins with all
// that older is the head of. It compares sizes and roots, not origins: a
// restored cluster continues the log under a new epoch. A failure wraps
// [ErrProof].
func CheckConsistency(older, newer Checkpoint, proof []tlog.Hash) error {
	if older.Size < 0 || newer.Size > MaxSize || older.Size > newer.Size {
		return fmt.Errorf("%w: from %d to %d", ErrRange, older.Size, newer.Size)
	}
	if older.Size == 0 || older.Size == newer.Size {
		if len(proof) != 0 {
			return fmt.Errorf("%w: the proof should be empty", ErrProof)
		}
		want := newer.Root
		if older.Size == 0 {
			want = emptyRoot()
		}
		if older.Root != want {
			return fmt.Errorf("%w: two histories of %d entries", ErrProof, older.Size)
		}
		return nil
	}
	if err := tlog.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return fmt.Errorf("%w: the first %d of %d entries differ from the older log", ErrProof, older.Size, newer.Size)
	}
	return nil
}

// Memory is a [HashStore] in memory. The zero value is an empty store. It is
// not safe for concurrent use.
type Memory struct {
	hashes []tlog.Hash
}

// GetHash implements [HashReader].
func (m *Memory) GetHash(index int64) (tlog.Hash, bool) {
	if index < 0 || index >= int64(len(m.hashes)) {
		return tlog.Hash{}, false
	}
	return m.hashes[index], true
}

// PutHash implements [HashStore]. Indexes arrive in order, as [Append] makes
// them; one that leaves a gap is dropped and missed by the next read.
func (m *Memory) PutHash(index int64, h tlog.Hash) {
	switch {
	case index >= 0 && index < int64(len(m.hashes)):
		m.hashes[index] = h
	case index == int64(len(m.hashes)):
		m.hashes = append(m.hashes, h)
	}
}
