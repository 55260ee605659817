package proxy

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otellog "go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/trace"
)

// exportRecords is where access records go beside the file, as their lines, or nil.
func (c *config) exportRecords() func(r *record, line []byte) {
	if c.records == nil {
		return nil
	}
	to, now := c.records.Logger(scopeName), c.now
	return func(r *record, line []byte) { exportRecord(context.Background(), to, now(), r, line) } // it outlives its request
}

// recordEvent is the name of the OpenTelemetry event that a record is.
const recordEvent = "hallpass.access"

// exportRecord hands a record to OpenTelemetry, as the line that goes to the file.
// What becomes of it there decides nothing: the file is what on_failure is about.
func exportRecord(ctx context.Context, to otellog.Logger, now time.Time, r *record, line []byte) {
	if !to.Enabled(ctx, otellog.EnabledParameters{Severity: otellog.SeverityInfo, EventName: recordEvent}) {
		return
	}
	var out otellog.Record
	out.SetTimestamp(r.time)
	out.SetObservedTimestamp(now)
	out.SetEventName(recordEvent)
	out.SetSeverity(otellog.SeverityInfo)
	if r.decision != decisionAllow {
		out.SetSeverity(otellog.SeverityWarn)
	}
	out.SetBody(attribute.StringValue(string(line[:len(line)-1])))
	for _, a := range []struct{ key, value string }{
		{"hallpass.service", r.service},
		{"hallpass.record.kind", r.kind},
		{"hallpass.subject", r.subject},
		{"hallpass.grant.id", r.grant},
		{"hallpass.permission", r.permission},
		{"hallpass.decision", r.decision},
		{"hallpass.reason", r.reason},
	} {
		if a.value != "" {
			out.AddAttributes(attribute.String(a.key, a.value))
		}
	}
	if id, err := trace.TraceIDFromHex(r.trace); err == nil {
		ctx = trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{TraceID: id}))
	}
	to.Emit(ctx, out)
}
