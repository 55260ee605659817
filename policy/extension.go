package policy

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

// unextended says why a grant may not be made to live for r.Total in all, or "".
// Each of the rules must say how long, and the shortest holds: one that does not
// was written for what ends by itself.
func unextended(applying []rule, r Request) string {
	for _, q := range applying {
		over := r.Total - q.maxExtended
		switch {
		case q.maxExtended == 0:
			return fmt.Sprintf("rule %q lets no grant be extended; ask for a new one", q.name)
		case over >= r.Duration:
			return fmt.Sprintf("the grant would live %s in all, longer than the %s that rule %q allows; ask for a new one",
				span(r.Total), span(q.maxExtended), q.name)
		case over > 0:
			return fmt.Sprintf("the grant would live %s in all, longer than the %s that rule %q allows; ask for at most %s",
				span(r.Total), span(q.maxExtended), q.name, span(r.Duration-over))
		}
	}
	return ""
}

// extended reads max_extended.
func (r *reader) extended(n *yaml.Node, f map[string]*yaml.Node, q *rule) {
	switch {
	case f["deny"] != nil:
		r.fail(n, "max_extended in a rule that denies: leave it out")
	case q.maxDuration > 0:
		q.maxExtended = r.duration(n, fmt.Sprintf("max_extended (with max_duration %s)", span(q.maxDuration)), q.maxDuration, MaxDuration)
	}
}
