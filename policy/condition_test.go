package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/policy"
)

const twoConditions = `version: 2
rules:
  - {name: read, service: payments, requesters: [group:engineers], permissions: ["GET /**"], require: [{group: owners, approvals: 1}], max_duration: 8h}
  - {name: look, service: payments, requesters: [group:engineers], permissions: ["* /**"], match: 'a', require: [{group: security, approvals: 1}], max_duration: 1h}
  - {name: elsewhere, service: ledger, requesters: [group:engineers], permissions: ["* /**"], match: 'b', auto: true, max_duration: 1h}
  - {name: stop, service: payments, requesters: [group:engineers], permissions: ["GET /**"], match: 'c', deny: "stop"}
`

// TestAnswersAreToTheQuestions: an answer that is missing, one too many, or those
// in another order deny, whatever they say. A rule must not fall away because nobody
// said whether it applies.
func TestAnswersAreToTheQuestions(t *testing.T) {
	p, err := policy.Parse([]byte(twoConditions))
	if err != nil {
		t.Fatal(err)
	}
	r := policy.Request{
		Requester: spiffe(t, "user/alice"), Subject: spiffe(t, "user/alice"), Groups: []string{"engineers"},
		Scope: scope(t, "payments", "GET /a"), Duration: time.Hour,
	}
	var asked []string
	for _, q := range policy.Questions(p, r) {
		asked = append(asked, q.Rule+": "+q.Match)
	}
	if diff := cmp.Diff([]string{"look: a", "stop: c"}, asked); diff != "" {
		t.Errorf("questions (-want +got):\n%s", diff)
	}
	say := func(texts ...string) policy.Outcome {
		r.Answers = nil
		for _, text := range texts {
			rule, no := strings.CutPrefix(text, "not ")
			r.Answers = append(r.Answers, policy.Answer{Rule: rule, Holds: !no})
		}
		out := policy.Decide(p, r)
		checkOutcome(t, out)
		return out
	}
	for _, c := range []struct {
		answers []string
		want    string
	}{
		{[]string{"not look", "not stop"}, "require owners:1; max 8h; ttl 5m; rules read"},
		{[]string{"look", "not stop"}, "require owners:1,security:1; max 1h; ttl 5m; rules read,look"},
		{[]string{"look", "stop"}, `denied: rule "stop" denies "GET /a": stop`},
		{[]string{"not look", "stop"}, `denied: rule "stop" denies "GET /a": stop`},
	} {
		if got := describe(say(c.answers...)); got != c.want {
			t.Errorf("%q: %s, want %s", c.answers, got, c.want)
		}
	}
	for _, bad := range [][]string{
		nil,
		{"not look"},
		{"not stop"},
		{"not stop", "not look"},
		{"not look", "not look"},
		{"not look", "not stop", "not stop"},
		{"not look", "not elsewhere", "not stop"},
		{"not read", "not look", "not stop"},
		{"", "not stop"},
		{"not nobody", "not stop"},
	} {
		if out := say(bad...); out.Allowed {
			t.Errorf("%q allow: %+v", bad, out)
		}
	}
	r.Answers, r.Scope = []policy.Answer{{Rule: "look"}}, scope(t, "wiki", "GET /a")
	if out := policy.Decide(p, r); out.Allowed || policy.Questions(p, r) != nil {
		t.Errorf("an answer where nothing was asked: %+v", out)
	}
	if none := (policy.Request{}); policy.Questions(p, none) != nil || policy.Questions(nil, r) != nil {
		t.Error("questions about nothing")
	}
}

// TestConditionalIsPlainOnceAnswered: with its conditions answered, a policy decides
// like the one in which the rules that hold have none, and the others are not.
func TestConditionalIsPlainOnceAnswered(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(twoConditions), "\n")
	p, err := policy.Parse([]byte(twoConditions))
	if err != nil {
		t.Fatal(err)
	}
	for _, look := range []bool{true, false} {
		for _, stop := range []bool{true, false} {
			plain := slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
				return strings.Contains(line, "name: look") && !look || strings.Contains(line, "name: stop") && !stop
			})
			text := strings.Join(plain, "\n")
			for _, match := range []string{"match: 'a', ", "match: 'b', ", "match: 'c', "} {
				text = strings.ReplaceAll(text, match, "")
			}
			q, err := policy.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			r := policy.Request{
				Requester: spiffe(t, "user/alice"), Subject: spiffe(t, "user/alice"), Groups: []string{"engineers"},
				Scope: scope(t, "payments", "GET /a"), Duration: time.Hour,
			}
			want := policy.Decide(q, r)
			r.Answers = []policy.Answer{{Rule: "look", Holds: look}, {Rule: "stop", Holds: stop}}
			if diff := cmp.Diff(want, policy.Decide(p, r)); diff != "" {
				t.Errorf("look %v, stop %v (-plain +answered):\n%s", look, stop, diff)
			}
		}
	}
}
