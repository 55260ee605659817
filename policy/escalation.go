package policy

import (
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Limits of escalate.
const (
	// MinEscalate and MaxEscalate bound after: a request that nobody decides lapses
	// after a day, and others need time to decide, too.
	MinEscalate = time.Minute
	MaxEscalate = 12 * time.Hour
)

// Escalation is who may approve in place of those that are required, once the request
// has waited for so long.
type Escalation struct {
	// After is how long a request waits, from when it was asked for.
	After time.Duration
	// Require is what must be met then, all of it, or Outcome.Require: sorted by group,
	// each group once, never none.
	Require []Requirement
}

type escalate struct {
	after time.Duration
	to    []Requirement
}

// escalated is what the applying rules say together of a request that waits: the
// longest time of any, and of each the groups that it escalates to, or, where it does
// not, those that it requires. So no rule's approvals are got around by way of another's
// escalation.
func escalated(applying []rule, required []Requirement) *Escalation {
	e := &Escalation{}
	need := make(map[string]int)
	for _, q := range applying {
		to := q.require
		if q.escalate != nil {
			to, e.After = q.escalate.to, max(e.After, q.escalate.after)
		}
		for _, require := range to {
			need[require.Group] = max(need[require.Group], require.Approvals)
		}
	}
	for _, group := range slices.Sorted(maps.Keys(need)) {
		e.Require = append(e.Require, Requirement{Group: group, Approvals: need[group]})
	}
	more := func(q Requirement) bool { return need[q.Group] < q.Approvals }
	if e.After == 0 || !slices.ContainsFunc(required, more) {
		return nil // who could meet it could meet what is required: nobody would be helped
	}
	return e
}

// escalate reads {after: …, to: […]}.
func (r *reader) escalate(n *yaml.Node, f map[string]*yaml.Node, required []Requirement) *escalate {
	if f["require"] == nil {
		r.fail(n, "escalate where no approval is required: there is nobody to wait for; leave it out")
		return nil
	}
	g := r.fields(n, "escalate", "after", "to")
	if g == nil {
		return nil
	}
	e := &escalate{}
	if v := r.must(n, g, "after"); v != nil {
		e.after = r.duration(v, "after", MinEscalate, MaxEscalate)
	}
	if v := r.must(n, g, "to"); v != nil {
		e.to = r.requirementsOf(v, "to", "[{group: leads, approvals: 1}]")
		if len(e.to) > 0 && slices.Equal(sorted(e.to), sorted(required)) {
			r.fail(v, "to says what require says: name others, or leave escalate out")
		}
	}
	return e
}

// Escalations returns every rule that escalates, in the policy's order, as the demand
// that it makes then.
func (p *Policy) Escalations() []Demand {
	if p == nil {
		return nil
	}
	var all []Demand
	for _, q := range p.rules {
		if q.escalate != nil {
			all = append(all, q.demand(q.escalate.to))
		}
	}
	return all
}

// like reports whether an outcome's escalation is the one that a test expects.
func (e *Escalation) like(out *Escalation) bool {
	return out != nil && e.After == out.After && slices.Equal(e.Require, out.Require)
}

// sorted are requirements by group.
func sorted(all []Requirement) []Requirement {
	return slices.SortedFunc(slices.Values(all), func(a, b Requirement) int { return strings.Compare(a.Group, b.Group) })
}

// words says in words what comes of it, after what is required; "" for nothing.
func (e *Escalation) words() string {
	if e == nil {
		return ""
	}
	return ", after " + span(e.After) + " instead by " + approvers(e.Require)
}
