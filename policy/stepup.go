package policy

import (
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxStepUp is the longest step_up: sessions of a console end by themselves not much later.
const maxStepUp = 8 * time.Hour

// StepUp is how long ago, at most, whoever approves in a browser must have signed
// in, for a request to which the rules of these names apply: the shortest that one
// of them says. 0: none of them says.
func (p *Policy) StepUp(names []string) time.Duration {
	if p == nil {
		return 0
	}
	return stepUp(slices.DeleteFunc(slices.Clone(p.rules), func(q rule) bool { return !slices.Contains(names, q.name) }))
}

// StepUpAt is the shortest step_up of any rule about a service; 0: none has one.
func (p *Policy) StepUpAt(service string) time.Duration {
	if p == nil {
		return 0
	}
	return stepUp(slices.DeleteFunc(slices.Clone(p.rules), func(q rule) bool { return !p.isAbout(q, service) }))
}

func stepUp(rules []rule) (least time.Duration) {
	for _, q := range rules {
		if q.stepUp > 0 && (least == 0 || q.stepUp < least) {
			least = q.stepUp
		}
	}
	return least
}

// stepUp reads step_up.
func (r *reader) stepUp(n *yaml.Node, f map[string]*yaml.Node) time.Duration {
	for _, key := range []string{"deny", "auto"} {
		if f[key] != nil {
			r.fail(n, "step_up in a rule with %s, where nobody decides: leave it out", key)
			return 0
		}
	}
	return r.duration(n, "step_up", MinDuration, maxStepUp)
}
