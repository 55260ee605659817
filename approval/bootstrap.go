package approval

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/policy"
)

// bootstrapDetails is the audit leaf of the one command that no admin approved.
type bootstrapDetails struct {
	Cluster          string   `json:"cluster"`
	TrustDomain      string   `json:"trust_domain"`
	GrantTrustDomain string   `json:"grant_trust_domain"`
	Nodes            []Node   `json:"nodes"`
	Issuers          []string `json:"issuers"`
	IdentityRoots    []string `json:"identity_roots"` // hex SHA-256 of the DER
	GrantRoots       []string `json:"grant_roots"`
	Persons          []Person `json:"persons"`
	Groups           []Group  `json:"groups"`
	PolicySHA256     string   `json:"policy_sha256"`
	Manifest         uint64   `json:"manifest"`
}

// bootstrap makes the cluster.
func (t *turn) bootstrap(b Bootstrap) (Object, error) {
	if err := checkName("cluster", b.Cluster); err != nil {
		return nil, err
	}
	for _, td := range []string{b.TrustDomain, b.GrantTrustDomain} {
		if parsed, err := spiffeid.TrustDomainFromString(td); err != nil || parsed.Name() != td {
			return nil, invalid("%q is not the name of a trust domain", td)
		}
	}
	if b.TrustDomain == b.GrantTrustDomain {
		// In a shared domain, services that admit "any member" would admit a
		// grant certificate as if it were its subject.
		return nil, invalid("identities and grants need two trust domains, both are %q", b.TrustDomain)
	}
	if b.Manifest == 0 || b.Manifest > maxSequence {
		return nil, invalid("manifests are counted from 1, and this is number %d", b.Manifest)
	}
	t.m = meta{
		Cluster: b.Cluster, TrustDomain: b.TrustDomain, GrantTrustDomain: b.GrantTrustDomain,
		Epoch: 1, PolicyRevision: 1, DirectoryRevision: 1, TrustRevision: 1, Manifest: b.Manifest, Version: t.cmd.V,
	}
	d := bootstrapDetails{
		Cluster: b.Cluster, TrustDomain: b.TrustDomain, GrantTrustDomain: b.GrantTrustDomain,
		Persons: b.Persons, Groups: b.Groups, PolicySHA256: sha256Hex([]byte(b.Policy)), Manifest: b.Manifest,
	}
	if err := t.firstRoots(b, &d); err != nil {
		return nil, err
	}
	if err := t.firstNodes(b.Nodes, &d); err != nil {
		return nil, err
	}
	if !t.has(key(prefixNode, t.cmd.Node)) {
		return nil, denied("node %q is not among the members it names", t.cmd.Node)
	}
	if err := t.firstDirectory(b); err != nil {
		return nil, err
	}
	t.save([]byte(keyPolicy), PolicyDoc{Revision: 1, YAML: b.Policy})
	if err := t.checkPolicy(b.Policy); b.Policy != "" && err != nil {
		return nil, err
	}
	t.object, t.details = b.Cluster, d
	t.saveMeta()
	return t.state().Cluster()
}

func (t *turn) firstNodes(nodes []BootstrapNode, d *bootstrapDetails) error {
	if len(nodes) == 0 || len(nodes) > MaxNodes {
		return invalid("a cluster starts with 1 to %d nodes, not %d", MaxNodes, len(nodes))
	}
	for _, n := range nodes {
		if t.has(key(prefixNode, n.ID)) {
			return invalid("node %q is named twice", n.ID)
		}
		node := Node{ID: n.ID, Key: n.Key, AuditKey: n.AuditKey, RaftAddress: n.RaftAddress, APIAddress: n.APIAddress}
		if err := checkNode(node); err != nil {
			return err
		}
		t.save(key(prefixNode, n.ID), node)
		d.Nodes = append(d.Nodes, node)
		for _, i := range []struct {
			role Role
			der  []byte
		}{{RoleIdentity, n.IdentityIssuer}, {RoleGrant, n.GrantIssuer}} {
			issuer, err := t.checkIssuer(n.ID, i.role, i.der)
			if err != nil {
				return err
			}
			if t.has(key(prefixIssuer, issuer.ID)) {
				return invalid("node %q: its %s issuer is another issuer too", n.ID, i.role)
			}
			t.save(key(prefixIssuer, issuer.ID), issuer)
			d.Issuers = append(d.Issuers, issuer.ID)
		}
	}
	return nil
}

func (t *turn) firstDirectory(b Bootstrap) error {
	if len(b.Persons) > MaxPersons || len(b.Groups) > MaxGroups {
		return limited("at most %d persons and %d groups", MaxPersons, MaxGroups)
	}
	for _, p := range b.Persons {
		if t.has(key(prefixPerson, p.Name)) {
			return invalid("person %q is named twice", p.Name)
		}
		if err := t.setPerson(p); err != nil {
			return err
		}
	}
	for _, g := range b.Groups {
		if t.has(key(prefixGroup, g.Name)) {
			return invalid("group %q is named twice", g.Name)
		}
		if err := t.setGroup(g); err != nil {
			return err
		}
	}
	return t.checkAdmins()
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// checkName refuses all but 1 to 63 of a-z, 0-9, ".", "_" and "-", the first a
// letter or digit: the rule of policy, so that a policy can name every group.
func checkName(what, name string) error {
	if err := policy.ValidName(name); err != nil {
		return invalid("%s: %v", what, err)
	}
	return nil
}
