package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/policy"
	"github.com/hallpass/hallpass/policy/condition"
)

const diffedPolicy = `version: 2
rules:
  - name: read
    service: payments
    requesters: [group:engineers]
    permissions: ["GET /**"]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
tests:
  - {name: reads, requester: "spiffe://acme.test/a", groups: [engineers], service: payments, permissions: ["GET /a"], duration: 1h, expect: {auto: true}}
  - {name: strangers, requester: "spiffe://acme.test/a", service: payments, permissions: ["GET /a"], duration: 1h, expect: {deny: no rule}}
`

// TestPolicyDiff: the text that changes, and the tests to which the policy in force
// gives another answer; no policy in force denies.
func TestPolicyDiff(t *testing.T) {
	text := strings.Replace(diffedPolicy, "require: [{group: owners, approvals: 1}]", "auto: true", 1)
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	then, err := condition.Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	out, err := diffPolicies(t.Context(), api.Policy{Revision: 3, YAML: diffedPolicy}, "new.yaml", []byte(text), then)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--- revision 3\n+++ new.yaml\n", "\n-    require: [{group: owners, approvals: 1}]\n+    auto: true\n"} {
		if !strings.Contains(out.Text, want) {
			t.Errorf("no %q in\n%s", want, out.Text)
		}
	}
	want := []changedTests{{"reads", "to be approved by 1 of owners", "granted at once"}}
	if diff := cmp.Diff(want, out.Changes); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	out, err = diffPolicies(t.Context(), api.Policy{Revision: 1}, "new.yaml", []byte(text), then)
	if err != nil || len(out.Changes) != 2 || !strings.HasPrefix(out.Changes[0].Now, "denied: the policy has no rules") {
		t.Errorf("against none: %+v, %v", out.Changes, err)
	}
	if out, err = diffPolicies(t.Context(), api.Policy{Revision: 1, YAML: text}, "new.yaml", []byte(text), then); err != nil || out.Text != "" || len(out.Changes) != 0 {
		t.Errorf("against itself: %+v, %v", out, err)
	}
}
