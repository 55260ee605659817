package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// loneRoot is a root of some trust domain, outside of any cluster, with the key
// to sign whatever a test needs.
func loneRoot(t *testing.T, td string) (*x509.Certificate, func(template x509.Certificate, keys ...crypto.PublicKey) *x509.Certificate) {
	t.Helper()
	key := got(GenerateKey())(t)
	uri := got(url.Parse("spiffe://" + td))(t)
	template := rootProfile(td+" root", uri, validity{testNow().Add(-time.Hour), testNow().Add(time.Hour)})
	root := got(x509.ParseCertificate(got(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)))(t)
	pub := got(GenerateKey())(t).Public()
	return root, func(template x509.Certificate, keys ...crypto.PublicKey) *x509.Certificate {
		t.Helper()
		return forge(t, template, append(keys, pub)[0], root, key)
	}
}

func personTemplate(t *testing.T, uris ...string) x509.Certificate {
	t.Helper()
	c := x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, uri := range uris {
		c.URIs = append(c.URIs, got(url.Parse(uri))(t))
	}
	return c
}

// spelt is a person's certificate with these bytes for a URI name.
func spelt(t *testing.T, uri string) x509.Certificate {
	t.Helper()
	c := personTemplate(t)
	name := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}
	san := got(asn1.Marshal([]asn1.RawValue{name}))(t)
	c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}
	return c
}

func TestVerifyIdentity(t *testing.T) {
	root, sign := loneRoot(t, "acme.test")
	otherRoot, otherSign := loneRoot(t, "acme.test")
	const alice = "spiffe://acme.test/user/alice"
	with := func(change func(*x509.Certificate)) *x509.Certificate {
		c := personTemplate(t, alice)
		change(&c)
		return sign(c)
	}
	roots := []*x509.Certificate{root}
	id := got(VerifyIdentity([]*x509.Certificate{sign(personTemplate(t, alice))}, roots, testTD(), testNow()))(t)
	if id.String() != alice {
		t.Fatalf("it is %s", id)
	}
	both := []*x509.Certificate{otherRoot, root}
	got(VerifyIdentity([]*x509.Certificate{sign(personTemplate(t, alice))}, both, testTD(), testNow()))(t)
	got(VerifyIdentity([]*x509.Certificate{sign(spelt(t, alice))}, roots, testTD(), testNow()))(t)

	long := personTemplate(t, "spiffe://acme.test/"+strings.Repeat("a", 2048))
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		roots []*x509.Certificate
		td    spiffeid.TrustDomain
		at    time.Time
	}{
		"no certificate":          {},
		"too many certificates":   {chain: []*x509.Certificate{sign(personTemplate(t, alice)), root, root, root, root, root, root}},
		"another root":            {chain: []*x509.Certificate{otherSign(personTemplate(t, alice))}},
		"no roots":                {chain: []*x509.Certificate{sign(personTemplate(t, alice))}, roots: []*x509.Certificate{}},
		"expired":                 {chain: []*x509.Certificate{sign(personTemplate(t, alice))}, at: testNow().Add(time.Hour + time.Second)},
		"not yet valid":           {chain: []*x509.Certificate{sign(personTemplate(t, alice))}, at: testNow().Add(-2 * time.Minute)},
		"no trust domain":         {chain: []*x509.Certificate{sign(personTemplate(t, alice))}, td: spiffeid.TrustDomain{}},
		"another trust domain":    {chain: []*x509.Certificate{sign(personTemplate(t, "spiffe://other.test/user/alice"))}},
		"the grants domain":       {chain: []*x509.Certificate{sign(personTemplate(t, "spiffe://grants.acme.test/user/alice"))}},
		"a subdomain":             {chain: []*x509.Certificate{sign(personTemplate(t, "spiffe://x.acme.test/user/alice"))}},
		"the trust domain itself": {chain: []*x509.Certificate{sign(personTemplate(t, "spiffe://acme.test"))}},
		"no URI":                  {chain: []*x509.Certificate{sign(personTemplate(t))}},
		"two URIs":                {chain: []*x509.Certificate{sign(personTemplate(t, alice, "spiffe://acme.test/user/bob"))}},
		"two kinds of URI":        {chain: []*x509.Certificate{sign(personTemplate(t, alice, "https://acme.test/"))}},
		"no SPIFFE ID":            {chain: []*x509.Certificate{sign(personTemplate(t, "https://acme.test/user/alice"))}},
		"over-long":               {chain: []*x509.Certificate{sign(long)}},
		"upper-case scheme":       {chain: []*x509.Certificate{sign(spelt(t, "SPIFFE://acme.test/user/alice"))}},
		"upper-case domain":       {chain: []*x509.Certificate{sign(spelt(t, "spiffe://ACME.test/user/alice"))}},
		"empty query":             {chain: []*x509.Certificate{sign(spelt(t, alice+"?"))}},
		"empty fragment":          {chain: []*x509.Certificate{sign(spelt(t, alice+"#"))}},
		"an escape":               {chain: []*x509.Certificate{sign(spelt(t, "spiffe://acme.test/user/%61lice"))}},
		"a server's": {chain: []*x509.Certificate{with(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		})}},
		"any usage": {chain: []*x509.Certificate{with(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		})}},
		"no usage":            {chain: []*x509.Certificate{with(func(c *x509.Certificate) { c.ExtKeyUsage = nil })}},
		"no key usage":        {chain: []*x509.Certificate{with(func(c *x509.Certificate) { c.KeyUsage = 0 })}},
		"an authority":        {chain: []*x509.Certificate{with(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })}},
		"an authority's uses": {chain: []*x509.Certificate{with(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign })}},
		"the root itself":     {chain: []*x509.Certificate{root}},
	} {
		if c.roots == nil {
			c.roots = roots
		}
		if name != "no trust domain" {
			c.td = testTD()
		}
		if c.at.IsZero() {
			c.at = testNow()
		}
		id, err := VerifyIdentity(c.chain, c.roots, c.td, c.at)
		if !errors.Is(err, ErrUntrusted) || !id.IsZero() {
			t.Errorf("%s: %q, error %v", name, id, err)
		}
	}
	if _, err := VerifyIdentity([]*x509.Certificate{sign(personTemplate(t, alice))}, roots, testTD(), time.Time{}); !errors.Is(err, ErrUntrusted) {
		t.Errorf("no time: %v", err)
	}
}

// A grant certificate of the same cluster says who it is for, and that is not
// who its bearer is.
func TestVerifyIdentityRefusesGrants(t *testing.T) {
	f := newFixture(t, 1)
	ticket, err := f.node(0).Grants.PrepareGrant(f.grantSpec(got(GenerateKey())(t).Public()))
	chain := signed(t, ticket, err)
	m := f.manifest
	for what, roots := range map[string][]*x509.Certificate{
		"identity roots": m.IdentityRoots,
		"grant roots":    m.GrantRoots,
		"pooled roots":   {m.IdentityRoots[0], m.GrantRoots[0]},
	} {
		if _, err := VerifyIdentity(chain, roots, m.TrustDomain, testNow()); !errors.Is(err, ErrUntrusted) {
			t.Errorf("under the %s: %v", what, err)
		}
	}
}

// An authority above the leaf may narrow what the chain is for.
func TestVerifyIdentityAsksTheWholeChain(t *testing.T) {
	root, sign := loneRoot(t, "acme.test")
	middleKey := got(GenerateKey())(t)
	for _, c := range []struct {
		usage []x509.ExtKeyUsage
		ok    bool
	}{
		{nil, true},
		{[]x509.ExtKeyUsage{x509.ExtKeyUsageAny}, true},
		{[]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, true},
		{[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, false},
	} {
		template := x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: c.usage}
		template.Subject.CommonName = "middle"
		middle := sign(template, middleKey.Public())
		leaf := forge(t, personTemplate(t, "spiffe://acme.test/user/alice"), got(GenerateKey())(t).Public(), middle, middleKey)
		_, err := VerifyIdentity([]*x509.Certificate{leaf, middle}, []*x509.Certificate{root}, testTD(), testNow())
		if (err == nil) != c.ok {
			t.Errorf("an authority for %v: %v", c.usage, err)
		}
	}
}
