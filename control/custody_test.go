package control

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
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
		var err error
		n.custody, err = newCustody(n.node, n.manifest)
		must(t, err)
		if f := n.checkIssuer("grant issuer", approval.RoleGrant); f.Status != c.want {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// TestShorterIssuersOfANewRoot goes over to roots whose issuers live for a day, with
// the keys that the nodes have, and renews them after the old roots have gone.
func TestShorterIssuersOfANewRoot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	ann := c.as("user/ann") // of the old root, so before it goes
	ahead := time.Now()
	renew := func(life time.Duration) ca.NodeCertificates {
		t.Helper()
		ahead = ahead.Add(5 * time.Second) // each ends later than the one before
		r, err := ca.LoadNodeRequest(filepath.Join(c.keys("n1"), ca.NodeRequestFile))
		must(t, err)
		all, err := ca.RenewNodes(c.dir, []ca.NodeRequest{r}, ca.SignOptions{Life: life, Now: ahead})
		must(t, err)
		return all[0]
	}
	signsWith := func(what string, want ca.NodeCertificates) {
		t.Helper()
		c.until("n1 signs with "+what, func() bool {
			return c.node("n1").n.custody.issuer(approval.RoleGrant).Certificate().Equal(want.GrantIssuer) &&
				c.node("n1").n.custody.issuer(approval.RoleIdentity).Certificate().Equal(want.IdentityIssuer)
		})
	}
	made, err := ca.RotateRoots(c.dir, ca.RootsOptions{Identities: true, Grants: true})
	must(t, err)
	for _, d := range made {
		line, err := d.Encode()
		must(t, err)
		_, err = ann.SetRoots(ctx, string(line))
		must(t, err)
	}
	c.believed, _, err = ca.OfflineRoots(c.dir)
	must(t, err)
	short := renew(24 * time.Hour)
	_, err = ann.InstallIssuers(ctx, installInput(short))
	must(t, err)
	signsWith("the shorter issuer of the new root", short)
	// The new root comes first; of its issuers, the one that ends last.
	longer := renew(48 * time.Hour)
	_, err = ann.InstallIssuers(ctx, installInput(longer))
	must(t, err)
	signsWith("the longer of the new root's", longer)
	if !c.shown(c.node("n1")).NotAfter.After(short.GrantIssuer.NotAfter) {
		t.Error("the API certificate ends sooner than the one before")
	}
}

// TestWhoSeesIssuers: persons, services and nodes, from each node's own state.
func TestWhoSeesIssuers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	_, err := c.as("user/ann").DenyIssuer(ctx, trust.ID(c.manifest.Nodes[2].GrantIssuer), "n3 was broken into")
	must(t, err)
	for _, r := range c.live() {
		c.until("node "+r.ID()+" says what is denied", func() bool {
			list, err := c.at(r, "service/signer").NodeIssuers(ctx)
			must(t, err)
			denied := slices.DeleteFunc(list.Issuers, func(i api.NodeIssuer) bool { return !i.Denied })
			return list.Node == r.ID() && len(list.Members) == 3 && len(denied) == 1 && denied[0].Node == "n3" && denied[0].Role == "grant"
		})
	}
	for path, may := range map[string]bool{"user/alice": true, "service/x": true, "node/n1": true, "agent/robot": false, "job/x": false} {
		if _, err := c.as(path).NodeIssuers(ctx); may != (err == nil) || err != nil && !errors.Is(err, api.ErrDenied) {
			t.Errorf("%s: %v", path, err)
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

// TestRootsRotateInACluster goes over to new roots under running nodes, and then
// is the thief of the old one.
func TestRootsRotateInACluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	publish := func(documents []trust.Document, err error) {
		t.Helper()
		must(t, err)
		for _, d := range documents {
			line, err := d.Encode()
			must(t, err)
			set, err := c.as("user/ann").SetRoots(ctx, string(line))
			must(t, err)
			if set.Sequence != d.Sequence {
				t.Errorf("document %d is in force, not %d", set.Sequence, d.Sequence)
			}
		}
	}
	oldAnn, old := c.as("user/ann"), c.identity(t, "spiffe://acme.test/user/alice")
	publish(ca.RotateRoots(c.dir, ca.RootsOptions{Identities: true, Grants: true}))
	renewed := map[string]ca.NodeCertificates{}
	for _, e := range c.manifest.Nodes {
		renewed[e.ID] = c.renew(e.ID, false)
		_, err := oldAnn.InstallIssuers(ctx, installInput(renewed[e.ID]))
		must(t, err)
	}
	identity, _, err := ca.OfflineRoots(c.dir)
	must(t, err)
	c.believed = identity
	c.mu.Lock()
	clear(c.people)
	c.mu.Unlock()
	for _, r := range c.live() {
		c.until("node "+r.ID()+" shows its new certificate", func() bool { return c.shown(r).Equal(renewed[r.ID()].APICertificate) })
	}
	publish(ca.RetireRoots(c.dir, ca.RootsOptions{Identities: true, Grants: true}))
	signer := c.minted()
	if !slices.ContainsFunc(slices.Collect(maps.Values(renewed)), func(n ca.NodeCertificates) bool { return n.GrantIssuer.Equal(signer) }) {
		t.Error("minted by an issuer of the retired root")
	}
	c.until("an identity of the retired root opens nothing", func() bool {
		_, err := c.client(old, c.urls()[0]).WhoAmI(ctx, api.Stale())
		return errors.Is(err, api.ErrUnauthenticated)
	})
	for _, r := range c.live() {
		if b := c.node(r.ID()).n.custody.get(); len(b.roots) != 1 || !b.roots[0].Equal(identity[len(identity)-1]) {
			t.Errorf("node %s believes %d identity roots", r.ID(), len(b.roots))
		}
	}
	roots, err := c.as("user/ann").Roots(ctx)
	must(t, err)
	_, err = c.as("user/ann").SetRoots(ctx, roots.Identity.Documents[0])
	wantProblem(t, err, api.CodeStale)
	c.check()
	// A restart from the old manifest, in which the old root is all there is.
	last := c.leader().ID()
	c.halt(last)
	c.start(last)
	c.awaitReady()
	c.until("the retired root opens nothing there", func() bool {
		b := c.node(last).n.custody.get()
		return len(b.roots) == 1 && b.roots[0].Equal(identity[len(identity)-1])
	})
}
