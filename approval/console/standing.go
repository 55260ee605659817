package console

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hallpass/hallpass/approval/api"
)

// people says who is behind which SPIFFE ID, as the directory has it now.
type people struct {
	all   []api.Person
	byID  map[string]string
	owned map[string][]string // what owners has found: a page asks for the same ones row by row
}

func newPeople(p api.Persons) people {
	out := people{all: p.Persons, byID: make(map[string]string), owned: make(map[string][]string)}
	for _, one := range p.Persons {
		for _, id := range one.IDs {
			out.byID[id] = one.Name
		}
	}
	return out
}

// owners are the persons who answer for a SPIFFE ID.
func (p people) owners(id string) []string {
	if names, found := p.owned[id]; found {
		return names
	}
	var names []string
	for _, one := range p.all {
		if slices.ContainsFunc(one.Owns, func(pattern string) bool { return covers(pattern, id) }) {
			names = append(names, one.Name)
		}
	}
	p.owned[id] = names
	return names
}

// covers reports whether a pattern, ending in /* for one segment or /** for one
// or more, or an ID, is about id.
func covers(pattern, id string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "**"); ok {
		rest, found := strings.CutPrefix(id, prefix)
		return found && rest != ""
	}
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		rest, found := strings.CutPrefix(id, prefix)
		return found && rest != "" && !strings.Contains(rest, "/")
	}
	return pattern == id
}

// stakes says who has a part in a request, and which: their vote never counts.
func (p people) stakes(r api.Request) map[string]string {
	out := make(map[string]string)
	add := func(part string, names ...string) {
		for _, name := range names {
			if name != "" && out[name] == "" {
				out[name] = part
			}
		}
	}
	add("asked for it", r.RequesterPerson, p.byID[r.Requester])
	add("would get the access", p.byID[r.Subject])
	add("answer for who would get the access", p.owners(r.Subject)...)
	add("answer for who asked", p.owners(r.Requester)...)
	p.standIns(out)
	return out
}

// standIns adds who stands in for somebody with a part in it: they have that part, too.
func (p people) standIns(parts map[string]string) {
	for more := true; more; {
		more = false
		for _, one := range p.all {
			for _, in := range one.Away {
				if parts[one.Name] != "" && parts[in.By] == "" {
					parts[in.By], more = "stand in for "+one.Name+", who has a part in it", true
				}
			}
		}
	}
}

// away says who decides in one's place; "" where nobody does.
func (p people) away(person string, require []api.Requirement) string {
	for _, one := range p.all {
		for _, in := range one.Away {
			if one.Name == person && inAny([]string{in.Group}, require) {
				return in.By + " stands in for you in " + in.Group + " until " + in.Until.UTC().Format("2006-01-02 15:04") +
					" UTC. To decide yourself, end that first: hallpass group stand-in end " + in.Group
			}
		}
	}
	return ""
}

// standing says whether one may decide on a request, as far as can be told from
// outside; the cluster decides.
type standing struct {
	May     bool
	MayDeny bool   // also when one has approved
	Mine    bool   // one asked for it, or would get it
	Why     string // one may not
}

func (p people) standing(me api.WhoAmI, r api.Request) standing {
	stakes := p.stakes(r)
	s := standing{Mine: r.Requester == me.ID || r.Subject == me.ID ||
		me.Person != "" && (stakes[me.Person] == "asked for it" || stakes[me.Person] == "would get the access")}
	switch part := stakes[me.Person]; {
	case r.State != api.RequestPending:
		s.Why = "It is " + r.State + ": there is nothing left to decide."
	case me.Person == "":
		s.Why = "Your identity belongs to no person, and only persons decide."
	case part != "":
		s.Why = "You " + part + ". Who has a part in a request never decides on it."
	case !inAny(me.Groups, r.Deciders()) && r.Escalation != nil && r.Escalation.At != nil && inAny(me.Groups, r.Escalation.Require):
		s.Why = "You may decide on it from " + r.Escalation.At.UTC().Format("15:04:05") + " UTC on, if nobody has by then. Until then it is for " + groupNames(r.Require) + "."
	case !inAny(me.Groups, r.Deciders()) && p.away(me.Person, r.Deciders()) != "":
		s.Why = p.away(me.Person, r.Deciders())
	case !inAny(me.Groups, r.Deciders()):
		s.Why = "You are in none of the groups that must approve: " + groupNames(r.Deciders()) + "."
	case approvedBy(r, me.Person) != nil && !r.Enough():
		s.MayDeny, s.Why = true, "You have approved it already. It waits for others."
	default:
		s.May, s.MayDeny = true, true
	}
	return s
}

func inAny(groups []string, require []api.Requirement) bool {
	return slices.ContainsFunc(require, func(q api.Requirement) bool { return slices.Contains(groups, q.Group) })
}

func groupNames(require []api.Requirement) string {
	names := make([]string, 0, len(require))
	for _, q := range require {
		names = append(names, q.Group)
	}
	return strings.Join(names, ", ")
}

// approvedBy is the person's approval that still counts, nil for none.
func approvedBy(r api.Request, person string) *api.Decision {
	for i, d := range r.Decisions {
		if d.Person == person && d.Decision == "approve" && !d.Void {
			return &r.Decisions[i]
		}
	}
	return nil
}

// maxNamed is how many persons are named of a group.
const maxNamed = 8

// need is what a group still has to do.
type need struct {
	Group                     string
	Given, Approvals, Missing int
	Could                     string // who could do it
}

// instead says what may be given in place of it; nil for nothing.
func (p people) instead(r api.Request) []need {
	if r.Escalation == nil {
		return nil
	}
	return p.needs(r, r.Escalation.Require)
}

// needs says what is still missing of a request, and who could give it.
func (p people) needs(r api.Request, require []api.Requirement) []need {
	stakes := p.stakes(r)
	out := make([]need, 0, len(require))
	for _, q := range require {
		n := need{Group: q.Group, Given: q.Given, Approvals: q.Approvals, Missing: max(q.Approvals-q.Given, 0)}
		var names []string
		for _, one := range p.all {
			if slices.Contains(one.Groups, q.Group) && stakes[one.Name] == "" && approvedBy(r, one.Name) == nil {
				names = append(names, one.Name)
			}
		}
		slices.Sort(names)
		n.Could = "nobody who could is left: ask an admin to see to the group"
		if more := len(names) - maxNamed; more > 0 {
			n.Could = fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), more)
		} else if len(names) > 0 {
			n.Could = strings.Join(names, ", ")
		}
		out = append(out, n)
	}
	return out
}
