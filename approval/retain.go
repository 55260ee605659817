package approval

import (
	"slices"
	"time"
)

// How long what has ended is kept. The audit log keeps all of it for ever.
const (
	// IssueLife is how much longer than the certificate its record is kept, so
	// that its serial can be looked up and is not taken a second time. Serials
	// have 134 random bits: what is forgotten is not met again by accident.
	IssueLife = 7 * 24 * time.Hour
	// Retention is how long requests, their decisions and grants, and changes
	// are kept after they ended, unless the cluster is told otherwise.
	Retention = 400 * 24 * time.Hour
	// MinRetention is the least it may be told: longer than anything of a grant
	// can be on the feed or have a certificate.
	MinRetention = 60 * 24 * time.Hour
	// MaxRetention is the most: as good as for ever.
	MaxRetention = 100 * 365 * 24 * time.Hour
)

// forgetEnded drops up to n of what ended longer than retain ago, with all its
// keys, and says what that was and whether there is more.
func (t *turn) forgetEnded(retain time.Duration, n int) (ids []string, more bool, err error) {
	items, more := t.due(prefixEnded, t.now.Add(-retain), n)
	for _, item := range items {
		u := item.uid()
		if item.kind == endedChange {
			err = t.forgetChange(u)
		} else {
			err = t.forgetRequest(u)
		}
		if err != nil {
			return nil, false, err
		}
		t.unmark(item.key)
		ids = append(ids, u.String())
	}
	return ids, more, nil
}

func (t *turn) forgetRequest(u uid) error {
	r, err := t.state().Request(u.String())
	if err != nil {
		return err
	}
	g, granted, err := t.state().grantAt(u)
	if err != nil {
		return err
	}
	for _, k := range recordIndex(r) {
		t.unmark(k)
	}
	t.leaveState(prefixRequestState, u, string(r.State))
	if granted {
		t.leaveState(prefixGrantState, u, string(g.State))
	}
	issues, err := t.state().Issuances(r.ID)
	if err != nil {
		return err
	}
	for _, i := range issues {
		t.forgetIssue(i)
	}
	t.Delete(recordKey(u))
	return nil
}

func (t *turn) forgetChange(u uid) error {
	c, err := t.state().Change(u.String())
	if err != nil {
		return err
	}
	for _, k := range changeIndex(c) {
		t.unmark(k)
	}
	t.Delete(keyUID(prefixChange, u))
	return nil
}

func (t *turn) forgetIssue(i Issue) {
	if u, ok := parseUID(i.Grant); ok {
		t.unmark(key(string(keyUID(prefixGrantIssue, u)), i.Serial))
	}
	t.unmark(dueAt(prefixIssueDue, i.NotAfter, endedIssue, i.Serial))
	t.Delete(key(prefixIssue, i.Serial))
}

// pruneIssues drops up to n records of certificates whose time is over and says
// how many it did. As with kept results, every change drops more than it adds.
func (t *turn) pruneIssues(n int) (int, error) {
	due, _ := t.due(prefixIssueDue, t.now.Add(-IssueLife), n)
	for _, item := range due {
		i, err := t.state().Issue(item.id)
		if err != nil {
			return 0, err
		}
		t.forgetIssue(i)
	}
	return len(due), nil
}

// forgetIssuers drops issuers that ended long ago: with a signer, each node has two
// new ones every few days, for ever. A denied one stays, so that its key does not
// come back, and so does each node's last. Records of certificates name their
// issuer, and are gone by then; what an emergency issuer signed may be brought later.
func (t *turn) forgetIssuers() (ids []string, err error) {
	all, err := every[Issuer](t, prefixIssuer)
	if err != nil {
		return nil, err
	}
	type place struct {
		node string
		role Role
	}
	last := map[place]Issuer{}
	for _, i := range all {
		at := place{i.Node, i.Role}
		if old, ok := last[at]; !ok || i.NotAfter > old.NotAfter {
			last[at] = i
		}
	}
	for _, i := range all {
		over := i.NotAfter.Add(2*IssueLife) <= t.now && i.Role != RoleEmergency
		if over && (i.Denied == 0 || i.Orphan) && last[place{i.Node, i.Role}].ID != i.ID {
			t.Delete(key(prefixIssuer, i.ID))
			ids = append(ids, i.ID)
		}
	}
	slices.Sort(ids)
	return ids, nil
}
