package approval

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// grantDetails is the audit leaf of a grant that was made or ended.
type grantDetails struct {
	Expiry    Millis     `json:"expiry,omitempty"`
	Until     Millis     `json:"feed_until,omitempty"` // 0: no certificate to call back
	Children  []string   `json:"grants,omitempty"`     // made of it, that ended with it
	NotBefore Millis     `json:"not_before,omitempty"`
	Parent    string     `json:"parent,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	SPIFFEID  string     `json:"spiffe_id,omitempty"`
	State     GrantState `json:"state"`
	Votes     []Vote     `json:"votes,omitempty"`
}

// approve turns a request into a grant, or into a later end of one. The votes are those that were
// counted, of what: the requirements, or what it was escalated to.
func (t *turn) approve(r *Request, votes []Vote, of []Requirement) (*grantDetails, error) {
	if r.Extends != nil {
		return t.extend(r, votes)
	}
	if n := t.countOpen(pairPrefix(prefixLiveGrant, r.Subject), MaxLiveGrants); n >= MaxLiveGrants {
		return nil, limited("%s has %d live grants", r.Subject, n).then("return some that are not in use")
	}
	v := r.Current()
	id, err := grantID(t.m.GrantTrustDomain, *r, v.Permissions)
	if err != nil {
		return nil, err
	}
	g := Grant{
		ID: r.ID, State: GrantActive, SPIFFEID: id, Requester: r.Requester, Subject: r.Subject,
		Service: r.Service, Permissions: v.Permissions, Hash: v.Hash,
		NotBefore: max(t.now, r.Start), CertificateTTL: r.CertificateTTL, CSRKey: r.CSRKey, CSRBy: r.CSRBy,
		Auto: v.Auto, Requirements: v.Requirements, Votes: votes, Created: t.now, Trace: r.Trace, Index: t.index,
		BreakGlass: r.Review != nil, Delegation: r.Delegation, Parent: r.Parent,
	}
	if !slices.Equal(of, v.Requirements) {
		g.Escalated = of
	}
	// A scheduled grant ends when it was said to, however late it was approved.
	g.Expiry = g.NotBefore + Millis(v.DurationMS)
	if r.Start != 0 {
		g.Expiry = r.Start + Millis(v.DurationMS)
	}
	if g.Expiry <= t.now {
		return nil, expired("what request %s asks for ended at %s", r.ID, g.Expiry).then("ask again")
	}
	u, _ := parseUID(g.ID)
	t.enterState(prefixGrantState, u, string(g.State))
	t.Put(pairKey(prefixLiveGrant, g.Subject, string(u[:])), until(g.Expiry))
	t.mark(dueAt(prefixDue, g.Expiry, dueGrant, string(u[:])))
	if p, ok := parseUID(g.Parent); ok {
		t.Put(pairKey(prefixChildOf, string(p[:]), string(u[:])), until(g.Expiry))
	}
	t.endRequest(r, RequestApproved)
	t.saveGrant(&g)
	return &grantDetails{SPIFFEID: g.SPIFFEID, NotBefore: g.NotBefore, Expiry: g.Expiry, Votes: g.Votes, State: g.State}, nil
}

// endGrant ends a grant for good; one that is cut short goes on the feed for as
// long as one of its certificates may be alive.
func (t *turn) endGrant(g *Grant, state GrantState, reason string) grantDetails {
	u, _ := parseUID(g.ID)
	t.leaveState(prefixGrantState, u, string(g.State))
	t.enterState(prefixGrantState, u, string(state))
	t.unmark(pairKey(prefixLiveGrant, g.Subject, string(u[:])))
	t.unmark(dueAt(prefixDue, g.Expiry, dueGrant, string(u[:])))
	g.State, g.Ended, g.EndedBy, g.EndReason = state, t.now, t.cmd.Actor, reason
	if p, ok := parseUID(g.Parent); ok {
		t.unmark(pairKey(prefixChildOf, string(p[:]), string(u[:])))
	}
	t.markEnded(u, *g)
	t.saveGrant(g)
	d := grantDetails{State: state, Reason: reason, Parent: g.Parent, Children: t.endChildren(*g, state, reason)}
	if g.LatestNotAfter != 0 && state != GrantExpired {
		if end := g.LatestNotAfter.Add(FeedSkew); end > t.now {
			t.joinFeed(keyUID(prefixFeedGrant, u), dueFeedGrant, string(u[:]), FeedEntry{ID: g.ID, Until: end})
			d.Until = end
		}
	}
	return d
}

// markEnded has a grant and its request forgotten in time; one whose review is open
// waits for that.
func (t *turn) markEnded(u uid, g Grant) {
	r := Request{}
	if g.BreakGlass {
		var err error
		if r, _, err = t.state().requestAt(u); err != nil {
			t.fail(err)
			return
		}
	}
	if at := forgettable(r, g); at != 0 {
		t.mark(dueAt(prefixEnded, at, endedRecord, string(u[:])))
	}
}

// liveGrant returns a grant that has not ended, and the record that it is in.
func (t *turn) liveGrant(id string) (g Grant, record storedRequest, err error) {
	g, err = named(func(u uid) (g Grant, ok bool, err error) {
		record, g, ok, err = t.state().grantRecord(u)
		return g, ok, err
	}, "grant", id)
	if err != nil {
		return g, record, err
	}
	switch state := g.StateAt(t.now); state {
	case GrantActive:
		return g, record, nil
	case GrantExpired:
		return g, record, expired("grant %s ended at %s", id, g.Expiry).then("ask again")
	default:
		return g, record, conflict("grant %s is %s", id, state).then("ask again")
	}
}

// revokeGrant ends a grant. Stopping access is made easy: its subject, who owns
// the subject, its requester, an admin and anyone who might have approved it
// may. Revoking twice is as good as once.
func (t *turn) revokeGrant(b RevokeGrant) (Object, error) {
	if err := checkText("the reason", b.Reason, 1); err != nil {
		return nil, err
	}
	g, err := t.state().Grant(b.Grant)
	if err != nil {
		return nil, err
	}
	if !t.mayRevoke(g) {
		return nil, denied("%s has no say over grant %s", t.actor, g.ID).
			then("ask its subject, its requester, an admin or one of its approvers: " + describe(g.Requirements))
	}
	return t.cut(g, GrantRevoked, b.Reason)
}

// returnGrant ends a grant that its subject no longer needs.
func (t *turn) returnGrant(b ReturnGrant) (Object, error) {
	g, err := t.state().Grant(b.Grant)
	if err != nil {
		return nil, err
	}
	if t.actor.String() != g.Subject {
		return nil, denied("only its subject returns a grant").then("revoke it instead")
	}
	return t.cut(g, GrantReturned, "")
}

func (t *turn) cut(g Grant, state GrantState, reason string) (Object, error) {
	switch g.StateAt(t.now) {
	case GrantRevoked, GrantReturned:
		t.unchanged = true
		return g, nil
	case GrantExpired:
		return nil, expired("grant %s ended at %s", g.ID, g.Expiry)
	case GrantActive:
	}
	t.details = t.endGrant(&g, state, reason)
	return g, nil
}

func (t *turn) mayRevoke(g Grant) bool {
	actor := t.actor.String()
	if t.admin || actor == g.Subject || actor == g.Requester {
		return true
	}
	if g.Parent != "" {
		if p, err := t.state().Grant(g.Parent); err == nil && t.mayRevoke(p) {
			return true
		}
	}
	// Who is involved in the request is kept from approving it, and for the
	// same reason may always stop it.
	return t.person != "" && (t.reviews(g) || t.stands(g) || len(t.state().groupsFor(slices.Concat(g.Requirements, g.Escalated), t.person)) > 0 ||
		t.state().involved(Request{Requester: g.Requester, Subject: g.Subject})[t.person] != "")
}

// stands says whether the grant stands on the actor's vote. Up to version 3 nobody looked: a node of
// before would refuse what this one accepts, and their states would part.
func (t *turn) stands(g Grant) bool { return t.m.version() >= 4 && g.StandsOn(t.person) }

// reviews says whether the actor is to review the broken glass that a grant is of:
// who sees that it was broken for nothing stops it at once.
func (t *turn) reviews(g Grant) bool {
	if !g.BreakGlass {
		return false
	}
	r, err := t.state().Request(g.ID)
	return err == nil && r.Review != nil && len(t.state().groupsFor(r.Review.Requirements(), t.person)) > 0
}

// describe says requirements in words.
func describe(requirements []Requirement) string {
	words := make([]string, len(requirements))
	for i, q := range requirements {
		words[i] = fmt.Sprintf("%d of %s", q.Approvals, q.Group)
	}
	return strings.Join(slices.Compact(words), " and ")
}

// TTL is how long each certificate of the grant may live.
func (g Grant) TTL() time.Duration { return time.Duration(g.CertificateTTL) * time.Millisecond }
