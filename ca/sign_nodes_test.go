package ca

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestSignNodes(t *testing.T) {
	f := newFixture(t, 3)
	path := filepath.Join(f.offline, ManifestFile)
	text := got(os.ReadFile(path))(t)
	loaded := got(LoadManifest(path))(t)
	if again := got(loaded.Encode())(t); !bytes.Equal(text, again) {
		t.Error("the manifest does not encode to what it was loaded from")
	}
	if bytes.Contains(text, []byte("PRIVATE")) {
		t.Error("a private key is in the manifest")
	}
	if loaded.Cluster != ClusterID(loaded.IdentityRoots[0], loaded.GrantRoots[0]) || len(loaded.Cluster) != 32 {
		t.Errorf("cluster %q", loaded.Cluster)
	}
	for i, n := range loaded.Nodes {
		if n.ID != f.requests[i].ID {
			t.Errorf("node %d is %s", i, n.ID)
		}
		if entry, ok := loaded.Node(n.ID); !ok || !entry.Key.Equal(n.Key) {
			t.Errorf("Node(%q) finds another", n.ID)
		}
	}
	if _, ok := loaded.Node("n4"); ok {
		t.Error("it finds a node that is not there")
	}

	// Again, in any order and at any time: what is there is what it was.
	reversed := []NodeRequest{f.requests[2], f.requests[1], f.requests[0]}
	got(SignNodes(f.offline, reversed, SignOptions{Now: testNow().Add(time.Hour)}))(t)
	if again := got(os.ReadFile(path))(t); !bytes.Equal(text, again) {
		t.Error("a second run changed the manifest")
	}
	// Something else is refused, and what is there stays.
	other := got(NewNode(t.TempDir(), testNodeOptions(3)))(t)
	_, cidr, err := net.ParseCIDR("10.0.0.0/8")
	must(t, err)
	for name, c := range map[string]struct {
		requests []NodeRequest
		o        SignOptions
	}{
		"one node fewer": {f.requests[:2], SignOptions{}},
		"other keys":     {[]NodeRequest{f.requests[0], f.requests[1], other}, SignOptions{}},
		"other domains":  {f.requests, SignOptions{DNSDomains: []string{"payments"}}},
		"other ranges":   {f.requests, SignOptions{IPRanges: []*net.IPNet{cidr}}},
	} {
		if _, err := SignNodes(f.offline, c.requests, c.o); !errors.Is(err, ErrExists) {
			t.Errorf("%s: %v", name, err)
		}
		if again := got(os.ReadFile(path))(t); !bytes.Equal(text, again) {
			t.Errorf("%s: it changed the manifest", name)
		}
	}
	// Unless it is told to.
	later := testNow().Add(45 * 24 * time.Hour)
	m := got(SignNodes(f.offline, f.requests, SignOptions{DNSDomains: []string{"payments"}, IPRanges: []*net.IPNet{cidr}, Replace: true, Now: later}))(t)
	if m.Cluster != loaded.Cluster || !m.Nodes[0].GrantIssuer.NotAfter.Equal(later.Add(IssuerLife)) {
		t.Errorf("cluster %s, issuer until %s", m.Cluster, m.Nodes[0].GrantIssuer.NotAfter)
	}
	node := got(LoadNode(f.nodeDirs[0], m))(t)
	spec := f.identitySpec(got(GenerateKey())(t).Public())
	spec.Now, spec.DNSNames, spec.IPs = later, []string{"payments"}, ips("10.1.2.3")
	ticket, err := node.Identity.PrepareIdentity(spec)
	chain := signed(t, ticket, err)
	got(VerifyIdentity(chain, m.IdentityRoots, testTD(), later))(t)
}

// A manifest that follows another says so, and changes no more than was asked.
func TestSignNodesAgain(t *testing.T) {
	f := newFixture(t, 3)
	if f.manifest.Sequence != 1 {
		t.Errorf("the first manifest has sequence %d", f.manifest.Sequence)
	}
	later := testNow().Add(time.Hour)
	dir := filepath.Join(t.TempDir(), "n4")
	fourth := got(NewNode(dir, testNodeOptions(4)))(t)
	m := got(SignNodes(f.offline, []NodeRequest{fourth}, SignOptions{Add: true, Now: later}))(t)
	if m.Sequence != 2 || len(m.Nodes) != 4 || m.Nodes[3].ID != "n4" {
		t.Errorf("sequence %d, %d nodes", m.Sequence, len(m.Nodes))
	}
	for i, n := range f.manifest.Nodes {
		if !n.GrantIssuer.Equal(m.Nodes[i].GrantIssuer) {
			t.Errorf("node %s was signed anew", n.ID)
		}
	}
	got(LoadNode(dir, m))(t)
	m = got(SignNodes(f.offline, nil, SignOptions{Drop: []string{"n2"}, Now: later}))(t)
	if _, ok := m.Node("n2"); ok || m.Sequence != 3 || len(m.Nodes) != 3 {
		t.Errorf("sequence %d, %d nodes, with the dropped one: %v", m.Sequence, len(m.Nodes), ok)
	}
	m = got(SignNodes(f.offline, f.requests, SignOptions{Replace: true, Now: later}))(t)
	if m.Sequence != 4 || m.Nodes[0].GrantIssuer.Equal(f.manifest.Nodes[0].GrantIssuer) {
		t.Errorf("sequence %d, and the issuer is the old one: %v", m.Sequence, m.Nodes[0].GrantIssuer.Equal(f.manifest.Nodes[0].GrantIssuer))
	}
	for name, c := range map[string]struct {
		requests []NodeRequest
		o        SignOptions
	}{
		"drop a stranger":    {nil, SignOptions{Drop: []string{"n9"}}},
		"add and replace":    {f.requests, SignOptions{Add: true, Replace: true}},
		"drop all there are": {nil, SignOptions{Drop: []string{"n1", "n2", "n3"}}},
	} {
		if _, err := SignNodes(f.offline, c.requests, c.o); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	empty := newFixture(t, 0)
	if _, err := SignNodes(empty.offline, f.requests, SignOptions{Add: true}); !errors.Is(err, ErrInvalid) {
		t.Errorf("add to nothing: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(f.offline, ManifestFile), []byte("{}"), 0o600))
	if _, err := SignNodes(f.offline, f.requests, SignOptions{Replace: true}); !errors.Is(err, ErrManifest) {
		t.Errorf("replace what cannot be read: %v", err)
	}
}

func TestParseStatement(t *testing.T) {
	f := newFixture(t, 1)
	statement := got(f.manifest.Statement())(t)
	m := got(ParseStatement(statement, f.manifest.Signature))(t)
	if a, b := got(m.Encode())(t), got(f.manifest.Encode())(t); !bytes.Equal(a, b) {
		t.Error("another manifest than was signed")
	}
	for name, bad := range map[string][]byte{
		"no header":  bytes.TrimPrefix(statement, []byte(statementHeader)),
		"changed":    bytes.Replace(statement, []byte(`"sequence": 1`), []byte(`"sequence": 2`), 1),
		"more space": bytes.Replace(statement, []byte(`"sequence": 1`), []byte(`"sequence":  1`), 1),
		"the file":   append([]byte(statementHeader), got(f.manifest.Encode())(t)...),
		"nothing":    nil,
	} {
		if _, err := ParseStatement(bad, f.manifest.Signature); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignNodesWithoutNames(t *testing.T) {
	f := newFixture(t, 0)
	dir := t.TempDir()
	request := got(NewNode(dir, testNodeOptions(1)))(t)
	m := got(SignNodes(f.offline, []NodeRequest{request}, SignOptions{DNSDomains: []string{}, IPRanges: []*net.IPNet{}, Now: testNow()}))(t)
	node := got(LoadNode(dir, m))(t)
	spec := f.identitySpec(got(GenerateKey())(t).Public())
	if _, err := node.Identity.PrepareIdentity(spec); !errors.Is(err, ErrInvalid) {
		t.Errorf("an issuer that may name nobody: %v", err)
	}
	spec.DNSNames = nil
	ticket, err := node.Identity.PrepareIdentity(spec)
	got(VerifyIdentity(signed(t, ticket, err), m.IdentityRoots, testTD(), testNow()))(t)
}

func TestSignNodesRefuses(t *testing.T) {
	base := newFixture(t, 0)
	dir := t.TempDir()
	request := got(NewNode(filepath.Join(dir, "a"), testNodeOptions(1)))(t)
	twin := testNodeOptions(1)
	twin.ID = "n2"
	sameAddress := got(NewNode(filepath.Join(dir, "b"), twin))(t)
	foreign := testNodeOptions(1)
	foreign.TrustDomain = spiffeid.RequireTrustDomainFromString("other.test")
	ofAnother := got(NewNode(filepath.Join(dir, "c"), foreign))(t)
	second := got(NewNode(filepath.Join(dir, "d"), testNodeOptions(2)))(t)
	p384CSR := string(got(MakeCSR(newP384(t), csrName("n1", forGrantIssuer)))(t))

	for name, c := range map[string]struct {
		change func(*NodeRequest)
		says   string
	}{
		"swapped issuers":       {func(r *NodeRequest) { r.IdentityIssuer, r.GrantIssuer = r.GrantIssuer, r.IdentityIssuer }, "identity_issuer"},
		"an issuer's key twice": {func(r *NodeRequest) { r.GrantIssuer = r.IdentityIssuer }, "grant_issuer"},
		"another node's key":    {func(r *NodeRequest) { r.API = second.API }, "api"},
		"another's transport":   {func(r *NodeRequest) { r.Transport = second.Transport }, "transport"},
		"a transport on P-256":  {func(r *NodeRequest) { r.Transport = r.API }, "transport"},
		"no transport":          {func(r *NodeRequest) { r.Transport = "" }, "transport"},
		"another audit key":     {func(r *NodeRequest) { r.AuditKey = second.AuditKey }, "audit_key"},
		"no audit key":          {func(r *NodeRequest) { r.AuditKey = "" }, "audit_key"},
		"another id":            {func(r *NodeRequest) { r.ID = "n9" }, "n9"},
		"another raft address":  {func(r *NodeRequest) { r.RaftAddress = "127.0.0.1:9999" }, "proof"},
		"another api address":   {func(r *NodeRequest) { r.APIAddress = "127.0.0.1:9999" }, "proof"},
		"a further DNS name":    {func(r *NodeRequest) { r.DNSNames = append(r.DNSNames[:1:1], "evil.test") }, "proof"},
		"without its own name":  {func(r *NodeRequest) { r.IPs = nil }, "api_address"},
		"another proof":         {func(r *NodeRequest) { r.Proof = second.Proof }, "proof"},
		"no proof":              {func(r *NodeRequest) { r.Proof = "" }, "proof"},
		"an issuer on P-384":    {func(r *NodeRequest) { r.GrantIssuer = p384CSR }, "proof"},
		"of another domain":     {func(r *NodeRequest) { *r = ofAnother }, "trust_domain"},
	} {
		r := request
		c.change(&r)
		_, err := SignNodes(base.offline, []NodeRequest{r}, SignOptions{Now: testNow()})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one that names %q", name, err, c.says)
		}
	}
	for name, c := range map[string]struct {
		requests []NodeRequest
		says     string
	}{
		"no requests":      {nil, "nodes: empty"},
		"one node twice":   {[]NodeRequest{request, request}, "nodes[1].id"},
		"an address twice": {[]NodeRequest{request, sameAddress}, "nodes[1].raft_address"},
	} {
		_, err := SignNodes(base.offline, c.requests, SignOptions{Now: testNow()})
		if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one that says %q", name, err, c.says)
		}
	}
	if _, err := os.Stat(filepath.Join(base.offline, ManifestFile)); err == nil {
		t.Error("a manifest was written")
	}
	for _, o := range []SignOptions{{DNSDomains: []string{"*.acme.test"}}, {DNSDomains: []string{""}}} {
		if _, err := SignNodes(base.offline, []NodeRequest{request}, o); !errors.Is(err, ErrInvalid) {
			t.Errorf("domains %q: %v", o.DNSDomains, err)
		}
	}
	late := SignOptions{Now: testNow().Add(rootLife + time.Hour)}
	if _, err := SignNodes(base.offline, []NodeRequest{request}, late); !errors.Is(err, ErrExpired) {
		t.Errorf("after the roots' end: %v", err)
	}
}

// Near the end of a root's life its issuers end with it.
func TestIssuersEndWithTheirRoot(t *testing.T) {
	f := newFixture(t, 0)
	request := got(NewNode(t.TempDir(), testNodeOptions(1)))(t)
	m := got(SignNodes(f.offline, []NodeRequest{request}, SignOptions{Now: testNow().Add(rootLife - 24*time.Hour)}))(t)
	if end := m.Nodes[0].GrantIssuer.NotAfter; !end.Equal(m.GrantRoots[0].NotAfter) {
		t.Errorf("the issuer ends at %s, its root at %s", end, m.GrantRoots[0].NotAfter)
	}
}
