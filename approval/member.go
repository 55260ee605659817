package approval

import (
	"bytes"
	"slices"
)

// manifestDetails is the audit leaf of a manifest that the cluster took.
type manifestDetails struct {
	Sequence uint64            `json:"sequence"`
	SHA256   string            `json:"sha256"` // of what was signed
	Added    []string          `json:"added"`
	Changed  []string          `json:"changed"`
	Issuers  []installedIssuer `json:"issuers"`
}

// memberDetails is the audit leaf of what is done with a member.
type memberDetails struct {
	Reason  string   `json:"reason,omitempty"`
	Retired bool     `json:"retired,omitempty"`
	Denied  []string `json:"denied,omitempty"` // issuers that went out of use with it
}

// adoptManifest makes the nodes of a newer manifest known. It adds nodes, and
// gives those that are there new addresses and issuers; it takes none away and
// exchanges no keys, so that a manifest with a node forgotten, or an old name on
// a new machine, changes nothing: see removeNode.
func (t *turn) adoptManifest(b AdoptManifest) (Object, error) {
	if t.cmd.Actor != "" && !t.admin {
		return nil, denied("only an admin brings a manifest")
	}
	doc, err := t.openManifest(b.Statement, b.Signature)
	if err != nil {
		return nil, err
	}
	d := manifestDetails{
		Sequence: doc.Sequence, SHA256: sha256Hex(b.Statement), Added: []string{}, Changed: []string{}, Issuers: []installedIssuer{},
	}
	t.object = t.m.Cluster
	old, known, err := load[manifestTaken](t, []byte(keyManifest))
	switch {
	case err != nil:
		return nil, err
	case known && doc.Sequence == old.Sequence && d.SHA256 == old.SHA256:
		t.unchanged = true
		return t.state().Cluster()
	case doc.Sequence <= t.m.Manifest:
		// An old manifest, brought again, would bring back a node that was thrown
		// out.
		return nil, stale("the cluster has manifest %d already, this is number %d", t.m.Manifest, doc.Sequence).
			then("sign a newer one: hallpass ca sign-node in the folder that has the newest manifest")
	}
	if err := t.takeMembers(doc, &d); err != nil {
		return nil, err
	}
	if !t.has(key(prefixNode, t.cmd.Node)) {
		return nil, denied("node %q is not a member of the cluster, and the manifest that it brings does not make it one", t.cmd.Node)
	}
	t.m.Manifest, t.m.Removed = doc.Sequence, 0
	if len(d.Issuers)+len(d.Added)+len(d.Changed) > 0 {
		t.m.TrustRevision++
	}
	t.save([]byte(keyManifest), manifestTaken{Sequence: doc.Sequence, SHA256: d.SHA256, Index: t.index})
	t.details = d
	t.saveMeta()
	return t.state().Cluster()
}

func (t *turn) takeMembers(doc manifestDoc, d *manifestDetails) error {
	seen := map[string]bool{}
	for _, n := range doc.Nodes {
		m, err := n.read()
		if err != nil {
			return err
		}
		if err := checkNode(m.node); err != nil {
			return err
		}
		if seen[n.ID] {
			return invalid("node %q is named twice", n.ID)
		}
		seen[n.ID] = true
		if err := t.takeMember(m, d); err != nil {
			return err
		}
	}
	nodes, err := every[Node](t, prefixNode)
	if err != nil {
		return err
	}
	for i, n := range nodes {
		if !seen[n.ID] {
			return conflict("the manifest lacks node %q, which is in the cluster", n.ID).
				then("sign one with it, or first: hallpass cluster remove " + n.ID)
		}
		for _, other := range nodes[:i] {
			if bytes.Equal(n.Key, other.Key) || n.AuditKey == other.AuditKey {
				// Two nodes with one key are one node to every check that counts
				// nodes by their keys.
				return invalid("nodes %q and %q have a key in common", other.ID, n.ID)
			}
		}
	}
	return nil
}

func (t *turn) takeMember(m member, d *manifestDetails) error {
	old, known, err := load[Node](t, key(prefixNode, m.node.ID))
	if err != nil {
		return err
	}
	if known && (!bytes.Equal(old.Key, m.node.Key) || old.AuditKey != m.node.AuditKey) {
		return conflict("node %q has other keys in the cluster than in the manifest", m.node.ID).
			then("where a new machine takes its name, first: hallpass cluster remove " + m.node.ID)
	}
	m.node.APICertificate = old.APICertificate
	switch moved := old.RaftAddress != m.node.RaftAddress || old.APIAddress != m.node.APIAddress; {
	case !known:
		d.Added = append(d.Added, m.node.ID)
	case moved:
		d.Changed = append(d.Changed, m.node.ID)
	}
	t.save(key(prefixNode, m.node.ID), m.node)
	for _, role := range []Role{RoleIdentity, RoleGrant} {
		if err := t.takeIssuer(m.node.ID, role, m.issuers[role], known, d); err != nil {
			return err
		}
	}
	if known && t.checkAPICertificate(m.node, m.apiServes) == nil {
		m.node.APICertificate = m.apiServes
		t.save(key(prefixNode, m.node.ID), m.node)
	}
	return nil
}

// takeIssuer makes an issuer of the manifest known. One that a member had before
// and that has ended since is passed over; a new node cannot do without.
func (t *turn) takeIssuer(node string, role Role, der []byte, member bool, d *manifestDetails) error {
	old, known, err := load[Issuer](t, key(prefixIssuer, sha256Hex(der)))
	if err != nil {
		return err
	}
	switch {
	case known && (member || old.Denied == 0 && old.Retired == 0 && old.Node == node):
		return nil
	case known:
		return denied("node %q would come back with an issuer that was taken out of use: %s", node, old.Reason).
			then("make the node new keys, and have them signed")
	}
	issuer, err := t.checkIssuer(node, role, der)
	if err != nil {
		if member {
			return nil // it has others, or none: the manifest's ended, or its root did
		}
		return err
	}
	if err := t.checkSuccessor(issuer); err != nil {
		return err
	}
	t.save(key(prefixIssuer, issuer.ID), issuer)
	d.Issuers = append(d.Issuers, installedIssuer{issuer.ID, issuer.Role, issuer.NotAfter, issuer.Root})
	return nil
}

// aboutMember finds the node that an admin wants something done with.
func (t *turn) aboutMember(name string) (Node, error) {
	if !t.admin {
		return Node{}, denied("only an admin changes what nodes the cluster has")
	}
	t.details = memberDetails{}
	return find[Node](t, key(prefixNode, name), "node", name)
}

// removeNode makes a node unknown: no other talks to it, and no command is
// believed because it verified who asked. Its issuers go out of use with it,
// since nobody knows in whose hands its keys are. Only where an admin says that
// they were destroyed stays good what they signed.
func (t *turn) removeNode(b RemoveNode) (Object, error) {
	if t.cmd.Actor == "" && b.Retired {
		return nil, denied("only an admin can say that keys were destroyed")
	}
	t.admin = t.admin || t.cmd.Actor == ""
	node, err := t.aboutMember(b.Node)
	if err != nil {
		return nil, err
	}
	if err := checkText("the reason", b.Reason, 1); err != nil {
		return nil, err
	}
	if n := suffixes(t, []byte(prefixNode)); len(n) == 1 {
		return nil, conflict("node %q is the only one", b.Node)
	}
	t.Delete(key(prefixNode, b.Node))
	t.m.Removed++
	t.m.TrustRevision++
	d := memberDetails{Reason: b.Reason, Retired: b.Retired}
	of := func(i Issuer) bool { return i.Node == b.Node }
	if b.Retired {
		err = t.retire(of)
	} else {
		d.Denied, err = t.denyWhere("node "+b.Node+" was removed: "+b.Reason, of)
	}
	if err != nil {
		return nil, err
	}
	t.details = d
	return node, nil
}

// retire has issuers sign nothing more; what they signed stays good.
func (t *turn) retire(match func(Issuer) bool) error {
	all, err := every[Issuer](t, prefixIssuer)
	if err != nil {
		return err
	}
	for _, i := range slices.DeleteFunc(all, func(i Issuer) bool { return !match(i) || i.Denied != 0 || i.Retired != 0 }) {
		i.Retired, i.Index = t.now, t.index
		t.save(key(prefixIssuer, i.ID), i)
	}
	return nil
}

// raiseVersion has the cluster speak the next version of commands from here on.
// The leader asks for it once every member has said that it knows that version.
func (t *turn) raiseVersion(b RaiseVersion) (Object, error) {
	if err := t.clusterOnly(); err != nil {
		return nil, err
	}
	switch now := t.m.version(); {
	case b.Version <= now:
		t.unchanged = true
	case b.Version != now+1 || b.Version > t.speaks:
		return nil, invalid("the version after %d is %d, not %d", now, now+1, b.Version)
	default:
		t.m.Version = b.Version
		t.object = t.m.Cluster
		t.details = struct {
			Version int `json:"version"`
		}{b.Version}
		t.saveMeta()
	}
	return t.state().Cluster()
}
