package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// tracing is a process that traces.
type tracing struct {
	*tracetest.SpanRecorder
	provider *sdktrace.TracerProvider
}

func newTracing() *tracing {
	r := tracetest.NewSpanRecorder()
	return &tracing{r, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r))}
}

// one waits for the one span of a kind that has ended.
func (tr *tracing) one(t testing.TB, kind trace.SpanKind) sdktrace.ReadOnlySpan {
	t.Helper()
	var found []sdktrace.ReadOnlySpan
	eventually(t, kind.String()+" span", func() bool {
		found = nil
		for _, s := range tr.Ended() {
			if s.SpanKind() == kind {
				found = append(found, s)
			}
		}
		return len(found) > 0
	})
	if len(found) > 1 {
		t.Fatalf("%d %s spans", len(found), kind)
	}
	return found[0]
}

// attr is an attribute as text, "" if there is none.
func attr(s sdktrace.ReadOnlySpan, key string) string {
	for _, kv := range s.Attributes() {
		if string(kv.Key) == key {
			return kv.Value.String()
		}
	}
	return ""
}

func wantAttrs(t testing.TB, s sdktrace.ReadOnlySpan, want ...string) {
	t.Helper()
	for i := 0; i+1 < len(want); i += 2 {
		if got := attr(s, want[i]); got != want[i+1] {
			t.Errorf("span %s: %s is %q, want %q", s.Name(), want[i], got, want[i+1])
		}
	}
}

// wantChild demands that a span is another's, in one trace.
func wantChild(t testing.TB, child sdktrace.ReadOnlySpan, parent trace.SpanContext) {
	t.Helper()
	if child.SpanContext().TraceID() != parent.TraceID() || child.Parent().SpanID() != parent.SpanID() {
		t.Errorf("span %s is of trace %s under %s, want %s under %s", child.Name(),
			child.SpanContext().TraceID(), child.Parent().SpanID(), parent.TraceID(), parent.SpanID())
	}
}

// traced is a proxy, a connector to it and an upstream, each with its own tracing.
type traced struct {
	*env
	grantID                 string
	client, proxy, upstream *tracing
	clientConfig            ConnectorConfig
}

// tracedUpstream starts a span of its own for each request, as the program behind the proxy does.
func tracedUpstream(tr *tracing, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		_, span := tr.provider.Tracer("upstream").Start(ctx, "work", trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		next(w, r)
	}
}

func startTraced(t *testing.T, upstream http.HandlerFunc, permissions ...string) *traced {
	x := &traced{grantID: newGrantID(t), client: newTracing(), proxy: newTracing(), upstream: newTracing()}
	x.env = start(t, options{
		upstream: upstreamServer(t, tracedUpstream(x.upstream, upstream)),
		config:   func(c *Config) { c.TracerProvider = x.proxy.provider },
	})
	x.clientConfig = x.connectorConfig(fixedSource{x.pki.grantWithID(x.grantID, time.Hour, permissions...)})
	x.clientConfig.TracerProvider = x.client.provider
	return x
}

// TestOneTraceThroughConnector: one trace runs from the program that asks over
// connector and proxy to the program that answers, each span under the one
// before, with the grant's id on each of ours.
func TestOneTraceThroughConnector(t *testing.T) {
	for name, headers := range map[string][]string{
		"begun by the program": {"Traceparent", traceparent, "Tracestate", "v=1"},
		"begun by us":          nil,
		"a broken one":         {"Traceparent", "00-" + parentTrace, "Tracestate", "v=1"},
	} {
		t.Run(name, func(t *testing.T) {
			x := startTraced(t, echoHandler, "GET /accounts/**")
			a, err := plainGet(t, x.connect(x.clientConfig, "127.0.0.1:0"), "/accounts/7?secret=1", headers...)
			if err != nil || a.status != 200 {
				t.Fatalf("%+v, %v", a, err)
			}
			carried, served := x.client.one(t, trace.SpanKindClient), x.proxy.one(t, trace.SpanKindServer)
			asked, worked := x.proxy.one(t, trace.SpanKindClient), x.upstream.one(t, trace.SpanKindServer)
			state := ""
			if name == "begun by the program" {
				state = "v=1"
				in := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": traceparent})
				wantChild(t, carried, trace.SpanContextFromContext(in))
			} else if carried.Parent().IsValid() {
				t.Errorf("the first span has the parent %v", carried.Parent())
			}
			wantChild(t, served, carried.SpanContext())
			wantChild(t, asked, served.SpanContext())
			wantChild(t, worked, asked.SpanContext())
			if got := a.seen(t).Header.Get("Tracestate"); got != state {
				t.Errorf("tracestate %q at the upstream, want %q", got, state)
			}
			for _, s := range []sdktrace.ReadOnlySpan{carried, served, asked} {
				wantAttrs(t, s, "hallpass.grant.id", x.grantID, "http.request.method", "GET", "http.response.status_code", "200")
				for _, kv := range s.Attributes() {
					if strings.Contains(kv.Value.String(), "secret") {
						t.Errorf("the query is in span %s: %v", s.Name(), kv)
					}
				}
				if s.Name() != "GET" || s.Status().Code == codes.Error {
					t.Errorf("span %s: %v", s.Name(), s.Status())
				}
			}
			wantAttrs(t, carried, "hallpass.service", "payments", "hallpass.subject", alice, "network.protocol.version", "2",
				"url.full", "https://payments.acme.test/accounts/7", "server.address", "127.0.0.1")
			if attr(carried, "server.port") != x.addr[strings.LastIndex(x.addr, ":")+1:] {
				t.Errorf("server.port %s, the proxy is at %s", attr(carried, "server.port"), x.addr)
			}
			if r := x.record("it", func(r logLine) bool { return r.Kind == kindRequest }); r.TraceID != carried.SpanContext().TraceID().String() {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// TestConnectorSpanOfRefusals: what does not arrive leaves a span that says so.
func TestConnectorSpanOfRefusals(t *testing.T) {
	t.Run("outside the scope", func(t *testing.T) {
		x := startTraced(t, echoHandler, "GET /a")
		if a, err := plainGet(t, x.connect(x.clientConfig, "127.0.0.1:0"), "/b"); err != nil || a.status != 403 {
			t.Fatalf("%+v, %v", a, err)
		}
		s := x.client.one(t, trace.SpanKindClient)
		wantAttrs(t, s, "error.type", "403", "http.response.status_code", "403", "hallpass.grant.id", x.grantID)
		if s.Status().Code != codes.Error {
			t.Errorf("status %v", s.Status())
		}
	})
	t.Run("no proxy", func(t *testing.T) {
		x := startTraced(t, echoHandler, "GET /a")
		x.shutdown()
		if a, err := plainGet(t, x.connect(x.clientConfig, "127.0.0.1:0"), "/a"); err != nil || a.status != 502 {
			t.Fatalf("%+v, %v", a, err)
		}
		wantAttrs(t, x.client.one(t, trace.SpanKindClient), "error.type", "proxy_unreachable", "hallpass.grant.id", x.grantID)
	})
	t.Run("no certificate", func(t *testing.T) {
		x := startTraced(t, echoHandler, "GET /a")
		x.clientConfig.Source = sourceFunc(func(context.Context) (*tls.Certificate, error) { return nil, errors.New("no quorum") })
		if a, err := plainGet(t, x.connect(x.clientConfig, "127.0.0.1:0"), "/a"); err != nil || a.status != 502 {
			t.Fatalf("%+v, %v", a, err)
		}
		wantAttrs(t, x.client.one(t, trace.SpanKindClient), "error.type", "no_certificate", "hallpass.grant.id", "")
	})
	t.Run("a method that nobody knows", func(t *testing.T) {
		x := startTraced(t, echoHandler, "* /**")
		req, err := http.NewRequestWithContext(t.Context(), "BREW", "http://"+x.connect(x.clientConfig, "127.0.0.1:0")+"/a", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		for _, s := range []sdktrace.ReadOnlySpan{x.client.one(t, trace.SpanKindClient), x.proxy.one(t, trace.SpanKindServer)} {
			wantAttrs(t, s, "http.request.method", "_OTHER", "http.request.method_original", "BREW")
			if s.Name() != "HTTP" {
				t.Errorf("a client named the span %q", s.Name())
			}
		}
	})
}

// TestConnectorSpanOfStreams: a span lasts as long as what it is of.
func TestConnectorSpanOfStreams(t *testing.T) {
	t.Run("download", func(t *testing.T) {
		x := startTraced(t, drip, "GET /drip")
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+x.connect(x.clientConfig, "127.0.0.1:0")+"/drip", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		if _, err := io.ReadFull(res.Body, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if n := len(x.client.Ended()); n != 0 {
			t.Errorf("%d spans ended while the answer comes", n)
		}
		stop()
		x.client.one(t, trace.SpanKindClient)
	})
	t.Run("websocket", func(t *testing.T) {
		x := startTraced(t, echoSockets, "GET /ws")
		c, _, err := websocket.Dial(t.Context(), "ws://"+x.connect(x.clientConfig, "127.0.0.1:0")+"/ws", nil) //nolint:bodyclose // the connection is the body's
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.CloseNow() }()
		if err := c.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(x.client.Ended()); n != 0 {
			t.Errorf("%d spans ended before the tunnel", n)
		}
		if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
			t.Error(err)
		}
		carried := x.client.one(t, trace.SpanKindClient)
		wantAttrs(t, carried, "http.response.status_code", "101", "network.protocol.version", "1.1", "hallpass.grant.id", x.grantID)
		wantChild(t, x.proxy.one(t, trace.SpanKindServer), carried.SpanContext())
	})
}

// TestConnectorUntraced hands on what came in.
func TestConnectorUntraced(t *testing.T) {
	x := startTraced(t, echoHandler, "GET /**")
	x.clientConfig.TracerProvider = nil
	if _, err := plainGet(t, x.connect(x.clientConfig, "127.0.0.1:0"), "/a", "Traceparent", traceparent); err != nil {
		t.Fatal(err)
	}
	in := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": traceparent})
	wantChild(t, x.proxy.one(t, trace.SpanKindServer), trace.SpanContextFromContext(in))
}

// TestConnectorSpanOfTCP: a connection has a span at each end, tied by the
// grant's id and the socket's port.
func TestConnectorSpanOfTCP(t *testing.T) {
	id, client, proxy := newGrantID(t), newTracing(), newTracing()
	up, all := tcpUpstream(t)
	e := start(t, options{upstream: up, edit: tcpService, config: func(c *Config) { c.TracerProvider = proxy.provider }})
	cfg := e.connectorConfig(fixedSource{e.pki.grantWithID(id, time.Hour, "tcp")})
	cfg.TCP, cfg.TracerProvider = true, client.provider
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", e.connect(cfg, "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if n := len(client.Ended()) + len(proxy.Ended()); n != 0 {
		t.Errorf("%d spans ended before the connection", n)
	}
	if hc, ok := c.(halfCloser); !ok || hc.CloseWrite() != nil {
		t.Fatal("no half-close")
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "got 5" {
		t.Fatalf("%q, %v", got, err)
	}
	<-all
	carried, served, asked := client.one(t, trace.SpanKindClient), proxy.one(t, trace.SpanKindServer), proxy.one(t, trace.SpanKindClient)
	for _, s := range []sdktrace.ReadOnlySpan{carried, served, asked} {
		wantAttrs(t, s, "hallpass.grant.id", id)
		if s.Name() != "tcp" || s.Status().Code == codes.Error {
			t.Errorf("span %s: %v", s.Name(), s.Status())
		}
	}
	wantAttrs(t, carried, "hallpass.service", "payments", "hallpass.subject", alice, "hallpass.bytes_in", "5", "hallpass.bytes_out", "5")
	wantChild(t, asked, served.SpanContext())
	if port := attr(carried, "network.local.port"); port == "" || port != attr(served, "client.port") {
		t.Errorf("port %q at the client's end, %q at the proxy's", port, attr(served, "client.port"))
	}
	if r := e.record("its end", func(r logLine) bool { return r.Event == "end" }); r.TraceID != served.SpanContext().TraceID().String() {
		t.Errorf("record %+v", r)
	}

	refused := newTracing()
	cfg = e.connectorConfig(fixedSource{e.pki.grantWithID(id, time.Hour, "GET /**")})
	cfg.TCP, cfg.TracerProvider = true, refused.provider
	c, err = (&net.Dialer{}).DialContext(t.Context(), "tcp", e.connect(cfg, "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
	refused.one(t, trace.SpanKindClient)
	eventually(t, "the proxy's span of the denial", func() bool {
		for _, s := range proxy.Ended() {
			if s.SpanKind() == trace.SpanKindServer && s.Status() == (sdktrace.Status{Code: codes.Error, Description: reasonOutsideScope}) {
				return attr(s, "hallpass.decision") == decisionDeny
			}
		}
		return false
	})
}
