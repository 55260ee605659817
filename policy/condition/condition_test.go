package condition_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
	"github.com/hallpass/hallpass/policy/condition"
)

// with is a policy of one rule that applies where match holds. The match is on
// line 11.
func with(match string) string {
	return `version: 2
services:
  - {name: payments, tier: critical, labels: {team: money}}
  - {name: status}
rules:
  - name: only
    service: "*"
    requesters: ["spiffe://acme.test/**", "spiffe://partner.test/**"]
    subjects: ["spiffe://acme.test/agent/*"]
    permissions: ["* /**", "grpc bank.Ledger/*", "postgres orders as readonly", tcp]
    match: ` + strings.ReplaceAll(match, "\n", "\n      ") + `
    auto: true
    max_duration: 8h
`
}

func request(t *testing.T) policy.Request {
	t.Helper()
	return policy.Request{
		Requester: id(t, "spiffe://acme.test/user/alice"), Groups: []string{"engineers", "security"}, Subject: id(t, "spiffe://acme.test/agent/x"),
		Scope: scope(t, "payments", "GET /accounts/42"), Duration: 30 * time.Minute, Reason: "OPS-7: look",
		Start: time.Date(2026, 3, 1, 23, 30, 0, 0, time.UTC), // a Sunday
	}
}

func id(t *testing.T, text string) spiffeid.ID {
	t.Helper()
	out, err := spiffeid.FromString(text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func scope(t *testing.T, service string, permissions ...string) grant.Scope {
	t.Helper()
	s, err := grant.ParseScope(service, permissions)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func compiled(t *testing.T, text string) *condition.Set {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	s, err := condition.Compile(p)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return s
}

// TestConditionsSeeTheRequest has one condition on each thing there is to see.
func TestConditionsSeeTheRequest(t *testing.T) {
	for match, want := range map[string]bool{
		`requester.id == "spiffe://acme.test/user/alice"`:                                   true,
		`requester.trust_domain == "acme.test"`:                                             true,
		`requester.trust_domain == "partner.test"`:                                          false,
		`requester.path.startsWith("/user/")`:                                               true,
		`"security" in requester.groups`:                                                    true,
		`requester.groups.exists(g, g == "admins")`:                                         false,
		`subject.id != requester.id && subject.path == "/agent/x"`:                          true,
		`subject.trust_domain == "acme.test"`:                                               true,
		`service.name == "payments"`:                                                        true,
		`service.tier == "critical"`:                                                        true,
		`service.labels["team"] == "money"`:                                                 true,
		`"owner" in service.labels`:                                                         false,
		`request.permissions == ["GET /accounts/42"]`:                                       true,
		`request.permissions.all(p, p.startsWith("GET "))`:                                  true,
		`request.writes`:                                                                    false,
		`request.duration <= duration("30m")`:                                               true,
		`request.duration > duration("30m")`:                                                false,
		`request.reason.matches("^OPS-[0-9]+")`:                                             true,
		`request.reason.size() > 20`:                                                        false,
		`request.start.getHours() == 23 && request.start.getDayOfWeek() == 0`:               true,
		`(request.start + duration("1h")).getDayOfWeek() == 1`:                              true,
		`request.start < timestamp("2026-03-02T00:00:00Z")`:                                 true,
		`request.start + request.duration <= timestamp("2026-03-02T00:00:00Z")`:             true,
		`!(request.start.getHours() in [8, 9, 10, 11, 12, 13, 14, 15, 16, 17])`:             true,
		`request.writes || (service.tier == "critical" && "engineers" in requester.groups)`: true,
	} {
		s := compiled(t, with(fmt.Sprintf("%s%s", "|\n", match)))
		got, err := s.Answer(t.Context(), request(t))
		if diff := cmp.Diff([]policy.Answer{{Rule: "only", Holds: want}}, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", match, err, diff)
		}
	}
}

func TestWrites(t *testing.T) {
	s := compiled(t, with("request.writes"))
	for permission, want := range map[string]bool{
		"GET /a": false, "GET,HEAD,OPTIONS /a": false, "POST /a": true, "GET,POST /a": true, "* /a": true, "GET /a/**": false,
		"CONNECT /a": true, "grpc bank.Ledger/Get": true, "postgres orders as readonly": true, "tcp": true,
	} {
		r := request(t)
		r.Scope = scope(t, "payments", permission)
		if out := s.Decide(t.Context(), r); out.Allowed != want {
			t.Errorf("%s: %+v", permission, out)
		}
	}
	r := request(t)
	r.Scope = scope(t, "payments", "GET /a", "POST /b")
	if !s.Decide(t.Context(), r).Allowed {
		t.Error("one that reads and one that writes do not write")
	}
}

// TestConditionsRefused finds the mistakes that a condition may have, with their
// lines and rule.
func TestConditionsRefused(t *testing.T) {
	for _, c := range []struct{ match, want string }{
		{`requester.gruops == []`, `line 11: rule "only": match: undeclared reference to 'requester.gruops' (did you mean 'requester.groups'?)`},
		{`requester.id = "x"`, `line 11: rule "only": match: Syntax error`},
		{`request.duration > 5`, `line 11: rule "only": match: found no matching overload`},
		{`request.reason`, `line 11: rule "only": match: it is a string: write something that is true or false`},
		{`dyn(request.writes)`, `line 11: rule "only": match: it is a dyn`},
		{"|\n  request.writes &&\n  request.wrote", `line 13: rule "only": match: undeclared reference`},
		{`request.start.getHours("Europe/Berlin") > 8`, `match: found no matching overload for 'getHours'`},
		{`request.start.getDayOfWeek("Europe/Berlin") > 8`, `match: found no matching overload for 'getDayOfWeek'`},
		{`request.start.getMilliseconds("+01:00") > 8`, `match: found no matching overload`},
		{`now() > request.start`, `match: undeclared reference to 'now'`},
		{strings.Repeat("!(", 50) + "true" + strings.Repeat(")", 50), `match: `},
	} {
		p, err := policy.Parse([]byte(with(quoted(c.match))))
		if err != nil {
			t.Fatal(err)
		}
		s, err := condition.Compile(p)
		if s != nil || !errors.Is(err, policy.ErrPolicy) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.match, err, c.want)
		}
	}
}

func quoted(match string) string {
	if strings.HasPrefix(match, "|") {
		return match
	}
	return "'" + match + "'"
}

// TestFailingConditionsDeny: one that cannot be evaluated denies, whatever the
// others say; so does one that costs too much.
func TestFailingConditionsDeny(t *testing.T) {
	many := `request.permissions.all(a, request.permissions.all(b, request.permissions.all(c, request.permissions.all(d, a + b + c + d != "x"))))`
	for match, want := range map[string]string{
		`service.labels["owner"] == "x"`:             `rule "only": no such key: owner`,
		`1 / (request.permissions.size() - 20) == 1`: `rule "only": division by zero`,
		many: `cost`,
		`timestamp(request.reason) < request.start`: `rule "only"`,
	} {
		s := compiled(t, with("|\n"+match))
		r := request(t)
		var permissions []string
		for i := range 20 {
			permissions = append(permissions, fmt.Sprintf("GET /accounts/%02d", i))
		}
		r.Scope = scope(t, "payments", permissions...)
		if _, err := s.Answer(t.Context(), r); !errors.Is(err, condition.ErrCondition) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", match, err, want)
		}
		if out := s.Decide(t.Context(), r); out.Allowed || !strings.Contains(out.Reason, "an admin has to mend the policy") {
			t.Errorf("%s: %+v", match, out)
		}
	}
}

// TestConditionsEndWithTheContext: what goes round for long ends when its caller's
// time does, and counts as no answer.
func TestConditionsEndWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := compiled(t, with(`request.permissions.all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, b + c > 0)))`))
	if _, err := s.Answer(ctx, request(t)); err == nil {
		t.Error("it went on")
	}
	if _, err := compiled(t, with("request.writes")+oneTest).Test(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("tests that were not run: %v", err)
	}
}

const oneTest = `tests:
  - name: reads
    requester: spiffe://acme.test/user/alice
    service: payments
    permissions: ["GET /a"]
    duration: 1h
    expect: {deny: "would if this held: request.writes"}
`

func TestCheckRunsTheTests(t *testing.T) {
	good := with("request.writes") + oneTest
	if _, err := condition.Check(t.Context(), []byte(good)); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"a test fails":           {strings.Replace(good, "GET /a", "POST /a", 1), `line 15: test "reads": it is granted at once, not denied with`},
		"a mistake":              {strings.Replace(good, "auto: true", "auto: yes", 1), "line 12"},
		"a condition's mistake":  {strings.Replace(good, "match: request.writes", "match: request.wrote", 1), "line 11"},
		"denied, another reason": {strings.Replace(good, "would if", "will if", 1), `test "reads": it is denied: no rule allows`},
	} {
		if _, err := condition.Check(t.Context(), []byte(c.text)); !errors.Is(err, policy.ErrPolicy) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestWithoutConditionsNothingIsAsked keeps policies without conditions, and
// requests that none of them is about, as they were.
func TestWithoutConditionsNothingIsAsked(t *testing.T) {
	s := compiled(t, "version: 1\nrules:\n  - {name: a, service: payments, requesters: [\"spiffe://acme.test/**\"], permissions: [\"GET /**\"], auto: true, max_duration: 1h}\n")
	r := request(t)
	r.Subject = r.Requester
	if answers, err := s.Answer(t.Context(), r); answers != nil || err != nil || !s.Decide(t.Context(), r).Allowed {
		t.Errorf("%v, %v", answers, err)
	}
	s = compiled(t, with("request.writes"))
	r.Scope = scope(t, "elsewhere", "GET /a")
	if answers, err := s.Answer(t.Context(), r); answers != nil || err != nil || s.Decide(t.Context(), r).Allowed {
		t.Errorf("%v, %v", answers, err)
	}
	var none *policy.Policy
	if s, err := condition.Compile(none); err != nil || s.Decide(t.Context(), r).Allowed {
		t.Errorf("no policy allows: %v", err)
	}
}
