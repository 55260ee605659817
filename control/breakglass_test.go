package control

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

const glassPolicy = `version: 3
rules:
  - name: queue
    service: payments
    requesters: [group:engineers]
    permissions: ["* /queue/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    break_glass: {groups: [engineers], max_duration: 10m, review: [admins], review_within: 24h}
`

// TestBreakGlass: access at once by any node, heard in the log and the metrics,
// and a review that others than its person see and close.
func TestBreakGlass(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	c := newCluster(t, func(cfg *Config) { cfg.Meter = meter })
	ctx := t.Context()
	c.setPolicy(t, glassPolicy)
	alice, ann := c.at(c.follower(), "user/alice"), c.as("user/ann")
	in := api.RequestInput{
		Service: "payments", Permissions: []string{"POST /queue/restart"}, Reason: "INC-7: down",
		Duration: api.Duration(10 * time.Minute), BreakGlass: true,
	}
	dry, err := alice.DryRun(ctx, in)
	must(t, err)
	if b := dry.BreakGlass; !dry.Allowed || b == nil || b.Within != api.Duration(24*time.Hour) || len(b.Review) != 1 || b.Review[0].Group != "admins" {
		t.Errorf("%+v", dry)
	}
	if strings.Contains(c.logs.String(), "the glass was broken") {
		t.Error("a dry run broke it")
	}
	long := in
	long.Duration = api.Duration(11 * time.Minute)
	_, err = alice.CreateRequest(ctx, long)
	if p := theProblem(t, err, api.CodeDenied); !strings.Contains(p.Next, "hallpass breakglass --dry-run") {
		t.Errorf("next: %s", p.Next)
	}
	r, err := alice.CreateRequest(ctx, in)
	must(t, err)
	if r.State != api.RequestApproved || r.Grant == nil || !r.Grant.BreakGlass || r.BreakGlass == nil || r.BreakGlass.DueAt == nil {
		t.Fatalf("%+v", r)
	}
	csr, _ := newCSR(t)
	_, err = alice.GrantCertificate(ctx, r.ID, csr)
	must(t, err)

	logs := c.logs.String()
	if n := strings.Count(logs, "the glass was broken"); n == 0 || !strings.Contains(logs, "level=WARN msg=\"the glass was broken") || !strings.Contains(logs, r.ID) {
		t.Errorf("it was logged %d times", n)
	}
	var m metricdata.ResourceMetrics
	must(t, reader.Collect(ctx, &m))
	if n := sumOf(m, "hallpass.requests.breakglass"); n == 0 {
		t.Errorf("it was counted %d times", n)
	}

	list, err := ann.OpenReviews(ctx, api.Filter{})
	must(t, err)
	if len(list.Requests) != 1 || list.Requests[0].ID != r.ID {
		t.Fatalf("%+v", list)
	}
	if list, err := c.as("user/erin").OpenReviews(ctx, api.Filter{}); err != nil || len(list.Requests) != 0 {
		t.Errorf("one who has no part in it sees %+v, %v", list, err)
	}
	_, err = ann.CloseReview(ctx, r.ID, "all was well")
	wantProblem(t, err, api.CodeConflict) // it lives
	_, err = ann.RevokeGrant(ctx, r.ID, "the queue runs")
	must(t, err)
	_, err = alice.CloseReview(ctx, r.ID, "all was well")
	wantProblem(t, err, api.CodeDenied)
	_, err = c.as("user/erin").CloseReview(ctx, r.ID, "all was well")
	wantProblem(t, err, api.CodeNotFound)
	closed, err := ann.CloseReview(ctx, r.ID, "all was well")
	must(t, err)
	if b := closed.BreakGlass; b == nil || b.ClosedAt == nil || len(b.Findings) != 1 || b.Findings[0].Person != "ann" || len(b.WaitsFor) != 0 {
		t.Errorf("%+v", closed.BreakGlass)
	}
	list, err = ann.OpenReviews(ctx, api.Filter{})
	must(t, err)
	if len(list.Requests) != 0 {
		t.Errorf("%+v", list)
	}
	c.check()
}

// TestBreakGlassIsLoud: whoever breaks the glass is heard also when the node that committed it could
// not say so: the client tries again and is told the same, and so must be who listens.
func TestBreakGlassIsLoud(t *testing.T) {
	t.Parallel()
	c, f := newFailingCluster(t)
	c.setPolicy(t, glassPolicy)
	var hits atomic.Int32
	f.set(func(_, place string) error {
		if place == "after a call's commit" && hits.Add(1) == 1 {
			return raftstore.ErrAmbiguous // it was committed
		}
		return nil
	})
	r, err := c.as("user/alice").CreateRequest(t.Context(), api.RequestInput{
		Service: "payments", Permissions: []string{"POST /queue/restart"}, Reason: "INC-7: down",
		Duration: api.Duration(10 * time.Minute), BreakGlass: true,
	})
	must(t, err)
	if logs := c.logs.String(); hits.Load() < 2 || !strings.Contains(logs, "the glass was broken") || !strings.Contains(logs, r.ID) {
		t.Errorf("after %d commits nobody heard of %s", hits.Load(), r.ID)
	}
}

// sumOf is the sum of a counter.
func sumOf(m metricdata.ResourceMetrics, name string) (n int64) {
	for _, scope := range m.ScopeMetrics {
		for _, metric := range scope.Metrics {
			if sum, ok := metric.Data.(metricdata.Sum[int64]); ok && metric.Name == name {
				for _, p := range sum.DataPoints {
					n += p.Value
				}
			}
		}
	}
	return n
}
