// Package telemetry sets up the binary's traces, metrics and logs.
//
// # Duty
//
// [Setup] reads the OTEL_* environment and returns providers to be passed to
// whoever instruments something, a logger, and a handler for the admin port's
// /metrics. Nothing is global unless cmd calls [Telemetry.Install].
//
//	spans   ─► TracerProvider ──────────────► OTLP, console      when configured
//	numbers ─► MeterProvider ─┬─────────────► OTLP, console      when configured
//	                          └► own registry ► /metrics         always
//	lines   ─► Logger ────────┬─────────────► stderr             always
//	                          └► LoggerProvider ► OTLP, console  when configured
//
// # Silent unless configured
//
// A signal is exported when its exporter is named (OTEL_TRACES_EXPORTER,
// OTEL_METRICS_EXPORTER, OTEL_LOGS_EXPORTER) or when an OTLP endpoint is
// (OTEL_EXPORTER_OTLP_ENDPOINT, or that of the signal), and
// OTEL_SDK_DISABLED is not true. Otherwise nothing is dialled and nothing is
// printed: the tracer is a no-op that hands an incoming trace context on
// unchanged, so that a proxy without telemetry of its own does not tear
// others' traces apart.
//
// # What it refuses
//
// A malformed resource or an unknown exporter stops the start: telemetry that
// one believes to have, and has not, is found out about at the worst time.
// SPIFFE IDs are dropped from metric attributes; each would make a time series
// of its own, and a scrape is read by more people than an audit log.
//
// Libraries whose API is not stable yet are each behind one file: autoexport
// in export.go, otelslog in otelslog.go, the Prometheus exporter in
// prometheus.go.
package telemetry
