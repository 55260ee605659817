package main

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/hallpass/hallpass/internal/telemetry"
)

// flushTime is how long a command waits at its end for a collector.
const flushTime = 2 * time.Second

// tracing runs fn in a span of the command's own, which the calls that it makes are under, and
// sends what there is before it returns. Traces that cannot be set up or sent are complained of and
// change nothing else: nobody is to be kept from an approval by a collector.
func (a *app) tracing(ctx context.Context, fn func(context.Context, trace.TracerProvider) error) error {
	tel, err := telemetry.SetupCommand(ctx, telemetry.Options{Service: "hallpass", Version: version, LogWriter: a.stderr})
	if err != nil {
		a.complain(err)
		return fn(ctx, tracenoop.NewTracerProvider())
	}
	tel.Install() //nolint:contextcheck // OpenTelemetry reports its own errors under no context
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		if err := tel.Shutdown(ctx); err != nil {
			a.complain(err)
		}
	}()
	ctx, span := tel.TracerProvider.Tracer("github.com/hallpass/hallpass/cmd/hallpass").Start(ctx, a.command)
	defer span.End()
	err = fn(ctx, tel.TracerProvider)
	if status := exitStatus(err); status == exitError || status == exitUnauthenticated {
		span.SetStatus(codes.Error, "")
	}
	return err
}
