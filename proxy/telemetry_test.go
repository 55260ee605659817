package proxy

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

const (
	parentTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceparent = "00-" + parentTrace + "-00f067aa0ba902b7-01"
)

// TestTraces: one trace runs client → proxy → upstream, with the grant's id in it.
func TestTraces(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		spans := tracetest.NewSpanRecorder()
		tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
		e := start(t, options{upstream: upstreamServer(t, echoHandler), config: func(c *Config) { c.TracerProvider = tp }})
		id := newGrantID(t)
		a := e.must(e.client(e.pki.grantWithID(id, time.Hour, "GET /**"), h2), "GET", "/a?secret=1", "Traceparent", traceparent, "Tracestate", "v=1", "Baggage", "k=v")
		up := a.seen(t).Header
		got := up.Get("Traceparent")
		if !strings.HasPrefix(got, "00-"+parentTrace+"-") || got == traceparent || up.Get("Tracestate") != "v=1" || up.Get("Baggage") != "k=v" {
			t.Errorf("at the upstream: %v", up)
		}
		e.eventually("two spans", func() bool { return len(spans.Ended()) == 2 })
		var server, client sdktrace.ReadOnlySpan
		for _, s := range spans.Ended() {
			switch s.SpanKind() {
			case trace.SpanKindServer:
				server = s
			case trace.SpanKindClient:
				client = s
			default:
			}
			if s.SpanContext().TraceID().String() != parentTrace {
				t.Errorf("span %s is of trace %s", s.Name(), s.SpanContext().TraceID())
			}
			found := false
			for _, kv := range s.Attributes() {
				found = found || kv == attribute.String("hallpass.grant.id", id)
				if strings.Contains(kv.Value.String(), "secret") {
					t.Errorf("the query is in a span: %v", kv)
				}
			}
			if !found {
				t.Errorf("no grant id in %v", s.Attributes())
			}
		}
		if server == nil || client == nil || client.Parent().SpanID() != server.SpanContext().SpanID() || server.Parent().SpanID().String() != "00f067aa0ba902b7" {
			t.Fatalf("spans %v", spans.Ended())
		}
		if !strings.Contains(got, client.SpanContext().SpanID().String()) {
			t.Errorf("the upstream was told %s, not the client span's", got)
		}
		if r := e.record("it", func(r logLine) bool { return r.Kind == kindRequest }); r.TraceID != parentTrace {
			t.Errorf("record %+v", r)
		}
	})
}

// TestTraceContextPassesThrough where nothing is traced.
func TestTraceContextPassesThrough(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	c := e.client(e.pki.grant(time.Hour, "GET /**"), true)
	a := e.must(c, "GET", "/a", "Traceparent", traceparent, "Tracestate", "v=1")
	if up := a.seen(t).Header; up.Get("Traceparent") != traceparent || up.Get("Tracestate") != "v=1" {
		t.Errorf("%v", up)
	}
	if r := e.record("it", func(r logLine) bool { return r.Path == "/a" }); r.TraceID != parentTrace {
		t.Errorf("record %+v", r)
	}
	if p := e.must(e.client(e.pki.identity(alice), true), "GET", "/b", "Traceparent", traceparent).problem(t); p.TraceID != parentTrace {
		t.Errorf("problem %+v", p)
	}
	for _, bad := range []string{"", "x", strings.ToUpper(traceparent), "00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01", strings.Replace(traceparent, "-", "_", 1), traceparent + "x"} {
		if got := traceOf(http.Header{"Traceparent": {bad}}); got != "" {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

// TestMetrics counts one of each.
func TestMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	mp := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	e := start(t, options{upstream: upstreamServer(t, drip), config: func(c *Config) { c.MeterProvider = mp }})
	broken := download(true)(e, e.pki.grant(2*time.Second, "GET /**"))
	e.must(e.client(e.pki.identity(alice), false), "GET", "/a")
	_ = readError(e.dial(e.pki.mint(leafSpec{uris: []string{"spiffe://evil.test/x"}, issuer: e.pki.idIssuer, eku: nil})))
	_ = broken()
	want := map[string]string{
		"hallpass.proxy.requests":              "decision=deny,protocol=http/1.1,reason=no_grant",
		"hallpass.proxy.handshakes":            "",
		"hallpass.proxy.handshakes.refused":    "reason=wrong_trust_domain",
		"hallpass.proxy.cuts":                  "reason=expired",
		"hallpass.proxy.connections":           "",
		"hallpass.proxy.certificate.remaining": "",
		"hallpass.proxy.revocation.entries":    "",
		"http.server.request.duration":         "decision=allow,protocol=h2,reason=expired",
	}
	e.eventually("all metrics", func() bool {
		var got metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &got); err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, sm := range got.ScopeMetrics {
			for _, m := range sm.Metrics {
				if labels, ok := want[m.Name]; ok && hasLabels(m.Data, labels) {
					found++
				}
			}
		}
		return found == len(want)
	})
}

func hasLabels(data metricdata.Aggregation, labels string) bool {
	var sets []attribute.Set
	switch d := data.(type) {
	case metricdata.Sum[int64]:
		for _, p := range d.DataPoints {
			sets = append(sets, p.Attributes)
		}
	case metricdata.Gauge[int64]:
		for _, p := range d.DataPoints {
			sets = append(sets, p.Attributes)
		}
	case metricdata.Gauge[float64]:
		for _, p := range d.DataPoints {
			sets = append(sets, p.Attributes)
		}
	case metricdata.Histogram[float64]:
		for _, p := range d.DataPoints {
			sets = append(sets, p.Attributes)
		}
	}
	for _, s := range sets {
		if s.Encoded(attribute.DefaultEncoder()) == labels {
			return true
		}
	}
	return false
}

// TestRun listens where the settings say, with health and metrics beside it.
func TestRun(t *testing.T) {
	p := newPKI(t)
	dir := t.TempDir()
	s := settings(t, p, dir)
	s.Admin = "unix:" + dir + "/admin.sock"
	px, err := NewFleet(FleetConfig{Config: Config{
		Settings: s, Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }),
	}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := contextWithCancel(t)
	go func() { done <- px.Run(ctx) }()
	c := &http.Client{Transport: unixTransport(dir + "/admin.sock")}
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": `"ready":true`, "/metrics": "metrics"} {
		eventually(t, path, func() bool {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://admin"+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			res, err := c.Do(req)
			if err != nil {
				return false
			}
			defer func() { _ = res.Body.Close() }()
			body, err := io.ReadAll(res.Body)
			return err == nil && res.StatusCode == 200 && strings.Contains(string(body), want)
		})
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := px.Run(t.Context()); err == nil {
		t.Error("served twice")
	}
}
