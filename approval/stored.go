package approval

import (
	"encoding/hex"
	"fmt"
	"slices"
)

// What is kept of a request and its grant is one record, in which nothing stands
// twice and nothing that follows from the rest: there are a million of them, and
// every snapshot holds them all. The id is in the key. Identities, persons and
// groups are numbers in a list of names, counted from 1, 0 is none; hashes are
// bytes; moments are milliseconds since the request was made, or since what they
// follow from nearly always. Fields that are zero are left out.
type storedRequest struct {
	Names           []string         `cbor:"1,keyasint"`
	State           int              `cbor:"2,keyasint,omitempty"` // place in requestStates
	Requester       int              `cbor:"3,keyasint"`
	RequesterPerson int              `cbor:"4,keyasint,omitempty"`
	Subject         int              `cbor:"5,keyasint"`
	Service         string           `cbor:"6,keyasint"`
	Reason          string           `cbor:"7,keyasint"`
	Start           int64            `cbor:"8,keyasint,omitempty"` // 0: when approved; otherwise 1 more
	CSRKey          []byte           `cbor:"9,keyasint,omitempty"`
	CSRBy           int              `cbor:"10,keyasint,omitempty"`
	PolicyRevision  uint64           `cbor:"11,keyasint"`
	Rules           []string         `cbor:"12,keyasint,omitempty"`
	Revisions       []storedRevision `cbor:"13,keyasint"`
	Decisions       []storedDecision `cbor:"14,keyasint,omitempty"`
	Created         int64            `cbor:"15,keyasint,omitempty"` // since the id was made
	Expires         int64            `cbor:"16,keyasint"`
	Ended           int64            `cbor:"17,keyasint,omitempty"` // 0: not ended, or when its grant was made; otherwise 1 more
	EndedBy         int              `cbor:"18,keyasint,omitempty"`
	Trace           string           `cbor:"19,keyasint,omitempty"`
	Index           uint64           `cbor:"20,keyasint"`
	Grant           *storedGrant     `cbor:"21,keyasint,omitempty"`
	Emergency       *Emergency       `cbor:"22,keyasint,omitempty"` // since version 2
	Review          *storedReview    `cbor:"23,keyasint,omitempty"` // since version 4
	Extends         *storedExtends   `cbor:"24,keyasint,omitempty"` // since version 4
	Parent          []byte           `cbor:"25,keyasint,omitempty"` // an id; since version 4
	Delegation      *Delegation      `cbor:"26,keyasint,omitempty"` // since version 4
	Bundles         []string         `cbor:"30,keyasint,omitempty"` // since version 4
	Notify          []string         `cbor:"32,keyasint,omitempty"` // since version 4
	Escalated       int64            `cbor:"31,keyasint,omitempty"` // 0: it was not; otherwise 1 more; since version 4
}

// storedExtends names the grant that a request extends by its id.
type storedExtends struct {
	Grant []byte `cbor:"1,keyasint"`
	From  int64  `cbor:"2,keyasint"`
}

// storedExtension is one of a grant; Request is an id.
type storedExtension struct {
	Request []byte `cbor:"1,keyasint"`
	MS      int64  `cbor:"2,keyasint"`
	Persons []int  `cbor:"3,keyasint,omitempty"`
}

// storedReview is that of a broken glass.
type storedReview struct {
	Groups   []int           `cbor:"1,keyasint"`
	Due      int64           `cbor:"2,keyasint"`
	Findings []storedFinding `cbor:"3,keyasint,omitempty"`
	Closed   int64           `cbor:"4,keyasint,omitempty"` // 0: open; otherwise 1 more
}

type storedFinding struct {
	Person int    `cbor:"1,keyasint"`
	Actor  int    `cbor:"2,keyasint"`
	Text   string `cbor:"3,keyasint"`
	At     int64  `cbor:"4,keyasint"`
}

// storedRevision is a revision; its parent is the one before. Its hash is that of
// what the record says: of a request with which nothing more can happen it is left
// out, and computed by whoever asks.
type storedRevision struct {
	Hash           []byte              `cbor:"1,keyasint,omitempty"`
	Permissions    []string            `cbor:"2,keyasint"`
	DurationMS     int64               `cbor:"3,keyasint"`
	Requirements   []storedRequirement `cbor:"4,keyasint,omitempty"`
	By             int                 `cbor:"5,keyasint"`
	At             int64               `cbor:"6,keyasint,omitempty"`
	Auto           bool                `cbor:"7,keyasint,omitempty"`
	MaxDurationMS  int64               `cbor:"8,keyasint"`
	CertificateTTL int64               `cbor:"9,keyasint"`
	Escalation     *storedEscalation   `cbor:"10,keyasint,omitempty"` // since version 4
}

type storedEscalation struct {
	AfterMS      int64               `cbor:"1,keyasint"`
	Requirements []storedRequirement `cbor:"2,keyasint"`
}

type storedRequirement struct {
	Group     int `cbor:"1,keyasint"`
	Approvals int `cbor:"2,keyasint"`
}

// storedDecision is a decision on one of the revisions.
type storedDecision struct {
	Person   int    `cbor:"1,keyasint"`
	Actor    int    `cbor:"2,keyasint"`
	Deny     bool   `cbor:"3,keyasint,omitempty"`
	Comment  string `cbor:"4,keyasint,omitempty"`
	Revision int    `cbor:"5,keyasint,omitempty"`
	At       int64  `cbor:"6,keyasint"`
	Slack    string `cbor:"7,keyasint,omitempty"` // since version 4
}

// storedGrant is what a grant says besides what the last revision of its request
// says.
type storedGrant struct {
	State          int          `cbor:"1,keyasint,omitempty"` // place in grantStates
	NotBefore      int64        `cbor:"2,keyasint,omitempty"` // since Created
	Expiry         int64        `cbor:"3,keyasint,omitempty"` // since the end of the duration that was asked for
	Created        int64        `cbor:"4,keyasint,omitempty"` // since the last decision; without one, since the request was made
	Votes          []storedVote `cbor:"5,keyasint,omitempty"`
	Ended          int64        `cbor:"6,keyasint,omitempty"` // 0: not ended; otherwise 1 more; of an expired one, since Expiry
	EndedBy        int          `cbor:"7,keyasint,omitempty"`
	EndReason      string       `cbor:"8,keyasint,omitempty"`
	Issued         uint64       `cbor:"9,keyasint,omitempty"`
	LatestNotAfter int64        `cbor:"10,keyasint,omitempty"` // 0: none; otherwise 1 more
	Index          int64        `cbor:"11,keyasint,omitempty"` // above the request's

	// Since version 4.
	Extensions     []storedExtension `cbor:"12,keyasint,omitempty"`
	CertificateTTL int64             `cbor:"13,keyasint,omitempty"` // 0: the request's
	Escalated      bool              `cbor:"14,keyasint,omitempty"` // the votes fill what the request was escalated to
}

// storedVote is a decision that filled a seat of a group.
type storedVote struct {
	Group    int `cbor:"1,keyasint"`
	Decision int `cbor:"2,keyasint,omitempty"`
}

// The states by their places. New ones go to the end.
func requestStates() []RequestState {
	return []RequestState{RequestApproved, RequestPending, RequestDenied, RequestCancelled, RequestExpired}
}

func grantStates() []GrantState {
	return []GrantState{GrantExpired, GrantActive, GrantRevoked, GrantReturned}
}

// asStored is a name as the bytes of a record have it.
func asStored(name string) []byte {
	text, err := encoder.Marshal(name)
	if err != nil {
		return []byte(name) // a string has an encoding; should one have none, this finds it all the same
	}
	return text
}

// packer makes a record of a request and its grant.
type packer struct {
	names   []string
	created Millis
	err     error // the first thing that does not fit
}

func (p *packer) bad(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

func (p *packer) name(s string) int {
	if s == "" {
		return 0
	}
	i := slices.Index(p.names, s)
	if i < 0 {
		i = len(p.names)
		p.names = append(p.names, s)
	}
	return i + 1
}

func (p *packer) hash(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil || hex.EncodeToString(b) != text {
		p.bad("%q is no hash", text)
	}
	return b
}

func (p *packer) since(m Millis) int64 { return int64(m - p.created) }

// maybe is since for a moment that there may not be.
func (p *packer) maybe(m Millis) int64 { return p.maybeSince(m, p.created) }

func (p *packer) maybeSince(m, from Millis) int64 {
	if m == 0 {
		return 0
	}
	if m < from {
		p.bad("%s is before %s", m, from)
	}
	return int64(m-from) + 1
}

// isOver says whether nothing more can happen with a request and its grant.
func isOver(r Request, g *Grant) bool {
	if g != nil {
		return g.State != GrantActive
	}
	return r.State != RequestPending && (r.State != RequestApproved || r.Extends != nil)
}

// grantedAfter is what the moment in which a grant is made follows: nearly always
// it is the same.
func grantedAfter(r Request) Millis {
	if n := len(r.Decisions); n > 0 {
		return r.Decisions[n-1].At
	}
	return r.Created
}

func (p *packer) requirements(all []Requirement) (out []storedRequirement) {
	for _, q := range all {
		out = append(out, storedRequirement{p.name(q.Group), q.Approvals})
	}
	return out
}

func (p *packer) escalation(e *Escalation) *storedEscalation {
	if e == nil {
		return nil
	}
	return &storedEscalation{e.AfterMS, p.requirements(e.Requirements)}
}

func placeOf[T comparable](p *packer, all []T, v T) int {
	i := slices.Index(all, v)
	if i < 0 {
		p.bad("%v has no place", v)
	}
	return i
}

// pack makes the record; g is nil before there is a grant. What unpack cannot
// give back is an error.
func pack(r Request, g *Grant) (storedRequest, error) {
	id, ok := parseUID(r.ID)
	p := &packer{created: r.Created}
	if !ok {
		p.bad("its id is none")
	}
	s := storedRequest{
		State: placeOf(p, requestStates(), r.State), Requester: p.name(r.Requester), RequesterPerson: p.name(r.RequesterPerson),
		Subject: p.name(r.Subject), Service: r.Service, Reason: r.Reason, CSRKey: p.hash(r.CSRKey), CSRBy: p.name(r.CSRBy),
		PolicyRevision: r.PolicyRevision, Rules: r.Rules, Created: int64(r.Created - id.made()), Expires: p.since(r.Expires), Ended: p.maybe(r.Ended),
		EndedBy: p.name(r.EndedBy), Trace: r.Trace, Index: r.Index, Emergency: r.Emergency,
	}
	if r.Start != 0 {
		// A start may be a little before the request, so this one counts from 1 up
		// and from -1 down.
		if s.Start = p.since(r.Start); s.Start >= 0 {
			s.Start++
		}
	}
	for _, v := range r.Revisions {
		s.Revisions = append(s.Revisions, storedRevision{
			Escalation: p.escalation(v.Escalation),
			Hash:       p.revisionHash(r, g, v), Permissions: v.Permissions, DurationMS: v.DurationMS, Requirements: p.requirements(v.Requirements),
			By: p.name(v.By), At: p.since(v.At), Auto: v.Auto, MaxDurationMS: v.MaxDurationMS, CertificateTTL: v.CertificateTTL,
		})
	}
	for _, d := range r.Decisions {
		on := slices.IndexFunc(r.Revisions, func(v Revision) bool { return v.Hash == d.Hash })
		if on < 0 || d.Verdict != Approve && d.Verdict != Deny {
			p.bad("a decision of %s: %q on %s", d.Person, d.Verdict, d.Hash)
		}
		s.Decisions = append(s.Decisions, storedDecision{
			Person: p.name(d.Person), Actor: p.name(d.Actor), Deny: d.Verdict == Deny, Comment: d.Comment, Revision: on, At: p.since(d.At), Slack: d.Slack,
		})
	}
	s.Bundles, s.Notify, s.Escalated = r.Bundles, r.Notify, p.maybe(r.Escalated)
	if r.Review != nil {
		s.Review = p.review(*r.Review)
	}
	if s.Delegation = r.Delegation; r.Parent != "" {
		s.Parent = p.id(r.Parent)
	}
	if e := r.Extends; e != nil {
		s.Extends = &storedExtends{p.id(e.Grant), p.since(e.From)}
	}
	if g != nil {
		s.Grant = p.grant(r, *g)
		switch r.Ended {
		case g.Created:
			s.Ended = 0
		case 0:
			p.bad("it has a grant and has not ended")
		}
	}
	s.Names = p.names
	if p.err != nil {
		return s, fmt.Errorf("approval: keep request %s: %w", r.ID, p.err)
	}
	return s, nil
}

// id is a UUID as its bytes.
func (p *packer) id(text string) []byte {
	u, ok := parseUID(text)
	if !ok {
		p.bad("%q is no id", text)
	}
	return u[:]
}

func (p *packer) review(v Review) *storedReview {
	s := &storedReview{Due: p.since(v.Due), Closed: p.maybe(v.Closed)}
	for _, g := range v.Groups {
		s.Groups = append(s.Groups, p.name(g))
	}
	for _, f := range v.Findings {
		s.Findings = append(s.Findings, storedFinding{p.name(f.Person), p.name(f.Actor), f.Text, p.since(f.At)})
	}
	return s
}

// revisionHash is the hash of a revision, or nothing where it is not kept.
func (p *packer) revisionHash(r Request, g *Grant, v Revision) []byte {
	if isOver(r, g) {
		if again, err := contentHash(r, v); err == nil && again == v.Hash {
			return nil
		}
	}
	return p.hash(v.Hash)
}

func (p *packer) grant(r Request, g Grant) *storedGrant {
	s := &storedGrant{
		State: placeOf(p, grantStates(), g.State), NotBefore: int64(g.NotBefore - g.Created),
		Expiry: int64(g.Expiry-g.NotBefore) - r.Current().DurationMS, Created: int64(g.Created - grantedAfter(r)),
		Ended: p.maybe(g.Ended), EndedBy: p.name(g.EndedBy), EndReason: g.EndReason, Issued: g.Issued,
		LatestNotAfter: p.maybe(g.LatestNotAfter), Index: int64(g.Index - r.Index), // as unpack adds it
	}
	if g.State == GrantExpired {
		s.Ended = p.maybeSince(g.Ended, g.Expiry)
	}
	if g.CertificateTTL != r.CertificateTTL {
		s.CertificateTTL = g.CertificateTTL
	}
	if s.Escalated = g.Escalated != nil; s.Escalated && !slices.Equal(g.Escalated, r.Alternative()) {
		p.bad("grant %s was approved by others than its request was escalated to", g.ID)
	}
	for _, e := range g.Extensions {
		x := storedExtension{Request: p.id(e.Request), MS: e.MS}
		for _, person := range e.Persons {
			x.Persons = append(x.Persons, p.name(person))
		}
		s.Extensions = append(s.Extensions, x)
	}
	for _, v := range g.Votes {
		by := slices.IndexFunc(r.Decisions, func(d Decision) bool {
			return d.Verdict == Approve && v == Vote{v.Group, d.Person, d.Actor, d.Hash, d.At}
		})
		if by < 0 {
			p.bad("the vote of %s is no decision", v.Person)
		}
		s.Votes = append(s.Votes, storedVote{p.name(v.Group), by})
	}
	return s
}

// issued writes what one more certificate changes of the grant in a record: what
// pack would make of the request and g.
func (s *storedRequest) issued(g Grant) error {
	u, _ := parseUID(g.ID)
	p := &packer{created: u.made() + Millis(s.Created)}
	s.Grant.Issued, s.Grant.LatestNotAfter, s.Grant.Index = g.Issued, p.maybe(g.LatestNotAfter), int64(g.Index-s.Index) // as unpack adds it
	if p.err != nil {
		return fmt.Errorf("approval: keep grant %s: %w", g.ID, p.err)
	}
	return nil
}
