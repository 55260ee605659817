package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// authority is a root or an issuer.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// pki is two roots, never pooled, and an issuer under each.
type pki struct {
	t                     testing.TB
	idRoot, grantRoot     *authority
	idIssuer, grantIssuer *authority
}

func newPKI(t testing.TB) *pki {
	p := &pki{t: t}
	p.idRoot = p.authority("identity root", nil)
	p.grantRoot = p.authority("grants root", nil)
	p.idIssuer = p.authority("identity issuer", p.idRoot)
	p.grantIssuer = p.authority("grants issuer", p.grantRoot)
	return p
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}

func (p *pki) authority(name string, parent *authority) *authority {
	return p.authorityUntil(name, parent, time.Now().Add(24*time.Hour))
}

func (p *pki) authorityUntil(name string, parent *authority, until time.Time) *authority {
	p.t.Helper()
	a := &authority{key: newKey(p.t)}
	tmpl := &x509.Certificate{
		SerialNumber: serial(p.t), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	signer := a
	signCert := tmpl
	if parent != nil {
		signer, signCert = parent, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, signCert, a.key.Public(), signer.key)
	if err != nil {
		p.t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		p.t.Fatal(err)
	}
	return a
}

// leafSpec is a certificate to be made; zero fields get sensible values.
type leafSpec struct {
	uris      []string
	dns       []string
	ips       []net.IP
	notBefore time.Time
	notAfter  time.Time
	eku       []x509.ExtKeyUsage
	issuer    *authority
	rawSAN    []byte // instead of uris and dns
}

func (p *pki) mint(s leafSpec) tls.Certificate {
	p.t.Helper()
	key := newKey(p.t)
	if s.notBefore.IsZero() {
		s.notBefore = time.Now().Add(-10 * time.Second)
	}
	if s.notAfter.IsZero() {
		s.notAfter = time.Now().Add(time.Hour)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(p.t), NotBefore: s.notBefore, NotAfter: s.notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: s.eku, BasicConstraintsValid: true,
		DNSNames: s.dns, IPAddresses: s.ips,
	}
	for _, u := range s.uris {
		parsed, err := url.Parse(u)
		if err != nil {
			p.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, parsed)
	}
	if s.rawSAN != nil {
		tmpl.ExtraExtensions = []pkix.Extension{{Id: oidSubjectAltName(), Critical: true, Value: s.rawSAN}}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, s.issuer.cert, key.Public(), s.issuer.key)
	if err != nil {
		p.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, s.issuer.cert.Raw}, PrivateKey: key, Leaf: leaf}
}

// identity mints an identity's certificate.
func (p *pki) identity(id string) tls.Certificate {
	return p.mint(leafSpec{uris: []string{id}, issuer: p.idIssuer, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}})
}

func newGrantID(t testing.TB) string {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// grantURI is the SPIFFE ID of a grant to alice.
func grantURI(t testing.TB, service, id string, perms ...string) string {
	t.Helper()
	scope, err := grant.ParseScope(service, perms)
	if err != nil {
		t.Fatal(err)
	}
	g, err := grant.NewID(spiffeid.RequireTrustDomainFromString(testGrantTD), scope, spiffeid.RequireFromString(alice), id)
	if err != nil {
		t.Fatal(err)
	}
	return g.String()
}

// grant mints a grant certificate for payments.
func (p *pki) grant(ttl time.Duration, perms ...string) tls.Certificate {
	return p.grantWithID(newGrantID(p.t), ttl, perms...)
}

func (p *pki) grantWithID(id string, ttl time.Duration, perms ...string) tls.Certificate {
	return p.mint(leafSpec{
		uris: []string{grantURI(p.t, "payments", id, perms...)}, issuer: p.grantIssuer,
		eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, notAfter: time.Now().Add(ttl),
	})
}

func pemCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func pemKey(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func pemChain(c tls.Certificate) []byte {
	var out []byte
	for _, der := range c.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// writePair writes a certificate chain and its key.
func writePair(t testing.TB, dir string, c tls.Certificate) {
	t.Helper()
	writeFile(t, filepath.Join(dir, "cert.pem"), pemChain(c))
	writeFile(t, filepath.Join(dir, "key.pem"), pemKey(t, c.PrivateKey))
}

// serviceSVID mints the proxy's own certificate.
func (p *pki) serviceSVID(name string) tls.Certificate {
	return p.mint(leafSpec{
		uris: []string{"spiffe://acme.test/service/" + name}, dns: []string{"localhost"}, ips: []net.IP{net.IPv4(127, 0, 0, 1)},
		issuer: p.idIssuer, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

func hexSum(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
