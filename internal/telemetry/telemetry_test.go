package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
)

// environment clears every OTEL_ variable for the test and sets the given.
func environment(t *testing.T, set ...string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "") // autoexport takes empty for unset
		}
	}
	for _, entry := range set {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
}

func setup(t *testing.T, o Options) *Telemetry {
	t.Helper()
	if o.Service == "" {
		o.Service = "hallpass-test"
	}
	if o.LogWriter == nil {
		o.LogWriter = io.Discard
	}
	tel, err := Setup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	return tel
}

// sockets counts the process's open sockets; 0 where there is no /proc.
func sockets() int {
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, link := range links {
		if to, err := os.Readlink("/proc/self/fd/" + link.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// use makes a span, a number and a log line.
func use(t *testing.T, tel *Telemetry) trace.SpanContext {
	t.Helper()
	ctx, span := tel.TracerProvider.Tracer("test").Start(t.Context(), "a span")
	counter, err := tel.MeterProvider.Meter("test").Int64Counter("hallpass.test.calls")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(ctx, 1)
	tel.Logger.InfoContext(ctx, "a line")
	span.End()
	return span.SpanContext()
}

func TestSilentUnlessConfigured(t *testing.T) {
	for _, env := range [][]string{
		nil,
		{"OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none"},
		{"OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"},
		{"OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=console", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"},
		{"OTEL_SERVICE_NAME=renamed", "OTEL_EXPORTER_OTLP_HEADERS=a=b"},
	} {
		t.Run(strings.Join(env, " "), func(t *testing.T) {
			environment(t, env...)
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			before := sockets()
			var printed string
			var lines bytes.Buffer
			printed = captured(t, func() {
				tel := setup(t, Options{LogWriter: &lines})
				if span := use(t, tel); span.IsValid() {
					t.Error("a span of its own, though nobody will ever see it")
				}
				if got := tel.Exporting(); got != nil {
					t.Errorf("exporting %v", got)
				}
				if err := tel.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			})
			if printed != "" {
				t.Errorf("printed %q", printed)
			}
			if after := sockets(); after > before {
				t.Errorf("%d sockets were opened", after-before)
			}
			if strings.Count(lines.String(), "\n") != 1 {
				t.Errorf("log lines: %q, want the one", lines.String())
			}
		})
	}
}

// captured returns what fn writes to the process's stdout and stderr.
func captured(t *testing.T, fn func()) string {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = write, write
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()
	fn()
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A process without traces of its own hands on what came in, unchanged.
func TestTraceContextPassesThrough(t *testing.T) {
	environment(t)
	tel := setup(t, Options{})
	const incoming = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	in := propagation.MapCarrier{"traceparent": incoming, "tracestate": "a=b", "baggage": "k=v"}
	ctx, span := tel.TracerProvider.Tracer("test").Start(tel.Propagator.Extract(t.Context(), in), "hop")
	defer span.End()
	out := propagation.MapCarrier{}
	tel.Propagator.Inject(ctx, out)
	if diff := cmp.Diff(in, out); diff != "" {
		t.Errorf("changed on the way (-in +out):\n%s", diff)
	}
}

// collector is an OTLP/HTTP endpoint that notes which paths were posted to.
type collector struct {
	*httptest.Server
	mu    sync.Mutex
	posts map[string]string // path → body
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{posts: map[string]string{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.posts[r.URL.Path] += string(body)
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *collector) got(path string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.posts[path]
}

func TestExportsWhatIsConfigured(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		want []string
	}{
		{"by an endpoint alone", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=URL"}, []string{"traces", "metrics", "logs"}},
		{"by one signal's endpoint", []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=URL/v1/traces"}, []string{"traces"}},
		{"by an exporter", []string{"OTEL_LOGS_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=URL/v1/logs"}, []string{"logs"}},
		{"but for one signal", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=URL", "OTEL_METRICS_EXPORTER=none"}, []string{"traces", "logs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := newCollector(t)
			var env []string
			for _, entry := range c.env {
				env = append(env, strings.ReplaceAll(entry, "URL", server.URL))
			}
			environment(t, env...)
			var lines bytes.Buffer
			tel := setup(t, Options{Service: "hallpass-proxy", Version: "v1.2.3", Instance: "payments", LogWriter: &lines})
			if diff := cmp.Diff(c.want, tel.Exporting()); diff != "" {
				t.Errorf("exporting (-want +got):\n%s", diff)
			}
			span := use(t, tel)
			if err := tel.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"traces", "metrics", "logs"} {
				body, wanted := server.got("/v1/"+name), strings.Contains(strings.Join(c.want, " "), name)
				if (body != "") != wanted {
					t.Errorf("%s exported: %v, want %v", name, body != "", wanted)
				}
				for _, part := range []string{"hallpass-proxy", "v1.2.3", "payments"} {
					if wanted && !strings.Contains(body, part) {
						t.Errorf("%s do not say %s", name, part)
					}
				}
			}
			if span.IsValid() && !strings.Contains(lines.String(), "trace_id="+span.TraceID().String()) {
				t.Errorf("the line does not name its trace: %s", lines.String())
			}
		})
	}
}

func TestEnvironmentNamesTheService(t *testing.T) {
	server := newCollector(t)
	environment(t, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="+server.URL+"/v1/traces",
		"OTEL_SERVICE_NAME=payments-proxy", "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=prod,team=core")
	tel := setup(t, Options{Attributes: []attribute.KeyValue{attribute.String("team", "none")}})
	use(t, tel)
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	body := server.got("/v1/traces")
	for _, want := range []string{"payments-proxy", "deployment.environment.name", "prod", "core"} {
		if !strings.Contains(body, want) {
			t.Errorf("the resource does not say %s", want)
		}
	}
	if strings.Contains(body, "hallpass-test") {
		t.Error("OTEL_SERVICE_NAME was overridden")
	}
}

func TestSetupRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		env     []string
		options Options
		want    string
	}{
		{"no service", nil, Options{LogWriter: io.Discard}, "Service"},
		{"no writer", nil, Options{Service: "a"}, "LogWriter"},
		{"an unknown format", nil, Options{Service: "a", LogWriter: io.Discard, LogFormat: "xml"}, `"xml"`},
		{"an unknown traces exporter", []string{"OTEL_TRACES_EXPORTER=zipkin"}, Options{Service: "a", LogWriter: io.Discard}, "OTEL_TRACES_EXPORTER=zipkin"},
		{"an unknown metrics exporter", []string{"OTEL_METRICS_EXPORTER=otlp,prometheus"}, Options{Service: "a", LogWriter: io.Discard}, "OTEL_METRICS_EXPORTER=otlp,prometheus"},
		{"an unknown logs exporter", []string{"OTEL_LOGS_EXPORTER=file"}, Options{Service: "a", LogWriter: io.Discard}, "OTEL_LOGS_EXPORTER=file"},
		{"an unknown protocol", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL=smoke"}, Options{Service: "a", LogWriter: io.Discard}, "OTLP"},
		{"a malformed resource", []string{"OTEL_RESOURCE_ATTRIBUTES=team"}, Options{Service: "a", LogWriter: io.Discard}, "OTEL_RESOURCE_ATTRIBUTES"},
	} {
		t.Run(c.name, func(t *testing.T) {
			environment(t, c.env...)
			tel, err := Setup(t.Context(), c.options)
			if tel != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Setup = %v, %v; want an error about %s", tel, err, c.want)
			}
		})
	}
}

func TestMetricsHandler(t *testing.T) {
	environment(t)
	tel := setup(t, Options{Service: "hallpass-server", Version: "v1.2.3"})
	meter := tel.MeterProvider.Meter("test")
	counter, err1 := meter.Int64Counter("hallpass.test.denials")
	histogram, err2 := meter.Float64Histogram("hallpass.test.duration", metric.WithUnit("s"))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 2, metric.WithAttributes(
		attribute.String("reason", "expired"), attribute.String("subject", "spiffe://acme.test/user/alice")))
	counter.Add(t.Context(), 1, metric.WithAttributes(
		attribute.String("reason", "expired"), attribute.String("subject", "spiffe://acme.test/user/bob")))
	histogram.Record(t.Context(), 0.003)

	response := httptest.NewRecorder()
	tel.MetricsHandler.ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	body := response.Body.String()
	if response.Code != http.StatusOK {
		t.Fatalf("status %d: %s", response.Code, body)
	}
	for _, want := range []string{
		`service_name="hallpass-server"`, `service_version="v1.2.3"`, "go_goroutines", "process_start_time_seconds",
		`hallpass_test_duration_seconds_bucket{`, `le="0.0025"`, `le="3600"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	if strings.Contains(body, "spiffe") || strings.Contains(body, "alice") {
		t.Error("a SPIFFE ID became a label")
	}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "hallpass_test_denials_total{") && (!strings.Contains(line, `reason="expired"`) || !strings.HasSuffix(line, " 3\n")) {
			t.Errorf("the two subjects were not added up: %s", line)
		}
	}
}

// Two setups in one process do not share a registry.
func TestNoGlobalRegistry(t *testing.T) {
	environment(t)
	first, second := setup(t, Options{}), setup(t, Options{})
	use(t, first)
	response := httptest.NewRecorder()
	second.MetricsHandler.ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if strings.Contains(response.Body.String(), "hallpass_test_calls") {
		t.Error("one setup's number is in the other's scrape")
	}
}

// A collector that accepts and never answers must not hold up the end of the
// process.
func TestShutdownHasADeadline(t *testing.T) {
	block := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }))
	defer server.Close()
	defer close(block)
	environment(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+server.URL)
	tel := setup(t, Options{})
	use(t, tel)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := tel.Shutdown(ctx)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Shutdown took %s", took)
	}
	if err == nil {
		t.Error("Shutdown says that all was sent")
	}
	if again := tel.Shutdown(t.Context()); !errors.Is(again, err) {
		t.Errorf("a second Shutdown: %v, want the first one's error", again)
	}
}

func TestShutAllDoesNotWaitForTheDeaf(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	broken := errors.New("broken")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := shutAll(ctx, []closer{
		{"deaf", func(context.Context) error { <-done; return nil }},
		{"broken", func(context.Context) error { return broken }},
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutAll: %v, want the deadline", err)
	}
	if err := shutAll(t.Context(), []closer{{"broken", func(context.Context) error { return broken }}}); !errors.Is(err, broken) {
		t.Errorf("shutAll: %v, want the closer's own error", err)
	}
}

func TestLogLevelHoldsForAll(t *testing.T) {
	server := newCollector(t)
	environment(t, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="+server.URL+"/v1/logs")
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	var lines bytes.Buffer
	tel := setup(t, Options{LogWriter: &lines, LogLevel: level})
	logger := tel.Logger.With("a", 1).WithGroup("g")
	logger.Info("held back")
	logger.Warn("let through")
	level.Set(slog.LevelDebug)
	logger.Debug("now too")
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"lines": lines.String(), "export": server.got("/v1/logs")} {
		if strings.Contains(text, "held back") || !strings.Contains(text, "let through") || !strings.Contains(text, "now too") {
			t.Errorf("%s: %q", name, text)
		}
	}
}
