package approval

import (
	"maps"
	"slices"

	"github.com/hallpass/hallpass/grant"
)

// wantIndexes says which list indexes an object must have.
func (c *checker) wantIndexes(letter string, u uid, state, service, subject, requester string) {
	d := newDraft(readOnly{c.r})
	(&turn{draft: d}).index4(letter, u, state, service, subject, requester)
	maps.Copy(c.want, d.writes)
}

func (c *checker) requests() {
	inOrder(objects[Request](c, prefixRequest), func(at string, r Request) {
		u, ok := parseUID(r.ID)
		c.need(ok && string(u[:]) == at, "request %q is kept as %x", r.ID, at)
		c.wantIndexes(prefixRequestList, u, string(r.State), r.Service, r.Subject, r.Requester)
		if r.State == RequestPending {
			c.want[string(pairKey(prefixPendingReq, r.Requester, at))] = until(r.Expires)
			c.mark(dueAt(prefixDue, r.Expires, dueRequest, at))
		}
		c.need((r.State == RequestPending) == (r.Ended == 0), "request %s is %s and ended at %q", r.ID, r.State, r.Ended)
		_, granted, err := load[Grant](c.r, key(prefixGrant, at))
		c.need(err == nil && granted == (r.State == RequestApproved), "request %s is %s, grant: %v", r.ID, r.State, granted)
		c.revisions(r)
		c.decisions(r)
	})
}

// revisions checks that each revision is hashed right and narrows the one before.
func (c *checker) revisions(r Request) {
	c.need(len(r.Revisions) > 0, "request %s says nothing", r.ID)
	for i, v := range r.Revisions {
		hash, err := contentHash(r, v)
		c.need(err == nil && hash == v.Hash, "request %s: revision %d has hash %s, not %s", r.ID, i, v.Hash, hash)
		c.need(v.Auto || len(seats(v.Requirements)) > 0, "request %s: revision %d needs nobody", r.ID, i)
		c.need(r.CertificateTTL <= v.CertificateTTL && r.MaxDurationMS <= v.MaxDurationMS && v.DurationMS <= v.MaxDurationMS,
			"request %s: lifetimes beyond what policy said to revision %d", r.ID, i)
		if i == 0 {
			c.need(v.Parent == "", "request %s: the first revision has a parent", r.ID)
			continue
		}
		was := r.Revisions[i-1]
		c.need(v.Parent == was.Hash && within(r.Service, v, was), "request %s: revision %d does not narrow the one before", r.ID, i)
	}
}

// decisions checks that nobody decided twice, nor on their own request.
func (c *checker) decisions(r Request) {
	var persons []string
	for _, d := range r.Decisions {
		c.need(!slices.Contains(persons, d.Person), "request %s: %s decided twice", r.ID, d.Person)
		persons = append(persons, d.Person)
		c.need(d.Person != "" && d.Person != r.RequesterPerson && d.Actor != r.Requester && d.Actor != r.Subject,
			"request %s: %s (%s) has a part in it and decided", r.ID, d.Person, d.Actor)
		c.need(slices.ContainsFunc(r.Revisions, func(v Revision) bool { return v.Hash == d.Hash }),
			"request %s: %s decided on something else", r.ID, d.Person)
		c.need(d.Verdict == Approve || r.State == RequestDenied, "request %s is %s with a deny", r.ID, r.State)
	}
}

func (c *checker) grants() {
	c.grantOf = map[string]Grant{}
	inOrder(objects[Grant](c, prefixGrant), func(at string, g Grant) {
		u, ok := parseUID(g.ID)
		c.need(ok && string(u[:]) == at, "grant %q is kept as %x", g.ID, at)
		c.grantOf[g.ID] = g
		c.wantIndexes(prefixGrantList, u, string(g.State), g.Service, g.Subject, g.Requester)
		if g.State == GrantActive {
			c.want[string(pairKey(prefixLiveGrant, g.Subject, at))] = until(g.Expiry)
			c.mark(dueAt(prefixDue, g.Expiry, dueGrant, at))
		}
		c.need((g.State == GrantActive) == (g.Ended == 0), "grant %s is %s and ended at %q", g.ID, g.State, g.Ended)
		r, err := c.s.Request(g.ID)
		if err != nil {
			c.bad("grant %s: %v", g.ID, err)
			return
		}
		v := r.Current()
		c.need(g.Hash == v.Hash && g.Subject == r.Subject && g.Requester == r.Requester && g.Service == r.Service &&
			slices.Equal(g.Permissions, v.Permissions) && g.CSRKey == r.CSRKey && g.CertificateTTL == r.CertificateTTL,
			"grant %s is not what was approved", g.ID)
		c.need(g.NotBefore >= g.Created && g.NotBefore >= r.Start && g.Expiry > g.NotBefore &&
			int64(g.Expiry-g.NotBefore) <= v.DurationMS, "grant %s lives from %s to %s", g.ID, g.NotBefore, g.Expiry)
		c.grantName(g)
		c.votes(g, r)
	})
}

func (c *checker) grantName(g Grant) {
	t := &turn{draft: newDraft(readOnly{c.r}), m: c.m}
	want, err := t.grantID(Request{ID: g.ID, Service: g.Service, Subject: g.Subject}, g.Permissions)
	c.need(err == nil && want == g.SPIFFEID, "grant %s is called %s: %v", g.ID, g.SPIFFEID, err)
}

// votes checks, apart from how they were counted, that the votes kept on a
// grant fill every requirement with persons who had no part in it.
func (c *checker) votes(g Grant, r Request) {
	have := map[string]int{}
	var persons []string
	for _, v := range g.Votes {
		have[v.Group]++
		c.need(!slices.Contains(persons, v.Person), "grant %s: %s was counted twice", g.ID, v.Person)
		persons = append(persons, v.Person)
		c.need(slices.ContainsFunc(r.Decisions, func(d Decision) bool {
			return d.Verdict == Approve && d.Person == v.Person && d.Actor == v.Actor && d.Hash == v.Hash
		}), "grant %s: the vote of %s was never given", g.ID, v.Person)
		c.need(v.Person != r.RequesterPerson && v.Actor != r.Requester && v.Actor != r.Subject && v.Actor != r.CSRBy,
			"grant %s: %s approved what is theirs", g.ID, v.Person)
		for _, seen := range r.Revisions {
			if seen.Hash == v.Hash {
				c.need(covers(g, seen), "grant %s allows more than %s saw", g.ID, v.Person)
			}
		}
	}
	need := map[string]int{}
	for _, q := range g.Requirements {
		need[q.Group] += q.Approvals
	}
	c.need(g.Auto || len(g.Votes) > 0, "grant %s: nobody approved it", g.ID)
	for group, n := range need {
		c.need(have[group] == n, "grant %s: %d approvals of %s, %d needed", g.ID, have[group], group, n)
	}
	c.need(len(g.Votes) == len(seats(g.Requirements)), "grant %s: %d votes", g.ID, len(g.Votes))
}

func covers(g Grant, seen Revision) bool {
	have, err := grant.ParseScope(g.Service, seen.Permissions)
	if err != nil {
		return false
	}
	want, err := grant.ParseScope(g.Service, g.Permissions)
	return err == nil && have.Covers(want) && int64(g.Expiry-g.NotBefore) <= seen.DurationMS
}
