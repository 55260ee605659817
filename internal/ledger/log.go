package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

// ReadLog reads all audit entries out of a node's own state, one a line.
func ReadLog(ctx context.Context, client *api.Client) (log []byte, err error) {
	for next := uint64(0); ; {
		page, err := client.AuditEntries(ctx, next, pageSize, api.Stale())
		if err != nil {
			return nil, err
		}
		for _, e := range page.Entries {
			log = append(append(log, e...), '\n')
		}
		if next = page.Next; next == 0 {
			return log, nil
		}
	}
}

// logReader goes through a log once.
type logReader struct {
	writes   map[write]int
	commands map[string]bool   // by command id
	asked    map[string]bool   // by reason, of which each round has its own
	minted   map[string]string // serial → hash of the to-be-signed bytes
	issued   []Issued
	errs     []error
}

type write struct{ kind, object string }

// CheckLog checks that a log has each acknowledged write, none of them twice, every certificate
// that was handed out, and no two under one serial number. It gives the certificates of grants in
// it. A reason in among may have been asked for more than once.
func CheckLog(log []byte, entries []Entry, among ...string) ([]Issued, error) {
	r := &logReader{
		writes: make(map[write]int), commands: make(map[string]bool), asked: make(map[string]bool), minted: make(map[string]string),
	}
	for line := range bytes.Lines(log) {
		e, err := audit.ParseEntry(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			return nil, err
		}
		if err := r.take(e, among); err != nil {
			return nil, fmt.Errorf("entry %d: %w", e.Index, err)
		}
	}
	for _, e := range entries {
		r.find(e)
	}
	return r.issued, few(r.errs)
}

func (r *logReader) wrong(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

// take reads one entry.
func (r *logReader) take(e audit.Entry, among []string) error {
	var d struct {
		Reason  string `json:"reason"`
		Serial  string `json:"serial"`
		TBSHash string `json:"tbs_hash"`
	}
	if err := json.Unmarshal(e.Details, &d); err != nil {
		return err
	}
	if r.commands[e.CommandID] {
		r.wrong("entry %d: command %s was applied before", e.Index, e.CommandID)
	}
	r.commands[e.CommandID] = true
	r.writes[write{e.Kind, e.Object}]++
	switch e.Kind {
	case "request.create":
		if r.asked[d.Reason] && !slices.Contains(among, d.Reason) {
			r.wrong("entry %d: %q was asked before", e.Index, d.Reason)
		}
		r.asked[d.Reason] = true
	case "grant.issue", "identity.issue":
		if d.Serial == "" || d.TBSHash == "" {
			return errors.New("it names no certificate")
		}
		if tbs, ok := r.minted[d.Serial]; ok {
			r.wrong("entry %d: serial %s was minted before, for %s, now for %s", e.Index, d.Serial, tbs, d.TBSHash)
		}
		r.minted[d.Serial] = d.TBSHash
		if e.Kind == "grant.issue" {
			r.issued = append(r.issued, Issued{d.Serial, e.Object, d.TBSHash})
		}
	}
	return nil
}

// find looks for what was acknowledged of one request.
func (r *logReader) find(e Entry) {
	for _, kind := range []struct {
		name string
		said bool
		over bool // nothing more can come
	}{
		{"request.create", true, true},
		{"request.decide", e.Decision != "", e.Over},
		{"request.cancel", e.Cancelled, e.Over},
		{"grant.revoke", e.Revoked, e.Over},
	} {
		got := r.writes[write{kind.name, e.ID}]
		if kind.said && got != 1 || got > 1 || !kind.said && kind.over && got > 0 {
			r.wrong("%s of %s (%s): %d entries", kind.name, e.ID, e.Reason, got)
		}
	}
	for _, c := range e.Certificates {
		if r.minted[serial(c)] != tbsHash(c) {
			r.wrong("certificate %s of %s is in somebody's hands and not what was committed", serial(c), e.ID)
		}
	}
}
