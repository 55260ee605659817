package testenv_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/testenv"
)

// forge signs a certificate with a node's stolen grant issuer, in the name of one
// that was committed.
func forge(t *testing.T, env *testenv.Env, n *testenv.Node, like *x509.Certificate) *tls.Certificate {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(n.Keys(), "grants-issuer.key"))
	must(err)
	block, _ := pem.Decode(text)
	stolen, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(err)
	own, err := ca.GenerateKey()
	must(err)
	entry, _ := env.Manifest().Node(n.ID)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).Add(like.SerialNumber, big.NewInt(1)), URIs: []*url.URL{like.URIs[0]},
		NotBefore: like.NotBefore, NotAfter: like.NotAfter, KeyUsage: like.KeyUsage, ExtKeyUsage: like.ExtKeyUsage,
	}, entry.GrantIssuer, own.Public(), stolen)
	must(err)
	return &tls.Certificate{Certificate: [][]byte{der, entry.GrantIssuer.Raw}, PrivateKey: own}
}

// TestForgedGrantIsNoticed: a certificate that was signed with a stolen issuer key
// opens its service, as docs/security.md says, and every node raises the alarm. One
// that was committed raises none.
func TestForgedGrantIsNoticed(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p := env.Proxy("payments", testenv.ProxyOptions{Upstream: env.HTTPUpstream(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))})
	get := func(cert *tls.Certificate) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL("/accounts/1"), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := env.HTTPClient(cert).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	granted := env.Grant("alice", "payments", time.Hour, "GET /accounts/**").Cert
	get(granted)
	leaf, err := x509.ParseCertificate(granted.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	get(forge(t, env, env.Nodes()[1], leaf))
	for _, n := range env.Nodes() {
		for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			f := serialsOf(n.Server().Health())
			if f.Status == "warn" && strings.HasPrefix(f.Detail, "1 certificates were used that were never committed") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s says %+v", n.ID, f)
			}
		}
	}
}

func serialsOf(h control.Health) control.Finding {
	for _, f := range h.Findings {
		if f.Check == "serials" {
			return f
		}
	}
	return control.Finding{}
}
