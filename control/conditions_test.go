package control

import (
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

const conditionalPolicy = `version: 2
rules:
  - name: accounts
    service: payments
    requesters: [group:engineers]
    permissions: ["* /accounts/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
  - name: second-look
    service: payments
    requesters: [group:engineers]
    permissions: ["* /**"]
    match: request.writes
    require: [{group: admins, approvals: 1}]
    max_duration: 30m
  - name: labelled
    service: payments
    requesters: [group:engineers]
    permissions: ["* /labelled/**"]
    match: service.labels["owner"] == "nobody"
    auto: true
    max_duration: 1h
tests:
  - name: a write is looked at twice
    requester: spiffe://acme.test/user/alice
    groups: [engineers]
    service: payments
    permissions: ["POST /accounts/1"]
    duration: 30m
    expect: {require: [{group: admins, approvals: 1}, {group: payments-owners, approvals: 1}]}
`

// setPolicy puts a policy in force.
func (c *cluster) setPolicy(t *testing.T, yaml string) {
	t.Helper()
	ctx := t.Context()
	now, err := c.as("user/ann").Policy(ctx)
	must(t, err)
	spec := api.ChangeSpec{Kind: api.ChangePolicySet, YAML: yaml}
	ch, err := c.as("user/ann").ProposeChange(ctx, api.ChangeInput{Change: spec, BaseRevision: now.Revision})
	must(t, err)
	for _, who := range []string{"user/ben", "user/cid"} {
		_, err = c.as(who).DecideChange(ctx, ch.ID, api.ChangeDecisionInput{Decision: "approve", Hash: ch.Hash})
		must(t, err)
	}
}

// TestConditions has the leader answer conditions for requests and approvals that
// come in at any node, and puts the answers in the log.
func TestConditions(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	c.setPolicy(t, conditionalPolicy)
	alice, bob := c.as("user/alice"), c.as("user/bob")
	ask := func(permissions ...string) api.RequestInput {
		return api.RequestInput{Service: "payments", Permissions: permissions, Reason: "r", Duration: api.Duration(20 * time.Minute)}
	}
	needs := func(r api.Request, want string) {
		t.Helper()
		var groups []string
		for _, q := range r.Require {
			groups = append(groups, q.Group)
		}
		if got := strings.Join(groups, " "); got != want {
			t.Errorf("it needs %s, not %s", got, want)
		}
	}
	dry, err := alice.DryRun(ctx, ask("POST /accounts/1"))
	must(t, err)
	if len(dry.Rules) != 2 || len(dry.Require) != 2 || time.Duration(dry.MaxDuration) != 30*time.Minute {
		t.Errorf("dry run: %+v", dry)
	}
	reads, err := alice.CreateRequest(ctx, ask("GET /accounts/1"))
	must(t, err)
	needs(reads, "payments-owners")
	reads, err = bob.DecideRequest(ctx, reads.ID, api.DecisionInput{Decision: "approve", Hash: reads.Hash})
	must(t, err)
	writes, err := alice.CreateRequest(ctx, ask("GET,POST /accounts/1"))
	must(t, err)
	needs(writes, "admins payments-owners")
	narrowed, err := bob.DecideRequest(ctx, writes.ID, api.DecisionInput{Decision: "approve", Hash: writes.Hash, Permissions: []string{"GET /accounts/1"}})
	must(t, err)
	needs(narrowed, "payments-owners")
	if reads.State != api.RequestApproved || narrowed.State != api.RequestApproved {
		t.Errorf("they are %s and %s", reads.State, narrowed.State)
	}
	denied, err := alice.CreateRequest(ctx, ask("GET /accounts/1"))
	must(t, err)
	_, err = bob.DecideRequest(ctx, denied.ID, api.DecisionInput{Decision: "deny", Hash: denied.Hash})
	must(t, err)

	// A condition that fails denies, and says whose it is.
	_, err = alice.CreateRequest(ctx, ask("GET /labelled/1"))
	if p := theProblem(t, err, api.CodeDenied); !strings.Contains(p.Detail, `rule "labelled": no such key`) {
		t.Errorf("refused with %q", p.Detail)
	}
	c.check()

	told := 0
	entries, err := c.as("user/ann").AuditEntries(ctx, 0, 1000)
	must(t, err)
	for _, body := range entries.Entries {
		e, err := audit.ParseEntry(body)
		must(t, err)
		if (e.Kind == "request.create" || e.Kind == "request.decide") && strings.Contains(string(e.Details), `"answers":["second-look=`) {
			told++
		}
	}
	if told != 5 {
		t.Errorf("the log has the answers of %d commands, not 5", told)
	}
}

// TestProposedPoliciesAreTested: what does not compile or fails its own tests is
// refused before it is committed.
func TestProposedPoliciesAreTested(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for name, bad := range map[string]struct{ text, want string }{
		"a test that fails": {
			strings.Replace(conditionalPolicy, "match: request.writes", "match: '!request.writes'", 1),
			`line 24: test "a write is looked at twice": it is to be approved by 1 of payments-owners`,
		},
		"a mistake in a condition": {
			strings.Replace(conditionalPolicy, "request.writes", "request.wrote", 1), `line 13: rule "second-look": match: undeclared reference`,
		},
	} {
		spec := api.ChangeSpec{Kind: api.ChangePolicySet, YAML: bad.text}
		_, err := c.as("user/ann").ProposeChange(t.Context(), api.ChangeInput{Change: spec, BaseRevision: 1})
		if p := theProblem(t, err, api.CodeInvalid); !strings.Contains(p.Detail, bad.want) {
			t.Errorf("%s: %q", name, p.Detail)
		}
	}
}
