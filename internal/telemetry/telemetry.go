package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	lognoop "go.opentelemetry.io/otel/log/noop"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

const (
	scopeName = "github.com/hallpass/hallpass"
	// flushTimeout is how long Shutdown waits for exporters when its context
	// has no deadline of its own.
	flushTimeout = 5 * time.Second
)

// ErrOptions is returned when Setup's options are incomplete.
var ErrOptions = errors.New("telemetry: bad options")

// Options says who reports, and where log lines go.
type Options struct {
	// Service is service.name: "hallpass-server", "hallpass-proxy". Required;
	// OTEL_SERVICE_NAME overrides it.
	Service string
	// Version is service.version.
	Version string
	// Instance is service.instance.id: the node's id or the proxy's service.
	Instance string
	// Attributes are further resource attributes. OTEL_RESOURCE_ATTRIBUTES
	// overrides them.
	Attributes []attribute.KeyValue

	// LogWriter takes log lines; os.Stderr in the binary. Required.
	LogWriter io.Writer
	// LogFormat is Text when empty.
	LogFormat Format
	// LogLevel is slog.LevelInfo when nil.
	LogLevel slog.Leveler
}

// Telemetry is what instrumented packages are given. It is owned by whoever
// called Setup, who also calls Shutdown.
type Telemetry struct {
	// TracerProvider makes spans, or passes contexts on when traces are not
	// configured.
	TracerProvider trace.TracerProvider
	// MeterProvider collects numbers for MetricsHandler, and exports them when
	// configured.
	MeterProvider metric.MeterProvider
	// LoggerProvider is behind Logger, for those who emit OpenTelemetry log
	// records themselves (access records). A no-op when logs are not
	// configured.
	LoggerProvider log.LoggerProvider
	// Propagator reads and writes W3C trace context and baggage.
	Propagator propagation.TextMapPropagator
	// Logger writes to LogWriter, and to LoggerProvider when configured.
	Logger *slog.Logger
	// MetricsHandler serves /metrics on the admin port.
	MetricsHandler http.Handler

	lines     slog.Handler
	exporting []string
	closers   []closer
	once      sync.Once
	closeErr  error // written in once
}

// closer is a provider that holds data back until it is shut down.
type closer struct {
	name string
	shut func(context.Context) error
}

// Setup builds the telemetry of a process from its environment. On an error
// nothing is left running.
func Setup(ctx context.Context, o Options) (*Telemetry, error) {
	if o.Service == "" || o.LogWriter == nil {
		return nil, fmt.Errorf("%w: Service and LogWriter are required", ErrOptions)
	}
	if o.LogFormat == "" {
		o.LogFormat = Text
	}
	if o.LogLevel == nil {
		o.LogLevel = slog.LevelInfo
	}
	res, err := newResource(ctx, o)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{
		Propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
	}
	for _, step := range []func(context.Context, Options, *resource.Resource) error{t.setTraces, t.setMetrics, t.setLogs} {
		if err := step(ctx, o, res); err != nil {
			return nil, errors.Join(err, t.Shutdown(ctx))
		}
	}
	return t, nil
}

// newResource describes this process. What the environment says comes last
// and wins.
func newResource(ctx context.Context, o Options) (*resource.Resource, error) {
	own := []attribute.KeyValue{attribute.String("service.name", o.Service)}
	if o.Version != "" {
		own = append(own, attribute.String("service.version", o.Version))
	}
	if o.Instance != "" {
		own = append(own, attribute.String("service.instance.id", o.Instance))
	}
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithProcessPID(),
		resource.WithAttributes(append(own, o.Attributes...)...),
		resource.WithFromEnv(),
	)
	if err != nil {
		return nil, fmt.Errorf("telemetry: describe this process (OTEL_RESOURCE_ATTRIBUTES): %w", err)
	}
	return res, nil
}

func (t *Telemetry) setTraces(ctx context.Context, _ Options, res *resource.Resource) error {
	exporter, err := spanExporter(ctx)
	if err != nil {
		return err
	}
	if exporter == nil {
		t.TracerProvider = tracenoop.NewTracerProvider()
		return nil
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(exporter))
	t.TracerProvider = provider
	t.started(traces, provider.Shutdown)
	return nil
}

func (t *Telemetry) setMetrics(ctx context.Context, _ Options, res *resource.Resource) error {
	scraped, handler, err := newPrometheus()
	if err != nil {
		return err
	}
	options := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(scraped), sdkmetric.WithView(view)}
	exported, err := metricReader(ctx)
	if err != nil {
		return err
	}
	if exported != nil {
		options = append(options, sdkmetric.WithReader(exported))
	}
	provider := sdkmetric.NewMeterProvider(options...)
	t.MeterProvider, t.MetricsHandler = provider, handler
	if exported != nil {
		t.started(metrics, provider.Shutdown)
	}
	return nil
}

// view drops SPIFFE IDs from every metric and gives histograms of seconds
// bounds from a millisecond (a request) to an hour (an approval).
func view(i sdkmetric.Instrument) (sdkmetric.Stream, bool) {
	stream := sdkmetric.Stream{Name: i.Name, Description: i.Description, Unit: i.Unit, AttributeFilter: notIdentity}
	if i.Kind == sdkmetric.InstrumentKindHistogram && i.Unit == "s" {
		stream.Aggregation = sdkmetric.AggregationExplicitBucketHistogram{Boundaries: []float64{
			.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600,
		}}
	}
	return stream, true
}

func notIdentity(kv attribute.KeyValue) bool {
	return kv.Value.Type() != attribute.STRING || !strings.HasPrefix(kv.Value.AsString(), "spiffe://")
}

func (t *Telemetry) setLogs(ctx context.Context, o Options, res *resource.Resource) error {
	lines, err := newLineHandler(o.LogWriter, o.LogFormat, o.LogLevel)
	if err != nil {
		return err
	}
	t.lines = lines
	exporter, err := logExporter(ctx)
	if err != nil {
		return err
	}
	if exporter == nil {
		t.LoggerProvider = lognoop.NewLoggerProvider()
		t.Logger = slog.New(lines)
		return nil
	}
	provider := sdklog.NewLoggerProvider(sdklog.WithResource(res), sdklog.WithProcessor(sdklog.NewBatchProcessor(exporter)))
	t.LoggerProvider = provider
	t.started(logs, provider.Shutdown)
	t.Logger = slog.New(slog.NewMultiHandler(lines, bridge(provider, o.Version, o.LogLevel)))
	return nil
}

func (t *Telemetry) started(s signal, shut func(context.Context) error) {
	name := strings.ToLower(string(s))
	t.exporting = append(t.exporting, name)
	t.closers = append(t.closers, closer{name, shut})
}

// Exporting names the signals that leave the process: any of "traces",
// "metrics" and "logs".
func (t *Telemetry) Exporting() []string {
	return append([]string(nil), t.exporting...)
}

// Install makes the providers and the propagator OpenTelemetry's global ones,
// and sends OpenTelemetry's own errors to the log lines. Only a main package
// calls it, once.
func (t *Telemetry) Install() {
	otel.SetTracerProvider(t.TracerProvider)
	otel.SetMeterProvider(t.MeterProvider)
	otel.SetTextMapPropagator(t.Propagator)
	// To the lines only: an exporter's failure, exported, would fail again.
	logger := slog.New(t.lines)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.LogAttrs(context.Background(), slog.LevelWarn, "telemetry failed", slog.String("error", err.Error()))
	}))
}

// Shutdown sends what is still held back and ends all exporting. It returns at
// the context's deadline, or after five seconds when that has none, even if a
// collector does not answer. Later calls return the first one's error.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	t.once.Do(func() {
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, flushTimeout)
			defer cancel()
		}
		t.closeErr = shutAll(ctx, t.closers)
	})
	return t.closeErr
}

// shutAll shuts all down at once, so that one that hangs does not take the
// others' time, and waits no longer than the context.
func shutAll(ctx context.Context, closers []closer) error {
	errs := make(chan error, len(closers))
	for _, c := range closers {
		go func() { // ends with shut, which the context ends
			if err := c.shut(ctx); err != nil {
				err = fmt.Errorf("telemetry: flush %s: %w", c.name, err)
				errs <- err
				return
			}
			errs <- nil
		}()
	}
	var all error
	for range closers {
		select {
		case err := <-errs:
			all = errors.Join(all, err)
		case <-ctx.Done():
			return errors.Join(all, fmt.Errorf("telemetry: flush: %w", ctx.Err()))
		}
	}
	return all
}
