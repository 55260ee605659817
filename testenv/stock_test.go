//go:build integration

package testenv_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/testenv"
)

// Programs that know nothing of Hallpass take its certificates for what they
// are: an nginx that asks for client certificates of the grants' root, with a
// service's identity as its own.
func TestNginxAsksForGrants(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	service := env.Folder("service/payments")
	front := env.Nginx(testenv.NginxOptions{Listen: "ssl http2", Server: `
    ssl_protocols TLSv1.3;
    ssl_certificate ` + service + `/cert.pem;
    ssl_certificate_key ` + service + `/key.pem;
    ssl_client_certificate ` + service + `/grants-bundle.pem;
    ssl_verify_client on;
    location / { default_type text/plain; return 200 "$ssl_client_verify $ssl_client_serial"; }`})
	short := env.Grant("alice", "payments", 2*time.Second, "GET /accounts/**")
	granted := env.Grant("alice", "payments", time.Hour, "GET /accounts/**", "grpc hallpass.test.Echo/*", "tcp")
	url := "https://localhost:" + front.Port() + "/"
	for _, version := range []string{"--http1.1", "--http2"} {
		a := curl{shell{t, env.FolderOf(granted.Cert)}, version}.want(http.StatusOK, url)
		if want := fmt.Sprintf("SUCCESS %X", granted.Cert.Leaf.SerialNumber); strings.ReplaceAll(string(a.body), " 0", " ") != want {
			t.Errorf("nginx says %q, want %q", a.body, want)
		}
		// An identity is not a grant, not even to a program that only compares roots.
		a = curl{shell{t, env.Folder("alice")}, version}.want(http.StatusBadRequest, url)
		if !strings.Contains(string(a.body), "The SSL certificate error") {
			t.Errorf("an identity: %s", a.body)
		}
	}
	expired := curl{shell{t, env.FolderOf(short.Cert)}, "--http2"}
	env.Eventually("nginx refuses what has expired", func() bool {
		return expired.get(url).status == http.StatusBadRequest
	})
	if !time.Now().After(short.Cert.Leaf.NotAfter) {
		t.Error("refused before its end")
	}
}

// The chain of a minted certificate is one that openssl accepts in its strictest
// mode for what it is for, and for nothing else.
func TestOpenSSLVerifiesAGrant(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	granted := env.Grant("alice", "payments", time.Hour, "GET,HEAD /accounts/**", "POST /refunds/*")
	sh := shell{t, env.FolderOf(granted.Cert)}
	leaf := granted.Cert.Leaf
	for _, tt := range []struct {
		name, roots, purpose string
		at                   time.Time
		want                 string // what openssl says; empty: that it is good
	}{
		{"as it is", "grants-bundle.pem", "sslclient", leaf.NotBefore.Add(time.Second), ""},
		{"at its last second", "grants-bundle.pem", "sslclient", leaf.NotAfter.Add(-time.Second), ""},
		{"afterwards", "grants-bundle.pem", "sslclient", leaf.NotAfter.Add(time.Second), "certificate has expired"},
		{"before", "grants-bundle.pem", "sslclient", leaf.NotBefore.Add(-time.Second), "certificate is not yet valid"},
		{"as a server", "grants-bundle.pem", "sslserver", leaf.NotAfter.Add(-time.Second), "unsuitable certificate purpose"},
		{"as an identity", "identity-bundle.pem", "sslclient", leaf.NotAfter.Add(-time.Second), "unable to get local issuer certificate"},
	} {
		stdout, stderr, err := sh.run("openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", tt.roots, "-untrusted", "cert.pem",
			"-purpose", tt.purpose, "-attime", fmt.Sprint(tt.at.Unix()), "cert.pem")
		if tt.want == "" && (err != nil || stdout != "cert.pem: OK\n") || tt.want != "" && (err == nil || !strings.Contains(stderr, tt.want)) {
			t.Errorf("%s: %v: %s%s, want %q", tt.name, err, stdout, stderr, tt.want)
		}
	}
	stdout, _, err := sh.run("openssl", "x509", "-in", "cert.pem", "-noout", "-subject", "-ext", "subjectAltName,keyUsage,extendedKeyUsage,basicConstraints")
	for _, want := range []string{
		"subject=\n", "Alternative Name: critical\n    URI:" + leaf.URIs[0].String() + "\n",
		"X509v3 Key Usage: critical\n    Digital Signature\n", "Extended Key Usage: \n    TLS Web Client Authentication\n",
	} {
		if err != nil || !strings.Contains(stdout, want) {
			t.Errorf("%v: %s\nlacks %q", err, stdout, want)
		}
	}
	if want := "spiffe://grants.acme.test/v1/payments/_can/http/GET.HEAD/accounts/_rest/_and/http/POST/refunds/_any/_for/acme.test/user/alice/_id/" + granted.ID; leaf.URIs[0].String() != want {
		t.Errorf("the name is %s, want %s", leaf.URIs[0], want)
	}
}
