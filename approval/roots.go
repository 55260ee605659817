package approval

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/hallpass/hallpass/trust"
)

// rootsDetails is the audit leaf of a roots document.
type rootsDetails struct {
	TrustDomain string   `json:"trust_domain"`
	Sequence    uint64   `json:"sequence"`
	InForce     []string `json:"in_force"` // hex SHA-256 of the DER
	Retired     []string `json:"retired"`
	SHA256      string   `json:"sha256"` // of the document
	Denied      []string `json:"denied"` // issuers that went out of use with it
}

// firstRoots writes down which roots the cluster begins with.
func (t *turn) firstRoots(b Bootstrap, d *bootstrapDetails) error {
	var keys [][]byte
	for _, r := range []struct {
		role  Role
		td    string
		roots [][]byte
		ids   *[]string
	}{
		{RoleIdentity, b.TrustDomain, b.IdentityRoots, &d.IdentityRoots},
		{RoleGrant, b.GrantTrustDomain, b.GrantRoots, &d.GrantRoots},
	} {
		if len(r.roots) == 0 || len(r.roots) > trust.MaxRoots {
			return invalid("a trust domain begins with 1 to %d roots; %s has %d", trust.MaxRoots, r.td, len(r.roots))
		}
		for _, der := range r.roots {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return invalid("a root of %s is not a certificate", r.td)
			}
			if err := trust.CheckRoot(c, r.td); err != nil {
				return invalid("a root of %s: %s", r.td, err)
			}
			if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, c.RawSubjectPublicKeyInfo) }) {
				// One key under both roots would let a grant issuer's chain end
				// in the identity domain.
				return invalid("two roots have one key")
			}
			keys = append(keys, c.RawSubjectPublicKeyInfo)
			*r.ids = append(*r.ids, trust.ID(c))
		}
		if err := t.saveFirstRoots(r.role, r.td, r.roots, b.RootDocuments); err != nil {
			return err
		}
	}
	return nil
}

// saveFirstRoots takes in the documents that were in force before the cluster
// began: a root that they retired does not come back with it.
func (t *turn) saveFirstRoots(role Role, td string, anchors, documents [][]byte) error {
	all, err := trust.ParseAll(bytes.Join(documents, []byte("\n")))
	if err != nil {
		return invalid("%s", err)
	}
	certs, err := parseAll(anchors)
	if err != nil {
		return err
	}
	set, adopted, behind := trust.NewSet(td, certs).Adopt(all)
	if behind || len(adopted) > MaxRootDocuments {
		return invalid("the roots documents of %s do not follow from its roots, or are too many", td)
	}
	r := Roots{Role: role, Sequence: set.Sequence(), Anchors: anchors, Documents: [][]byte{}, Index: t.index}
	for _, d := range adopted {
		line, err := d.Encode()
		if err != nil {
			return invalid("%s", err)
		}
		r.Documents = append(r.Documents, line)
	}
	for _, root := range set.Roots() {
		r.InForce = append(r.InForce, root.Raw)
	}
	t.save(key(prefixRoots, string(role)), r)
	return nil
}

// signer returns the id of the root in force that signed a certificate.
func (t *turn) signer(c *x509.Certificate, role Role) (string, error) {
	r, err := t.state().Roots(role)
	if err != nil {
		return "", err
	}
	roots, err := parseAll(r.InForce)
	if err != nil {
		return "", err
	}
	for _, root := range roots {
		if c.CheckSignatureFrom(root) == nil {
			return trust.ID(root), nil
		}
	}
	return "", denied("the certificate of %q is signed by no root that is in force", c.Subject.CommonName).
		then("have it signed by a root that is; hallpass bundle lists them")
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("approval: stored root: %w", err)
		}
		all = append(all, c)
	}
	return all, nil
}

// Set returns the roots as who follows documents has them.
func (r Roots) Set(trustDomain string) (trust.Set, error) {
	anchors, err := parseAll(r.Anchors)
	if err != nil {
		return trust.Set{}, err
	}
	documents, err := trust.ParseAll(bytes.Join(r.Documents, []byte("\n")))
	if err != nil {
		return trust.Set{}, fmt.Errorf("approval: stored roots document: %w", err)
	}
	s, behind := trust.NewSet(trustDomain, anchors).Follow(documents)
	if behind || s.Sequence() != r.Sequence {
		return trust.Set{}, fmt.Errorf("approval: the stored roots documents of %s do not follow from each other", trustDomain)
	}
	return s, nil
}

// setRoots puts a roots document in force. Issuers of a root that it retires,
// and those that it names, go out of use with it.
func (t *turn) setRoots(b SetRoots) (Object, error) {
	if !t.admin {
		return nil, denied("only an admin brings a roots document")
	}
	d, err := trust.Parse(b.Document)
	if err != nil {
		return nil, invalid("%s", err)
	}
	role := RoleIdentity
	switch d.TrustDomain {
	case t.m.TrustDomain:
	case t.m.GrantTrustDomain:
		role = RoleGrant
	default:
		return nil, invalid("the document is of %s, which is not a trust domain of this cluster", d.TrustDomain)
	}
	t.object = d.TrustDomain
	old, err := t.state().Roots(role)
	if err != nil {
		return nil, err
	}
	set, err := old.Set(d.TrustDomain)
	if err != nil {
		return nil, err
	}
	set, err = set.Next(d)
	if errors.Is(err, trust.ErrOld) && !errors.Is(err, trust.ErrFork) && d.Sequence == old.Sequence {
		t.unchanged = true // the document in force, perhaps with other signatures
		return old, nil
	}
	if err != nil {
		return nil, stale("%s", err).then("have the newest document: it must be signed by a root in force, with a higher number")
	}
	return t.saveRoots(old, set, b.Document)
}

func (t *turn) saveRoots(old Roots, set trust.Set, text []byte) (Object, error) {
	if len(old.Documents) >= MaxRootDocuments {
		return nil, limited("%s has had %d roots documents", set.TrustDomain(), len(old.Documents))
	}
	d, _ := set.Document()
	next := old
	next.Sequence, next.Index, next.InForce = d.Sequence, t.index, nil
	next.Documents = append(slices.Clone(old.Documents), text)
	details := rootsDetails{
		TrustDomain: d.TrustDomain, Sequence: d.Sequence, Retired: slices.Clone(d.Retired), SHA256: sha256Hex(text), InForce: []string{},
	}
	for _, root := range set.Roots() {
		next.InForce = append(next.InForce, root.Raw)
		details.InForce = append(details.InForce, trust.ID(root))
	}
	if err := t.checkApart(next); err != nil {
		return nil, err
	}
	t.save(key(prefixRoots, string(next.Role)), next)
	t.m.TrustRevision++
	var err error
	details.Denied, err = t.denyOrphans(next.Role, set)
	if err != nil {
		return nil, err
	}
	t.details = details
	return next, nil
}

// checkApart refuses a key that would be a root of both trust domains.
func (t *turn) checkApart(next Roots) error {
	role := RoleIdentity
	if next.Role == RoleIdentity {
		role = RoleGrant
	}
	other, err := t.state().Roots(role)
	if err != nil {
		return err
	}
	mine, err := parseAll(next.InForce)
	if err != nil {
		return err
	}
	theirs, err := parseAll(slices.Concat(other.Anchors, other.InForce))
	if err != nil {
		return err
	}
	for _, m := range mine {
		for _, o := range theirs {
			if bytes.Equal(m.RawSubjectPublicKeyInfo, o.RawSubjectPublicKeyInfo) {
				return invalid("one key would be a root of both trust domains")
			}
		}
	}
	return nil
}

// denyOrphans takes issuers out of use whose root is not in force any more, and
// those that the document names. A document that would leave a member without an
// issuer is refused: no certificate could be made where it leads.
func (t *turn) denyOrphans(role Role, set trust.Set) ([]string, error) {
	inForce := map[string]bool{}
	for _, root := range set.Roots() {
		inForce[trust.ID(root)] = true
	}
	all, err := every[Issuer](t, prefixIssuer)
	if err != nil {
		return nil, err
	}
	stays := func(i Issuer) bool { return inForce[i.Root] && !set.Denies(i.ID) }
	had, has := map[string]bool{}, map[string]bool{}
	for _, i := range all {
		if i.Role == role && i.Denied == 0 && i.NotAfter > t.now {
			had[i.Node] = true
			has[i.Node] = has[i.Node] || stays(i)
		}
	}
	for _, i := range all {
		if had[i.Node] && !has[i.Node] {
			return nil, conflict("node %q would be left without a %s issuer", i.Node, role).
				then("first install issuers that a root signed which stays, or deny this node's issuers")
		}
	}
	// No member needs an emergency issuer, and the grants' roots sign it.
	signedBy := func(i Issuer) bool { return i.Role == role || i.Role == RoleEmergency && role == RoleGrant }
	// From version 2 on, what goes with its root alone is told from what is denied.
	orphan := func(i Issuer) bool {
		return t.m.version() >= 2 && i.Role == role && !inForce[i.Root] && !set.Denies(i.ID)
	}
	gone, err := t.denyAll("its root is not in force any more", true, orphan)
	if err != nil {
		return nil, err
	}
	named, err := t.denyWhere("the roots document in force has no place for it", func(i Issuer) bool {
		return signedBy(i) && !stays(i) && !orphan(i)
	})
	if err != nil {
		return nil, err
	}
	out := slices.Concat(gone, named)
	slices.Sort(out)
	return out, nil
}
