package proxy

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/hallpass/hallpass/grant"
)

// Why a condition refused.
const (
	reasonSource = "outside_sources"
	reasonHours  = "outside_hours"
	reasonRate   = "too_many_requests"
)

// asked is what somebody wants, of any protocol: whether a matcher has it.
type asked func(*grant.Matcher) (grant.Permission, bool)

// permit is the answer to what was asked.
type permit struct {
	perm       grant.Permission // that matched; zero for what is only observed
	rule       string           // the standing rule that matched, or ""
	reason     string           // why not, or ""
	wouldDeny  string           // what enforcing would have said, where that is observed
	retryAfter time.Duration
}

// permits decides over what an admitted connection asks for. That the certificate
// is good, in time and not revoked has been seen to. Conditions come first, and
// bind everybody; observing waives nothing but the permission check.
func (p *Proxy) permits(c *conn, ask asked) permit {
	r, now := &p.cfg.rules, wall(p.cfg.now)
	if reason := r.refuses(c, now); reason != "" {
		return permit{reason: reason}
	}
	out := permit{reason: reasonNoGrant}
	if c.adm.isGrant() {
		out.reason = reasonOutsideScope
		if perm, ok := ask(c.matcher); ok {
			out.perm, out.reason = perm, ""
		}
	} else {
		for i := range r.standing {
			s := &r.standing[i]
			if !s.matches(c.adm.id) {
				continue
			}
			if perm, ok := ask(s.matcher); ok {
				out.perm, out.rule, out.reason = perm, s.name, ""
				break
			}
		}
	}
	if out.reason != "" && r.observes(ask, now) {
		out.wouldDeny, out.reason = out.reason, ""
	}
	if out.reason == "" {
		p.meter(c, &out, now)
	}
	return out
}

// refuses says which condition a client does not meet, or "".
func (r *rules) refuses(c *conn, now time.Time) string {
	if len(r.sources) > 0 {
		from, err := netip.ParseAddrPort(c.peer)
		if err != nil || !slices.ContainsFunc(r.sources, func(p netip.Prefix) bool { return p.Contains(from.Addr().Unmap().WithZone("")) }) {
			return reasonSource
		}
	}
	if r.hours != nil && !r.hours.open(now) {
		return reasonHours
	}
	return ""
}

// observes says whether what was asked is let through without permission for now.
func (r *rules) observes(ask asked, now time.Time) bool {
	for i := range r.observing {
		o := &r.observing[i]
		if !now.Before(o.until) {
			continue
		}
		if o.whole {
			return true
		}
		if _, ok := ask(o.matcher); ok {
			return true
		}
	}
	return false
}

// meter counts what is about to go through.
func (p *Proxy) meter(c *conn, out *permit, now time.Time) {
	r := &p.cfg.rules
	wait, ok := p.meters.take("s "+c.adm.subject, r.perSubject, now)
	if ok && c.adm.isGrant() {
		wait, ok = p.meters.take("g "+c.adm.grantID, r.perGrant, now)
	}
	if !ok {
		out.reason, out.retryAfter = reasonRate, wait
	}
}

// permitted has a request judged by scope, rules and conditions, notes in rec what
// allowed it, and says why it is refused where it is.
func (p *Proxy) permitted(ctx context.Context, c *conn, method string, s *shape, rec *record) *verdict {
	out := p.permits(c, func(m *grant.Matcher) (grant.Permission, bool) {
		if s.grpc {
			return m.GRPC(method, &s.path)
		}
		return m.HTTP(method, &s.path)
	})
	no := verdict{status: http.StatusForbidden, reason: out.reason}
	switch out.reason {
	case "":
		rec.rule, rec.wouldDeny = out.rule, out.wouldDeny
		if !out.perm.IsZero() {
			rec.permission = c.permissionText(out.perm)
		}
		p.tele.observed(ctx, out.wouldDeny)
		return nil
	case reasonNoGrant:
		no.detail, no.need = "an identity opens nothing here; it takes a grant", smallest(method, s)
	case reasonOutsideScope:
		no.detail, no.need = "the grant does not allow this", smallest(method, s)
	case reasonRate:
		no.status, no.detail, no.retryAfter = http.StatusTooManyRequests, "too many requests; wait, and call again", out.retryAfter
	case reasonHours:
		no.detail = "this service may not be used at this time"
	default:
		no.detail = "this service may not be used from there"
	}
	rec.rule = out.rule
	return &no
}

// permitTCP judges a connection of a tcp service.
func (p *Proxy) permitTCP(c *conn, rec *record) string {
	out := p.permits(c, func(m *grant.Matcher) (grant.Permission, bool) {
		return grant.TCPPermission(), m.TCP()
	})
	if out.reason == "" {
		rec.rule, rec.wouldDeny = out.rule, out.wouldDeny
		p.tele.observed(c.ctx, out.wouldDeny)
		if out.wouldDeny == "" {
			rec.permission = grantTCPText
		}
	}
	return out.reason
}

// observed counts what enforcing would have refused.
func (t *telemetry) observed(ctx context.Context, reason string) {
	if reason != "" && t.measuring {
		t.wouldDeny.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)), metric.WithAttributes(t.own...))
	}
}

// sayObserving tells operators that not everything is enforced, at every start and
// change and every hour: it must not be forgotten.
func (p *Proxy) sayObserving() {
	whole, until := p.cfg.rules.observingNow(wall(p.cfg.now))
	if len(until) == 0 {
		return
	}
	slices.SortFunc(until, time.Time.Compare)
	p.log.Warn("OBSERVE MODE: requests that no grant allows go through, and are recorded with would_deny",
		slog.String("service", p.cfg.service), slog.Bool("whole_service", whole), slog.Time("until", until[len(until)-1]))
}

// watchObserving says it every hour until ctx ends.
func (c *core) watchObserving(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		c.newest.Load().sayObserving()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
