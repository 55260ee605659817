package approval

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/hallpass/hallpass/emergency"
	"github.com/hallpass/hallpass/grant"
)

// registerDetails is the audit leaf of an emergency issuer that was made known.
type registerDetails struct {
	Name      string `json:"name"`
	NotBefore Millis `json:"not_before"`
	NotAfter  Millis `json:"not_after"`
	Root      string `json:"root"`             // that signed it
	Denied    bool   `json:"denied,omitempty"` // a roots document had taken it out of use
}

// registerEmergency makes an emergency issuer known, so that it can be denied, and
// that its journal can be taken in. It makes nothing good that was not: proxies go
// by the root's signature, and by their own settings.
func (t *turn) registerEmergency(b RegisterEmergency) (Object, error) {
	if !t.admin {
		return nil, denied("only an admin makes an emergency issuer known")
	}
	c, err := x509.ParseCertificate(b.Issuer)
	if err != nil {
		return nil, invalid("the emergency issuer is not a certificate")
	}
	if err := emergency.CheckIssuer(c, t.m.GrantTrustDomain); err != nil {
		return nil, invalid("%s", err)
	}
	t.object = emergency.ID(c)
	if old, known, err := load[Issuer](t, key(prefixIssuer, t.object)); known || err != nil {
		t.unchanged = true
		return old, err
	}
	root, err := t.signer(c, RoleGrant)
	if err != nil {
		return nil, err
	}
	issuer := Issuer{ID: t.object, Role: RoleEmergency, NotAfter: MillisOf(c.NotAfter), DER: b.Issuer, Index: t.index, Root: root}
	if err := t.checkSuccessor(issuer); err != nil {
		return nil, err
	}
	t.save(key(prefixIssuer, issuer.ID), issuer)
	t.m.TrustRevision++
	roots, err := t.state().Roots(RoleGrant)
	if err != nil {
		return nil, err
	}
	set, err := roots.Set(t.m.GrantTrustDomain)
	if err != nil {
		return nil, err
	}
	if set.Denies(issuer.ID) {
		t.deny(&issuer, "the roots document in force denies it")
	}
	t.details = registerDetails{c.Subject.CommonName, MillisOf(c.NotBefore), issuer.NotAfter, root, issuer.Denied != 0}
	return issuer, nil
}

// importDetails is the audit leaf of a certificate that an emergency issuer made.
type importDetails struct {
	Issuer     string     `json:"issuer"`
	Serial     string     `json:"serial"`
	SPIFFEID   string     `json:"spiffe_id"`
	TBSHash    string     `json:"tbs_hash"`
	NotBefore  Millis     `json:"not_before"`
	NotAfter   Millis     `json:"not_after"`
	Key        string     `json:"key"`
	Reason     string     `json:"reason"`
	Custodians []string   `json:"custodians"`
	Made       Millis     `json:"made"`
	Place      uint64     `json:"n"`
	Hash       string     `json:"hash"`   // of the record; the next one names it
	Record     string     `json:"record"` // as it was signed
	State      GrantState `json:"state"`
	EndReason  string     `json:"end_reason,omitempty"`
	Until      Millis     `json:"feed_until,omitempty"`
}

// forkDetails is the audit leaf of a journal with another history than the one
// that was taken in.
type forkDetails struct {
	Fork    bool   `json:"fork"`
	Place   uint64 `json:"n"`
	Have    string `json:"have"`    // hash of the record that was taken in
	Brought string `json:"brought"` // of the one that was brought
	Record  string `json:"record"`  // that was brought
}

// importEmergency takes one record of an emergency issuer's journal in. It is
// evidence, and allows nothing: what it is about was done. So it is taken also of
// an issuer that is denied or over; not taken is what the issuer did not sign, what
// is out of order, and what is beyond an emergency issuer's limits.
func (t *turn) importEmergency(b ImportEmergency) (Object, error) {
	if !t.admin {
		return nil, denied("only an admin brings an emergency journal")
	}
	r, err := emergency.ParseRecord(b.Record)
	if err != nil {
		return nil, invalid("%s", err)
	}
	issuer, err := t.state().Issuer(r.Issuer)
	if err != nil {
		return nil, err
	}
	if issuer.Role != RoleEmergency {
		// What a node signs is committed first: its key must not be able to say
		// afterwards that it was an emergency.
		return nil, invalid("issuer %s is not an emergency issuer", shortHash(issuer.ID))
	}
	c, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return nil, err
	}
	if err := r.Verify(c); err != nil {
		return nil, invalid("%s", err)
	}
	t.object = issuer.ID
	j, err := t.journal(issuer.ID)
	if err != nil {
		return nil, err
	}
	hash, err := r.Hash()
	if err != nil {
		return nil, invalid("%s", err)
	}
	if r.N <= j.Count {
		return t.again(j, r.N, hash, b.Record)
	}
	if err := r.Follows(j.Count, j.Head); err != nil {
		if r.N == j.Count+1 {
			return t.forked(j, r.N, hash, b.Record)
		}
		return nil, conflict("%s", err).then("bring the whole journal: what is missing was there when it was written")
	}
	id, err := r.Check(c, t.m.GrantTrustDomain)
	if err != nil {
		return nil, invalid("%s", err)
	}
	if MillisOf(r.Time) > t.now {
		return nil, conflict("record %d is of %s, which is not yet", r.N, MillisOf(r.Time)).then("bring it then")
	}
	j.Count, j.Head, j.Index = r.N, hash, t.index
	t.save(key(prefixJournal, j.Issuer), j)
	t.Put(journalPlace(j.Issuer, r.N), mustHash(hash))
	if err := t.takeRecord(r, id, hash, string(b.Record)); err != nil {
		return nil, err
	}
	return j, nil
}

// journal is what was taken in of an issuer's journal so far.
func (t *turn) journal(issuer string) (EmergencyJournal, error) {
	j, ok, err := load[EmergencyJournal](t, key(prefixJournal, issuer))
	if !ok {
		j = EmergencyJournal{Issuer: issuer, Head: issuer}
	}
	return j, err
}

func journalPlace(issuer string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(pairPrefix(prefixJournalPlace, issuer), n)
}

// mustHash is the bytes of a hash that was just made.
func mustHash(hash string) []byte {
	b, _ := hex.DecodeString(hash) // of this package's own hex
	return b
}

// again finds a record where one was taken in already: the same one, or one of
// another history.
func (t *turn) again(j EmergencyJournal, n uint64, hash string, record []byte) (Object, error) {
	if slices.Equal(t.Get(journalPlace(j.Issuer, n)), mustHash(hash)) {
		t.unchanged = true
		return j, nil
	}
	return t.forked(j, n, hash, record)
}

// forked writes down that an issuer has signed two histories: somebody has used a
// copy of the kit, or cut its journal and gone on. It stays until the issuer is
// denied. Nothing else of that record is taken in.
func (t *turn) forked(j EmergencyJournal, n uint64, hash string, record []byte) (Object, error) {
	if j.Forked == n && j.ForkHash == hash {
		t.unchanged = true
		return j, nil
	}
	have := j.Head
	if n <= j.Count {
		have = hex.EncodeToString(t.Get(journalPlace(j.Issuer, n)))
	}
	j.Forked, j.ForkHash, j.Index = n, hash, t.index
	t.save(key(prefixJournal, j.Issuer), j)
	t.details = forkDetails{true, n, have, hash, string(record)}
	return j, nil
}

// takeRecord makes the request, the grant and the certificate's record of what an
// emergency issuer signed. They end at once if they ought to have ended.
func (t *turn) takeRecord(r emergency.Record, id grant.ID, hash, text string) error {
	if err := checkSerial(r.Serial); err != nil {
		return err
	}
	if t.has(key(prefixIssue, r.Serial)) {
		return conflict("serial %s is used already", r.Serial)
	}
	u, ok := parseUID(id.GrantID())
	if !ok || t.has(recordKey(u)) {
		return conflict("there is a request %s already", id.GrantID())
	}
	if err := t.checkSubject("the subject", id.Subject().String()); err != nil {
		return err
	}
	q, g, err := t.emergencyGrant(r, id)
	if err != nil {
		return err
	}
	for _, k := range recordIndex(q) {
		t.mark(k)
	}
	t.enterState(prefixRequestState, u, string(q.State))
	t.enterState(prefixGrantState, u, string(g.State))
	t.Put(pairKey(prefixLiveGrant, g.Subject, string(u[:])), until(g.Expiry))
	t.mark(dueAt(prefixDue, g.Expiry, dueGrant, string(u[:])))
	q.Index, g.Index = t.index, t.index
	t.keep(q, &g)
	i := Issue{
		Serial: r.Serial, Role: RoleEmergency, Grant: g.ID, SPIFFEID: g.SPIFFEID, TBSHash: r.TBSHash, Issuer: r.Issuer,
		NotBefore: MillisOf(r.NotBefore), NotAfter: MillisOf(r.NotAfter), Key: r.Key, CSRBy: g.Subject,
	}
	t.mark(key(string(keyUID(prefixGrantIssue, u)), i.Serial))
	t.writeIssue(i)
	end, err := t.overdue(&g, u)
	if err != nil {
		return err
	}
	t.object = g.ID
	t.details = importDetails{
		Issuer: r.Issuer, Serial: r.Serial, SPIFFEID: g.SPIFFEID, TBSHash: r.TBSHash, NotBefore: i.NotBefore, NotAfter: i.NotAfter,
		Key: r.Key, Reason: r.Reason, Custodians: r.Custodians, Made: q.Created, Place: r.N, Hash: hash, Record: text,
		State: g.State, EndReason: end.Reason, Until: end.Until,
	}
	return nil
}

// emergencyGrant is what a record says, in the words of requests and grants. Nobody
// asked, and nobody voted: who acted is in Emergency.
func (t *turn) emergencyGrant(r emergency.Record, id grant.ID) (Request, Grant, error) {
	made, expiry := MillisOf(r.Time), MillisOf(r.NotAfter)
	subject := id.Subject().String()
	e := &Emergency{Issuer: r.Issuer, Place: r.N, Custodians: r.Custodians, Reason: r.Reason, ImportedBy: t.cmd.Actor, Imported: t.now}
	q := Request{
		ID: id.GrantID(), State: RequestApproved, Requester: subject, RequesterPerson: t.state().personOf(id.Subject()),
		Subject: subject, Service: id.Scope().Service(), Reason: r.Reason, CSRKey: r.Key, CSRBy: subject, Rules: []string{},
		Decisions: []Decision{}, Created: made, Expires: made.Add(RequestLife), Ended: made, EndedBy: subject, Emergency: e,
	}
	life := int64(expiry - made)
	v := Revision{
		Permissions: id.Scope().Texts(), DurationMS: life, Requirements: []Requirement{}, By: subject, At: made,
		MaxDurationMS: life, CertificateTTL: life,
	}
	var err error
	if v.Hash, err = contentHash(q, v); err != nil {
		return q, Grant{}, err
	}
	q.pinned(v)
	g := Grant{
		ID: q.ID, State: GrantActive, SPIFFEID: r.SPIFFEID, Requester: subject, Subject: subject, Service: q.Service,
		Permissions: v.Permissions, Hash: v.Hash, NotBefore: made, Expiry: expiry, CertificateTTL: life, CSRKey: q.CSRKey,
		CSRBy: subject, Requirements: v.Requirements, Votes: []Vote{}, Created: made, Issued: 1, LatestNotAfter: expiry, Emergency: e,
	}
	return q, g, nil
}

// overdue ends a grant that came in and that ended, or would have been ended, while
// the cluster did not know of it.
func (t *turn) overdue(g *Grant, u uid) (grantDetails, error) {
	early, revoked, err := load[EmergencyRevocation](t, keyUID(prefixEarlyRevoked, u))
	if err != nil {
		return grantDetails{}, err
	}
	if revoked {
		t.dropEarly(u, early)
	}
	b, blocked, err := load[Block](t, key(prefixBlock, g.Subject))
	switch {
	case err != nil:
		return grantDetails{}, err
	case revoked:
		return t.endGrant(g, GrantRevoked, early.Reason+" (before it was imported, by "+early.By+")"), nil
	case g.StateAt(t.now) == GrantExpired:
		return t.endGrant(g, GrantExpired, ""), nil
	case u.made() < t.m.EpochBegan:
		return t.endGrant(g, GrantRevoked, "it is older than the epoch"), nil
	case blocked:
		// It was made in ignorance of the block, which goes before.
		return t.endGrant(g, GrantRevoked, "the subject is blocked: "+b.Reason), nil
	}
	return grantDetails{}, nil
}

func (t *turn) dropEarly(u uid, early EmergencyRevocation) {
	t.Delete(keyUID(prefixEarlyRevoked, u))
	t.Delete(keyUID(prefixFeedGrant, u))
	t.unmark(dueAt(prefixDue, early.Until, dueFeedGrant, string(u[:])))
	t.feedChanged = true
}

// revokeEmergency ends an emergency grant of which nothing is known yet but its id,
// as a proxy's access log has it: its journal may come late, or never, from custodians
// who were robbed. When it ends at the latest follows from the id.
func (t *turn) revokeEmergency(b RevokeEmergency) (Object, error) {
	if !t.admin {
		return nil, denied("only an admin revokes an emergency grant that was not imported")
	}
	if err := checkText("the reason", b.Reason, 1); err != nil {
		return nil, err
	}
	u, ok := parseUID(b.Grant)
	if !ok {
		return nil, invalid("%q is not the id of a grant", b.Grant)
	}
	if t.has(recordKey(u)) {
		return nil, conflict("grant %s is known", b.Grant).then("hallpass grant revoke " + b.Grant)
	}
	if old, revoked, err := load[EmergencyRevocation](t, keyUID(prefixEarlyRevoked, u)); revoked || err != nil {
		t.unchanged = true
		return old, err
	}
	end, err := emergency.Until(b.Grant)
	if err != nil {
		return nil, invalid("%s", err)
	}
	until := MillisOf(end).Add(FeedSkew)
	if until <= t.now {
		return nil, expired("an emergency grant with the id %s ended by %s", b.Grant, MillisOf(end))
	}
	if until > t.now.Add(emergency.MaxIssuerLife) {
		return nil, invalid("the id %s is of %s, and no issuer lives so long", b.Grant, u.made())
	}
	if n := len(suffixes(t, []byte(prefixEarlyRevoked))); n >= maxEarlyRevoked {
		return nil, limited("%d grants were revoked before they were imported", n).then("deny the issuer instead")
	}
	r := EmergencyRevocation{Grant: b.Grant, Reason: b.Reason, By: t.cmd.Actor, At: t.now, Until: until}
	t.save(keyUID(prefixEarlyRevoked, u), r)
	t.joinFeed(keyUID(prefixFeedGrant, u), dueFeedGrant, string(u[:]), FeedEntry{ID: b.Grant, Until: until})
	t.details = struct {
		Reason string `json:"reason"`
		Until  Millis `json:"feed_until"`
	}{b.Reason, until}
	return r, nil
}
