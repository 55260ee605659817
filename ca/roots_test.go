package ca

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hallpass/hallpass/trust"
)

func both() RootsOptions { return RootsOptions{Identities: true, Grants: true, Now: testNow()} }

// TestRootsRotate goes from the founding roots to their successors, with nodes
// renewed in between, and sees who believes what at each step.
func TestRootsRotate(t *testing.T) {
	f := newFixture(t, 1)
	old := trust.NewSet("grants.acme.test", f.manifest.GrantRoots)
	made := got(RotateRoots(f.offline, both()))(t)
	if len(made) != 2 || made[0].TrustDomain != "acme.test" || made[1].Sequence != 1 || len(made[1].Signatures) != 2 {
		t.Fatalf("documents %+v", made)
	}
	during := got(old.Next(made[1]))(t)
	c := got(RenewNodes(f.offline, f.requests, SignOptions{Now: testNow().Add(time.Hour)}))(t)[0]
	if err := checkIssuer(c.GrantIssuer, f.manifest.GrantRoots, RoleGrants, testGrantTD()); err == nil {
		t.Error("the renewed issuer is signed by the old root")
	}
	must(t, checkIssuer(c.GrantIssuer, during.Roots(), RoleGrants, testGrantTD()))
	identity, _, err := OfflineRoots(f.offline)
	must(t, err)
	must(t, checkIssuer(c.IdentityIssuer, identity, RoleIdentity, testTD()))

	made = got(RetireRoots(f.offline, both()))(t)
	after := got(during.Next(made[1]))(t)
	if len(after.Roots()) != 1 || after.Has(f.manifest.GrantRoots[0]) || after.Sequence() != 2 {
		t.Errorf("%d roots in force at %d", len(after.Roots()), after.Sequence())
	}
	must(t, checkIssuer(c.GrantIssuer, after.Roots(), RoleGrants, testGrantTD()))
	entry, _ := f.manifest.Node("n1")
	if err := checkIssuer(entry.GrantIssuer, after.Roots(), RoleGrants, testGrantTD()); err == nil {
		t.Error("an issuer of the retired root still counts")
	}
	// A retired root's key need not be kept, and nothing is signed with it any more.
	must(t, os.Remove(filepath.Join(f.offline, "grants-root.key")))
	must(t, os.Remove(filepath.Join(f.offline, "identity-root.key")))
	got(RenewNodes(f.offline, f.requests, SignOptions{Now: testNow().Add(2 * time.Hour)}))(t)
	// A manifest of the same nodes is still this cluster's.
	m := got(SignNodes(f.offline, f.requests, SignOptions{Now: testNow().Add(2 * time.Hour), Replace: true}))(t)
	if m.Cluster != f.manifest.Cluster || len(m.IdentityRoots) != 2 {
		t.Errorf("manifest of %s with %d identity roots", m.Cluster, len(m.IdentityRoots))
	}
	made = got(RotateRoots(f.offline, RootsOptions{Grants: true, Now: testNow()}))(t)
	if len(made) != 1 || made[0].Sequence != 3 {
		t.Errorf("the next rotation makes %+v", made)
	}
}

func TestRootsRefuse(t *testing.T) {
	f := newFixture(t, 0)
	if _, err := RotateRoots(f.offline, RootsOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no trust domain: %v", err)
	}
	if _, err := RetireRoots(f.offline, both()); !errors.Is(err, ErrInvalid) {
		t.Errorf("the only root: %v", err)
	}
	// Without the old root nobody would follow.
	must(t, os.Rename(filepath.Join(f.offline, "grants-root.key"), filepath.Join(f.offline, "elsewhere")))
	if _, err := RotateRoots(f.offline, both()); !errors.Is(err, ErrRootKey) {
		t.Errorf("without the key of the root in force: %v", err)
	}
	must(t, os.Rename(filepath.Join(f.offline, "elsewhere"), filepath.Join(f.offline, "grants-root.key")))
	got(RotateRoots(f.offline, both()))(t)
	// A document that was cut out of the middle is missed.
	got(RetireRoots(f.offline, both()))(t)
	documents := got(loadDocuments(f.offline))(t)
	must(t, os.WriteFile(filepath.Join(f.offline, RootsFile), got(trust.EncodeAll(documents[2:]))(t), 0o600))
	if _, _, err := OfflineRoots(f.offline); err != nil {
		t.Errorf("documents that carry the old root's signature follow from it: %v", err)
	}
	documents[2].Signatures = documents[2].Signatures[1:]
	must(t, os.WriteFile(filepath.Join(f.offline, RootsFile), got(trust.EncodeAll(documents[2:]))(t), 0o600))
	if _, _, err := OfflineRoots(f.offline); !errors.Is(err, ErrInvalid) {
		t.Errorf("documents that do not follow: %v", err)
	}
}

// TestRootsChangeTogether: where one trust domain's document cannot be made, the
// other's is not either: who is told no would not look for a root that is retired.
func TestRootsChangeTogether(t *testing.T) {
	f := newFixture(t, 0)
	got(RotateRoots(f.offline, RootsOptions{Identities: true, Now: testNow()}))(t)
	before := got(os.ReadFile(filepath.Join(f.offline, RootsFile)))(t)
	if _, err := RetireRoots(f.offline, both()); !errors.Is(err, ErrInvalid) {
		t.Errorf("grants have one root: %v", err)
	}
	if after := got(os.ReadFile(filepath.Join(f.offline, RootsFile)))(t); !bytes.Equal(before, after) {
		t.Errorf("half of it was done:\n%s", after)
	}
	if d := got(RetireRoots(f.offline, RootsOptions{Identities: true, Now: testNow()}))(t); len(d) != 1 || d[0].Sequence != 2 {
		t.Errorf("%+v", d)
	}
}

// A machine that stops between the root and its document leaves nothing behind
// that the next run would not take up.
func TestRotateAgainAfterACrash(t *testing.T) {
	f := newFixture(t, 0)
	off := got(openOffline(f.offline, nil))(t)
	made := got(off.grantRoots.successor(off, RootKeys{}, testNow()))(t)
	d := got(RotateRoots(f.offline, RootsOptions{Grants: true, Now: testNow()}))(t)[0]
	if len(d.Roots) != 2 || !d.Roots[1].Equal(made) {
		t.Error("another root was made")
	}
	must(t, os.WriteFile(filepath.Join(f.offline, "grants-root-3.key"), []byte("half"), 0o600))
	got(RotateRoots(f.offline, RootsOptions{Grants: true, Now: testNow()}))(t)
}

func TestDenyIssuersByDocument(t *testing.T) {
	f := newFixture(t, 1)
	entry, _ := f.manifest.Node("n1")
	d := got(DenyIssuers(f.offline, []string{trust.ID(entry.GrantIssuer)}, RootsOptions{Grants: true, Now: testNow()}))(t)[0]
	s := got(trust.NewSet("grants.acme.test", f.manifest.GrantRoots).Next(d))(t)
	if !s.Denies(trust.ID(entry.GrantIssuer)) || len(s.Roots()) != 1 {
		t.Errorf("%+v", d)
	}
	// Later documents go on saying so.
	d = got(RotateRoots(f.offline, RootsOptions{Grants: true, Now: testNow()}))(t)[0]
	if len(d.Denied) != 1 || d.Sequence != 2 {
		t.Errorf("%+v", d)
	}
	if _, err := DenyIssuers(f.offline, []string{"n1"}, RootsOptions{Grants: true}); !errors.Is(err, trust.ErrDocument) {
		t.Errorf("a node's name for an issuer's id: %v", err)
	}
}
