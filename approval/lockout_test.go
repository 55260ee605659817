package approval

import (
	"errors"
	"fmt"
	"testing"
)

// TestPolicyNobodyCanMeet: of a group that approves its own requests, whoever asks is
// one approver less. With 3 of 4 there is somebody left for each; with 4, nobody is.
func TestPolicyNobodyCanMeet(t *testing.T) {
	for approvals, want := range map[int]error{3: nil, 4: ErrInvalid, 5: ErrInvalid} {
		w := newWorld(t)
		yaml := fmt.Sprintf("version: 1\nrules:\n  - {name: r, service: payments, requesters: [\"group:payments-owners\"], permissions: [tcp], "+
			"require: [{group: payments-owners, approvals: %d}], max_duration: 1h}\n", approvals)
		r := w.apply("ada", ProposeChange{ID: w.id(), Edit: Edit{Kind: EditPolicySet, YAML: yaml}, BaseRevision: 1})
		if !errors.Is(r.Failure(), want) {
			t.Errorf("%d of 4: %v, want %v", approvals, r.Failure(), want)
		}
	}
}
