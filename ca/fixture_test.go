package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/grant"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// testNow is when everything in these tests happens.
func testNow() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

const testGrantID = "01938a2b-0000-7000-8000-000000000001"

func testTD() spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("acme.test") }

func testGrantTD() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("grants.acme.test")
}

func testInitOptions() InitOptions {
	return InitOptions{TrustDomain: testTD(), Admins: []string{"ada", "grace", "linus"}, Now: testNow()}
}

// fixture is a cluster's offline folder and its nodes.
type fixture struct {
	t        testing.TB
	offline  string
	nodeDirs []string
	requests []NodeRequest
	manifest Manifest
}

// newFixture makes a cluster of so many nodes.
func newFixture(t testing.TB, nodes int) *fixture {
	t.Helper()
	f := &fixture{t: t, offline: filepath.Join(t.TempDir(), "offline")}
	must(t, Init(f.offline, testInitOptions()))
	for i := range nodes {
		dir := filepath.Join(t.TempDir(), "keys")
		f.nodeDirs = append(f.nodeDirs, dir)
		f.requests = append(f.requests, got(NewNode(dir, testNodeOptions(i+1)))(t))
	}
	if nodes > 0 {
		f.manifest = got(SignNodes(f.offline, f.requests, SignOptions{Now: testNow()}))(t)
	}
	return f
}

func testNodeOptions(n int) NodeOptions {
	return NodeOptions{
		ID:          fmt.Sprintf("n%d", n),
		TrustDomain: testTD(),
		RaftAddress: fmt.Sprintf("127.0.0.1:%d", 7000+n),
		APIAddress:  fmt.Sprintf("127.0.0.1:%d", 8000+n),
		DNSNames:    []string{fmt.Sprintf("n%d.acme.test", n), "localhost"},
	}
}

func (f *fixture) node(i int) *Node {
	f.t.Helper()
	return got(LoadNode(f.nodeDirs[i], f.manifest))(f.t)
}

// issuerKey reads a node's issuer key: what a thief of the node would have.
func (f *fixture) issuerKey(i int, name string) crypto.Signer {
	f.t.Helper()
	return got(readKey(filepath.Join(f.nodeDirs[i], name)))(f.t)
}

func (f *fixture) grantSpec(pub crypto.PublicKey) GrantSpec {
	f.t.Helper()
	scope := got(grant.ParseScope("payments", []string{"GET,HEAD /accounts/**", "POST /refunds/*"}))(f.t)
	id := got(grant.NewID(testGrantTD(), scope, spiffeid.RequireFromString("spiffe://acme.test/user/alice"), testGrantID))(f.t)
	return GrantSpec{
		ID: id, PublicKey: pub, Now: testNow(), TTL: 5 * time.Minute,
		GrantExpiry: testNow().Add(time.Hour), Skew: 10 * time.Second,
	}
}

func (f *fixture) identitySpec(pub crypto.PublicKey) IdentitySpec {
	f.t.Helper()
	return IdentitySpec{
		ID:       spiffeid.RequireFromString("spiffe://acme.test/service/payments"),
		DNSNames: []string{"payments.acme.test", "localhost"}, PublicKey: pub,
		Now: testNow(), TTL: 24 * time.Hour, Skew: 10 * time.Second,
	}
}

// signed commits and signs a ticket.
func signed(t *testing.T, ticket *Ticket, err error) []*x509.Certificate {
	t.Helper()
	must(t, err)
	return got(ticket.Sign(ticket.Record()))(t)
}

// forge signs a certificate with a stolen issuer key, past all of this package.
func forge(t *testing.T, template x509.Certificate, pub crypto.PublicKey, issuer *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(4711)
	template.NotBefore, template.NotAfter = testNow().Add(-time.Minute), testNow().Add(time.Hour)
	der := got(x509.CreateCertificate(rand.Reader, &template, issuer, pub, key))(t)
	return got(x509.ParseCertificate(der))(t)
}

// countingKey counts the signatures that a key made.
type countingKey struct {
	crypto.Signer
	signatures atomic.Int64
}

func (k *countingKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.signatures.Add(1)
	return k.Signer.Sign(rand, digest, opts)
}

// openssl runs the real tool. It is part of what these tests need, so that a
// machine without it fails them.
func openssl(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatalf("openssl is needed: certificates are read by others than us: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err
}

// opensslVerify asks openssl whether a chain leads to the roots for a purpose.
func opensslVerify(t *testing.T, chain, roots []*x509.Certificate, purpose string, at time.Time) error {
	t.Helper()
	dir := t.TempDir()
	leaf, middle, ca := filepath.Join(dir, "leaf"), filepath.Join(dir, "middle"), filepath.Join(dir, "ca")
	must(t, os.WriteFile(leaf, EncodeCertificates(chain[0]), 0o600))
	must(t, os.WriteFile(ca, EncodeCertificates(roots...), 0o600))
	args := []string{
		"verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-attime", fmt.Sprint(at.Unix()),
		"-purpose", purpose, "-CAfile", ca,
	}
	if len(chain) > 1 {
		must(t, os.WriteFile(middle, EncodeCertificates(chain[1:]...), 0o600))
		args = append(args, "-untrusted", middle)
	}
	out, err := openssl(t, append(args, leaf)...)
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(out))
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// got unwraps a value and an error: got(f())(t).
func got[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ips(texts ...string) []net.IP {
	var list []net.IP
	for _, text := range texts {
		list = append(list, net.ParseIP(text))
	}
	return list
}
