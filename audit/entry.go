package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	// MaxBody is the size in bytes over which an entry's body is refused.
	MaxBody = 1 << 20
	// MaxSize is the number of entries over which a log is refused. It keeps
	// every index exact in JSON and every tree computation within an int64.
	MaxSize = 1 << 48

	maxField  = 8192
	maxKind   = 64
	timeStyle = "2006-01-02T15:04:05.000Z"
)

// ErrEntry is returned when an entry cannot be written, or a body cannot be
// read, in the one canonical form.
var ErrEntry = errors.New("audit: malformed entry")

// Entry is one change of the cluster's state.
type Entry struct {
	// Index is the entry's place in the log, from 0.
	Index uint64
	// Time is the effective time of the command, UTC, in whole milliseconds.
	Time time.Time
	// Kind is the command's kind in dotted lower case: "request.create".
	Kind string
	// Actor is the SPIFFE ID of the caller; empty for the cluster itself.
	Actor string
	// Node is the id of the node that vouches for the caller.
	Node string
	// Object is what the change is about: the id of a request, grant, change,
	// issuer, or a subject's SPIFFE ID.
	Object string
	// CommandID is the UUIDv7 of the command that made the change.
	CommandID string
	// Details is a JSON object; empty means {}. Its numbers are integers of
	// at most 53 bits.
	Details json.RawMessage
}

// Canonical returns the entry's body: RFC 8785 JSON without a line end, whose
// members are actor, command, details, index, kind, node, object and time.
// Details are brought into that form; everything else must already have it.
// Errors wrap [ErrEntry].
func (e Entry) Canonical() ([]byte, error) {
	if err := e.valid(); err != nil {
		return nil, err
	}
	details := []byte(e.Details)
	if len(details) == 0 {
		details = []byte("{}")
	}
	if details[0] != '{' {
		return nil, fmt.Errorf("%w: details are not a JSON object", ErrEntry)
	}
	out := make([]byte, 0, 256+len(details))
	out = appendString(append(out, `{"actor":`...), e.Actor)
	out = appendString(append(out, `,"command":`...), e.CommandID)
	out = append(out, `,"details":`...)
	if plainlyCanonical(details) {
		out = append(out, details...)
	} else {
		var err error
		if out, err = appendCanonical(out, details); err != nil {
			return nil, fmt.Errorf("%w: details: %w", ErrEntry, err)
		}
	}
	out = strconv.AppendUint(append(out, `,"index":`...), e.Index, 10)
	out = appendString(append(out, `,"kind":`...), e.Kind)
	out = appendString(append(out, `,"node":`...), e.Node)
	out = appendString(append(out, `,"object":`...), e.Object)
	out = appendString(append(out, `,"time":`...), e.Time.UTC().Format(timeStyle))
	out = append(out, '}')
	if len(out) > MaxBody {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrEntry, len(out), MaxBody)
	}
	return out, nil
}

func (e Entry) valid() error {
	if e.Index >= MaxSize {
		return fmt.Errorf("%w: index %d is out of range", ErrEntry, e.Index)
	}
	if !validKind(e.Kind) {
		return fmt.Errorf("%w: kind %q is not dotted lower case", ErrEntry, e.Kind)
	}
	t := e.Time.UTC()
	if t.Year() < 1970 || t.Year() > 9999 {
		return fmt.Errorf("%w: time is out of range", ErrEntry)
	}
	if t.Nanosecond()%int(time.Millisecond) != 0 {
		return fmt.Errorf("%w: time is finer than a millisecond", ErrEntry)
	}
	for _, f := range []struct{ name, value string }{
		{"actor", e.Actor}, {"node", e.Node}, {"object", e.Object}, {"command", e.CommandID},
	} {
		if len(f.value) > maxField {
			return fmt.Errorf("%w: %s is %d bytes, at most %d", ErrEntry, f.name, len(f.value), maxField)
		}
		if !utf8.ValidString(f.value) {
			return fmt.Errorf("%w: %s is not UTF-8", ErrEntry, f.name)
		}
	}
	return nil
}

// validKind reports whether kind is one or more dot-separated words of lower
// case letters, digits, "_" and "-".
func validKind(kind string) bool {
	if kind == "" || len(kind) > maxKind {
		return false
	}
	word := false
	for _, c := range []byte(kind) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_', c == '-':
			word = true
		case c == '.' && word:
			word = false
		default:
			return false
		}
	}
	return word
}

// ParseEntry reads a body as [Entry.Canonical] writes it and refuses every
// other spelling: were two bodies of one meaning valid, a record could be
// changed under an auditor's parser while its text still "looked right".
// Errors wrap [ErrEntry].
func ParseEntry(body []byte) (Entry, error) {
	if len(body) > MaxBody {
		return Entry{}, fmt.Errorf("%w: %d bytes, at most %d", ErrEntry, len(body), MaxBody)
	}
	var raw struct {
		Actor   string          `json:"actor"`
		Command string          `json:"command"`
		Details json.RawMessage `json:"details"`
		Index   uint64          `json:"index"`
		Kind    string          `json:"kind"`
		Node    string          `json:"node"`
		Object  string          `json:"object"`
		Time    string          `json:"time"`
	}
	if err := json.Unmarshal(body, &raw); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	t, err := time.Parse(timeStyle, raw.Time)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: time %q is not of the form %s", ErrEntry, raw.Time, timeStyle)
	}
	e := Entry{
		Index: raw.Index, Time: t, Kind: raw.Kind, Actor: raw.Actor, Node: raw.Node,
		Object: raw.Object, CommandID: raw.Command, Details: raw.Details,
	}
	again, err := e.Canonical()
	if err != nil {
		return Entry{}, err
	}
	if !bytes.Equal(again, body) {
		return Entry{}, fmt.Errorf("%w: not in canonical form (differs at byte %d)", ErrEntry, firstDifference(again, body))
	}
	return e, nil
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// LeafHash returns the RFC 6962 §2.1 leaf hash of a body: SHA-256 over a zero
// byte and the body.
func LeafHash(body []byte) tlog.Hash {
	return tlog.RecordHash(body)
}
