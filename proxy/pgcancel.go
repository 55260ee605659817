package proxy

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	xrate "golang.org/x/time/rate"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// postgres is what the sessions of a postgres service share.
type postgres struct {
	keys  pgwire.Keys[*pgSession]
	wrong wrongKeys
}

// A session's statements are cancelled at most this often; a key has 63 random bits, and wrong ones are tried at most so
// often in a minute.
const (
	cancelsPerSecond  = 5
	wrongKeysOfOne    = 10
	wrongKeysOfOthers = 1000
)

// wrongKeys counts the wrong cancel keys of the current minute.
type wrongKeys struct {
	mu    sync.Mutex // owns what follows
	since time.Time
	by    map[string]int
	plain int // of those who have shown no certificate
}

// spent says whether who has tried too many, or, without a certificate, all such have together.
func (w *wrongKeys) spent(now time.Time, who string, proven bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := now.Sub(w.since); d >= time.Minute || d < 0 {
		w.since, w.by, w.plain = now, make(map[string]int), 0
	}
	return w.by[who] >= wrongKeysOfOne || !proven && w.plain >= wrongKeysOfOthers
}

func (w *wrongKeys) add(who string, proven bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.by[who]++
	if !proven {
		w.plain++
	}
}

// pgCancel is asked to cancel the statement of whoever has the key. adm is who asks, nil without TLS: psql before 17,
// and libpq's PQcancel to this day, open a connection of their own for it and send the key in the clear. All that it opens
// to who overhears one is to cancel the statements of that session. Nobody is told what became of it.
func (p *Proxy) pgCancel(ctx context.Context, key pgwire.Cancel, adm *admission, peer string) {
	r := record{time: p.cfg.now(), kind: kindCancel, event: "end", service: p.cfg.service, protocol: "postgres", decision: decisionDeny, peer: peer}
	r.of(adm)
	s, why := p.pgFind(key, adm, peer)
	if why == "" {
		r.of(s.c.proven())
		r.conn, r.database, r.role = s.c.id, s.db, s.role
		r.decision = decisionAllow
	}
	r.reason = why
	if err := p.access.write(&r); err != nil || why != "" {
		return
	}
	s.cancelUpstream(ctx)
}

// pgFind is the session to cancel in, or why there is none.
func (p *Proxy) pgFind(key pgwire.Cancel, adm *admission, peer string) (*pgSession, string) {
	who, proven := peer, adm != nil
	if proven {
		who = adm.holder()
	} else if host, _, err := net.SplitHostPort(peer); err == nil {
		who = host
	}
	if !proven && p.cfg.pg.tlsCancel {
		return nil, reasonPlainCancel
	}
	if p.pg.wrong.spent(p.cfg.now(), who, proven) {
		return nil, reasonCancels
	}
	s, ok := p.pg.keys.Find(key)
	switch {
	case !ok:
		p.pg.wrong.add(who, proven)
		return nil, reasonWrongKey
	case proven && s.c.adm.holder() != adm.holder():
		// Where we know who asks, a key that was overheard opens nothing.
		p.pg.wrong.add(who, proven)
		return nil, reasonCancelOther
	case !s.cancels.Allow():
		return nil, reasonCancels
	default:
		return s, ""
	}
}

func newCancels() *xrate.Limiter { return xrate.NewLimiter(cancelsPerSecond, cancelsPerSecond) }

// cancelUpstream cancels what the session's backend is doing.
func (s *pgSession) cancelUpstream(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.p.cfg.limits.dialTO)
	defer cancel()
	if err := s.target.SendCancel(ctx, s.server.Key); err != nil {
		s.p.log.Warn("a statement could not be cancelled", slog.String("upstream", s.p.cfg.upstream.address), slog.Any("error", err))
	}
}
