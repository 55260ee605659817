package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestLintBeforeSigning bends the profile as a careless change would: nothing
// is prepared, so that nothing is committed or signed.
func TestLintBeforeSigning(t *testing.T) {
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	v := validity{now, now.Add(time.Hour)}
	td := &url.URL{Scheme: "spiffe", Host: "grants.acme.test"}
	root := rootProfile("root", td, v)
	root.PublicKey = key.Public()
	root.RawSubject, err = asn1.Marshal(root.Subject.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	root.SubjectKeyId = []byte("a key identifier....")
	a, err := newAuthority(root, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := func() *x509.Certificate {
		other, err := GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		return grantProfile(&url.URL{Scheme: "spiffe", Host: td.Host, Path: "/v1/payments"}, other.Public(), v, false)
	}
	if _, err := a.prepare(leaf()); err != nil {
		t.Fatalf("the profile as it is: %v", err)
	}
	for name, bend := range map[string]func(*x509.Certificate){
		"signs certificates without being an authority": func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"a serial of 21 bytes":                          func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(0x40), 160) },
		"a path length without being an authority":      func(c *x509.Certificate) { c.BasicConstraintsValid, c.MaxPathLen = true, 3 },
		"no name at all":                                func(c *x509.Certificate) { c.URIs = nil },
		"a URI without a scheme":                        func(c *x509.Certificate) { c.URIs = []*url.URL{{Path: "payments"}} },
		"an empty DNS name":                             func(c *x509.Certificate) { c.DNSNames = []string{" "} },
		"one extension twice": func(c *x509.Certificate) {
			id := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 55555, 1}, Value: []byte{5, 0}}
			c.ExtraExtensions = []pkix.Extension{id, id}
		},
	} {
		c := leaf()
		bend(c)
		if ticket, err := a.prepare(c); ticket != nil || err == nil {
			t.Errorf("%s: prepared", name)
		} else if !errors.Is(err, ErrProfile) {
			t.Logf("%s: refused before the lint: %v", name, err)
		}
	}
}

// TestLintTakesWhatSPIFFEAllows: a trust domain is no DNS name, and a service is
// dialled by names that the public web does not have.
func TestLintTakesWhatSPIFFEAllows(t *testing.T) {
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	v := validity{now, now.Add(10 * time.Second)}
	for _, host := range []string{"acme.test", "acme", "acme_corp.prod", "a-.-b"} {
		td := &url.URL{Scheme: "spiffe", Host: host}
		root := rootProfile("root", td, validity{now, now.Add(rootLife)})
		root.PublicKey, root.SubjectKeyId = key.Public(), []byte("a key identifier....")
		if root.RawSubject, err = asn1.Marshal(root.Subject.ToRDNSequence()); err != nil {
			t.Fatal(err)
		}
		a, err := newAuthority(root, key)
		if err != nil {
			t.Fatal(err)
		}
		id := &url.URL{Scheme: "spiffe", Host: host, Path: "/" + strings.Repeat("x", 1700)}
		for _, names := range [][]string{nil, {"payments"}, {"localhost", "payments.default.svc.cluster.local"}, {"*.acme.test"}} {
			c := identityProfile(id, names, []net.IP{net.IPv4(10, 0, 0, 1), net.IPv6loopback}, other.Public(), v)
			if _, err := a.prepare(c); err != nil {
				t.Errorf("identity in %q of %q: %v", host, names, err)
			}
		}
		for _, strict := range []bool{true, false} {
			if _, err := a.prepare(grantProfile(id, other.Public(), v, strict)); err != nil {
				t.Errorf("grant in %q: %v", host, err)
			}
		}
		if _, err := a.prepare(issuerProfile("an issuer", td, grantLimits(host), other.Public(), v)); err != nil {
			t.Errorf("grants issuer in %q: %v", host, err)
		}
		for _, domains := range [][]string{nil, {"acme.test"}, {"payments"}} {
			if _, err := a.prepare(issuerProfile("an issuer", td, identityLimits(domains, nil), other.Public(), v)); err != nil {
				t.Errorf("identity issuer in %q of %q: %v", host, domains, err)
			}
		}
	}
}

// BenchmarkLint is what it costs a mint.
func BenchmarkLint(b *testing.B) {
	key, _ := GenerateKey()
	other, _ := GenerateKey()
	now := time.Now().UTC().Truncate(time.Second)
	v := validity{now, now.Add(time.Hour)}
	c := grantProfile(&url.URL{Scheme: "spiffe", Host: "grants.acme.test", Path: "/v1/payments"}, other.Public(), v, false)
	root := rootProfile("root", &url.URL{Scheme: "spiffe", Host: "grants.acme.test"}, v)
	root.RawSubject, _ = asn1.Marshal(root.Subject.ToRDNSequence())
	root.PublicKey, root.SubjectKeyId = key.Public(), []byte("a key identifier....")
	a, err := newAuthority(root, key)
	if err != nil {
		b.Fatal(err)
	}
	ticket, err := a.prepare(c)
	if err != nil {
		b.Fatal(err)
	}
	chain, err := ticket.Sign(ticket.Record())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := a.linter.check(chain[0].Raw); err != nil {
			b.Fatal(err)
		}
	}
}
