package proxy

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/trust"
)

// serveRoots answers as a control node does.
func (n *controlNode) serveRoots(w http.ResponseWriter) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	set := map[string]any{"trust_domain": testGrantTD, "documents": n.roots}
	_ = json.NewEncoder(w).Encode(map[string]any{"identity": map[string]any{"documents": []string{}}, "grants": set})
}

// publish has the node serve these documents and no others.
func (n *controlNode) publish(documents ...trust.Document) {
	n.t.Helper()
	var lines []string
	for _, d := range documents {
		line, err := d.Encode()
		if err != nil {
			n.t.Fatal(err)
		}
		lines = append(lines, string(line))
	}
	n.set(func(d *feedDoc) { n.roots, d.VerifiedAt = lines, time.Now() })
}

// grantRootNamed is a root of the grants domain, as documents name them.
func (p *pki) grantRootNamed(name string) *authority {
	p.t.Helper()
	a := &authority{key: newKey(p.t)}
	c := &x509.Certificate{
		SerialNumber: serial(p.t), Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{{Scheme: "spiffe", Host: testGrantTD}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, a.key.Public(), a.key)
	if err != nil {
		p.t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		p.t.Fatal(err)
	}
	return a
}

// rootsDocument says which grants roots are in force, signed by signers.
func rootsDocument(t testing.TB, sequence uint64, inForce, retired, signers []*authority) trust.Document {
	t.Helper()
	d := trust.Document{TrustDomain: testGrantTD, Sequence: sequence, Issued: time.Now().UTC().Truncate(time.Second)}
	for _, a := range inForce {
		d.Roots = append(d.Roots, a.cert)
	}
	for _, a := range retired {
		d.Retired = append(d.Retired, trust.ID(a.cert))
	}
	return signDocument(t, d, signers...)
}

func signDocument(t testing.TB, d trust.Document, signers ...*authority) trust.Document {
	t.Helper()
	statement, err := d.Statement()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(statement)
	for _, a := range signers {
		value, err := ecdsa.SignASN1(rand.Reader, a.key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		d.Signatures = append(slices.Clone(d.Signatures), trust.Signature{Root: trust.ID(a.cert), Value: value})
	}
	return d
}

// rotation is a proxy in the middle of the rotation of the grants' roots.
type rotation struct {
	*env
	node             *controlNode
	old, next        *authority
	overlap, retired trust.Document
}

func startRotation(t *testing.T) *rotation {
	t.Helper()
	p := newPKI(t)
	r := &rotation{old: p.grantRootNamed("old"), next: p.grantRootNamed("next")}
	p.grantRoot, p.grantIssuer = r.old, p.authority("grants issuer", r.old)
	r.overlap = rootsDocument(t, 1, []*authority{r.old, r.next}, nil, []*authority{r.old, r.next})
	r.retired = rootsDocument(t, 2, []*authority{r.next}, []*authority{r.old}, []*authority{r.old, r.next})
	r.node = startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	r.env = start(t, options{pki: p, upstream: upstreamServer(t, echoHandler), edit: withFeed(r.node.url)})
	return r
}

// by mints a grant certificate of an issuer under a root.
func (r *rotation) by(root *authority) tls.Certificate {
	r.t.Helper()
	r.pki.grantIssuer = r.pki.authority("grants issuer", root)
	return r.pki.grant(time.Hour, "GET /**")
}

func (r *rotation) follows(sequence uint64) {
	r.t.Helper()
	r.eventually("roots document in force", func() bool { return r.px.keeper.cur.Load().sets[1].Sequence() == sequence })
}

func (r *rotation) admits(cert tls.Certificate) bool {
	a, err := r.do(r.client(cert, true), "GET", "/a")
	return err == nil && a.status == http.StatusOK
}

// TestRootsRotateUnderTraffic: the new root counts as soon as a root that is
// pinned has signed for it, both count for a while, and the old one's
// connections end when it is retired. After a restart without any control node
// it stays so.
func TestRootsRotateUnderTraffic(t *testing.T) {
	r := startRotation(t)
	old, next := r.by(r.old), r.by(r.next)
	live := r.client(old, true)
	r.must(live, "GET", "/a")
	if r.admits(next) {
		t.Error("a root that nobody spoke of counts")
	}
	r.node.publish(r.overlap)
	r.follows(1)
	if !r.admits(next) || !r.admits(old) {
		t.Error("not both roots count in the overlap")
	}
	r.node.publish(r.overlap, r.retired)
	r.follows(2)
	if r.admits(old) || !r.admits(next) {
		t.Error("the retired root counts, or the other does not")
	}
	r.record("the cut", func(l logLine) bool { return l.Reason == reasonRootRemoved && l.Event == "end" })

	r.node.stop()
	r.shutdown()
	again := start(t, options{pki: r.pki, upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) {
		withFeed("https://127.0.0.1:1")(s)
		s.RootsFile = filepath.Join(r.dir, "roots.jsonl")
	}})
	r.env = again
	if r.admits(old) || !r.admits(next) {
		t.Error("after a restart the retired root counts again, or the other does not")
	}
}

// TestReplayedRootsDocument is the thief of the root that was retired. Whatever
// he serves or writes, the proxy goes on with the document that it has.
func TestReplayedRootsDocument(t *testing.T) {
	r := startRotation(t)
	stolen := r.by(r.old)
	r.node.publish(r.overlap, r.retired)
	r.follows(2)
	mine := r.pki.grantRootNamed("the thief's")
	for name, d := range map[string]trust.Document{
		"the old document":           r.overlap,
		"his own of its number":      rootsDocument(t, 2, []*authority{r.old, r.next}, nil, []*authority{r.old}),
		"his own of the next number": rootsDocument(t, 3, []*authority{r.old, mine}, nil, []*authority{r.old, mine}),
		"his own of a high number":   rootsDocument(t, 1<<40, []*authority{mine}, nil, []*authority{mine}),
	} {
		asked := r.node.requests.Load()
		r.node.publish(d, r.overlap, r.overlap) // more than it knows, so that it asks
		r.eventually("the proxy has asked", func() bool { return r.node.requests.Load() > asked })
		adopted, _, err := r.px.keeper.adopt([]trust.Document{d})
		if adopted || err != nil {
			t.Errorf("%s: adopted %v, %v", name, adopted, err)
		}
		if r.admits(stolen) {
			t.Errorf("%s: the retired root counts", name)
		}
	}
	// The file itself, put back to what it once said.
	text, err := trust.EncodeAll([]trust.Document{r.overlap})
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func() error{
		"put back": func() error { return os.WriteFile(filepath.Join(r.dir, "roots.jsonl"), text, 0o600) },
		"damaged":  func() error { return os.WriteFile(filepath.Join(r.dir, "roots.jsonl"), text[:100], 0o600) },
		"gone":     func() error { return os.Remove(filepath.Join(r.dir, "roots.jsonl")) },
	} {
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if err := r.px.Reload(); err == nil {
			t.Errorf("the file %s: no error", name)
		}
		if r.admits(stolen) || !r.admits(r.by(r.next)) {
			t.Errorf("the file %s: other roots count", name)
		}
	}
}

// TestIssuerDeniedByDocument: what a root says of an issuer needs no cluster.
func TestIssuerDeniedByDocument(t *testing.T) {
	r := startRotation(t)
	bad := r.by(r.old)
	denied := r.pki.grantIssuer
	good := r.by(r.old)
	live := r.client(bad, true)
	r.must(live, "GET", "/a")
	d := rootsDocument(t, 1, []*authority{r.old}, nil, nil)
	d.Denied = []string{trust.ID(denied.cert)}
	r.node.publish(signDocument(t, d, r.old))
	r.follows(1)
	if r.admits(bad) || !r.admits(good) {
		t.Error("the denied issuer counts, or the other does not")
	}
	r.record("the cut", func(l logLine) bool {
		return l.Reason == reasonIssuerDenied && l.Event == "end" && l.Kind == kindConnection
	})
}

// TestRootsFromAServerNobodyKnows: after a rotation the nodes' own certificates
// are of a root that a proxy which slept through it does not know yet.
func TestRootsFromAServerNobodyKnows(t *testing.T) {
	p := newPKI(t)
	old, next := p.grantRootNamed("old"), p.grantRootNamed("next")
	p.grantRoot, p.grantIssuer = old, p.authority("grants issuer", old)
	stranger := newPKI(t)
	node := startControlWith(t, p, feedDoc{Epoch: 1, Revision: 1}, stranger.mint(leafSpec{
		uris: []string{nodeOne}, dns: []string{"localhost"}, issuer: stranger.idIssuer, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}))
	node.publish(rootsDocument(t, 1, []*authority{old, next}, nil, []*authority{old}))
	r := &rotation{env: start(t, options{pki: p, upstream: upstreamServer(t, echoHandler), edit: withFeed(node.url)}), node: node}
	r.follows(1)
	if !r.admits(r.by(next)) {
		t.Error("the new root does not count")
	}
}

// TestRefusedByNodesIsSaid: the node that had signed a service's identity is
// removed, and with it its issuers. The proxy is deaf from then on: it says why,
// where an operator looks, and follows again once it has a new identity.
func TestRefusedByNodesIsSaid(t *testing.T) {
	p := newPKI(t)
	old, next := p.grantRootNamed("old"), p.grantRootNamed("next")
	p.grantRoot, p.grantIssuer = old, p.authority("grants issuer", old)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	node.denied.Store(p.idIssuer.cert)
	node.publish(rootsDocument(t, 1, []*authority{old, next}, nil, []*authority{old}))
	e := start(t, options{pki: p, upstream: upstreamServer(t, echoHandler), edit: withFeed(node.url)})
	const why = "the node refuses this service's certificate"
	e.eventually("word of it in readyz", func() bool {
		ready, said := e.ready()
		return ready && strings.Contains(said, `"feed_error":`) && strings.Contains(said, `"roots_error":`) && strings.Count(said, why) == 2
	})
	e.eventually("two warnings", func() bool {
		said := e.logs.String()
		return strings.Contains(said, "roots documents cannot be fetched from any node") && strings.Contains(said, "failed=2") && strings.Count(said, why) >= 3
	})
	if n := e.px.keeper.cur.Load().documents(); n != 0 {
		t.Fatalf("%d documents of a node that refuses it", n)
	}

	p.idIssuer = p.authority("another identity issuer", p.idRoot)
	writePair(t, e.dir, p.serviceSVID("payments"))
	r := &rotation{env: e, node: node}
	r.follows(1)
	e.eventually("no word of it any more", func() bool {
		_, said := e.ready()
		return !strings.Contains(said, "_error")
	})
}

// TestBehindIsLogged: one that missed the overlap says what to do, once.
func TestBehindIsLogged(t *testing.T) {
	r := startRotation(t)
	unsigned := r.retired
	unsigned.Signatures = nil
	r.node.publish(signDocument(t, unsigned, r.next))
	r.eventually("word of it", func() bool { return strings.Contains(r.logs.String(), "put the new roots into the bundle files") })
	r.follows(0)
	writeFile(t, filepath.Join(r.dir, "grants-bundle.pem"), pemCerts(r.next.cert))
	r.node.publish(signDocument(t, unsigned, r.next), r.overlap)
	r.follows(2)
}
