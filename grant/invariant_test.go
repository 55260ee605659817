package grant

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestInvariant10_OneReading: a scope has one spelling as a SPIFFE ID and a path one meaning;
// what could be read in two ways is refused, not repaired.
func TestInvariant10_OneReading(t *testing.T) {
	v := readVectors(t)
	for _, x := range v.Noncanonical {
		if id, err := ParseID(x.ID, grants()); !errors.Is(err, ErrID) {
			t.Errorf("two spellings of one scope are taken, %s and %s (%s)", x.ID, id, x.Why)
		}
	}
	for _, x := range v.Valid {
		for i := range len(x.ID) {
			if x.ID[i] == '/' || x.ID[i] == '_' {
				continue
			}
			other := x.ID[:i] + fmt.Sprintf("_%02X", x.ID[i]) + x.ID[i+1:]
			id, err := ParseID(other, grants())
			if err == nil && (id.String() != other || id.String() == x.ID) {
				t.Errorf("%s is taken as a spelling of %s", other, id)
			}
		}
	}
	scope, err := ParseID(v.Valid[1].ID, grants()) // GET,HEAD /accounts/**; POST /refunds/*
	if err != nil {
		t.Fatal(err)
	}
	m := scope.Scope().Matcher()
	for _, way := range []string{
		"/../admin", "/..", "/.", "/./1", "/%2e%2e/admin", "/%2E./admin", "/..%2fadmin", "/..%2Fadmin", "/..\\admin", "/..%5cadmin",
		"/..;/admin", "/..%3B/admin", ";/../admin", "//1", "/1//2", "/1/../../admin", "/%61", "/%zz", "/%", "/a\x00", "/a%00", "/a%0a", "/a#/b",
		"/é", "/%C3", "/%C0%AE%C0%AE/admin", "/a b", "/a\tb", "/1?a b", "/1?a\r\nb",
	} {
		for _, target := range []string{"/accounts" + way, "http://payments/accounts" + way, strings.Repeat("/accounts", 9) + way} {
			path, err := ParsePath(target, PathOptions{})
			if !errors.Is(err, ErrAmbiguousPath) {
				t.Errorf("ParsePath(%q) = %q, %v", target, path.Text(), err)
			}
			if _, ok := m.HTTP("GET", &path); ok {
				t.Errorf("GET %q is allowed", target)
			}
		}
	}
}
