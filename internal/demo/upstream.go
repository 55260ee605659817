package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Upstream serves the service behind the proxy until ctx ends: plain HTTP that
// knows nothing of certificates, permissions or Hallpass.
func Upstream(ctx context.Context, address string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /accounts/{id}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, "account %q: balance 100 EUR\n", r.PathValue("id"))
	})
	mux.HandleFunc("POST /refunds/{id}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, "refund %q: done\n", r.PathValue("id"))
	})
	mux.HandleFunc("GET /admin", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "nobody should see this") })
	mux.HandleFunc("GET /stream", stream)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// reply writes plain text, and says so, lest a browser find markup in an id.
func reply(w http.ResponseWriter, format, id string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	fmt.Fprintf(w, format, id) //nolint:gosec // G705: plain text, and %q leaves no markup
}

// stream sends an event every 20 ms for as long as somebody listens.
func stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		if _, err := fmt.Fprintf(w, "data: %d\n\n", n); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}
