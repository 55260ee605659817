package api

import (
	"net/http"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// traced gives each attempt at a call a span, which the server's is under.
func traced(next http.RoundTripper, provider trace.TracerProvider) http.RoundTripper {
	if provider == nil {
		return next
	}
	return otelhttp.NewTransport(next,
		otelhttp.WithTracerProvider(provider), otelhttp.WithMeterProvider(metricnoop.NewMeterProvider()),
		otelhttp.WithPropagators(propagation.TraceContext{}),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + RouteOf(r.URL.Path) }))
}

// RouteOf is a path of the API without the ids in it, for names of spans.
func RouteOf(path string) string {
	if len(path) > 128 {
		path = path[:128]
	}
	parts := strings.Split(path, "/")
	if len(parts) > 3 && parts[1] == "v1" {
		switch parts[2] {
		case "requests", "grants", "changes", "issuers", "nodes":
			parts[3] = "{id}"
		case "emergency":
			if len(parts) > 4 && parts[3] == "grants" {
				parts[4] = "{id}"
			}
		}
	}
	return strings.Join(parts, "/")
}
