package approval

import (
	"bytes"
	"fmt"
	"slices"
)

// Filter chooses requests, grants or changes; empty fields choose all. Results
// come newest first. Cursor, from an earlier call, goes on after that page.
type Filter struct {
	State     string // a RequestState, GrantState or ChangeState
	Service   string
	Subject   string
	Requester string // of a change: its author
	Limit     int    // 0: DefaultLimit; never more than MaxLimit
	Cursor    string

	// Among leaves out requests and grants in which none of these names stands: of
	// persons, of their SPIFFE IDs, of groups. Not all that are left need be of any
	// interest; but to look whether a name stands in a record takes a hundredth of
	// the time that it takes to read it, and of a million others' few are one's own.
	Among []string

	// Of leaves out all but the requests and grants of these SPIFFE IDs: that one
	// of them asked for, or is the subject of. At most MaxOf; not for changes.
	Of []string
}

// The sizes of a page.
const (
	DefaultLimit = 100
	MaxLimit     = 1000

	// MaxOf is how many lists are read side by side.
	MaxOf = 16

	// maxScan bounds one call: a page may be short, or empty, and still have a
	// cursor to go on from.
	maxScan = 10_000
)

// Requests returns a page of requests and the cursor of the next, "" at the
// end.
func (s State) Requests(f Filter) ([]Request, string, error) {
	return list(s.r, f.records(prefixRequestState, string(RequestPending)), f, among(f, s, s.requestAt), func(r Request) bool {
		return f.of(r.Requester, r.Subject) && (f.State == "" || f.State == string(r.State)) && (f.Service == "" || f.Service == r.Service) &&
			(f.Subject == "" || f.Subject == r.Subject) && (f.Requester == "" || f.Requester == r.Requester)
	})
}

// Grants returns a page of grants and the cursor of the next, "" at the end.
func (s State) Grants(f Filter) ([]Grant, string, error) {
	return list(s.r, f.records(prefixGrantState, ""), f, among(f, s, s.grantAt), func(g Grant) bool {
		return f.of(g.Requester, g.Subject) && (f.State == "" || f.State == string(g.State)) && (f.Service == "" || f.Service == g.Service) &&
			(f.Subject == "" || f.Subject == g.Subject) && (f.Requester == "" || f.Requester == g.Requester)
	})
}

// among is read for those in whose records one of the filter's names stands.
func among[T any](f Filter, s State, read func(uid) (T, bool, error)) reading[T] {
	var texts [][]byte // as they are in a record
	for _, name := range f.Among {
		texts = append(texts, asStored(name))
	}
	return func(u uid, k, v []byte) (none T, ok bool, err error) {
		if f.Among == nil {
			return read(u)
		}
		if !bytes.HasPrefix(k, []byte(prefixRecord)) {
			v = s.r.Get(recordKey(u))
		}
		if !slices.ContainsFunc(texts, func(text []byte) bool { return bytes.Contains(v, text) }) {
			return none, false, nil
		}
		return read(u)
	}
}

// reading reads what a pair that a list came by names.
type reading[T any] func(u uid, k, v []byte) (T, bool, error)

// of reports whether a request is of one of those that the filter names.
func (f Filter) of(requester, subject string) bool {
	return f.Of == nil || slices.Contains(f.Of, requester) || slices.Contains(f.Of, subject)
}

// records is the lists of requests, or of their grants, that leave the least to
// look at. Those that are in the few state come before all others.
func (f Filter) records(states, few string) [][]byte {
	switch {
	case few != "" && f.State == few:
		return [][]byte{pairPrefix(states, f.State)}
	case f.Subject != "":
		return [][]byte{pairPrefix(prefixByWho, f.Subject)}
	case f.Requester != "":
		return [][]byte{pairPrefix(prefixByWho, f.Requester)}
	case f.Of != nil:
		var lists [][]byte
		for _, id := range f.Of {
			lists = append(lists, pairPrefix(prefixByWho, id))
		}
		return lists
	case f.Service != "":
		return [][]byte{pairPrefix(prefixByService, f.Service)}
	case f.State != "" && !usual(states, f.State):
		return [][]byte{pairPrefix(states, f.State)}
	}
	return [][]byte{[]byte(prefixRecord)}
}

// Changes returns a page of changes and the cursor of the next, "" at the end.
// Service and Subject do not apply to changes.
func (s State) Changes(f Filter) ([]Change, string, error) {
	prefix := []byte(prefixChangeAll)
	switch {
	case f.State == string(ChangePending), f.State != "" && f.Requester == "":
		prefix = pairPrefix(prefixChangeState, f.State)
	case f.Requester != "":
		prefix = pairPrefix(prefixChangeAuthor, f.Requester)
	}
	read := func(u uid, _, _ []byte) (Change, bool, error) { return s.changeAt(u) }
	return list(s.r, [][]byte{prefix}, f, read, func(c Change) bool {
		return (f.State == "" || f.State == string(c.State)) && (f.Requester == "" || f.Requester == c.Author)
	})
}

// list reads what the keys under the prefixes name, the newest first.
func list[T any](r Reader, prefixes [][]byte, f Filter, read reading[T], match func(T) bool) ([]T, string, error) {
	if slices.ContainsFunc(append([]string{f.State, f.Service, f.Subject, f.Requester}, f.Of...), hasNUL) {
		return nil, "", &Error{Code: CodeInvalid, Detail: "a filter holds a NUL byte"}
	}
	if len(f.Of) > MaxOf {
		return nil, "", &Error{Code: CodeInvalid, Detail: fmt.Sprintf("a list is of at most %d identities", MaxOf)}
	}
	var after *uid
	if f.Cursor != "" {
		u, ok := parseUID(f.Cursor)
		if !ok {
			return nil, "", &Error{Code: CodeInvalid, Detail: "the cursor is not one that a list gave", Next: "list again without a cursor"}
		}
		u = u.turned()
		after = &u
	}
	limit := f.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	return page(keysOf(r, prefixes, after), min(limit, MaxLimit), read, match)
}

func page[T any](keys func(visit func(u uid, k, v []byte) bool) error, limit int, read reading[T], match func(T) bool) (items []T, cursor string, err error) {
	var last uid
	seen := 0
	err = keys(func(u uid, k, v []byte) bool {
		if seen == maxScan || len(items) == limit {
			cursor = last.String()
			return false
		}
		seen++
		last = u
		var item T
		var ok bool
		if item, ok, err = read(last, k, v); err != nil {
			return false
		}
		if ok && match(item) {
			items = append(items, item)
		}
		return true
	})
	return items, cursor, err
}
