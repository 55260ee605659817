package control

import (
	"bytes"
	"context"
	"errors"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/raftstore"
)

// errGrown is a log that became longer while its entries were read.
var errGrown = errors.New("the audit log has grown")

// CheckStore reads all of a node's state and audit log and returns what in them
// must never be, nil when there is nothing. It holds the log in memory; it is for
// tests and for an operator's doubts.
func CheckStore(ctx context.Context, store *raftstore.Store) error {
	for {
		var bodies [][]byte
		if err := store.ReadRecords(ctx, 0, func(_ uint64, body []byte) bool {
			bodies = append(bodies, bytes.Clone(body))
			return true
		}); err != nil {
			return err
		}
		err := store.View(func(r raftstore.Reader, _ uint64) error {
			if err := approval.CheckInvariants(r); err != nil {
				return err
			}
			return approval.CheckAudit(r, func(index int64) ([]byte, error) {
				if index >= int64(len(bodies)) {
					return nil, errGrown
				}
				return bodies[index], nil
			})
		})
		if !errors.Is(err, errGrown) {
			return err
		}
	}
}
