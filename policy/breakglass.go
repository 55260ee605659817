package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Limits of breaking the glass.
const (
	// MinReviewWithin and MaxReviewWithin bound review_within.
	MinReviewWithin = time.Hour
	MaxReviewWithin = 30 * 24 * time.Hour
	// DefaultMaxOpen is max_open where it is not said, and MaxMaxOpen bounds it.
	DefaultMaxOpen = 3
	MaxMaxOpen     = 20
)

// breakGlass is what a rule says of those who may do without its approvals: who
// they are, for how long, and who looks at it afterwards.
type breakGlass struct {
	groups       []string // any of them may
	maxDuration  time.Duration
	reviewers    []string // each of these groups closes the review
	reviewWithin time.Duration
	maxOpen      int
	reason       *reasonRule
}

// BrokenGlass is what comes of a request that does without the approvals that the
// policy requires.
type BrokenGlass struct {
	// Review names the groups that must each close the review, with one finding of
	// a person: sorted, each once, never none.
	Review []Requirement
	// ReviewWithin is for how long the review may be open before whoever broke the
	// glass may not do so again.
	ReviewWithin time.Duration
	// MaxOpen is how many reviews of theirs may be open, this one among them.
	MaxOpen int
}

// unbroken says why the glass may not be broken for a request that the applying
// rules cover, or "". Every rule that demands approval must say that it may be:
// one that does not would be got around by way of another.
func unbroken(applying []rule, r Request) string {
	waived := false
	for _, q := range applying {
		if q.auto {
			continue
		}
		waived = true
		b := q.breakGlass
		switch {
		case b == nil:
			return fmt.Sprintf("rule %q lets nobody break the glass; ask for approval, or for what it is not about", q.name)
		case !slices.ContainsFunc(r.Groups, func(g string) bool { return slices.Contains(b.groups, g) }):
			return fmt.Sprintf("rule %q lets only these groups break the glass: %s", q.name, list(b.groups))
		case r.Duration > b.maxDuration:
			return fmt.Sprintf("%s is longer than the %s for which rule %q lets the glass be broken; ask for at most %s",
				span(r.Duration), span(b.maxDuration), q.name, span(b.maxDuration))
		case b.reason != nil && !b.reason.pattern.MatchString(r.Reason):
			return fmt.Sprintf("rule %q wants a reason that matches %q when the glass is broken, such as %q", q.name, b.reason.pattern, b.reason.example)
		}
	}
	switch {
	case !waived:
		return "nothing of it needs an approval: ask without breaking the glass"
	case r.Subject != r.Requester:
		return "the glass is broken for oneself alone; ask for yourself"
	}
	return ""
}

// broken is what the rules, of which each lets the glass be broken, make of it
// together: all of their reviewers, and the shortest of their times.
func broken(applying []rule, out Outcome) Outcome {
	groups := map[string]bool{}
	b := &BrokenGlass{ReviewWithin: MaxReviewWithin, MaxOpen: MaxMaxOpen}
	for _, q := range applying {
		if q.breakGlass == nil {
			continue // it asks nobody as it is
		}
		for _, g := range q.breakGlass.reviewers {
			groups[g] = true
		}
		b.ReviewWithin = min(b.ReviewWithin, q.breakGlass.reviewWithin)
		b.MaxOpen = min(b.MaxOpen, q.breakGlass.maxOpen)
		out.MaxDuration = min(out.MaxDuration, q.breakGlass.maxDuration)
	}
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		b.Review = append(b.Review, Requirement{Group: g, Approvals: 1})
	}
	out.BreakGlass = b
	out.CertificateTTL = min(out.CertificateTTL, out.MaxDuration)
	out.Allowed = out.Allowed && len(b.Review) > 0
	return out
}

// breakGlass reads {groups: […], max_duration: …, review: […], review_within: …}.
func (r *reader) breakGlass(n *yaml.Node, f map[string]*yaml.Node, most time.Duration) *breakGlass {
	if f["require"] == nil {
		r.fail(n, "break_glass in a rule that requires no approval: there is nothing to do without; leave it out")
		return nil
	}
	g := r.fields(n, "break_glass", "groups", "max_duration", "review", "review_within", "max_open", "reason")
	if g == nil {
		return nil
	}
	b := &breakGlass{reviewWithin: MaxReviewWithin, maxOpen: DefaultMaxOpen}
	if v := r.must(n, g, "groups"); v != nil {
		b.groups = r.groupNames(v, "groups", "[on-call]")
	}
	if v := r.must(n, g, "max_duration"); v != nil && most > 0 {
		b.maxDuration = r.duration(v, fmt.Sprintf("max_duration of break_glass (the rule's is %s)", span(most)), MinDuration, most)
	}
	if v := r.must(n, g, "review"); v != nil {
		b.reviewers = r.groupNames(v, "review", "[security]")
	}
	if v := r.must(n, g, "review_within"); v != nil {
		b.reviewWithin = r.duration(v, "review_within", MinReviewWithin, MaxReviewWithin)
	}
	if v := g["max_open"]; v != nil {
		b.maxOpen = r.integer(v, "max_open", MaxMaxOpen)
	}
	if v := g["reason"]; v != nil {
		b.reason = r.reason(v, false)
	}
	return b
}

func (r *reader) groupNames(n *yaml.Node, what, example string) []string {
	var out []string
	for _, item := range r.items(n, what, example) {
		name := r.group(item)
		if slices.Contains(out, name) && name != "" {
			r.fail(item, "%s: group %s twice: keep one", what, name)
		}
		out = append(out, name)
	}
	return out
}

// Reviews returns every rule that lets the glass be broken, in the policy's order,
// as the demand that its review makes: who may break it, and who must close it.
func (p *Policy) Reviews() []Demand {
	if p == nil {
		return nil
	}
	var all []Demand
	for _, q := range p.rules {
		if q.breakGlass == nil {
			continue
		}
		d := Demand{Rule: q.name, Line: q.line, Groups: slices.Clone(q.breakGlass.groups)}
		for _, g := range q.breakGlass.reviewers {
			d.Require = append(d.Require, Requirement{Group: g, Approvals: 1})
		}
		all = append(all, d)
	}
	return all
}

// groups are those that close the review.
func (b *BrokenGlass) groups() []string {
	var groups []string
	if b != nil {
		for _, q := range b.Review {
			groups = append(groups, q.Group)
		}
	}
	return groups
}

// words says in words what comes of it.
func (b *BrokenGlass) words() string {
	return "granted at once by breaking the glass, to be reviewed by " + strings.Join(b.groups(), " and ")
}

// yes reads what is true where it is said at all.
func (r *reader) yes(n *yaml.Node, what, otherwise string) bool {
	if n.Tag == "!!bool" && n.Value == "true" {
		return true
	}
	r.fail(n, "%s is %s: write %s: true, %s", what, kindOf(n), what, otherwise)
	return false
}
