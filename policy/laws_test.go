package policy_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/internal/near"
	"github.com/hallpass/hallpass/policy"
)

// world is what random rules and requests are drawn from: small, so that rules
// overlap, contain and miss each other often.
var world = struct {
	services, groups, requesters, subjects, permissions []string
}{
	services:   []string{"payments", "ledger"},
	groups:     []string{"engineers", "owners", "security"},
	requesters: []string{"group:engineers", "group:security", "spiffe://acme.test/user/alice", "spiffe://acme.test/user/*", "spiffe://acme.test/agent/*", "spiffe://acme.test/**"},
	subjects:   []string{"spiffe://acme.test/agent/*", "spiffe://acme.test/agent/x1", "spiffe://acme.test/user/alice", "spiffe://acme.test/**"},
	permissions: []string{
		"GET /a", "GET,HEAD /a", "* /a", "POST /a", "GET /a/*", "GET /a/**", "* /a/b", "GET /**", "* /**", "GET,POST /a/b",
		"grpc s.A/*", "grpc s.A/M", "tcp", "postgres db as r",
	},
}

func pick(t *rapid.T, label string, from []string, most int) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(from), 1, most, rapid.ID[string]).Draw(t, label)
}

func quoted(texts []string) string {
	return `["` + strings.Join(texts, `", "`) + `"]`
}

// drawRule draws a rule as YAML. verdict is "", "deny", "require" or "auto";
// "" is any.
func drawRule(t *rapid.T, name, verdict string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  - name: %s\n", name)
	fmt.Fprintf(&b, "    service: %s\n", rapid.SampledFrom(world.services).Draw(t, "service"))
	fmt.Fprintf(&b, "    requesters: %s\n", quoted(pick(t, "requesters", world.requesters, 2)))
	if rapid.Bool().Draw(t, "with subjects") {
		fmt.Fprintf(&b, "    subjects: %s\n", quoted(pick(t, "subjects", world.subjects, 2)))
	}
	fmt.Fprintf(&b, "    permissions: %s\n", quoted(pick(t, "permissions", world.permissions, 4)))
	if verdict == "" {
		verdict = rapid.SampledFrom([]string{"deny", "auto", "require", "require"}).Draw(t, "verdict")
	}
	switch verdict {
	case "deny":
		b.WriteString("    deny: no\n")
		return b.String()
	case "auto":
		b.WriteString("    auto: true\n")
	case "require":
		b.WriteString("    require:\n")
		for _, group := range pick(t, "require", world.groups, 2) {
			fmt.Fprintf(&b, "      - {group: %s, approvals: %d}\n", group, rapid.IntRange(1, 3).Draw(t, "approvals"))
		}
		if rapid.Bool().Draw(t, "with escalate") {
			fmt.Fprintf(&b, "    escalate: {after: %dm, to: [{group: leads, approvals: %d}, {group: %s, approvals: 1}]}\n",
				rapid.IntRange(1, 3).Draw(t, "after"), rapid.IntRange(1, 2).Draw(t, "leads"), rapid.SampledFrom(world.groups).Draw(t, "to"))
		}
	}
	limit := rapid.IntRange(1, 10).Draw(t, "max")
	fmt.Fprintf(&b, "    max_duration: %dm\n", limit)
	if rapid.Bool().Draw(t, "with ttl") {
		fmt.Fprintf(&b, "    certificate_ttl: %dm\n", rapid.IntRange(1, limit).Draw(t, "ttl"))
	}
	return b.String()
}

func drawRules(t *rapid.T, least int) []string {
	n := rapid.IntRange(least, 6).Draw(t, "rules")
	rules := make([]string, n)
	for i := range rules {
		rules[i] = drawRule(t, fmt.Sprintf("r%d", i), "")
	}
	return rules
}

func parseRules(t *rapid.T, rules []string) *policy.Policy {
	text := "version: 3\nrules:\n" + strings.Join(rules, "")
	if len(rules) == 0 {
		text = "version: 1\nrules: []\n"
	}
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

func drawRequest(t *rapid.T) policy.Request {
	ids := []string{"user/alice", "user/bob", "agent/x1", "agent/x2", "service/s"}
	id := func(label string) spiffeid.ID {
		return spiffeid.RequireFromString("spiffe://acme.test/" + rapid.SampledFrom(ids).Draw(t, label))
	}
	r := policy.Request{
		Requester: id("requester"),
		Groups:    rapid.SliceOfNDistinct(rapid.SampledFrom(world.groups), 0, 2, rapid.ID[string]).Draw(t, "groups"),
		Duration:  time.Duration(rapid.IntRange(1, 11).Draw(t, "minutes")) * time.Minute,
	}
	r.Subject = r.Requester
	if rapid.IntRange(0, 2).Draw(t, "for another") == 0 {
		r.Subject = id("subject")
	}
	r.Scope = drawScope(t, rapid.SampledFrom(world.services).Draw(t, "service"), 3)
	return r
}

// drawScope leaves out what a scope refuses: methods said twice of one path.
func drawScope(t *rapid.T, service string, most int) grant.Scope {
	var drawn grant.Scope
	var texts []string
	for _, text := range pick(t, "scope", world.permissions, most) {
		if s, err := grant.ParseScope(service, append(texts, text)); err == nil {
			drawn, texts = s, append(texts, text)
		}
	}
	return drawn
}

// looser says in what way b demands less than a; "" when in none.
func looser(a, b policy.Outcome) string {
	need := make(map[string]int)
	for _, r := range b.Require {
		need[r.Group] = r.Approvals
	}
	for _, r := range a.Require {
		if need[r.Group] < r.Approvals {
			return fmt.Sprintf("%d approvals of %s instead of %d", need[r.Group], r.Group, r.Approvals)
		}
	}
	switch {
	case b.Auto && !a.Auto:
		return "automatic"
	case b.Escalation != nil && !lets(a, b.Escalation.Require, b.Escalation.After):
		return fmt.Sprintf("after %s %+v instead", b.Escalation.After, b.Escalation.Require)
	case b.MaxDuration > a.MaxDuration:
		return "a longer duration"
	case b.CertificateTTL > a.CertificateTTL:
		return "longer certificates"
	}
	return ""
}

// lets reports whether whoever meets these requirements, that late, meets what an
// outcome demands, in the one way or in the other.
func lets(o policy.Outcome, met []policy.Requirement, at time.Duration) bool {
	have := make(map[string]int)
	for _, r := range met {
		have[r.Group] = r.Approvals
	}
	meets := func(demanded []policy.Requirement) bool {
		for _, r := range demanded {
			if have[r.Group] < r.Approvals {
				return false
			}
		}
		return true
	}
	return meets(o.Require) || o.Escalation != nil && at >= o.Escalation.After && meets(o.Escalation.Require)
}

// The strictest wins: adding a rule, wherever it stands, never loosens what
// the others demand.
func TestLawAddingARuleNeverLoosens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules, r := drawRules(t, 1), drawRequest(t)
		before := policy.Decide(parseRules(t, rules), r)
		checkOutcome(t, before)
		at := rapid.IntRange(0, len(rules)).Draw(t, "at")
		more := append(append(append([]string(nil), rules[:at]...), drawRule(t, "new", "")), rules[at:]...)
		after := policy.Decide(parseRules(t, more), r)
		checkOutcome(t, after)
		if before.Allowed && after.Allowed {
			if way := looser(before, after); way != "" {
				t.Fatalf("looser by a rule more: %s\nbefore %+v\nafter %+v\n%s", way, before, after, strings.Join(more, ""))
			}
		}
	})
}

// Adding a rule that denies only denies: what was denied stays so, and what is
// still allowed is unchanged.
func TestLawAddingADenialOnlyDenies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules, r := drawRules(t, 1), drawRequest(t)
		before := policy.Decide(parseRules(t, rules), r)
		after := policy.Decide(parseRules(t, append(rules, drawRule(t, "new", "deny"))), r)
		if after.Allowed {
			if diff := cmp.Diff(before, after); diff != "" {
				t.Fatalf("changed by a denial that does not apply (-before +after):\n%s", diff)
			}
		}
	})
}

// Asking for less never demands more, so nobody is punished for asking
// narrowly; and asking in parts never gets more than asking at once.
func TestLawAskingForLessNeverDemandsMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, r := parseRules(t, drawRules(t, 1)), drawRequest(t)
		whole := policy.Decide(p, r)
		if !whole.Allowed {
			return
		}
		less := r
		less.Scope = drawScope(t, r.Scope.Service(), 2)
		less.Duration = time.Duration(rapid.Int64Range(1, int64(r.Duration)).Draw(t, "shorter"))
		if !r.Scope.Covers(less.Scope) {
			less.Scope = r.Scope
		}
		part := policy.Decide(p, less)
		if !part.Allowed {
			t.Fatalf("%s is denied (%s), though %s is allowed", less.Scope, part.Reason, r.Scope)
		}
		if way := looser(part, whole); way != "" {
			t.Fatalf("%s demands more than %s, which has %s", less.Scope, r.Scope, way)
		}
	})
}

// The order of rules means nothing but the order of their names.
func TestLawOrderMeansNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules, r := drawRules(t, 1), drawRequest(t)
		before := policy.Decide(parseRules(t, rules), r)
		after := policy.Decide(parseRules(t, rapid.Permutation(rules).Draw(t, "order")), r)
		before.Rules, after.Rules = nil, nil
		if before.Allowed != after.Allowed {
			t.Fatalf("%+v in one order, %+v in another", before, after)
		}
		if before.Allowed {
			if diff := cmp.Diff(before, after); diff != "" {
				t.Fatalf("outcome depends on the order:\n%s", diff)
			}
		}
	})
}

// An allowed request is covered: each of its permissions lies within what the
// rules that apply allow, and no rule that names anything else is needed.
func TestLawAllowedIsCovered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules, r := drawRules(t, 1), drawRequest(t)
		out := policy.Decide(parseRules(t, rules), r)
		if !out.Allowed {
			return
		}
		var applying []string
		for i, text := range rules {
			for _, name := range out.Rules {
				if name == fmt.Sprintf("r%d", i) {
					applying = append(applying, text)
				}
			}
		}
		if diff := cmp.Diff(out, policy.Decide(parseRules(t, applying), r)); diff != "" {
			t.Fatalf("the rules named are not the whole reason:\n%s", diff)
		}
	})
}

// An empty, missing or broken policy admits nobody, whatever is asked, and a
// policy says nothing about a request that is not whole.
func TestInvariant09_EmptyMeansDenied_Policy(t *testing.T) {
	broken, err := policy.Parse([]byte("version: 1\nrules:\n  - {name: all, auto: true}\n"))
	if err == nil {
		t.Fatal("a rule for nobody was accepted")
	}
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		for name, p := range map[string]*policy.Policy{
			"nil": nil, "zero": {}, "empty": parseRules(t, nil), "broken": broken,
		} {
			if out := policy.Decide(p, r); out.Allowed || out.Auto || out.Reason == "" {
				t.Fatalf("the %s policy says %+v", name, out)
			}
		}
		p := parseRules(t, []string{`  - {name: all, service: payments, requesters: ["spiffe://acme.test/**"], subjects: ["spiffe://acme.test/**"], ` +
			`permissions: ["* /**", "* /", tcp, "grpc s.A/*", "postgres db as r"], auto: true, max_duration: 720h}` + "\n"})
		whole := r
		whole.Scope, whole.Groups = drawScope(t, "payments", 1), nil
		if !policy.Decide(p, whole).Allowed {
			t.Fatalf("the policy of this test should allow %+v", whole)
		}
		for name, empty := range map[string]func(*policy.Request){
			"requester": func(r *policy.Request) { r.Requester = spiffeid.ID{} },
			"subject":   func(r *policy.Request) { r.Subject = spiffeid.ID{} },
			"scope":     func(r *policy.Request) { r.Scope = grant.Scope{} },
			"duration":  func(r *policy.Request) { r.Duration = 0 },
			"anything":  func(r *policy.Request) { *r = policy.Request{} },
		} {
			r := whole
			empty(&r)
			if out := policy.Decide(p, r); out.Allowed || out.Reason == "" {
				t.Fatalf("a request without %s: %+v", name, out)
			}
		}
	})
}

// FuzzParse: a policy is read or its mistakes are told; and whatever was read decides
// by the laws that any outcome keeps.
func FuzzParse(f *testing.F) {
	text, err := os.ReadFile("../examples/policy.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, uint16(0), byte('0'))
	f.Add([]byte("version: 1\nrules: []\n"), uint16(0), byte('0'))
	f.Add([]byte("version: 1\nrules:\n  - {name: a, service: payments, requesters: [group:a], permissions: [tcp], auto: true, max_duration: 1h}\n"), uint16(0), byte('0'))
	f.Add([]byte("version: 1\nrules: &a [*a]\n"), uint16(0), byte('0'))
	for _, group := range []string{"a", "b", "c"} {
		one := "version: 1\nrules:\n  - {name: a, service: payments, requesters: [group:a], permissions: ['GET /**'], require: [{group: " + group + ", approvals: 1}], max_duration: 1h}\n"
		f.Add([]byte(one), uint16(0), byte('0'))
	}
	f.Add([]byte("? [a]\n: b\n"), uint16(0), byte('0'))
	alice := spiffeid.RequireFromString("spiffe://acme.test/user/alice")
	scope, err := grant.ParseScope("payments", []string{"GET /accounts/1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte, at uint16, b byte) {
		for _, text := range append(near.Of(text, at, b), near.Number(text, at)...) {
			p, err := policy.Parse(text)
			if err != nil {
				var refused *policy.ParseError
				if p != nil || !errors.As(err, &refused) || len(refused.Mistakes) == 0 {
					t.Fatalf("Parse = %v, %v", p, err)
				}
				continue
			}
			for _, groups := range [][]string{nil, p.Groups()} {
				checkOutcome(t, policy.Decide(p, policy.Request{
					Requester: alice, Subject: alice, Groups: groups, Scope: scope, Duration: time.Minute,
				}))
			}
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	text, err := os.ReadFile("../examples/policy.yaml")
	if err != nil {
		b.Fatal(err)
	}
	p, err := policy.Parse(text)
	if err != nil {
		b.Fatal(err)
	}
	scope, err := grant.ParseScope("payments", []string{"GET /accounts/1", "POST /refunds/1"})
	if err != nil {
		b.Fatal(err)
	}
	alice := spiffeid.RequireFromString("spiffe://acme.test/user/alice")
	r := policy.Request{Requester: alice, Subject: alice, Groups: []string{"engineers"}, Scope: scope, Duration: time.Minute}
	for b.Loop() {
		policy.Decide(p, r)
	}
}
