package approval

import (
	"encoding/hex"
	"errors"
	"fmt"
)

// unpacker reads a record.
type unpacker struct {
	storedRequest

	created Millis
	bad     bool // something in it points nowhere
}

func (s storedRequest) unpacker(id uid) *unpacker {
	return &unpacker{storedRequest: s, created: id.made() + Millis(s.Created)}
}

func (u *unpacker) name(i int) string {
	if i == 0 {
		return ""
	}
	return at(u, u.Names, i-1)
}

func at[T any](u *unpacker, all []T, i int) (v T) {
	if i < 0 || i >= len(all) {
		u.bad = true
		return v
	}
	return all[i]
}

func (u *unpacker) when(ms int64) Millis { return u.created + Millis(ms) }

func (u *unpacker) maybe(ms int64) Millis {
	if ms == 0 {
		return 0
	}
	return u.when(ms - 1)
}

func (u *unpacker) requirements(all []storedRequirement) []Requirement {
	out := make([]Requirement, 0, len(all))
	for _, q := range all {
		out = append(out, Requirement{u.name(q.Group), q.Approvals})
	}
	return out
}

func (u *unpacker) request(id uid) Request {
	r := Request{
		ID: id.String(), State: at(u, requestStates(), u.State), Requester: u.name(u.Requester),
		RequesterPerson: u.name(u.RequesterPerson), Subject: u.name(u.Subject), Service: u.Service, Reason: u.Reason,
		CSRKey: hex.EncodeToString(u.CSRKey), CSRBy: u.name(u.CSRBy), PolicyRevision: u.PolicyRevision, Rules: append([]string{}, u.Rules...),
		Decisions: make([]Decision, 0, len(u.Decisions)), Created: u.created, Expires: u.when(u.Expires), Ended: u.maybe(u.Ended),
		EndedBy: u.name(u.EndedBy), Trace: u.Trace, Index: u.Index, Emergency: u.Emergency,
	}
	switch {
	case u.Start > 0:
		r.Start = u.when(u.Start - 1)
	case u.Start < 0:
		r.Start = u.when(u.Start)
	}
	r.Bundles, r.Notify, r.Escalated = u.Bundles, u.Notify, u.maybe(u.Escalated)
	if u.Review != nil {
		r.Review = u.review()
	}
	if r.Delegation = u.Delegation; len(u.Parent) > 0 {
		r.Parent = u.id(u.Parent)
	}
	if e := u.Extends; e != nil {
		r.Extends = &Extends{u.id(e.Grant), u.when(e.From)}
	}
	for i, s := range u.Revisions {
		v := Revision{
			Hash: hex.EncodeToString(s.Hash), Permissions: s.Permissions, DurationMS: s.DurationMS,
			Requirements: u.requirements(s.Requirements), By: u.name(s.By), At: u.when(s.At), Auto: s.Auto,
			MaxDurationMS: s.MaxDurationMS, CertificateTTL: s.CertificateTTL,
		}
		if e := s.Escalation; e != nil {
			v.Escalation = &Escalation{e.AfterMS, u.requirements(e.Requirements)}
		}
		if i > 0 {
			v.Parent = r.Revisions[i-1].Hash
		}
		if len(s.Hash) == 0 {
			var err error
			v.Hash, err = contentHash(r, v)
			u.bad = u.bad || err != nil
		}
		r.pinned(v)
	}
	for _, d := range u.Decisions {
		verdict := Approve
		if d.Deny {
			verdict = Deny
		}
		r.Decisions = append(r.Decisions, Decision{
			Person: u.name(d.Person), Actor: u.name(d.Actor), Verdict: verdict, Comment: d.Comment,
			Hash: at(u, r.Revisions, d.Revision).Hash, At: u.when(d.At), Slack: d.Slack,
		})
	}
	if u.Grant != nil && u.Ended == 0 {
		r.Ended = u.granted(r)
	}
	return r
}

func (u *unpacker) id(b []byte) string {
	if len(b) != len(uid{}) {
		u.bad = true
		return ""
	}
	return uid(b).String()
}

func (u *unpacker) review() *Review {
	s := u.Review
	v := &Review{Due: u.when(s.Due), Closed: u.maybe(s.Closed), Findings: make([]Finding, 0, len(s.Findings))}
	for _, g := range s.Groups {
		v.Groups = append(v.Groups, u.name(g))
	}
	for _, f := range s.Findings {
		v.Findings = append(v.Findings, Finding{u.name(f.Person), u.name(f.Actor), f.Text, u.when(f.At)})
	}
	return v
}

// granted is when the grant of r was made.
func (u *unpacker) granted(r Request) Millis { return grantedAfter(r) + Millis(u.Grant.Created) }

// grant reads what the record says of the grant of r; its SPIFFE ID is left to
// be computed.
func (u *unpacker) grant(r Request) Grant {
	s, v := u.Grant, r.Current()
	created := u.granted(r)
	notBefore := created + Millis(s.NotBefore)
	expiry := notBefore + Millis(v.DurationMS+s.Expiry)
	g := Grant{
		ID: r.ID, State: at(u, grantStates(), s.State), Requester: r.Requester, Subject: r.Subject, Service: r.Service,
		Permissions: v.Permissions, Hash: v.Hash, NotBefore: notBefore, Expiry: expiry,
		CertificateTTL: r.CertificateTTL, CSRKey: r.CSRKey, CSRBy: r.CSRBy, Auto: v.Auto, Requirements: v.Requirements,
		Created: created, Ended: u.maybe(s.Ended), EndedBy: u.name(s.EndedBy), EndReason: s.EndReason, Issued: s.Issued,
		LatestNotAfter: u.maybe(s.LatestNotAfter), Trace: r.Trace, Index: r.Index + uint64(s.Index), Votes: make([]Vote, 0, len(s.Votes)),
		Emergency: r.Emergency, BreakGlass: r.Review != nil, Delegation: r.Delegation, Parent: r.Parent,
	}
	if s.CertificateTTL != 0 {
		g.CertificateTTL = s.CertificateTTL
	}
	if s.Escalated {
		g.Escalated = r.Alternative()
	}
	for _, x := range s.Extensions {
		e := Extension{Request: u.id(x.Request), MS: x.MS, Persons: make([]string, 0, len(x.Persons))}
		for _, person := range x.Persons {
			e.Persons = append(e.Persons, u.name(person))
		}
		g.Extensions = append(g.Extensions, e)
	}
	if g.State == GrantExpired && s.Ended != 0 {
		g.Ended = expiry + Millis(s.Ended-1)
	}
	for _, vote := range s.Votes {
		d := at(u, r.Decisions, vote.Decision)
		g.Votes = append(g.Votes, Vote{u.name(vote.Group), d.Person, d.Actor, d.Hash, d.At})
	}
	return g
}

// errStored is returned when a record says what no record can.
var errStored = errors.New("approval: a stored record contradicts itself")

// unpack reads the request in a record.
func (s storedRequest) unpack(id uid) (Request, error) {
	u := s.unpacker(id)
	r := u.request(id)
	if u.bad || len(r.Revisions) == 0 {
		return r, fmt.Errorf("%w: request %s", errStored, r.ID)
	}
	return r, nil
}

// unpackGrant reads the grant in a record; false when there is none.
func (s storedRequest) unpackGrant(id uid, domain string) (Grant, bool, error) {
	if s.Grant == nil {
		return Grant{}, false, nil
	}
	r, err := s.unpack(id)
	if err != nil {
		return Grant{}, false, err
	}
	u := s.unpacker(id)
	g := u.grant(r)
	if u.bad {
		return g, false, fmt.Errorf("%w: grant %s", errStored, g.ID)
	}
	g.SPIFFEID, err = grantID(domain, r, g.Permissions)
	return g, true, err
}
