package approval

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/hallpass/hallpass/emergency"
)

// issuerDetails is the audit leaf of a denied issuer.
type issuerDetails struct {
	Node   string `json:"node"`
	Role   Role   `json:"role"`
	Reason string `json:"reason"`
	Until  Millis `json:"feed_until"`

	// SameKey are the issuers that went out of use with it: certificates of one
	// key are one issuer to whoever has stolen it.
	SameKey []string `json:"same_key,omitempty"`
}

// installDetails is the audit leaf of a node's new issuers.
type installDetails struct {
	Issuers        []installedIssuer `json:"issuers"`
	APICertificate string            `json:"api_certificate,omitempty"` // hex SHA-256 of the DER
}

type installedIssuer struct {
	ID       string `json:"id"`
	Role     Role   `json:"role"`
	NotAfter Millis `json:"not_after"`
	Root     string `json:"root"` // that signed it
}

// checkIssuer reads a node's certificate authority and refuses one that no root
// in force has made for this node: whoever can write commands could otherwise
// have certificates recorded, and so believed, of an issuer of his own.
func (t *turn) checkIssuer(node string, role Role, der []byte) (Issuer, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return Issuer{}, invalid("node %q: the %s issuer is not a certificate", node, role)
	}
	switch {
	case !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0:
		return Issuer{}, invalid("node %q: the %s issuer may not sign certificates", node, role)
	case c.MaxPathLen != 0 || !c.MaxPathLenZero:
		return Issuer{}, invalid("node %q: the %s issuer could make further issuers", node, role)
	case c.Subject.CommonName != t.issuerName(node, role):
		// One node's issuer under another's name would stay in use when that
		// node is thrown out.
		return Issuer{}, invalid("the %s issuer is that of %q, not of node %q", role, c.Subject.CommonName, node)
	}
	if t.m.version() >= 2 && emergency.Marked(c) {
		// Custodians made what it signs, and no quorum: a node that had one could
		// say of anything that it was an emergency.
		return Issuer{}, invalid("node %q: the %s issuer is an emergency issuer", node, role)
	}
	root, err := t.signer(c, role)
	if err != nil {
		return Issuer{}, err
	}
	issuer := Issuer{
		ID: sha256Hex(der), Node: node, Role: role,
		NotAfter: MillisOf(c.NotAfter), DER: der, Index: t.index, Root: root,
	}
	if issuer.NotAfter <= t.now || issuer.NotAfter > maxNow {
		return Issuer{}, invalid("node %q: the %s issuer ended at %s", node, role, issuer.NotAfter)
	}
	return issuer, nil
}

// issuerName is the common name that the roots' folder gives a node's issuer.
func (t *turn) issuerName(node string, role Role) string {
	if role == RoleGrant {
		return fmt.Sprintf("%s grants issuer %s", t.m.GrantTrustDomain, node)
	}
	return fmt.Sprintf("%s identity issuer %s", t.m.TrustDomain, node)
}

// installIssuer gives a member the successors of its issuers and of its API
// certificate.
func (t *turn) installIssuer(b InstallIssuer) (Object, error) {
	if !t.admin && !t.isServiceOrNode(t.actor) {
		return nil, denied("only an admin, a service or a node installs issuers")
	}
	node, err := find[Node](t, key(prefixNode, b.Node), "node", b.Node)
	if err != nil {
		return nil, err
	}
	out, d := Installed{Node: b.Node, Issuers: []string{}}, installDetails{Issuers: []installedIssuer{}}
	for _, i := range []struct {
		role Role
		der  []byte
	}{{RoleIdentity, b.IdentityIssuer}, {RoleGrant, b.GrantIssuer}} {
		if len(i.der) == 0 || t.has(key(prefixIssuer, sha256Hex(i.der))) {
			continue
		}
		issuer, err := t.checkIssuer(b.Node, i.role, i.der)
		if err != nil {
			return nil, err
		}
		if err := t.checkSuccessor(issuer); err != nil {
			return nil, err
		}
		t.save(key(prefixIssuer, issuer.ID), issuer)
		out.Issuers = append(out.Issuers, issuer.ID)
		d.Issuers = append(d.Issuers, installedIssuer{issuer.ID, issuer.Role, issuer.NotAfter, issuer.Root})
	}
	if len(b.APICertificate) > 0 && !bytes.Equal(b.APICertificate, node.APICertificate) {
		if err := t.checkAPICertificate(node, b.APICertificate); err != nil {
			return nil, err
		}
		node.APICertificate, d.APICertificate = b.APICertificate, sha256Hex(b.APICertificate)
		t.save(key(prefixNode, node.ID), node)
	}
	t.unchanged = len(d.Issuers) == 0 && d.APICertificate == ""
	if !t.unchanged {
		t.m.TrustRevision++
	}
	t.details = d
	return out, nil
}

// checkSuccessor refuses an issuer with the key of one that was denied: whoever
// stole that key would be back with it. It also bounds how many there are.
func (t *turn) checkSuccessor(issuer Issuer) error {
	c, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return invalid("the issuer is not a certificate")
	}
	all, err := every[Issuer](t, prefixIssuer)
	if err != nil {
		return err
	}
	live := 0
	for _, old := range all {
		if old.Node == issuer.Node && old.Role == issuer.Role && old.NotAfter > t.now {
			live++
		}
		oc, err := x509.ParseCertificate(old.DER)
		if err != nil {
			return fmt.Errorf("approval: issuer %s: %w", old.ID, err)
		}
		if !bytes.Equal(oc.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) {
			continue
		}
		switch {
		case old.Denied != 0 && !old.Orphan:
			return denied("this issuer has the key of issuer %s, which was denied: %s", shortHash(old.ID), old.Reason).
				then("make the node new keys, and have them signed")
		case old.Node != issuer.Node || old.Role != issuer.Role:
			return denied("this issuer has the key of the %s issuer of node %q", old.Role, old.Node)
		}
	}
	if live >= MaxIssuersOfNode {
		return limited("node %q has %d %s issuers", issuer.Node, live, issuer.Role).then("wait until some have ended")
	}
	return nil
}

// checkAPICertificate refuses one that is not this node's own, or that would end
// sooner than the one it has: an old one, brought again, would take the node off
// its callers.
func (t *turn) checkAPICertificate(node Node, der []byte) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return invalid("node %q: the API certificate is not one", node.ID)
	}
	want := "spiffe://" + t.m.TrustDomain + "/node/" + node.ID
	if len(c.URIs) != 1 || c.URIs[0].String() != want || c.IsCA {
		return invalid("the API certificate is not that of %s", want)
	}
	if _, err := t.signer(c, RoleIdentity); err != nil {
		return err
	}
	if len(node.APICertificate) > 0 {
		if old, err := x509.ParseCertificate(node.APICertificate); err == nil && !c.NotAfter.After(old.NotAfter) {
			return stale("node %q has an API certificate until %s already", node.ID, MillisOf(old.NotAfter))
		}
	}
	if MillisOf(c.NotAfter) <= t.now {
		return invalid("node %q: the API certificate ended at %s", node.ID, MillisOf(c.NotAfter))
	}
	return nil
}

// denyIssuer takes an issuer's certificates out of use, for good.
func (t *turn) denyIssuer(b DenyIssuer) (Object, error) {
	if !t.admin {
		return nil, denied("only an admin denies an issuer")
	}
	if err := checkText("the reason", b.Reason, 1); err != nil {
		return nil, err
	}
	issuer, err := t.state().Issuer(b.Issuer)
	if err != nil {
		return nil, err
	}
	if issuer.Denied != 0 && !issuer.Orphan {
		t.unchanged = true
		return issuer, nil
	}
	until := t.deny(&issuer, b.Reason)
	same, err := t.denyKeyOf(issuer, b.Reason)
	if err != nil {
		return nil, err
	}
	t.details = issuerDetails{Node: issuer.Node, Role: issuer.Role, Reason: b.Reason, Until: until, SameKey: same}
	return issuer, nil
}

// denyKeyOf takes the other issuers with the key of one out of use.
func (t *turn) denyKeyOf(issuer Issuer, reason string) ([]string, error) {
	c, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return nil, fmt.Errorf("approval: issuer %s: %w", issuer.ID, err)
	}
	return t.denyWhere(reason, func(i Issuer) bool {
		other, err := x509.ParseCertificate(i.DER)
		return err == nil && bytes.Equal(other.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo)
	})
}

// deny takes one issuer out of use and puts it on the feed. The entry stays until
// the issuer itself ends, and not only until the last certificate that was
// recorded: whoever has its key signs without recording.
func (t *turn) deny(issuer *Issuer, reason string) (until Millis) {
	issuer.Denied, issuer.DeniedBy, issuer.Reason, issuer.Index, issuer.Orphan = t.now, t.cmd.Actor, reason, t.index, false
	t.save(key(prefixIssuer, issuer.ID), *issuer)
	t.m.TrustRevision++
	if end := issuer.NotAfter.Add(FeedSkew); end > t.now {
		t.joinFeed(key(prefixFeedIssuer, issuer.ID), dueFeedIssuer, issuer.ID, FeedEntry{ID: issuer.ID, Until: end})
		until = end
	}
	return until
}

// denyWhere takes the issuers that match out of use and returns their ids, as
// when a node is lost: its keys are in hands that nobody knows.
func (t *turn) denyWhere(reason string, match func(Issuer) bool) ([]string, error) {
	return t.denyAll(reason, false, match)
}

// denyAll is denyWhere; orphan says that it is for their root's going alone.
func (t *turn) denyAll(reason string, orphan bool, match func(Issuer) bool) ([]string, error) {
	all, err := every[Issuer](t, prefixIssuer)
	if err != nil {
		return nil, err
	}
	ids := []string{}
	for _, i := range all {
		// One whose root has gone is denied already, but not for what it is denied for
		// now: its key would come back under a new root.
		if (i.Denied == 0 || i.Orphan && !orphan) && match(i) {
			t.deny(&i, reason)
			if i.Orphan = orphan; orphan {
				t.save(key(prefixIssuer, i.ID), i)
			}
			ids = append(ids, i.ID)
		}
	}
	slices.Sort(ids)
	return ids, nil
}
