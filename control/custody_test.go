package control

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/trust"
)

func (o *offline) keys(id string) string { return filepath.Join(o.dir, "nodes", id) }

// renew has the offline root sign a node's successors; fresh with new keys.
func (c *cluster) renew(id string, fresh bool) ca.NodeCertificates {
	c.t.Helper()
	e, _ := c.manifest.Node(id)
	r, err := ca.NewNode(c.keys(id), ca.NodeOptions{
		ID: id, TrustDomain: c.manifest.TrustDomain, APIAddress: e.APIAddress, RaftAddress: e.RaftAddress, NewKeys: fresh,
	})
	must(c.t, err)
	// A little ahead of the founding certificates, so that it is plain which end last.
	renewed, err := ca.RenewNodes(c.dir, []ca.NodeRequest{r}, ca.SignOptions{Now: time.Now().Add(5 * time.Second)})
	must(c.t, err)
	return renewed[0]
}

func installInput(n ca.NodeCertificates) api.InstallInput {
	pem := func(cert *x509.Certificate) string { return string(ca.EncodeCertificates(cert)) }
	return api.InstallInput{Node: n.Node, IdentityIssuer: pem(n.IdentityIssuer), GrantIssuer: pem(n.GrantIssuer), APICertificate: pem(n.APICertificate)}
}

// minted has a grant made and its certificate minted, and returns who signed it.
func (c *cluster) minted() *x509.Certificate {
	c.t.Helper()
	csr, _ := newCSR(c.t)
	cert, err := c.as("user/alice").GrantCertificate(c.t.Context(), c.granted().ID, csr)
	must(c.t, err)
	chain, err := ca.DecodeCertificates([]byte(cert.Certificate))
	must(c.t, err)
	return chain[1]
}

// shown is the certificate that a node's API shows.
func (c *cluster) shown(r *running) *x509.Certificate {
	c.t.Helper()
	cert := c.identity(c.t, "spiffe://acme.test/user/alice")
	conn, err := tls.Dial("tcp", r.api.Addr().String(), &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: c.roots(), Certificates: []tls.Certificate{cert},
	})
	must(c.t, err)
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0]
}

// TestRenewalWithoutARestart: one node finds its successors in its key folder,
// the others are given theirs over the API; all sign with them from then on.
func TestRenewalWithoutARestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	want := map[string]ca.NodeCertificates{}
	for _, e := range c.manifest.Nodes {
		want[e.ID] = c.renew(e.ID, e.ID != "n3")
	}
	must(t, ca.InstallCertificates(c.keys("n1"), want["n1"]))
	for _, id := range []string{"n2", "n3"} {
		got, err := c.as("user/ann").InstallIssuers(t.Context(), installInput(want[id]))
		must(t, err)
		if len(got.Issuers) != 2 {
			t.Errorf("node %s got %d issuers", id, len(got.Issuers))
		}
	}
	for _, r := range c.live() {
		w := want[r.ID()]
		c.until("node "+r.ID()+" signs with its successors", func() bool {
			n := r.n.custody.get()
			return n.signing[approval.RoleGrant].Certificate().Equal(w.GrantIssuer) &&
				n.signing[approval.RoleIdentity].Certificate().Equal(w.IdentityIssuer)
		})
		c.until("node "+r.ID()+" shows its new certificate", func() bool { return c.shown(r).Equal(w.APICertificate) })
	}
	if signer := c.minted(); !slices.ContainsFunc(c.manifest.Nodes, func(e ca.NodeEntry) bool { return want[e.ID].GrantIssuer.Equal(signer) }) {
		t.Errorf("minted by %s", trust.ID(signer))
	}
	// After a restart, from the old manifest, they still do.
	last := c.leader().ID()
	c.halt(last)
	c.start(last)
	c.awaitReady()
	r := c.node(last)
	c.until("it signs with its successor", func() bool {
		return r.n.custody.issuer(approval.RoleGrant).Certificate().Equal(want[last].GrantIssuer)
	})
	c.check()
}

// TestForeignCertificatesAreNotInstalled: what no root has signed is refused,
// whoever brings it, and a node says that its folder holds such a thing.
func TestForeignCertificatesAreNotInstalled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	mine := c.renew("n1", false)
	other := newOffline(t, 3) // another cluster's root, the same names
	r, err := ca.LoadNodeRequest(filepath.Join(other.keys("n1"), ca.NodeRequestFile))
	must(t, err)
	theirs, err := ca.RenewNodes(other.dir, []ca.NodeRequest{r}, ca.SignOptions{Now: time.Now().Add(10 * time.Second)})
	must(t, err)
	forged := mine
	forged.GrantIssuer = theirs[0].GrantIssuer
	_, err = c.as("user/ann").InstallIssuers(t.Context(), installInput(forged))
	wantProblem(t, err, api.CodeDenied)
	_, err = c.as("user/alice").InstallIssuers(t.Context(), installInput(mine))
	wantProblem(t, err, api.CodeDenied)

	// n2's own file holds what is n1's.
	must(t, ca.InstallCertificates(c.keys("n1"), mine))
	text, err := mine.Encode()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(c.keys("n2"), ca.CertificatesFile), text, 0o600))
	c.until("n2 says so", func() bool {
		return slices.ContainsFunc(c.node("n2").Health().Findings, func(f Finding) bool {
			return f.Check == ca.CertificatesFile && f.Status == statusWarn
		})
	})
	if c.node("n2").n.custody.issuer(approval.RoleGrant).Certificate().Equal(mine.GrantIssuer) {
		t.Error("n2 signs as n1")
	}
}

// forge signs an identity with a stolen issuer, past everything.
func forge(t *testing.T, issuer *x509.Certificate, dir, id string) tls.Certificate {
	t.Helper()
	key, err := ca.GenerateKey()
	must(t, err)
	u, err := url.Parse(id)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(666), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	stolen, err := readKeyFile(filepath.Join(dir, "identity-issuer.key"))
	must(t, err)
	der, err := x509.CreateCertificate(nil, template, issuer, key.Public(), stolen)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	return certificate([]*x509.Certificate{leaf, issuer}, key)
}

// TestDeniedIssuerOpensNothingHere is the theft of a node's identity issuer: with
// it anybody is any person, until the issuer is denied, and not a moment longer.
func TestDeniedIssuerOpensNothingHere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	e, _ := c.manifest.Node("n3")
	stolen := forge(t, e.IdentityIssuer, c.keys("n3"), "spiffe://acme.test/user/bob")
	thief := c.client(stolen, c.urls()[:2]...)
	who, err := thief.WhoAmI(t.Context())
	must(t, err)
	if who.Person != "bob" {
		t.Fatalf("the forged identity is %+v", who)
	}
	events := make(chan error, 1)
	go func() { events <- thief.WatchEvents(t.Context(), 0, func(api.Event) error { return nil }) }()

	_, err = c.as("user/ann").DenyIssuer(t.Context(), trust.ID(e.IdentityIssuer), "n3 was broken into")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c.until("the thief is refused", func() bool {
		_, err := c.client(stolen, c.urls()[0]).WhoAmI(ctx, api.Stale())
		return errors.Is(err, api.ErrUnauthenticated)
	})
	select {
	case err := <-events:
		if !errors.Is(err, api.ErrUnauthenticated) {
			t.Errorf("the stream that was open ended with %v", err)
		}
	case <-ctx.Done():
		t.Error("a stream of the thief's is still open")
	}
}

// TestLeaderWithoutIssuersYields: a leader whose issuers are denied would leave
// the cluster without certificates.
func TestLeaderWithoutIssuersYields(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	lost := c.leader()
	e, _ := c.manifest.Node(lost.ID())
	for _, cert := range []*x509.Certificate{e.IdentityIssuer, e.GrantIssuer} {
		_, err := c.as("user/ann").DenyIssuer(t.Context(), trust.ID(cert), "lost")
		must(t, err)
	}
	c.until("another leads", func() bool {
		leader := c.leading()
		return leader != nil && leader.ID() != lost.ID()
	})
	if signer := c.minted(); signer.Equal(e.GrantIssuer) {
		t.Error("minted by a denied issuer")
	}
	if lost.Health().Ready {
		t.Error("a node that can sign nothing calls itself ready")
	}
	// With new keys it is a node like the others again.
	_, err := c.as("user/ann").InstallIssuers(t.Context(), installInput(c.renew(lost.ID(), false)))
	wantProblem(t, err, api.CodeDenied) // the old keys are those that were lost
	_, err = c.as("user/ann").InstallIssuers(t.Context(), installInput(c.renew(lost.ID(), true)))
	must(t, err)
	c.until("it is ready", func() bool { return lost.Health().Ready })
}

// TestHealthWarnsAtHalfOfAnIssuersLife uses a clock that is set ahead.
func TestHealthWarnsAtHalfOfAnIssuersLife(t *testing.T) {
	t.Parallel()
	o := newOffline(t, 1)
	e := o.manifest.Nodes[0]
	for name, c := range map[string]struct {
		at   time.Time
		want string
	}{
		"young":  {time.Now(), statusOK},
		"at 44d": {time.Now().Add(44 * 24 * time.Hour), statusOK},
		"at 46d": {time.Now().Add(46 * 24 * time.Hour), statusWarn},
		"over":   {e.GrantIssuer.NotAfter, statusFail},
	} {
		n := &node{settings: settings{node: o.nodes[0], manifest: o.manifest, now: func() time.Time { return c.at }}}
		n.custody = newCustody(n.node, n.manifest)
		if f := n.checkIssuer("grant issuer", approval.RoleGrant); f.Status != c.want {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestNodeRequestAndRootsAreServed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for _, r := range c.live() {
		got, err := c.at(r, "service/signer").NodeRequest(t.Context())
		must(t, err)
		request, err := ca.ParseNodeRequest([]byte(got.Request))
		must(t, err)
		if got.Node != r.ID() || request.ID != r.ID() {
			t.Errorf("node %s serves the request of %s", r.ID(), request.ID)
		}
		roots, err := c.at(r, "service/payments").Roots(t.Context())
		must(t, err)
		certs, err := ca.DecodeCertificates([]byte(roots.Grants.Roots))
		must(t, err)
		if roots.Grants.Sequence != 0 || len(certs) != 1 || !certs[0].Equal(c.manifest.GrantRoots[0]) {
			t.Errorf("node %s serves roots %+v", r.ID(), roots.Grants)
		}
	}
}

func readKeyFile(path string) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ca.DecodeKey(text)
}
