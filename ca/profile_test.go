package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// extensions returns a certificate's extensions as "OID" or "OID critical".
func extensions(cert *x509.Certificate) []string {
	var list []string
	for _, e := range cert.Extensions {
		text := e.Id.String()
		if e.Critical {
			text += " critical"
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return list
}

const (
	oidKeyUsage        = "2.5.29.15"
	oidEKU             = "2.5.29.37"
	oidSubjectKey      = "2.5.29.14"
	oidAuthorityKey    = "2.5.29.35"
	oidSAN             = "2.5.29.17"
	oidBasic           = "2.5.29.19"
	oidNameConstraints = "2.5.29.30"
)

func extension(t *testing.T, cert *x509.Certificate, oid string) []byte {
	t.Helper()
	for _, e := range cert.Extensions {
		if e.Id.String() == oid {
			return e.Value
		}
	}
	t.Fatalf("no extension %s", oid)
	return nil
}

// emptyName is the DER of a subject without anything.
func emptyName() []byte { return []byte{0x30, 0x00} }

// uriSAN is the DER of a SAN with one URI and nothing else.
func uriSAN(t *testing.T, uri string) []byte {
	t.Helper()
	return got(asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}}))(t)
}

func TestGrantProfile(t *testing.T) {
	f := newFixture(t, 1)
	issuer := f.node(0).Grants
	spec := f.grantSpec(got(GenerateKey())(t).Public())
	for _, strict := range []bool{false, true} {
		spec.StrictSVID = strict
		ticket, err := issuer.PrepareGrant(spec)
		chain := signed(t, ticket, err)
		leaf := chain[0]
		want := []string{oidSubjectKey, oidKeyUsage + " critical", oidSAN + " critical", oidAuthorityKey, oidEKU}
		slices.Sort(want)
		if diff := cmp.Diff(want, extensions(leaf)); diff != "" {
			t.Errorf("extensions (-want +got):\n%s", diff)
		}
		if !bytes.Equal(leaf.RawSubject, emptyName()) {
			t.Errorf("subject %x is not empty", leaf.RawSubject)
		}
		if san := extension(t, leaf, oidSAN); !bytes.Equal(san, uriSAN(t, spec.ID.String())) {
			t.Errorf("SAN %q is not the one URI %s", san, spec.ID)
		}
		// BIT STRING, 7 unused bits, digitalSignature.
		if usage := extension(t, leaf, oidKeyUsage); !bytes.Equal(usage, []byte{0x03, 0x02, 0x07, 0x80}) {
			t.Errorf("key usage %x is not digitalSignature", usage)
		}
		usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		if strict {
			usages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		}
		if !slices.Equal(leaf.ExtKeyUsage, usages) || leaf.UnknownExtKeyUsage != nil {
			t.Errorf("extended key usages %v, want %v", leaf.ExtKeyUsage, usages)
		}
		if leaf.Version != 3 || leaf.IsCA || leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 {
			t.Errorf("version %d, CA %v, signed with %v", leaf.Version, leaf.IsCA, leaf.SignatureAlgorithm)
		}
		if n := leaf.SerialNumber.BitLen(); n < 128 || leaf.SerialNumber.Sign() <= 0 || len(SerialText(leaf.SerialNumber)) != 2*serialSize {
			t.Errorf("serial %x has %d bits", leaf.SerialNumber, n)
		}
		if !leaf.NotBefore.Equal(testNow().Add(-spec.Skew)) || !leaf.NotAfter.Equal(testNow().Add(spec.TTL)) {
			t.Errorf("valid %s to %s", leaf.NotBefore, leaf.NotAfter)
		}
		if !bytes.Equal(leaf.AuthorityKeyId, issuer.Certificate().SubjectKeyId) || !bytes.Equal(leaf.RawIssuer, issuer.Certificate().RawSubject) {
			t.Error("it does not name its issuer")
		}
		if len(chain) != 2 || !chain[1].Equal(issuer.Certificate()) {
			t.Errorf("a chain of %d", len(chain))
		}
	}
}

func TestIdentityProfile(t *testing.T) {
	f := newFixture(t, 1)
	spec := f.identitySpec(got(GenerateKey())(t).Public())
	spec.IPs = ips("127.0.0.1", "::1")
	ticket, err := f.node(0).Identity.PrepareIdentity(spec)
	leaf := signed(t, ticket, err)[0]
	want := []string{oidSubjectKey, oidKeyUsage + " critical", oidSAN + " critical", oidAuthorityKey, oidEKU}
	slices.Sort(want)
	if diff := cmp.Diff(want, extensions(leaf)); diff != "" {
		t.Errorf("extensions (-want +got):\n%s", diff)
	}
	if !bytes.Equal(leaf.RawSubject, emptyName()) || len(leaf.URIs) != 1 || leaf.URIs[0].String() != spec.ID.String() {
		t.Errorf("subject %x, URIs %v", leaf.RawSubject, leaf.URIs)
	}
	if !slices.Equal(leaf.DNSNames, spec.DNSNames) || len(leaf.IPAddresses) != 2 || leaf.EmailAddresses != nil {
		t.Errorf("names %v %v %v", leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses)
	}
	if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
		t.Errorf("extended key usages %v", leaf.ExtKeyUsage)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.IsCA {
		t.Errorf("key usage %b, CA %v", leaf.KeyUsage, leaf.IsCA)
	}
	// A client that knows names only, such as curl --cacert, takes it.
	for _, name := range []string{"payments.acme.test", "localhost", "127.0.0.1", "::1"} {
		must(t, leaf.VerifyHostname(name))
	}
}

func TestIssuerProfiles(t *testing.T) {
	f := newFixture(t, 1)
	n := f.manifest.Nodes[0]
	for _, c := range []struct {
		cert *x509.Certificate
		td   spiffeid.TrustDomain
		life time.Duration
	}{
		{n.IdentityIssuer, testTD(), IssuerLife},
		{n.GrantIssuer, testGrantTD(), IssuerLife},
		{f.manifest.IdentityRoots[0], testTD(), rootLife},
		{f.manifest.GrantRoots[0], testGrantTD(), rootLife},
	} {
		isRoot := c.life == rootLife
		want := []string{oidSubjectKey, oidKeyUsage + " critical", oidBasic + " critical", oidSAN}
		if !isRoot {
			want = append(want, oidAuthorityKey, oidNameConstraints+" critical")
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, extensions(c.cert)); diff != "" {
			t.Errorf("%s: extensions (-want +got):\n%s", c.cert.Subject, diff)
		}
		if c.cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || !c.cert.IsCA {
			t.Errorf("%s: key usage %b, CA %v", c.cert.Subject, c.cert.KeyUsage, c.cert.IsCA)
		}
		if isRoot && c.cert.MaxPathLen != 1 || !isRoot && (c.cert.MaxPathLen != 0 || !c.cert.MaxPathLenZero) {
			t.Errorf("%s: path length %d", c.cert.Subject, c.cert.MaxPathLen)
		}
		if !hasURI(c.cert, c.td.IDString()) || len(c.cert.DNSNames)+len(c.cert.IPAddresses)+len(c.cert.EmailAddresses) > 0 {
			t.Errorf("%s: names %v", c.cert.Subject, c.cert.URIs)
		}
		if end := testNow().Add(c.life); c.cert.NotAfter.After(end) || c.cert.NotAfter.Before(end.Add(-time.Hour)) {
			t.Errorf("%s: ends at %s", c.cert.Subject, c.cert.NotAfter)
		}
	}
	grants := n.GrantIssuer
	if !slices.Equal(grants.PermittedURIDomains, []string{"grants.acme.test"}) || !slices.Equal(grants.ExcludedURIDomains, []string{".grants.acme.test"}) ||
		!slices.Equal(grants.ExcludedDNSDomains, []string{""}) || !slices.Equal(grants.ExcludedEmailAddresses, []string{""}) || len(grants.ExcludedIPRanges) != 2 {
		t.Errorf("grant issuer: URIs %q but %q, no DNS %q, no e-mail %q, no IP %v", grants.PermittedURIDomains, grants.ExcludedURIDomains,
			grants.ExcludedDNSDomains, grants.ExcludedEmailAddresses, grants.ExcludedIPRanges)
	}
	identity := n.IdentityIssuer
	if len(identity.PermittedURIDomains)+len(identity.ExcludedURIDomains) > 0 {
		t.Error("the identity issuer has URI constraints, with which rustls refuses its chains")
	}
	if !slices.Equal(identity.PermittedDNSDomains, []string{"acme.test", "localhost"}) || len(identity.PermittedIPRanges) != 2 {
		t.Errorf("identity issuer: %v %v", identity.PermittedDNSDomains, identity.PermittedIPRanges)
	}
}

func TestAPICertificate(t *testing.T) {
	f := newFixture(t, 3)
	for i := range f.manifest.Nodes {
		api := f.node(i).API
		if err := api.Leaf.VerifyHostname("127.0.0.1"); err != nil {
			t.Error(err)
		}
		id := got(VerifyIdentity([]*x509.Certificate{api.Leaf}, f.manifest.IdentityRoots, testTD(), testNow()))(t)
		if want := "spiffe://acme.test/node/" + f.manifest.Nodes[i].ID; id.String() != want || f.node(i).SPIFFEID != id {
			t.Errorf("the API certificate is of %s, want %s", id, want)
		}
	}
}

// What an identity issuer may name is said twice, to the requester by permitted
// and to everyone by the constraints in the certificate. They agree.
func TestPermittedAgreesWithX509(t *testing.T) {
	f := newFixture(t, 1)
	issuer, key := f.manifest.Nodes[0].IdentityIssuer, f.issuerKey(0, identityIssuerKeyFile)
	pub := got(GenerateKey())(t).Public()
	pool := x509.NewCertPool()
	pool.AddCert(f.manifest.IdentityRoots[0])
	middle := x509.NewCertPool()
	middle.AddCert(issuer)
	check := func(names, addresses []string) {
		t.Helper()
		uri := got(url.Parse("spiffe://acme.test/service/a"))(t)
		leaf := forge(t, x509.Certificate{URIs: []*url.URL{uri}, DNSNames: names, IPAddresses: ips(addresses...)}, pub, issuer, key)
		_, theirs := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: middle, CurrentTime: testNow(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if ours := permitted(issuer, names, ips(addresses...)); (ours == nil) != (theirs == nil) {
			t.Errorf("%v %v: ours %v, x509 %v", names, addresses, ours, theirs)
		}
	}
	for _, name := range []string{"acme.test", "a.acme.test", "a.b.acme.test", "xacme.test", "test", "localhost", "a.localhost", "acme.test.evil.test", "grants.acme.test"} {
		check([]string{name}, nil)
	}
	for _, address := range []string{"127.0.0.1", "127.255.255.255", "128.0.0.1", "10.0.0.1", "::1", "::2", "::ffff:127.0.0.1"} {
		check(nil, []string{address})
	}
}
