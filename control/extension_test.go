package control

import (
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

const extensiblePolicy = `version: 3
rules:
  - name: accounts
    service: payments
    requesters: [group:engineers]
    permissions: ["GET,HEAD /accounts/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    max_extended: 2h
`

// TestExtend: by any node, as a request that its approvers see, with what the grant is.
func TestExtend(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	c.setPolicy(t, extensiblePolicy)
	alice := c.at(c.follower(), "user/alice")
	granted := c.granted()
	in := api.ExtendInput{Duration: api.Duration(20 * time.Minute), Reason: "not done"}
	dry, err := alice.DryRunExtend(ctx, granted.ID, in)
	must(t, err)
	if !dry.Allowed || dry.Auto || len(dry.Require) != 1 {
		t.Errorf("%+v", dry)
	}
	_, err = alice.ExtendGrant(ctx, granted.ID, api.ExtendInput{Duration: api.Duration(2 * time.Hour), Reason: "not done"})
	wantProblem(t, err, api.CodeDenied)
	_, err = alice.ExtendGrant(ctx, granted.ID, api.ExtendInput{Reason: "not done"})
	wantProblem(t, err, api.CodeInvalid)
	_, err = c.as("user/erin").ExtendGrant(ctx, granted.ID, in)
	wantProblem(t, err, api.CodeNotFound)
	_, err = c.as("user/bob").ExtendGrant(ctx, granted.ID, in)
	wantProblem(t, err, api.CodeDenied)
	r, err := alice.ExtendGrant(ctx, granted.ID, in)
	must(t, err)
	to := granted.Grant.ExpiresAt.Add(20 * time.Minute)
	if r.State != api.RequestPending || r.Grant != nil || r.Extends == nil || r.Extends.Grant != granted.ID || !r.Extends.To.Equal(to) {
		t.Fatalf("%+v", r)
	}
	r, err = c.as("user/bob").DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash})
	must(t, err)
	if r.State != api.RequestApproved || r.Grant == nil || r.Grant.ID != granted.ID || !r.Grant.ExpiresAt.Equal(to) || r.Require[0].Given != 1 {
		t.Errorf("%+v", r)
	}
	g, err := alice.Grant(ctx, granted.ID)
	must(t, err)
	if !g.ExpiresAt.Equal(to) || len(g.Extensions) != 1 || g.Extensions[0].Request != r.ID || g.Extensions[0].Duration != in.Duration {
		t.Errorf("%+v", g)
	}
	grants, err := alice.Grants(ctx, api.Filter{})
	must(t, err)
	if len(grants.Grants) != 1 {
		t.Errorf("an extension is a grant, too: %+v", grants.Grants)
	}
	c.check()
}
