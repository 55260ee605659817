package control

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/trust"
)

// leafAndIssuer has a grant made and returns its certificate and who signed it.
func (c *cluster) leafAndIssuer() (leaf, issuer *x509.Certificate) {
	c.t.Helper()
	csr, _ := newCSR(c.t)
	cert, err := c.as("user/alice").GrantCertificate(c.t.Context(), c.granted().ID, csr)
	must(c.t, err)
	chain, err := ca.DecodeCertificates([]byte(cert.Certificate))
	must(c.t, err)
	return chain[0], chain[1]
}

// stolen signs what the thief of a node's grant issuer likes, with the name of a
// certificate that was committed.
func (c *cluster) stolen(node string, like *x509.Certificate, change func(*x509.Certificate)) (leaf, issuer *x509.Certificate) {
	c.t.Helper()
	e, _ := c.manifest.Node(node)
	text, err := os.ReadFile(filepath.Join(c.keys(node), "grants-issuer.key"))
	must(c.t, err)
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(c.t, err)
	own, err := ca.GenerateKey()
	must(c.t, err)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).Set(like.SerialNumber), URIs: []*url.URL{like.URIs[0]},
		NotBefore: like.NotBefore, NotAfter: like.NotAfter, KeyUsage: like.KeyUsage, ExtKeyUsage: like.ExtKeyUsage,
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, e.GrantIssuer, own.Public(), key)
	must(c.t, err)
	leaf, err = x509.ParseCertificate(der)
	must(c.t, err)
	return leaf, e.GrantIssuer
}

// reported is what a node answers to a report.
func (c *cluster) reported(t *testing.T, at *running, who string, in api.SeenInput) (status int, out api.Seen) {
	t.Helper()
	body, err := json.Marshal(in)
	must(t, err)
	status, _, answer := post(t, c.raw(who), at.url()+"/v1/certificates/seen", string(body))
	if status == http.StatusOK {
		must(t, json.Unmarshal(answer, &out))
	}
	return status, out
}

func seen(leaf, issuer *x509.Certificate) api.SeenInput {
	return api.SeenInput{Issuers: [][]byte{issuer.Raw}, Certificates: [][]byte{leaf.Raw}}
}

// TestForgedSerialRaisesTheAlarm: a certificate of a stolen issuer that a proxy
// was shown is told of by each node that hears of it, also under a serial that was
// committed, across a restart and until the issuer is denied.
func TestForgedSerialRaisesTheAlarm(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leaf, issuer := c.leafAndIssuer()
	for _, r := range c.live() {
		if status, out := c.reported(t, r, "service/payments", seen(leaf, issuer)); status != http.StatusOK || out.Committed+out.Pending != 1 {
			t.Errorf("%s: committed: %d %+v", r.ID(), status, out)
		}
	}
	fresh, by := c.stolen("n2", leaf, func(f *x509.Certificate) { f.SerialNumber.Add(f.SerialNumber, big.NewInt(1)) })
	borrowed, _ := c.stolen("n2", leaf, func(*x509.Certificate) {})
	for i, forged := range []*x509.Certificate{fresh, borrowed, borrowed} {
		for _, r := range c.live() {
			if status, out := c.reported(t, r, "service/payments", seen(forged, by)); status != http.StatusOK || out.Pending != 1 {
				t.Errorf("%s: forged %d: %d %+v", r.ID(), i, status, out)
			}
		}
	}
	alarmed := func(r *running) bool {
		f := finding(r.Health(), "serials")
		return f.Status == statusWarn && strings.HasPrefix(f.Detail, "2 certificates were used that were never committed") &&
			strings.Contains(f.Detail, trust.ID(by))
	}
	for _, r := range c.live() {
		c.until("node "+r.ID()+" raises the alarm", func() bool { return alarmed(r) })
		if !r.Health().Ready {
			t.Errorf("%s is out of use for what a thief did", r.ID())
		}
	}
	id := c.follower().ID()
	c.halt(id)
	c.start(id)
	c.awaitReady()
	if r := c.node(id); !alarmed(r) {
		t.Errorf("after a restart: %+v", finding(r.Health(), "serials"))
	}
	_, err := c.as("user/ann").DenyIssuer(t.Context(), trust.ID(by), "stolen")
	must(t, err)
	for _, r := range c.live() {
		c.until("node "+r.ID()+" is content", func() bool { return finding(r.Health(), "serials").Status == statusOK })
	}
}

// TestNoFalseAlarm: what anybody can make up raises none, and neither does what
// only services may say.
func TestNoFalseAlarm(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leaf, issuer := c.leafAndIssuer()
	r := c.leader()
	other := newOffline(t, 1) // another cluster of the same names
	foreign, foreignIssuer := (&cluster{offline: other, t: t}).stolen("n1", leaf, func(*x509.Certificate) {})
	renamed, by := c.stolen("n2", leaf, func(f *x509.Certificate) {
		f.URIs = []*url.URL{{Scheme: "spiffe", Host: "acme.test", Path: "/user/bob"}}
	})
	old, _ := c.stolen("n2", leaf, func(f *x509.Certificate) {
		f.SerialNumber = big.NewInt(77)
		f.NotBefore, f.NotAfter = time.Now().Add(-8*24*time.Hour), time.Now().Add(-7*24*time.Hour)
	})
	for name, x := range map[string]struct {
		in   api.SeenInput
		want api.Seen
	}{
		"another cluster's":         {seen(foreign, foreignIssuer), api.Seen{Refused: 1}},
		"without its issuer":        {api.SeenInput{Issuers: [][]byte{}, Certificates: [][]byte{leaf.Raw}}, api.Seen{Refused: 1}},
		"with another's issuer":     {seen(leaf, by), api.Seen{Refused: 1}},
		"no grant's":                {seen(renamed, by), api.Seen{Refused: 1}},
		"an issuer itself":          {seen(issuer, c.manifest.GrantRoots[0]), api.Seen{Refused: 1}},
		"one that may be forgotten": {seen(old, by), api.Seen{Committed: 1}},
		"nothing":                   {api.SeenInput{Issuers: [][]byte{}, Certificates: [][]byte{}}, api.Seen{}},
	} {
		if issuer.Equal(by) && name == "with another's issuer" {
			continue
		}
		if status, out := c.reported(t, r, "service/payments", x.in); status != http.StatusOK || out != x.want {
			t.Errorf("%s: %d %+v, want %+v", name, status, out, x.want)
		}
	}
	forged, _ := c.stolen("n2", leaf, func(f *x509.Certificate) { f.SerialNumber = big.NewInt(99) })
	for _, who := range []string{"user/ann", "user/alice", "node/n1"} {
		if status, _ := c.reported(t, r, who, seen(forged, by)); status != http.StatusForbidden {
			t.Errorf("%s: %d", who, status)
		}
	}
	if status, _ := c.reported(t, r, "service/payments", api.SeenInput{Issuers: [][]byte{}, Certificates: [][]byte{[]byte("x")}}); status != http.StatusUnprocessableEntity && status != http.StatusBadRequest {
		t.Errorf("no certificate: %d", status)
	}
	if f := finding(r.Health(), "serials"); f.Status != statusOK {
		t.Errorf("%+v", f)
	}
}

// TestNoAlarmWithoutAQuorum: what a node does not have yet may be on its way, so
// that alone it says nothing; once it has all, it does.
func TestNoAlarmWithoutAQuorum(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leaf, _ := c.leafAndIssuer()
	forged, by := c.stolen("n1", leaf, func(f *x509.Certificate) { f.SerialNumber = big.NewInt(99) })
	alone := c.follower()
	for _, r := range c.live() {
		if r != alone {
			c.crash(r.ID())
		}
	}
	c.until("it knows of no leader", func() bool { _, ok := alone.Store().Leader(); return !ok })
	status, out := c.reported(t, alone, "service/payments", seen(forged, by))
	if status != http.StatusOK || out.Pending != 1 {
		t.Fatalf("%d %+v", status, out)
	}
	if err := alone.n.lookInto(t.Context()); err == nil {
		t.Error("it has made up its mind alone")
	}
	if f := finding(alone.Health(), "serials"); f.Status != statusOK {
		t.Errorf("alone: %+v", f)
	}
	for _, e := range c.manifest.Nodes {
		if e.ID != alone.ID() {
			c.start(e.ID)
		}
	}
	c.until("it raises the alarm", func() bool { return finding(alone.Health(), "serials").Status == statusWarn })
}

// TestAlarmsAreBounded: a thief who makes many certificates fills no disk, and does
// not blind the node to the next theft.
func TestAlarmsAreBounded(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leaf, _ := c.leafAndIssuer()
	r := c.leader()
	report := func(node string, serials int) (issuer string, out api.Seen) {
		t.Helper()
		var in api.SeenInput
		for i := range serials {
			forged, by := c.stolen(node, leaf, func(f *x509.Certificate) { f.SerialNumber = big.NewInt(int64(1000 + i)) })
			in.Issuers, in.Certificates, issuer = [][]byte{by.Raw}, append(in.Certificates, forged.Raw), trust.ID(by)
		}
		status, out := c.reported(t, r, "service/payments", in)
		if status != http.StatusOK {
			t.Fatalf("%d", status)
		}
		return issuer, out
	}
	says := func(words ...string) func() bool {
		return func() bool {
			f := finding(r.Health(), "serials")
			return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(f.Detail, w) })
		}
	}
	first, _ := report("n2", 60)
	c.until("the alarm", says("10 certificates", first))
	if _, out := report("n2", 60); out.Dropped != 60 {
		t.Errorf("more of the same issuer: %+v", out)
	}
	_, err := c.as("user/ann").DenyIssuer(t.Context(), first, "stolen")
	must(t, err)
	c.until("the alarm is over", func() bool { return finding(r.Health(), "serials").Status == statusOK })
	second, _ := report("n3", 1)
	c.until("the alarm at another theft", says("1 certificates", second))
	kept, err := os.ReadDir(filepath.Join(c.dir, "data", r.ID(), uncommittedDir))
	if err != nil || len(kept) != maxOfIssuer+1 {
		t.Errorf("%d kept, %v", len(kept), err)
	}
}

// TestManySignaturesAreNotChecked: sixty-four certificates by sixty-four issuers of
// one name cost a node no 4096 signature checks, as none of the issuers is its own.
func TestManySignaturesAreNotChecked(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leaf, issuer := c.leafAndIssuer()
	key, err := ca.GenerateKey()
	must(t, err)
	var in api.SeenInput
	for i := range 64 {
		fake := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: issuer.Subject, NotBefore: issuer.NotBefore, NotAfter: issuer.NotAfter,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, fake, fake, key.Public(), key)
		must(t, err)
		in.Issuers, in.Certificates = append(in.Issuers, der), append(in.Certificates, leaf.Raw)
	}
	issuers, err := parseDER(in.Issuers)
	must(t, err)
	if ours, err := c.leader().n.ofGrants(issuers); err != nil || len(ours) != 0 {
		t.Errorf("%d issuers are ours, %v", len(ours), err)
	}
	if status, out := c.reported(t, c.leader(), "service/payments", in); status != http.StatusOK || out.Refused != 64 {
		t.Errorf("%d %+v", status, out)
	}
	in.Issuers = append(in.Issuers[:63], issuer.Raw)
	if status, out := c.reported(t, c.leader(), "service/payments", in); status != http.StatusOK || out.Committed+out.Pending != 64 {
		t.Errorf("with the right one among them: %d %+v", status, out)
	}
}
