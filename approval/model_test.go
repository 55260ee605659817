package approval

import (
	"slices"
)

// model is what a reader of the design would expect, kept beside the state with
// none of its code.
type model struct {
	live    map[string]*modelGrant
	blocked map[string]bool
}

type modelGrant struct {
	subject         string
	expiry, created Millis
	ended           bool
}

func newModel() *model { return &model{live: map[string]*modelGrant{}, blocked: map[string]bool{}} }

// granted notes a grant the first time it is there.
func (m *model) granted(w *world, id string) {
	if m.live[id] != nil || w.request(id).State != RequestApproved {
		return
	}
	g := w.grant(id)
	m.live[id] = &modelGrant{subject: g.Subject, expiry: g.Expiry, created: g.Created}
	if m.blocked[g.Subject] {
		w.tb.Fatalf("a grant for blocked %s", g.Subject)
	}
}

func (m *model) block(subject string) {
	m.blocked[subject] = true
	for _, g := range m.live {
		if g.subject == subject {
			g.ended = true
		}
	}
}

// issued is told of a certificate that was recorded.
func (m *model) issued(t failer, b IssueGrant, now Millis) {
	g := m.live[b.Grant]
	switch {
	case g == nil:
		t.Fatalf("a certificate of no grant")
	case g.ended || now >= g.expiry:
		t.Fatalf("a certificate of a grant that has ended")
	case m.blocked[g.subject]:
		t.Fatalf("a certificate for blocked %s", g.subject)
	case Millis(b.NotAfter) > g.expiry:
		t.Fatalf("a certificate that outlives its grant")
	}
}

// personsOf returns the names of those who have the ID among theirs, or among
// those that they own.
func personsOf(w *world, id string, owned bool) []string {
	persons, err := Read(w.a).Persons()
	if err != nil {
		w.tb.Fatal(err)
	}
	var names []string
	for _, p := range persons {
		if ids := map[bool][]string{false: p.IDs, true: p.Owns}[owned]; slices.Contains(ids, id) {
			names = append(names, p.Name)
		}
	}
	return names
}

// groupOf returns who counts in a group: its members, but of those who are away who stands in for them.
func groupOf(w *world, name string) []string {
	in := slices.Clone(groupMembers(w, name))
	for i, member := range in {
		if s, away, err := Read(w.a).StandInFor(member, name); err != nil {
			w.tb.Fatal(err)
		} else if away {
			in[i] = s.By
		}
	}
	return in
}

// speakersFor returns persons, and who stands in for any of them, for one who does, and so on.
func speakersFor(w *world, persons []string) []string {
	groups, err := Read(w.a).Groups()
	if err != nil {
		w.tb.Fatal(err)
	}
	for i := 0; i < len(persons); i++ {
		for _, g := range groups {
			s, away, err := Read(w.a).StandInFor(persons[i], g.Name)
			if err != nil {
				w.tb.Fatal(err)
			}
			if away && !slices.Contains(persons, s.By) {
				persons = append(persons, s.By)
			}
		}
	}
	return persons
}

func groupMembers(w *world, name string) []string {
	groups, err := Read(w.a).Groups()
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, g := range groups {
		if g.Name == name {
			return g.Members
		}
	}
	return nil
}

// mayVote says whether the actor's decision on r could count: invariant 5.
func mayVote(w *world, r Request, actor string, v Verdict) bool {
	persons := personsOf(w, actor, false)
	if len(persons) != 1 {
		return false
	}
	who := persons[0]
	excluded := []string{r.RequesterPerson}
	for _, id := range []string{r.Requester, r.Subject, r.CSRBy} {
		excluded = append(excluded, personsOf(w, id, false)...)
	}
	excluded = append(excluded, personsOf(w, r.Subject, true)...)
	excluded = append(excluded, personsOf(w, r.Requester, true)...)
	if slices.Contains(speakersFor(w, excluded), who) || isBlocked(w, actor) || (v == Approve && isBlocked(w, r.Subject)) {
		return false
	}
	return slices.ContainsFunc(r.Current().Requirements, func(q Requirement) bool {
		return slices.Contains(groupOf(w, q.Group), who)
	})
}

func isBlocked(w *world, id string) bool {
	blocks, err := Read(w.a).Blocks()
	if err != nil {
		w.tb.Fatal(err)
	}
	return slices.ContainsFunc(blocks, func(b Block) bool { return b.Subject == id })
}

// satisfied says whether r has what it needs, by trying every seating.
func satisfied(w *world, r Request) bool {
	var free []string
	for _, q := range r.Current().Requirements {
		for range q.Approvals {
			free = append(free, q.Group)
		}
	}
	if len(free) == 0 {
		return r.Current().Auto
	}
	var groups []map[string]bool
	for _, d := range r.Decisions {
		if d.Verdict != Approve || !slices.Contains(personsOf(w, d.Actor, false), d.Person) || !stillApart(w, r, d.Person) {
			continue
		}
		in := map[string]bool{}
		for _, q := range r.Current().Requirements {
			in[q.Group] = slices.Contains(groupOf(w, q.Group), d.Person)
		}
		groups = append(groups, in)
	}
	return mostSeats(free, groups, 0) == len(free)
}

// stillApart says whether a person has no part in r.
func stillApart(w *world, r Request, person string) bool {
	var excluded []string
	for _, id := range []string{r.Requester, r.Subject} {
		excluded = append(excluded, personsOf(w, id, false)...)
		excluded = append(excluded, personsOf(w, id, true)...)
	}
	return !slices.Contains(speakersFor(w, append(excluded, r.RequesterPerson)), person)
}

// mayVoteChange says whether the actor's decision on c could count: invariant 6.
func mayVoteChange(w *world, c Change, actor string) bool {
	persons := personsOf(w, actor, false)
	if len(persons) != 1 || !slices.Contains(groupOf(w, AdminGroup), persons[0]) {
		return false
	}
	return persons[0] != c.AuthorPerson && !slices.Contains(personsOf(w, c.Author, false), persons[0])
}
