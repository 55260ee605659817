package approval

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// involved returns the persons who have a stake in r, and which. It looks at
// who they are now besides who they were when they asked: an ID that changes
// hands while the request is open excludes both.
func (s State) involved(r Request) map[string]string {
	stakes := map[string]string{}
	add := func(stake string, persons ...string) {
		for _, p := range persons {
			if p != "" && stakes[p] == "" {
				stakes[p] = stake
			}
		}
	}
	by := func(text string) (person string, owners []string) {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return "", nil
		}
		return s.personOf(id), s.Owners(id)
	}
	requester, requesterOwners := by(r.Requester)
	subject, subjectOwners := by(r.Subject)
	add("is who asked", r.RequesterPerson, requester)
	add("is whom it is for", subject)
	add("owns the subject", subjectOwners...)
	// An agent that asks for another's agent would be waved through by its
	// own owner.
	add("owns who asked", requesterOwners...)
	if r.CSRBy != "" {
		giver, _ := by(r.CSRBy)
		add("gave the key that it is for", giver)
	}
	if r.Extends != nil {
		// Who has asked for the grant would otherwise approve that it goes on.
		if of, err := s.Request(r.Extends.Grant); err == nil {
			for person, stake := range s.involved(of) {
				add(stake+" (of the grant that it extends)", person)
			}
		}
		// Who holds a part of it would approve what theirs stands on.
		children, _ := s.children(r.Extends.Grant) // what cannot be read is found by the checker
		for _, child := range children {
			holder, owners := by(child.Subject)
			add("holds a part of the grant that it extends", append(owners, holder)...)
		}
	}
	s.andWhoStandsIn(stakes)
	return stakes
}

// eligible refuses a person whose approval does not count, whatever group they
// are in: one who has a stake.
func eligible(stakes map[string]string, person string) error {
	stake := stakes[person]
	if stake != "" {
		return denied("%s %s and may not decide on it", person, stake).then("ask someone who has no part in it")
	}
	return nil
}

// groupsFor returns which of the required groups a person is in now.
func (s State) groupsFor(requirements []Requirement, person string) map[string]bool {
	in := map[string]bool{}
	for _, q := range requirements {
		if s.isMember(person, q.Group) {
			in[q.Group] = true
		}
	}
	return in
}

// stands says whether an approval still covers what r says now: only where that
// lies within the revision that its person saw.
func stands(r Request, d Decision) bool {
	if d.Verdict != Approve {
		return false
	}
	for _, seen := range r.Revisions {
		if seen.Hash == d.Hash {
			return within(r.Service, r.Current(), seen)
		}
	}
	return false
}

// within says whether revision v allows nothing that seen does not.
func within(service string, v, seen Revision) bool {
	if v.Hash == seen.Hash {
		return true
	}
	have, err := grant.ParseScope(service, seen.Permissions)
	if err != nil {
		return false
	}
	want, err := grant.ParseScope(service, v.Permissions)
	if err != nil {
		return false
	}
	return have.Covers(want) && v.DurationMS <= seen.DurationMS
}

// Standing says where the approvals of r are now: votes are the seats that can
// be filled, also while some are missing, and counts[i] says whether
// r.Decisions[i] is an approval that still counts towards any. What it takes is
// who everyone is now: one who left a group, whose ID went to someone else, or
// who has become involved no longer counts.
func (s State) Standing(r Request) (votes []Vote, counts []bool) {
	votes, counts = s.standing(r, r.Current().Requirements)
	if also := r.Alternative(); also != nil {
		_, more := s.standing(r, also)
		for i := range counts {
			counts[i] = counts[i] || more[i]
		}
	}
	return votes, counts
}

// Instead is Standing with regard to what may be met in place of the requirements:
// none before the request was escalated.
func (s State) Instead(r Request) []Vote {
	votes, _ := s.standing(r, r.Alternative())
	return votes
}

// standing says where the approvals of r are with regard to what is required, or to
// what may be met in place of it: votes are the seats that can be filled, and counts
// says of each decision whether it counts towards any.
func (s State) standing(r Request, required []Requirement) (votes []Vote, counts []bool) {
	var (
		all     = seats(required)
		stakes  = s.involved(r)
		persons []Decision
		groups  []map[string]bool
		seen    = map[string]bool{}
		heard   = map[string]bool{}
	)
	counts = make([]bool, len(r.Decisions))
	for i, d := range r.Decisions {
		if seen[d.Person] || !stands(r, d) || !s.speaksFor(d) || !s.stillInSlack(r, d) || eligible(stakes, d.Person) != nil {
			continue
		}
		in := s.groupsFor(required, d.Person)
		s.oneVoice(heard, in, d.Person)
		seen[d.Person], counts[i] = true, len(in) > 0
		persons, groups = append(persons, d), append(groups, in)
	}
	match(all, groups)
	for _, seat := range all {
		if seat.person >= 0 {
			d := persons[seat.person]
			votes = append(votes, Vote{Group: seat.group, Person: d.Person, Actor: d.Actor, Hash: d.Hash, At: d.At})
		}
	}
	return votes, counts
}

// count returns the votes that fill every seat that r requires, or every one that it
// was escalated to, and what they fill; false when some of both stay empty. A request
// that needs nobody is approved by policy alone.
func (s State) count(r Request) (votes []Vote, of []Requirement, satisfied bool) {
	required := r.Current().Requirements
	if len(seats(required)) == 0 {
		return nil, required, r.Current().Auto
	}
	if votes, _ = s.standing(r, required); len(votes) == len(seats(required)) {
		return votes, required, true
	}
	also := r.Alternative()
	if len(seats(also)) == 0 {
		return votes, required, false
	}
	votes, _ = s.standing(r, also)
	return votes, also, len(votes) == len(seats(also))
}

// speaksFor says whether a decision's ID still is its person's.
func (s State) speaksFor(d Decision) bool {
	id, err := spiffeid.FromString(d.Actor)
	if err == nil && d.Slack != "" {
		p, err := s.SlackVoter(id, d.Slack)
		// A stolen bridge is blocked: what it has brought in, and nobody has looked at, counts no longer.
		_, blocked, failed := s.Block(id)
		return err == nil && failed == nil && !blocked && p.Name == d.Person
	}
	return err == nil && s.personOf(id) == d.Person
}
