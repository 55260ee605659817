package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxBundle is the size in bytes over which a bundle is refused.
const MaxBundle = 64 << 20

// ErrBundle is returned when a bundle is malformed, or shows entries that are
// not what it says it is about.
var ErrBundle = errors.New("audit: bundle refused")

const (
	bundleLine = "hallpass-audit-bundle/v1"
	grantLine  = "grant "
	entryLine  = "entry "
	hashLine   = "hash "

	kindCreate = "request.create"
	kindReview = "review.close"
	kindTick   = "tick"
	kindBlock  = "subject.block"
	kindDecide = "request.decide"
	kindImport = "emergency.import" // of a grant that nobody asked for here
	kindRevoke = "emergency.revoke" // of one before it was imported
)

// Bundle proves to somebody offline what the log says of one grant. Its text is
// a line naming the format, one naming the grant, each entry with the hashes of
// its inclusion proof, an empty line, and the signed checkpoint:
//
//	hallpass-audit-bundle/v1
//	grant 0199…
//	entry {"actor":…}
//	hash BASE64
//	…
//
//	acme.test/hallpass/epoch/1
//	…
type Bundle struct {
	// Grant is the id of the grant, which is its request's.
	Grant string
	// Entries are those about it, in the log's order.
	Entries []Proven
	// Checkpoint is the signed head that the proofs are over.
	Checkpoint []byte
}

// Proven is one entry with its RFC 6962 §2.1.1 audit path.
type Proven struct {
	Body  []byte
	Proof []tlog.Hash
}

// Encode returns the bundle's one text.
func (b Bundle) Encode() []byte {
	var out bytes.Buffer
	out.WriteString(bundleLine + "\n" + grantLine + b.Grant + "\n")
	for _, p := range b.Entries {
		out.WriteString(entryLine)
		out.Write(p.Body)
		out.WriteByte('\n')
		for _, h := range p.Proof {
			out.WriteString(hashLine + h.String() + "\n")
		}
	}
	out.WriteByte('\n')
	out.Write(b.Checkpoint)
	return out.Bytes()
}

// IsBundle reports whether a file begins as a bundle does.
func IsBundle(data []byte) bool { return bytes.HasPrefix(data, []byte(bundleLine+"\n")) }

// ParseBundle reads a bundle as [Bundle.Encode] writes it, and no other
// spelling. It says nothing about whether the bundle is true. Errors wrap
// [ErrBundle].
func ParseBundle(data []byte) (Bundle, error) {
	if len(data) > MaxBundle {
		return Bundle{}, fmt.Errorf("%w: %d bytes, at most %d", ErrBundle, len(data), MaxBundle)
	}
	text, checkpoint, ok := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(text), "\n")
	if !ok || len(lines) < 2 || lines[0] != bundleLine || !strings.HasPrefix(lines[1], grantLine) {
		return Bundle{}, fmt.Errorf("%w: not a bundle, or cut short", ErrBundle)
	}
	b := Bundle{Grant: strings.TrimPrefix(lines[1], grantLine), Checkpoint: checkpoint}
	for n, line := range lines[2:] {
		if body, ok := strings.CutPrefix(line, entryLine); ok {
			b.Entries = append(b.Entries, Proven{Body: []byte(body)})
			continue
		}
		h, err := tlog.ParseHash(strings.TrimPrefix(line, hashLine))
		if err != nil || len(b.Entries) == 0 {
			return Bundle{}, fmt.Errorf("%w: line %d is neither an entry nor a hash", ErrBundle, n+3)
		}
		last := &b.Entries[len(b.Entries)-1]
		last.Proof = append(last.Proof, h)
	}
	if !bytes.Equal(b.Encode(), data) {
		return Bundle{}, fmt.Errorf("%w: not in canonical form", ErrBundle)
	}
	return b, nil
}

// Verify checks with nothing but public keys that each entry is in the log
// that the checkpoint is the head of, and that each is about the grant. Every
// signature must be by a known key: of a bundle, no byte is there that nothing
// vouches for. What it cannot check is that no entry about the grant was left
// out; only the whole log shows that. Errors wrap [ErrBundle], [ErrCheckpoint],
// [ErrEntry] or [ErrProof].
func (b Bundle) Verify(verifiers note.Verifiers) (Report, []Entry, error) {
	head, err := openCheckpoint(b.Checkpoint, verifiers)
	if err != nil {
		return Report{}, nil, err
	}
	if len(head.unknown) > 0 {
		return Report{}, nil, fmt.Errorf("%w: its checkpoint is also signed by a key that was not given: %s", ErrBundle, strings.Join(head.unknown, ", "))
	}
	report, err := head.report()
	if err != nil {
		return Report{}, nil, err
	}
	var entries []Entry
	for i, p := range b.Entries {
		e, err := ParseEntry(p.Body)
		if err != nil {
			return Report{}, nil, err
		}
		if err := CheckInclusion(head.Checkpoint, int64(e.Index), p.Body, p.Proof); err != nil {
			return Report{}, nil, err
		}
		if i > 0 && e.Index <= entries[i-1].Index {
			return Report{}, nil, fmt.Errorf("%w: entry %d after entry %d", ErrBundle, e.Index, entries[i-1].Index)
		}
		if !e.Concerns(b.Grant) {
			return Report{}, nil, fmt.Errorf("%w: entry %d is not about %s", ErrBundle, e.Index, b.Grant)
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 || !slices.Contains([]string{kindCreate, kindImport, kindRevoke}, entries[0].Kind) {
		return Report{}, nil, fmt.Errorf("%w: it does not begin with the request for %s", ErrBundle, b.Grant)
	}
	report.First, report.Last = entries[0].Time, entries[len(entries)-1].Time
	return report, entries, nil
}

// Concerns reports whether the entry is about the request, or its grant, of
// this id: made by a command on it, about making it longer, or ending it among others.
func (e Entry) Concerns(id string) bool {
	if id == "" {
		return false
	}
	d := e.among()
	return e.Object == id || d.Extends == id || d.Parent == id || d.ends(id)
}

// Ends reports whether the entry ended the request, without a grant, or the
// grant of this id. Nothing that matters of it comes afterwards.
func (e Entry) Ends(id string) bool {
	d := e.among()
	switch {
	case id == "" || e.Object != id:
		return id != "" && d.ends(id)
	case e.Kind == kindDecide:
		return d.State == "denied"
	case e.Kind == kindImport:
		return d.State != "active" // what had ended when it was imported
	default:
		return slices.Contains([]string{"request.cancel", "grant.revoke", "grant.return"}, e.Kind)
	}
}

// Review reports whether the entry opened, or closed, the review of the request of
// this id, which broke the glass. It may be closed long after the grant has ended.
func (e Entry) Review(id string) (opened, closed bool) {
	if id == "" || e.Object != id {
		return false, false
	}
	var d struct {
		BreakGlass json.RawMessage `json:"break_glass"`
		Closed     bool            `json:"closed"`
	}
	if (e.Kind != kindCreate && e.Kind != kindReview) || json.Unmarshal(e.Details, &d) != nil {
		return false, false
	}
	return e.Kind == kindCreate && d.BreakGlass != nil, e.Kind == kindReview && d.Closed
}

// endings is the part of an entry's details that says what ended.
type endings struct {
	State    string    `json:"state"`
	Requests []string  `json:"requests"`
	Grants   []string  `json:"grants"`
	Extends  string    `json:"extends"` // the grant that a request would make longer, or has
	Parent   string    `json:"parent"`  // the grant that one was made of
	Began    time.Time `json:"-"`       // of an epoch: what is older has ended, and no list names it
}

func (d endings) ends(id string) bool {
	return slices.Contains(d.Requests, id) || slices.Contains(d.Grants, id) || madeBefore(id, d.Began)
}

// madeBefore reads the time in an id, a UUIDv7: milliseconds in its first 48 bits.
func madeBefore(id string, t time.Time) bool {
	if len(id) != 36 || t.IsZero() {
		return false
	}
	ms, err := strconv.ParseInt(id[:8]+id[9:13], 16, 64)
	return err == nil && ms < t.UnixMilli()
}

// among reads what an entry ended, itself or among others.
func (e Entry) among() (d endings) {
	switch e.Kind {
	case kindTick, kindBlock, kindCreate, kindDecide, "request.cancel", kindImport, "grant.issue", "grant.revoke", "grant.return":
		if json.Unmarshal(e.Details, &d) != nil {
			return endings{} // of a kind of its own: it ended nothing
		}
	case kindEpoch:
		var all struct { // what ended is counted there, not listed
			Began time.Time `json:"began"`
		}
		if json.Unmarshal(e.Details, &all) == nil {
			d.Began = all.Began
		}
	}
	return d
}
