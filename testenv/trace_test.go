package testenv_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/testenv"
)

// spans finds spans that have ended.
type spans struct {
	env *testenv.Env
	*tracetest.SpanRecorder
}

// one waits for a span of that name and kind that match takes.
func (s spans) one(kind trace.SpanKind, name string, match func(sdktrace.ReadOnlySpan) bool) sdktrace.ReadOnlySpan {
	var found sdktrace.ReadOnlySpan
	s.env.Eventually("a "+kind.String()+" span "+name, func() bool {
		for _, span := range s.Ended() {
			if span.SpanKind() == kind && span.Name() == name && match(span) {
				found = span
				return true
			}
		}
		return false
	})
	return found
}

// under matches the spans right under another, in its trace.
func under(parent sdktrace.ReadOnlySpan) func(sdktrace.ReadOnlySpan) bool {
	return func(s sdktrace.ReadOnlySpan) bool {
		return s.Parent().SpanID() == parent.SpanContext().SpanID() && s.SpanContext().TraceID() == parent.SpanContext().TraceID()
	}
}

func grantOf(s sdktrace.ReadOnlySpan) string {
	for _, kv := range s.Attributes() {
		if kv.Key == "hallpass.grant.id" {
			return kv.Value.AsString()
		}
	}
	return ""
}

// TestTwoTraces: one runs from whoever asks for access over decision and commit
// to the certificate, one from the program that uses it over connector and proxy
// to the service. The grant's id is in both, and the certificate was fetched for
// the second.
func TestTwoTraces(t *testing.T) {
	t.Parallel()
	recorder := tracetest.NewSpanRecorder()
	env := testenv.Start(t, testenv.Options{Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))})
	seen := spans{env, recorder}
	told := make(chan string, 1)
	up := env.HTTPUpstream(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { told <- r.Header.Get("Traceparent") }))
	p := env.Proxy("payments", testenv.ProxyOptions{Upstream: up})
	grant := env.Approve("bob", env.Request("alice", "payments", time.Hour, "GET /accounts/**")).ID
	c := env.Connector(p, testenv.ConnectorOptions{Who: "alice", Grant: grant})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.Address()+"/accounts/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if cerr := resp.Body.Close(); err != nil || cerr != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v, %v", resp.StatusCode, err, cerr)
	}

	root := func(s sdktrace.ReadOnlySpan) bool { return !s.Parent().IsValid() }
	asking := seen.one(trace.SpanKindClient, "POST /v1/requests", root)
	seen.one(trace.SpanKindServer, "POST /v1/requests", under(asking))
	inFirst := func(s sdktrace.ReadOnlySpan) bool { return s.SpanContext().TraceID() == asking.SpanContext().TraceID() }
	created := seen.one(trace.SpanKindInternal, "request.create", inFirst)
	seen.one(trace.SpanKindServer, "POST /v1/requests", func(s sdktrace.ReadOnlySpan) bool { // the leader's, whoever was asked first
		return s.SpanContext().SpanID() == created.Parent().SpanID()
	})
	for _, name := range []string{"request.decide", "raft.commit", "grant.mint", "ca.sign"} {
		seen.one(trace.SpanKindInternal, name, inFirst)
	}
	if got := grantOf(seen.one(trace.SpanKindInternal, "grant.mint", inFirst)); got != grant {
		t.Errorf("the mint's span names the grant %q, want %q", got, grant)
	}

	carried := seen.one(trace.SpanKindClient, "GET", root)
	served := seen.one(trace.SpanKindServer, "GET", under(carried))
	asked := seen.one(trace.SpanKindClient, "GET", under(served))
	for _, s := range []sdktrace.ReadOnlySpan{carried, served, asked} {
		if grantOf(s) != grant {
			t.Errorf("span %s %s names the grant %q, want %q", s.SpanKind(), s.Name(), grantOf(s), grant)
		}
	}
	if got, want := <-told, "00-"+asked.SpanContext().TraceID().String()+"-"+asked.SpanContext().SpanID().String()+"-01"; got != want {
		t.Errorf("the service was told %s, want %s", got, want)
	}
	fetching := seen.one(trace.SpanKindClient, "POST /v1/grants/{id}/certificate", under(carried))
	mint := seen.one(trace.SpanKindInternal, "grant.mint", inFirst)
	if len(mint.Links()) != 1 || mint.Links()[0].SpanContext.TraceID() != fetching.SpanContext().TraceID() {
		t.Errorf("the mint links to %v, it was for the trace %s", mint.Links(), fetching.SpanContext().TraceID())
	}
}
