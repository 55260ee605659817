package policy

import (
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"
)

// MaxChildren is how many grants at a time a rule may let be made of one.
const MaxChildren = 10

// Delegation is what the subject of a grant may do with it for others, without a new
// approval.
type Delegation struct {
	// To are SPIFFE IDs and patterns of them, as in subjects.
	To []string
	// Most is how many such grants there may be at a time.
	Most int
	// MaxDuration is the longest that one of them may live.
	MaxDuration time.Duration
}

type delegate struct {
	to          []pattern
	most        int
	maxDuration time.Duration
}

// undelegated says why a grant may not be made to be delegated, or "", and what may
// be done with it: what all the rules allow.
func undelegated(applying []rule, r Request) (*Delegation, string) {
	if r.BreakGlass || r.Total != 0 {
		return nil, "neither a broken glass nor an extension is delegable; ask for a grant as usual"
	}
	var d *Delegation
	for _, q := range applying {
		if q.delegate == nil {
			return nil, fmt.Sprintf("rule %q lets nothing be delegated; ask without", q.name)
		}
		to := texts(q.delegate.to)
		if d == nil {
			d = &Delegation{To: to, Most: q.delegate.most, MaxDuration: q.delegate.maxDuration}
			continue
		}
		// Only what is written alike in all: two patterns are not intersected otherwise.
		d.To = slices.DeleteFunc(slices.Clone(d.To), func(text string) bool { return !slices.Contains(to, text) })
		d.Most, d.MaxDuration = min(d.Most, q.delegate.most), min(d.MaxDuration, q.delegate.maxDuration)
	}
	if d == nil || len(d.To) == 0 {
		return nil, fmt.Sprintf("the rules %s name nobody in common to whom it may be delegated; ask without, or for less", list(ruleNames(applying)))
	}
	slices.Sort(d.To)
	return d, ""
}

// Names reports whether a SPIFFE ID is one of those to whom may be delegated. What
// cannot be read names nobody.
func (d Delegation) Names(id spiffeid.ID) bool {
	for _, text := range d.To {
		if p, err := parsePattern(text); err == nil && p.group == "" && p.matches(id, nil) {
			return true
		}
	}
	return false
}

// delegate reads {to: […], max_grants: …, max_duration: …}.
func (r *reader) delegate(n *yaml.Node, f map[string]*yaml.Node, most time.Duration) *delegate {
	if f["deny"] != nil {
		r.fail(n, "delegate in a rule that denies: leave it out")
		return nil
	}
	g := r.fields(n, "delegate", "to", "max_grants", "max_duration")
	if g == nil {
		return nil
	}
	d := &delegate{}
	if v := r.must(n, g, "to"); v != nil {
		d.to = r.patterns(v, "to", false)
	}
	if v := r.must(n, g, "max_grants"); v != nil {
		d.most = r.integer(v, "max_grants", MaxChildren)
	}
	if v := r.must(n, g, "max_duration"); v != nil && most > 0 {
		d.maxDuration = r.duration(v, fmt.Sprintf("max_duration of delegate (the rule's is %s)", span(most)), MinDuration, most)
	}
	return d
}
