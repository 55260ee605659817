package signer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/ca"
)

// Health is what /readyz answers. A signer is ready while nothing fails; what warns
// leaves time.
type Health struct {
	Ready    bool      `json:"ready"`
	Findings []Finding `json:"findings"`
}

// Finding is one thing that was looked at.
type Finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // "ok", "warn" or "fail"
	Detail string `json:"detail,omitempty"`

	notAfter time.Time // of a node's certificates
}

const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"

	maxDetail = 1024
)

func (f Finding) warn(err error) Finding {
	if f.Status == statusOK {
		f.Status = statusWarn
	}
	f.Detail = strings.TrimPrefix(f.Detail+"; "+err.Error(), "; ")
	if len(f.Detail) > maxDetail {
		f.Detail = strings.ToValidUTF8(f.Detail[:maxDetail], "") + "…"
	}
	return f
}

func (f Finding) asked(err error) Finding {
	if err != nil {
		return f.warn(err)
	}
	return f
}

// ends says how long what a node has is good: by half of its life it should have
// been renewed.
func (f Finding) ends(c ca.NodeCertificates, now time.Time) Finding {
	end := c.NotAfter()
	f.notAfter, f.Detail = end, "until "+end.UTC().Format(time.RFC3339)
	half := c.GrantIssuer.NotBefore.Add(end.Sub(c.GrantIssuer.NotBefore) / 2)
	switch {
	case !now.Before(end):
		f.Status = statusFail
	case now.After(half):
		f.Status = statusWarn
	}
	return f
}

// look is what one round saw.
type look struct {
	now                  time.Time
	folder, kms, cluster error
	nodes                map[string]Finding // by id
}

// status is the last look, and whether another is under way.
type status struct {
	look
	done  bool      // there was one
	since time.Time // the one under way began; zero: none is
}

func (s *Signer) statusNow() status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Signer) began() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.since = s.now()
}

// ended keeps what a round saw, and logs what has become wrong, or right, since.
func (s *Signer) ended(ctx context.Context, seen *look) {
	before := s.Health()
	s.mu.Lock()
	if seen.folder != nil {
		seen.kms, seen.cluster = s.status.kms, s.status.cluster
		seen.nodes = s.status.nodes
	}
	s.status = status{look: *seen, done: true}
	s.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	for _, f := range s.Health().Findings {
		i := slices.IndexFunc(before.Findings, func(b Finding) bool { return b.Check == f.Check })
		if i >= 0 && before.Findings[i].Status == f.Status {
			continue
		}
		level := slog.LevelInfo
		if f.Status != statusOK {
			level = slog.LevelWarn
		}
		s.log.LogAttrs(ctx, level, "health", slog.String("check", f.Check), slog.String("status", f.Status), slog.String("detail", f.Detail))
	}
}

// Health says how things were at the last look.
func (s *Signer) Health() Health {
	st := s.statusNow()
	h := Health{Ready: true}
	add := func(check string, err error) {
		f := Finding{Check: check, Status: statusOK}
		if err != nil {
			f = f.warn(err)
		}
		h.Findings = append(h.Findings, f)
	}
	switch {
	case !st.done:
		add("look", fmt.Errorf("nothing has been looked at yet"))
	case !st.since.IsZero() && s.now().Sub(st.since) > s.every+time.Minute:
		// A token's library that hangs cannot be interrupted.
		add("look", fmt.Errorf("the one that began at %s has not ended: the KMS does not answer", st.since.UTC().Format(time.RFC3339)))
	default:
		add("look", nil)
	}
	add("folder", st.folder)
	add("kms", st.kms)
	add("cluster", st.cluster)
	for _, id := range slices.Sorted(maps.Keys(st.nodes)) {
		f := st.nodes[id]
		if !f.notAfter.IsZero() && !s.now().Before(f.notAfter) {
			f.Status = statusFail
		}
		h.Findings = append(h.Findings, f)
	}
	for _, f := range h.Findings {
		h.Ready = h.Ready && f.Status != statusFail
	}
	return h
}

// Admin serves /healthz, /readyz and, where there are some, /metrics, to the
// machine's own operators. Nothing is authenticated: it is for loopback or a socket.
func (s *Signer) Admin(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n")) // who asked may be gone
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		h := s.Health()
		w.Header().Set("Content-Type", "application/json")
		if !h.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(h) // as above
	})
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	return mux
}
