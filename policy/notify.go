package policy

import (
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/grant"
)

// MaxNotify is how many targets of notifications a policy may name in all.
const MaxNotify = 32

// told names the targets of notifications that any of the applying rules names.
func told(applying []rule) []string {
	all := map[string]bool{}
	for _, q := range applying {
		for _, name := range q.notify {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// Targets are the targets of notifications that the policy names, sorted, each once.
// Which there are is up to the operators' configuration, which it does not see.
func (p *Policy) Targets() []string {
	if p == nil {
		return nil
	}
	return told(p.rules)
}

// notify reads the names of targets.
func (r *reader) notify(n *yaml.Node, f map[string]*yaml.Node) []string {
	if f["deny"] != nil {
		r.fail(n, "notify in a rule that denies: there is no request to tell of; leave it out")
		return nil
	}
	var out []string
	for _, item := range r.items(n, "notify", "[payments-chat]") {
		name := r.text(item, "notify")
		switch {
		case name == "":
		case grant.ValidService(name) != nil:
			r.fail(item, "notify: %q is not the name of a notification target: lower-case letters, digits and hyphens", name)
		case slices.Contains(out, name):
			r.fail(item, "notify: %s twice: keep one", name)
		default:
			out = append(out, name)
		}
	}
	return out
}
