package ca

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/hallpass/hallpass/grant"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxChain is more certificates than any chain of ours or of SPIRE has. Every
// further one is work that a stranger gives us before we know who they are.
const maxChain = 6

// VerifyIdentity returns whose identity a certificate chain proves at time now.
// chain has the leaf first, as a TLS peer shows it; roots are those of td. Every
// error wraps ErrUntrusted.
//
// It asks for what go-spiffe does not: the extended key usage of a client, the
// digitalSignature key usage, a SPIFFE ID of at most 2048 bytes with a path, in
// its one spelling, and the trust domain. Nothing of any other trust domain passes, the grants domain
// first of all: a grant certificate names a permission, not a caller.
func VerifyIdentity(chain, roots []*x509.Certificate, td spiffeid.TrustDomain, now time.Time) (spiffeid.ID, error) {
	if td.IsZero() || len(roots) == 0 || now.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("%w: no trust domain, no roots or no time to check against", ErrUntrusted)
	}
	if len(chain) == 0 || len(chain) > maxChain {
		return spiffeid.ID{}, fmt.Errorf("%w: a chain of %d certificates", ErrUntrusted, len(chain))
	}
	leaf := chain[0]
	if len(leaf.URIs) != 1 {
		return spiffeid.ID{}, fmt.Errorf("%w: %d URI names where one belongs", ErrUntrusted, len(leaf.URIs))
	}
	// go-spiffe bounds no length; an ID of a megabyte would be logged and stored
	// wherever this one goes.
	if n := len(leaf.URIs[0].String()); n > grant.MaxIDLength {
		return spiffeid.ID{}, fmt.Errorf("%w: a SPIFFE ID of %d bytes", ErrUntrusted, n)
	}
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if err := spelled(leaf, id.String()); err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if !id.MemberOf(td) || id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("%w: %s is not a member of %s", ErrUntrusted, id, td)
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return spiffeid.ID{}, fmt.Errorf("%w: the key of %s may not sign", ErrUntrusted, id)
	}
	bundle := x509bundle.FromX509Authorities(td, roots)
	_, chains, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now))
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if !slices.ContainsFunc(chains, forClients) {
		return spiffeid.ID{}, fmt.Errorf("%w: the certificate of %s is not for TLS clients", ErrUntrusted, id)
	}
	return id, nil
}

// spelled checks that the URI in a certificate's bytes is this one. net/url
// lower-cases a scheme and drops an empty query or fragment: two certificates
// whose names another verifier tells apart would be one caller here.
func spelled(leaf *x509.Certificate, uri string) error {
	var names []asn1.RawValue
	for _, ext := range leaf.Extensions {
		if !ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) { // id-ce-subjectAltName
			continue
		}
		if _, err := asn1.Unmarshal(ext.Value, &names); err != nil {
			return fmt.Errorf("subject alternative name: %w", err)
		}
	}
	const tagURI = 6 // RFC 5280 §4.2.1.6
	for _, n := range names {
		if n.Class == asn1.ClassContextSpecific && n.Tag == tagURI && string(n.Bytes) != uri {
			return fmt.Errorf("the name %q is another spelling of %s", n.Bytes, uri)
		}
	}
	return nil
}

// forClients reports whether a verified chain may authenticate a TLS client: the
// leaf says so, and no authority above it says otherwise.
func forClients(chain []*x509.Certificate) bool {
	for i, cert := range chain {
		none := len(cert.ExtKeyUsage) == 0 && len(cert.UnknownExtKeyUsage) == 0
		client := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) ||
			i > 0 && slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny)
		if !client && (i == 0 || !none) {
			return false
		}
	}
	return true
}
