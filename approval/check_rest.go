package approval

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/audit"
)

func (c *checker) issues() {
	type tally struct {
		n    uint64
		last Millis
	}
	of := map[string]tally{}
	tbs := map[string]string{}
	inOrder(objects[Issue](c, prefixIssue), func(serial string, i Issue) {
		c.need(i.Serial == serial && checkSerial(serial) == nil, "certificate %q is kept as %q", i.Serial, serial)
		c.mark(dueAt(prefixIssueDue, i.NotAfter, endedIssue, serial))
		c.need(tbs[i.TBSHash] == "", "certificates %s and %s are one", tbs[i.TBSHash], serial)
		tbs[i.TBSHash] = serial
		issuer, ok := c.issuers[i.Issuer]
		c.need(ok && issuer.Role == i.Role && i.NotAfter <= issuer.NotAfter, "certificate %s: not of its issuer", serial)
		// What an emergency issuer signed is recorded afterwards, whatever has become
		// of it since.
		late := i.Role == RoleEmergency
		c.need(late || issuer.Denied == 0 || i.Index < issuer.Index, "certificate %s: recorded after its issuer was denied", serial)
		c.need(i.NotBefore <= i.At && (late || i.At < i.NotAfter), "certificate %s: from %s to %s, recorded at %s", serial, i.NotBefore, i.NotAfter, i.At)
		if i.Role == RoleIdentity {
			c.need(c.byID[i.SPIFFEID] == "", "certificate %s: an admin had it issued for a person, %s", serial, i.SPIFFEID)
			return
		}
		g, ok := c.grantOf[i.Grant]
		if !ok {
			c.bad("certificate %s: of no grant", serial)
			return
		}
		u, _ := parseUID(g.ID)
		c.mark(key(string(keyUID(prefixGrantIssue, u)), serial))
		c.need(i.NotAfter <= g.Expiry && i.SPIFFEID == g.SPIFFEID, "certificate %s: outlives its grant, or is not its", serial)
		c.need(i.Index <= g.Index, "certificate %s: its grant does not know of it", serial)
		c.need(late == (g.Emergency != nil), "certificate %s: of issuer role %s, for grant %s", serial, i.Role, g.ID)
		c.need(late || g.State == GrantActive || i.Index < g.Index, "certificate %s: recorded after grant %s was %s", serial, g.ID, g.State)
		c.need(i.NotAfter <= i.At.Add(g.TTL()), "certificate %s: lives longer than policy allows", serial)
		of[g.ID] = tally{of[g.ID].n + 1, max(of[g.ID].last, i.NotAfter)}
	})
	inOrder(c.grantOf, func(id string, g Grant) {
		// The records of those that ended long ago are gone, the last one's last.
		c.need(of[id].n <= g.Issued && (of[id].n > 0 || g.LatestNotAfter.Add(IssueLife) <= c.m.LastNow),
			"grant %s counts %d certificates until %q, %d are kept", id, g.Issued, g.LatestNotAfter, of[id].n)
		c.need(of[id].n == 0 || of[id].last == g.LatestNotAfter, "grant %s counts certificates until %q, not %q", id, g.LatestNotAfter, of[id].last)
		c.need(of[id].n == g.Issued || g.Created.Add(IssueLife) < c.m.LastNow, "grant %s counts %d certificates, %d are kept", id, g.Issued, of[id].n)
	})
}

func (c *checker) changes() {
	inOrder(objects[Change](c, prefixChange), func(at string, g Change) {
		u, ok := parseUID(g.ID)
		c.need(ok && string(u[:]) == at, "change %q is kept as %x", g.ID, at)
		for _, k := range changeIndex(g) {
			c.mark(k)
		}
		if g.State != ChangePending {
			c.mark(dueAt(prefixEnded, g.Ended, endedChange, at))
		} else {
			c.want[string(pairKey(prefixPendingChg, g.Author, at))] = until(g.Expires)
			c.mark(dueAt(prefixDue, g.Expires, dueChange, at))
		}
		hash, err := changeHash(g)
		c.need(err == nil && hash == g.Hash, "change %s has hash %s, not %s", g.ID, g.Hash, hash)
		var approved []string
		for _, d := range g.Decisions {
			c.need(d.Person != g.AuthorPerson && d.Actor != g.Author && d.Hash == g.Hash, "change %s: decided by its author", g.ID)
			if d.Verdict == Approve {
				approved = append(approved, d.Person)
			}
		}
		c.need(checkDistinct(g.ID, approved) == nil, "change %s: someone approved twice", g.ID)
		c.need(g.State != ChangeApplied || len(approved) >= 2, "change %s: applied on %d approvals", g.ID, len(approved))
	})
}

// feed checks that everything that was cut short and may have a live certificate
// is on the feed, for long enough, and nothing else is.
func (c *checker) feed() {
	grants := objects[FeedEntry](c, prefixFeedGrant)
	inOrder(grants, func(at string, e FeedEntry) {
		c.mark(dueAt(prefixDue, e.Until, dueFeedGrant, at))
		if early, ok := c.early[at]; ok {
			c.need(early.Grant == e.ID && early.Until == e.Until, "feed: grant %s until %s, revoked early until %s", e.ID, e.Until, early.Until)
			return
		}
		g := c.grantOf[e.ID]
		c.need((g.State == GrantRevoked || g.State == GrantReturned) && e.Until == g.LatestNotAfter.Add(FeedSkew),
			"feed: grant %s until %s, it is %s", e.ID, e.Until, g.State)
	})
	inOrder(c.early, func(at string, r EmergencyRevocation) {
		u, ok := parseUID(r.Grant)
		_, listed := grants[at]
		_, known := c.requestOf[r.Grant]
		c.need(ok && string(u[:]) == at && listed && !known, "grant %s was revoked early: listed %v, known %v", r.Grant, listed, known)
	})
	inOrder(c.grantOf, func(id string, g Grant) {
		u, _ := parseUID(id)
		_, listed := grants[string(u[:])]
		cut := g.State == GrantRevoked || g.State == GrantReturned
		c.need(listed || !cut || g.LatestNotAfter == 0 || g.LatestNotAfter.Add(FeedSkew) <= c.m.LastNow,
			"feed: grant %s is %s, has a certificate until %s and is not listed", id, g.State, g.LatestNotAfter)
	})
	issuers := objects[FeedEntry](c, prefixFeedIssuer)
	inOrder(issuers, func(id string, e FeedEntry) {
		i := c.issuers[id]
		c.need(e.ID == id && i.Denied != 0 && e.Until == i.NotAfter.Add(FeedSkew), "feed: issuer %s until %s", id, e.Until)
		c.mark(dueAt(prefixDue, e.Until, dueFeedIssuer, id))
	})
	inOrder(c.issuers, func(id string, i Issuer) {
		_, listed := issuers[id]
		c.need(listed || i.Denied == 0 || i.NotAfter.Add(FeedSkew) <= c.m.LastNow, "feed: issuer %s is denied and not listed", id)
	})
}

// emergencies checks that what was imported of emergency issuers is all there, in
// its places, and that nobody else's grant says that it is one of theirs.
func (c *checker) emergencies() {
	c.early = objects[EmergencyRevocation](c, prefixEarlyRevoked)
	journals := objects[EmergencyJournal](c, prefixJournal)
	inOrder(journals, func(id string, j EmergencyJournal) {
		c.need(j.Issuer == id && c.issuers[id].Role == RoleEmergency, "journal of %s: of issuer %q, role %q", id, j.Issuer, c.issuers[id].Role)
		c.need(j.Count > 0 || j.Forked > 0, "journal of %s is empty", id)
		for n := range j.Count {
			c.want[string(journalPlace(id, n+1))] = nil
		}
		head := id
		if j.Count > 0 {
			head = hex.EncodeToString(c.r.Get(journalPlace(id, j.Count)))
		}
		c.need(head == j.Head, "journal of %s ends with %s, not %s", id, head, j.Head)
	})
	inOrder(c.requestOf, func(id string, r Request) {
		if e := r.Emergency; e != nil {
			c.need(e.Place > 0 && e.Place <= journals[e.Issuer].Count && len(e.Custodians) > 1 && len(r.Decisions) == 0,
				"request %s: record %d of issuer %s, %d custodians", id, e.Place, e.Issuer, len(e.Custodians))
		}
	})
}

func (c *checker) kept() {
	inOrder(objects[kept](c, prefixIdem), func(hash string, k kept) {
		c.mark(dueAt(prefixIdemDue, k.Until, dueIdem, hash))
		_, err := DecodeResult(k.Result)
		c.need(err == nil, "kept result: %v", err)
	})
}

// audit checks that there is one leaf a change.
func (c *checker) audit() {
	size := int64(c.m.AuditSize)
	c.need(c.m.AuditSize == c.m.Changes, "%d audit leaves for %d changes", size, c.m.Changes)
	for level := 0; size>>level > 0; level++ {
		last := tlog.StoredHashIndex(level, size>>level-1)
		_, ok := c.s.GetHash(last)
		c.need(ok, "audit hash %d is missing", last)
		if level < audit.ChunkLevel {
			c.want[string(edgeKey(level))] = nil
			continue
		}
		for n := range size >> level {
			c.want[string(hashKey(uint64(tlog.StoredHashIndex(level, n))))] = nil
		}
	}
	_, err := audit.Root(c.s, size)
	c.need(err == nil, "audit root: %v", err)
}

// CheckAudit reads the bodies of the whole audit log and returns what about them
// must never be, nil when there is nothing: a leaf that is no entry, out of order
// or twice of one command, and bodies that are not those whose hashes the state
// holds. Its cost grows with the log.
func CheckAudit(r Reader, body func(index int64) ([]byte, error)) error {
	c := &checker{r: r, s: Read(r)}
	m, ok, err := load[meta](r, []byte(keyMeta))
	if err != nil || !ok {
		return err
	}
	var (
		again audit.Memory
		last  audit.Entry
	)
	for i := range int64(m.AuditSize) {
		data, err := body(i)
		if err != nil {
			return fmt.Errorf("%w: audit leaf %d: %w", ErrInvariant, i, err)
		}
		e, err := audit.ParseEntry(data)
		if err != nil {
			return fmt.Errorf("%w: audit leaf %d: %w", ErrInvariant, i, err)
		}
		c.need(e.Index == uint64(i) && !e.Time.Before(last.Time), "audit leaf %d: index %d, %s after %s", i, e.Index, e.Time, last.Time)
		c.need(!strings.EqualFold(e.CommandID, last.CommandID), "audit leaf %d: a second one of command %s", i, e.CommandID)
		last = e
		if _, err := audit.Append(&again, i, data); err != nil {
			return fmt.Errorf("%w: audit leaf %d: %w", ErrInvariant, i, err)
		}
	}
	c.need(last.Time.Equal(m.LastNow.Time()), "the last audit leaf is of %s, the last change of %s", last.Time, m.LastNow)
	c.hashes(&again, int64(m.AuditSize))
	return errors.Join(c.errs...)
}

// hashes compares the tree hashes that are kept with those of the bodies.
func (c *checker) hashes(again *audit.Memory, size int64) {
	for level := 0; size>>level > 0; level++ {
		n := size>>level - 1 // below the chunks, the last of each level
		if level >= audit.ChunkLevel {
			n = 0
		}
		for ; n < size>>level; n++ {
			at := tlog.StoredHashIndex(level, n)
			want, _ := again.GetHash(at)
			have, ok := c.s.GetHash(at)
			c.need(ok && have == want, "audit hash %d is %s, of the bodies %s", at, have, want)
		}
	}
}
