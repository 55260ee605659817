package control

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/approval/api"
)

// TestOneTrace: one trace runs from the request over its decision to the
// certificate, though three callers with traces of their own took part; and no
// metric names one of them.
func TestOneTrace(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	c := newCluster(t, func(cfg *Config) { cfg.Tracer, cfg.Meter = tracer, meter })

	callers := tracer.Tracer("test")
	call := func(fn func(context.Context)) trace.TraceID {
		ctx, span := callers.Start(t.Context(), "caller")
		fn(ctx)
		span.End()
		return span.SpanContext().TraceID()
	}
	var r api.Request
	asked := call(func(ctx context.Context) {
		var err error
		r, err = c.as("user/alice").CreateRequest(ctx, readAccounts())
		must(t, err)
	})
	decided := call(func(ctx context.Context) {
		_, err := c.as("user/bob").DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash})
		must(t, err)
	})
	minted := call(func(ctx context.Context) {
		csr, _ := newCSR(t)
		_, err := c.as("user/alice").GrantCertificate(ctx, r.ID, csr)
		must(t, err)
	})
	_, err := c.as("user/erin").CreateRequest(t.Context(), readAccounts())
	must(t, err)
	_, err = c.as("service/payments").CreateRequest(t.Context(), readAccounts())
	wantProblem(t, err, api.CodeDenied)

	byName := map[string][]tracetest.SpanStub{}
	for _, s := range spans.GetSpans() {
		if s.SpanContext.TraceID() == asked {
			byName[s.Name] = append(byName[s.Name], s)
		}
	}
	for _, name := range []string{"request.create", "request.decide", "grant.mint", "ca.sign"} {
		if len(byName[name]) != 1 {
			t.Errorf("%d spans %q in the request's trace", len(byName[name]), name)
		}
	}
	if len(byName["raft.commit"]) != 3 {
		t.Errorf("%d commits in the request's trace", len(byName["raft.commit"]))
	}
	for name, link := range map[string]trace.TraceID{"request.decide": decided, "grant.mint": minted} {
		for _, s := range byName[name] {
			if len(s.Links) != 1 || s.Links[0].SpanContext.TraceID() != link {
				t.Errorf("%s links to %v, the caller's trace is %s", name, s.Links, link)
			}
			if !hasAttr(s.Attributes, "hallpass.grant.id", r.ID) {
				t.Errorf("%s does not name the grant: %v", name, s.Attributes)
			}
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.live()[0].url()+"/v1/bundle", nil)
	must(t, err)
	req.Host = "made-up.example:4"
	resp, err := c.raw("service/payments").Do(req)
	must(t, err)
	must(t, resp.Body.Close())
	checkMetrics(t, reader)
	if logs := c.logs.String(); !strings.Contains(logs, "trace_id="+asked.String()) || !strings.Contains(logs, "caller=spiffe://acme.test/user/alice") {
		t.Error("no log line of the call names its trace and caller")
	}
}

func hasAttr(attrs []attribute.KeyValue, key, value string) bool {
	for _, a := range attrs {
		if string(a.Key) == key && a.Value.AsString() == value {
			return true
		}
	}
	return false
}

func checkMetrics(t *testing.T, reader *sdkmetric.ManualReader) {
	t.Helper()
	var all metricdata.ResourceMetrics
	must(t, reader.Collect(t.Context(), &all))
	text, err := json.Marshal(all)
	must(t, err)
	for _, name := range []string{
		"hallpass.request.decision.duration", "hallpass.certificates.minted", "hallpass.api.refusals",
		"hallpass.raft.term", "hallpass.raft.commit", "hallpass.raft.leader",
	} {
		if !strings.Contains(string(text), `"`+name+`"`) {
			t.Errorf("no metric %s", name)
		}
	}
	for _, secret := range []string{"spiffe://", "user/alice", "service/payments", "made-up", `"Value":4711}`, `:4711"`} {
		if strings.Contains(string(text), secret) {
			t.Errorf("a metric label holds %q", secret)
		}
	}
}

// TestAdminPort: health for machines and people.
func TestAdminPort(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(cfg *Config) {
		cfg.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics here") })
	})
	leader := c.leader()
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + leader.admin.Addr().String() + path)
		must(t, err)
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(body)
	}
	if code, body := get("/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d %s", code, body)
	}
	code, body := get("/readyz")
	var h Health
	must(t, json.Unmarshal([]byte(body), &h))
	if code != http.StatusOK || !h.Ready || h.Node != leader.ID() || len(h.Findings) != 20 {
		t.Errorf("readyz: %d %s", code, body)
	}
	if code, body := get("/metrics"); code != http.StatusOK || body != "metrics here" {
		t.Errorf("metrics: %d %s", code, body)
	}
	for _, path := range []string{"/debug/pprof/", "/v1/whoami", "/"} {
		if code, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	for _, n := range c.live() {
		if n.ID() != leader.ID() {
			c.halt(n.ID())
		}
	}
	c.until("the node says that nobody leads", func() bool {
		code, body = get("/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "no leader")
	})
	if code, body := get("/healthz"); code != http.StatusOK {
		t.Errorf("healthz without a quorum: %d %s", code, body)
	}
}
