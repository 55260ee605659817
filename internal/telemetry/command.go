package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	lognoop "go.opentelemetry.io/otel/log/noop"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// SetupCommand builds the telemetry of a command that soon ends: traces, where
// they are configured, and nothing else. The console exporter writes to
// o.LogWriter, since stdout is for the command's answer. An environment that
// configures no traces is not looked at any further.
func SetupCommand(ctx context.Context, o Options) (*Telemetry, error) {
	if o.Service == "" || o.LogWriter == nil {
		return nil, fmt.Errorf("%w: Service and LogWriter are required", ErrOptions)
	}
	lines, err := newLineHandler(o.LogWriter, Text, slog.LevelWarn)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{
		TracerProvider: tracenoop.NewTracerProvider(),
		MeterProvider:  metricnoop.NewMeterProvider(),
		LoggerProvider: lognoop.NewLoggerProvider(),
		Propagator:     propagation.TraceContext{},
		Logger:         slog.New(lines),
		lines:          lines,
	}
	if !traces.configured() {
		return t, nil
	}
	res, err := newResource(ctx, o)
	if err != nil {
		return nil, err
	}
	exporter, err := commandExporter(ctx, o)
	if err != nil {
		return nil, err
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(exporter))
	t.TracerProvider = provider
	t.started(traces, provider.Shutdown)
	return t, nil
}

func commandExporter(ctx context.Context, o Options) (sdktrace.SpanExporter, error) {
	if strings.EqualFold(traces.exporter(), "console") {
		return stdouttrace.New(stdouttrace.WithWriter(o.LogWriter))
	}
	return spanExporter(ctx)
}
