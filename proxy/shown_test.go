package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/trust"
)

// serveSeen takes reports as a control node does.
func (n *controlNode) serveSeen(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var got report
	if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.Method != http.MethodPost || n.deaf {
		http.Error(w, "no", http.StatusServiceUnavailable)
		return
	}
	n.told = append(n.told, got)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"committed":0,"pending":1,"refused":0,"dropped":0}`))
}

// tells reports how often a node was told of a certificate, each time with the
// one that signed it.
func (n *controlNode) tells(cert tls.Certificate) (times int) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		n.t.Fatal(err)
	}
	for _, r := range n.told {
		for _, der := range r.Certificates {
			if !slices.Equal(der, leaf.Raw) {
				continue
			}
			times++
			if !slices.ContainsFunc(r.Issuers, func(der []byte) bool {
				issuer, err := x509.ParseCertificate(der)
				return err == nil && leaf.CheckSignatureFrom(issuer) == nil
			}) {
				n.t.Errorf("told of %s without its issuer", leaf.SerialNumber)
			}
		}
	}
	return times
}

func (n *controlNode) setDeaf(deaf bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf = deaf
}

// TestNodesAreToldWhatWasShown: each control node is told once of each grant
// certificate, also of one that was refused; one that is away is told later; who
// is no node of ours is told nothing; identities are nobody's business.
func TestNodesAreToldWhatWasShown(t *testing.T) {
	p := newPKI(t)
	doc := feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()}
	first, second := startControl(t, p, nodeOne, doc), startControl(t, p, "spiffe://acme.test/node/n2", doc)
	impostor := startControl(t, p, "spiffe://acme.test/service/payments", doc)
	second.setDeaf(true)
	e := start(t, options{pki: p, upstream: upstreamServer(t, echoHandler), edit: withFeed(first.url, second.url, impostor.url)})

	used, refused, person := p.grant(time.Hour, "GET /**"), p.mint(leafSpec{
		uris: []string{grantURI(t, "ledger", newGrantID(t), "GET /**")}, issuer: p.grantIssuer,
		eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, notAfter: time.Now().Add(time.Hour),
	}), p.identity(alice)
	for range 3 {
		for _, cert := range []tls.Certificate{used, refused, person} {
			shake(t, e, cert)
		}
	}
	soon(t, "the first node is told", func() bool { return first.tells(used) == 1 && first.tells(refused) == 1 })
	if n := second.tells(used); n != 0 {
		t.Errorf("a deaf node was told %d times", n)
	}
	second.setDeaf(false)
	soon(t, "the second node is told", func() bool { return second.tells(used) == 1 && second.tells(refused) == 1 })
	last := p.grant(time.Hour, "GET /**")
	shake(t, e, last)
	soon(t, "both are told of one more", func() bool { return first.tells(last) == 1 && second.tells(last) == 1 })
	for _, n := range []*controlNode{first, second} {
		if n.tells(used) != 1 || n.tells(refused) != 1 || n.tells(person) != 0 {
			t.Errorf("told %d, %d and %d times", n.tells(used), n.tells(refused), n.tells(person))
		}
	}
	if n := impostor.tells(used); n != 0 {
		t.Errorf("an impostor was told %d times", n)
	}
	if !strings.Contains(e.logs.String(), "does not know certificates that were shown here") {
		t.Error("the proxy's log does not say what the nodes said")
	}
}

// shake shows a certificate to the proxy, and waits for what it says.
func shake(t *testing.T, e *env, cert tls.Certificate) {
	t.Helper()
	c := e.dialOnly(t, cert)
	_ = readError(c)
	_ = c.Close()
}

// soon waits for what a reporter that has met a failure does only at its next turn.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// TestShownIsBounded: however many certificates are shown, as many are remembered
// as there is room for, and what was pushed out untold is counted.
func TestShownIsBounded(t *testing.T) {
	s := newShown()
	issuer := &x509.Certificate{Raw: []byte("issuer")}
	grants := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(testGrantTD), []*x509.Certificate{issuer})
	m := &material{grants: grants}
	show := func(i int, size int) {
		leaf := &x509.Certificate{Raw: append(big.NewInt(int64(i)).Bytes(), make([]byte, size)...)}
		s.saw(&admission{grantID: "g", issuer: trust.ID(issuer), chain: []*x509.Certificate{leaf}}, m)
	}
	for i := range maxShown + 100 {
		show(i+1, 100)
		show(i+1, 100)
	}
	if len(s.list) != maxShown || len(s.known) != maxShown || s.first != 100 {
		t.Fatalf("%d remembered, %d known, from %d on", len(s.list), len(s.known), s.first)
	}
	told, next, lost := 0, uint64(0), uint64(0)
	for {
		r, after, gone := s.after(next)
		if next, lost = after, lost+gone; len(r.Certificates) == 0 {
			break
		}
		if len(r.Certificates) > reportMany || len(r.Issuers) != 1 {
			t.Fatalf("%d certificates of %d issuers at once", len(r.Certificates), len(r.Issuers))
		}
		told += len(r.Certificates)
	}
	if told != maxShown || lost != 100 || next != maxShown+100 {
		t.Errorf("%d told, %d lost, next is %d", told, lost, next)
	}
	// A thief's certificate is told, however long it is.
	show(1_000_000, 3*reportBytes)
	if r, _, _ := s.after(next); len(r.Certificates) != 1 || sha256.Sum256(r.Certificates[0]) != s.list[len(s.list)-1].sum {
		t.Errorf("a long one: %d certificates", len(r.Certificates))
	}
	// Many of them fill no memory, and the newest is there.
	for i := range 100 {
		show(2_000_000+i, reportBytes)
	}
	held := 0
	for _, c := range s.list {
		held += len(c.leaf)
	}
	if held > maxShownBytes || held != s.bytes || len(s.list) != len(s.known) || s.list[len(s.list)-1].leaf[2] != byte(2_000_099&0xff) {
		t.Errorf("%d bytes of %d certificates are held, %d counted", held, len(s.list), s.bytes)
	}
}
