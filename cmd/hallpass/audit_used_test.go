package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/proxy/records"
)

// TestNarrow: the suggestion covers every request that there was, lies within what
// was granted, and is as narrow as one pattern can be.
func TestNarrow(t *testing.T) {
	for _, tt := range []struct {
		granted string
		used    string
		want    string
	}{
		{"GET /accounts/**", "GET /accounts/7", "GET /accounts/7"},
		{"GET /accounts/**", "GET /accounts/7 GET /accounts/7", "GET /accounts/7"},
		{"GET /accounts/**", "GET /accounts/7 GET /accounts/8", "GET /accounts/*"},
		{"GET /accounts/**", "GET /accounts/7/x GET /accounts/8/x", "GET /accounts/*/x"},
		{"GET /accounts/**", "GET /accounts/7 GET /accounts/8/x", "GET /accounts/**"},
		{"GET /**", "GET /a/b/1 GET /a/b/1/2", "GET /a/b/**"},
		{"GET /**", "GET /a/1/x GET /a/2/x GET /a/3/x/y", "GET /a/*/**"},
		{"GET /**", "GET /a/b/c GET /a", "GET /**"},
		{"GET /**", "GET /a/ GET /a/b", "GET /a/**"},
		{"GET /**", "GET /a/b GET /a/b/c GET /a/b/d GET /a/x", "GET /a/**"},
		{"GET /**", "GET /", "GET /"},
		{"* /a/*", "GET /a/1 HEAD /a/2", "GET,HEAD /a/*"},
		{"GET,HEAD /a", "GET /a", "GET /a"},
		{"GET /**", "GET /a/* GET /a/*", "GET /a/%2A"},
		{"GET /**", "GET /a%20b", "GET /a%20b"},
		{"grpc bank.Ledger/*", "POST /bank.Ledger/Read POST /bank.Ledger/Read POST /bank.Ledger/List", "grpc bank.Ledger/List; grpc bank.Ledger/Read"},
		{"tcp", " /", "tcp"},
		{"postgres orders as readonly", " /", "postgres orders as readonly"},
	} {
		whole, err := grant.ParsePermission(tt.granted)
		if err != nil {
			t.Fatal(err)
		}
		var s useShape
		words := strings.Split(tt.used, " ")
		for i := 0; i+1 < len(words); i += 2 {
			s.add(words[i], words[i+1])
		}
		var got []string
		less := s.narrow(whole)
		for _, p := range less {
			got = append(got, p.String())
			if !whole.Covers(p) {
				t.Errorf("%s: %s is more than was granted", tt.granted, p)
			}
		}
		if strings.Join(got, "; ") != tt.want {
			t.Errorf("%s used as %s: %s, want %s", tt.granted, tt.used, strings.Join(got, "; "), tt.want)
		}
		if whole.Kind() != grant.KindHTTP {
			continue
		}
		for i := 0; i+1 < len(words); i += 2 {
			path, err := grant.ParsePath(words[i+1], grant.PathOptions{})
			if err != nil {
				t.Fatal(err)
			}
			scope, err := grant.NewScope("x", less...)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := scope.Matcher().HTTP(words[i], &path); !ok {
				t.Errorf("%s: %s %s is not covered", got, words[i], words[i+1])
			}
		}
	}
}

// logOf is an access log, and the state of its tree.
func logOf(t *testing.T, id string, before *records.Head, lines ...string) (string, records.Head) {
	t.Helper()
	first, err := records.First{Time: time.Unix(1700000000, 0), Log: id, Previous: before}.Line()
	if err != nil {
		t.Fatal(err)
	}
	var tree records.Tree
	text := string(first) + "\n" + strings.Join(lines, "")
	for line := range strings.Lines(text) {
		tree.Append([]byte(strings.TrimSuffix(line, "\n")))
	}
	return text, tree.Head(id)
}

func use(id, permission, method, path string) string {
	return fmt.Sprintf(`{"time":"2023-11-14T22:13:21.000Z","kind":"request","event":"end","service":"payments","subject":"spiffe://acme.test/user/alice","grant":%q,"permission":%q,"decision":"allow","method":%q,"path":%q}`+"\n",
		id, permission, method, path)
}

// TestAuditAccess: what was used, over rotated and compressed files; and a log that
// is not what its proxy wrote is told, however it was changed.
func TestAuditAccess(t *testing.T) {
	const first, second = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
	dir := t.TempDir()
	text, head := logOf(t, first, nil,
		use(provable, "GET /accounts/**", "GET", "/accounts/7"), use(provable, "GET /accounts/**", "GET", "/accounts/8"),
		strings.Replace(use(provable, "", "GET", "/x"), `"allow"`, `"deny"`, 1),
		strings.Replace(use(provable, "", "GET", "/x"), `"allow"`, `"allow","would_deny":"outside_scope"`, 1),
		strings.Replace(use(provable, "GET /accounts/**", "GET", "/accounts/9/open"), `"end"`, `"open"`, 1))
	next, _ := logOf(t, second, &head, use(provable, "POST /refunds/*", "POST", "/refunds/1"))
	write := func(name, text string, pack bool) string {
		file := filepath.Join(dir, name)
		data := []byte(text)
		if pack {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			if _, err := z.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			data = b.Bytes()
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	b := write("b.jsonl", next, false)
	for name, tt := range map[string]struct{ text, broken string }{
		"as it was":    {text, ""},
		"cut short":    {text[:strings.LastIndex(strings.TrimSuffix(text, "\n"), "\n")+1], "cut short"},
		"a line gone":  {strings.Replace(text, use(provable, "GET /accounts/**", "GET", "/accounts/8"), "", 1), "cut short"},
		"a line more":  {text + use(provable, "tcp", "", ""), "lines were added"},
		"another line": {strings.Replace(text, "/accounts/8", "/accounts/9", 1), "other lines"},
	} {
		for _, pack := range []bool{false, true} {
			got := run(t, nil, "audit", "access", "--offline", "-o", "json", b, write("a", tt.text, pack))
			var out usedAccess
			if err := json.Unmarshal([]byte(got.stdout), &out); err != nil {
				t.Fatalf("%s: %v: %+v", name, err, got)
			}
			want := exitOK
			if tt.broken != "" {
				want = exitError
			}
			if got.status != want || len(out.Broken) > 0 != (tt.broken != "") || !strings.Contains(strings.Join(out.Broken, ""), tt.broken) {
				t.Errorf("%s: status %d, broken %q", name, got.status, out.Broken)
			}
			if name != "as it was" {
				continue
			}
			g := out.Grants[0]
			if len(out.Grants) != 1 || g.Denied != 1 || g.Observed != 1 || len(g.Used) != 2 || g.Used[0].Times != 2 || g.Used[1].Times != 1 || out.Records != 6 {
				t.Errorf("%s: %+v", name, out)
			}
		}
	}
	if got := run(t, nil, "audit", "access", "--offline", b); got.status != exitOK || !strings.Contains(got.stderr, "log "+first+" comes before") {
		t.Errorf("without the first file: %+v", got)
	}
	if got := run(t, nil, "audit", "access"); got.status != exitUsage {
		t.Errorf("no file: %+v", got)
	}
}

// TestGrantCompared with its use.
func TestGrantCompared(t *testing.T) {
	g := &grantUse{Service: "payments", Granted: []string{"GET /accounts/**", "POST /refunds/*"}, by: map[string]*permissionUse{}}
	g.use("GET /accounts/**", time.Unix(1, 0), "GET", "/accounts/7")
	g.use("GET /accounts/**", time.Unix(2, 0), "GET", "/accounts/8")
	g.compare()
	if diff := cmp.Diff([]string{"POST /refunds/*"}, g.Unused); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"GET /accounts/*"}, g.Suggest); diff != "" {
		t.Error(diff)
	}
}
