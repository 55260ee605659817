package ca

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// DefaultPolicy is the first policy when none is given: it allows nothing.
const DefaultPolicy = "version: 1\nrules: []\n"

// Seed is what a new cluster knows besides its admins.
type Seed struct {
	Persons []Person // an admin may be among them, to have more IDs or to own some
	Groups  []Group  // all but AdminGroup, which InitOptions.Admins fills
	Policy  string   // YAML; empty means DefaultPolicy
}

// seed is the whole of a cluster's first persons, groups and policy, as the
// offline folder keeps it and a manifest carries it.
type seed struct {
	Persons []Person `json:"persons"`
	Groups  []Group  `json:"groups"`
	Policy  string   `json:"policy"`
}

// newSeed adds the admins to what was given.
func newSeed(td, grants spiffeid.TrustDomain, admins []string, given *Seed) (seed, error) {
	if len(admins) < MinAdmins {
		return seed{}, fmt.Errorf("%w: %d admins; every change needs its author and two others, so name at least %d", ErrInvalid, len(admins), MinAdmins)
	}
	if given == nil {
		given = &Seed{}
	}
	s := seed{Policy: given.Policy}
	if s.Policy == "" {
		s.Policy = DefaultPolicy
	}
	for _, p := range given.Persons {
		p.IDs, p.Owns = slices.Clone(p.IDs), slices.Clone(p.Owns)
		s.Persons = append(s.Persons, p)
	}
	for _, name := range admins {
		if !validName(name) {
			return seed{}, fmt.Errorf("%w: admin %q is not a name of a-z, 0-9, \".\", \"-\" and \"_\"", ErrInvalid, name)
		}
		i := slices.IndexFunc(s.Persons, func(p Person) bool { return p.Name == name })
		if i < 0 {
			i = len(s.Persons)
			s.Persons = append(s.Persons, Person{Name: name})
		}
		if id := personID(td, name).String(); !slices.Contains(s.Persons[i].IDs, id) {
			s.Persons[i].IDs = append(s.Persons[i].IDs, id)
		}
	}
	if slices.ContainsFunc(given.Groups, func(g Group) bool { return g.Name == AdminGroup }) {
		return seed{}, fmt.Errorf("%w: the group %q is made from the admins", ErrInvalid, AdminGroup)
	}
	s.Groups = append([]Group{{Name: AdminGroup, Members: slices.Clone(admins)}}, given.Groups...)
	if err := s.check(td, grants); err != nil {
		return seed{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return s, nil
}

// personID is the SPIFFE ID that `ca init` gives an admin.
func personID(td spiffeid.TrustDomain, name string) spiffeid.ID {
	return spiffeid.RequireFromSegments(td, "user", name)
}

// check refuses what a cluster would refuse at its start: above all what would
// make one person two, or two one.
func (s seed) check(td, grants spiffeid.TrustDomain) error {
	persons := make(map[string]bool)
	holder := make(map[string]string) // SPIFFE ID → where a person is said to be it
	for i, p := range s.Persons {
		at := fmt.Sprintf("persons[%d]", i)
		if !validName(p.Name) || persons[p.Name] {
			return fmt.Errorf("%s.name: %q is no name, or there twice", at, p.Name)
		}
		persons[p.Name] = true
		if err := p.check(td, grants); err != nil {
			return fmt.Errorf("%s.%w", at, err)
		}
		for j, id := range p.IDs {
			where := fmt.Sprintf("%s.ids[%d]", at, j)
			if first, dup := holder[id]; dup {
				// An ID under two persons would be counted as two votes.
				return fmt.Errorf("%s: %s is named before, in %s", where, id, first)
			}
			holder[id] = where
		}
	}
	return s.checkGroups(td, persons, holder)
}

func (p Person) check(td, grants spiffeid.TrustDomain) error {
	if len(p.IDs) == 0 {
		return errors.New("ids: empty")
	}
	for _, list := range []struct {
		field string
		ids   []string
	}{{"ids", p.IDs}, {"owns", p.Owns}} {
		for i, text := range list.ids {
			id, err := spiffeid.FromString(text)
			switch {
			case err != nil || id.Path() == "":
				return fmt.Errorf("%s[%d]: %q is not a SPIFFE ID", list.field, i, text)
			case id.MemberOf(grants):
				return fmt.Errorf("%s[%d]: %s is of the grants domain, and a grant is not an identity", list.field, i, text)
			case slices.Contains(list.ids[:i], text) || list.field == "owns" && slices.Contains(p.IDs, text):
				return fmt.Errorf("%s[%d]: %s is named before", list.field, i, text)
			case list.field == "ids" && issuable(td, id):
				// One admin alone has these issued: he would vote as that person.
				return fmt.Errorf("%s[%d]: %s cannot be a person's, it is a service's or a node's", list.field, i, text)
			}
		}
	}
	return nil
}

// issuable says whether one admin alone may have an identity issued.
func issuable(td spiffeid.TrustDomain, id spiffeid.ID) bool {
	return id.MemberOf(td) && (strings.HasPrefix(id.Path(), "/service/") || strings.HasPrefix(id.Path(), "/node/"))
}

func (s seed) checkGroups(td spiffeid.TrustDomain, persons map[string]bool, holder map[string]string) error {
	groups := make(map[string]int)
	for i, g := range s.Groups {
		at := fmt.Sprintf("groups[%d]", i)
		if _, dup := groups[g.Name]; dup || !validName(g.Name) {
			return fmt.Errorf("%s.name: %q is no name, or there twice", at, g.Name)
		}
		groups[g.Name] = len(g.Members)
		for j, name := range g.Members {
			if !persons[name] || slices.Contains(g.Members[:j], name) {
				return fmt.Errorf("%s.members[%d]: %q is no person, or there twice", at, j, name)
			}
			if g.Name != AdminGroup {
				continue
			}
			if _, ok := holder[personID(td, name).String()]; !ok {
				return fmt.Errorf("%s.members[%d]: nobody has the identity %s", at, j, personID(td, name))
			}
		}
	}
	if n := groups[AdminGroup]; n < MinAdmins {
		return fmt.Errorf("groups: %q has %d members, at least %d are needed", AdminGroup, n, MinAdmins)
	}
	if s.Policy == "" || !utf8.ValidString(s.Policy) {
		return errors.New("policy: empty, or not UTF-8")
	}
	return nil
}
