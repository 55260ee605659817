package approval

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/audit"
)

// leafStore keeps the tree hashes of the audit log among the state, in the same
// transaction as the change that each leaf records: the roots of complete chunks
// and what is above them, and below that only the last hash of each level. The
// others follow from the bodies, see audit.WithChunks.
type leafStore struct{ *draft }

var _ audit.HashStore = leafStore{}

// GetHash implements audit.HashReader.
func (s leafStore) GetHash(index int64) (tlog.Hash, bool) { return Read(s.draft).GetHash(index) }

// PutHash implements audit.HashStore.
func (s leafStore) PutHash(index int64, h tlog.Hash) {
	level, n := tlog.SplitStoredHashIndex(index)
	if level < audit.ChunkLevel {
		s.Put(edgeKey(level), append(binary.BigEndian.AppendUint64(nil, uint64(n)), h[:]...))
		return
	}
	s.Put(hashKey(uint64(index)), h[:])
}

// CheckRecords says whether the records are the bodies of the audit log's
// entries from first on, which begins a chunk, to the end of the chunk or of the
// log as r shows it.
func CheckRecords(r Reader, first uint64, records [][]byte) error {
	s := Read(r)
	size, err := s.AuditSize()
	if err != nil {
		return err
	}
	return audit.CheckChunk(s, size, int64(min(first, audit.MaxSize)), records)
}

// appendLeaf writes the one audit leaf of the command: its hash into the state,
// its body beside it.
func (t *turn) appendLeaf() error {
	details, err := json.Marshal(t.details)
	if err != nil {
		return fmt.Errorf("approval: audit details: %w", err)
	}
	body, size, err := audit.AppendEntry(leafStore{t.draft}, int64(t.m.AuditSize), audit.Entry{
		Time:      t.now.Time(),
		Kind:      string(t.cmd.Kind),
		Actor:     t.cmd.Actor,
		Node:      t.cmd.Node,
		Object:    t.object,
		CommandID: t.cmd.ID,
		Details:   details,
	})
	if err != nil {
		return fmt.Errorf("approval: audit leaf: %w", err)
	}
	t.Append(body)
	t.m.AuditSize = uint64(size)
	return nil
}
