package approval

import (
	"slices"
	"time"
)

// Extends says of a request that it would move the end of a grant, and make none of
// its own. Its decisions are on exactly that end: another one is another request.
type Extends struct {
	Grant string `json:"grant" cbor:"1,keyasint"`
	From  Millis `json:"from" cbor:"2,keyasint"` // the grant's end when it was asked for
}

// Extension is what an approved request added to the life of a grant.
type Extension struct {
	Request string   `json:"request" cbor:"1,keyasint"`
	MS      int64    `json:"ms" cbor:"2,keyasint"`
	Persons []string `json:"persons" cbor:"3,keyasint"` // whose approvals were counted
}

// draftExtension checks what a request to extend a grant says: the same for the same
// subject, for longer. The name of the grant's certificates says its scope, so that
// with less of it no connection that is open could be renewed.
func (t *turn) draftExtension(r *Request, b CreateRequest) error {
	g, _, err := t.liveGrant(b.Extends)
	if err != nil {
		return err
	}
	if !t.hasPartIn(g) {
		return denied("only its subject, or who asked for it, extends grant %s", g.ID).then("ask for a grant of your own")
	}
	switch {
	case b.BreakGlass, b.Delegable, b.Start != 0, b.CSRKey != "":
		return invalid("an extension breaks no glass, is as delegable as what it extends, and has neither a start nor a key of its own")
	case g.Emergency != nil:
		return denied("grant %s is an emergency grant, and ends as its certificate says", g.ID).then("ask for access as usual: the cluster is back")
	case g.BreakGlass:
		// For longer than its cap, others decide beforehand.
		return denied("grant %s was made by breaking the glass, which is for its time alone", g.ID).then("ask for a new one as usual")
	case g.Parent != "":
		return denied("grant %s was made of grant %s, and others were not asked about it", g.ID, g.Parent).then("ask for a grant of your own")
	case r.Subject != g.Subject || r.Service != g.Service || !slices.Equal(b.Permissions, g.Permissions):
		// More would go under the votes for less.
		return denied("an extension is of what grant %s is, and of nothing else", g.ID).then("ask for another scope in a request of its own")
	case len(g.Extensions) >= MaxExtensions:
		return limited("grant %s was extended %d times", g.ID, len(g.Extensions)).then("ask for a new grant")
	}
	r.Extends = &Extends{Grant: g.ID, From: g.Expiry}
	r.Expires = min(r.Expires, g.Expiry)
	if end := g.Expiry + Millis(b.Duration); end > g.NotBefore.Add(MaxGrantLife) {
		return invalid("the grant would live until %s, for more than %s in all", end, MaxGrantLife).then("ask for a new one")
	}
	return nil
}

// hasPartIn says whether a grant is the actor's, or the actor has asked for it.
func (t *turn) hasPartIn(g Grant) bool {
	actor := t.actor.String()
	if actor == g.Subject || actor == g.Requester {
		return true
	}
	r, err := t.state().Request(g.ID)
	return err == nil && t.person != "" && t.person == r.RequesterPerson
}

// totalLife is how long the grant that r extends would live in all, with the
// duration of v; 0 for a request that extends none.
func (t *turn) totalLife(r Request, v Revision) (time.Duration, error) {
	if r.Extends == nil {
		return 0, nil
	}
	g, err := t.state().Grant(r.Extends.Grant)
	if err != nil {
		return 0, err
	}
	return TotalLife(g, v.DurationMS), nil
}

// TotalLife is how long g would live in all if it were extended by so many
// milliseconds.
func TotalLife(g Grant, ms int64) time.Duration {
	return time.Duration(int64(g.Expiry-g.NotBefore)+ms) * time.Millisecond
}

// extend moves the end of the grant that r extends. The votes are those that were
// counted.
func (t *turn) extend(r *Request, votes []Vote) (*grantDetails, error) {
	g, _, err := t.liveGrant(r.Extends.Grant)
	if err != nil {
		return nil, err
	}
	if g.Expiry != r.Extends.From {
		// What was approved is an end, not an addition to whatever there is by now.
		return nil, stale("grant %s ends at %s now, not at %s", g.ID, g.Expiry, r.Extends.From).then("ask for the extension again")
	}
	if len(g.Extensions) >= MaxExtensions {
		return nil, limited("grant %s was extended %d times", g.ID, len(g.Extensions)).then("ask for a new grant")
	}
	u, _ := parseUID(g.ID)
	t.unmark(dueAt(prefixDue, g.Expiry, dueGrant, string(u[:])))
	ms := r.Current().DurationMS
	g.Expiry += Millis(ms)
	t.mark(dueAt(prefixDue, g.Expiry, dueGrant, string(u[:])))
	t.Put(pairKey(prefixLiveGrant, g.Subject, string(u[:])), until(g.Expiry))
	e := Extension{Request: r.ID, MS: ms, Persons: []string{}}
	for _, v := range votes {
		e.Persons = append(e.Persons, v.Person)
	}
	g.Extensions = append(slices.Clone(g.Extensions), e)
	// Whoever approved it did so under these certificates' lives.
	g.CertificateTTL = min(g.CertificateTTL, r.CertificateTTL)
	children, err := t.state().children(g.ID)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		if child.CertificateTTL > g.CertificateTTL {
			child.CertificateTTL = g.CertificateTTL
			t.saveGrant(&child)
		}
	}
	t.endRequest(r, RequestApproved)
	t.saveGrant(&g)
	return &grantDetails{SPIFFEID: g.SPIFFEID, NotBefore: g.NotBefore, Expiry: g.Expiry, Votes: votes, State: g.State}, nil
}

// extended is by how much a grant was extended in all.
func (g Grant) extended() (ms int64) {
	for _, e := range g.Extensions {
		ms += e.MS
	}
	return ms
}

// StandsOn says whether a grant stands on the vote of a person.
func (g Grant) StandsOn(person string) bool {
	return slices.ContainsFunc(g.Votes, func(v Vote) bool { return v.Person == person }) ||
		slices.ContainsFunc(g.Extensions, func(e Extension) bool { return slices.Contains(e.Persons, person) })
}
