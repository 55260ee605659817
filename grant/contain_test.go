package grant

import (
	"fmt"
	"strings"
	"testing"
)

// patterns are all path patterns of up to three segments over two words.
func patterns() []string {
	var all []string
	heads := []string{""}
	for range 3 {
		var longer []string
		for _, h := range heads {
			for _, last := range []string{"/a", "/b", "/*", "/**", "/"} {
				all = append(all, h+last)
			}
			for _, mid := range []string{"/a", "/b", "/*"} {
				longer = append(longer, h+mid)
			}
		}
		heads = longer
	}
	return all
}

// samples are all paths of up to four segments over three words, one of which no pattern has.
// For patterns of up to three segments they tell any two apart that can be told apart.
func samples(t testing.TB) []Path {
	var all []Path
	heads := []string{""}
	for range 4 {
		var longer []string
		for _, h := range heads {
			all = append(all, mustPath(t, h+"/"))
			for _, seg := range []string{"/a", "/b", "/c"} {
				all = append(all, mustPath(t, h+seg))
				longer = append(longer, h+seg)
			}
		}
		heads = longer
	}
	return all
}

// TestCoversAndOverlapsExactly asks, of all pairs of small patterns, every path.
func TestCoversAndOverlapsExactly(t *testing.T) {
	all, paths := patterns(), samples(t)
	perms := make([]Permission, len(all))
	allows := make([][]bool, len(all))
	for i, pattern := range all {
		perms[i] = mustPermission(t, "GET "+pattern)
		m := mustScope(t, "payments", "GET "+pattern).Matcher()
		for _, p := range paths {
			_, ok := m.HTTP("GET", &p)
			allows[i] = append(allows[i], ok)
			if want := refMatch(perms[i].enc, "GET", p.text); ok != want {
				t.Fatalf("%q allows GET %s: %t, the second reading says %t", perms[i], p.raw, ok, want)
			}
		}
	}
	for i, p := range perms {
		for j, q := range perms {
			covers, overlaps := true, false
			for k := range paths {
				covers = covers && (allows[i][k] || !allows[j][k])
				overlaps = overlaps || allows[i][k] && allows[j][k]
			}
			if got := p.Covers(q); got != covers {
				t.Errorf("%q covers %q: %t", p, q, got)
			}
			if got := p.Overlaps(q); got != overlaps {
				t.Errorf("%q overlaps %q: %t", p, q, got)
			}
		}
	}
}

func TestCoversAndOverlapsByMethod(t *testing.T) {
	sets := []string{"GET", "HEAD", "GET,HEAD", "BREW", "BREW,GET", "*"}
	calls := []string{"GET", "HEAD", "BREW", "POST"}
	path := mustPath(t, "/a")
	allows := func(set, method string) bool {
		_, ok := mustScope(t, "payments", set+" /a").Matcher().HTTP(method, &path)
		return ok
	}
	for _, a := range sets {
		for _, b := range sets {
			covers, overlaps := true, false
			for _, m := range calls {
				covers = covers && (allows(a, m) || !allows(b, m))
				overlaps = overlaps || allows(a, m) && allows(b, m)
			}
			p, q := mustPermission(t, a+" /a"), mustPermission(t, b+" /a")
			if p.Covers(q) != covers || p.Overlaps(q) != overlaps {
				t.Errorf("%q covers %q: %t, overlaps: %t", p, q, p.Covers(q), p.Overlaps(q))
			}
		}
	}
}

func TestScopeCovers(t *testing.T) {
	for _, c := range []struct {
		have, want []string
		covers     bool
	}{
		{[]string{"GET /a", "HEAD /**"}, []string{"GET,HEAD /a"}, true},
		{[]string{"GET /a/**", "HEAD /a/**", "tcp"}, []string{"GET,HEAD /a/b", "tcp"}, true},
		{[]string{"GET /a/**"}, []string{"GET,HEAD /a/b"}, false},
		{[]string{"GET,HEAD,POST /a"}, []string{"* /a"}, false},
		{[]string{"* /a"}, []string{"GET,HEAD,POST /a"}, true},
		{[]string{"GET /a"}, []string{"GET /a", "tcp"}, false},
		{[]string{"GET /a", "tcp"}, []string{"GET /a"}, true},
		{[]string{"GET /a/", "GET /a/*", "GET /a/*/**"}, []string{"GET /a/**"}, false},
		{[]string{"postgres a as b"}, []string{"postgres a as b"}, true},
		{[]string{"grpc a.B/*"}, []string{"grpc a.B/C", "grpc a.B/D"}, true},
	} {
		have, want := mustScope(t, "payments", c.have...), mustScope(t, "payments", c.want...)
		if have.Covers(want) != c.covers {
			t.Errorf("%q covers %q: not %t", have, want, c.covers)
		}
		if have.Covers(mustScope(t, "payments2", c.want...)) {
			t.Errorf("%q covers another service's %q", have, want)
		}
	}
}

// TestZeroAllowsNothing: what was never parsed is no permission to anything.
func TestZeroAllowsNothing(t *testing.T) {
	var (
		p    Permission
		s    Scope
		id   ID
		path Path
	)
	tcp, some := TCPPermission(), mustScope(t, "payments", "* /**", "tcp", "grpc a.B/*", "postgres d as r")
	if p.Covers(p) || p.Covers(tcp) || tcp.Covers(p) || p.Overlaps(tcp) || tcp.Overlaps(p) {
		t.Error("the zero permission covers or overlaps")
	}
	if s.Covers(s) || s.Covers(some) || some.Covers(s) {
		t.Error("the zero scope covers or is covered")
	}
	if !p.IsZero() || p.Kind() != 0 || p.Kind().String() != "" || p.String()+p.Words() != "" {
		t.Errorf("the zero permission says %q", p)
	}
	if !s.IsZero() || s.Permissions() != nil || s.Texts() != nil || s.String()+s.Words() != "" {
		t.Errorf("the zero scope says %q", s)
	}
	if !id.IsZero() || id.String() != "" || !id.SPIFFEID().IsZero() || !id.Scope().IsZero() || !id.Subject().IsZero() {
		t.Errorf("the zero ID says %q", id)
	}
	root := mustPath(t, "/")
	for _, m := range []*Matcher{nil, {}, s.Matcher(), id.Scope().Matcher(), some.Matcher()} {
		_, http := m.HTTP("GET", &path)
		_, grpc := m.GRPC("POST", &path)
		_, none := m.HTTP("GET", nil)
		_, noMethod := m.HTTP("", &root)
		if http || grpc || none || noMethod || m.Postgres("", "") {
			t.Errorf("%v allows a request that was never read", m)
		}
	}
	for _, m := range []*Matcher{nil, {}, s.Matcher()} {
		if _, ok := m.HTTP("GET", &root); ok || m.TCP() || m.Postgres("d", "r") {
			t.Errorf("%v allows", m)
		}
	}
}

// TestCoversIsFast: deciding on scopes of the greatest size takes no noticeable time.
func TestCoversIsFast(t *testing.T) {
	var methods, paths []string
	for i := range 200 {
		methods = append(methods, strings.Repeat(string(rune('A'+i%26)), 1+i/26))
	}
	for i := range 120 {
		paths = append(paths, fmt.Sprintf("A /%d", i))
	}
	wide, long := mustScope(t, "p", strings.Join(methods, ",")+" /**"), mustScope(t, "p", paths...)
	if wide.Covers(long) != true || long.Covers(wide) {
		t.Error("Covers is wrong about long scopes")
	}
	many := make([]Permission, 1<<20)
	for i := range many {
		many[i] = TCPPermission()
	}
	if _, err := NewScope("p", many...); err == nil {
		t.Error("a million permissions make a scope")
	}
}
