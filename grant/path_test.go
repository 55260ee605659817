package grant

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"
)

// checkPath fails unless ParsePath agrees with the second reading on target and, where it takes
// it, with net/url, and unless all the usual cleaners leave the path alone.
func checkPath(t testing.TB, target string) {
	t.Helper()
	p, err := ParsePath(target, PathOptions{})
	text, ok := refPath(target)
	if (err == nil) != ok || p.text != text {
		t.Fatalf("ParsePath(%q) = %q, %v; the second reading has %q, %t", target, p.text, err, text, ok)
	}
	if err != nil {
		if !errors.Is(err, ErrAmbiguousPath) || !p.IsZero() {
			t.Fatalf("ParsePath(%q) = %v, %v", target, p, err)
		}
		return
	}
	query, asked := p.Query()
	whole := p.Raw()
	if asked {
		whole += "?" + query
	}
	if whole != target {
		t.Fatalf("ParsePath(%q) would forward %q", target, whole)
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || u.Path != p.Text() || u.RawQuery != query || u.Host != "" {
		t.Fatalf("ParsePath(%q) = %q, net/url has %+v, %v", target, p.Text(), u, err)
	}
	if clean := path.Clean(text); clean != text && clean+"/" != text {
		t.Fatalf("ParsePath(%q) takes a path that cleans to %q", target, clean)
	}
	lenient, err := ParsePath(target, PathOptions{AllowSemicolon: true})
	if err != nil || lenient != p {
		t.Fatalf("ParsePath(%q) with AllowSemicolon = %v, %v", target, lenient, err)
	}
	if perm, err := HTTPPermission("GET", p); err == nil {
		checkPermission(t, perm)
		if m := httpRules(t, perm); !m("GET", &p) || m("HEAD", &p) {
			t.Fatalf("%q is not the smallest permission for GET %s", perm, target)
		}
	} else if !errors.Is(err, ErrTooLong) {
		t.Fatal(err)
	}
}

// httpRules is the Matcher of one permission.
func httpRules(t testing.TB, p Permission) func(string, *Path) bool {
	t.Helper()
	m := Scope{"payments", p.enc}.Matcher()
	return func(method string, path *Path) bool {
		_, ok := m.HTTP(method, path)
		return ok
	}
}

func TestParsePathSemicolon(t *testing.T) {
	for target, ok := range map[string]bool{
		"/a;b": true, "/a;": true, "/a/b;v=1/c": true, "/a%3Bb": true, "/...;x": true, "/.a;x": true, "/a;/b": true,
		"/..;/a": false, "/.;/a": false, "/a/..;x=1": false, "/a/..%3B/b": false, "/a/.%3bx": false, "/;a": false, "/%3Ba": false,
		"/a/;/b": false, "/;": false, "/a/..": false, "/a//b;c": false,
	} {
		p, err := ParsePath(target, PathOptions{AllowSemicolon: true})
		if (err == nil) != ok || ok && p.Text() != strings.ReplaceAll(target, "%3B", ";") {
			t.Errorf("ParsePath(%q) with AllowSemicolon = %q, %v", target, p.Text(), err)
		}
		if _, err := ParsePath(target, PathOptions{}); !errors.Is(err, ErrAmbiguousPath) {
			t.Errorf("ParsePath(%q) = %v", target, err)
		}
	}
}

// muxPattern is the pattern of net/http's ServeMux that means what the path of p means.
func muxPattern(p Permission) string {
	var b strings.Builder
	for i, s := range p.parts().segs {
		b.WriteByte('/')
		switch s.kind {
		case segText:
			b.WriteString(url.PathEscape(s.text))
		case segAny:
			b.WriteString("{w" + itoa(i) + "}")
		case segRest:
			b.WriteString("{rest...}")
		case segEmpty:
			b.WriteString("{$}")
		}
	}
	return b.String()
}

// muxAllows asks net/http whether it routes target to p's pattern, without a redirect.
func muxAllows(t testing.TB, p Permission, target string) bool {
	t.Helper()
	mux, hit := http.NewServeMux(), false
	mux.HandleFunc(muxPattern(p), func(http.ResponseWriter, *http.Request) { hit = true })
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	mux.ServeHTTP(httptest.NewRecorder(), &http.Request{Method: "GET", URL: u, RequestURI: target, Host: "payments"})
	return hit
}

// TestMatchesAsServeMux: ** is net/http's {rest...}, * its {name}, a trailing slash its {$}.
func TestMatchesAsServeMux(t *testing.T) {
	for _, pattern := range patterns() {
		p := mustPermission(t, "GET "+pattern)
		allows := httpRules(t, p)
		for _, path := range samples(t) {
			if got, want := allows("GET", &path), muxAllows(t, p, path.Raw()); got != want {
				t.Errorf("%q allows %s: %t, net/http as %s: %t", p, path.Raw(), got, muxPattern(p), want)
			}
		}
	}
}

func TestSmallestPermissions(t *testing.T) {
	for _, c := range []struct{ method, target, http, grpc string }{
		{"GET", "/", "GET /", ""},
		{"GET", "/a/b/?q=1", "GET /a/b/", ""},
		{"BREW", "/a%20b/*", "BREW /a%20b/%2A", ""},
		{"M-SEARCH", "/a", "* /a", ""},
		{"get", "/a", "* /a", ""},
		{"POST", "/bank.Ledger/Transfer", "POST /bank.Ledger/Transfer", "grpc bank.Ledger/Transfer"},
		{"POST", "/bank.Ledger/%20", "POST /bank.Ledger/%20", ""},
		{"POST", "/bank.Ledger/", "POST /bank.Ledger/", ""},
		{"POST", "/_any/_rest", "POST /_any/_rest", "grpc _any/_rest"},
		{"GE T", "/a", "", ""},
		{"", "/x", "", ""},
	} {
		path := mustPath(t, c.target)
		p, err := HTTPPermission(c.method, path)
		if p.String() != c.http || (err == nil) != (c.http != "") {
			t.Errorf("HTTPPermission(%q, %q) = %q, %v", c.method, c.target, p, err)
		}
		if err == nil && !httpRules(t, p)(c.method, &path) {
			t.Errorf("%q does not allow %s %s", p, c.method, c.target)
		}
		p, err = GRPCPermission(path)
		if p.String() != c.grpc || err != nil && !errors.Is(err, ErrPermission) {
			t.Errorf("GRPCPermission(%q) = %q, %v", c.target, p, err)
		}
		if err == nil {
			if _, ok := (Scope{"payments", p.enc}).Matcher().GRPC("POST", &path); !ok {
				t.Errorf("%q does not allow %s", p, c.target)
			}
		}
	}
	if p, err := HTTPPermission("GET", Path{}); !errors.Is(err, ErrPermission) {
		t.Errorf("HTTPPermission of no path = %q, %v", p, err)
	}
	if p, err := GRPCPermission(Path{}); !errors.Is(err, ErrPermission) {
		t.Errorf("GRPCPermission of no path = %q, %v", p, err)
	}
	if p, err := HTTPPermission("GET", mustPath(t, "/"+strings.Repeat("a", 3000))); !errors.Is(err, ErrTooLong) {
		t.Errorf("HTTPPermission of 3000 bytes = %q, %v", p, err)
	}
}
