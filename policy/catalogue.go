package policy

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/grant"
)

// Limits of the catalogue.
const (
	// MaxBundles is how many bundles a service may have.
	MaxBundles = 50
	// MaxBundlePermissions is how many permissions a bundle may have.
	MaxBundlePermissions = 32

	maxDescription = 500
	maxOwners      = 20
	personPrefix   = "person:"
)

// Bundle is permissions of a service under one name, for people to ask for. It
// stands for them when a request is made, and for nothing afterwards.
type Bundle struct {
	Name        string
	Description string
	// Permissions are in the canonical form and order of [grant.Scope.Texts].
	Permissions []string

	scope grant.Scope
}

// Offer is a service of the catalogue, as one caller sees it.
type Offer struct {
	Name        string
	Description string
	Tier        string
	Labels      map[string]string
	// Owners are whom to talk to: "group:NAME" and "person:NAME". To be one gives
	// no right.
	Owners []string
	// Permissions are those of the rules that let the caller ask: sorted, each
	// once, at most 100.
	Permissions []string
	// Bundles are those that the caller could ask for, in the policy's order.
	Bundles []Bundle
}

// Offers yields the services at which a rule lets the caller ask for something, in
// the order of their names, from behind the name after on. What is yielded of each
// is what follows from rules that name the caller: who is named by none sees
// nothing, so that the catalogue tells a stranger neither what there is nor who
// may have it. Conditions, reasons, times and numbers of approvals are not looked
// at: an offer is what a request may come to, never a promise.
//
// With a name it is about that service alone.
func (p *Policy) Offers(requester spiffeid.ID, groups []string, after, only string) iter.Seq[Offer] {
	return func(yield func(Offer) bool) {
		naming := p.naming(requester, groups)
		if len(naming) == 0 {
			return
		}
		known := map[string][]string{}
		for _, name := range p.known() {
			if name <= after || only != "" && name != only {
				continue
			}
			if o, ok := p.offer(name, naming, known); ok && !yield(o) {
				return
			}
		}
	}
}

// Offered returns a bundle that the caller could ask for. One that there is not and
// one that is not for the caller come to the same: whoever tries names must not
// learn which of them exist.
func (p *Policy) Offered(requester spiffeid.ID, groups []string, service, name string) (Bundle, bool) {
	b, ok := p.Bundle(service, name)
	if !ok {
		return Bundle{}, false
	}
	allowing, closing := p.at(service, p.naming(requester, groups))
	if !open(b, allowing, closing) {
		return Bundle{}, false
	}
	return b, true
}

// Bundle returns a bundle of a service, whoever may ask for it.
func (p *Policy) Bundle(service, name string) (Bundle, bool) {
	if p == nil {
		return Bundle{}, false
	}
	for _, b := range p.services[service].bundles {
		if b.Name == name {
			return b, true
		}
	}
	return Bundle{}, false
}

// In reports whether all of the bundle lies within a scope of its service.
func (b Bundle) In(s grant.Scope) bool { return !b.scope.IsZero() && s.Covers(b.scope) }

// Scope is what the bundle stands for.
func (b Bundle) Scope() grant.Scope { return b.scope }

// Union is the scope of all that scopes of one service allow, of which some may be zero. What
// several of them say is said once.
func Union(service string, scopes ...grant.Scope) (grant.Scope, error) {
	var all []grant.Permission
	for _, s := range scopes {
		all = append(all, s.Permissions()...)
	}
	said := make(map[grant.Permission]bool)
	whole := make(map[string]bool) // paths of which every method is asked for
	var split []grant.Permission
	for _, p := range all {
		if path, ok := strings.CutPrefix(p.String(), "* "); ok && p.Kind() == grant.KindHTTP {
			whole[path] = true
		}
		split = append(split, perMethod(p)...)
	}
	var each []grant.Permission
	for _, p := range split {
		method, path, _ := strings.Cut(p.String(), " ")
		if said[p] || p.Kind() == grant.KindHTTP && method != "*" && whole[path] {
			continue
		}
		said[p] = true
		each = append(each, p)
	}
	return grant.NewScope(service, each...)
}

// Persons returns the persons whom the policy names as owners, sorted, each once.
func (p *Policy) Persons() []string { return p.owners(personPrefix) }

func (p *Policy) owners(prefix string) []string {
	if p == nil {
		return nil
	}
	var names []string
	for _, s := range p.services {
		for _, o := range s.owners {
			if name, ok := strings.CutPrefix(o, prefix); ok {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// naming returns the rules that name the caller as one who asks, and deny nothing or
// deny it whatever else holds.
func (p *Policy) naming(requester spiffeid.ID, groups []string) []rule {
	if p == nil || requester.IsZero() {
		return nil
	}
	var all []rule
	for _, q := range p.rules {
		if q.deny != "" && (q.match.text != "" || len(q.subjects) > 0) {
			continue
		}
		if anyMatches(q.requesters, requester, groups) {
			all = append(all, q)
		}
	}
	return all
}

// known are the services that the policy lists, or that a rule of it names.
func (p *Policy) known() []string {
	names := slices.Collect(maps.Keys(p.services))
	for _, q := range p.rules {
		if q.service != anyService {
			names = append(names, q.service)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// at sorts those of the rules that are about a service.
func (p *Policy) at(service string, naming []rule) (allowing, closing []rule) {
	for _, q := range naming {
		switch {
		case !p.isAbout(q, service):
		case q.deny == "":
			allowing = append(allowing, q)
		default:
			closing = append(closing, q)
		}
	}
	return allowing, closing
}

// offer is a service as those whom the rules name see it; false when they cannot ask
// for anything there. known is what rules allow that others do not close, by the names of
// all of these: rules about every service come to the same at most of them, and who may ask
// for anything could otherwise have a node compute it a thousand times a call.
func (p *Policy) offer(name string, naming []rule, known map[string][]string) (Offer, bool) {
	allowing, closing := p.at(name, naming)
	key := strings.Join(ruleNames(allowing), " ") + " but " + strings.Join(ruleNames(closing), " ")
	texts, ok := known[key]
	if !ok {
		for _, q := range allowing {
			for _, have := range q.permissions {
				if len(closing) == 0 || !covered(closing, have) {
					texts = append(texts, have.String())
				}
			}
		}
		slices.Sort(texts)
		texts = slices.Compact(texts)
		known[key] = texts
	}
	if len(texts) == 0 {
		return Offer{}, false
	}
	s := p.services[name]
	o := Offer{
		Name: name, Description: s.description, Tier: s.tier, Labels: maps.Clone(s.labels),
		Owners: slices.Clone(s.owners), Permissions: slices.Clone(texts[:min(len(texts), maxList)]),
	}
	for _, b := range s.bundles {
		if open(b, allowing, closing) {
			o.Bundles = append(o.Bundles, b)
		}
	}
	return o, true
}

// open reports whether all of a bundle lies within what rules allow, and none of it
// within what others close.
func open(b Bundle, allowing, closing []rule) bool {
	wanted := b.scope.Permissions()
	for _, w := range wanted {
		if !covered(allowing, w) {
			return false
		}
	}
	return len(wanted) > 0 && !slices.ContainsFunc(closing, func(q rule) bool { return overlapsAny(q.permissions, wanted) })
}

// catalogue reads what requesters are told of a service.
func (r *reader) catalogue(f map[string]*yaml.Node, name string, s *service) {
	if v := f["description"]; v != nil {
		s.description = r.description(v)
	}
	if v := f["owners"]; v != nil {
		s.owners = r.ownersOf(v)
	}
	if v := f["bundles"]; v != nil {
		s.bundles = r.bundles(v, name)
	}
}

func (r *reader) description(n *yaml.Node) string {
	text := r.text(n, "description")
	if len(text) > maxDescription {
		r.fail(n, "description is %d bytes: at most %d", len(text), maxDescription)
	}
	return text
}

func (r *reader) ownersOf(n *yaml.Node) []string {
	var out []string
	items := r.items(n, "owners", "[group:payments-owners, person:bob]")
	if len(items) > maxOwners {
		r.fail(n, "owners has %d elements: at most %d", len(items), maxOwners)
		return nil
	}
	for _, item := range items {
		text := r.text(item, "owners")
		name, ok := strings.CutPrefix(text, groupPrefix)
		if !ok {
			name, ok = strings.CutPrefix(text, personPrefix)
		}
		switch {
		case text == "":
		case !ok:
			r.fail(item, "owners: %q is neither group:NAME nor person:NAME", text)
		case ValidName(name) != nil:
			r.fail(item, "owners: %v", ValidName(name))
		case slices.Contains(out, text):
			r.fail(item, "owners: %s twice: keep one", text)
		default:
			out = append(out, text)
		}
	}
	return out
}

func (r *reader) bundles(n *yaml.Node, service string) []Bundle {
	items := r.items(n, "bundles", `[{name: read, permissions: ["GET,HEAD /accounts/**"]}]`)
	if len(items) > MaxBundles {
		r.fail(n, "bundles has %d elements: at most %d", len(items), MaxBundles)
		return nil
	}
	var all []Bundle
	lines := make(map[string]int)
	for _, item := range items {
		f := r.fields(item, "a bundle", "name", "description", "permissions")
		if f == nil {
			continue
		}
		var b Bundle
		if v := r.must(item, f, "name"); v != nil {
			b.Name = r.bundleName(v)
			if line, twice := lines[b.Name]; twice && b.Name != "" {
				r.fail(v, "bundle %s of %s: another of this name is on line %d", b.Name, service, line)
			}
			lines[b.Name] = v.Line
		}
		if v := f["description"]; v != nil {
			b.Description = r.description(v)
		}
		if v := r.must(item, f, "permissions"); v != nil {
			r.bundled(v, service, &b)
		}
		all = append(all, b)
	}
	return all
}

// bundleName reads one. A bundle that is called as a permission is written would be
// taken for it, by who asks and by who approves: "tcp", of which it holds something
// else.
func (r *reader) bundleName(n *yaml.Node) string {
	name := r.name(n)
	if name == "" {
		return ""
	}
	if p, err := grant.ParsePermission(name); err == nil {
		r.fail(n, "bundle %q has the name of a permission, %s: give it another", name, p)
	}
	return name
}

// bundled reads the permissions of a bundle, which are written as they are shown: whoever
// reads the policy and whoever reads a request have the same words before them.
func (r *reader) bundled(n *yaml.Node, service string, b *Bundle) {
	wrong := len(r.mistakes)
	items := r.items(n, "permissions", `["GET,HEAD /accounts/**"]`)
	if len(items) > MaxBundlePermissions {
		r.fail(n, "permissions has %d elements: at most %d in a bundle", len(items), MaxBundlePermissions)
		return
	}
	var texts []string
	for _, item := range items {
		text := r.text(item, "permissions")
		if text == "" {
			continue
		}
		switch p, err := grant.ParsePermission(text); {
		case err != nil:
			r.fail(item, "permissions: %v", err)
		case p.String() != text:
			r.fail(item, "permissions: %q is written as %q: write it so", text, p)
		case slices.Contains(texts, text):
			r.fail(item, "permissions: %s twice: keep one", text)
		default:
			texts = append(texts, text)
		}
	}
	if len(r.mistakes) > wrong || grant.ValidService(service) != nil {
		return
	}
	scope, err := grant.ParseScope(service, texts)
	if err != nil {
		r.fail(n, "permissions: %v", err)
		return
	}
	if merged := scope.Texts(); len(merged) != len(texts) {
		r.fail(n, "permissions: of one path there is one, with all of its methods: write %s", quoted(merged))
		return
	}
	b.scope, b.Permissions = scope, scope.Texts()
}

func quoted(texts []string) string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = fmt.Sprintf("%q", t)
	}
	return "[" + strings.Join(out, ", ") + "]"
}
