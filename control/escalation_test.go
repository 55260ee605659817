package control

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

const patientPolicy = `version: 3
rules:
  - name: accounts
    service: payments
    requesters: [group:engineers]
    permissions: ["GET,HEAD /accounts/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    escalate: {after: 15m, to: [{group: engineers, approvals: 1}]}
`

// TestEscalation: those to whom a request is escalated do not see it before, are told
// when they may decide, and decide once the leader of then has said so, whoever led when
// it was asked for.
func TestEscalation(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	c := newCluster(t, func(cfg *Config) {
		cfg.Meter = meter
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	ctx := t.Context()
	c.setPolicy(t, patientPolicy)
	alice, erin := c.at(c.follower(), "user/alice"), c.as("user/erin")
	dry, err := alice.DryRun(ctx, readAccounts())
	must(t, err)
	if e := dry.Escalation; e == nil || e.After != api.Duration(15*time.Minute) || e.At != nil || len(e.Require) != 1 || e.Require[0].Group != "engineers" {
		t.Errorf("%+v", dry)
	}
	r, err := alice.CreateRequest(ctx, readAccounts())
	must(t, err)
	if e := r.Escalation; e == nil || e.EscalatedAt != nil || e.At == nil || !e.At.Equal(r.CreatedAt.Add(15*time.Minute)) {
		t.Fatalf("%+v", r.Escalation)
	}
	_, err = erin.Request(ctx, r.ID)
	wantProblem(t, err, api.CodeNotFound)
	pending := api.Filter{State: api.RequestPending}
	if list, err := erin.Requests(ctx, pending); err != nil || len(list.Requests) != 0 {
		t.Errorf("before it is escalated to her, erin sees %+v, %v", list, err)
	}
	approve := api.DecisionInput{Decision: "approve", Hash: r.Hash}
	_, err = erin.DecideRequest(ctx, r.ID, approve)
	if p := theProblem(t, err, api.CodeDenied); !strings.Contains(p.Detail, "erin may decide on it from ") {
		t.Errorf("%+v", p)
	}
	c.crash(c.leader().ID())
	ahead.Store(int64(16 * time.Minute))
	c.until("it is escalated", func() bool {
		now, err := c.as("user/alice").Request(ctx, r.ID)
		return err == nil && now.Escalation != nil && now.Escalation.EscalatedAt != nil
	})
	erin = c.as("user/erin")
	list, err := erin.Requests(ctx, pending)
	must(t, err)
	if len(list.Requests) != 1 || list.Requests[0].ID != r.ID {
		t.Fatalf("%+v", list)
	}
	if n := c.kinds(approval.KindEscalateRequest); n != 1 {
		t.Errorf("%d entries say that it was escalated", n)
	}
	var m metricdata.ResourceMetrics
	must(t, reader.Collect(ctx, &m))
	if n := sumOf(m, "hallpass.requests.escalated"); n != 1 {
		t.Errorf("it was counted %d times", n)
	}
	done, err := erin.DecideRequest(ctx, r.ID, approve)
	must(t, err)
	if done.State != api.RequestApproved || done.Require[0].Given != 0 || done.Escalation.Require[0].Given != 1 {
		t.Errorf("%+v, %+v", done, done.Escalation)
	}
	_, err = erin.RevokeGrant(ctx, r.ID, "enough")
	must(t, err)
	c.check()
}

// TestEscalatedExtension: who alone approved that a grant goes on sees it, and may end it.
func TestEscalatedExtension(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	c := newCluster(t, func(cfg *Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	ctx := t.Context()
	c.setPolicy(t, strings.Replace(patientPolicy, "    escalate:", "    max_extended: 4h\n    escalate:", 1))
	granted := c.granted()
	alice, erin := c.as("user/alice"), c.as("user/erin")
	_, err := erin.Grant(ctx, granted.ID)
	wantProblem(t, err, api.CodeNotFound)
	x, err := alice.ExtendGrant(ctx, granted.ID, api.ExtendInput{Duration: api.Duration(20 * time.Minute), Reason: "not done"})
	must(t, err)
	ahead.Store(int64(16 * time.Minute))
	c.until("it is escalated", func() bool {
		now, err := alice.Request(ctx, x.ID)
		return err == nil && now.Escalation != nil && now.Escalation.EscalatedAt != nil
	})
	_, err = erin.DecideRequest(ctx, x.ID, api.DecisionInput{Decision: "approve", Hash: x.Hash})
	must(t, err)
	_, err = erin.Grant(ctx, granted.ID)
	must(t, err)
	_, err = erin.RevokeGrant(ctx, granted.ID, "enough")
	must(t, err)
	c.check()
}
