package grant

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestNewScopeMergesAndSorts(t *testing.T) {
	for _, c := range []struct{ texts, want []string }{
		{[]string{"tcp", "HEAD /a", "GET /a"}, []string{"GET,HEAD /a", "tcp"}},
		{[]string{"PUT /a", "GET /b", "HEAD,GET /a"}, []string{"GET,HEAD,PUT /a", "GET /b"}},
		{[]string{"GET /tcp", "tcp"}, []string{"GET /tcp", "tcp"}},
		{[]string{"GET /grpc/a.B/C", "grpc a.B/C"}, []string{"grpc a.B/C", "GET /grpc/a.B/C"}},
		{[]string{"GET /http/GET/a", "GET /a", "HEAD /http/GET/a"}, []string{"GET,HEAD /http/GET/a", "GET /a"}},
		{[]string{"* /a", "GET /a/"}, []string{"GET /a/", "* /a"}},
	} {
		s := mustScope(t, "payments", c.texts...)
		if diff := cmp.Diff(c.want, s.Texts()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.texts, diff)
		}
	}
}

func TestNewScopeRefuses(t *testing.T) {
	long := make([]string, 0, 200)
	for i := range 200 {
		long = append(long, fmt.Sprintf("GET /%06d", i))
	}
	for _, c := range []struct {
		service string
		texts   []string
		says    string
	}{
		{"payments", nil, "no permission; name at least one"},
		{"payments", []string{"tcp", "tcp"}, `permission 2, "tcp", is there twice`},
		{"payments", []string{"GET /a", "tcp", "HEAD,GET /a"}, `permission 3, "GET,HEAD /a", says again what an earlier one of that path says (GET)`},
		{"payments", []string{"GET /a", "* /a"}, "* is every method"},
		{"payments", []string{"* /a", "GET /a"}, "* is every method"},
		{"payments", []string{"* /a", "* /a"}, "says again"},
		{"payments", []string{"GET /%61", "GET /a"}, "says again"},
		{"payments", []string{`postgres "d" as r`, "postgres d as r"}, "is there twice"},
		{"payments", []string{"GET /a", "GET a"}, `permission 2: bad permission "GET a": at byte 4: the path does not begin with "/"`},
		{"Payments", []string{"tcp"}, `at byte 0: "P" in a service name`},
		{"", []string{"tcp"}, "a service name of 0 bytes, not 1 to 63"},
		{"payments", long, "the scope at payments alone takes 4202 bytes, a SPIFFE ID has room for 2048"},
		{"payments", make([]string, 1025), "1025 permissions, no SPIFFE ID carries more than 1024"},
	} {
		s, err := ParseScope(c.service, c.texts)
		if !errors.Is(err, ErrScope) || !s.IsZero() || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("ParseScope(%q, %.80q) = %v, %q; it should say %s", c.service, c.texts[:min(2, len(c.texts))], s, err, c.says)
		}
	}
	if _, err := NewScope("payments", TCPPermission(), Permission{}); !errors.Is(err, ErrScope) {
		t.Errorf("NewScope with a zero permission: %v", err)
	}
}

// TestLengthLimit: 2048 bytes are taken, 2049 are not, and the error names both numbers.
func TestLengthLimit(t *testing.T) {
	room := MaxIDLength - len(testStart+"http/GET/"+testEnd)
	for extra := range 2 {
		s := mustScope(t, "payments", "GET /"+strings.Repeat("a", room+extra))
		id, err := NewID(grants(), s, alice(), testGrant)
		if extra == 0 {
			if err != nil || len(id.String()) != MaxIDLength {
				t.Errorf("NewID of %d bytes: %v", MaxIDLength, err)
			}
			continue
		}
		if !errors.Is(err, ErrTooLong) || !errors.Is(err, ErrID) || !strings.Contains(err.Error(), "takes 2049 bytes, a SPIFFE ID has room for 2048") {
			t.Errorf("NewID of %d bytes: %v", MaxIDLength+1, err)
		}
		_, err = ParseID(testStart+"http/GET/"+strings.Repeat("a", room+extra)+testEnd, grants())
		if !errors.Is(err, ErrTooLong) || !errors.Is(err, ErrID) {
			t.Errorf("ParseID of %d bytes: %v", MaxIDLength+1, err)
		}
	}
	_, err := ParsePermission("GET /" + strings.Repeat("%20", 700))
	if !errors.Is(err, ErrTooLong) || !errors.Is(err, ErrPermission) {
		t.Errorf("ParsePermission of 2109 bytes: %v", err)
	}
}

func TestNewIDRefuses(t *testing.T) {
	s := mustScope(t, "payments", "tcp")
	for name, err := range map[string]error{
		"no trust domain": second(NewID(spiffeid.TrustDomain{}, s, alice(), testGrant)),
		"no scope":        second(NewID(grants(), Scope{}, alice(), testGrant)),
		"no subject":      second(NewID(grants(), s, spiffeid.ID{}, testGrant)),
		"no path":         second(NewID(grants(), s, spiffeid.RequireFromString("spiffe://acme.test"), testGrant)),
		"no grant ID":     second(NewID(grants(), s, alice(), "")),
		"read in none":    second(ParseID(testStart+"tcp"+testEnd, spiffeid.TrustDomain{})),
	} {
		if !errors.Is(err, ErrID) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestServicePrefix: stock tools match a grant's SPIFFE ID by its service's prefix. All that
// payments has is under it, and nothing of any other service, whatever its name or scope.
func TestServicePrefix(t *testing.T) {
	services := []string{"payments", "payments2", "payments-eu", "payment", "pay", "apayments", "p", "v1", "ayments"}
	scopes := [][]string{{"tcp"}, {"GET /payments/**"}, {"GET /v1/payments/_can/tcp"}, {"grpc v1/payments"}, {`postgres "/v1/payments/" as "/v1/payments/"`}}
	for _, td := range []string{"grants.acme.test", "grants.acme.tes", "a"} {
		domain := spiffeid.RequireTrustDomainFromString(td)
		for _, service := range services {
			for _, texts := range scopes {
				subject := spiffeid.RequireFromString("spiffe://grants.acme.test/v1/payments/_can/tcp")
				id, err := NewID(domain, mustScope(t, service, texts...), subject, testGrant)
				if err != nil {
					t.Fatal(err)
				}
				for _, other := range services {
					for _, otherTD := range []string{"grants.acme.test", "grants.acme.tes", "a"} {
						prefix := ServicePrefix(spiffeid.RequireTrustDomainFromString(otherTD), other)
						if strings.HasPrefix(id.String(), prefix) != (service == other && td == otherTD) {
							t.Errorf("prefix %s and %s", prefix, id)
						}
					}
				}
			}
		}
	}
	if got := ServicePrefix(grants(), "payments"); got != "spiffe://grants.acme.test/v1/payments/" {
		t.Errorf("ServicePrefix = %q", got)
	}
	for _, bad := range []string{"", "payments/_can", "/", "*", "payments/", "Payments"} {
		prefix := ServicePrefix(grants(), bad)
		if _, err := spiffeid.FromString(prefix + "x"); err == nil {
			t.Errorf("ServicePrefix(%q) = %q is the beginning of a SPIFFE ID", bad, prefix)
		}
	}
}

func TestScopeJSON(t *testing.T) {
	s := mustScope(t, "payments", "tcp", "HEAD,GET /a&b/**")
	type doc struct {
		Scope      Scope      `json:"scope"`
		Permission Permission `json:"permission"`
	}
	in := doc{s, mustPermission(t, "GET /a")}
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"scope":{"service":"payments","permissions":["GET,HEAD /a\u0026b/**","tcp"]},"permission":"GET /a"}`
	if string(data) != want {
		t.Errorf("json.Marshal = %s", data)
	}
	var out doc
	if err := json.Unmarshal(data, &out); err != nil || out != in {
		t.Errorf("json.Unmarshal(%s) = %v, %v", data, out, err)
	}
	if _, err := json.Marshal(doc{}); !errors.Is(err, ErrScope) {
		t.Errorf("json.Marshal of the zero scope: %v", err)
	}
	if _, err := json.Marshal(Permission{}); !errors.Is(err, ErrPermission) {
		t.Errorf("json.Marshal of the zero permission: %v", err)
	}
}

func TestScopeJSONRefuses(t *testing.T) {
	for _, bad := range []string{
		`null`, `[]`, `""`, `{}`, `{"service":"p"}`, `{"permissions":["tcp"]}`,
		`{"service":"p","permissions":[]}`, `{"service":"p","permissions":null}`, `{"service":null,"permissions":["tcp"]}`,
		`{"service":"p","permissions":[null]}`, `{"service":"p","permissions":"tcp"}`, `{"service":1,"permissions":["tcp"]}`,
		`{"service":"p","permissions":["tcp"],"more":1}`,
		`{"Service":"p","permissions":["tcp"]}`, `{"service":"p","PERMISSIONS":["tcp"]}`,
		`{"service":"q","service":"p","permissions":["tcp"]}`, `{"service":null,"service":"p","permissions":["tcp"]}`,
		`{"service":"p","permissions":["GET /a"],"permissions":["tcp"]}`,
		`{"service":"p","permissions":["GET /\ud800"]}`, `{"service":"p","permissions":["GET /\udc00\ud800"]}`,
		`{"service":"p","permissions":["GET /\uD800\\udc00"]}`, "{\"service\":\"p\",\"permissions\":[\"GET /\xff\"]}",
		`{"service":"p","permissions":["get /"]}`,
	} {
		s := mustScope(t, "payments", "tcp")
		if err := json.Unmarshal([]byte(bad), &s); err == nil || s != mustScope(t, "payments", "tcp") {
			t.Errorf("json.Unmarshal(%q) = %v, %v", bad, s, err)
		}
		if err := s.UnmarshalJSON([]byte(bad)); !errors.Is(err, ErrScope) {
			t.Errorf("UnmarshalJSON(%q): %v", bad, err)
		}
	}
	for _, bad := range []string{`{"service":"p","permissions":["tcp"]}{}`, `{"service":"p","permissions":["tcp"]`, ``, `{"service"`, `{"service":"p"`} {
		var s Scope
		if err := s.UnmarshalJSON([]byte(bad)); !errors.Is(err, ErrScope) {
			t.Errorf("UnmarshalJSON(%q): %v", bad, err)
		}
	}
	var s Scope
	if err := json.Unmarshal([]byte(`{"permissions":["GET /\ud83d\uDD11\\ud800"],"s\u0065rvice":"p"}`), &s); err == nil {
		t.Error("a backslash in a path was taken")
	}
	if err := json.Unmarshal([]byte(`{"permissions":["GET /\ud83d\uDD11"],"s\u0065rvice":"p"}`), &s); err != nil || s != mustScope(t, "p", "GET /%F0%9F%94%91") {
		t.Errorf("json.Unmarshal of a surrogate pair = %v, %v", s, err)
	}
}

// TestErrorsSayWhere: what was wrong, at which byte, and what would be right; and nothing in an
// input reaches a log as anything but quoted ASCII.
func TestErrorsSayWhere(t *testing.T) {
	for _, c := range []struct {
		err  error
		says string
	}{
		{second(ParsePermission("get /a")), `bad permission "get /a": at byte 0: "get" is no method; methods are upper-case: write "GET"; the other kinds are grpc, postgres and tcp`},
		{second(ParsePermission("GET /a/{id}")), `bad permission "GET /a/{id}": at byte 7: a placeholder in braces; write "*" for one segment, or "%7B" for the character`},
		{second(ParsePermission("GET,GET /a")), `bad permission "GET,GET /a": at byte 0: a method twice; write "GET"`},
		{second(ParsePermission("postgres My as r")), `bad permission "postgres My as r": at byte 9: "M" in a name without quotes; put the name in double quotes`},
		{second(ParsePermission("/a\x1b[2J\n")), `bad permission "/a\x1b[2J\n": at byte 0: a path without methods; write "GET " before it, or "* " for every method`},
		{second(ParsePath("/a/%2e%2e/b", PathOptions{})), `ambiguous path "/a/%2e%2e/b": at byte 3: an escaped "."; it is written as is`},
		{second(ParseID(testStart+"http/HEAD.GET/a"+testEnd, grants())), `(125 bytes): at byte 48: not canonical: found "HEAD.GET"; the one spelling of this scope has "GET.HEAD" here`},
		{second(ParseID("spiffe://acme.test/user/alice", grants())), `bad grant ID "spiffe://acme.test/user/alice": at byte 9: trust domain "acme.test"; grants live in "grants.acme.test"`},
		{ValidGrantID("x"), `bad grant ID "x": no grant ID; a grant ID is a UUIDv7 in lower case`},
	} {
		if c.err == nil || !strings.HasSuffix(c.err.Error(), c.says) {
			t.Errorf("error %q should end in %q", c.err, c.says)
		}
		if strings.ContainsFunc(c.err.Error(), isHidden) {
			t.Errorf("error %q has characters that do not show", c.err)
		}
	}
}
