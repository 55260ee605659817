package control

import (
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestStandIn: a member, at any node, has a substitute count in their place, both see what there is to decide on, and when the time is over the
// leader's tick has the member back.
func TestStandIn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	bob, erin, ann := c.at(c.follower(), "user/bob"), c.as("user/erin"), c.as("user/ann")
	away := api.StandInInput{By: "erin", Duration: api.Duration(time.Hour), Reason: "on holiday"}
	_, err := bob.StandIn(ctx, "payments-owners", away)
	wantProblem(t, err, api.CodeDenied)
	now, err := ann.Groups(ctx)
	must(t, err)
	spec := api.ChangeSpec{Kind: api.ChangeGroupSet, Name: "payments-owners", Members: []string{"bob", "carol", "alice"}, Substitutes: []string{"erin"}}
	ch, err := ann.ProposeChange(ctx, api.ChangeInput{Change: spec, BaseRevision: now.Revision})
	must(t, err)
	if len(ch.Change.Substitutes) != 1 {
		t.Errorf("%+v", ch.Change)
	}
	for _, who := range []string{"user/ben", "user/cid"} {
		_, err = c.as(who).DecideChange(ctx, ch.ID, api.ChangeDecisionInput{Decision: "approve", Hash: ch.Hash})
		must(t, err)
	}
	spec.Kind = api.ChangeGroupDelete
	_, err = ann.ProposeChange(ctx, api.ChangeInput{Change: spec, BaseRevision: now.Revision})
	wantProblem(t, err, api.CodeInvalid)

	zero := away
	zero.Duration = 0
	_, err = bob.StandIn(ctx, "payments-owners", zero)
	wantProblem(t, err, api.CodeInvalid)
	_, err = c.as("service/batch").StandIn(ctx, "payments-owners", away)
	wantProblem(t, err, api.CodeDenied)
	in, err := bob.StandIn(ctx, "payments-owners", away)
	must(t, err)
	if in.For != "bob" || in.By != "erin" || in.Group != "payments-owners" || in.Reason != "on holiday" || in.Until.Sub(in.Since) != time.Hour {
		t.Errorf("%+v", in)
	}
	shown := func() (g api.Group, p api.Person) {
		t.Helper()
		groups, err := ann.Groups(ctx)
		must(t, err)
		for _, one := range groups.Groups {
			if one.Name == "payments-owners" {
				g = one
			}
		}
		persons, err := ann.Persons(ctx)
		must(t, err)
		for _, one := range persons.Persons {
			if one.Name == "bob" {
				p = one
			}
		}
		return g, p
	}
	if g, p := shown(); len(g.StandIns) != 1 || g.StandIns[0] != in || len(g.Members) != 3 || len(g.Substitutes) != 1 || len(p.Away) != 1 || p.Away[0] != in {
		t.Errorf("%+v, %+v", g, p)
	}
	r, err := c.as("user/alice").CreateRequest(ctx, readAccounts())
	must(t, err)
	approve := api.DecisionInput{Decision: "approve", Hash: r.Hash}
	if _, err = bob.Request(ctx, r.ID); err != nil {
		t.Errorf("who is away does not see what is decided in their place: %v", err)
	}
	if list, err := bob.Requests(ctx, api.Filter{State: api.RequestPending}); err != nil || len(list.Requests) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	_, err = bob.DecideRequest(ctx, r.ID, approve)
	wantProblem(t, err, api.CodeDenied)
	r, err = erin.DecideRequest(ctx, r.ID, approve)
	must(t, err)
	if r.State != api.RequestApproved {
		t.Errorf("%+v", r)
	}
	_, err = c.as("service/batch").EndStandIn(ctx, "payments-owners", "")
	wantProblem(t, err, api.CodeDenied)
	_, err = c.as("user/carol").EndStandIn(ctx, "payments-owners", "bob")
	wantProblem(t, err, api.CodeDenied)
	_, err = bob.EndStandIn(ctx, "payments-owners", "")
	must(t, err)
	_, err = bob.StandIn(ctx, "payments-owners", away)
	must(t, err)
	_, err = ann.EndStandIn(ctx, "payments-owners", "bob")
	must(t, err)

	away.Duration = api.Duration(time.Second)
	_, err = bob.StandIn(ctx, "payments-owners", away)
	must(t, err)
	deadline := time.Now().Add(30 * time.Second)
	for {
		if g, p := shown(); len(g.StandIns) == 0 && len(p.Away) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("bob is still away")
		}
		time.Sleep(50 * time.Millisecond)
	}
}
