package approval

import "time"

// issueDetails is the audit leaf of a certificate: all of its record, in the
// order in which the audit log writes it.
type issueDetails struct {
	CSRBy     string `json:"csr_by,omitempty"`
	Issuer    string `json:"issuer"`
	Key       string `json:"key"`
	NotAfter  Millis `json:"not_after"`
	NotBefore Millis `json:"not_before"`
	Parent    string `json:"parent,omitempty"` // the grant that its grant was made of
	Serial    string `json:"serial"`
	SPIFFEID  string `json:"spiffe_id"`
	TBSHash   string `json:"tbs_hash"`
}

// issueGrant records a grant certificate, after which it may be signed.
// Everything that allows it is checked here once more: between the node's look
// and this entry of the log the grant may have been revoked.
func (t *turn) issueGrant(b IssueGrant) (Object, error) {
	i := Issue{
		Serial: b.Serial, Role: RoleGrant, Grant: b.Grant, TBSHash: b.TBSHash, Issuer: b.Issuer,
		NotBefore: Millis(b.NotBefore), NotAfter: Millis(b.NotAfter), Key: b.Key, CSRBy: b.CSRBy,
	}
	g, record, err := t.liveGrant(b.Grant)
	if err != nil {
		return nil, err
	}
	if t.cmd.Actor != g.Subject {
		return nil, denied("only its subject, %s, gets certificates of grant %s", g.Subject, g.ID)
	}
	if err := t.checkBlocked(g.Subject); err != nil {
		return nil, err
	}
	if g.Emergency != nil {
		// A node's certificate has no mark: it would open what admits no emergency.
		return nil, denied("grant %s is an emergency grant, and no node makes certificates of those", g.ID).
			then("ask for access as usual: the cluster is back")
	}
	if t.now < g.NotBefore {
		return nil, conflict("grant %s starts at %s", g.ID, g.NotBefore).then("ask for the certificate then")
	}
	if g.CSRKey != "" && b.Key != g.CSRKey {
		return nil, denied("grant %s was approved for another key", g.ID).then("send the CSR of the key that the request named")
	}
	if err := t.checkGiver(g, b.CSRBy); err != nil {
		return nil, err
	}
	if i.NotAfter > g.Expiry {
		// A certificate that outlives its grant is access that nobody approved.
		return nil, denied("the certificate would end at %s, after its grant at %s", i.NotAfter, g.Expiry)
	}
	if i.NotBefore < g.NotBefore.Add(-MaxBackdate) {
		return nil, denied("the certificate would begin at %s, before its grant at %s", i.NotBefore, g.NotBefore)
	}
	if err := t.checkIssue(i, g.TTL()); err != nil {
		return nil, err
	}
	if g.Issued >= MaxIssues {
		return nil, limited("grant %s has %d certificates", g.ID, g.Issued).then("ask for a new grant")
	}
	i.SPIFFEID = g.SPIFFEID
	g.Issued++
	g.LatestNotAfter, g.Index = max(g.LatestNotAfter, i.NotAfter), t.index
	if err := record.issued(g); err != nil {
		return nil, err
	}
	u, _ := parseUID(g.ID)
	t.save(recordKey(u), record)
	t.mark(key(string(keyUID(prefixGrantIssue, u)), i.Serial))
	written := t.writeIssue(i)
	if d, ok := t.details.(issueDetails); ok && g.Parent != "" {
		d.Parent = g.Parent
		t.details = d
	}
	return written, nil
}

// checkGiver refuses a CSR from anyone but the subject or the one whose key the
// request named, and from one whose vote the grant stands on: an approver who
// holds the key has approved his own access.
func (t *turn) checkGiver(g Grant, giver string) error {
	id, err := parseID("the giver of the CSR", giver)
	if err != nil {
		return err
	}
	if giver != g.Subject && (g.CSRBy == "" || giver != g.CSRBy) {
		return denied("%s may not give the CSR for grant %s", giver, g.ID)
	}
	if person := t.state().personOf(id); person != "" {
		if g.StandsOn(person) {
			return denied("%s approved grant %s and may not hold its key", person, g.ID)
		}
		if parent, err := t.state().Grant(g.Parent); g.Parent != "" && err == nil && parent.StandsOn(person) {
			return denied("%s approved grant %s, of which it was made, and may not hold its key", person, g.Parent)
		}
	}
	return nil
}

// issueIdentity records the certificate of a service or a node. Persons' IDs
// are out of an admin's reach: he would vote as them.
func (t *turn) issueIdentity(b IssueIdentity) (Object, error) {
	if !t.admin {
		return nil, denied("only an admin has identities issued")
	}
	id, err := parseID("the identity", b.SPIFFEID)
	if err != nil {
		return nil, err
	}
	if !t.isServiceOrNode(id) || t.state().personOf(id) != "" {
		return nil, denied("%s is not a service or node of %s", id, t.m.TrustDomain).
			then("persons get their identity from where they sign in")
	}
	if err := t.checkBlocked(b.SPIFFEID); err != nil {
		return nil, err
	}
	i := Issue{
		Serial: b.Serial, Role: RoleIdentity, SPIFFEID: b.SPIFFEID, TBSHash: b.TBSHash, Issuer: b.Issuer,
		NotBefore: Millis(b.NotBefore), NotAfter: Millis(b.NotAfter), Key: b.Key,
	}
	if err := t.checkIssue(i, MaxIdentityTTL); err != nil {
		return nil, err
	}
	return t.writeIssue(i), nil
}

// checkIssue refuses a record that no issuer of ours may sign.
func (t *turn) checkIssue(i Issue, ttl time.Duration) error {
	if err := checkSerial(i.Serial); err != nil {
		return err
	}
	if err := checkHash("the TBS hash", i.TBSHash); err != nil {
		return err
	}
	if err := checkHash("the key", i.Key); err != nil {
		return err
	}
	issuer, err := t.state().Issuer(i.Issuer)
	if err != nil {
		return err
	}
	switch {
	case issuer.Denied != 0:
		return denied("issuer %s is denied: %s", shortHash(issuer.ID), issuer.Reason)
	case issuer.Retired != 0:
		return denied("issuer %s is retired: its node was removed", shortHash(issuer.ID))
	case issuer.Role != i.Role:
		return denied("issuer %s signs %s certificates, not %s", shortHash(issuer.ID), issuer.Role, i.Role)
	case i.NotAfter > issuer.NotAfter:
		return denied("the certificate would end at %s, after its issuer at %s", i.NotAfter, issuer.NotAfter)
	case i.NotBefore <= 0 || i.NotBefore > t.now || i.NotAfter <= t.now:
		return invalid("the certificate would live from %s to %s, which is not now", i.NotBefore, i.NotAfter)
	case i.NotAfter > t.now.Add(ttl) || i.NotAfter > i.NotBefore.Add(ttl+MaxBackdate):
		return denied("the certificate would live longer than %s", ttl)
	}
	if t.has(key(prefixIssue, i.Serial)) {
		// Two certificates of one serial: a revoked one passes for the other.
		return conflict("serial %s is used already", i.Serial)
	}
	return nil
}

// writeIssue writes the record of a certificate and its audit leaf.
func (t *turn) writeIssue(i Issue) Issue {
	i.By, i.At, i.Index = t.cmd.Actor, t.now, t.index
	t.save(key(prefixIssue, i.Serial), i)
	t.mark(dueAt(prefixIssueDue, i.NotAfter, endedIssue, i.Serial))
	t.details = issueDetails{
		Serial: i.Serial, SPIFFEID: i.SPIFFEID, TBSHash: i.TBSHash, Issuer: i.Issuer,
		NotBefore: i.NotBefore, NotAfter: i.NotAfter, Key: i.Key, CSRBy: i.CSRBy,
	}
	return i
}
