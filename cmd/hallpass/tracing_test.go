package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// otel clears every OTEL_ variable for the test and sets the given.
func otel(t *testing.T, set ...string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "")
		}
	}
	for _, entry := range set {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
}

// printedSpan is a span as the console exporter writes it.
type printedSpan struct {
	Name                string
	SpanContext, Parent struct{ TraceID, SpanID string }
	SpanKind            int
	Status              struct{ Code string }
}

// spansOf takes the spans out of what a command wrote to stderr, and returns them by name.
func spansOf(t *testing.T, stderr string) map[string]printedSpan {
	t.Helper()
	spans := make(map[string]printedSpan)
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var s printedSpan
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		spans[s.Name] = s
	}
	return spans
}

// TestCommandsTrace: a command is a span and each of its calls one under it, which the node is told
// of, so that the trace of a request begins with whoever typed it. The answer stays what it was.
func TestCommandsTrace(t *testing.T) {
	f := newFake(t)
	var told string
	f.mux.HandleFunc("POST /v1/requests", func(w http.ResponseWriter, r *http.Request) {
		told = r.Header.Get("Traceparent")
		reply(w, http.StatusCreated, request(nil))
	})
	args := []string{"request", "create", "payments", "--allow", "GET /accounts/**", "--for", "30m", "--reason", "ticket 4711", "-o", "json"}

	otel(t)
	plain := f.as(t, f.identity, args...)
	if told != "" || strings.Contains(plain.stderr, "SpanContext") {
		t.Errorf("not asked to trace, it said %q and printed %s", told, plain.stderr)
	}

	otel(t, "OTEL_TRACES_EXPORTER=console")
	got := f.as(t, f.identity, args...)
	var answer struct{ ID string }
	if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || answer.ID == "" || got.status != plain.status {
		t.Errorf("status %d, %v, stdout %s", got.status, err, got.stdout)
	}
	spans := spansOf(t, got.stderr)
	command, call := spans["hallpass request create"], spans["POST /v1/requests"]
	if len(spans) != 2 || command.SpanContext.TraceID == "" || call.SpanKind != 3 ||
		call.SpanContext.TraceID != command.SpanContext.TraceID || call.Parent.SpanID != command.SpanContext.SpanID {
		t.Fatalf("spans %+v", spans)
	}
	if want := "00-" + call.SpanContext.TraceID + "-" + call.SpanContext.SpanID + "-01"; told != want {
		t.Errorf("the node was told %q, want %q", told, want)
	}
	if command.Status.Code != "Unset" {
		t.Errorf("the command's status is %s", command.Status.Code)
	}

	f.answer("GET /v1/requests/", http.StatusNotFound, api.Problem{Title: "Not found", Code: api.CodeNotFound, Status: http.StatusNotFound})
	got = f.as(t, f.identity, "request", "get", request(nil).ID, "-o", "json")
	spans = spansOf(t, got.stderr)
	if spans["hallpass request get"].Status.Code != "Error" || spans["GET /v1/requests/{id}"].Status.Code != "Error" || got.status != exitError {
		t.Errorf("status %d, spans %+v", got.status, spans)
	}
}

// TestCommandsOutliveCollectors: traces that go nowhere cost a command two seconds and no more,
// neither its answer nor its status.
func TestCommandsOutliveCollectors(t *testing.T) {
	f := newFake(t)
	f.answer("GET /v1/requests/", http.StatusOK, request(nil))
	block := make(chan struct{})
	deaf := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }))
	defer deaf.Close()
	defer close(block)
	otel(t)
	plain := f.as(t, f.identity, "request", "get", request(nil).ID, "-o", "json")
	for name, env := range map[string]string{
		"deaf":    "OTEL_EXPORTER_OTLP_ENDPOINT=" + deaf.URL,
		"gone":    "OTEL_EXPORTER_OTLP_ENDPOINT=http://" + closedAddress(t),
		"unknown": "OTEL_TRACES_EXPORTER=zipkin",
	} {
		t.Run(name, func(t *testing.T) {
			otel(t, env)
			began := time.Now()
			got := f.as(t, f.identity, "request", "get", request(nil).ID, "-o", "json")
			if took := time.Since(began); took > flushTime+20*time.Second {
				t.Errorf("it took %s", took)
			}
			if got.status != plain.status || got.stdout != plain.stdout {
				t.Errorf("got %+v, want %+v", got, plain)
			}
			if !strings.Contains(got.stderr, "telemetry") {
				t.Errorf("it does not say that traces are lost: %q", got.stderr)
			}
		})
	}
}
