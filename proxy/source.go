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
// its life. A renewal that fails is tried again while the old one lives.
type RenewingSource struct {
	fetch func(context.Context) (*tls.Certificate, error)
	now   func() time.Time
	cur   atomic.Pointer[held]

	mu      sync.Mutex // held through a fetch; owns what follows
	retryAt time.Time
}

type held struct {
	cert  *tls.Certificate
	renew time.Time
}

const renewRetry = 2 * time.Second

// NewRenewingSource makes a source of what fetch returns. A nil now is time.Now.
func NewRenewingSource(fetch func(context.Context) (*tls.Certificate, error), now func() time.Time) *RenewingSource {
	if now == nil {
		now = time.Now
	}
	return &RenewingSource{fetch: fetch, now: now}
}

// Certificate returns the current certificate; in the second half of its life it
// tries to renew it first.
func (s *RenewingSource) Certificate(ctx context.Context) (*tls.Certificate, error) {
	now := wall(s.now)
	h := s.cur.Load()
	if h != nil && now.Before(h.renew) {
		return h.cert, nil
	}
	valid := h != nil && now.Before(h.cert.Leaf.NotAfter)
	if !valid {
		s.mu.Lock()
	} else if !s.mu.TryLock() {
		return h.cert, nil // someone is at it
	}
	defer s.mu.Unlock()
	if newer := s.cur.Load(); newer != h && newer != nil && now.Before(newer.renew) {
		return newer.cert, nil
	}
	if valid && now.Before(s.retryAt) {
		return h.cert, nil
	}
	cert, err := s.renew(ctx)
	switch {
	case err == nil:
		return cert, nil
	case valid:
		s.retryAt = now.Add(renewRetry)
		return h.cert, nil
	default:
		return nil, err
	}
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

// Run renews in time even while nobody dials, until ctx ends.
func (s *RenewingSource) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if h := s.cur.Load(); h != nil && !wall(s.now).Before(h.renew) {
			_, _ = s.Certificate(ctx) // tried again at the next tick; who dials gets the error
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
