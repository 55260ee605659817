package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// errNoCertificate is returned when there is no certificate to dial with.
var errNoCertificate = errors.New("no valid certificate")

// credential is a grant's certificate and what it says.
type credential struct {
	cert     *tls.Certificate
	grant    grant.ID // zero for an identity
	notAfter time.Time
}

// is says whether cert is the credential's, if perhaps in another place.
func (c *credential) is(cert *tls.Certificate) bool {
	return c.cert == cert || bytes.Equal(c.cert.Certificate[0], cert.Certificate[0])
}

// credential is the certificate of now, the same value while it stays the same.
// One that is no grant for this service is not shown: it would tell the proxy of
// one service what its holder may do at another.
func (ln *lane) credential(ctx context.Context) (*credential, error) {
	cert, err := ln.source.Certificate(ctx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNoCertificate, err)
	case cert == nil || len(cert.Certificate) == 0:
		return nil, fmt.Errorf("%w: the source gave none", errNoCertificate)
	}
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.cred != nil && ln.cred.is(cert) {
		return ln.cred, nil
	}
	if ln.identity {
		leaf, err := leafOf(cert)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoCertificate, err)
		}
		ln.cred = &credential{cert: cert, notAfter: leaf.NotAfter}
		return ln.cred, nil
	}
	id, notAfter, err := readGrant(cert, ln.c.service)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCertificate, err)
	}
	ln.cred = &credential{cert: cert, grant: id, notAfter: notAfter}
	return ln.cred, nil
}

func leafOf(cert *tls.Certificate) (*x509.Certificate, error) {
	if cert.Leaf != nil {
		return cert.Leaf, nil
	}
	return x509.ParseCertificate(cert.Certificate[0])
}

// readGrant reads what a certificate opens, which must be at service, and until when. Whether it
// is genuine is for the proxy to find out.
func readGrant(cert *tls.Certificate, service string) (grant.ID, time.Time, error) {
	leaf, err := leafOf(cert)
	if err != nil {
		return grant.ID{}, time.Time{}, err
	}
	names, err := readNames(leaf)
	if err != nil {
		return grant.ID{}, time.Time{}, err
	}
	if len(names.uris) != 1 {
		return grant.ID{}, time.Time{}, fmt.Errorf("it has %d URI names", len(names.uris))
	}
	name, err := spiffeid.FromString(names.uris[0])
	if err != nil {
		return grant.ID{}, time.Time{}, err
	}
	id, err := grant.ParseID(names.uris[0], name.TrustDomain())
	if err != nil {
		return grant.ID{}, time.Time{}, fmt.Errorf("it is no grant's: %w", err)
	}
	if got := id.Scope().Service(); got != service {
		return grant.ID{}, time.Time{}, fmt.Errorf("it is a grant's for %s, not for %s", got, service)
	}
	return id, leaf.NotAfter, nil
}
