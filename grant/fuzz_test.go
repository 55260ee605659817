package grant

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/internal/near"
)

// FuzzID: what ParseID takes, the second reading takes too, with the same parts; its parts
// make the very same ID; and no other spelling of any byte of it is taken for the same grant.
func FuzzID(f *testing.F) {
	v := readVectors(f)
	for _, x := range v.Valid {
		f.Add(x.ID, 50)
	}
	for _, x := range v.Invalid {
		f.Add(x.ID, 60)
	}
	for _, x := range v.Noncanonical {
		f.Add(x.ID, 0)
	}
	f.Fuzz(func(t *testing.T, uri string, at int) {
		id, err := ParseID(uri, grants())
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("an ID and an error: %v", err)
			}
			if _, ref := refParse(uri); ref == nil {
				t.Fatalf("the second reading takes what ParseID refuses: %v", err)
			}
			return
		}
		checkID(t, uri, id)
		at = int(uint(at) % uint(len(uri)))
		for _, other := range []string{
			uri[:at] + fmt.Sprintf("_%02X", uri[at]) + uri[at+1:],
			uri[:at] + fmt.Sprintf("%%%02X", uri[at]) + uri[at+1:],
			uri[:at] + "_" + uri[at:], uri[:at] + "/" + uri[at:], uri[:at] + uri[at+1:],
			uri[:at] + strings.ToUpper(uri[at:]), uri[:at] + strings.ToLower(uri[at:]),
		} {
			if id2, err := ParseID(other, grants()); err == nil && other != uri && id2 == id {
				t.Fatalf("two spellings of one grant: %s and %s", uri, other)
			}
		}
	})
}

// FuzzPermission: a text means what its canonical text means, which has no second form; and it
// stands in an ID that reads back to it, and that the second reading takes too.
func FuzzPermission(f *testing.F) {
	v := readVectors(f)
	for _, x := range v.Text.Valid {
		f.Add(x.Text, uint16(0), byte(0))
	}
	for _, x := range v.Text.Invalid {
		f.Add(x.Text, uint16(0), byte(0))
	}
	for _, x := range v.Valid {
		for _, p := range x.Scope.Permissions {
			f.Add(p, uint16(0), byte(0))
		}
	}
	f.Add("GET /"+strings.Repeat("a", 2035), uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, text string, at uint16, b byte) {
		for _, text := range near.Of(text, at, b) {
			tryPermission(t, text)
		}
	})
}

func tryPermission(t *testing.T, text string) {
	t.Helper()
	p, err := ParsePermission(text)
	if err != nil {
		if !p.IsZero() || strings.ContainsFunc(err.Error(), isHidden) {
			t.Fatalf("ParsePermission(%q) = %q, %v", text, p, err)
		}
		return
	}
	checkPermission(t, p)
	s, err := NewScope("payments", p)
	if err != nil {
		if !errors.Is(err, ErrTooLong) {
			t.Fatal(err)
		}
		return
	}
	id, err := NewID(grants(), s, alice(), testGrant)
	if err != nil {
		if !errors.Is(err, ErrTooLong) {
			t.Fatal(err)
		}
		return
	}
	checkID(t, id.String(), id)
	back, err := ParseID(id.String(), grants())
	if err != nil || back != id || back.Scope().Permissions()[0] != p {
		t.Fatalf("ParsePermission(%q) = %q, which reads back as %v, %v", text, p, back, err)
	}
}

// FuzzScope: two lists of texts make one scope exactly if they say the same things, and two
// scopes have one ID exactly if they are one scope.
func FuzzScope(f *testing.F) {
	f.Add("GET /a\nHEAD /a", "HEAD,GET /a")
	f.Add("* /aaa\nGET /aaaa", "* /b")
	f.Add("GET /a\nGET /a/b", "GET /a/b\nGET /a")
	f.Add("tcp\nGET /tcp", "GET /tcp\ntcp")
	f.Add("postgres a as b", `postgres "a" as "b"`)
	f.Add("GET /_and/http/GET/b", "GET /\nGET /b")
	f.Add("GET /%5Fand", "GET /_and")
	f.Add("grpc a.B/C\ngrpc a.B/*", "grpc a.B/*\ngrpc a.B/C")
	f.Fuzz(func(t *testing.T, a, b string) {
		s, errA := ParseScope("payments", strings.Split(a, "\n"))
		u, errB := ParseScope("payments", strings.Split(b, "\n"))
		if errA != nil || errB != nil {
			return
		}
		if same := slices.Equal(said(t, a), said(t, b)); same != (s == u) {
			t.Fatalf("%q and %q: one scope: %t, say the same: %t", a, b, s == u, same)
		}
		if s == u && !s.Covers(u) || s.Covers(u) && u.Covers(s) && s != u && !strings.ContainsAny(a+b, "*") {
			t.Fatalf("%q and %q: Covers and == differ", s, u)
		}
		idA, errA := NewID(grants(), s, alice(), testGrant)
		idB, errB := NewID(grants(), u, alice(), testGrant)
		if errA != nil || errB != nil {
			return
		}
		if (idA.String() == idB.String()) != (s == u) {
			t.Fatalf("%q and %q have the IDs %s and %s", s, u, idA, idB)
		}
		checkID(t, idA.String(), idA)
		texts := s.Texts()
		slices.Reverse(texts)
		if again, err := ParseScope("payments", texts); err != nil || again != s {
			t.Fatalf("%q in another order is %q, %v", s, again, err)
		}
	})
}

// said is the sorted set of what texts say, one method at a time.
func said(t testing.TB, texts string) []string {
	var all []string
	for text := range strings.SplitSeq(texts, "\n") {
		pp := mustPermission(t, text).parts()
		for _, one := range pp.perMethod() {
			all = append(all, fmt.Sprintf("%#v", one))
		}
	}
	slices.Sort(all)
	return all
}

// FuzzPath: ParsePath reads as the second reading and net/url do, and a permission matches the
// path exactly if net/http would route it to the pattern that says the same.
func FuzzPath(f *testing.F) {
	for _, x := range readVectors(f).Match {
		f.Add(x.Target, "GET /accounts/**", uint16(0), byte(0))
	}
	for _, p := range patterns() {
		f.Add("/a/b/", "GET "+p, uint16(0), byte(0))
	}
	f.Add("/a%20b/c?d", "GET /a%20b/*", uint16(0), byte(0))
	f.Add("/a?b=c&d", "GET /a", uint16(5), byte(0))
	f.Add("/a/b?q", "GET /a/**", uint16(6), byte(0))
	f.Fuzz(func(t *testing.T, target, text string, at uint16, b byte) {
		for _, target := range near.Of(target, at, b) {
			checkPath(t, target)
		}
		path, err := ParsePath(target, PathOptions{})
		if err != nil {
			return
		}
		p, err := ParsePermission(text)
		if err != nil || p.Kind() != KindHTTP {
			return
		}
		got := httpRules(t, p)("GET", &path)
		if want := refMatch(p.enc, "GET", path.text); got != want {
			t.Fatalf("%q allows GET %s: %t, the second reading says %t", p, target, got, want)
		}
		if pp := p.parts(); len(pp.methods) == 0 || slices.Contains(pp.methods, "GET") {
			if want := muxAllows(t, p, target); got != want {
				t.Fatalf("%q allows GET %s: %t, net/http as %s: %t", p, target, got, muxPattern(p), want)
			}
		}
	})
}

// FuzzContain: Covers is sound and Overlaps misses nothing, asked with paths made of the
// patterns themselves; and a scope allows what one of its permissions does.
func FuzzContain(f *testing.F) {
	all := patterns()
	for i, p := range all {
		f.Add("GET "+p, "GET "+all[(i*7+3)%len(all)], "a", "/b/")
	}
	f.Add("GET,HEAD /a/**", "* /*/b/**", "x", "")
	f.Fuzz(func(t *testing.T, a, b, word, tail string) {
		p, errA := ParsePermission(a)
		q, errB := ParsePermission(b)
		if errA != nil || errB != nil || p.Kind() != q.Kind() {
			return
		}
		if p.Covers(q) && !p.Overlaps(q) || p.Overlaps(q) != q.Overlaps(p) || p.Covers(q) && q.Covers(p) && p != q {
			t.Fatalf("%q and %q: covers %t, %t; overlaps %t, %t", p, q, p.Covers(q), q.Covers(p), p.Overlaps(q), q.Overlaps(p))
		}
		if p.Kind() != KindHTTP {
			return
		}
		allowsP, allowsQ := httpRules(t, p), httpRules(t, q)
		either := func(string, *Path) (Permission, bool) { return Permission{}, false }
		s, err := NewScope("payments", p, q)
		if err == nil {
			either = s.Matcher().HTTP
		}
		for _, pattern := range []Permission{p, q} {
			path, errPath := ParsePath(instance(pattern, word, tail), PathOptions{})
			if errPath != nil {
				continue
			}
			for _, method := range append(pattern.parts().methods, "GET", "BREW") {
				inP, inQ := allowsP(method, &path), allowsQ(method, &path)
				if _, ok := either(method, &path); err == nil && ok != (inP || inQ) {
					t.Fatalf("%s %s: %q %t, %q %t, the scope of both %t", method, path.raw, p, inP, q, inQ, ok)
				}
				if p.Covers(q) && inQ && !inP || inP && inQ && !p.Overlaps(q) {
					t.Fatalf("%s %s: %q %t, %q %t; covers %t, overlaps %t", method, path.raw, p, inP, q, inQ, p.Covers(q), p.Overlaps(q))
				}
			}
		}
	})
}

// instance is a path that p matches: word for each *, tail for **.
func instance(p Permission, word, tail string) string {
	var b strings.Builder
	for _, s := range p.parts().segs {
		b.WriteByte('/')
		switch s.kind {
		case segText:
			b.WriteString(url.PathEscape(s.text))
		case segAny:
			b.WriteString(word)
		case segRest:
			b.WriteString(tail)
		case segEmpty:
		}
	}
	return b.String()
}

// FuzzJSON: what Scope reads from JSON is one JSON value in the eyes of encoding/json, and it writes it as JSON that reads
// back to it.
func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"service":"payments","permissions":["GET /a","tcp"]}`), uint16(0), byte(' '))
	f.Add([]byte(`{"permissions":["GET /\ud83d\udd11"],"service":"p"}`), uint16(0), byte(' '))
	f.Add([]byte(`{"service":"p","permissions":["postgres \"a\" as r"]}`), uint16(0), byte(' '))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		for _, data := range near.Of(data, at, b) {
			var s, again Scope
			if err := s.UnmarshalJSON(data); err != nil {
				if !s.IsZero() {
					t.Fatalf("a scope and an error: %v", err)
				}
				continue
			}
			out, err := s.MarshalJSON()
			if err != nil || !json.Valid(data) {
				t.Fatalf("%q is read, %v", data, err)
			}
			if err := again.UnmarshalJSON(out); err != nil || again != s {
				t.Fatalf("%s is written as %s, which is %v, %v", data, out, again, err)
			}
		}
	})
}
