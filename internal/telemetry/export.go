package telemetry

import (
	"context"
	"fmt"
	"os"
	"strings"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// signal is TRACES, METRICS or LOGS, as environment variables spell it.
type signal string

const (
	traces  signal = "TRACES"
	metrics signal = "METRICS"
	logs    signal = "LOGS"
)

// configured reports whether the environment asks for the signal to be
// exported. autoexport takes silence for OTLP to localhost, so it is asked
// only when this is true.
func (s signal) configured() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch s.exporter() {
	case "none":
		return false
	case "":
		return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+string(s)+"_ENDPOINT") != ""
	default:
		return true
	}
}

func (s signal) variable() string { return "OTEL_" + string(s) + "_EXPORTER" }

func (s signal) exporter() string { return os.Getenv(s.variable()) }

// Printing names the variable that has Setup print to stdout,
// "OTEL_TRACES_EXPORTER" or one like it, and is "" when none does. A process
// whose stdout speaks a protocol asks before Setup, and refuses.
func Printing() string {
	for _, s := range []signal{traces, metrics, logs} {
		if s.configured() && strings.EqualFold(s.exporter(), "console") {
			return s.variable()
		}
	}
	return ""
}

func (s signal) failed(err error) error {
	if name := s.exporter(); name != "" {
		return fmt.Errorf("telemetry: %s=%s: %w", s.variable(), name, err)
	}
	return fmt.Errorf("telemetry: export %s by OTLP: %w", strings.ToLower(string(s)), err)
}

// spanExporter returns nil when traces are not configured.
func spanExporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	if !traces.configured() {
		return nil, nil // nothing to export is not an error
	}
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, traces.failed(err)
	}
	return exporter, nil
}

// metricReader returns nil when metrics are not configured.
func metricReader(ctx context.Context) (sdkmetric.Reader, error) {
	if !metrics.configured() {
		return nil, nil // nothing to export is not an error
	}
	reader, err := autoexport.NewMetricReader(ctx)
	if err != nil {
		return nil, metrics.failed(err)
	}
	return reader, nil
}

// logExporter returns nil when logs are not configured.
func logExporter(ctx context.Context) (sdklog.Exporter, error) {
	if !logs.configured() {
		return nil, nil // nothing to export is not an error
	}
	exporter, err := autoexport.NewLogExporter(ctx)
	if err != nil {
		return nil, logs.failed(err)
	}
	return exporter, nil
}
