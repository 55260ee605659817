package grant

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const maxLabel = 63 // bytes of a DNS label

// Scope is a service and its permissions: what a grant opens, and nothing else. Two scopes are
// == exactly if they mean the same service and permissions. The zero Scope is invalid and
// allows nothing.
type Scope struct {
	service string
	perms   string // canonical PERM[/_and/PERM]…
}

// NewScope makes a scope of the permissions in any order. Methods of one path are merged. The
// error is ErrScope if service is no service name, if there is no permission, if one is zero,
// or if one thing is said twice; it is also ErrTooLong if no certificate could carry the scope.
func NewScope(service string, perms ...Permission) (Scope, error) {
	if err := ValidService(service); err != nil {
		return Scope{}, err
	}
	if len(perms) == 0 {
		return Scope{}, fmt.Errorf("%w: %s: no permission; name at least one", ErrScope, service)
	}
	if err := checkCount(len(perms)); err != nil {
		return Scope{}, err
	}
	merged := make(map[string]methodSet)
	for i, p := range perms {
		if p.IsZero() {
			return Scope{}, fmt.Errorf("%w: %s: permission %d is the zero permission", ErrScope, service, i+1)
		}
		key, methods := p.splitMethods()
		set, again := merged[key]
		if again && methods == nil {
			return Scope{}, fmt.Errorf("%w: %s: permission %d, %s, is there twice; leave one out", ErrScope, service, i+1, quoted(p.String()))
		}
		if !again {
			set = make(methodSet)
			merged[key] = set
		}
		if m, said := set.add(methods); said {
			return Scope{}, fmt.Errorf("%w: %s: permission %d, %s, says again what an earlier one of that path says (%s); leave one out",
				ErrScope, service, i+1, quoted(p.String()), m)
		}
	}
	encs := make([]string, 0, len(merged))
	for key, set := range merged {
		encs = append(encs, set.join(key))
	}
	slices.Sort(encs)
	s := Scope{service: service, perms: strings.Join(encs, "/"+tokenAnd+"/")}
	if n := len(s.service) + len(s.perms); n > MaxIDLength {
		return Scope{}, tooLong(ErrScope, "the scope at "+service+" alone", n)
	}
	return s, nil
}

// checkCount refuses n permissions where no SPIFFE ID can carry them, even merged, before a
// million of them cost anything: each takes 2 bytes at least.
func checkCount(n int) error {
	if n > MaxIDLength/2 {
		return fmt.Errorf("%w: %w: %d permissions, no SPIFFE ID carries more than %d", ErrScope, ErrTooLong, n, MaxIDLength/2)
	}
	return nil
}

// splitMethods takes the METHODS out of an http permission; for the other kinds, there are none.
func (p Permission) splitMethods() (key string, methods []string) {
	rest, ok := strings.CutPrefix(p.enc, "http/")
	if !ok {
		return p.enc, nil
	}
	joined, path, _ := strings.Cut(rest, "/")
	return "http/" + path, strings.Split(joined, ".")
}

// methodSet gathers the methods of one path. It is empty for the kinds that have none.
type methodSet map[string]bool

// add adds methods. If one was said before, it tells which; "*" says them all.
func (set methodSet) add(methods []string) (m string, said bool) {
	for _, m := range methods {
		if set[m] {
			return m, true
		}
		set[m] = true
	}
	if set[tokenAny] && len(set) > 1 {
		return "* is every method", true
	}
	return "", false
}

// join puts the methods back where splitMethods took them.
func (set methodSet) join(key string) string {
	if len(set) == 0 {
		return key
	}
	path := strings.TrimPrefix(key, "http")
	return "http/" + strings.Join(slices.Sorted(maps.Keys(set)), ".") + path
}

// ParseScope makes a scope of permissions in the text form.
func ParseScope(service string, texts []string) (Scope, error) {
	if err := checkCount(len(texts)); err != nil {
		return Scope{}, err
	}
	perms := make([]Permission, 0, len(texts))
	for i, text := range texts {
		p, err := ParsePermission(text)
		if err != nil {
			return Scope{}, fmt.Errorf("%w: permission %d: %w", ErrScope, i+1, err)
		}
		perms = append(perms, p)
	}
	return NewScope(service, perms...)
}

// ValidService returns ErrScope unless name is a lower-case DNS label: 1 to 63 letters, digits
// and hyphens, no hyphen at either end.
func ValidService(name string) error {
	fail := func(at int, what string) error {
		return &mistake{ErrScope, name, at, what, "a service is named by a lower-case DNS label, as in payments or orders-db"}
	}
	if name == "" || len(name) > maxLabel {
		return fail(-1, "a service name of "+itoa(len(name))+" bytes, not 1 to 63")
	}
	for i := range len(name) {
		c := name[i]
		inner := i > 0 && i < len(name)-1
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || !inner) {
			return fail(i, quoted(name[i:i+1])+" in a service name")
		}
	}
	return nil
}

// Service is the name of the service; "" for the zero Scope.
func (s Scope) Service() string { return s.service }

// Permissions are the scope's permissions in canonical order; at least one but for the zero
// Scope.
func (s Scope) Permissions() []Permission {
	if s.IsZero() {
		return nil
	}
	var perms []Permission
	for enc := range strings.SplitSeq(s.perms, "/"+tokenAnd+"/") {
		perms = append(perms, Permission{enc: enc})
	}
	return perms
}

// Texts are the permissions in the canonical text form. ParseScope(s.Service(), s.Texts()) is s.
func (s Scope) Texts() []string {
	var texts []string
	for _, p := range s.Permissions() {
		texts = append(texts, p.String())
	}
	return texts
}

// String shows the scope to people: "payments: GET /a; tcp".
func (s Scope) String() string {
	if s.IsZero() {
		return ""
	}
	return s.service + ": " + strings.Join(s.Texts(), "; ")
}

// IsZero tells the zero Scope.
func (s Scope) IsZero() bool { return s == Scope{} }
