package grant

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// requests are what the matcher is asked in benchmarks and in the test of its allocations.
func requests() []struct{ name, target string } {
	return []struct{ name, target string }{
		{"first", "/accounts/0199f3a0/entries/17"},
		{"last", "/refunds/0199f3a0-5c1e-7a3b-9c4d-2e5f60718293"},
		{"none", "/admin/users"},
		{"long", "/reports/2026/11/23/payments/eu-central-1/settlement.csv"},
	}
}

func typicalScope(t testing.TB) Scope {
	return mustScope(t, "payments", "GET,HEAD /accounts/**", "GET /reports/*/*/*/payments/*/*", "POST /refunds/*",
		"* /pages/*/", "grpc bank.Ledger/*", "grpc bank.Ledger/Transfer", "postgres orders as readonly", "tcp")
}

// widestScope has as many permissions as a SPIFFE ID carries, all of one first segment.
func widestScope(t testing.TB) Scope {
	var texts []string
	for i := range 100 {
		texts = append(texts, fmt.Sprintf("GET /a/%d", i))
	}
	s := mustScope(t, "p", texts...)
	if _, err := NewID(grants(), s, alice(), testGrant); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMatcherAllocatesNothing(t *testing.T) {
	m := typicalScope(t).Matcher()
	for _, r := range requests() {
		path := mustPath(t, r.target)
		if n := testing.AllocsPerRun(100, func() {
			m.HTTP("GET", &path)
			m.HTTP("BREW", &path)
			m.GRPC("POST", &path)
			m.Postgres("orders", "readonly")
			m.TCP()
		}); n != 0 {
			t.Errorf("matching %s allocates %v times", r.target, n)
		}
		if n := testing.AllocsPerRun(100, func() {
			if _, err := ParsePath(r.target+"?page=2", PathOptions{}); err != nil {
				t.Fatal(err)
			}
		}); n > 1 { // the concatenation
			t.Errorf("reading %s allocates %v times", r.target, n-1)
		}
	}
}

func TestMatcherSaysByWhich(t *testing.T) {
	m := typicalScope(t).Matcher()
	for target, want := range map[string]string{"/accounts/1": "GET,HEAD /accounts/**", "/pages/1/": "* /pages/*/", "/x": ""} {
		path := mustPath(t, target)
		if p, ok := m.HTTP("GET", &path); p.String() != want || ok != (want != "") {
			t.Errorf("GET %s is allowed by %q, %t", target, p, ok)
		}
	}
	path := mustPath(t, "/bank.Ledger/Transfer")
	if p, ok := m.GRPC("POST", &path); !ok || p.String() != "grpc bank.Ledger/Transfer" {
		t.Errorf("Transfer is allowed by %q", p)
	}
	if !m.TCP() || !m.Postgres("orders", "readonly") || m.Postgres("orders", "readonly ") || m.Postgres("readonly", "orders") || m.Postgres("orders", "") {
		t.Error("tcp or postgres is wrong")
	}
}

// TestMatcherAgreesWithItsPermissions: a scope of many permissions allows exactly what the second
// reading allows by one of them, and names one that does.
func TestMatcherAgreesWithItsPermissions(t *testing.T) {
	all, paths := patterns(), samples(t)
	for _, word := range "cdefghijklm" {
		all = append(all, "/"+string(word), "/a/"+string(word)+"/**", "/*/"+string(word))
	}
	methods := []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "BREW"}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var texts []string
		for _, i := range rnd.Perm(len(all))[:1+rnd.IntN(25)] {
			set := "*"
			if n := rnd.IntN(4); n > 0 {
				var some []string
				for _, j := range rnd.Perm(len(methods))[:n] {
					some = append(some, methods[j])
				}
				set = strings.Join(some, ",")
			}
			texts = append(texts, set+" "+all[i])
		}
		s := mustScope(t, "payments", texts...)
		m := s.Matcher()
		for _, path := range paths {
			method := methods[rnd.IntN(len(methods))]
			want := slices.ContainsFunc(s.Permissions(), func(p Permission) bool { return refMatch(p.enc, method, path.text) })
			by, got := m.HTTP(method, &path)
			if got != want || got && !refMatch(by.enc, method, path.text) {
				t.Fatalf("%q allows %s %s: %t by %q, the second reading says %t", s, method, path.raw, got, by, want)
			}
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	m := typicalScope(b).Matcher()
	for _, r := range requests() {
		b.Run(r.name, func(b *testing.B) {
			path := mustPath(b, r.target)
			b.ReportAllocs()
			for b.Loop() {
				m.HTTP("GET", &path)
			}
		})
	}
	b.Run("grpc", func(b *testing.B) {
		path := mustPath(b, "/bank.Ledger/Transfer")
		b.ReportAllocs()
		for b.Loop() {
			m.GRPC("POST", &path)
		}
	})
	b.Run("widest", func(b *testing.B) {
		wide, path := widestScope(b).Matcher(), mustPath(b, "/a/100")
		b.ReportAllocs()
		for b.Loop() {
			wide.HTTP("GET", &path)
		}
	})
}

func BenchmarkParsePath(b *testing.B) {
	for _, r := range append(requests(), struct{ name, target string }{"escaped", "/files/Q3%20100%25/r%C3%A9sum%C3%A9?v=2"}) {
		b.Run(r.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParsePath(r.target, PathOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParseID(b *testing.B) {
	const uri = testStart + "http/GET.HEAD/accounts/_rest/_and/http/POST/refunds/_any" + testEnd
	td := grants()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseID(uri, td); err != nil {
			b.Fatal(err)
		}
	}
}
