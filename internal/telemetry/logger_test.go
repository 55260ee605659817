package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"testing/slogtest"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"
)

func inSpan(t *testing.T) context.Context {
	t.Helper()
	return trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2},
	}))
}

// parsed returns the JSON lines of buf without their time.
func parsed(t *testing.T, buf *bytes.Buffer) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(buf.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		delete(m, "time")
		delete(m, "level")
		out = append(out, m)
	}
	return out
}

func TestLinesNameTheirTrace(t *testing.T) {
	const traceID, spanID = "01000000000000000000000000000000", "0200000000000000"
	for _, c := range []struct {
		name string
		log  func(*slog.Logger, context.Context)
		want map[string]any
	}{
		{"plainly", func(l *slog.Logger, ctx context.Context) { l.InfoContext(ctx, "m", "a", "1") }, map[string]any{"a": "1"}},
		{"with attributes", func(l *slog.Logger, ctx context.Context) { l.With("b", "2").With().InfoContext(ctx, "m", "a", "1") }, map[string]any{"a": "1", "b": "2"}},
		{"in a group", func(l *slog.Logger, ctx context.Context) { l.WithGroup("g").InfoContext(ctx, "m", "a", "1") }, map[string]any{"g": map[string]any{"a": "1"}}},
		{"in the group of no name", func(l *slog.Logger, ctx context.Context) { l.WithGroup("").InfoContext(ctx, "m", "a", "1") }, map[string]any{"a": "1"}},
		{
			"in groups with attributes", func(l *slog.Logger, ctx context.Context) {
				l.With("b", "2").WithGroup("g").With("c", "3").WithGroup("h").InfoContext(ctx, "m", "a", "1")
			},
			map[string]any{"b": "2", "g": map[string]any{"c": "3", "h": map[string]any{"a": "1"}}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var buf bytes.Buffer
			handler, err := newLineHandler(&buf, JSON, slog.LevelInfo)
			if err != nil {
				t.Fatal(err)
			}
			c.want["msg"] = "m"
			c.log(slog.New(handler), t.Context())
			if diff := cmp.Diff([]map[string]any{c.want}, parsed(t, &buf)); diff != "" {
				t.Errorf("outside a span (-want +got):\n%s", diff)
			}
			buf.Reset()
			c.want["trace_id"], c.want["span_id"] = traceID, spanID
			c.log(slog.New(handler), inSpan(t))
			if diff := cmp.Diff([]map[string]any{c.want}, parsed(t, &buf)); diff != "" {
				t.Errorf("inside a span (-want +got):\n%s", diff)
			}
		})
	}
}

// Loggers made from one logger do not write into each other's attributes.
func TestLoggersDoNotShareSteps(t *testing.T) {
	var buf bytes.Buffer
	handler, err := newLineHandler(&buf, JSON, slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	base := slog.New(handler).WithGroup("g").With("a", "1")
	one, two := base.With("b", "one"), base.With("b", "two")
	one.InfoContext(inSpan(t), "m")
	two.InfoContext(inSpan(t), "m")
	for i, want := range []string{"one", "two"} {
		if group := parsed(t, &buf)[i]["g"]; cmp.Diff(map[string]any{"a": "1", "b": want}, group) != "" {
			t.Errorf("line %d: %v, want b=%s", i, group, want)
		}
	}
}

func TestHandlerKeepsSlogsRules(t *testing.T) {
	var buf bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		buf.Reset()
		handler, err := newLineHandler(&buf, JSON, slog.LevelInfo)
		if err != nil {
			t.Fatal(err)
		}
		return &leveled{Handler: handler, level: slog.LevelDebug}
	}, func(t *testing.T) map[string]any {
		var m map[string]any
		if err := json.Unmarshal(buf.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		return m
	})
}

func TestTextLines(t *testing.T) {
	var buf bytes.Buffer
	handler, err := newLineHandler(&buf, Text, slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	slog.New(handler).InfoContext(inSpan(t), "hello", "grant", "g1")
	if line := buf.String(); !strings.Contains(line, "msg=hello grant=g1 trace_id=0100") || strings.Count(line, "\n") != 1 {
		t.Errorf("line %q", line)
	}
}
