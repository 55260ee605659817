package testenv

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// roots are the trust anchors of both domains, apart.
type roots struct{ identity, grants *x509.CertPool }

func newRoots(m ca.Manifest) roots {
	r := roots{identity: x509.NewCertPool(), grants: x509.NewCertPool()}
	for _, c := range m.IdentityRoots {
		r.identity.AddCert(c)
	}
	for _, c := range m.GrantRoots {
		r.grants.AddCert(c)
	}
	return r
}

// IdentityRoots is what a client trusts to tell it a server's name.
func (e *Env) IdentityRoots() *x509.CertPool { return e.roots.identity }

// Folder is the identity folder of a person ("alice") or of any path of the
// identity domain ("user/alice-laptop", "job/nightly"), signed by the offline
// root the first time it is asked for.
func (e *Env) Folder(who string) string {
	e.t.Helper()
	if !strings.Contains(who, "/") {
		who = "user/" + who
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if dir, ok := e.folders[who]; ok {
		return dir
	}
	key, err := ca.GenerateKey()
	e.must(err)
	id := spiffeid.RequireFromString("spiffe://" + TrustDomain + "/" + who)
	spec := ca.IdentitySpec{ID: id, PublicKey: key.Public(), Now: time.Now(), TTL: 24 * time.Hour}
	if strings.HasPrefix(who, "service/") {
		spec.DNSNames, spec.IPs = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	chain, err := ca.IssueWithKMS(e.Offline(), spec, e.opts.KMS)
	e.must(err)
	dir := filepath.Join(e.dir, "people", strings.ReplaceAll(who, "/", "-"))
	e.must(ca.Folder{
		Chain: chain, Key: key, IdentityRoots: e.manifest.IdentityRoots, GrantRoots: e.manifest.GrantRoots,
	}.Write(dir))
	e.folders[who] = dir
	return dir
}

// Certificate is the identity of who, as a TLS certificate.
func (e *Env) Certificate(who string) *tls.Certificate {
	e.t.Helper()
	dir := e.Folder(who)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, ca.FolderChain), filepath.Join(dir, ca.FolderKey))
	e.must(err)
	return &pair
}

// FolderOf is a folder with cert as other people's programs take it: the chain,
// the key and the bundles of both trust domains, each a PEM file.
func (e *Env) FolderOf(cert *tls.Certificate) string {
	e.t.Helper()
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		e.t.Fatalf("testenv: a private key of type %T signs nothing", cert.PrivateKey)
	}
	var chain []*x509.Certificate
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		e.must(err)
		chain = append(chain, c)
	}
	dir := filepath.Join(e.t.TempDir(), "identity")
	e.must(ca.Folder{
		Chain: chain, Key: key, IdentityRoots: e.manifest.IdentityRoots, GrantRoots: e.manifest.GrantRoots,
	}.Write(dir))
	return dir
}

// Client is an API client as who. Close it, or let it go.
func (e *Env) Client(who string) *api.Client {
	e.t.Helper()
	return e.ClientOf(e.Certificate(who))
}

// ClientOf is an API client that presents cert.
func (e *Env) ClientOf(cert *tls.Certificate) *api.Client {
	e.t.Helper()
	c, err := api.NewClient(api.ClientConfig{
		Servers: e.Servers(), Certificate: cert, Roots: e.roots.identity, RetryFor: patience,
		TracerProvider: e.opts.Tracer,
	})
	e.must(err)
	e.t.Cleanup(c.Close)
	return c
}

// Request asks for access as who.
func (e *Env) Request(who, service string, d time.Duration, permissions ...string) api.Request {
	e.t.Helper()
	r, err := e.Client(who).CreateRequest(e.t.Context(), api.RequestInput{
		Service: service, Permissions: permissions, Duration: api.Duration(d), Reason: "a test",
	})
	e.must(err)
	return r
}

// Approve approves a request as who, naming what it says now.
func (e *Env) Approve(who string, r api.Request) api.Request {
	e.t.Helper()
	after, err := e.Client(who).DecideRequest(e.t.Context(), r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash})
	e.must(err)
	return after
}

// Granted is a grant's certificate in the hands of its subject.
type Granted struct {
	ID   string
	Cert *tls.Certificate // with its Leaf
}

// Grant has who ask, bob approve if need be, and who fetch the certificate.
func (e *Env) Grant(who, service string, d time.Duration, permissions ...string) Granted {
	e.t.Helper()
	r := e.Request(who, service, d, permissions...)
	if r.State == api.RequestPending {
		r = e.Approve("bob", r)
	}
	if r.State != api.RequestApproved {
		e.t.Fatalf("testenv: request %s is %s after bob's approval", r.ID, r.State)
	}
	return Granted{ID: r.ID, Cert: e.Mint(who, r.ID)}
}

// Mint fetches a certificate of a grant for a fresh key.
func (e *Env) Mint(who, grantID string) *tls.Certificate {
	e.t.Helper()
	cert, err := e.mint(e.t.Context(), e.Client(who), grantID)
	e.must(err)
	return cert
}

func (e *Env) mint(ctx context.Context, c *api.Client, grantID string) (*tls.Certificate, error) {
	key, err := ca.GenerateKey()
	if err != nil {
		return nil, err
	}
	csr, err := ca.MakeCSR(key, "")
	if err != nil {
		return nil, err
	}
	answer, err := c.GrantCertificate(ctx, grantID, string(csr))
	if err != nil {
		return nil, err
	}
	chain, err := ca.DecodeCertificates([]byte(answer.Certificate))
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handed = append(e.handed, handed{grant: grantID, leaf: cert.Leaf})
	return cert, nil
}

// Revoke ends a grant as who.
func (e *Env) Revoke(who, grantID string) {
	e.t.Helper()
	_, err := e.Client(who).RevokeGrant(e.t.Context(), grantID, "a test")
	e.must(err)
}
