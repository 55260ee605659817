package control

import (
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

const delegablePolicy = `version: 3
rules:
  - name: accounts
    service: payments
    requesters: [group:engineers]
    permissions: ["GET,HEAD /accounts/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    delegate: {to: ["spiffe://acme.test/agent/*"], max_grants: 2, max_duration: 10m}
`

// TestDelegate: what was shown to approvers may be handed on by any node, the agent has
// its own certificate, and both end with a revocation of the one.
func TestDelegate(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	c.setPolicy(t, delegablePolicy)
	alice, agent := c.at(c.follower(), "user/alice"), c.as("agent/helper")
	ask := readAccounts()
	ask.Delegable = true
	dry, err := alice.DryRun(ctx, ask)
	must(t, err)
	if d := dry.Delegation; d == nil || d.Most != 2 || d.MaxDuration != api.Duration(10*time.Minute) || len(d.To) != 1 {
		t.Errorf("%+v", dry)
	}
	r, err := alice.CreateRequest(ctx, ask)
	must(t, err)
	shown, err := c.as("user/bob").Request(ctx, r.ID)
	must(t, err)
	if shown.Delegation == nil || shown.Delegation.Most != 2 {
		t.Errorf("its approver is not shown that it may be handed on: %+v", shown)
	}
	_, err = c.as("user/bob").DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: shown.Hash})
	must(t, err)
	in := api.DelegateInput{
		Subject: "spiffe://acme.test/agent/helper", Permissions: []string{"GET /accounts/42"}, Duration: api.Duration(5 * time.Minute), Reason: "looks it up",
	}
	wide := in
	wide.Permissions = []string{"POST /accounts/42"}
	_, err = alice.DelegateGrant(ctx, r.ID, wide)
	wantProblem(t, err, api.CodeDenied)
	_, err = c.as("user/bob").DelegateGrant(ctx, r.ID, in)
	wantProblem(t, err, api.CodeDenied)
	_, err = agent.DelegateGrant(ctx, r.ID, in)
	wantProblem(t, err, api.CodeNotFound)
	child, err := alice.DelegateGrant(ctx, r.ID, in)
	must(t, err)
	if child.State != api.RequestApproved || child.Parent != r.ID || child.Grant == nil || child.Grant.Parent != r.ID || child.Grant.Subject != in.Subject {
		t.Fatalf("%+v", child)
	}
	csr, _ := newCSR(t)
	_, err = agent.GrantCertificate(ctx, child.ID, csr)
	must(t, err)
	_, err = c.as("user/bob").RevokeGrant(ctx, r.ID, "enough")
	must(t, err)
	g, err := agent.Grant(ctx, child.ID)
	must(t, err)
	if g.State != api.GrantRevoked {
		t.Errorf("the child is %s", g.State)
	}
	c.until("the child is on the feed", func() bool { // each node answers with its own
		feed, err := agent.Revocations(ctx)
		must(t, err)
		return len(feed.Grants) == 1 && feed.Grants[0].ID == child.ID
	})
	c.check()
}
