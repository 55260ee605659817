package proxy

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

const scopeName = "github.com/hallpass/hallpass/proxy"

// telemetry counts and traces. SPIFFE IDs go into spans, never into metric labels.
type telemetry struct {
	tracer trace.Tracer // nil: no spans; a traceparent then passes through as it came

	requests   metric.Int64Counter
	duration   metric.Float64Histogram
	handshakes metric.Int64Counter
	refused    metric.Int64Counter
	cuts       metric.Int64Counter
	h2errors   metric.Int64Counter
	unreported metric.Int64Counter
	emergency  metric.Int64Counter
	wouldDeny  metric.Int64Counter
	toUpstream []attribute.KeyValue // of every client span
	labels     sync.Map             // requestLabel → metric.MeasurementOption
	measuring  bool
	own        []attribute.KeyValue // of every counter: which service it is, where there are several
}

type requestLabel struct{ decision, reason, protocol string }

func newTelemetry(cfg *config) (*telemetry, error) {
	t := &telemetry{measuring: cfg.meters != nil, own: cfg.labels(), toUpstream: []attribute.KeyValue{
		attribute.String("server.address", cfg.upstream.address),
		attribute.String("hallpass.service", cfg.service),
	}}
	// A provider that makes no spans is not asked for them at every request.
	if _, none := cfg.tracers.(tracenoop.TracerProvider); cfg.tracers != nil && !none {
		t.tracer = cfg.tracers.Tracer(scopeName)
	}
	meters := cfg.meters
	if meters == nil {
		meters = metricnoop.NewMeterProvider()
	}
	m := meters.Meter(scopeName)
	var err error
	counter := func(name, desc string) metric.Int64Counter {
		c, cerr := m.Int64Counter(name, metric.WithDescription(desc))
		if cerr != nil {
			err = cerr
		}
		return c
	}
	t.requests = counter("hallpass.proxy.requests", "Requests and TCP connections by decision and reason.")
	t.handshakes = counter("hallpass.proxy.handshakes", "Completed handshakes.")
	t.refused = counter("hallpass.proxy.handshakes.refused", "Refused handshakes by reason.")
	t.cuts = counter("hallpass.proxy.cuts", "Live connections that were ended, by reason.")
	t.h2errors = counter("hallpass.proxy.http2.errors", "HTTP/2 frames that no request came of, by type.")
	t.emergency = counter("hallpass.proxy.emergency.requests", "Requests and TCP connections with an emergency certificate, by decision.")
	t.wouldDeny = counter("hallpass.proxy.would_deny", "Requests and TCP connections that went through because they are only observed, by the reason that would have refused them.")
	t.unreported = counter("hallpass.proxy.certificates.unreported", "Certificates that a control node was not told of.")
	if err != nil {
		return nil, err
	}
	t.duration, err = m.Float64Histogram("http.server.request.duration", metric.WithUnit("s"),
		metric.WithDescription("Duration of requests, to the last byte."),
		metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))
	return t, err
}

// observe registers what is looked up when metrics are read.
func (p *Proxy) observe(cfg *config) error {
	if cfg.meters == nil {
		return nil
	}
	m := cfg.meters.Meter(scopeName)
	conns, err := m.Int64ObservableGauge("hallpass.proxy.connections", metric.WithDescription("Live connections."))
	if err != nil {
		return err
	}
	age, err := m.Float64ObservableGauge("hallpass.proxy.revocation.age", metric.WithUnit("s"),
		metric.WithDescription("How long ago the revocation list was last known to be whole."))
	if err != nil {
		return err
	}
	entries, err := m.Int64ObservableGauge("hallpass.proxy.revocation.entries", metric.WithDescription("Revoked grants and denied issuers known."))
	if err != nil {
		return err
	}
	left, err := m.Float64ObservableGauge("hallpass.proxy.certificate.remaining", metric.WithUnit("s"),
		metric.WithDescription("How long the service's own certificate is still valid."))
	if err != nil {
		return err
	}
	of := metric.WithAttributes(cfg.labels()...)
	p.gauges, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(conns, int64(p.live.len()), of)
		if a, ok := p.rev.age(); ok {
			o.ObserveFloat64(age, a.Seconds(), of)
		}
		d := p.rev.cur.Load()
		o.ObserveInt64(entries, int64(len(d.grants)+len(d.issuers)), of)
		o.ObserveFloat64(left, p.keeper.cur.Load().cert.Leaf.NotAfter.Sub(wall(cfg.now)).Seconds(), of)
		return nil
	}, conns, age, entries, left)
	return err
}

// unobserve ends what observe began, for a service that is taken out.
func (p *Proxy) unobserve() {
	if p.gauges != nil {
		_ = p.gauges.Unregister() // its error is always nil
	}
}

// labels tell the services of one process apart. One that is alone has its process for that.
func (c *config) labels() []attribute.KeyValue {
	if !c.among {
		return nil
	}
	return []attribute.KeyValue{attribute.String("hallpass.service", c.service)}
}

// request counts one request or TCP connection.
func (t *telemetry) request(ctx context.Context, r *record) {
	if !t.measuring {
		return
	}
	if r.emergency {
		t.emergency.Add(ctx, 1, metric.WithAttributes(attribute.String("decision", r.decision)), metric.WithAttributes(t.own...))
	}
	key := requestLabel{r.decision, r.reason, r.protocol}
	opt, ok := t.labels.Load(key)
	if !ok {
		opt, _ = t.labels.LoadOrStore(key, metric.WithAttributeSet(attribute.NewSet(append([]attribute.KeyValue{
			attribute.String("decision", r.decision),
			attribute.String("reason", r.reason),
			attribute.String("protocol", r.protocol),
		}, t.own...)...)))
	}
	if m, ok := opt.(metric.MeasurementOption); ok {
		t.requests.Add(ctx, 1, m)
		t.duration.Record(ctx, r.duration.Seconds(), m)
	}
}

func (t *telemetry) reason(ctx context.Context, c metric.Int64Counter, reason string) {
	if t.measuring {
		c.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)), metric.WithAttributes(t.own...))
	}
}

// spans are the two of a proxied request or tcp connection: what the client
// asked, what the upstream was asked.
type spans struct {
	server, client trace.Span // nil while nothing is traced
	traceID        string
}

// spanned is what a span says of a request. Of the header it takes trace context alone.
type spanned struct {
	method, target string
	major          int
	header         http.Header
}

// begin starts the server span, a child of the client's.
func (t *telemetry) begin(ctx context.Context, a spanned, c *conn) (context.Context, spans) {
	if t.tracer == nil {
		return ctx, spans{traceID: traceOf(a.header)}
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(a.header))
	method, name := spanMethod(a.method)
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(method...), trace.WithAttributes(
		attribute.String("url.scheme", "https"),
		attribute.String("url.path", pathOf(a.target)),
		attribute.String("network.protocol.version", httpVersion(a.major)),
	), trace.WithAttributes(c.spanAttributes()...))
	return ctx, spans{server: span, traceID: traceIDOf(span)}
}

// upstream starts the span of what is asked of the upstream.
func (t *telemetry) upstream(ctx context.Context, s *spans, name string, attrs []attribute.KeyValue) context.Context {
	if t.tracer == nil {
		return ctx
	}
	ctx, s.client = t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(t.toUpstream...), trace.WithAttributes(attrs...))
	return ctx
}

// traceUpstream starts the span of a request to the upstream, which learns of it.
func (x *exchange) traceUpstream() context.Context {
	if x.p.tele.tracer == nil {
		return x.ctx
	}
	return x.p.tele.ask(x.ctx, &x.spans, x.r.Method, x.r.Header, x.c)
}

// ask starts the span of a request to the upstream and writes it into header.
func (t *telemetry) ask(ctx context.Context, s *spans, method string, header http.Header, c *conn) context.Context {
	attrs, name := spanMethod(method)
	ctx = t.upstream(ctx, s, name, append(attrs, attribute.String("hallpass.grant.id", c.adm.grantID)))
	inject(ctx, header)
	return ctx
}

// beginTCP starts the span of a tcp service's connection.
func (t *telemetry) beginTCP(ctx context.Context, c *conn) (context.Context, spans) {
	if t.tracer == nil {
		return ctx, spans{}
	}
	ctx, span := t.tracer.Start(ctx, "tcp", trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("network.transport", "tcp")), trace.WithAttributes(c.spanAttributes()...))
	return ctx, spans{server: span, traceID: traceIDOf(span)}
}

// spanAttributes says whose connection it is.
func (c *conn) spanAttributes() []attribute.KeyValue {
	attrs := []attribute.KeyValue{
		attribute.String("hallpass.subject", c.adm.subject),
		attribute.String("hallpass.grant.id", c.adm.grantID),
	}
	if c.adm.emergency {
		attrs = append(attrs, attribute.Bool("hallpass.emergency", true))
	}
	host, port, err := net.SplitHostPort(c.peer)
	if err != nil {
		return attrs
	}
	attrs = append(attrs, attribute.String("client.address", host))
	if n, err := strconv.Atoi(port); err == nil {
		attrs = append(attrs, attribute.Int("client.port", n))
	}
	return attrs
}

func traceIDOf(span trace.Span) string {
	if sc := span.SpanContext(); sc.HasTraceID() {
		return sc.TraceID().String()
	}
	return ""
}

// end ends both spans.
func (s *spans) end(r *record) {
	for _, span := range []trace.Span{s.client, s.server} {
		if span == nil {
			continue
		}
		span.SetAttributes(
			attribute.String("hallpass.decision", r.decision),
			attribute.String("hallpass.permission", r.permission),
		)
		bad := r.reason != ""
		if r.kind == kindRequest {
			span.SetAttributes(attribute.Int("http.response.status_code", r.status))
			bad = r.status >= http.StatusInternalServerError || r.status == 0
		}
		if bad {
			span.SetStatus(codes.Error, r.reason)
		}
		span.End()
	}
}

// traceOf is the trace id of a well-formed traceparent (W3C Trace Context §3.2), or "".
func traceOf(h http.Header) string {
	v := h["Traceparent"]
	if len(v) != 1 || len(v[0]) < 55 || v[0][2] != '-' || v[0][35] != '-' || (len(v[0]) > 55 && v[0][55] != '-') {
		return ""
	}
	id := v[0][3:35]
	zero := true
	for i := range len(id) {
		if (id[i] < '0' || id[i] > '9') && (id[i] < 'a' || id[i] > 'f') {
			return ""
		}
		zero = zero && id[i] == '0'
	}
	if zero {
		return ""
	}
	return id
}

// since is how long ago t was, by the monotonic clock where there is one.
func since(now func() time.Time, t time.Time) time.Duration { return now().Sub(t) }
