package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"github.com/hallpass/hallpass/trust"
)

const (
	maxShown        = 4096    // certificates that are remembered
	maxShownBytes   = 8 << 20 // of theirs
	maxShownIssuers = 64      // that are kept once for all that they signed
	reportBytes     = 128 << 10
	reportMany      = 64 // certificates in one report
	reportEvery     = 2 * time.Second
	reportBackoff   = time.Minute
)

// shown remembers the newest grant certificates that were shown here, each once,
// until all control nodes have been told of them. Nothing waits for it: what is
// too much pushes the oldest out, and is counted when it had not been told.
type shown struct {
	mu      sync.Mutex
	first   uint64                     // guarded by mu; number of the oldest that is remembered
	list    []shownCert                // guarded by mu; oldest first
	known   map[[sha256.Size]byte]bool // guarded by mu
	bytes   int                        // guarded by mu; of all in list
	issuers map[string][]byte          // guarded by mu; by id, of the newest in list: many have one
}

// shownCert holds DER and nothing else of a handshake, whose every certificate
// would stay in memory with it.
type shownCert struct {
	sum          [sha256.Size]byte
	leaf, issuer []byte
}

func newShown() *shown {
	return &shown{known: map[[sha256.Size]byte]bool{}, issuers: map[string][]byte{}}
}

// saw takes note of a certificate whose chain was good, whatever became of it: a
// thief's that was refused for its scope is a thief's all the same.
func (s *shown) saw(a *admission, m *material) {
	if a == nil || !a.isGrant() {
		return
	}
	sum := sha256.Sum256(a.chain[0].Raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[sum] {
		return
	}
	issuer, ok := s.issuers[a.issuer]
	if !ok {
		c := issuerOf(a, m)
		if c == nil {
			return
		}
		if issuer = bytes.Clone(c.Raw); len(s.issuers) >= maxShownIssuers {
			clear(s.issuers)
		}
		s.issuers[a.issuer] = issuer
	}
	s.known[sum] = true
	s.list = append(s.list, shownCert{sum, bytes.Clone(a.chain[0].Raw), issuer})
	s.bytes += len(a.chain[0].Raw)
	// However long a thief makes them, they fill no memory.
	for len(s.list) > maxShown || s.bytes > maxShownBytes && len(s.list) > 1 {
		s.bytes -= len(s.list[0].leaf)
		delete(s.known, s.list[0].sum)
		s.list[0] = shownCert{}
		s.list = s.list[1:]
		s.first++
	}
}

// issuerOf is the certificate that signed the leaf.
func issuerOf(a *admission, m *material) *x509.Certificate {
	for _, list := range [][]*x509.Certificate{a.chain[1:], m.grants.X509Authorities()} {
		for _, c := range list {
			if trust.ID(c) == a.issuer {
				return c
			}
		}
	}
	return nil
}

// report is what a control node is told at once.
type report struct {
	Issuers      [][]byte `json:"issuers"`
	Certificates [][]byte `json:"certificates"`
}

// after returns what comes from a number on, as much as goes into one report, the
// number to go on from, and how many were pushed out before.
func (s *shown) after(from uint64) (r report, next, lost uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if from < s.first {
		lost, from = s.first-from, s.first
	}
	r = report{Issuers: [][]byte{}, Certificates: [][]byte{}}
	issuers, size := map[string]bool{}, 0
	for _, c := range s.list[from-s.first:] {
		size += len(c.leaf)
		// One is always told, however long a thief has made it.
		if n := len(r.Certificates); n > 0 && (size > reportBytes || n == reportMany) {
			break
		}
		r.Certificates = append(r.Certificates, c.leaf)
		if raw := string(c.issuer); !issuers[raw] {
			issuers[raw] = true
			r.Issuers = append(r.Issuers, c.issuer)
			size += len(raw)
		}
		from++
	}
	return r, from, lost
}

// reporter tells one control node which certificates were shown here. Every node
// is told, each by a reporter of its own: one that is a thief's by now would keep
// it to itself.
type reporter struct {
	server *url.URL
	shown  *shown
	tls    func() *tls.Config
	log    *slog.Logger
	lost   func(n uint64) // counts what the node was not told
	every  time.Duration
}

// run reports until ctx ends.
func (r *reporter) run(ctx context.Context) {
	next, wait, failing := uint64(0), r.every, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait)): //nolint:gosec // jitter between proxies, no secret
		}
		batch, after, lost := r.shown.after(next)
		if lost > 0 {
			next += lost
			r.lost(lost)
			r.log.Warn("certificates that were shown here could not be told to a control node: check the access log with hallpass audit check-access",
				slog.String("server", r.server.Host), slog.Uint64("certificates", lost))
		}
		if len(batch.Certificates) == 0 {
			continue
		}
		if err := r.send(ctx, batch); err != nil {
			if !failing && ctx.Err() == nil {
				r.log.Warn("a control node cannot be told which certificates were shown here", slog.String("server", r.server.Host), slog.Any("error", explain(err)))
			}
			failing, wait = true, min(2*wait, max(reportBackoff, r.every))
			continue
		}
		next, wait, failing = after, r.every, false
	}
}

func (r *reporter) send(ctx context.Context, batch report) error {
	status, text, err := tell(ctx, r.tls(), r.server, "/v1/certificates/seen", batch)
	if err == nil {
		err = taken(status)
	}
	if err != nil {
		return err
	}
	var answer struct {
		Pending int `json:"pending"`
		Dropped int `json:"dropped"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return err
	}
	if answer.Pending+answer.Dropped > 0 {
		r.log.Warn("a control node does not know certificates that were shown here", slog.String("server", r.server.Host),
			slog.Int("certificates", answer.Pending+answer.Dropped))
	}
	return nil
}
