package approval

import (
	"bytes"
	"maps"
	"slices"

	"github.com/hallpass/hallpass/grant"
)

// records returns all records of requests by id, whether they can be read or not.
func (c *checker) records() map[uid]storedRequest {
	all := map[uid]storedRequest{}
	for at, record := range objects[storedRequest](c, prefixRecord) {
		if len(at) != len(uid{}) {
			c.bad("request kept at %x", at)
			continue
		}
		all[uid([]byte(at)).turned()] = record
	}
	return all
}

func (c *checker) requests() {
	c.grantOf, c.requestOf = map[string]Grant{}, map[string]Request{}
	records := c.records()
	for _, u := range slices.SortedFunc(maps.Keys(records), func(a, b uid) int { return slices.Compare(a[:], b[:]) }) {
		r, err := records[u].unpack(u)
		if err != nil {
			c.bad("%v", err)
			continue
		}
		g, granted, err := records[u].unpackGrant(u, c.m.GrantTrustDomain)
		if err != nil {
			c.bad("%v", err)
			continue
		}
		again, err := pack(r, nil)
		if granted {
			c.grantOf[g.ID] = g
			again, err = pack(r, &g)
		}
		c.need(err == nil && sameRecord(again, records[u]), "request %s is not kept as it is written: %v", r.ID, err)
		c.requestOf[r.ID] = r
		c.request(u, r, granted)
	}
}

func sameRecord(a, b storedRequest) bool {
	x, err := encoder.Marshal(a)
	if err != nil {
		return false
	}
	y, err := encoder.Marshal(b)
	return err == nil && bytes.Equal(x, y)
}

func (c *checker) request(u uid, r Request, granted bool) {
	for _, k := range recordIndex(r) {
		c.mark(k)
	}
	c.wantState(prefixRequestState, u, string(r.State))
	at := string(u[:])
	if r.State == RequestPending {
		c.want[string(pairKey(prefixPendingReq, r.Requester, at))] = until(r.Expires)
		if when := r.Escalates(); when != 0 && r.Escalated == 0 {
			c.mark(dueAt(prefixEscalate, when, dueEscalation, at))
		}
		c.mark(dueAt(prefixDue, r.Expires, dueRequest, at))
	} else if !granted {
		c.mark(dueAt(prefixEnded, r.Ended, endedRecord, at))
	}
	c.need(r.State != RequestPending || u.made() >= c.m.EpochBegan, "request %s is pending and older than the epoch", r.ID)
	c.need((r.State == RequestPending) == (r.Ended == 0), "request %s is %s and ended at %q", r.ID, r.State, r.Ended)
	c.need(granted == (r.State == RequestApproved && r.Extends == nil), "request %s is %s, grant: %v", r.ID, r.State, granted)
	c.need(r.Escalated == 0 || r.Escalates() != 0 && r.Escalated >= r.Escalates(), "request %s was escalated at %q, and was to be at %q", r.ID, r.Escalated, r.Escalates())
	c.revisions(r)
	c.decisions(r)
	c.review(u, r)
	c.need(len(r.Bundles) <= MaxRequestBundles && ascending(r.Bundles), "request %s was made of the bundles %q", r.ID, r.Bundles)
	c.need(len(r.Notify) <= MaxTargets && ascending(r.Notify), "request %s is told to %q", r.ID, r.Notify)
	c.need(r.Extends == nil || r.Extends.Grant != r.ID && r.Review == nil && r.Start == 0 && r.CSRKey == "", "request %s extends what it cannot", r.ID)
}

// extensions checks that each is an approved request for just that, and that the
// grant's end is the last one's. Requests are forgotten before the grant is.
func (c *checker) extensions(g Grant, r Request) {
	c.need(len(g.Extensions) <= MaxExtensions, "grant %s was extended %d times", g.ID, len(g.Extensions))
	c.need(len(g.Extensions) == 0 || g.Emergency == nil && !g.BreakGlass, "grant %s was extended, and is no usual one", g.ID)
	c.need(g.CertificateTTL > 0 && g.CertificateTTL <= r.CertificateTTL, "grant %s: certificates of %d ms", g.ID, g.CertificateTTL)
	end := g.NotBefore + Millis(r.Current().DurationMS)
	for _, e := range g.Extensions {
		q, kept := c.requestOf[e.Request]
		c.need(e.MS > 0, "grant %s was extended by %d ms", g.ID, e.MS)
		if !kept {
			end = max(end, g.Expiry) // what it was from is not known any more
			continue
		}
		c.need(q.State == RequestApproved && q.extends() == g.ID && q.Current().DurationMS == e.MS && q.Subject == g.Subject &&
			q.Service == g.Service && slices.Equal(q.Current().Permissions, g.Permissions) && q.Extends.From <= end,
			"grant %s was extended by request %s, which is %s", g.ID, q.ID, q.State)
		end = q.Extends.From + Millis(e.MS)
		c.need(q.Auto || len(e.Persons) > 0 && (len(e.Persons) == len(seats(q.Current().Requirements)) || len(e.Persons) == len(seats(q.Alternative()))), "request %s: %d persons approved it", q.ID, len(e.Persons))
		for i, person := range e.Persons {
			c.need(person != q.RequesterPerson && person != r.RequesterPerson && !slices.Contains(e.Persons[:i], person) &&
				slices.ContainsFunc(q.Decisions, func(d Decision) bool { return d.Person == person && d.Verdict == Approve }),
				"request %s: %s never approved it, or may not", q.ID, person)
		}
	}
	c.need(g.Expiry <= end && g.Expiry <= g.NotBefore.Add(MaxGrantLife), "grant %s ends at %s, not at %s", g.ID, g.Expiry, end)
}

// review checks that an open one is listed, and that nobody closed their own.
func (c *checker) review(u uid, r Request) {
	if r.Review == nil {
		return
	}
	c.need(r.State == RequestApproved && len(r.Review.Groups) > 0 && r.Review.Due > r.Created && !r.Auto && r.RequesterPerson != "" && len(r.Decisions) == 0,
		"request %s broke the glass, and is %s with a review by %q", r.ID, r.State, r.Review.Groups)
	if d := u.turned(); r.Review.Closed == 0 {
		c.mark(keyUID(prefixOpenReview, d))
		c.want[string(pairKey(prefixReviewOf, r.RequesterPerson, string(u[:])))] = until(r.Review.Due)
	}
	var persons []string
	for _, f := range r.Review.Findings {
		c.need(f.Person != "" && f.Person != r.RequesterPerson && f.Actor != r.Requester && f.Text != "" && !slices.Contains(persons, f.Person),
			"request %s: %s (%s) reviewed it", r.ID, f.Person, f.Actor)
		persons = append(persons, f.Person)
	}
	c.need(r.Review.Closed == 0 || len(persons) >= len(r.Review.Groups), "request %s: its review was closed by %d persons", r.ID, len(persons))
}

// wantState says where among the lists by state an object must be.
func (c *checker) wantState(prefix string, u uid, state string) {
	d := newDraft(readOnly{c.r})
	(&turn{draft: d}).enterState(prefix, u, state)
	maps.Copy(c.want, d.writes)
}

// revisions checks that each revision is hashed right and narrows the one before.
func (c *checker) revisions(r Request) {
	c.need(len(r.Revisions) > 0, "request %s says nothing", r.ID)
	for i, v := range r.Revisions {
		hash, err := contentHash(r, v)
		c.need(err == nil && hash == v.Hash, "request %s: revision %d has hash %s, not %s", r.ID, i, v.Hash, hash)
		c.need(v.Auto || r.Emergency != nil || len(seats(v.Requirements)) > 0, "request %s: revision %d needs nobody", r.ID, i)
		c.need(v.Escalation == nil || !v.Auto && v.Escalation.AfterMS > 0 && len(seats(v.Escalation.Requirements)) > 0, "request %s: revision %d is escalated to nobody", r.ID, i)
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
	inSlack := 0
	for _, d := range r.Decisions {
		if d.Slack != "" && d.Verdict == Approve {
			inSlack++
		}
		c.need(inSlack <= 1, "request %s: %d approvals in Slack", r.ID, inSlack)
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
	inOrder(c.grantOf, func(id string, g Grant) {
		u, _ := parseUID(id)
		at := string(u[:])
		c.wantState(prefixGrantState, u, string(g.State))
		if g.State == GrantActive {
			c.want[string(pairKey(prefixLiveGrant, g.Subject, at))] = until(g.Expiry)
			c.mark(dueAt(prefixDue, g.Expiry, dueGrant, at))
		} else if ended := forgettable(c.requestOf[id], g); ended != 0 {
			c.mark(dueAt(prefixEnded, ended, endedRecord, at))
		}
		c.need(g.State != GrantActive || u.made() >= c.m.EpochBegan, "grant %s is live and older than the epoch", id)
		c.need((g.State == GrantActive) == (g.Ended == 0), "grant %s is %s and ended at %q", g.ID, g.State, g.Ended)
		r := c.requestOf[id]
		c.need(g.NotBefore >= g.Created && g.NotBefore >= r.Start && g.Expiry > g.NotBefore &&
			int64(g.Expiry-g.NotBefore) <= r.Current().DurationMS+g.extended(), "grant %s lives from %s to %s", g.ID, g.NotBefore, g.Expiry)
		c.votes(g, r)
		c.extensions(g, r)
		c.child(u, g)
	})
}

// votes checks, apart from how they were counted, that the votes kept on a
// grant fill every requirement with persons who had no part in it.
func (c *checker) votes(g Grant, r Request) {
	c.need(g.BreakGlass == (r.Review != nil), "grant %s: a broken glass without a review, or the other way round", g.ID)
	if g.Parent != "" {
		c.need(len(g.Votes) == 0, "grant %s was made of another, and has votes", g.ID)
		return
	}
	if g.BreakGlass {
		c.need(len(g.Votes) == 0 && len(seats(g.Requirements)) > 0 && r.Requester == r.Subject, "grant %s: a glass was broken, and there are %d votes", g.ID, len(g.Votes))
		return
	}
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
	filled := g.Requirements
	if g.Escalated != nil {
		filled = g.Escalated
		c.need(r.Escalated != 0 && r.Current().Escalation != nil && slices.Equal(filled, r.Current().Escalation.Requirements), "grant %s: others approved it, and were never asked", g.ID)
	}
	for _, q := range filled {
		need[q.Group] += q.Approvals
	}
	c.need(g.Auto || g.Emergency != nil || len(g.Votes) > 0, "grant %s: nobody approved it", g.ID)
	for group, n := range need {
		c.need(have[group] == n, "grant %s: %d approvals of %s, %d needed", g.ID, have[group], group, n)
	}
	c.need(len(g.Votes) == len(seats(filled)), "grant %s: %d votes", g.ID, len(g.Votes))
}

func covers(g Grant, seen Revision) bool {
	have, err := grant.ParseScope(g.Service, seen.Permissions)
	if err != nil {
		return false
	}
	want, err := grant.ParseScope(g.Service, g.Permissions)
	return err == nil && have.Covers(want) && int64(g.Expiry-g.NotBefore) <= seen.DurationMS+g.extended()
}

// child checks that a grant that was made of another allows nothing that it does not,
// and does not outlive it. It may be forgotten after that.
func (c *checker) child(u uid, g Grant) {
	p, ok := parseUID(g.Parent)
	if !ok {
		c.need(g.Parent == "", "grant %s was made of %q", g.ID, g.Parent)
		return
	}
	if g.State == GrantActive {
		c.want[string(pairKey(prefixChildOf, string(p[:]), string(u[:])))] = until(g.Expiry)
	}
	parent, kept := c.grantOf[g.Parent]
	c.need(kept || g.State != GrantActive, "grant %s lives, and grant %s, of which it was made, is forgotten", g.ID, g.Parent)
	if !kept {
		return
	}
	c.need(parent.Parent == "" && parent.Delegation != nil && g.Delegation == nil && len(g.Extensions) == 0, "grant %s was made of grant %s, which is not delegable", g.ID, g.Parent)
	c.need(g.State != GrantActive || parent.State == GrantActive || g.Expiry <= c.m.LastNow, "grant %s lives, and grant %s is %s", g.ID, g.Parent, parent.State)
	c.need(g.Requester == parent.Subject && g.Subject != parent.Subject && g.Service == parent.Service && g.Expiry <= parent.Expiry &&
		g.CertificateTTL <= parent.CertificateTTL, "grant %s of %s is not within grant %s", g.ID, g.Subject, g.Parent)
	have, err := grant.ParseScope(parent.Service, parent.Permissions)
	want, bad := grant.ParseScope(g.Service, g.Permissions)
	c.need(err == nil && bad == nil && have.Covers(want), "grant %s allows more than grant %s", g.ID, g.Parent)
}
