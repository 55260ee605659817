package approval

import (
	"slices"

	"github.com/hallpass/hallpass/policy"
)

// checkBundles refuses names of bundles that do not say what the request is. They were
// replaced by their permissions before, and it is those that are decided on; but an
// approver reads the names, too, and "read-accounts" over permissions of which no such
// bundle speaks would have a stolen node, or a client of its own making, choose the
// words that an approver decides by.
func (t *turn) checkBundles(r Request, permissions []string) error {
	if len(r.Bundles) == 0 {
		return nil
	}
	if len(r.Bundles) > MaxRequestBundles {
		return limited("a request is made of at most %d bundles, not %d", MaxRequestBundles, len(r.Bundles))
	}
	if !ascending(r.Bundles) {
		return invalid("the bundles are not in order, each once")
	}
	p, err := t.state().Rules()
	if err != nil {
		return err
	}
	scope, err := t.scopeOf(r.Service, permissions)
	if err != nil {
		return invalid("%v", err)
	}
	for _, name := range r.Bundles {
		b, ok := p.Bundle(r.Service, name)
		if !ok {
			return invalid("the policy has no bundle %q of %s", name, r.Service)
		}
		if !b.In(scope) {
			return invalid("not all of bundle %q of %s is among the permissions", name, r.Service)
		}
	}
	return nil
}

// ascending reports whether names are in order, each once.
func ascending(names []string) bool {
	return slices.IsSorted(names) && len(slices.Compact(slices.Clone(names))) == len(names)
}

// checkOwners refuses a policy that sends requesters to nobody. It is not looked at
// again when a person leaves: that must not wait for a policy.
func (t *turn) checkOwners(yaml string) error {
	p, err := policy.Parse([]byte(yaml))
	if err != nil {
		return invalid("%v", err)
	}
	for _, name := range p.Persons() {
		if !t.has(key(prefixPerson, name)) {
			return invalid("the policy names person %q as an owner, and there is none", name).then("propose the person first, or name a group")
		}
	}
	return nil
}
