package ca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/trust"
)

func (f *fixture) renewer(m *memoryKMS) *Renewer {
	f.t.Helper()
	r := got(OpenRenewer(f.offline, m.open))(f.t)
	f.t.Cleanup(r.Close)
	return r
}

func (f *fixture) renewedFile(node string) string {
	return filepath.Join(f.offline, RenewedDir, node+".json")
}

// TestRenewer renews one node again and again: the same keys and names, and never
// more often than it must.
func TestRenewer(t *testing.T) {
	f, m := newKMSFixture(t, 2)
	r := f.renewer(m)
	must(t, r.CheckKeys())
	if _, err := OpenRenewer(f.offline, m.open); !errors.Is(err, ErrExists) {
		t.Errorf("two at a time: %v", err)
	}
	first, _ := f.manifest.Node("n1")
	now := testNow()
	for range 4 {
		last := got(r.Last("n1"))(t)
		if due := last.RenewAt(); due.Before(now) || due.After(now.Add(KMSIssuerLife/2)) {
			t.Fatalf("signed at %s, due at %s", now, due)
		}
		now = last.RenewAt()
		c := got(r.Renew("n1", KMSIssuerLife, now))(t)
		for _, pair := range [][2]*x509.Certificate{{c.IdentityIssuer, first.IdentityIssuer}, {c.GrantIssuer, first.GrantIssuer}, {c.APICertificate, first.APICertificate}} {
			if !samePublicKey(pair[0].PublicKey, pair[1].PublicKey) || pair[0].Subject.String() != pair[1].Subject.String() || !pair[0].NotAfter.After(pair[1].NotAfter) {
				t.Errorf("%q follows %q", pair[0].Subject, pair[1].Subject)
			}
		}
		if strings.Join(c.APICertificate.DNSNames, " ") != strings.Join(first.APICertificate.DNSNames, " ") {
			t.Errorf("the API is named %q", c.APICertificate.DNSNames)
		}
		must(t, checkIssuer(c.GrantIssuer, f.manifest.GrantRoots, RoleGrants, testGrantTD()))
		must(t, checkIssuer(c.IdentityIssuer, f.manifest.IdentityRoots, RoleIdentity, testTD()))
	}
	must(t, lastOfAll(r))
}

// lastOfAll reads what is in the folder as the next round would.
func lastOfAll(r *Renewer) error {
	for _, n := range r.Manifest().Nodes {
		if _, err := r.Last(n.ID); err != nil {
			return err
		}
	}
	return nil
}

// TestRenewerIsPaced: a caller that goes wild, or a clock that jumps, gets no
// drawer full of issuers, also after a restart.
func TestRenewerIsPaced(t *testing.T) {
	f, m := newKMSFixture(t, 1)
	r := f.renewer(m)
	now := testNow().Add(24 * time.Hour)
	signed := 0
	for range 10 {
		_, err := r.Renew("n1", KMSIssuerLife, now)
		if err == nil {
			signed++
		} else if !errors.Is(err, ErrPaced) {
			t.Fatal(err)
		}
		now = now.Add(time.Minute)
		r.Close()
		r = f.renewer(m)
	}
	// The manifest's was one of the three.
	if signed != triesAtRenewal-1 {
		t.Errorf("signed %d times", signed)
	}
	if _, err := r.Renew("n1", KMSIssuerLife, now.Add(-10*24*time.Hour)); !errors.Is(err, ErrPaced) {
		t.Errorf("with the clock set back: %v", err)
	}
	got(r.Renew("n1", KMSIssuerLife, now.Add(KMSIssuerLife)))(t)
}

// TestRenewerRefuses is a thief of the folder, who has not got the KMS, and a node
// that is out.
func TestRenewerRefuses(t *testing.T) {
	f, m := newKMSFixture(t, 2)
	must(t, os.MkdirAll(filepath.Join(f.offline, RenewedDir), 0o700))
	now := testNow().Add(KMSIssuerLife / 2)
	calm := len(got(os.ReadFile(filepath.Join(f.offline, journalFile)))(t))
	refused := func(what string, c NodeCertificates, want error) {
		t.Helper()
		must(t, os.WriteFile(f.renewedFile("n1"), got(c.Encode())(t), 0o600))
		r := f.renewer(m)
		defer r.Close()
		if _, err := r.Renew("n1", KMSIssuerLife, now); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	thiefs, thiefsKMS := newKMSFixture(t, 2)
	theirs := got(RenewNodes(thiefs.offline, thiefs.requests, SignOptions{Now: testNow().Add(time.Hour), Open: thiefsKMS.open}))(t)
	refused("of other roots", theirs[0], ErrUntrusted)

	second, _ := f.manifest.Node("n2")
	another := NodeCertificates{Node: "n1", IdentityIssuer: second.IdentityIssuer, GrantIssuer: second.GrantIssuer, APICertificate: second.APICertificate}
	refused("another node's", another, ErrUntrusted)
	another.Node = "n2"
	refused("another node's, and says so", another, ErrInvalid)

	// Signed by these roots, by whoever else has the KMS, with keys of his own.
	must(t, os.Remove(f.renewedFile("n1")))
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	must(t, os.CopyFS(elsewhere, os.DirFS(f.offline)))
	for _, name := range []string{"identity-root.kms", "grants-root.kms"} {
		must(t, os.Chmod(filepath.Join(elsewhere, name), 0o600))
	}
	o := testNodeOptions(1)
	o.NewKeys = true
	mine := got(NewNode(f.nodeDirs[0], o))(t)
	stolen := got(RenewNodes(elsewhere, []NodeRequest{mine}, SignOptions{Now: testNow().Add(time.Hour), Open: m.open}))(t)[0]
	refused("signed elsewhere", stolen, ErrUntrusted)

	if after := len(got(os.ReadFile(filepath.Join(f.offline, journalFile)))(t)); after != calm {
		t.Error("something was signed")
	}
	// The same keys, signed here: an operator has compared the request.
	must(t, os.Remove(f.renewedFile("n1")))
	confirmed := got(RenewNodes(f.offline, []NodeRequest{mine}, SignOptions{Now: testNow().Add(time.Hour), Open: m.open}))(t)[0]
	r := f.renewer(m)
	next := got(r.Renew("n1", KMSIssuerLife, now))(t)
	if !samePublicKey(next.GrantIssuer.PublicKey, confirmed.GrantIssuer.PublicKey) || !mine.Asks(next) || f.requests[1].Asks(next) {
		t.Error("renewed with other keys than were confirmed")
	}
	r.Close()

	got(DenyIssuers(f.offline, []string{trust.ID(next.GrantIssuer)}, RootsOptions{Grants: true, Open: m.open, Now: now}))(t)
	r = f.renewer(m)
	if _, err := r.Renew("n1", KMSIssuerLife, now.Add(KMSIssuerLife/2)); !errors.Is(err, ErrRefused) {
		t.Errorf("denied by document: %v", err)
	}
	if _, err := r.Renew("n9", KMSIssuerLife, now); !errors.Is(err, ErrInvalid) {
		t.Errorf("a node that is not in the manifest: %v", err)
	}
	for _, life := range []time.Duration{0, time.Second, IssuerLife + time.Hour} {
		if _, err := r.Renew("n2", life, now); !errors.Is(err, ErrInvalid) {
			t.Errorf("a life of %s: %v", life, err)
		}
	}
}

// TestRenewerKeepsToItsRoot: while operators go over to new roots, renewal goes on
// with the old ones until they say otherwise, or those are retired.
func TestRenewerKeepsToItsRoot(t *testing.T) {
	f, m := newKMSFixture(t, 1)
	o := both()
	o.Open, o.Keys = m.open, kmsKeys("2")
	got(RotateRoots(f.offline, o))(t)
	r := f.renewer(m)
	now := testNow().Add(KMSIssuerLife / 2)
	c := got(r.Renew("n1", KMSIssuerLife, now))(t)
	must(t, c.GrantIssuer.CheckSignatureFrom(f.manifest.GrantRoots[0]))
	me := got(r.Identity("/service/signer", got(GenerateKey())(t).Public(), time.Hour, now))(t)
	must(t, me[0].CheckSignatureFrom(f.manifest.IdentityRoots[0]))
	if r.RootGone(c) {
		t.Error("its root has not gone")
	}
	r.Close()
	got(RetireRoots(f.offline, o))(t)
	r = f.renewer(m)
	if !r.RootGone(c) {
		t.Error("its root has gone")
	}
	c = got(r.Renew("n1", KMSIssuerLife, now.Add(time.Hour)))(t)
	if c.GrantIssuer.CheckSignatureFrom(f.manifest.GrantRoots[0]) == nil || r.RootGone(c) {
		t.Error("renewed by a retired root")
	}
}

// TestRenewerLeavesKeysOnDisk: a signer is on the network all day.
func TestRenewerLeavesKeysOnDisk(t *testing.T) {
	f, m := newFixture(t, 1), newMemoryKMS()
	r := f.renewer(m)
	if err := r.CheckKeys(); !errors.Is(err, ErrKeyOnDisk) {
		t.Error(err)
	}
	if _, err := r.Renew("n1", KMSIssuerLife, testNow().Add(50*24*time.Hour)); !errors.Is(err, ErrKeyOnDisk) {
		t.Error(err)
	}
	if _, err := r.Identity("/service/signer", got(GenerateKey())(t).Public(), time.Hour, testNow()); !errors.Is(err, ErrKeyOnDisk) {
		t.Error(err)
	}
}

// TestJournalAfterATornLine: a machine that stopped in the middle of a line takes
// the next one with it to nobody.
func TestJournalAfterATornLine(t *testing.T) {
	f, m := newKMSFixture(t, 1)
	path := filepath.Join(f.offline, journalFile)
	text := got(os.ReadFile(path))(t)
	must(t, os.WriteFile(path, append(text, []byte(`{"time":"2026-`)...), 0o600))
	r := f.renewer(m)
	c := got(r.Renew("n1", KMSIssuerLife, testNow().Add(KMSIssuerLife/2)))(t)
	r.Close()
	r = f.renewer(m)
	if last := got(r.Last("n1"))(t); !last.GrantIssuer.Equal(c.GrantIssuer) {
		t.Error("not what was signed last")
	}
	if after := got(os.ReadFile(path))(t); !bytes.HasPrefix(after, text) || !bytes.HasSuffix(after, []byte("\n")) {
		t.Error("the journal lost something")
	}
}
