package proxy

import (
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
	FeedError   string    `json:"feed_error,omitempty"` // why no node is followed now
	Roots       [2]uint64 `json:"roots_documents"`      // in force, of identities and of grants
	RootsError  string    `json:"roots_error,omitempty"`
	AnchorError string    `json:"anchor_error,omitempty"`          // why the access log is not anchored now
	Refused     string    `json:"configuration_refused,omitempty"` // why a changed file was not taken
}

// Admin serves /healthz (the process runs), /readyz (it admits who should be
// admitted) and, where Config.Metrics is set, /metrics. It is for loopback or a
// socket: nothing here is authenticated.
func (p *Proxy) Admin() http.Handler {
	return adminMux(p.cfg.metricsUI, func() (bool, any) {
		r := p.newest.Load().readiness()
		return r.Ready, r
	})
}

func (p *Proxy) readiness() readiness {
	d := p.rev.cur.Load()
	m := p.keeper.cur.Load()
	r := readiness{
		Connections: p.live.len(), Certificate: m.cert.Leaf.NotAfter.UTC(),
		Epoch: d.epoch, Revision: d.revision, Roots: [2]uint64{m.sets[0].Sequence(), m.sets[1].Sequence()},
		FeedError: p.noFeed.get(), RootsError: p.noRoots.get(), AnchorError: p.noAnchor.get(),
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
