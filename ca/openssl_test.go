package ca

import (
	"crypto"
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/grant"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// goVerify asks crypto/x509 whether a chain leads to the roots.
func goVerify(chain, roots []*x509.Certificate, usage x509.ExtKeyUsage, at time.Time) error {
	pool, middle := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	for _, cert := range chain[1:] {
		middle.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: middle, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

func spiffeVerify(chain, roots []*x509.Certificate, td spiffeid.TrustDomain, at time.Time) error {
	_, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(td, roots), x509svid.WithTime(at))
	return err
}

func TestChainsAreAcceptedByOthers(t *testing.T) {
	f := newFixture(t, 2)
	m := f.manifest
	p384 := newP384(t)
	grantTicket, err := f.node(0).Grants.PrepareGrant(f.grantSpec(p384.Public()))
	grants := signed(t, grantTicket, err)
	spec := f.identitySpec(got(GenerateKey())(t).Public())
	spec.IPs = ips("127.0.0.1")
	identityTicket, err := f.node(1).Identity.PrepareIdentity(spec)
	identity := signed(t, identityTicket, err)
	person := got(DecodeCertificates(got(os.ReadFile(filepath.Join(f.offline, PersonsDir, "ada", FolderChain)))(t)))(t)
	api := []*x509.Certificate{m.Nodes[0].APICertificate}

	for _, c := range []struct {
		name   string
		chain  []*x509.Certificate
		roots  []*x509.Certificate
		others []*x509.Certificate // roots that must not be enough
		td     spiffeid.TrustDomain
		server bool
	}{
		{"grant", grants, m.GrantRoots, m.IdentityRoots, testGrantTD(), false},
		{"identity", identity, m.IdentityRoots, m.GrantRoots, testTD(), true},
		{"person", person, m.IdentityRoots, m.GrantRoots, testTD(), true},
		{"api", api, m.IdentityRoots, m.GrantRoots, testTD(), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := testNow().Add(time.Minute)
			must(t, goVerify(c.chain, c.roots, x509.ExtKeyUsageClientAuth, at))
			must(t, spiffeVerify(c.chain, c.roots, c.td, at))
			must(t, opensslVerify(t, c.chain, c.roots, "sslclient", at))
			asServer := map[string]error{
				"crypto/x509": goVerify(c.chain, c.roots, x509.ExtKeyUsageServerAuth, at),
				"openssl":     opensslVerify(t, c.chain, c.roots, "sslserver", at),
			}
			for who, err := range asServer {
				if (err == nil) != c.server {
					t.Errorf("%s says of it as a server's: %v", who, err)
				}
			}
			for what, bad := range map[string]struct {
				chain, roots []*x509.Certificate
				at           time.Time
			}{
				"under the other root": {c.chain, c.others, at},
				"after its end":        {c.chain, c.roots, c.chain[0].NotAfter.Add(time.Second)},
				"before its start":     {c.chain, c.roots, c.chain[0].NotBefore.Add(-time.Second)},
			} {
				for who, err := range map[string]error{
					"crypto/x509": goVerify(bad.chain, bad.roots, x509.ExtKeyUsageClientAuth, bad.at),
					"go-spiffe":   spiffeVerify(bad.chain, bad.roots, c.td, bad.at),
					"openssl":     opensslVerify(t, bad.chain, bad.roots, "sslclient", bad.at),
				} {
					if err == nil {
						t.Errorf("%s: %s accepts it", what, who)
					}
				}
			}
		})
	}
}

// A thief of a node can sign anything with its issuers. What verifiers make of
// it is what the name constraints and the path length leave.
func TestStolenIssuer(t *testing.T) {
	f := newFixture(t, 1)
	m := f.manifest
	grantIssuer, grantKey := m.Nodes[0].GrantIssuer, f.issuerKey(0, grantIssuerKeyFile)
	identityIssuer, identityKey := m.Nodes[0].IdentityIssuer, f.issuerKey(0, identityIssuerKeyFile)
	pub := got(GenerateKey())(t).Public()
	leaf := func(uri string, change func(*x509.Certificate)) x509.Certificate {
		c := x509.Certificate{
			URIs:     []*url.URL{got(url.Parse(uri))(t)},
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
		if change != nil {
			change(&c)
		}
		return c
	}
	anID := got(grant.ParseID(f.grantSpec(pub).ID.String(), testGrantTD()))(t).String()
	// OpenSSL 3.0 reads an empty e-mail constraint as one that excludes nothing;
	// what it says of that case is not asked. No verifier of ours looks at e-mail
	// names.
	const allOfThem, notOpenSSL = true, false
	for _, c := range []struct {
		name     string
		template x509.Certificate
		issuer   *x509.Certificate
		key      crypto.Signer
		roots    []*x509.Certificate
		refused  bool
		openssl  bool
	}{
		{"a grant (no constraint speaks against it)", leaf(anID, nil), grantIssuer, grantKey, m.GrantRoots, false, allOfThem},
		{"an identity from the grant issuer", leaf("spiffe://acme.test/user/ada", nil), grantIssuer, grantKey, m.GrantRoots, true, allOfThem},
		{"an identity from the grant issuer, roots pooled", leaf("spiffe://acme.test/user/ada", nil), grantIssuer, grantKey, append(m.GrantRoots[:1:1], m.IdentityRoots...), true, allOfThem},
		{"a domain below the grants domain", leaf("spiffe://x.grants.acme.test/user/ada", nil), grantIssuer, grantKey, m.GrantRoots, true, allOfThem},
		{"a TLS server from the grant issuer", leaf(anID, func(c *x509.Certificate) { c.DNSNames = []string{"payments.acme.test"} }), grantIssuer, grantKey, m.GrantRoots, true, allOfThem},
		{"an address from the grant issuer", leaf(anID, func(c *x509.Certificate) { c.IPAddresses = ips("127.0.0.1") }), grantIssuer, grantKey, m.GrantRoots, true, allOfThem},
		{"an IPv6 address from the grant issuer", leaf(anID, func(c *x509.Certificate) { c.IPAddresses = ips("::1") }), grantIssuer, grantKey, m.GrantRoots, true, allOfThem},
		{"mail from the grant issuer", leaf(anID, func(c *x509.Certificate) { c.EmailAddresses = []string{"ada@acme.test"} }), grantIssuer, grantKey, m.GrantRoots, true, notOpenSSL},
		{"a server of another domain", leaf("spiffe://acme.test/service/a", func(c *x509.Certificate) { c.DNSNames = []string{"bank.test"} }), identityIssuer, identityKey, m.IdentityRoots, true, allOfThem},
		{"an address elsewhere", leaf("spiffe://acme.test/service/a", func(c *x509.Certificate) { c.IPAddresses = ips("10.0.0.1") }), identityIssuer, identityKey, m.IdentityRoots, true, allOfThem},
	} {
		t.Run(c.name, func(t *testing.T) {
			chain := []*x509.Certificate{forge(t, c.template, pub, c.issuer, c.key), c.issuer}
			if err := goVerify(chain, c.roots, x509.ExtKeyUsageAny, testNow()); (err != nil) != c.refused {
				t.Errorf("crypto/x509: %v", err)
			}
			if err := opensslVerify(t, chain, c.roots, "any", testNow()); c.openssl && (err != nil) != c.refused {
				t.Errorf("openssl: %v", err)
			}
		})
	}
	t.Run("a further issuer", func(t *testing.T) {
		for _, issuer := range []struct {
			cert  *x509.Certificate
			key   crypto.Signer
			roots []*x509.Certificate
			uri   string
		}{
			{grantIssuer, grantKey, m.GrantRoots, anID},
			{identityIssuer, identityKey, m.IdentityRoots, "spiffe://acme.test/user/ada"},
		} {
			subKey := got(GenerateKey())(t)
			template := leaf(issuer.cert.URIs[0].String(), func(c *x509.Certificate) {
				c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
				c.Subject.CommonName = "sub"
			})
			sub := forge(t, template, subKey.Public(), issuer.cert, issuer.key)
			chain := []*x509.Certificate{forge(t, leaf(issuer.uri, nil), pub, sub, subKey), sub, issuer.cert}
			if goVerify(chain, issuer.roots, x509.ExtKeyUsageAny, testNow()) == nil {
				t.Error("crypto/x509 accepts it")
			}
			if opensslVerify(t, chain, issuer.roots, "any", testNow()) == nil {
				t.Error("openssl accepts it")
			}
		}
	})
}

// What `openssl x509 -text` shows of a grant certificate is what people will
// look at: one name, in plain letters.
func TestOpenSSLShowsTheGrant(t *testing.T) {
	f := newFixture(t, 1)
	spec := f.grantSpec(got(GenerateKey())(t).Public())
	ticket, err := f.node(0).Grants.PrepareGrant(spec)
	file := filepath.Join(t.TempDir(), "cert.pem")
	must(t, os.WriteFile(file, EncodeCertificates(signed(t, ticket, err)[0]), 0o600))
	text, err := openssl(t, "x509", "-in", file, "-noout", "-text")
	must(t, err)
	want := "X509v3 Subject Alternative Name: critical\n                URI:" + spec.ID.String() + "\n"
	if !strings.Contains(text, want) {
		t.Errorf("it does not show %q:\n%s", want, text)
	}
	if n := strings.Count(text, "URI:"); n != 1 {
		t.Errorf("%d URIs", n)
	}
	for _, want := range []string{
		"payments/_can/http/GET.HEAD/accounts/_rest/_and/http/POST/refunds/_any/_for/acme.test/user/alice/_id/" + testGrantID,
		"X509v3 Key Usage: critical\n                Digital Signature\n",
		"X509v3 Extended Key Usage: \n                TLS Web Client Authentication\n",
		"ASN1 OID: prime256v1",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not show %q:\n%s", want, text)
		}
	}
	if subject := got(openssl(t, "x509", "-in", file, "-noout", "-subject"))(t); strings.TrimSpace(subject) != "subject=" {
		t.Errorf("subject: %q", subject)
	}
}
