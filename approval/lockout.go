package approval

import (
	"slices"

	"github.com/hallpass/hallpass/policy"
)

// checkLockout refuses a policy under which nobody can get anything, or some rule
// is for nobody: those that must approve are too few, once whoever asks is not
// counted among them. What such a rule would be good for is that a requester
// approves, and that no requester ever does.
func (t *turn) checkLockout(yaml string) error {
	if t.m.version() < 3 {
		return nil
	}
	p, err := policy.Parse([]byte(yaml))
	if err != nil {
		return invalid("%v", err)
	}
	if p.DeniesAll() {
		return invalid("every rule denies, so that the policy locks everyone out").then("write rules: [] if nobody is to get anything")
	}
	people := map[string]crew{}
	for _, d := range p.Demands() {
		if !t.canBeMet(d, people) {
			return invalid("line %d: rule %q can never be met: there are too few who could approve (%s) without whoever asks, and a requester never approves",
				d.Line, d.Rule, describe(asRequirements(d.Require))).then("ask for fewer approvals, or add persons to the groups first")
		}
	}
	for _, d := range p.Escalations() {
		if !t.canBeMet(d, people) {
			return invalid("line %d: rule %q escalates to who can never approve: there are too few (%s) without whoever asks",
				d.Line, d.Rule, describe(asRequirements(d.Require))).then("name another group under to, or add persons to it first")
		}
	}
	for _, d := range p.Reviews() {
		if !t.canBeMet(d, people) {
			return invalid("line %d: rule %q lets the glass be broken, and nobody could review it: there are too few in %s without whoever broke it",
				d.Line, d.Rule, describe(asRequirements(d.Require))).then("name another group under review, or add persons to it first")
		}
	}
	return nil
}

func asRequirements(all []policy.Requirement) []Requirement {
	out := make([]Requirement, 0, len(all))
	for _, q := range all {
		out = append(out, Requirement(q))
	}
	return out
}

// crew are those of a group who count in it at some time, and how many of them do together.
type crew struct {
	names  []string
	atOnce int
}

// crew reads the one of a group, once. There is none of a group that there is not.
func (t *turn) crew(group string, people map[string]crew) crew {
	c, read := people[group]
	if read {
		return c
	}
	if g, err := find[Group](t, key(prefixGroup, group), "group", group); err == nil {
		c = crew{g.Members, len(g.Members)}
		if g.OnCall.rota() {
			c = crew{g.OnCall.Order, g.OnCall.AtOnce}
		}
	}
	people[group] = c
	return c
}

// canBeMet says whether there is somebody who may ask by a rule and whom those
// who must approve can serve. Members of groups are read once, into people.
func (t *turn) canBeMet(d policy.Demand, people map[string]crew) bool {
	members := func(group string) []string { return t.crew(group, people).names }
	voters, groups := []string{}, []map[string]bool{}
	for _, q := range d.Require {
		if q.Approvals > t.crew(q.Group, people).atOnce {
			return false // so many are never on call together
		}
		for _, name := range members(q.Group) {
			i := slices.Index(voters, name)
			if i < 0 {
				i = len(voters)
				voters, groups = append(voters, name), append(groups, map[string]bool{})
			}
			groups[i][q.Group] = true
		}
	}
	// met seats everyone but some, and says who sits.
	met := func(without ...string) (sitting []string, ok bool) {
		all, may := seats(asRequirements(d.Require)), slices.Clone(groups)
		for i, name := range voters {
			if slices.Contains(without, name) {
				may[i] = nil
			}
		}
		filled := match(all, may)
		for _, s := range all {
			if s.person >= 0 {
				sitting = append(sitting, voters[s.person])
			}
		}
		return sitting, filled == len(all)
	}
	sitting, ok := met()
	if !ok {
		return false
	}
	if d.Anyone {
		return true
	}
	for _, id := range d.IDs {
		without := append(t.state().Owners(id), t.state().personOf(id))
		if _, ok := met(without...); ok {
			return true
		}
	}
	for _, group := range d.Groups {
		if len(members(group)) == 0 {
			return true // it is for whoever comes to be in it
		}
		for _, name := range members(group) {
			// Whoever has no seat leaves all of them filled, so that only those few
			// who sit are tried.
			if !slices.Contains(sitting, name) {
				return true
			}
			if _, ok := met(name); ok {
				return true
			}
		}
	}
	return false
}
