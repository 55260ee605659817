package telemetry

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"go.opentelemetry.io/otel"
)

// Setup leaves the process's globals alone; Install, and only Install, sets
// them.
func TestInstall(t *testing.T) {
	environment(t)
	tracers, meters, propagator := otel.GetTracerProvider(), otel.GetMeterProvider(), otel.GetTextMapPropagator()
	t.Cleanup(func() {
		otel.SetTracerProvider(tracers)
		otel.SetMeterProvider(meters)
		otel.SetTextMapPropagator(propagator)
	})
	var lines bytes.Buffer
	tel := setup(t, Options{LogWriter: &lines})
	if otel.GetTracerProvider() == tel.TracerProvider || otel.GetMeterProvider() == tel.MeterProvider {
		t.Fatal("Setup set a global")
	}
	tel.Install()
	if otel.GetTracerProvider() != tel.TracerProvider || otel.GetMeterProvider() != tel.MeterProvider {
		t.Error("Install did not set the providers")
	}
	if fields := strings.Join(otel.GetTextMapPropagator().Fields(), " "); !strings.Contains(fields, "traceparent") {
		t.Errorf("the propagator reads %s", fields)
	}
	otel.Handle(errors.New("collector unreachable"))
	if !strings.Contains(lines.String(), "collector unreachable") {
		t.Errorf("an exporter's error is not in the log: %q", lines.String())
	}
}
