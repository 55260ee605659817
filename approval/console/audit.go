package console

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

// auditPage is how many audit entries a page has.
const auditPage = 50

// entry is an audit entry as people read it.
type entry struct {
	Index               uint64
	Kind, Actor, Object string
	Node                string
	Time                time.Time
	Text                string // exactly what is hashed
	Broken              bool   // it is not in the log's one form
}

func newEntry(index uint64, text json.RawMessage) entry {
	e, err := audit.ParseEntry(text)
	if err != nil || e.Index != index {
		return entry{Index: index, Text: string(text), Broken: true}
	}
	return entry{Index: index, Kind: e.Kind, Actor: e.Actor, Object: e.Object, Node: e.Node, Time: e.Time, Text: string(text)}
}

type auditBody struct {
	Size    uint64
	Entries []entry // newest first
	Before  uint64  // where the next page ends; 0 for none
	Newest  bool
}

// audit shows the log, newest first.
func (c *Console) audit(v visit) (view, error) {
	before, given, err := number(v.URL.Query().Get("before"))
	if err != nil {
		return view{}, err
	}
	b := auditBody{Newest: !given}
	if b.Newest {
		run, err := v.api.AuditEntries(v.Context(), farAway, 1)
		if err != nil {
			return view{}, err
		}
		before = run.Size
	}
	from := before - min(before, auditPage)
	run := api.AuditEntries{Size: before}
	if before > from {
		if run, err = v.api.AuditEntries(v.Context(), from, int(before-from)); err != nil {
			return view{}, err
		}
	}
	b.Size, b.Before = run.Size, from
	for i, text := range slices.Backward(run.Entries) {
		b.Entries = append(b.Entries, newEntry(from+uint64(i), text))
	}
	return view{page: "audit", title: "Audit", body: b}, nil
}

// number reads a number of an address.
func number(text string) (n uint64, given bool, err error) {
	if text == "" {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(text, 10, 48)
	if err != nil {
		return 0, false, api.NewProblem(api.CodeInvalid, "that is no number of an entry", "go back to the audit log")
	}
	return n, true, nil
}

type entryBody struct {
	entry
	Checkpoint api.AuditCheckpoint
	Proof      api.InclusionProof
	// Failed is why the proof does not hold; "" where it does.
	Failed string
}

// auditEntry shows one entry, and checks that it is in the log whose head a node
// has signed.
func (c *Console) auditEntry(v visit) (view, error) {
	index, _, err := number(v.PathValue("index"))
	if err != nil {
		return view{}, err
	}
	run, err := v.api.AuditEntries(v.Context(), index, 1)
	if err != nil {
		return view{}, err
	}
	if len(run.Entries) == 0 {
		return view{}, api.NewProblem(api.CodeNotFound, fmt.Sprintf("the log has %d entries", run.Size), "ask within them")
	}
	b := entryBody{entry: newEntry(index, run.Entries[0])}
	if b.Checkpoint, err = v.api.AuditCheckpoint(v.Context()); err != nil {
		return view{}, err
	}
	if b.Checkpoint.Size > index {
		if b.Proof, err = v.api.InclusionProof(v.Context(), index, b.Checkpoint.Size); err != nil {
			return view{}, err
		}
	}
	if err := proven(index, run.Entries[0], b.Checkpoint, b.Proof); err != nil {
		b.Failed = err.Error()
	}
	return view{page: "entry", title: fmt.Sprintf("Audit entry %d", index), body: b}, nil
}

// proven checks that text is entry index of the log with the checkpoint's root. The
// leaf's hash is computed here: the one that came along proves nothing.
func proven(index uint64, text []byte, head api.AuditCheckpoint, p api.InclusionProof) error {
	at, err := audit.ReadCheckpoint([]byte(head.Checkpoint))
	if err != nil {
		return err
	}
	if at.Size < 0 || uint64(at.Size) != head.Size || at.Size > audit.MaxSize {
		return fmt.Errorf("the checkpoint is of %d entries, not of %d", at.Size, head.Size)
	}
	if index >= head.Size {
		return fmt.Errorf("the checkpoint is of %d entries: it is older than the entry", head.Size)
	}
	proof := make(tlog.RecordProof, 0, len(p.Hashes))
	for _, h := range p.Hashes {
		raw, err := base64.StdEncoding.DecodeString(h)
		if err != nil || len(raw) != tlog.HashSize {
			return fmt.Errorf("the proof holds %q, which is no hash", h)
		}
		proof = append(proof, tlog.Hash(raw))
	}
	return tlog.CheckRecord(proof, at.Size, at.Root, int64(index), audit.LeafHash(text))
}
