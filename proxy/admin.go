package proxy

import (
	"encoding/json"
	"net/http"
	"time"
)

// readiness is what /readyz tells.
type readiness struct {
	Ready       bool      `json:"ready"`
	Problems    []string  `json:"problems,omitempty"`
	Connections int       `json:"connections"`
	Certificate time.Time `json:"certificate_not_after"`
	Epoch       uint64    `json:"epoch"`
	Revision    uint64    `json:"revision"`
	FeedAge     string    `json:"feed_age,omitempty"`
}

// Admin serves /healthz (the process runs), /readyz (it admits who should be
// admitted) and, where Config.Metrics is set, /metrics. It is for loopback or a
// socket: nothing here is authenticated.
func (p *Proxy) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n")) // who asked may be gone
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		state := p.readiness()
		w.Header().Set("Content-Type", "application/json")
		if !state.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(state) // as above
	})
	if p.cfg.metricsUI != nil {
		mux.Handle("GET /metrics", p.cfg.metricsUI)
	}
	return mux
}

func (p *Proxy) readiness() readiness {
	d := p.rev.cur.Load()
	m := p.keeper.cur.Load()
	r := readiness{
		Connections: p.live.len(), Certificate: m.cert.Leaf.NotAfter.UTC(),
		Epoch: d.epoch, Revision: d.revision,
	}
	if age, ok := p.rev.age(); ok {
		r.FeedAge = age.Round(time.Millisecond).String()
	}
	for _, check := range []struct {
		bad  bool
		text string
	}{
		{!p.serving.Load(), "not serving yet"},
		{p.stopping.Load(), "draining"},
		{!wall(p.cfg.now).Before(m.cert.Leaf.NotAfter), "the service's certificate has expired"},
		{p.access.broken.Load() && p.access.deny, "the access log cannot be written"},
		{p.rev.stale(), "news of revocations is too old"},
	} {
		if check.bad {
			r.Problems = append(r.Problems, check.text)
		}
	}
	r.Ready = len(r.Problems) == 0
	return r
}
