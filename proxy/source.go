package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// CertSource gives the certificate to dial with. Certificate MUST return a chain
// that is valid now, with its key, or an error; it MUST be safe for concurrent
// use and cheap while nothing changes. A renewed certificate MUST be a new value.
type CertSource interface {
	Certificate(ctx context.Context) (*tls.Certificate, error)
}

// RenewingSource is a CertSource that fetches its certificate anew at half of
// its life. Nobody waits for that: the old one serves until the new one is there,
// and one that cannot be fetched is tried again while the old one lives.
type RenewingSource struct {
	fetch func(context.Context) (*tls.Certificate, error)
	now   func() time.Time
	cur   atomic.Pointer[held]

	mu      sync.Mutex // owns what follows
	fetches *fetching  // under way, else nil
	retryAt time.Time
	lastErr error // of the last fetch
}

type held struct {
	cert  *tls.Certificate
	renew time.Time
}

// fetching is one fetch, and whoever waits for it.
type fetching struct {
	done chan struct{} // closed when what follows is written
	cert *tls.Certificate
	err  error
}

const (
	renewRetry   = 2 * time.Second
	renewTimeout = 30 * time.Second
)

// NewRenewingSource makes a source of what fetch returns, which has to end with
// its context. A nil now is time.Now.
func NewRenewingSource(fetch func(context.Context) (*tls.Certificate, error), now func() time.Time) *RenewingSource {
	if now == nil {
		now = time.Now
	}
	return &RenewingSource{fetch: fetch, now: now}
}

// Certificate returns the current certificate, and sees to the next one when
// half of its life is over. It waits only where there is none that is valid.
func (s *RenewingSource) Certificate(ctx context.Context) (*tls.Certificate, error) {
	now := wall(s.now)
	h := s.cur.Load()
	if h != nil && now.Before(h.renew) {
		return h.cert, nil
	}
	f, err := s.next(ctx, now)
	switch {
	case h != nil && now.Before(h.cert.Leaf.NotAfter):
		return h.cert, nil
	case err != nil:
		return nil, err
	}
	select {
	case <-f.done:
		return f.cert, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// next is the fetch under way, begun if there is none, or the error of the last
// one for a while.
func (s *RenewingSource) next(ctx context.Context, now time.Time) (*fetching, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.cur.Load(); h != nil && now.Before(h.renew) { // it came in the meantime
		f := &fetching{done: make(chan struct{}), cert: h.cert}
		close(f.done)
		return f, nil
	}
	switch {
	case s.fetches != nil:
		return s.fetches, nil
	case now.Before(s.retryAt):
		return nil, s.lastErr
	}
	f := &fetching{done: make(chan struct{})}
	s.fetches = f
	// It is for all who wait, so it does not end with the one who happened to be first.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTimeout)
	go func() {
		defer cancel()
		f.cert, f.err = s.renew(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fetches, s.lastErr, s.retryAt = nil, f.err, time.Time{}
		if f.err != nil {
			s.retryAt = wall(s.now).Add(renewRetry)
		}
		close(f.done)
	}()
	return f, nil
}

func (s *RenewingSource) renew(ctx context.Context) (*tls.Certificate, error) {
	cert, err := s.fetch(ctx)
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, errors.New("renew certificate: none was returned")
	}
	if cert.Leaf == nil {
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			return nil, fmt.Errorf("renew certificate: %w", err)
		}
		own := *cert
		own.Leaf = leaf
		cert = &own
	}
	now := wall(s.now)
	left := cert.Leaf.NotAfter.Sub(now)
	if left <= 0 {
		return nil, fmt.Errorf("renew certificate: the new one expired at %s", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	s.cur.Store(&held{cert: cert, renew: now.Add(left / 2)})
	return cert, nil
}

// Run renews in time even while nobody dials, until ctx ends. What has expired
// is fetched anew when it is asked for, and no sooner: its grant may have ended.
func (s *RenewingSource) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		now := wall(s.now)
		if h := s.cur.Load(); h != nil && !now.Before(h.renew) && now.Before(h.cert.Leaf.NotAfter) {
			_, _ = s.next(ctx, now) // tried again at a later tick; who dials too late gets the error
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
