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
	return list(s.r, prefixRequestList, f, f.State == string(RequestPending), func(r Request) bool {
		return (f.State == "" || f.State == string(r.State)) && (f.Service == "" || f.Service == r.Service) &&
			(f.Subject == "" || f.Subject == r.Subject) && (f.Requester == "" || f.Requester == r.Requester)
	})
}

// Grants returns a page of grants and the cursor of the next, "" at the end.
func (s State) Grants(f Filter) ([]Grant, string, error) {
	return list(s.r, prefixGrantList, f, false, func(g Grant) bool {
		return (f.State == "" || f.State == string(g.State)) && (f.Service == "" || f.Service == g.Service) &&
			(f.Subject == "" || f.Subject == g.Subject) && (f.Requester == "" || f.Requester == g.Requester)
	})
}

// Changes returns a page of changes and the cursor of the next, "" at the end.
// Service and Subject do not apply to changes.
func (s State) Changes(f Filter) ([]Change, string, error) {
	f.Service, f.Subject = "", ""
	return list(s.r, prefixChangeList, f, f.State == string(ChangePending), func(c Change) bool {
		return (f.State == "" || f.State == string(c.State)) && (f.Requester == "" || f.Requester == c.Author)
	})
}

// list walks the index that leaves the least to look at. The pending ones are
// few, so their index comes before all others.
func list[T any](r Reader, letter string, f Filter, byState bool, match func(T) bool) ([]T, string, error) {
	if hasNUL(f.State) || hasNUL(f.Service) || hasNUL(f.Subject) || hasNUL(f.Requester) {
		return nil, "", &Error{Code: CodeInvalid, Detail: "a filter holds a NUL byte"}
	}
	prefix := []byte(letter + "a/")
	switch {
	case byState:
		prefix = pairPrefix(letter+"s/", f.State)
	case f.Subject != "":
		prefix = pairPrefix(letter+"u/", f.Subject)
	case f.Requester != "":
		prefix = pairPrefix(letter+"q/", f.Requester)
	case f.Service != "":
		prefix = pairPrefix(letter+"v/", f.Service)
	case f.State != "":
		prefix = pairPrefix(letter+"s/", f.State)
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
	return page(r, letter+"/", prefix, from, min(limit, MaxLimit), match)
}

func page[T any](r Reader, objects string, prefix, from []byte, limit int, match func(T) bool) (items []T, cursor string, err error) {
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
		item, ok, bad := load[T](r, keyUID(objects, last))
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
