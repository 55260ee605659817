package control

import (
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestStepUp: what the policy asks of a console is told as long as it is to be decided.
func TestStepUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	strict := strings.Replace(extensiblePolicy, "max_extended: 2h", "step_up: 5m", 1)
	c.setPolicy(t, strict)
	want := api.Duration(5 * time.Minute)
	in := api.RequestInput{Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(time.Hour), Reason: "ticket"}
	alice := c.as("user/alice")
	dry, err := alice.DryRun(ctx, in)
	must(t, err)
	r, err := alice.CreateRequest(ctx, in)
	must(t, err)
	if dry.StepUp != want || r.StepUp != want {
		t.Errorf("told %s and %s", dry.StepUp, r.StepUp)
	}
	// By another name the rule is as strict: for what was asked for before, any that may apply counts.
	c.setPolicy(t, strings.Replace(strict, "name: accounts", "name: renamed", 1))
	r, err = alice.Request(ctx, r.ID)
	must(t, err)
	if r.StepUp != want {
		t.Errorf("once the rule has another name: %s", r.StepUp)
	}
	r, err = c.as("user/bob").DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash})
	must(t, err)
	if r.State != api.RequestApproved || r.StepUp != 0 {
		t.Errorf("%s, %s", r.State, r.StepUp)
	}
	c.check()
}
