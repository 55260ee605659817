package telemetry

import (
	"log/slog"

	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/otel/log"
)

// bridge returns a handler that sends records of at least the given level to
// the provider. OpenTelemetry takes trace and span id from the context itself.
func bridge(provider log.LoggerProvider, version string, level slog.Leveler) slog.Handler {
	handler := otelslog.NewHandler(scopeName, otelslog.WithLoggerProvider(provider), otelslog.WithVersion(version))
	return &leveled{Handler: handler, level: level}
}
