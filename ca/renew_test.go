package ca

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRenewNodes(t *testing.T) {
	f := newFixture(t, 3)
	later := testNow().Add(45 * 24 * time.Hour)
	renewed := got(RenewNodes(f.offline, f.requests[:1], SignOptions{Now: later}))(t)
	c := renewed[0]
	old, _ := f.manifest.Node("n1")
	if c.Node != "n1" || !c.NotAfter().Equal(later.Add(IssuerLife)) {
		t.Errorf("of %s until %s", c.Node, c.NotAfter())
	}
	must(t, checkIssuer(c.IdentityIssuer, f.manifest.IdentityRoots, RoleIdentity, testTD()))
	must(t, checkIssuer(c.GrantIssuer, f.manifest.GrantRoots, RoleGrants, testGrantTD()))
	if !samePublicKey(c.GrantIssuer.PublicKey, old.GrantIssuer.PublicKey) {
		t.Error("the same request was signed for another key")
	}
	node := f.node(0)
	if _, err := node.Certificates(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("certificates before there are any: %v", err)
	}
	file := filepath.Join(f.offline, RenewedDir, "n1.json")
	must(t, InstallCertificates(f.nodeDirs[0], got(LoadNodeCertificates(file))(t)))
	found := got(node.Certificates())(t)
	issuer := got(node.IssuerOf(RoleGrants, found.GrantIssuer))(t)
	spec := f.grantSpec(got(GenerateKey())(t).Public())
	spec.Now, spec.GrantExpiry = later, later.Add(time.Hour)
	ticket, err := issuer.PrepareGrant(spec)
	if chain := signed(t, ticket, err); !chain[1].Equal(c.GrantIssuer) {
		t.Error("signed by another issuer")
	}
	if lines := bytes.Count(got(os.ReadFile(filepath.Join(f.offline, journalFile)))(t), []byte("\n")); lines != 3+3*3+1+3 {
		t.Errorf("%d lines in the journal", lines)
	}
}

func TestRenewNodesWithNewKeys(t *testing.T) {
	f := newFixture(t, 1)
	node, dir := f.node(0), f.nodeDirs[0]
	o := testNodeOptions(1)
	o.NewKeys = true
	request := got(NewNode(dir, o))(t)
	if request.same(f.requests[0]) {
		t.Fatal("the request has the old keys")
	}
	// Run again, as after a crash, it stays with the keys that it made.
	if again := got(NewNode(dir, testNodeOptions(1)))(t); !again.same(request) {
		t.Error("a second run names other keys")
	}
	if served := got(node.Request())(t); !served.same(request) {
		t.Error("the running node asks with another request")
	}
	c := got(RenewNodes(f.offline, []NodeRequest{request}, SignOptions{Now: testNow(), Life: 7 * 24 * time.Hour}))(t)[0]
	if !c.GrantIssuer.NotAfter.Equal(testNow().Add(7 * 24 * time.Hour)) {
		t.Errorf("until %s", c.GrantIssuer.NotAfter)
	}
	must(t, InstallCertificates(dir, c))
	got(node.IssuerOf(RoleIdentity, c.IdentityIssuer))(t)
	got(node.APIOf(c.APICertificate))(t)
	f.node(0) // the manifest's keys are there still
	old, _ := f.manifest.Node("n1")
	got(node.IssuerOf(RoleGrants, old.GrantIssuer))(t)
}

func TestRenewNodesRefuses(t *testing.T) {
	f := newFixture(t, 2)
	stranger := got(NewNode(t.TempDir(), testNodeOptions(1)))(t)
	third := got(NewNode(t.TempDir(), testNodeOptions(3)))(t)
	for name, c := range map[string]struct {
		request NodeRequest
		o       SignOptions
		says    string
	}{
		"another's keys under its name": {stranger, SignOptions{}, "transport or audit key"},
		"a node nobody knows":           {third, SignOptions{}, "no such node"},
		"too long a life":               {f.requests[0], SignOptions{Life: IssuerLife + 1}, "at most"},
	} {
		c.o.Now = testNow()
		if _, err := RenewNodes(f.offline, []NodeRequest{c.request}, c.o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := got(RenewNodes(f.offline, f.requests[:1], SignOptions{Now: testNow()}))(t)[0]
	if err := InstallCertificates(f.nodeDirs[1], c); !errors.Is(err, ErrInvalid) {
		t.Errorf("certificates of another node: %v", err)
	}
	c.GrantIssuer = f.manifest.Nodes[1].GrantIssuer
	if err := InstallCertificates(f.nodeDirs[0], c); !errors.Is(err, ErrKey) {
		t.Errorf("an issuer without its key: %v", err)
	}
}

// A renewal widens nothing by itself: what the first signing allowed, stays.
func TestRenewNodesKeepsTheNames(t *testing.T) {
	f := newFixture(t, 0)
	request := got(NewNode(t.TempDir(), testNodeOptions(1)))(t)
	got(SignNodes(f.offline, []NodeRequest{request}, SignOptions{DNSDomains: []string{"payments"}, IPRanges: []*net.IPNet{}, Now: testNow()}))(t)
	c := got(RenewNodes(f.offline, []NodeRequest{request}, SignOptions{Now: testNow()}))(t)[0]
	if got := c.IdentityIssuer; len(got.PermittedIPRanges) != 0 || len(got.ExcludedIPRanges) == 0 || len(got.PermittedDNSDomains) != 1 || got.PermittedDNSDomains[0] != "payments" {
		t.Errorf("it may name %v and %v", got.PermittedDNSDomains, got.PermittedIPRanges)
	}
}
