package proxy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// Why a handshake was refused: the reason of its access record and metric.
const (
	reasonNoCertificate   = "no_certificate"
	reasonNames           = "bad_names"
	reasonTooLong         = "name_too_long"
	reasonTrustDomain     = "wrong_trust_domain"
	reasonNotYetValid     = "not_yet_valid"
	reasonExpired         = "expired"
	reasonUntrusted       = "untrusted"
	reasonKeyUsage        = "wrong_key_usage"
	reasonScope           = "malformed_scope"
	reasonWrongService    = "wrong_service"
	reasonRevoked         = "revoked"
	reasonIssuerDenied    = "issuer_denied"
	reasonEpochEnded      = "epoch_ended"
	reasonEmergency       = "emergency_not_allowed"
	reasonEmergencyLimits = "emergency_limits"
	reasonStale           = "revocation_stale"
	reasonTLS             = "tls_error"
	reasonTLSVersion      = "tls_version"
	reasonNotTLS          = "not_tls"
	reasonProxyHeader     = "proxy_header"
	reasonTimeout         = "timeout"
	reasonAborted         = "aborted"
	reasonLimit           = "too_many_connections"
	reasonLogUnavailable  = "access_log_unavailable"
	reasonShutdown        = "shutdown"
	reasonRootRemoved     = "root_removed"
	reasonNoGrant         = "no_grant"
	reasonBodyTooLarge    = "body_too_large"
	reasonOutsideScope    = "outside_scope"
	reasonUpstream        = "upstream_unreachable"
	reasonUpstreamBroke   = "upstream_broke_off"
	reasonClientGone      = "client_gone"
	reasonHandlerPanicked = "internal_error"

	// Of a renewal in band.
	reasonMalformed  = "malformed_renewal"
	reasonOtherGrant = "another_grant"
	reasonNotLater   = "ends_sooner"
	reasonProof      = "bad_proof"
	reasonTooOften   = "too_often"

	reasonNotAllowed  = "not_allowed"        // what a postgres client asked for at the start
	reasonLogin       = "upstream_login"     // the database did not let the proxy in
	reasonRole        = "role_too_powerful"  // a postgres role that could become another
	reasonRoleChanged = "role_changed"       // a postgres session that became another
	reasonProtocol    = "protocol_violation" // no message of the protocol
	reasonWrongKey    = "wrong_cancel_key"   // no session has it
	reasonCancelOther = "cancel_of_another"  // a session's key, shown with another grant
	reasonPlainCancel = "cancel_without_tls" // and cancel: tls
	reasonCancels     = "too_many_cancels"   // or too many wrong keys
)

// refusal is an error with the reason it is recorded under.
type refusal struct {
	reason string
	err    error
}

func (r *refusal) Error() string { return r.reason + ": " + r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(reason, format string, args ...any) error {
	return &refusal{reason, fmt.Errorf(format, args...)}
}

// admission is what a client has proven in its handshake: a grant for this
// service, or an identity, which opens nothing by itself.
type admission struct {
	id       spiffeid.ID
	grant    grant.ID // zero for an identity
	subject  string
	grantID  string
	issuer   string // hex SHA-256 of the DER of the certificate that signed the leaf
	serial   string // hex
	notAfter time.Time
	chain    []*x509.Certificate // as presented

	emergency bool     // an emergency issuer signed it
	issuers   []string // of every way to a root

	checked atomic.Pointer[denials] // the newest list it was found absent from
}

func (a *admission) isGrant() bool { return a.grantID != "" }

// holder is what connections are counted by: the grant, else the subject, so
// that no one member of the organisation takes all there are.
func (a *admission) holder() string {
	if a.isGrant() {
		return a.grantID
	}
	return a.subject
}

// examine checks a presented chain against the two bundles, which are never
// pooled: the leaf's trust domain says which one of them counts, and a
// certificate of any other domain counts for nothing. The admission comes back
// with a refusal too, as soon as the chain is verified, so that its record can
// say whose certificate it was.
func examine(chain []*x509.Certificate, m *material, cfg *config, now time.Time) (*admission, error) {
	if len(chain) == 0 {
		return nil, refuse(reasonNoCertificate, "no certificate was presented")
	}
	leaf := chain[0]
	bundle, raw, err := bundleFor(leaf, m, cfg)
	if err != nil {
		return nil, err
	}
	switch {
	case now.Before(leaf.NotBefore):
		return nil, refuse(reasonNotYetValid, "valid from %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	case !now.Before(leaf.NotAfter):
		return nil, refuse(reasonExpired, "expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	presented := chain
	if bundle == m.grants {
		chain = understood(chain)
	}
	id, chains, err := m.chains.verify(chain, bundle, now)
	if err != nil {
		return nil, &refusal{verifyReason(err), err}
	}
	a := &admission{id: id, chain: presented, emergency: throughEmergency(chains), serial: hex.EncodeToString(leaf.SerialNumber.Bytes())}
	if id.String() != raw {
		return nil, refuse(reasonNames, "the name %q has a second spelling", raw)
	}
	a.trace(chains)
	if err := checkMarks(chains); err != nil {
		return a, &refusal{reasonUntrusted, err}
	}
	if m.denies(a.issuers) {
		return a, refuse(reasonIssuerDenied, "the issuer is out of use by the roots document in force")
	}
	// A server's certificate, stolen off a host, must not act as a client.
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return a, refuse(reasonKeyUsage, "extended key usage has no clientAuth")
	}
	if id.MemberOf(cfg.identityTD) {
		a.subject = raw
		return a, nil
	}
	g, err := grant.ParseID(raw, cfg.grantTD)
	if err != nil {
		return a, &refusal{reasonScope, err}
	}
	a.grant, a.grantID, a.subject = g, g.GrantID(), g.Subject().String()
	if service := g.Scope().Service(); service != cfg.service {
		return a, refuse(reasonWrongService, "the grant is for %s", service)
	}
	return a, a.judgeEmergency(leaf, cfg)
}

// bundleFor reads the leaf's one name and says which roots may vouch for it.
func bundleFor(leaf *x509.Certificate, m *material, cfg *config) (*x509bundle.Bundle, string, error) {
	names, err := readNames(leaf)
	if err != nil {
		return nil, "", &refusal{reasonNames, err}
	}
	if len(names.uris) != 1 {
		return nil, "", refuse(reasonNames, "certificate has %d URI names; an X509-SVID has exactly one", len(names.uris))
	}
	raw := names.uris[0]
	if len(raw) > grant.MaxIDLength {
		return nil, "", refuse(reasonTooLong, "the URI name has %d bytes; at most %d", len(raw), grant.MaxIDLength)
	}
	id, err := spiffeid.FromString(raw)
	if err != nil {
		return nil, "", &refusal{reasonNames, err}
	}
	switch id.TrustDomain() {
	case cfg.identityTD:
		return m.identity, raw, nil
	case cfg.grantTD:
		// A second name would be a second thing the certificate opens elsewhere.
		if names.others > 0 {
			return nil, "", refuse(reasonNames, "a grant certificate's only name is its scope")
		}
		return m.grants, raw, nil
	default:
		return nil, "", refuse(reasonTrustDomain, "trust domain %s", id.TrustDomain())
	}
}

// trace notes who signed the leaf, and the latest moment at which some chain
// to a root is valid as a whole: no connection outlives its issuer either.
func (a *admission) trace(chains [][]*x509.Certificate) {
	for _, ch := range chains {
		until := ch[0].NotAfter
		for _, c := range ch[1:] {
			if c.NotAfter.Before(until) {
				until = c.NotAfter
			}
		}
		if len(ch) > 1 {
			sum := sha256.Sum256(ch[1].Raw)
			a.issuers = append(a.issuers, hex.EncodeToString(sum[:]))
		}
		if until.After(a.notAfter) {
			a.notAfter = until
		}
	}
	if len(a.issuers) > 0 {
		a.issuer = a.issuers[0]
	}
}

func verifyReason(err error) string {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return reasonExpired
	}
	return reasonUntrusted
}
