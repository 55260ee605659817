package policy

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/grant"
)

// Parse reads a policy. A policy with any mistake is refused whole, with a
// [*ParseError] that lists them all. "rules: []" is a policy: it denies
// everything.
func Parse(text []byte) (*Policy, error) {
	r := &reader{}
	p := &Policy{}
	if top := r.document(text); top != nil {
		r.policy(top, p)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return p, nil
}

func (r *reader) policy(top *yaml.Node, p *Policy) {
	r.version = versionOf(top)
	f := r.fields(top, "the policy", r.keys([]string{"version", "rules"}, []string{"services", "tests"}, "channels")...)
	if f == nil {
		return
	}
	if n := f["version"]; n == nil {
		r.fail(top, "no version: write version: 1, 2 for conditions, services and tests, or 3 for breaking the glass, extensions, delegation, escalation, notify and what requesters find")
	} else {
		p.version = r.integer(n, "version", MaxVersion)
	}
	if n := f["services"]; n != nil {
		p.services = r.services(n)
		r.listed = p.services
	}
	if n := f["channels"]; n != nil {
		p.slack = r.channels(n)
		r.slack = p.slack
	}
	p.rules = r.rules(top, f["rules"])
	if n := f["tests"]; n != nil {
		p.tests = r.tests(n)
	}
}

// versionOf is which version a policy says that it is, before that was checked.
func versionOf(top *yaml.Node) int {
	for i := 0; top.Kind == yaml.MappingNode && i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value != "version" {
			continue
		}
		for v := 2; v <= MaxVersion; v++ {
			if top.Content[i+1].Value == strconv.Itoa(v) {
				return v
			}
		}
	}
	return 1
}

// keys are those that every version has, and those that came with versions 2 and 3.
func (r *reader) keys(first, second []string, third ...string) []string {
	if r.version >= 2 {
		first = append(first, second...)
	}
	if r.version >= 3 {
		first = append(first, third...)
	}
	return first
}

func (r *reader) rules(top, n *yaml.Node) []rule {
	switch {
	case n == nil:
		r.fail(top, "no rules: write a list of rules, or rules: [] to deny everything")
		return nil
	case n.Kind != yaml.SequenceNode:
		r.fail(n, "rules is %s: write a list of rules, or [] to deny everything", kindOf(n))
		return nil
	case len(n.Content) > MaxRules:
		r.fail(n, "%d rules: at most %d", len(n.Content), MaxRules)
		return nil
	}
	var rules []rule
	lines := make(map[string]int)
	for i, node := range n.Content {
		r.rule = label(node, i)
		q := r.one(node)
		if line, twice := lines[q.name]; twice && q.name != "" {
			r.fail(node, "another rule of this name is on line %d: give each its own", line)
		}
		lines[q.name] = node.Line
		rules = append(rules, q)
	}
	r.rule = ""
	if names := told(rules); len(names) > MaxNotify {
		r.fail(n, "notify names %d targets in all rules: at most %d", len(names), MaxNotify)
	}
	return rules
}

// label returns what mistakes in a rule are filed under: its name, or its
// number when it has none that can be one.
func label(n *yaml.Node, i int) string {
	for j := 0; n.Kind == yaml.MappingNode && j+1 < len(n.Content); j += 2 {
		if name := n.Content[j+1].Value; n.Content[j].Value == "name" && ValidName(name) == nil {
			return strconv.Quote(name)
		}
	}
	return "#" + strconv.Itoa(i+1)
}

// one reads a rule.
func (r *reader) one(n *yaml.Node) rule {
	f := r.fields(n, "a rule", r.keys([]string{
		"name", "service", "requesters", "subjects", "permissions",
		"require", "auto", "deny", "max_duration", "certificate_ttl",
	}, []string{"match", "reason"}, "break_glass", "max_extended", "delegate", "step_up", "channels", "escalate", "notify")...)
	if f == nil {
		return rule{}
	}
	q := rule{line: n.Line}
	if v := r.must(n, f, "name"); v != nil {
		q.name = r.name(v)
	}
	if v := r.must(n, f, "service"); v != nil {
		q.service = r.service(v)
		r.known(v, q.service)
	}
	if v := r.must(n, f, "requesters"); v != nil {
		q.requesters = r.patterns(v, "requesters", true)
	}
	if v := f["subjects"]; v != nil {
		q.subjects = r.patterns(v, "subjects", false)
	}
	if v := r.must(n, f, "permissions"); v != nil {
		q.permissions = r.permissions(v)
	}
	if v := f["match"]; v != nil {
		q.match = r.expression(v)
	}
	if v := f["reason"]; v != nil {
		q.reason = r.reason(v, f["deny"] != nil)
	}
	r.verdict(n, f, &q)
	r.durations(n, f, &q)
	if v := f["break_glass"]; v != nil {
		q.breakGlass = r.breakGlass(v, f, q.maxDuration)
	}
	if v := f["notify"]; v != nil {
		q.notify = r.notify(v, f)
	}
	if v := f["escalate"]; v != nil {
		q.escalate = r.escalate(v, f, q.require)
	}
	if v := f["delegate"]; v != nil {
		q.delegate = r.delegate(v, f, q.maxDuration)
	}
	if v := f["max_extended"]; v != nil {
		r.extended(v, f, &q)
	}
	if v := f["step_up"]; v != nil {
		q.stepUp = r.stepUp(v, f)
	}
	if v := f["channels"]; v != nil {
		q.channels = r.ruleChannels(v, f)
	}
	return q
}

// must returns the value of a key that may not be left out.
func (r *reader) must(n *yaml.Node, f map[string]*yaml.Node, key string) *yaml.Node {
	v := f[key]
	if v == nil {
		r.fail(n, "no %s: it may not be left out", key)
	}
	return v
}

func (r *reader) name(n *yaml.Node) string {
	name := r.text(n, "name")
	if name == "" {
		return ""
	}
	if err := ValidName(name); err != nil {
		r.fail(n, "%v", err)
		return ""
	}
	return name
}

func (r *reader) service(n *yaml.Node) string {
	service := r.text(n, "service")
	if service == "" || service == anyService && r.version >= 2 {
		return service
	}
	if err := grant.ValidService(service); err != nil {
		r.fail(n, "service: %v", err)
	}
	return service
}

func (r *reader) patterns(n *yaml.Node, what string, groups bool) []pattern {
	example := `["spiffe://acme.test/agent/*"]`
	if groups {
		example = `[group:engineers]`
	}
	var out []pattern
	for _, item := range r.items(n, what, example) {
		text := r.text(item, what)
		if text == "" {
			continue
		}
		p, err := parsePattern(text)
		switch {
		case err != nil:
			r.fail(item, "%s: %v", what, err)
		case p.group != "" && !groups:
			r.fail(item, "%s: a group (%s) is of persons, but a grant is for one SPIFFE ID: write IDs", what, text)
		case slices.Contains(out, p):
			r.fail(item, "%s: %s twice: keep one", what, text)
		default:
			out = append(out, p)
		}
	}
	return out
}

func (r *reader) permissions(n *yaml.Node) []grant.Permission {
	var out []grant.Permission
	for _, item := range r.items(n, "permissions", `["GET,HEAD /accounts/**"]`) {
		text := r.text(item, "permissions")
		if text == "" {
			continue
		}
		p, err := grant.ParsePermission(text)
		switch {
		case err != nil:
			r.fail(item, "permissions: %v", err)
		case slices.Contains(out, p):
			r.fail(item, "permissions: %s twice: keep one", p)
		default:
			out = append(out, p)
		}
	}
	return out
}

// verdict reads the one of require, auto and deny that a rule has.
func (r *reader) verdict(n *yaml.Node, f map[string]*yaml.Node, q *rule) {
	var have []string
	for _, key := range []string{"require", "auto", "deny"} {
		if f[key] != nil {
			have = append(have, key)
		}
	}
	switch {
	case len(have) == 0:
		r.fail(n, "neither require, auto nor deny: write one, such as require: [{group: owners, approvals: 1}]")
	case len(have) > 1:
		r.fail(f[have[1]], "%s together with %s: keep one of require, auto and deny", have[0], have[1])
	}
	if v := f["require"]; v != nil {
		q.require = r.requirements(v)
	}
	if v := f["auto"]; v != nil {
		if q.auto = v.Tag == "!!bool" && v.Value == "true"; !q.auto {
			r.fail(v, "auto is %s: write auto: true, or require who must approve", kindOf(v))
		}
	}
	if v := f["deny"]; v != nil {
		if q.deny = r.text(v, "deny"); len(q.deny) > 500 {
			r.fail(v, "deny is %d bytes: at most 500", len(q.deny))
		}
	}
}

func (r *reader) requirements(n *yaml.Node) []Requirement {
	return r.requirementsOf(n, "require", "[{group: owners, approvals: 1}] (auto: true asks nobody)")
}

func (r *reader) requirementsOf(n *yaml.Node, what, example string) []Requirement {
	var out []Requirement
	for _, item := range r.items(n, what, example) {
		f := r.fields(item, what, "group", "approvals")
		if f == nil {
			continue
		}
		var q Requirement
		if v := r.must(item, f, "group"); v != nil {
			q.Group = r.group(v)
		}
		if v := r.must(item, f, "approvals"); v != nil {
			q.Approvals = r.integer(v, "approvals", MaxApprovals)
		}
		if slices.ContainsFunc(out, func(o Requirement) bool { return o.Group == q.Group && q.Group != "" }) {
			r.fail(item, "%s: group %s twice: keep the larger number", what, q.Group)
		}
		out = append(out, q)
	}
	return out
}

func (r *reader) group(n *yaml.Node) string {
	group := r.text(n, "group")
	if group == "" {
		return ""
	}
	if err := ValidName(group); err != nil {
		r.fail(n, "group: %v", err)
		return ""
	}
	return group
}

// durations reads max_duration and certificate_ttl, which a rule that denies
// has no use for.
func (r *reader) durations(n *yaml.Node, f map[string]*yaml.Node, q *rule) {
	if f["deny"] != nil {
		for _, key := range []string{"max_duration", "certificate_ttl"} {
			if v := f[key]; v != nil {
				r.fail(v, "%s in a rule that denies: leave it out", key)
			}
		}
		return
	}
	v := r.must(n, f, "max_duration")
	if v == nil {
		return
	}
	q.maxDuration = r.duration(v, "max_duration", MinDuration, MaxDuration)
	if q.maxDuration == 0 {
		return
	}
	q.certificateTTL = min(DefaultCertificateTTL, q.maxDuration)
	if v := f["certificate_ttl"]; v != nil {
		q.certificateTTL = r.ttl(v, q.maxDuration)
	}
}

func (r *reader) ttl(n *yaml.Node, most time.Duration) time.Duration {
	return r.duration(n, fmt.Sprintf("certificate_ttl (with max_duration %s)", span(most)), MinDuration, most)
}
