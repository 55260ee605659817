package control

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

// instruments are the node's metrics. No label holds a SPIFFE ID, an object's
// id or anything else a caller chooses.
type instruments struct {
	decided     metric.Float64Histogram
	expired     metric.Int64Counter
	mints       metric.Int64Counter
	denials     metric.Int64Counter
	handshakes  metric.Int64Counter
	forks       metric.Int64Counter
	forgeries   metric.Int64Counter
	emergencies metric.Int64Counter
	glasses     metric.Int64Counter
	escalated   metric.Int64Counter
	unresolved  metric.Int64Counter
	unpublish   metric.Int64Counter
	gauges      metric.Registration

	calls metric.Float64Histogram
	kinds sync.Map // of callKind: what its record is made with
}

func newInstruments(p metric.MeterProvider, store *raftstore.Store) (*instruments, error) {
	m := p.Meter("github.com/hallpass/hallpass/control")
	b := &meterBuilder{m: m}
	i := &instruments{
		decided: b.histogram("hallpass.request.decision.duration", "s", "from an access request to its last decision"),
		expired: b.counter("hallpass.requests.expired", "access requests that nobody decided in time"),
		mints:   b.counter("hallpass.certificates.minted", "certificates signed, by kind"),
		denials: b.counter("hallpass.api.refusals", "calls refused, by code"),
		handshakes: b.counter("hallpass.api.handshake.failures",
			"handshakes refused, by reason"),
		emergencies: b.counter("hallpass.certificates.emergency", "emergency certificates that proxies were shown before they were imported"),
		glasses:     b.counter("hallpass.requests.breakglass", "requests that were granted at once by breaking the glass"),
		escalated:   b.counter("hallpass.requests.escalated", "requests that others were asked to decide on, since nobody had in time"),
		unresolved:  b.counter("hallpass.oncall.failures", "times that a resolver did not say who is on call, or said what cannot be"),
		forgeries:   b.counter("hallpass.certificates.uncommitted", "certificates that proxies were shown and that were never committed"),
		unpublish:   b.counter("hallpass.audit.witness.failures", "times that the log's head could not be published at a witness"),
		forks:       b.counter("hallpass.audit.forks", "heads of another history that the node was asked to cosign"),
	}
	i.calls = b.seconds("http.server.request.duration", "of calls, by method and status")
	term := b.gauge("hallpass.raft.term", "the node's Raft term")
	commit := b.gauge("hallpass.raft.commit", "last committed log index")
	applied := b.gauge("hallpass.raft.applied", "last applied log index")
	leader := b.gauge("hallpass.raft.leader", "1 on the node that leads")
	entries := b.gauge("hallpass.audit.entries", "entries of the audit log")
	missing := b.gauge("hallpass.audit.missing", "entries of the audit log that the node does not have yet")
	differing := b.gauge("hallpass.raft.differing", "voters that had another state than the node at the same index")
	contact := b.gauge("hallpass.raft.last_contact", "milliseconds since the leader was heard, -1: never")
	if b.err != nil {
		return nil, b.err
	}
	var err error
	i.gauges, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := store.Status()
		o.ObserveInt64(term, int64(s.Term))
		o.ObserveInt64(commit, int64(s.Commit))
		o.ObserveInt64(applied, int64(s.Applied))
		o.ObserveInt64(entries, int64(s.Records))
		o.ObserveInt64(missing, int64(s.RecordsMissing))
		o.ObserveInt64(differing, int64(len(s.Differing)))
		if s.State == "leader" {
			o.ObserveInt64(leader, 1)
		} else {
			o.ObserveInt64(leader, 0)
		}
		if s.LastContact < 0 {
			o.ObserveInt64(contact, -1)
		} else {
			o.ObserveInt64(contact, s.LastContact.Milliseconds())
		}
		return nil
	}, term, commit, applied, leader, entries, missing, differing, contact)
	return i, err
}

// meterBuilder makes instruments and remembers the first error.
type meterBuilder struct {
	m   metric.Meter
	err error
}

func (b *meterBuilder) note(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *meterBuilder) counter(name, what string) metric.Int64Counter {
	c, err := b.m.Int64Counter(name, metric.WithDescription(what))
	b.note(err)
	return c
}

func (b *meterBuilder) gauge(name, what string) metric.Int64ObservableGauge {
	g, err := b.m.Int64ObservableGauge(name, metric.WithDescription(what))
	b.note(err)
	return g
}

func (b *meterBuilder) histogram(name, unit, what string) metric.Float64Histogram {
	h, err := b.m.Float64Histogram(name, metric.WithUnit(unit), metric.WithDescription(what),
		metric.WithExplicitBucketBoundaries(0.01, 0.1, 1, 10, 60, 300, 900, 3600, 14400, 86400))
	b.note(err)
	return h
}

func (b *meterBuilder) seconds(name, what string) metric.Float64Histogram {
	h, err := b.m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what),
		metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10))
	b.note(err)
	return h
}

func (i *instruments) close() error { return i.gauges.Unregister() }

func (i *instruments) handshakeFailed(ctx context.Context, reason string) {
	i.handshakes.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
}

func (i *instruments) refused(ctx context.Context, code api.Code) {
	i.denials.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", string(code))))
}

func (i *instruments) uncommittedSeen(ctx context.Context) { i.forgeries.Add(ctx, 1) }

func (i *instruments) emergencySeen(ctx context.Context) { i.emergencies.Add(ctx, 1) }

func (i *instruments) brokenGlass(ctx context.Context) { i.glasses.Add(ctx, 1) }

func (i *instruments) requestEscalated(ctx context.Context) { i.escalated.Add(ctx, 1) }

func (i *instruments) unresolvedDuty(ctx context.Context) { i.unresolved.Add(ctx, 1) }

func (i *instruments) unwitnessed(ctx context.Context) { i.unpublish.Add(ctx, 1) }

func (i *instruments) forked(ctx context.Context) { i.forks.Add(ctx, 1) }

func (i *instruments) requestDecided(ctx context.Context, state string, after time.Duration) {
	i.decided.Record(ctx, after.Seconds(), metric.WithAttributes(attribute.String("state", state)))
}

func (i *instruments) requestExpired(ctx context.Context) {
	i.expired.Add(ctx, 1)
}

func (i *instruments) minted(ctx context.Context, kind string) {
	i.mints.Add(ctx, 1, metric.WithAttributes(attribute.String("kind", kind)))
}

// observed wraps the API with a span, metrics and a log line a call.
func (n *node) observed(next http.Handler) http.Handler {
	logged := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		deepen()
		rec := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(rec, r)
		took := time.Since(start)
		n.metrics.callTook(r.Context(), r, rec.status, took)
		level := slog.LevelDebug
		if r.Method == http.MethodPost {
			level = slog.LevelInfo
		}
		if !n.log.Enabled(r.Context(), level) {
			return
		}
		attrs := []slog.Attr{
			slog.String("method", r.Method), slog.String("path", clip(r.URL.Path, 256)), slog.Int("status", rec.status),
			slog.Duration("took", took), slog.String("request_id", rec.Header().Get("X-Request-Id")),
		}
		if who := callerFrom(r.Context()); who != nil {
			attrs = append(attrs, slog.String("caller", who.id.String()))
		}
		n.log.LogAttrs(r.Context(), level, "call", append(attrs, traceAttrs(r.Context())...)...)
	})
	return n.traced(logged)
}

// traced has calls traced, where somebody is told of it.
func (n *node) traced(next http.Handler) http.Handler {
	propagator := propagation.TraceContext{}
	if _, silent := n.tracer.(tracenoop.TracerProvider); silent {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Traceparent") != "" { // passed on, though nothing is added
				r = r.WithContext(propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header)))
			}
			next.ServeHTTP(w, r)
		})
	}
	self, _ := n.manifest.Node(n.node.ID)
	return otelhttp.NewHandler(next, "api", otelhttp.WithServerName(self.APIAddress),
		otelhttp.WithTracerProvider(n.tracer), otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()), // see callTook
		otelhttp.WithPropagators(propagator),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + api.RouteOf(r.URL.Path) }))
}

// callKind is what calls are told apart by in metrics. A label that a caller may
// choose would be a series for each that it makes up: neither path nor host is one.
type callKind struct {
	method string
	status int
	proto  int
}

// callTook measures a call as otelhttp would, at a tenth of the cost: it makes the
// labels once.
func (i *instruments) callTook(ctx context.Context, r *http.Request, status int, took time.Duration) {
	kind := callKind{method: r.Method, status: status, proto: r.ProtoMajor}
	if kind.method != http.MethodGet && kind.method != http.MethodPost {
		kind.method = "_OTHER"
	}
	known, ok := i.kinds.Load(kind)
	if !ok {
		known, _ = i.kinds.LoadOrStore(kind, []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(
			attribute.String("http.request.method", kind.method), attribute.Int("http.response.status_code", kind.status),
			attribute.String("network.protocol.version", strconv.Itoa(kind.proto)),
		))})
	}
	if opts, ok := known.([]metric.RecordOption); ok {
		i.calls.Record(ctx, took.Seconds(), opts...)
	}
}

// statusRecorder remembers a response's status.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (s *statusRecorder) WriteHeader(code int) {
	s.status = code
	s.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the connection.
func (s *statusRecorder) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// traceAttrs names the trace a log line belongs to.
func traceAttrs(ctx context.Context) []slog.Attr {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return nil
	}
	return []slog.Attr{slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String())}
}

// traceparent is ctx's span in W3C form, "" when there is none.
func traceparent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	c := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, c)
	return c["traceparent"]
}

// continued starts a span in the trace of the object that it is about, so that
// one trace runs from the request over its decisions to the certificate,
// whoever calls. It links to the caller's own trace.
func (n *node) continued(ctx context.Context, name, stored string, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	here := trace.SpanContextFromContext(ctx)
	opts := []trace.SpanStartOption{trace.WithAttributes(attrs...)}
	remote := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": stored})
	if sc := trace.SpanContextFromContext(remote); sc.IsValid() && sc.TraceID() != here.TraceID() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, sc)
		if here.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: here}))
		}
	}
	return n.spans.Start(ctx, name, opts...)
}

// ended closes a span with the outcome of what it covers.
func ended(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, clip(err.Error(), 256))
	}
	span.End()
}

func grantAttr(id string) attribute.KeyValue { return attribute.String("hallpass.grant.id", id) }
