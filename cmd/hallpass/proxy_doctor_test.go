package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/proxy"
)

// TestProxyDoctor: its exit status is the answer.
func TestProxyDoctor(t *testing.T) {
	dir := t.TempDir()
	put := func(name, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serial := int64(0)
	make1 := func(name, uri string, ca bool, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		serial++
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
			URIs: []*url.URL{u}, BasicConstraintsValid: true, IsCA: ca, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
		if ca {
			c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageCertSign, nil
		}
		if parent == nil {
			parent, signer = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		put(name+".pem", "CERTIFICATE", der)
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		put(name+".key", "PRIVATE KEY", private)
		made, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return made, key
	}
	identities, idKey := make1("identities", "spiffe://acme.test", true, nil, nil)
	grants, grantKey := make1("grants", "spiffe://grants.acme.test", true, nil, nil)
	make1("service", "spiffe://acme.test/service/payments", false, identities, idKey)
	make1("alice", "spiffe://grants.acme.test/v1/payments/_can/http/GET/a/_for/acme.test/user/alice/_id/"+provable, false, grants, grantKey)
	config := filepath.Join(dir, "proxy.yaml")
	if err := os.WriteFile(config, []byte(`service: payments
listen: 127.0.0.1:0
hosts: [payments.acme.test]
upstream: http://127.0.0.1:1
trust_domain: acme.test
certificate: service.pem
key: service.key
identity_bundle: identities.pem
grants_bundle: grants.pem
access_log: {path: access.jsonl}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	doctor := func(more ...string) ran {
		return run(t, nil, append([]string{"proxy", "doctor", "--config", config, "--cert", filepath.Join(dir, "alice.pem")}, more...)...)
	}
	if got := doctor("--request", "GET /a"); got.status != exitOK || !strings.Contains(got.stdout, "payments would admit it") {
		t.Errorf("admitted: %+v", got)
	}
	got := doctor("--request", "GET /b", "-o", "json")
	var d proxy.Diagnosis
	if err := json.Unmarshal([]byte(got.stdout), &d); err != nil || got.status != exitDenied || d.Admitted || d.Reason != "outside_scope" || d.Grant != provable {
		t.Errorf("refused: %+v, %v, %+v", d, err, got)
	}
	if got := doctor("--request", "GET"); got.status != exitUsage {
		t.Errorf("no question: %+v", got)
	}
	if got := run(t, nil, "proxy", "doctor"); got.status != exitUsage {
		t.Errorf("nothing: %+v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "access.jsonl")); !os.IsNotExist(err) {
		t.Errorf("the doctor made an access log: %v", err)
	}
	put("grants.pem", "CERTIFICATE", []byte("x"))
	if got := doctor(); got.status != exitError || !strings.Contains(got.stderr, "would not start") {
		t.Errorf("a proxy that would not start: %+v", got)
	}
}
