package control

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/notify"
)

// setGroup has a group changed, as two admins do.
func (c *cluster) setGroup(t *testing.T, spec api.ChangeSpec) {
	t.Helper()
	ctx := t.Context()
	spec.Kind = api.ChangeGroupSet
	now, err := c.as("user/ann").Groups(ctx)
	must(t, err)
	ch, err := c.as("user/ann").ProposeChange(ctx, api.ChangeInput{Change: spec, BaseRevision: now.Revision})
	must(t, err)
	for _, who := range []string{"user/ben", "user/cid"} {
		_, err = c.as(who).DecideChange(ctx, ch.ID, api.ChangeDecisionInput{Decision: "approve", Hash: ch.Hash})
		must(t, err)
	}
}

// inGroup is who is in a group now, and how its members take turns.
func (c *cluster) inGroup(t *testing.T, name string) (now []string, g api.Group) {
	t.Helper()
	all, err := c.as("user/ann").Groups(t.Context())
	must(t, err)
	for _, g := range all.Groups {
		if g.Name == name {
			return g.Now, g
		}
	}
	t.Fatalf("there is no group %s", name)
	return nil, api.Group{}
}

// TestRota: whose turn it is decides, and after the hand-over, by the leader of then, the next one.
func TestRota(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	c := newCluster(t, func(cfg *Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	ctx := t.Context()
	from := time.Now().UTC().Truncate(time.Second).Add(-50 * time.Minute)
	c.setGroup(t, api.ChangeSpec{Name: "payments-owners", Members: []string{"bob", "erin"}, OnCall: &api.OnCall{
		Order: []string{"bob", "erin"}, From: &from, Every: api.Duration(time.Hour), AtOnce: 1,
	}})
	now, g := c.inGroup(t, "payments-owners")
	if !slices.Equal(now, []string{"bob"}) || g.Until == nil || !g.Until.Equal(from.Add(time.Hour)) || !slices.Equal(g.OnCall.Order, g.Members) || g.OnCall.Every != api.Duration(time.Hour) {
		t.Fatalf("%+v, %+v", g, g.OnCall)
	}
	me, err := c.as("user/erin").WhoAmI(ctx)
	must(t, err)
	if slices.Contains(me.Groups, "payments-owners") {
		t.Errorf("erin is in %q before her turn", me.Groups)
	}
	r, err := c.as("user/alice").CreateRequest(ctx, readAccounts())
	must(t, err)
	approve := api.DecisionInput{Decision: "approve", Hash: r.Hash}
	_, err = c.as("user/erin").DecideRequest(ctx, r.ID, approve)
	wantProblem(t, err, api.CodeNotFound) // it is not hers to see
	c.crash(c.leader().ID())
	ahead.Store(int64(16 * time.Minute))
	c.until("the other one's turn begins", func() bool {
		now, _ := c.inGroup(t, "payments-owners")
		return slices.Equal(now, []string{"erin"})
	})
	if n := c.kinds(approval.KindSetDuty); n != 1 {
		t.Errorf("%d entries say that it was handed over", n)
	}
	again, err := c.as("user/alice").CreateRequest(ctx, readAccounts())
	must(t, err)
	_, err = c.as("user/bob").DecideRequest(ctx, again.ID, api.DecisionInput{Decision: "approve", Hash: again.Hash})
	wantProblem(t, err, api.CodeNotFound)
	done, err := c.as("user/erin").DecideRequest(ctx, again.ID, api.DecisionInput{Decision: "approve", Hash: again.Hash})
	must(t, err)
	if done.State != api.RequestApproved {
		t.Errorf("%+v", done)
	}
	c.check()
}

// TestResolver: who is on call is what the resolver says of the members, asked by who leads, and an answer that cannot be changes nothing.
func TestResolver(t *testing.T) {
	t.Parallel()
	var answer atomic.Value
	answer.Store(`{"on_call":["bob"],"until":"2099-01-01T00:00:00Z"}`)
	questions := make(chan string, 100)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		select {
		case questions <- r.Header.Get("Webhook-Signature") + " " + string(body):
		default:
		}
		_, _ = io.WriteString(w, answer.Load().(string)) //nolint:forcetypeassert // it is
	}))
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	key, err := notify.ParseSigningKey("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	must(t, err)
	resolver, err := notify.NewResolver(notify.ResolverConfig{
		Group: "payments-owners", URL: server.URL, Roots: roots, Keys: []notify.SigningKey{key}, Every: notify.MinEvery,
	}, time.Now)
	must(t, err)
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	c := newCluster(t, func(cfg *Config) { cfg.Resolvers, cfg.Meter = []*notify.Resolver{resolver}, meter })
	c.setGroup(t, api.ChangeSpec{Name: "payments-owners", Members: []string{"bob", "erin"}, OnCall: &api.OnCall{Resolver: true, Otherwise: "nobody"}})
	if now, g := c.inGroup(t, "payments-owners"); len(now) != 0 || g.Until != nil {
		t.Errorf("before it has said anything: %+v", g)
	}
	c.until("it is asked", func() bool {
		now, _ := c.inGroup(t, "payments-owners")
		return slices.Equal(now, []string{"bob"})
	})
	text := <-questions
	signature, body, _ := strings.Cut(text, " ")
	var q struct {
		Group   string
		Members []string
		At      time.Time
	}
	if err := json.Unmarshal([]byte(body), &q); err != nil || !strings.HasPrefix(signature, "v1,") || q.Group != "payments-owners" || !slices.Equal(q.Members, []string{"bob", "erin"}) {
		t.Errorf("%s, %v", text, err)
	}
	if _, g := c.inGroup(t, "payments-owners"); g.Until == nil || time.Until(*g.Until) > approval.MaxDuty {
		t.Errorf("it holds until %v", g.Until)
	}
	// The next to lead asks at once. What it says cannot be, and what was said before holds.
	answer.Store(`{"on_call":["bob","alice"],"until":"2099-01-01T00:00:00Z"}`)
	c.crash(c.leader().ID())
	c.until("an answer is refused", func() bool {
		var m metricdata.ResourceMetrics
		must(t, reader.Collect(t.Context(), &m))
		return sumOf(m, "hallpass.oncall.failures") > 0
	})
	if now, _ := c.inGroup(t, "payments-owners"); !slices.Equal(now, []string{"bob"}) {
		t.Errorf("on call: %q", now)
	}
	answer.Store(`{"on_call":["erin"],"until":"2099-01-01T00:00:00Z"}`)
	c.until("others are on call", func() bool {
		now, _ := c.inGroup(t, "payments-owners")
		return slices.Equal(now, []string{"erin"})
	})
	c.check()
}

// TestDutyAnswers: nothing of an answer is taken unless all of it can be.
func TestDutyAnswers(t *testing.T) {
	now := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	g := approval.Group{Name: "leads", Members: []string{"bob", "erin"}, OnCall: &approval.OnCall{Resolver: true, Otherwise: approval.OtherwiseNobody}}
	for text, want := range map[string]string{
		`{"on_call":["bob"],"until":"2026-03-01T10:00:00Z"}`:                    "bob until 2026-03-01T10:00:00.000Z",
		`{"on_call":[],"until":"2026-03-01T10:00:00+01:00"}`:                    "",
		`{"on_call":[],"until":"2026-03-01T12:00:00+01:00"}`:                    " until 2026-03-01T11:00:00.000Z",
		`{"on_call":["bob","erin"],"until":"2027-01-01T00:00:00Z"}`:             "bob,erin until 2026-03-02T08:00:00.000Z",
		`{"on_call":["bob","alice"],"until":"2026-03-01T10:00:00Z"}`:            "no member",
		`{"on_call":["Bob"],"until":"2026-03-01T10:00:00Z"}`:                    "no member",
		`{"until":"2026-03-01T10:00:00Z"}`:                                      `no "on_call"`,
		`{"on_call":null,"until":"2026-03-01T10:00:00Z"}`:                       `no "on_call"`,
		`{"on_call":["bob"]}`:                                                   `no "until"`,
		`{"on_call":["bob"],"until":"2026-03-01T09:00:00Z"}`:                    `no "until"`,
		`{"on_call":["bob"],"until":"tomorrow"}`:                                "not the JSON",
		`{"on_call":"bob","until":"2026-03-01T10:00:00Z"}`:                      "not the JSON",
		`{"on_call":["bob"],"on_call":["erin"],"until":"2026-03-01T10:00:00Z"}`: "not the JSON",
		`{"on_call":["bob"],"until":"2026-03-01T10:00:00Z"} {}`:                 "not the JSON",
		``:                            "not the JSON",
		`<html>who is on call</html>`: "not the JSON",
	} {
		body, err := dutyOf(g, []byte(text), now)
		switch got := strings.Join(body.Persons, ",") + " until " + body.Until.String(); {
		case err != nil && (want == "" && strings.Contains(err.Error(), `no "until"`) || want != "" && strings.Contains(err.Error(), want)):
		case err != nil || got != want:
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
}

// TestDutyIsSaidOnce: the same answer every minute is one entry of the log until half of its time is over.
func TestDutyIsSaidOnce(t *testing.T) {
	now := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	at := func(after time.Duration) approval.Millis { return approval.MillisOf(now.Add(after)) }
	d := approval.Duty{Group: "leads", Persons: []string{"bob"}, Since: at(0), Until: at(time.Hour)}
	for name, c := range map[string]struct {
		was     approval.Duty
		persons []string
		until   time.Duration
		after   time.Duration
		want    bool
	}{
		"nothing was said":                   {approval.Duty{}, []string{}, time.Hour, 0, true},
		"the same":                           {d, []string{"bob"}, time.Hour, time.Minute, false},
		"another":                            {d, []string{"erin"}, time.Hour, time.Minute, true},
		"nobody":                             {d, []string{}, time.Hour, time.Minute, true},
		"for longer, and it is young":        {d, []string{"bob"}, 2 * time.Hour, time.Minute, false},
		"for longer, and half of it is over": {d, []string{"bob"}, 2 * time.Hour, 31 * time.Minute, true},
		"as long, and half of it is over":    {d, []string{"bob"}, time.Hour, 31 * time.Minute, false},
		"it ends sooner":                     {d, []string{"bob"}, 30 * time.Minute, time.Minute, true},
	} {
		if got := worthSaying(c.was, approval.SetDuty{Group: "leads", Persons: c.persons, Until: at(c.until)}, now.Add(c.after), time.Minute); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
