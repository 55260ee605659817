package audit

import (
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Growth is evidence that a log only grew: two signed heads, and what connects
// them. It needs no entries.
type Growth struct {
	// Older is the signed head that the auditor kept.
	Older []byte
	// Newer is the signed head that the log shows now.
	Newer []byte
	// Proof is asked for the RFC 6962 §2.1.2 proof once both heads are known to
	// be signed. It needs no trust.
	Proof func(older, newer int64) ([]tlog.Hash, error)
	// Verifiers are the public keys that are believed.
	Verifiers note.Verifiers
}

// Verify checks that the newer head's log begins with all that the older one is
// the head of, and returns what it says of the newer one, and the older one.
// Errors wrap [ErrCheckpoint], [ErrFork] when the heads themselves contradict
// each other, or [ErrProof] when what was given does not connect them; others
// are those of Proof.
func (g Growth) Verify() (Report, Checkpoint, error) {
	older, err := openCheckpoint(g.Older, g.Verifiers)
	if err != nil {
		return Report{}, Checkpoint{}, fmt.Errorf("the older checkpoint: %w", err)
	}
	newer, err := openCheckpoint(g.Newer, g.Verifiers)
	if err != nil {
		return Report{}, Checkpoint{}, err
	}
	if err := sameLog(older.Checkpoint, newer.Checkpoint); err != nil {
		return Report{}, Checkpoint{}, fmt.Errorf("the older checkpoint: %w", err)
	}
	report, err := newer.report()
	if err != nil {
		return Report{}, Checkpoint{}, err
	}
	var proof []tlog.Hash
	if older.Size > 0 && older.Size < newer.Size {
		if proof, err = g.Proof(older.Size, newer.Size); err != nil {
			return Report{}, Checkpoint{}, err
		}
	}
	if err := CheckConsistency(older.Checkpoint, newer.Checkpoint, proof); err != nil {
		return Report{}, Checkpoint{}, fmt.Errorf("%w: nothing shows that the log of %d entries extends the one of %d that was signed earlier; "+
			"it was rewritten, or whoever answered lies: keep both checkpoints", err, newer.Size, older.Size)
	}
	report.Older = 1
	return report, older.Checkpoint, nil
}
