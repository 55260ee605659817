package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// grantCertificate has alice's grant minted, and returns it as something to
// call with.
func (c *cluster) grantCertificate() tls.Certificate {
	c.t.Helper()
	r := c.granted()
	csr, key := newCSR(c.t)
	cert, err := c.as("user/alice").GrantCertificate(c.t.Context(), r.ID, csr)
	must(c.t, err)
	chain, err := ca.DecodeCertificates([]byte(cert.Certificate))
	must(c.t, err)
	return certificate(chain, key)
}

// TestInvariant08_AGrantIsNotAnIdentity: a grant certificate opens its scope at
// its service and nothing else; the control API turns it away in the handshake,
// on every node, and between nodes.
func TestInvariant08_AGrantIsNotAnIdentity(t *testing.T) {
	c := newCluster(t, nil)
	cert := c.grantCertificate()
	before, err := c.as("user/bob").AuditCheckpoint(t.Context())
	must(t, err)

	for _, r := range c.live() {
		tr := &http.Transport{TLSClientConfig: &tls.Config{
			RootCAs: c.roots(), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		}}
		for _, path := range []string{"/v1/whoami", "/v1/whoami?stale=true", "/v1/bundle", "/v1/revocations", "/openapi.json"} {
			resp, err := (&http.Client{Transport: tr}).Get(r.url() + path)
			if err == nil {
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				t.Fatalf("node %s answered a grant certificate at %s: %d %s", r.ID(), path, resp.StatusCode, body)
			}
		}
		tr.CloseIdleConnections()
	}
	cl := c.client(cert, c.urls()...)
	if _, err := cl.CreateRequest(t.Context(), readAccounts()); !errors.Is(err, api.ErrUnauthenticated) {
		t.Errorf("asking with a grant certificate: %v", err)
	}
	if logs := c.logs.String(); !strings.Contains(logs, "reason=grant_certificate") || !strings.Contains(logs, "a grant certificate is not an identity") {
		t.Error("the log does not say why the handshake was refused")
	}
	c.refusedBetweenNodes(cert)

	after, err := c.as("user/bob").AuditCheckpoint(t.Context())
	must(t, err)
	if after.Size != before.Size {
		t.Errorf("the log grew from %d to %d entries", before.Size, after.Size)
	}
}

// refusedBetweenNodes has a follower vouch for the holder of a grant
// certificate: the leader must not believe it.
func (c *cluster) refusedBetweenNodes(cert tls.Certificate) {
	c.t.Helper()
	leader := c.leader()
	follower := c.follower()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	must(c.t, err)
	h := http.Header{}
	h.Set(headerChain, base64.StdEncoding.EncodeToString(leaf.Raw))
	resp, err := follower.n.forward.do(context.Background(), leader.ID(), http.MethodGet, "/v1/whoami", h, nil)
	must(c.t, err)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusUnauthorized {
		c.t.Errorf("the leader answered a forwarded grant certificate with %d", resp.StatusCode)
	}
}
