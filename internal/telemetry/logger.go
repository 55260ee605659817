package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"go.opentelemetry.io/otel/trace"
)

// Format is how log lines are written.
type Format string

// The formats of log lines.
const (
	Text Format = "text"
	JSON Format = "json"
)

// newLineHandler writes lines to w, each with the trace and span it belongs to.
func newLineHandler(w io.Writer, format Format, level slog.Leveler) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case Text:
		return &traced{root: slog.NewTextHandler(w, options)}, nil
	case JSON:
		return &traced{root: slog.NewJSONHandler(w, options)}, nil
	default:
		return nil, fmt.Errorf("telemetry: log format %q: write %q or %q", format, Text, JSON)
	}
}

// traced adds trace_id and span_id of the context's span to a record, always
// at the top level, where whoever searches for them looks.
type traced struct {
	root  slog.Handler
	steps []func(slog.Handler) slog.Handler // WithAttrs and WithGroup calls since the first group
	built slog.Handler                      // root after steps; nil without any
}

func (h *traced) current() slog.Handler {
	if h.built != nil {
		return h.built
	}
	return h.root
}

// Enabled implements [slog.Handler].
func (h *traced) Enabled(ctx context.Context, level slog.Level) bool {
	return h.root.Enabled(ctx, level)
}

// Handle implements [slog.Handler].
func (h *traced) Handle(ctx context.Context, record slog.Record) error {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return h.current().Handle(ctx, record)
	}
	ids := []slog.Attr{
		slog.String("trace_id", span.TraceID().String()),
		slog.String("span_id", span.SpanID().String()),
	}
	if len(h.steps) == 0 {
		record = record.Clone()
		record.AddAttrs(ids...)
		return h.root.Handle(ctx, record)
	}
	handler := h.root.WithAttrs(ids)
	for _, step := range h.steps {
		handler = step(handler)
	}
	return handler.Handle(ctx, record)
}

// WithAttrs implements [slog.Handler].
func (h *traced) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	if len(h.steps) == 0 {
		return &traced{root: h.root.WithAttrs(attrs)}
	}
	return h.with(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

// WithGroup implements [slog.Handler].
func (h *traced) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.with(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *traced) with(step func(slog.Handler) slog.Handler) slog.Handler {
	return &traced{root: h.root, steps: append(slices.Clip(h.steps), step), built: step(h.current())}
}

// leveled holds back records below its level from a handler that has none.
type leveled struct {
	slog.Handler
	level slog.Leveler
}

// Enabled implements [slog.Handler].
func (h *leveled) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.level.Level() && h.Handler.Enabled(ctx, level)
}

// WithAttrs implements [slog.Handler].
func (h *leveled) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &leveled{Handler: h.Handler.WithAttrs(attrs), level: h.level}
}

// WithGroup implements [slog.Handler].
func (h *leveled) WithGroup(name string) slog.Handler {
	return &leveled{Handler: h.Handler.WithGroup(name), level: h.level}
}
