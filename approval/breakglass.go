package approval

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/hallpass/hallpass/policy"
)

// Review is what whoever broke the glass leaves behind: others look at it, and say
// in words what they found.
type Review struct {
	Groups   []string  `json:"groups" cbor:"1,keyasint"` // each closes it, by a person of its own
	Due      Millis    `json:"due" cbor:"2,keyasint"`    // open for longer, its person breaks no other glass
	Findings []Finding `json:"findings" cbor:"3,keyasint"`
	Closed   Millis    `json:"closed,omitempty" cbor:"4,keyasint,omitempty"`
}

// Finding is what one person has to say of a glass that was broken.
type Finding struct {
	Person string `json:"person" cbor:"1,keyasint"`
	Actor  string `json:"actor" cbor:"2,keyasint"` // the SPIFFE ID it came from
	Text   string `json:"text" cbor:"3,keyasint"`
	At     Millis `json:"at" cbor:"4,keyasint"`
}

// Requirements are the groups of a review, as those of a request.
func (v Review) Requirements() []Requirement {
	all := make([]Requirement, 0, len(v.Groups))
	for _, g := range v.Groups {
		all = append(all, Requirement{Group: g, Approvals: 1})
	}
	return all
}

// glassDetails is what the audit leaf of a request says of a glass that it broke,
// and the one of a finding of the review.
type glassDetails struct {
	Closed  bool     `json:"closed,omitempty"`
	Due     Millis   `json:"due,omitempty"`
	Finding string   `json:"finding,omitempty"`
	Hash    string   `json:"hash,omitempty"`
	Open    []string `json:"open,omitempty"` // groups that are still to be heard
	Person  string   `json:"person,omitempty"`
	Review  []string `json:"review,omitempty"` // groups that close it
	Waived  []string `json:"waived,omitempty"` // what would have been required
}

// breakGlass makes the review of a request that does without approval, and refuses
// it to who has left earlier ones lying, or whom nobody could review.
func (t *turn) breakGlass(r *Request, out policy.Outcome) (*glassDetails, error) {
	if out.BreakGlass == nil {
		return nil, denied("the policy does not say who reviews it")
	}
	if r.Start != 0 {
		return nil, invalid("who breaks the glass needs it now, not at %s", r.Start).then("ask for approval, there is time")
	}
	if t.person == "" {
		return nil, denied("%s is nobody's: only persons break the glass", t.actor)
	}
	if err := t.checkPersonBlocked(); err != nil {
		return nil, err
	}
	if err := t.checkOpenReviews(out.BreakGlass.MaxOpen); err != nil {
		return nil, err
	}
	v := &Review{Due: t.now.Add(out.BreakGlass.ReviewWithin), Findings: []Finding{}}
	for _, q := range out.BreakGlass.Review {
		v.Groups = append(v.Groups, q.Group)
	}
	r.Review = v
	if !t.reviewable(*r) {
		// A review that only its own author could close would never be one.
		return nil, denied("nobody could review it: %s has too few persons without a part in it", strings.Join(v.Groups, " or ")).
			then("ask for approval, and have an admin propose more reviewers")
	}
	return &glassDetails{Review: v.Groups, Due: v.Due, Waived: waived(out)}, nil
}

func waived(out policy.Outcome) []string {
	var all []string
	for _, q := range requirements(out) {
		all = append(all, describe([]Requirement{q}))
	}
	return all
}

// checkPersonBlocked refuses a person of whom any identity is blocked. A thief of one device may
// have another: where an approver would see who it is, nobody looks here.
func (t *turn) checkPersonBlocked() error {
	p, err := find[Person](t, key(prefixPerson, t.person), "person", t.person)
	if err != nil {
		return err
	}
	for _, id := range p.IDs {
		if err := t.checkBlocked(id); err != nil {
			return err
		}
	}
	return nil
}

// checkOpenReviews refuses a second glass to a person whose review of an earlier one
// is overdue, and one that is more than the rules let be unreviewed: one after the other, they
// would be access without an end.
func (t *turn) checkOpenReviews(most int) error {
	most = min(most, MaxOpenReviews)
	var overdue []string
	n := 0
	under := pairPrefix(prefixReviewOf, t.person)
	t.Scan(under, nil, func(k, v []byte) bool {
		if n++; len(v) == 8 && Millis(binary.BigEndian.Uint64(v)) <= t.now {
			overdue = append(overdue, uid(k[len(under):]).String())
		}
		return n < MaxOpenReviews // all of them, for one that is overdue
	})
	if len(overdue) > 0 {
		return denied("%s has broken the glass before, and the review of request %s is overdue", t.person, overdue[0]).
			then("have it closed first (hallpass review close), or ask for approval")
	}
	if n >= most {
		return limited("%s has %d reviews open, and may have %d", t.person, n, most).then("have some closed first (hallpass review close)")
	}
	return nil
}

// reviewable says whether there are persons without a part in r who can close its
// review, a person a group.
func (t *turn) reviewable(r Request) bool {
	all, stakes := seats(r.Review.Requirements()), t.state().involved(r)
	var names []string
	var groups []map[string]bool
	for _, s := range all {
		g, err := find[Group](t, key(prefixGroup, s.group), "group", s.group)
		if err != nil {
			return false
		}
		// As many of each as there are seats are enough: the others' seats take fewer.
		fit := 0
		for _, name := range g.Members {
			if stakes[name] != "" || fit == len(all) {
				continue
			}
			fit++
			i := slices.Index(names, name)
			if i < 0 {
				i = len(names)
				names, groups = append(names, name), append(groups, map[string]bool{})
			}
			groups[i][s.group] = true
		}
	}
	return match(all, groups) == len(all)
}

// openReview lists the review of r.
func (t *turn) openReview(r Request) {
	u, _ := parseUID(r.ID)
	t.mark(keyUID(prefixOpenReview, u.turned()))
	t.Put(pairKey(prefixReviewOf, r.RequesterPerson, string(u[:])), until(r.Review.Due))
}

// closeReview takes one person's finding, and closes the review with the last that
// is needed.
func (t *turn) closeReview(b CloseReview) (Object, error) {
	r, err := t.state().Request(b.Request)
	if err != nil {
		return nil, err
	}
	if r.Review == nil {
		return nil, invalid("request %s broke no glass: there is nothing to review", r.ID)
	}
	if r.Review.Closed != 0 {
		return nil, conflict("the review of request %s was closed at %s", r.ID, r.Review.Closed)
	}
	if err := checkText("the finding", b.Finding, 1); err != nil {
		return nil, err
	}
	if err := t.checkReviewer(r); err != nil {
		return nil, err
	}
	g, err := t.state().Grant(r.ID)
	if err != nil {
		return nil, err
	}
	if g.StateAt(t.now) == GrantActive {
		// What is yet to be done with it would have been found good beforehand.
		return nil, conflict("the grant lives until %s", g.Expiry).then("revoke it, or wait for its end, and look at what was done then")
	}
	before := len(t.state().OpenReview(r))
	v := *r.Review
	v.Findings = slices.DeleteFunc(slices.Clone(v.Findings), func(f Finding) bool { return f.Person == t.person }) // which counts no more
	v.Findings = append(v.Findings, Finding{Person: t.person, Actor: t.actor.String(), Text: b.Finding, At: t.now})
	r.Review = &v
	open := t.state().OpenReview(r)
	if len(open) >= before {
		return nil, denied("the review of request %s waits for %s", r.ID, strings.Join(open, " and ")).then("ask somebody there who has not been heard")
	}
	d := glassDetails{Finding: b.Finding, Hash: r.Hash(), Open: open, Person: t.person}
	if len(open) == 0 {
		u, _ := parseUID(r.ID)
		v.Closed, d.Closed = t.now, true
		t.unmark(keyUID(prefixOpenReview, u.turned()))
		t.unmark(pairKey(prefixReviewOf, r.RequesterPerson, string(u[:])))
		if g.Ended != 0 {
			t.mark(dueAt(prefixEnded, v.Closed, endedRecord, string(u[:])))
		}
	}
	t.saveRequest(&r)
	t.details = d
	return r, nil
}

// checkReviewer refuses one who may not close the review of r.
func (t *turn) checkReviewer(r Request) error {
	if t.person == "" {
		return denied("%s is nobody's: only persons close reviews", t.actor)
	}
	if err := t.checkPersonBlocked(); err != nil {
		return err
	}
	if stake := t.state().involved(r)[t.person]; stake != "" {
		// Whoever broke the glass would otherwise find that all was well.
		return denied("%s %s and may not review it", t.person, stake).then("ask someone who has no part in it")
	}
	if len(t.state().groupsFor(r.Review.Requirements(), t.person)) == 0 {
		return denied("%s is in none of the groups that review it: %s", t.person, strings.Join(r.Review.Groups, ", "))
	}
	if slices.ContainsFunc(r.Review.Findings, func(f Finding) bool {
		return f.Person == t.person && t.state().speaksFor(Decision{Person: f.Person, Actor: f.Actor})
	}) {
		return conflict("%s has said what they found already", t.person).then("wait for: " + strings.Join(t.state().OpenReview(r), " and "))
	}
	return nil
}

// OpenReview returns the groups that the review of r still waits for, as everyone is
// now: none where it is closed, or there is none. A finding counts for one group, so
// that of two groups two persons are heard.
func (s State) OpenReview(r Request) []string {
	if r.Review == nil || r.Review.Closed != 0 {
		return nil
	}
	all, stakes := seats(r.Review.Requirements()), s.involved(r)
	groups := make([]map[string]bool, len(r.Review.Findings))
	for i, f := range r.Review.Findings {
		if stakes[f.Person] == "" && s.speaksFor(Decision{Person: f.Person, Actor: f.Actor}) {
			groups[i] = s.groupsFor(r.Review.Requirements(), f.Person)
		}
	}
	match(all, groups)
	var open []string
	for _, seat := range all {
		if seat.person < 0 {
			open = append(open, seat.group)
		}
	}
	return open
}

// Reviews returns a page of requests whose reviews are open, the newest first, and
// the cursor of the next, "" at the end.
func (s State) Reviews(f Filter) ([]Request, string, error) {
	return list(s.r, [][]byte{[]byte(prefixOpenReview)}, f, among(f, s, s.requestAt), func(r Request) bool {
		return f.of(r.Requester, r.Subject) && (f.Service == "" || f.Service == r.Service) && (f.Requester == "" || f.Requester == r.Requester)
	})
}

// forgettable is since when a request and its grant may be forgotten: from when the
// grant has ended and its review, if it has one, is closed; 0: not yet.
func forgettable(r Request, g Grant) Millis {
	if g.Ended == 0 || r.Review != nil && r.Review.Closed == 0 {
		return 0
	}
	if r.Review != nil {
		return max(g.Ended, r.Review.Closed)
	}
	return g.Ended
}
