package grant

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	testGrant = "0199f3a0-5c1e-7a3b-9c4d-2e5f60718293"
	testStart = "spiffe://grants.acme.test/v1/payments/_can/"
	testEnd   = "/_for/acme.test/user/alice/_id/" + testGrant
)

func grants() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("grants.acme.test")
}

func alice() spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://acme.test/user/alice")
}

func mustPermission(t testing.TB, text string) Permission {
	t.Helper()
	p, err := ParsePermission(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustScope(t testing.TB, service string, texts ...string) Scope {
	t.Helper()
	s, err := ParseScope(service, texts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustPath(t testing.TB, target string) Path {
	t.Helper()
	p, err := ParsePath(target, PathOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkPermission fails unless p has one spelling as text and one in a SPIFFE ID.
func checkPermission(t testing.TB, p Permission) {
	t.Helper()
	text := p.String()
	if q, err := ParsePermission(text); err != nil || q != p {
		t.Fatalf("ParsePermission(%q) = %q, %v; it is the canonical text of %q", text, q.enc, err, p.enc)
	}
	if strings.ContainsFunc(text, isHidden) {
		t.Fatalf("text %q holds a character that does not show", text)
	}
	pp := p.parts()
	if enc := pp.encode(); enc != p.enc || pp.kind != p.Kind() || pp.kind == 0 {
		t.Fatalf("%q is written again as %q", p.enc, enc)
	}
	if p.Words() == "" || !p.Covers(p) || !p.Overlaps(p) {
		t.Fatalf("%q says nothing or does not cover itself", p.enc)
	}
}

// checkID fails unless uri and id are each other's only reading, as the package and refParse
// have it.
func checkID(t testing.TB, uri string, id ID) {
	t.Helper()
	ref, err := refParse(uri)
	if err != nil {
		t.Fatalf("ParseID takes %q, the second reading does not: %v", uri, err)
	}
	got := refScope{id.Scope().Service(), nil, id.Subject().String(), id.GrantID()}
	for _, p := range id.Scope().Permissions() {
		checkPermission(t, p)
		got.perms = append(got.perms, p.enc)
	}
	if got.service != ref.service || strings.Join(got.perms, " ") != strings.Join(ref.perms, " ") ||
		got.subject != ref.subject || got.grantID != ref.grantID {
		t.Fatalf("ParseID(%q) = %v, the second reading is %v", uri, got, ref)
	}
	again, err := NewID(grants(), id.Scope(), id.Subject(), id.GrantID())
	if err != nil || again != id || again.String() != uri {
		t.Fatalf("NewID of the parts of %q = %q, %v", uri, again, err)
	}
	if sid := id.SPIFFEID(); sid.String() != uri || sid.TrustDomain() != grants() {
		t.Fatalf("SPIFFEID() = %q", sid)
	}
	back, err := ParseScope(id.Scope().Service(), id.Scope().Texts())
	if err != nil || back != id.Scope() {
		t.Fatalf("ParseScope of the texts of %q = %v, %v", uri, back, err)
	}
	if !strings.HasPrefix(uri, ServicePrefix(grants(), id.Scope().Service())) {
		t.Fatalf("%q is outside of its service's prefix", uri)
	}
}
