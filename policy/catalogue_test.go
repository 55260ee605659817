package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

const catalogue = `
version: 3
services:
  - name: payments
    description: Accounts and refunds
    owners: [group:payments-owners, person:bob]
    tier: critical
    labels: {team: money}
    bundles:
      - {name: read, description: Look at accounts, permissions: ["HEAD /health", "GET,HEAD /accounts/**"]}
      - {name: refund, permissions: ["POST /refunds/*"]}
      - {name: all, permissions: ["* /**"]}
      - {name: vip, permissions: ["GET /accounts/vip/*"]}
  - name: ledger
    bundles: [{name: look, permissions: ["grpc bank.Ledger/Get"]}]
  - {name: vault, description: nobody may know}
rules:
  - name: read
    service: payments
    requesters: [group:engineers]
    permissions: ["GET,HEAD /**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
  - name: refund
    service: payments
    requesters: [group:support]
    permissions: ["POST /refunds/**"]
    match: request.start.getHours() < 7
    auto: true
    max_duration: 1h
  - name: agents
    service: ledger
    requesters: [group:support]
    subjects: ["spiffe://acme.test/agent/*"]
    permissions: ["grpc bank.Ledger/*"]
    auto: true
    max_duration: 1h
  - name: no-vip
    service: "*"
    requesters: [group:engineers]
    permissions: ["* /accounts/vip/**"]
    deny: ask security
  - name: not-at-night
    service: "*"
    requesters: ["spiffe://acme.test/**"]
    permissions: ["* /**"]
    match: request.start.getHours() > 22
    deny: not at night
`

func offers(t *testing.T, p *policy.Policy, who, groups, after string) string {
	t.Helper()
	var b strings.Builder
	for o := range p.Offers(spiffe(t, who), strings.Fields(groups), after, "") {
		fmt.Fprintf(&b, "%s: %s\n", o.Name, strings.Join(o.Permissions, "; "))
		for _, u := range o.Bundles {
			fmt.Fprintf(&b, "  %s: %s\n", u.Name, strings.Join(u.Permissions, "; "))
		}
	}
	return b.String()
}

// TestOffers: each sees what rules that name them let them ask for, and of the rest
// not even that it is there.
func TestOffers(t *testing.T) {
	p := mustParse(t, catalogue)
	for _, c := range []struct{ who, groups, after, want string }{
		{"user/alice", "engineers", "", "payments: GET,HEAD /**\n"},
		{"user/alice", "support", "", "ledger: grpc bank.Ledger/*\n  look: grpc bank.Ledger/Get\npayments: POST /refunds/**\n  refund: POST /refunds/*\n"},
		{"user/alice", "support", "ledger", "payments: POST /refunds/**\n  refund: POST /refunds/*\n"},
		{"user/alice", "support", "payments", ""},
		{"user/mallory", "", "", ""},                         // named by a rule that denies, and by no other
		{"user/mallory", "payments-owners security", "", ""}, // who approves, and may not ask
	} {
		if diff := cmp.Diff(c.want, offers(t, p, c.who, c.groups, c.after)); diff != "" {
			t.Errorf("%s of %q after %q (-want +got):\n%s", c.who, c.groups, c.after, diff)
		}
	}
	if got := offers(t, nil, "user/alice", "engineers", ""); got != "" {
		t.Errorf("no policy offers %s", got)
	}
	for o := range p.Offers(spiffe(t, "user/alice"), []string{"support"}, "ledger", "") {
		if o.Description != "Accounts and refunds" || o.Tier != "critical" || o.Labels["team"] != "money" || !slices.Equal(o.Owners, []string{"group:payments-owners", "person:bob"}) {
			t.Errorf("%+v", o)
		}
	}
}

// TestOffersOpen: what is denied whoever asks and whenever is not offered, were a
// part of it allowed.
func TestOffersOpen(t *testing.T) {
	open := strings.Replace(catalogue, `["GET,HEAD /**"]`, `["GET,HEAD /accounts/**", "GET,HEAD /accounts/vip/*", "HEAD /health"]`, 1)
	p := mustParse(t, strings.Replace(open, `"* /accounts/vip/**"`, `"* /accounts/vip/**", "PUT /health"`, 1))
	// read overlaps what no-vip denies, and vip lies within it.
	if got, want := offers(t, p, "user/alice", "engineers", ""), "payments: GET,HEAD /accounts/**; HEAD /health\n"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	p = mustParse(t, strings.Replace(open, "    deny: ask security", "    subjects: [\"spiffe://acme.test/agent/*\"]\n    deny: ask security", 1))
	if got := offers(t, p, "user/alice", "engineers", ""); !strings.Contains(got, "\n  read: GET,HEAD /accounts/**; HEAD /health\n  vip: GET /accounts/vip/*\n") {
		t.Errorf("denied for agents alone: %s", got)
	}
}

// TestOffered: of a bundle that is not for the caller nothing is said, and nothing is
// given.
func TestOffered(t *testing.T) {
	p := mustParse(t, catalogue)
	for _, c := range []struct {
		who, groups, service, name string
		want                       bool
	}{
		{"user/alice", "support", "payments", "refund", true},
		{"user/alice", "engineers", "payments", "refund", false},
		{"user/alice", "support", "payments", "all", false},
		{"user/alice", "support", "payments", "nothing", false},
		{"user/alice", "support", "nowhere", "refund", false},
		{"user/mallory", "", "payments", "refund", false},
		{"user/mallory", "", "payments", "", false},
	} {
		b, ok := p.Offered(spiffe(t, c.who), strings.Fields(c.groups), c.service, c.name)
		if ok != c.want || ok != (len(b.Permissions) > 0) {
			t.Errorf("%+v: %+v, %t", c, b, ok)
		}
	}
	b, _ := p.Bundle("payments", "refund")
	if !b.In(scope(t, "payments", "POST /refunds/*; GET /a")) || b.In(scope(t, "payments", "POST /refunds/7")) || (policy.Bundle{}).In(scope(t, "payments", "* /**")) {
		t.Error("a bundle lies where it does not, or does not where it does")
	}
	if got := p.Groups(); !slices.Contains(got, "payments-owners") || !slices.Equal(p.Persons(), []string{"bob"}) {
		t.Errorf("%q %q", got, p.Persons())
	}
}

// TestUnion: bundles that overlap each other, or what is asked for beside them, come to one
// scope, which allows what each of them does and nothing else.
func TestUnion(t *testing.T) {
	p := mustParse(t, `
version: 3
rules: []
services:
  - name: s
    bundles:
      - {name: a, permissions: ["GET,HEAD /x", tcp]}
      - {name: b, permissions: ["GET,POST /x", "GET /y/**"]}
      - {name: c, permissions: ["* /x"]}
      - {name: d, permissions: ["GET /y/z", "grpc p.S/*", "postgres orders as reader"]}
`)
	for _, c := range []struct {
		words, names, want string
	}{
		{"", "a", "GET,HEAD /x; tcp"},
		{"PUT /x; GET /x/*", "a b", "GET /x/*; GET,HEAD,POST,PUT /x; GET /y/**; tcp"},
		{"PUT /x", "a b c", "* /x; GET /y/**; tcp"},
		{"GET /y/z", "b d", "grpc p.S/*; GET,POST /x; GET /y/**; GET /y/z; postgres orders as reader"},
		{"* /x", "a", "* /x; tcp"},
	} {
		var words grant.Scope
		if c.words != "" {
			words = scope(t, "s", c.words)
		}
		var all []policy.Bundle
		scopes := []grant.Scope{words}
		for name := range strings.FieldsSeq(c.names) {
			b, ok := p.Bundle("s", name)
			if !ok {
				t.Fatal(name)
			}
			all, scopes = append(all, b), append(scopes, b.Scope())
		}
		got, err := policy.Union("s", scopes...)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		want := strings.Split(c.want, "; ")
		if !slices.Equal(slices.Sorted(slices.Values(got.Texts())), slices.Sorted(slices.Values(want))) {
			t.Errorf("%+v: %q", c, got.Texts())
		}
		for _, b := range all {
			if !b.In(got) {
				t.Errorf("%+v: %s is not in it", c, b.Name)
			}
		}
	}
}

// TestOffersOfTheFirstForm: services that a policy does not list are those that its
// rules name.
func TestOffersOfTheFirstForm(t *testing.T) {
	p := mustParse(t, "version: 1\nrules:\n  - {name: r, service: b, requesters: [group:g], permissions: [tcp], auto: true, max_duration: 1h}\n"+
		"  - {name: q, service: a, requesters: [group:g], permissions: [tcp], auto: true, max_duration: 1h}\n")
	if got, want := offers(t, p, "user/alice", "g", ""), "a: tcp\nb: tcp\n"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestBundleBounds: what is too long or too much is refused where it stands.
func TestBundleBounds(t *testing.T) {
	many := func(n int, form string) string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf(form, i))
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	long := strings.Repeat("a", 501)
	for name, c := range map[string][2]string{
		"a description": {"description: " + long, "description is 501 bytes: at most 500"},
		"of a bundle":   {"bundles: [{name: a, permissions: [tcp], description: " + long + "}]", "description is 501 bytes: at most 500"},
		"owners":        {"owners: " + many(21, `"person:p%d"`), "owners has 21 elements: at most 20"},
		"bundles":       {"bundles: " + many(51, "{name: b%d, permissions: [tcp]}"), "bundles has 51 elements: at most 50"},
		"permissions":   {"bundles: [{name: a, permissions: " + many(33, `"GET /a%d"`) + "}]", "permissions has 33 elements: at most 32 in a bundle"},
		"a scope":       {"bundles: [{name: a, permissions: " + many(32, `"GET /`+long[:80]+`%d"`) + "}]", "permissions: bad scope: too long"},
		"other things":  {"bundles: [{name: a, permissions: [tcp], x: 1}]", `unknown key "x" in a bundle: the keys are name, description, permissions`},
	} {
		_, err := policy.Parse([]byte("version: 3\nrules: []\nservices:\n  - name: s\n    " + c[0] + "\n"))
		if err == nil || !strings.Contains(err.Error(), "line 5: "+c[1]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mustParse(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestOffersOfManyServices: what rules about every service come to is computed once a call, not once a
// service: whoever may ask for anything could hold a node's processor with it.
func TestOffersOfManyServices(t *testing.T) {
	var b strings.Builder
	b.WriteString("version: 3\nservices:\n")
	for i := range 500 {
		fmt.Fprintf(&b, "  - {name: s%d}\n", i)
	}
	b.WriteString("rules:\n")
	for i := range 20 {
		fmt.Fprintf(&b, "  - {name: r%d, service: \"*\", requesters: [group:staff], permissions: [%s], auto: true, max_duration: 1h}\n", i, manyPermissions(i))
	}
	for i := range 2 {
		fmt.Fprintf(&b, "  - {name: d%d, service: \"*\", requesters: [group:staff], permissions: [%s], deny: no}\n", i, manyPermissions(100+i))
	}
	p, err := policy.Parse([]byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	each := func(only string) func() {
		return func() {
			for range p.Offers(spiffe(t, "user/alice"), []string{"staff"}, "", only) {
				continue
			}
		}
	}
	// A permission costs several allocations to look at: once is 880 of them, once a service 200,000.
	if one, all := testing.AllocsPerRun(1, each("s1")), testing.AllocsPerRun(1, each("")); all > one+500*40 {
		t.Errorf("%.0f allocations for one service, %.0f for 500", one, all)
	}
}

func manyPermissions(of int) string {
	var all []string
	for i := range 20 {
		all = append(all, fmt.Sprintf("\"GET,HEAD,POST /r%d/p%d/**\"", of, i))
	}
	return strings.Join(all, ", ")
}
