package control

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// forged is alice's identity as edit would have it, signed by the cluster's own
// identity root: what is wrong with it is nothing but the edit.
func (o *offline) forged(t *testing.T, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(o.dir, "identity-root.key"))
	must(t, err)
	rootKey, err := ca.DecodeKey(text)
	must(t, err)
	root := o.manifest.IdentityRoots[0]
	c := &x509.Certificate{
		SerialNumber: big.NewInt(4711), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: uris(t, "spiffe://acme.test/user/alice"), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	edit(c)
	key, err := ca.GenerateKey()
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, c, root, key.Public(), rootKey)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	return certificate([]*x509.Certificate{leaf}, key)
}

func uris(t *testing.T, texts ...string) []*url.URL {
	t.Helper()
	var out []*url.URL
	for _, text := range texts {
		u, err := url.Parse(text)
		must(t, err)
		out = append(out, u)
	}
	return out
}

// strangers are certificates of the cluster's own root that are no identity of
// its trust domain here and now, each with what the log says of it.
func (o *offline) strangers(t *testing.T) map[string]struct {
	cert         tls.Certificate
	reason, says string
} {
	t.Helper()
	type row = struct {
		cert         tls.Certificate
		reason, says string
	}
	with := func(edit func(*x509.Certificate)) tls.Certificate { return o.forged(t, edit) }
	named := func(texts ...string) tls.Certificate {
		return with(func(c *x509.Certificate) { c.URIs = uris(t, texts...) })
	}
	return map[string]row{
		"expired": {with(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
		}), "expired", "has expired"},
		"not yet valid":  {with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "not_yet_valid", "not yet valid"},
		"another domain": {named("spiffe://evil.test/user/alice"), "untrusted", "not a member of acme.test"},
		"a subdomain":    {named("spiffe://x.acme.test/user/alice"), "untrusted", "not a member of acme.test"},
		"the domain":     {named("spiffe://acme.test"), "untrusted", "not a member of acme.test"},
		"the grants' domain": {
			named("spiffe://grants.acme.test/v1/payments/_can/tcp/_for/acme.test/user/alice/_id/" + placeholderID),
			"grant_certificate", "a grant certificate is not an identity",
		},
		"two URIs":  {named("spiffe://acme.test/user/alice", "spiffe://acme.test/user/ann"), "untrusted", "2 URI names"},
		"no URI":    {with(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"acme.test"} }), "untrusted", "0 URI names"},
		"over-long": {named("spiffe://acme.test/" + strings.Repeat("a", 2048)), "untrusted", "a SPIFFE ID of 2067 bytes"},
		"an escape": {named("spiffe://acme.test/user/%61lice"), "untrusted", "path segment"},
		"a server's": {
			with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
			"untrusted", "not for TLS clients",
		},
		"for no use":   {with(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), "untrusted", "not for TLS clients"},
		"for any use":  {with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), "untrusted", "not for TLS clients"},
		"no signing":   {with(func(c *x509.Certificate) { c.KeyUsage = 0 }), "untrusted", "may not sign"},
		"an authority": {with(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), "untrusted", "CA flag"},
	}
}

// TestStrangersWithOurRoot: what the root signed is still no identity unless it
// is one, neither in a handshake nor in the mouth of another node.
func TestStrangersWithOurRoot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leader, follower := c.leader(), c.follower()
	if status, _ := c.asserted(t, follower, leader, c.forged(t, func(*x509.Certificate) {}), "GET", "/v1/whoami", ""); status != http.StatusOK {
		t.Fatalf("an unedited certificate: %d", status)
	}
	for name, s := range c.strangers(t) {
		t.Run(name, func(t *testing.T) {
			before := len(c.logs.String())
			tr := &http.Transport{TLSClientConfig: &tls.Config{
				RootCAs: c.roots(), Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS13,
			}}
			defer tr.CloseIdleConnections()
			resp, err := (&http.Client{Transport: tr}).Get(follower.url() + "/v1/whoami?stale=true")
			if err == nil {
				_ = resp.Body.Close()
				t.Fatalf("answered with %s", resp.Status)
			}
			if !strings.Contains(err.Error(), "tls") {
				t.Errorf("no TLS alert, but %v", err)
			}
			said := c.logs.String()[before:]
			if !strings.Contains(said, "reason="+s.reason) || !strings.Contains(said, s.says) {
				t.Errorf("the log says nothing of %s, %q:\n%s", s.reason, s.says, said)
			}
			status, answer := c.asserted(t, follower, leader, s.cert, "GET", "/v1/whoami", "")
			if status != http.StatusUnauthorized {
				t.Errorf("forwarded: %d %s", status, answer)
			}
		})
	}
}

// asserted is a call that a node, or who stole its transport key, makes at
// another in the name of a chain.
func (c *cluster) asserted(t *testing.T, as, at *running, who tls.Certificate, method, target, body string) (status int, answer string) {
	t.Helper()
	var der []byte
	for _, d := range who.Certificate {
		der = append(der, d...)
	}
	h := http.Header{}
	h.Set(headerChain, base64.StdEncoding.EncodeToString(der))
	return c.told(t, as, at, h, method, target, body)
}

// told is a call between nodes with these headers.
func (c *cluster) told(t *testing.T, as, at *running, h http.Header, method, target, body string) (status int, answer string) {
	t.Helper()
	if body != "" {
		h.Set("Content-Type", "application/json")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	resp, err := as.n.forward.do(ctx, at.ID(), method, target, h, []byte(body))
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(text)
}

// TestStolenTransportKey: what the thief of a node's transport key can and
// cannot have the leader do. That it can speak for callers whose certificate
// chain it has, without their key, is a limit that docs/security.md states; the
// entry names the node that vouched.
func TestStolenTransportKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leader, thief := c.leader(), c.follower()
	alice := c.identity(t, "spiffe://acme.test/user/alice")
	status, answer := c.asserted(t, thief, leader, alice, "POST", "/v1/requests", rawRequest)
	if status != http.StatusCreated {
		t.Fatalf("%d %s", status, answer)
	}
	if entry := c.lastEntry(t); entry.Node != thief.ID() || entry.Actor != "spiffe://acme.test/user/alice" {
		t.Errorf("the entry says %+v, %s vouched", entry, thief.ID())
	}

	// Without a chain, with one that nobody signed, or that is not hers, nothing.
	tampered := alice
	tampered.Certificate = [][]byte{append([]byte(nil), alice.Certificate[0]...)}
	tampered.Certificate[0][len(tampered.Certificate[0])-1] ^= 1
	self := c.forged(t, func(*x509.Certificate) {})
	own, err := ca.GenerateKey()
	must(t, err)
	self.Leaf.PublicKey = own.Public()
	der, err := x509.CreateCertificate(rand.Reader, self.Leaf, self.Leaf, own.Public(), own)
	must(t, err)
	self.Certificate = [][]byte{der}
	for name, cert := range map[string]tls.Certificate{"tampered": tampered, "self-signed": self, "nothing": {}} {
		if status, answer := c.asserted(t, thief, leader, cert, "GET", "/v1/whoami", ""); status != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	chain := base64.StdEncoding.EncodeToString(alice.Certificate[0])
	bob := base64.StdEncoding.EncodeToString(c.identity(t, "spiffe://acme.test/user/bob").Certificate[0])
	for name, h := range map[string]http.Header{
		"no header":    {},
		"PEM":          {headerChain: {url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: alice.Certificate[0]})))}},
		"no base64":    {headerChain: {"!" + chain}},
		"more than it": {headerChain: {base64.StdEncoding.EncodeToString(append(append([]byte(nil), alice.Certificate[0]...), 0))}},
		"two headers":  {headerChain: {chain, bob}},
		"too long":     {headerChain: {strings.Repeat("A", maxChainHeader)}},
	} {
		status, answer := c.told(t, thief, leader, h, "GET", "/v1/whoami", "")
		if status != http.StatusUnauthorized && status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	c.thiefIsBounded(t, thief, leader, alice)
	c.check()
}

// thiefIsBounded: what a caller may not do, a node may not do in its name.
func (c *cluster) thiefIsBounded(t *testing.T, thief, leader *running, alice tls.Certificate) {
	t.Helper()
	var r api.Request
	_, answer := c.asserted(t, thief, leader, alice, "POST", "/v1/requests", rawRequest)
	must(t, json.Unmarshal([]byte(answer), &r))
	for name, call := range map[string]struct {
		target, body string
		status       int
	}{
		"self-approval":   {"/v1/requests/" + r.ID + "/decisions", `{"decision":"approve","hash":"` + r.Hash + `"}`, http.StatusForbidden},
		"admin's call":    {"/v1/subjects/block", `{"subject":"spiffe://acme.test/user/bob","reason":"x"}`, http.StatusForbidden},
		"a huge body":     {"/v1/requests", strings.Replace(rawRequest, "ticket 7", strings.Repeat("x", 100<<10), 1), http.StatusRequestEntityTooLarge},
		"a path twice":    {"/v1//requests", rawRequest, http.StatusNotFound},
		"no route at all": {"/v1/../peer/verified", rawRequest, http.StatusNotFound},
	} {
		if status, answer := c.asserted(t, thief, leader, alice, "POST", call.target, call.body); status != call.status {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
}
