package approval

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/hallpass/hallpass/trust"
)

// TestBootstrapRefuses spoils the first command, one thing at a time.
func TestBootstrapRefuses(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(b *Bootstrap){
		"no name":                   func(b *Bootstrap) { b.Cluster = "" },
		"no trust domain":           func(b *Bootstrap) { b.TrustDomain = "" },
		"a trust domain with path":  func(b *Bootstrap) { b.TrustDomain = "acme.test/x" },
		"a trust domain with shout": func(b *Bootstrap) { b.GrantTrustDomain = "GRANTS.acme.test" },
		"one trust domain":          func(b *Bootstrap) { b.GrantTrustDomain = b.TrustDomain },
		"no nodes":                  func(b *Bootstrap) { b.Nodes = nil },
		"too many nodes":            func(b *Bootstrap) { b.Nodes = make([]BootstrapNode, MaxNodes+1) },
		"a node twice":              func(b *Bootstrap) { b.Nodes[1].ID = "n1" },
		"a node without name":       func(b *Bootstrap) { b.Nodes[1].ID = "" },
		"a node that speaks":        func(b *Bootstrap) { b.Nodes = b.Nodes[1:] },
		"a short key":               func(b *Bootstrap) { b.Nodes[1].Key = b.Nodes[1].Key[1:] },
		"no audit key":              func(b *Bootstrap) { b.Nodes[1].AuditKey = "" },
		"no address":                func(b *Bootstrap) { b.Nodes[1].RaftAddress = "" },
		"no issuer":                 func(b *Bootstrap) { b.Nodes[1].GrantIssuer = nil },
		"an issuer twice":           func(b *Bootstrap) { b.Nodes[1].GrantIssuer = b.Nodes[0].GrantIssuer },
		"one issuer for both":       func(b *Bootstrap) { b.Nodes[1].GrantIssuer = b.Nodes[1].IdentityIssuer },
		"an issuer that has ended":  func(b *Bootstrap) { b.Nodes[1].GrantIssuer = testIssuer(RoleGrant, "n2", "x", -1) },
		"another node's issuer":     func(b *Bootstrap) { b.Nodes[1].GrantIssuer = testIssuer(RoleGrant, "n1", "x", time.Hour) },
		"an issuer of no root": func(b *Bootstrap) {
			b.Nodes[1].GrantIssuer = issuerBy(testRoot(RoleGrant, 9), RoleGrant, "n2", "x", time.Hour)
		},
		"an issuer of the other": func(b *Bootstrap) {
			b.Nodes[1].GrantIssuer = issuerBy(testRoot(RoleIdentity, 0), RoleGrant, "n2", "x", time.Hour)
		},
		"no roots":                func(b *Bootstrap) { b.GrantRoots = nil },
		"one root for both":       func(b *Bootstrap) { b.GrantRoots = b.IdentityRoots },
		"documents that are none": func(b *Bootstrap) { b.RootDocuments = [][]byte{[]byte("{}")} },
		"documents of nobody": func(b *Bootstrap) {
			b.RootDocuments = [][]byte{rootsDocument(RoleGrant, 1, testRoot(RoleGrant, 3), testRoot(RoleGrant, 0))}
		},
		"a root that is none":     func(b *Bootstrap) { b.GrantRoots = [][]byte{b.Nodes[0].GrantIssuer} },
		"two admins":              func(b *Bootstrap) { b.Groups[0].Members = b.Groups[0].Members[:2] },
		"no admins":               func(b *Bootstrap) { b.Groups = b.Groups[1:] },
		"no persons":              func(b *Bootstrap) { b.Persons = nil },
		"a person twice":          func(b *Bootstrap) { b.Persons[1].Name = "alice" },
		"an ID twice":             func(b *Bootstrap) { b.Persons[1].IDs = b.Persons[0].IDs },
		"a person without IDs":    func(b *Bootstrap) { b.Persons[1].IDs = nil },
		"a service as a person":   func(b *Bootstrap) { b.Persons[1].IDs = []string{spiffe("service/x")} },
		"a grant as a person":     func(b *Bootstrap) { b.Persons[1].IDs = []string{"spiffe://grants.acme.test/x"} },
		"a group twice":           func(b *Bootstrap) { b.Groups[1].Name = "admins" },
		"a stranger in a group":   func(b *Bootstrap) { b.Groups[1].Members = []string{"mallory"} },
		"a policy with a mistake": func(b *Bootstrap) { b.Policy += "x: y\n" },
		"a policy of no group":    func(b *Bootstrap) { b.Groups = b.Groups[:3] },
		"too many persons":        func(b *Bootstrap) { b.Groups = make([]Group, MaxGroups+1) },
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{tb: t, a: newMemory(), b: newMemory(), now: epochStart, node: "n1"}
			b := firstCommand()
			spoil(&b)
			if r := w.apply("", b); r.Err == nil || errors.Is(r.Err, ErrInternal) {
				t.Errorf("%+v", r)
			}
			w.refuse(ErrNotFound, "ada", BlockSubject{Subject: spiffe("x"), Reason: "x"})
		})
	}
	w := &world{tb: t, a: newMemory(), b: newMemory(), now: epochStart, node: "n1"}
	w.refuse(ErrDenied, "ada", firstCommand())
	noPolicy := firstCommand()
	noPolicy.Policy = ""
	w.must(w.apply("", noPolicy))
	w.refuse(ErrConflict, "", firstCommand())
	create := w.create("status", []string{"GET /**"}, 1_000_000_000)
	create.Subject = spiffe("alice")
	w.refuse(ErrDenied, "alice", create) // no policy, no access
}

// TestBootstrapAfterARotation: a cluster that is made anew with roots that have a
// past begins where that past ended.
func TestBootstrapAfterARotation(t *testing.T) {
	t.Parallel()
	w := &world{tb: t, a: newMemory(), b: newMemory(), now: epochStart, node: "n1"}
	b := firstCommand()
	old, next := testRoot(RoleGrant, 0), testRoot(RoleGrant, 1)
	d := trust.Document{TrustDomain: "grants.acme.test", Sequence: 2, Issued: epochStart, Retired: []string{trust.ID(old.cert)}}
	d.Roots = append(d.Roots, next.cert)
	b.GrantRoots = append(b.GrantRoots, next.cert.Raw)
	b.RootDocuments = [][]byte{rootsDocument(RoleGrant, 1, old, next), signDocument(d, []pair{next})}
	if r := w.apply("", b); r.Err == nil {
		t.Error("issuers of the retired root are taken")
	}
	for i, n := range b.Nodes {
		b.Nodes[i].GrantIssuer = issuerBy(next, RoleGrant, n.ID, n.ID+" next", time.Hour)
	}
	w.must(w.apply("", b))
	roots, err := Read(w.a).Roots(RoleGrant)
	if err != nil || roots.Sequence != 2 || len(roots.InForce) != 1 || !bytes.Equal(roots.InForce[0], next.cert.Raw) {
		t.Errorf("%d roots in force at %d: %v", len(roots.InForce), roots.Sequence, err)
	}
	w.refuse(ErrStale, "ada", SetRoots{Document: b.RootDocuments[0]})
}
