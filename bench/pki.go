package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// pki is the certificates that both sides of a comparison use: two roots, an
// issuer below the grants root, a service identity and a grant certificate.
type pki struct {
	dir    string
	client tls.Certificate // the grant certificate with its issuer
	roots  *x509.CertPool  // what the client trusts
}

const (
	identityDomain = "acme.test"
	grantDomain    = "grants.acme.test"
	benchService   = "payments"
	benchScopeID   = "spiffe://grants.acme.test/v1/payments/_can/grpc/bank.Ledger/Transfer/_and/http/GET/accounts/_rest/_and/tcp/_for/acme.test/user/alice/_id/0199f3a0-5c1e-7a3b-9c4d-2e5f60718293"
)

// newPKI makes the certificates and writes what the servers read into dir.
func newPKI(dir string) (*pki, error) {
	p := &pki{dir: dir, roots: x509.NewCertPool()}
	identityRoot, err := newAuthority(nil, "spiffe://"+identityDomain, 1)
	if err != nil {
		return nil, err
	}
	grantRoot, err := newAuthority(nil, "spiffe://"+grantDomain, 1)
	if err != nil {
		return nil, err
	}
	issuer, err := newAuthority(grantRoot, "", 0)
	if err != nil {
		return nil, err
	}
	service, err := identityRoot.leaf("spiffe://"+identityDomain+"/service/"+benchService, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	if p.client, err = issuer.leaf(benchScopeID, x509.ExtKeyUsageClientAuth); err != nil {
		return nil, err
	}
	p.client.Certificate = append(p.client.Certificate, issuer.cert.Raw)
	p.roots.AddCert(identityRoot.cert)
	key, err := x509.MarshalPKCS8PrivateKey(service.PrivateKey)
	if err != nil {
		return nil, err
	}
	for name, block := range map[string]*pem.Block{
		"identity-bundle.pem": {Type: "CERTIFICATE", Bytes: identityRoot.cert.Raw},
		"grants-bundle.pem":   {Type: "CERTIFICATE", Bytes: grantRoot.cert.Raw},
		"cert.pem":            {Type: "CERTIFICATE", Bytes: service.Certificate[0]},
		"key.pem":             {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(p.path(name), pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

// clientTLS is what the load generator dials with. Sessions are never resumed:
// neither side offers tickets, so each connection is a whole handshake.
func (p *pki) clientTLS(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		RootCAs:      p.roots,
		ServerName:   "localhost",
		Certificates: []tls.Certificate{p.client},
		NextProtos:   protocols,
	}
}

// joined is the service's certificate and key in one file, as HAProxy wants them.
func (p *pki) joined() (string, error) {
	cert, err := os.ReadFile(p.path("cert.pem"))
	if err != nil {
		return "", err
	}
	key, err := os.ReadFile(p.path("key.pem"))
	if err != nil {
		return "", err
	}
	return p.path("pair.pem"), os.WriteFile(p.path("pair.pem"), append(cert, key...), 0o600)
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(parent *authority, uri string, pathLen int) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "bench authority"},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            pathLen,
		MaxPathLenZero:        pathLen == 0,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent != nil {
		template.Subject.CommonName = "bench issuer"
	}
	signer := parent
	if parent == nil {
		signer = &authority{cert: template, key: key}
	}
	cert, err := signer.sign(template, uri, key)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key}, nil
}

func (a *authority) leaf(uri string, usages ...x509.ExtKeyUsage) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usages,
	}
	if usages[0] == x509.ExtKeyUsageServerAuth {
		template.DNSNames = []string{"localhost"}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	cert, err := a.sign(template, uri, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

func (a *authority) sign(template *x509.Certificate, uri string, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = time.Now().Add(time.Hour)
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			return nil, err
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("bench certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
