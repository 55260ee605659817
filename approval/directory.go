package approval

import (
	"slices"
	"strings"

	"github.com/hallpass/hallpass/policy"
)

// setPerson writes a person as a whole, with the indexes by ID and by what the
// person owns.
func (t *turn) setPerson(p Person) error {
	if err := t.checkPerson(p); err != nil {
		return err
	}
	if old, ok, err := load[Person](t, key(prefixPerson, p.Name)); err != nil {
		return err
	} else if ok {
		t.dropPersonIndexes(old)
	}
	for _, id := range p.IDs {
		t.Put(key(prefixPersonID, id), []byte(p.Name))
	}
	for _, id := range p.Owns {
		t.mark(pairKey(prefixOwner, id, p.Name))
	}
	if p.Slack != "" {
		t.Put(key(prefixSlack, p.Slack), []byte(p.Name))
	}
	t.save(key(prefixPerson, p.Name), p)
	return nil
}

func (t *turn) dropPersonIndexes(p Person) {
	for _, id := range p.IDs {
		t.unmark(key(prefixPersonID, id))
	}
	for _, id := range p.Owns {
		t.unmark(pairKey(prefixOwner, id, p.Name))
	}
	if p.Slack != "" {
		t.unmark(key(prefixSlack, p.Slack))
	}
}

func (t *turn) checkPerson(p Person) error {
	if err := checkName("person", p.Name); err != nil {
		return err
	}
	if len(p.IDs) == 0 || len(p.IDs) > MaxIDs || len(p.Owns) > MaxOwned {
		return invalid("person %q needs 1 to %d SPIFFE IDs and owns at most %d", p.Name, MaxIDs, MaxOwned)
	}
	for _, text := range p.IDs {
		if err := t.checkSubject("the SPIFFE ID", text); err != nil {
			return err
		}
		if t.issuable(text) {
			// One admin alone issues these: he would vote as that person.
			return invalid("%s cannot be a person's: an admin issues service and node identities alone", text)
		}
		if holder := t.Get(key(prefixPersonID, text)); holder != nil && string(holder) != p.Name {
			return conflict("%s is the SPIFFE ID of person %q already", text, holder).
				then("take it from the one person before giving it to the other")
		}
	}
	for _, text := range p.Owns {
		if err := t.checkSubject("the owned subject", text); err != nil {
			return err
		}
		if slices.Contains(p.IDs, text) {
			return invalid("person %q both is and owns %s", p.Name, text)
		}
	}
	if err := t.checkSlack(p); err != nil {
		return err
	}
	return checkDistinct("person "+p.Name, slices.Concat(p.IDs, p.Owns))
}

// checkSubject refuses what cannot ask for, hold or approve anything.
func (t *turn) checkSubject(what, text string) error {
	id, err := parseID(what, text)
	if err != nil {
		return err
	}
	if id.TrustDomain().Name() == t.m.GrantTrustDomain {
		return invalid("%s %s is a grant, and a grant is not an identity", what, text)
	}
	return nil
}

// issuable says whether one admin alone may have an identity issued.
func (t *turn) issuable(id string) bool {
	own := "spiffe://" + t.m.TrustDomain
	return strings.HasPrefix(id, own+"/service/") || strings.HasPrefix(id, own+"/node/")
}

func checkDistinct(what string, names []string) error {
	sorted := slices.Sorted(slices.Values(names))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return invalid("%s names %q twice", what, sorted[i])
		}
	}
	return nil
}

// setGroup writes a group as a whole, with the index by member.
func (t *turn) setGroup(g Group) error {
	if err := checkName("group", g.Name); err != nil {
		return err
	}
	if len(g.Members) > MaxMembers {
		return invalid("group %q has %d members, at most %d", g.Name, len(g.Members), MaxMembers)
	}
	for _, name := range g.Members {
		if !t.has(key(prefixPerson, name)) {
			return invalid("group %q: there is no person %q", g.Name, name).then("propose the person first")
		}
	}
	if err := checkDistinct("group "+g.Name, g.Members); err != nil {
		return err
	}
	if err := checkOnCall(g); err != nil {
		return err
	}
	if err := t.checkSubstitutes(g); err != nil {
		return err
	}
	old, was, err := t.counted(g.Name)
	if err != nil {
		return err
	}
	return t.saveGroup(old.OnCall, was, g)
}

// saveGroup writes a group, with who counts in it now.
func (t *turn) saveGroup(old *OnCall, was []string, g Group) error {
	t.save(key(prefixGroup, g.Name), g)
	if err := t.renewDuty(old, g); err != nil {
		return err
	}
	if err := t.staleStandIns(g); err != nil {
		return err
	}
	return t.recount(was, g)
}

// deletePerson takes a person out of all groups and away.
func (t *turn) deletePerson(name string) error {
	p, err := find[Person](t, key(prefixPerson, name), "person", name)
	if err != nil {
		return err
	}
	groups, err := t.state().Groups()
	if err != nil {
		return err
	}
	for _, g := range groups {
		i, j := slices.Index(g.Members, name), slices.Index(g.Substitutes, name)
		if i < 0 && j < 0 {
			continue
		}
		was, err := t.state().Counting(g)
		if err != nil {
			return err
		}
		if g.OnCall != nil && slices.Contains(g.OnCall.Order, name) {
			// Another's turn would come sooner than anyone has agreed to.
			return conflict("%q takes turns in the rota of group %q", name, g.Name).then("change the rota first; to lock the person out at once, block their identities: hallpass subject block")
		}
		if i >= 0 {
			g.Members = slices.Delete(slices.Clone(g.Members), i, i+1)
		} else {
			g.Substitutes = slices.Delete(slices.Clone(g.Substitutes), j, j+1)
		}
		if err := t.saveGroup(g.OnCall, was, g); err != nil {
			return err
		}
	}
	t.dropPersonIndexes(p)
	t.Delete(key(prefixPerson, name))
	return nil
}

// deleteGroup takes a group away that nothing needs.
func (t *turn) deleteGroup(name string) error {
	g, err := find[Group](t, key(prefixGroup, name), "group", name)
	if err != nil {
		return err
	}
	p, err := t.state().Rules()
	if err != nil {
		return err
	}
	if slices.Contains(p.Groups(), name) {
		return conflict("the policy names group %q", name).then("change the policy first")
	}
	was, err := t.state().Counting(g)
	if err != nil {
		return err
	}
	for _, person := range was {
		t.unmark(pairKey(prefixMember, person, name))
	}
	t.Delete(key(prefixGroup, name))
	if err := t.staleStandIns(Group{Name: name}); err != nil {
		return err
	}
	return t.dropDuty(name)
}

// checkAdmins refuses a directory in which no change could be approved any more.
func (t *turn) checkAdmins() error {
	g, ok, err := load[Group](t, key(prefixGroup, AdminGroup))
	if err != nil {
		return err
	}
	if !ok || len(g.Members) < MinAdmins {
		return invalid("group %q would have %d members: with fewer than %d no change can be approved by two besides its author", AdminGroup, len(g.Members), MinAdmins)
	}
	return nil
}

// checkPolicy refuses a policy with mistakes, or naming a group there is not.
func (t *turn) checkPolicy(yaml string) error {
	p, err := policy.Parse([]byte(yaml))
	if err != nil {
		return invalid("%v", err)
	}
	if p.Version() > 1 && t.m.version() < 3 {
		// A member that does not know this form would deny everything by it.
		return invalid("the cluster does not read version %d of policies", p.Version()).
			then("upgrade all nodes first, or write version: 1")
	}
	if p.Version() > 2 && t.m.version() < 4 {
		return invalid("the cluster does not read version %d of policies", p.Version()).
			then("upgrade all nodes first, or write version: 2")
	}
	if err := t.checkBridge(p.Slack()); err != nil {
		return err
	}
	for _, name := range p.Groups() {
		if !t.has(key(prefixGroup, name)) {
			return invalid("the policy names group %q, which does not exist", name).then("propose the group first")
		}
	}
	return nil
}
