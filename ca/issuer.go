package ca

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/hallpass/hallpass/grant"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxSkew bounds how far a certificate may be backdated. The state machine takes
// no more either.
const MaxSkew = time.Minute

// Role says what an Issuer may make.
type Role uint8

// The roles of an issuer. The zero Role is none.
const (
	RoleIdentity Role = iota + 1 // identities of the identity domain
	RoleGrants                   // grant certificates of the grants domain
)

// String returns "identity" or "grants".
func (r Role) String() string {
	switch r {
	case RoleIdentity:
		return "identity"
	case RoleGrants:
		return "grants"
	default:
		return "none"
	}
}

// Issuer is a node's issuer for one trust domain: a certificate signed by that
// domain's root, and a key that signs what was committed and nothing else. It is
// safe for concurrent use.
type Issuer struct {
	authority *authority
	role      Role
	td        spiffeid.TrustDomain
}

// ID returns the lower-case hex SHA-256 of the issuer's certificate (DER): how
// commits, feeds and records name it.
func (i *Issuer) ID() string { return i.authority.id }

// Certificate returns the issuer's certificate.
func (i *Issuer) Certificate() *x509.Certificate { return i.authority.cert }

// Role returns what the issuer may make.
func (i *Issuer) Role() Role { return i.role }

// GrantSpec asks for a grant certificate.
type GrantSpec struct {
	ID          grant.ID
	PublicKey   crypto.PublicKey
	Now         time.Time     // when it is minted
	TTL         time.Duration // how long the certificate may live from Now
	GrantExpiry time.Time     // when the grant ends; NotAfter never passes it
	Skew        time.Duration // how far NotBefore is backdated, at most MaxSkew
	StrictSVID  bool          // set both extended key usages, as the SVID document says
}

// PrepareGrant builds a grant certificate up to its signature. NotAfter is the
// earliest of Now + TTL, the grant's expiry and the issuer's NotAfter, in whole
// seconds rounded down; ErrExpired is returned when that is not after Now.
func (i *Issuer) PrepareGrant(spec GrantSpec) (*Ticket, error) {
	if i.role != RoleGrants {
		return nil, fmt.Errorf("%w: an issuer of the %s domain makes no grant certificates", ErrInvalid, i.role)
	}
	if spec.ID.IsZero() || spec.ID.SPIFFEID().TrustDomain() != i.td {
		return nil, fmt.Errorf("%w: %q is not a grant of %s", ErrInvalid, spec.ID, i.td)
	}
	if spec.GrantExpiry.IsZero() {
		return nil, fmt.Errorf("%w: a grant without an expiry", ErrInvalid)
	}
	if err := CheckPublicKey(spec.PublicKey); err != nil {
		return nil, err
	}
	v, err := i.validity(spec.Now, spec.TTL, spec.Skew, spec.GrantExpiry)
	if err != nil {
		return nil, err
	}
	return i.authority.prepare(grantProfile(spec.ID.SPIFFEID().URL(), spec.PublicKey, v, spec.StrictSVID))
}

// IdentitySpec asks for an identity.
type IdentitySpec struct {
	ID        spiffeid.ID
	DNSNames  []string // that clients of a service dial
	IPs       []net.IP // likewise
	PublicKey crypto.PublicKey
	Now       time.Time
	TTL       time.Duration // at most MaxIdentityTTL
	Skew      time.Duration // as in GrantSpec
}

// PrepareIdentity builds an identity up to its signature. NotAfter is the
// earlier of Now + TTL and the issuer's NotAfter. Names that the issuer's own
// constraints do not permit are refused here, before anything is committed that
// no verifier would accept.
func (i *Issuer) PrepareIdentity(spec IdentitySpec) (*Ticket, error) {
	if i.role != RoleIdentity {
		return nil, fmt.Errorf("%w: an issuer of the %s domain makes no identities", ErrInvalid, i.role)
	}
	template, err := spec.template(i.authority.cert, i.td)
	if err != nil {
		return nil, err
	}
	return i.authority.prepare(template)
}

// template checks the specification against the certificate that will sign it.
func (s IdentitySpec) template(issuer *x509.Certificate, td spiffeid.TrustDomain) (*x509.Certificate, error) {
	if !s.ID.MemberOf(td) || s.ID.Path() == "" {
		return nil, fmt.Errorf("%w: %q is not a member of %s", ErrInvalid, s.ID, td)
	}
	if len(s.ID.String()) > grant.MaxIDLength {
		return nil, fmt.Errorf("%w: an identity of more than %d bytes", ErrInvalid, grant.MaxIDLength)
	}
	if s.TTL > MaxIdentityTTL {
		return nil, fmt.Errorf("%w: an identity lives at most %s, not %s", ErrInvalid, MaxIdentityTTL, s.TTL)
	}
	if err := CheckPublicKey(s.PublicKey); err != nil {
		return nil, err
	}
	if err := checkNames(s.DNSNames, s.IPs); err != nil {
		return nil, err
	}
	if err := permitted(issuer, s.DNSNames, s.IPs); err != nil {
		return nil, err
	}
	v, err := clamp(issuer, s.Now, s.TTL, s.Skew, issuer.NotAfter)
	if err != nil {
		return nil, err
	}
	return identityProfile(s.ID.URL(), s.DNSNames, s.IPs, s.PublicKey, v), nil
}

func (i *Issuer) validity(now time.Time, ttl, skew time.Duration, end time.Time) (validity, error) {
	return clamp(i.authority.cert, now, ttl, skew, end)
}

// clamp returns the times of a certificate that issuer signs at now. Seconds
// are rounded down on both sides: up would outlive the grant.
func clamp(issuer *x509.Certificate, now time.Time, ttl, skew time.Duration, end time.Time) (validity, error) {
	if now.IsZero() || ttl <= 0 || skew < 0 || skew > MaxSkew {
		return validity{}, fmt.Errorf("%w: a certificate needs a time, a life above 0 and a skew of 0 to %s", ErrInvalid, MaxSkew)
	}
	notAfter := earliest(now.Add(ttl), end, issuer.NotAfter).UTC().Truncate(time.Second)
	if !notAfter.After(now) {
		return validity{}, fmt.Errorf("%w: at %s no certificate can end by %s", ErrExpired, now.UTC().Format(time.RFC3339), notAfter.Format(time.RFC3339))
	}
	notBefore := now.Add(-skew).UTC().Truncate(time.Second)
	if notBefore.Before(issuer.NotBefore) {
		notBefore = issuer.NotBefore.UTC()
	}
	if notBefore.After(now) {
		return validity{}, fmt.Errorf("%w: the issuer is not valid before %s", ErrInvalid, issuer.NotBefore.UTC().Format(time.RFC3339))
	}
	return validity{notBefore, notAfter}, nil
}

func earliest(first time.Time, rest ...time.Time) time.Time {
	for _, t := range rest {
		if t.Before(first) {
			first = t
		}
	}
	return first
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
