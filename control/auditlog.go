package control

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

// maxEntries is how many audit entries one answer holds, maxEntryBytes how long
// they may be together.
const (
	defaultEntries = 100
	maxEntries     = 1000
	maxEntryBytes  = 4 << 20
)

// AuditEntries implements api.AuditBackend.
func (b backend) AuditEntries(ctx context.Context, call api.Call, from uint64, limit int) (out api.AuditEntries, err error) {
	if limit <= 0 {
		limit = defaultEntries
	}
	out.Entries = []json.RawMessage{}
	if err = b.viewAsPerson(ctx, call, func(s approval.State) (err error) {
		out.Size, err = auditSize(s)
		return err
	}); err != nil {
		return out, err
	}
	at, total := from, 0
	err = b.bodies(ctx, from, out.Size, func(_ uint64, body []byte) bool {
		out.Entries = append(out.Entries, bytes.Clone(body))
		total += len(body)
		at++
		return len(out.Entries) < min(limit, maxEntries) && total < maxEntryBytes
	})
	if at < out.Size {
		out.Next = at
	}
	return out, err
}

// bodies calls fn with the audit entries of these numbers, in order, until it
// returns false.
func (n *node) bodies(ctx context.Context, from, to uint64, fn func(index uint64, body []byte) bool) error {
	next, more := from, from < to
	if !more {
		return nil
	}
	err := n.store.ReadRecords(ctx, from, func(at uint64, body []byte) bool {
		if at != next {
			return false
		}
		next++
		more = fn(at, body) && next < to
		return more
	})
	if err == nil && more {
		err = fmt.Errorf("audit entry %d is missing", next)
	}
	return storeProblem(err)
}

// chunks returns the bodies that a proof over the first size entries may need
// of these chunks.
func (n *node) chunks(ctx context.Context, size int64, firsts []int64) (map[int64][][]byte, error) {
	chunks := make(map[int64][][]byte, len(firsts))
	for _, first := range firsts {
		if first >= size {
			continue
		}
		if err := n.bodies(ctx, uint64(first), uint64(min(size, first+audit.Chunk)), func(_ uint64, body []byte) bool {
			chunks[first] = append(chunks[first], bytes.Clone(body))
			return true
		}); err != nil {
			return nil, err
		}
	}
	return chunks, nil
}

func auditSize(s approval.State) (uint64, error) {
	size, err := s.AuditSize()
	return uint64(max(size, 0)), err
}

// AuditCheckpoint implements api.AuditBackend.
func (b backend) AuditCheckpoint(ctx context.Context, call api.Call) (out api.AuditCheckpoint, err error) {
	var head audit.Checkpoint
	if err := b.viewAsPerson(ctx, call, func(s approval.State) error {
		c, err := s.Cluster()
		if err != nil {
			return err
		}
		head.Origin = audit.Origin(c.TrustDomain, c.Epoch)
		head.Size, err = s.AuditSize()
		return err
	}); err != nil {
		return out, err
	}
	head, signed, err := b.publish(ctx, head)
	if err != nil {
		return out, err
	}
	return api.AuditCheckpoint{
		Checkpoint: string(signed), Origin: head.Origin, Size: uint64(head.Size), Root: hash64(head.Root),
	}, nil
}

func hash64(h tlog.Hash) string { return base64.StdEncoding.EncodeToString(h[:]) }

// sizes checks what a proof is asked over; zero stands for the log's size now.
func sizes(s approval.State, wanted uint64) (int64, error) {
	size, err := s.AuditSize()
	if err != nil {
		return 0, err
	}
	if wanted == 0 {
		return size, nil
	}
	if wanted > uint64(max(size, 0)) {
		return 0, outOfLog(size)
	}
	return int64(wanted), nil
}

func outOfLog(size int64) error {
	return api.NewProblem(api.CodeInvalid, fmt.Sprintf("the log has %d entries", size), "ask within them")
}

// InclusionProof implements api.AuditBackend.
func (b backend) InclusionProof(ctx context.Context, call api.Call, index, size uint64) (out api.InclusionProof, err error) {
	var over int64
	if err := b.viewAsPerson(ctx, call, func(s approval.State) (err error) {
		if over, err = sizes(s, size); err == nil && index >= uint64(max(over, 0)) {
			err = outOfLog(over)
		}
		return err
	}); err != nil {
		return out, err
	}
	proof, leaf, err := b.inclusion(ctx, over, int64(index))
	if err != nil {
		return out, err
	}
	return api.InclusionProof{Index: index, Size: uint64(over), LeafHash: hash64(leaf), Hashes: mapped(proof, hash64)}, nil
}

// inclusion proves an entry in the tree over the first size entries.
func (n *node) inclusion(ctx context.Context, size, index int64) (proof []tlog.Hash, leaf tlog.Hash, err error) {
	chunks, err := n.chunks(ctx, size, audit.ProofChunks(size, index))
	if err != nil {
		return nil, leaf, err
	}
	err = n.local(func(s approval.State) (err error) {
		hashes := audit.WithChunks(s, chunks)
		leaf, _ = hashes.GetHash(tlog.StoredHashIndex(0, index))
		proof, err = audit.InclusionProof(hashes, size, index)
		return err
	})
	return proof, leaf, err
}

// ConsistencyProof implements api.AuditBackend.
func (b backend) ConsistencyProof(ctx context.Context, call api.Call, from, to uint64) (out api.ConsistencyProof, err error) {
	var newer int64
	if err := b.viewAsPerson(ctx, call, func(s approval.State) (err error) {
		if newer, err = sizes(s, to); err == nil && from > uint64(max(newer, 0)) {
			err = outOfLog(newer)
		}
		return err
	}); err != nil {
		return out, err
	}
	chunks, err := b.chunks(ctx, newer, audit.ProofChunks(newer, int64(from)))
	if err != nil {
		return out, err
	}
	var proof []tlog.Hash
	err = b.local(func(s approval.State) (err error) {
		proof, err = audit.ConsistencyProof(audit.WithChunks(s, chunks), int64(from), newer)
		return err
	})
	return api.ConsistencyProof{Old: from, New: uint64(newer), Hashes: mapped(proof, hash64)}, err
}
