package telemetry

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// A command that is not asked to trace is silent, whatever else is configured.
func TestCommandIsSilent(t *testing.T) {
	for _, env := range [][]string{
		nil,
		{"OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=console"},
		{"OTEL_METRICS_EXPORTER=console", "OTEL_LOGS_EXPORTER=console", "OTEL_RESOURCE_ATTRIBUTES=broken"},
		{"OTEL_TRACES_EXPORTER=none", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"},
	} {
		environment(t, env...)
		ignore := goleak.IgnoreCurrent()
		var lines bytes.Buffer
		printed := captured(t, func() {
			tel, err := SetupCommand(t.Context(), Options{Service: "hallpass", LogWriter: &lines})
			if err != nil {
				t.Fatal(err)
			}
			if span := use(t, tel); span.IsValid() || tel.Exporting() != nil {
				t.Errorf("%q: it traces", env)
			}
			if err := tel.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		})
		if printed != "" || lines.Len() > 0 {
			t.Errorf("%q: printed %q, logged %q", env, printed, lines.String())
		}
		goleak.VerifyNone(t, ignore)
	}
}

// Stdout is the command's own, also with an exporter that prints.
func TestCommandKeepsStdout(t *testing.T) {
	environment(t, "OTEL_TRACES_EXPORTER=console", "OTEL_METRICS_EXPORTER=console")
	var lines bytes.Buffer
	printed := captured(t, func() {
		tel, err := SetupCommand(t.Context(), Options{Service: "hallpass", LogWriter: &lines})
		if err != nil {
			t.Fatal(err)
		}
		use(t, tel)
		if err := tel.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if printed != "" || !strings.Contains(lines.String(), `"Name":"a span"`) {
		t.Errorf("printed %q, logged %q", printed, lines.String())
	}
}

// What is configured is sent by the time that Shutdown returns.
func TestCommandSendsTraces(t *testing.T) {
	server := newCollector(t)
	environment(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+server.URL)
	tel, err := SetupCommand(t.Context(), Options{Service: "hallpass", LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	use(t, tel)
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(server.got("/v1/traces"), "a span") {
		t.Error("the span was not sent")
	}
	if server.got("/v1/metrics")+server.got("/v1/logs") != "" {
		t.Error("more than traces was sent")
	}
}

func TestSetupCommandRefuses(t *testing.T) {
	environment(t, "OTEL_TRACES_EXPORTER=zipkin")
	if tel, err := SetupCommand(t.Context(), Options{Service: "a", LogWriter: io.Discard}); tel != nil || err == nil {
		t.Errorf("an unknown exporter: %v, %v", tel, err)
	}
	environment(t)
	if tel, err := SetupCommand(t.Context(), Options{Service: "a"}); tel != nil || err == nil {
		t.Errorf("no writer: %v, %v", tel, err)
	}
}

// Whoever needs stdout is told what would print there, and nothing else.
func TestPrinting(t *testing.T) {
	for _, c := range []struct {
		want string
		env  []string
	}{
		{"", nil},
		{"", []string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_METRICS_EXPORTER=none", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"}},
		{"", []string{"OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=console"}},
		{"OTEL_TRACES_EXPORTER", []string{"OTEL_TRACES_EXPORTER=console"}},
		{"OTEL_METRICS_EXPORTER", []string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_METRICS_EXPORTER=console"}},
		{"OTEL_LOGS_EXPORTER", []string{"OTEL_LOGS_EXPORTER=console"}},
	} {
		environment(t, c.env...)
		if got := Printing(); got != c.want {
			t.Errorf("%q: %q, want %q", c.env, got, c.want)
		}
	}
}
