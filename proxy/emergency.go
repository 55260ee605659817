package proxy

import (
	"context"
	"crypto/x509"
	"log/slog"
	"slices"

	"github.com/hallpass/hallpass/emergency"
)

// emergencyRule says what a service makes of certificates that an emergency issuer
// has signed. The zero rule denies.
type emergencyRule uint8

const (
	emergencyDeny emergencyRule = iota
	emergencyAllow
	// emergencyAllowStale goes on when news of revocations is too old for others:
	// in an emergency there is nobody who could bring any.
	emergencyAllowStale
)

func (c *config) readEmergency(s *Settings) error {
	switch s.Emergency {
	case "", "deny":
	case "allow":
		c.emergency = emergencyAllow
	case "allow_stale":
		c.emergency = emergencyAllowStale
		if c.staleness == 0 {
			return s.mistake("emergency", "allow_stale goes beyond revocation.max_staleness, and there is none: write allow")
		}
	default:
		return s.mistake("emergency", "%q is none of deny, allow and allow_stale", s.Emergency)
	}
	return nil
}

// understood is a chain as crypto/x509 verifies it that knows the emergency
// issuers' mark. Those who verify as they always did refuse such a chain for an
// extension that is critical and not known; so do we, unless it is judged below.
func understood(chain []*x509.Certificate) []*x509.Certificate {
	if len(chain) < 2 || !slices.ContainsFunc(chain[1:], emergency.Marked) {
		return chain
	}
	known := slices.Clone(chain)
	for i, c := range known[1:] {
		known[i+1] = emergency.Understood(c)
	}
	return known
}

// judgeEmergency refuses a grant certificate that an emergency issuer has signed
// where the service does not say that it admits those, and one beyond what such an
// issuer may make. The mark is the root's word, in the issuer's own certificate:
// who has stolen the issuer cannot drop it, and a node's issuer cannot put it on.
func (a *admission) judgeEmergency(leaf *x509.Certificate, cfg *config) error {
	if !a.emergency {
		return nil
	}
	if cfg.emergency == emergencyDeny {
		return refuse(reasonEmergency, "it is of an emergency issuer, and this service does not say emergency: allow")
	}
	if err := emergency.CheckLeaf(a.grantID, leaf.NotBefore, leaf.NotAfter); err != nil {
		return &refusal{reasonEmergencyLimits, err}
	}
	return nil
}

// throughEmergency reports whether one of the ways to a root goes through an
// emergency issuer.
func throughEmergency(chains [][]*x509.Certificate) bool {
	return slices.ContainsFunc(chains, func(ch []*x509.Certificate) bool { return slices.ContainsFunc(ch, emergency.Marked) })
}

// checkMarks refuses a mark in another form than the one: other verifiers would take
// one that is not critical for nothing at all.
func checkMarks(chains [][]*x509.Certificate) error {
	for _, ch := range chains {
		for _, c := range ch {
			if emergency.Marked(c) {
				if err := emergency.CheckMark(c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// sayEmergency tells operators that somebody came in by an emergency certificate.
func (p *Proxy) sayEmergency(ctx context.Context, c *conn) {
	if !c.adm.emergency {
		return
	}
	p.log.LogAttrs(ctx, slog.LevelWarn, "a connection was admitted by an emergency certificate",
		slog.String("grant", c.adm.grantID), slog.String("subject", c.adm.subject), slog.String("serial", c.adm.serial),
		slog.String("issuer", c.adm.issuer), slog.Time("not_after", c.adm.notAfter), slog.String("peer", c.peer))
}

// stale says whether this client must be refused for want of news.
func (p *Proxy) stale(a *admission) bool {
	return p.rev.stale() && (!a.emergency || p.cfg.emergency != emergencyAllowStale)
}
