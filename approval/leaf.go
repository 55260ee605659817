package approval

import (
	"encoding/json"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/audit"
)

// leafStore keeps the tree hashes of the audit log among the state, in the same
// transaction as the change that each leaf records.
type leafStore struct{ *draft }

var _ audit.HashStore = leafStore{}

// GetHash implements audit.HashReader.
func (s leafStore) GetHash(index int64) (tlog.Hash, bool) { return Read(s.draft).GetHash(index) }

// PutHash implements audit.HashStore.
func (s leafStore) PutHash(index int64, h tlog.Hash) {
	s.Put(hashKey(uint64(index)), h[:])
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
