package approval

import "fmt"

// Filter chooses requests, grants or changes; empty fields choose all. Results
// come newest first. Cursor, from an earlier call, goes on after that page.
type Filter struct {
	State     string // a RequestState, GrantState or ChangeState
	Service   string
	Subject   string
	Requester string // of a change: its author
	Limit     int    // 0: DefaultLimit; never more than MaxLimit
	Cursor    string
}

// The sizes of a page.
const (
	DefaultLimit = 100
	MaxLimit     = 1000

	// maxScan bounds one call: a page may be short, or empty, and still have a
	// cursor to go on from.
	maxScan = 10_000
)

// Requests returns a page of requests and the cursor of the next, "" at the
// end.
func (s State) Requests(f Filter) ([]Request, string, error) {
	return list(s.r, f.records(prefixRequestState, string(RequestPending)), f, s.requestAt, func(r Request) bool {
		return (f.State == "" || f.State == string(r.State)) && (f.Service == "" || f.Service == r.Service) &&
			(f.Subject == "" || f.Subject == r.Subject) && (f.Requester == "" || f.Requester == r.Requester)
	})
}

// Grants returns a page of grants and the cursor of the next, "" at the end.
func (s State) Grants(f Filter) ([]Grant, string, error) {
	return list(s.r, f.records(prefixGrantState, ""), f, s.grantAt, func(g Grant) bool {
		return (f.State == "" || f.State == string(g.State)) && (f.Service == "" || f.Service == g.Service) &&
			(f.Subject == "" || f.Subject == g.Subject) && (f.Requester == "" || f.Requester == g.Requester)
	})
}

// records is the keys of requests, or of their grants, that leave the least to
// look at. Those that are in the few state come before all others.
func (f Filter) records(states, few string) []byte {
	switch {
	case few != "" && f.State == few:
		return pairPrefix(states, f.State)
	case f.Subject != "":
		return pairPrefix(prefixByWho, f.Subject)
	case f.Requester != "":
		return pairPrefix(prefixByWho, f.Requester)
	case f.Service != "":
		return pairPrefix(prefixByService, f.Service)
	case f.State != "" && !usual(states, f.State):
		return pairPrefix(states, f.State)
	}
	return []byte(prefixRecord)
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
	return list(s.r, prefix, f, s.changeAt, func(c Change) bool {
		return (f.State == "" || f.State == string(c.State)) && (f.Requester == "" || f.Requester == c.Author)
	})
}

// list reads what the keys under prefix name, the newest first.
func list[T any](r Reader, prefix []byte, f Filter, read func(uid) (T, bool, error), match func(T) bool) ([]T, string, error) {
	if hasNUL(f.State) || hasNUL(f.Service) || hasNUL(f.Subject) || hasNUL(f.Requester) {
		return nil, "", &Error{Code: CodeInvalid, Detail: "a filter holds a NUL byte"}
	}
	var from []byte
	if f.Cursor != "" {
		u, ok := parseUID(f.Cursor)
		if !ok {
			return nil, "", &Error{Code: CodeInvalid, Detail: "the cursor is not one that a list gave", Next: "list again without a cursor"}
		}
		u = u.turned()
		from = append(append(append(from, prefix...), u[:]...), 0)
	}
	limit := f.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	return page(r, prefix, from, min(limit, MaxLimit), read, match)
}

func page[T any](r Reader, prefix, from []byte, limit int, read func(uid) (T, bool, error), match func(T) bool) (items []T, cursor string, err error) {
	var last uid
	seen := 0
	r.Scan(prefix, from, func(k, _ []byte) bool {
		if seen == maxScan || len(items) == limit {
			cursor = last.String()
			return false
		}
		if len(k) != len(prefix)+len(last) {
			err = fmt.Errorf("approval: stored index key %q", k)
			return false
		}
		seen++
		last = uid(k[len(prefix):]).turned()
		item, ok, bad := read(last)
		if bad != nil {
			err = bad
			return false
		}
		if ok && match(item) {
			items = append(items, item)
		}
		return true
	})
	return items, cursor, err
}
