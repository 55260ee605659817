package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"time"

	"go.step.sm/crypto/x509util"

	"github.com/hallpass/hallpass/emergency"
)

const (
	// rootLife is how long an offline root lives.
	rootLife = 10 * 365 * 24 * time.Hour
	// IssuerLife is how long a node's issuers and its API certificate live.
	IssuerLife = 90 * 24 * time.Hour
	// KMSIssuerLife is the same with roots in a KMS, where a signer renews them.
	KMSIssuerLife = 7 * 24 * time.Hour
	// MaxIdentityTTL is the longest life of an identity.
	MaxIdentityTTL = 30 * 24 * time.Hour
	// offlineBackdate covers the clocks that an offline root's certificates meet.
	offlineBackdate = time.Minute

	// serialSize is 17 bytes: 134 random bits below two fixed ones. The first
	// byte is 0x40 to 0x7f, so the number is positive, never needs a padding
	// byte, and has one spelling in hex with or without leading zeros.
	serialSize = 17
)

// newSerial returns a random serial number; see serialSize.
func newSerial() *big.Int {
	b := make([]byte, serialSize)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b)
}

// SerialText is how records and requests write a serial number: lower-case hex.
func SerialText(serial *big.Int) string { return serial.Text(16) }

// A validity is the pair of times in a certificate, in whole seconds UTC.
type validity struct{ notBefore, notAfter time.Time }

// rootProfile is a self-signed root of one trust domain. It may sign node
// issuers, which in turn may sign leaves and no further authority.
func rootProfile(name string, td *url.URL, v validity) *x509.Certificate {
	c := x509util.Certificate{
		Subject:          x509util.Subject{Organization: []string{organization}, CommonName: name},
		SerialNumber:     x509util.SerialNumber{Int: newSerial()},
		URIs:             []*url.URL{td},
		KeyUsage:         x509util.KeyUsage(x509.KeyUsageCertSign | x509.KeyUsageCRLSign),
		BasicConstraints: &x509util.BasicConstraints{IsCA: true, MaxPathLen: 1},
		NotBefore:        v.notBefore,
		NotAfter:         v.notAfter,
	}
	return c.GetCertificate()
}

// issuerProfile is a node's issuer: path length 0, so that it makes leaves
// only, within the given name constraints.
func issuerProfile(name string, td *url.URL, limits x509util.NameConstraints, pub crypto.PublicKey, v validity) *x509.Certificate {
	limits.Critical = true
	c := x509util.Certificate{
		Subject:          x509util.Subject{Organization: []string{organization}, CommonName: name},
		SerialNumber:     x509util.SerialNumber{Int: newSerial()},
		URIs:             []*url.URL{td},
		KeyUsage:         x509util.KeyUsage(x509.KeyUsageCertSign | x509.KeyUsageCRLSign),
		BasicConstraints: &x509util.BasicConstraints{IsCA: true, MaxPathLen: 0},
		NameConstraints:  &limits,
		PublicKey:        pub,
		NotBefore:        v.notBefore,
		NotAfter:         v.notAfter,
	}
	return c.GetCertificate()
}

// grantLimits are the name constraints of a grant issuer: URIs of exactly the
// grants domain, and no other kind of name. A stolen grant issuer can therefore
// not make a certificate that any verifier takes for a member of the identity
// domain or for a TLS server.
//
// RFC 5280 reads the constraint "grants.acme.test" as that one host, but many
// verifiers read it as every host below it too; the excluded ".grants.acme.test"
// makes both readings the same.
func grantLimits(td string) x509util.NameConstraints {
	return x509util.NameConstraints{
		PermittedURIDomains:    []string{td},
		ExcludedURIDomains:     []string{"." + td},
		ExcludedDNSDomains:     []string{""},
		ExcludedEmailAddresses: []string{""},
		ExcludedIPRanges:       allIPs(),
	}
}

// identityLimits are the name constraints of an identity issuer: the DNS names
// and addresses that service identities may carry. There is no URI constraint,
// because rustls refuses every chain that has one; verifiers of identities
// check the URI themselves (VerifyIdentity).
func identityLimits(domains []string, ranges []*net.IPNet) x509util.NameConstraints {
	limits := x509util.NameConstraints{PermittedDNSDomains: domains, PermittedIPRanges: ranges}
	// An absent list permits everything, so an empty one becomes an exclusion.
	if len(domains) == 0 {
		limits.ExcludedDNSDomains = []string{""}
	}
	if len(ranges) == 0 {
		limits.ExcludedIPRanges = allIPs()
	}
	return limits
}

func allIPs() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}

// grantProfile is a grant certificate: its URI says everything, and it can only
// be shown, never served with. strict sets both extended key usages, as the SVID
// document asks of every leaf.
func grantProfile(id *url.URL, pub crypto.PublicKey, v validity, strict bool) *x509.Certificate {
	usage := x509util.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if strict {
		usage = x509util.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return leafProfile(id, pub, v, usage).GetCertificate()
}

// identityProfile is an identity. The DNS names and addresses are those that
// clients dial, so that a plain TLS client accepts a service by name.
func identityProfile(id *url.URL, names []string, ips []net.IP, pub crypto.PublicKey, v validity) *x509.Certificate {
	c := leafProfile(id, pub, v, x509util.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth})
	c.DNSNames = names
	c.IPAddresses = ips
	return c.GetCertificate()
}

// leafProfile is what all leaves share. The subject stays empty, which makes
// crypto/x509 mark the SAN critical: there is one name and no verifier may look
// past it.
func leafProfile(id *url.URL, pub crypto.PublicKey, v validity, usage x509util.ExtKeyUsage) *x509util.Certificate {
	return &x509util.Certificate{
		SerialNumber: x509util.SerialNumber{Int: newSerial()},
		URIs:         []*url.URL{id},
		KeyUsage:     x509util.KeyUsage(x509.KeyUsageDigitalSignature),
		ExtKeyUsage:  usage,
		PublicKey:    pub,
		NotBefore:    v.notBefore,
		NotAfter:     v.notAfter,
	}
}

// emergencyProfile is an emergency issuer: a grant issuer that no node has, with the
// mark that sets it apart for programs, and a name that does for people.
func emergencyProfile(td, name string, uri *url.URL, pub crypto.PublicKey, v validity) *x509.Certificate {
	c := issuerProfile(emergency.NamePrefix(td)+name, uri, grantLimits(td), pub, v)
	c.Subject.OrganizationalUnit = []string{emergency.Unit}
	c.ExtraExtensions = append(c.ExtraExtensions, emergency.Mark())
	return c
}
