package policy

import (
	"fmt"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/grant"
)

// Limits of conditions.
const (
	// MaxVersion is the newest version of a policy's form.
	MaxVersion = 3

	maxExpression = 2000
	maxPattern    = 200
	anyService    = "*"
)

// expression is the text of a rule's match, a condition in CEL, and where in the
// policy it stands. Here it is a text and no more. What it comes to is an Answer,
// which arrives with the request: were each node to evaluate it, two releases of
// the evaluator might come to two states.
type expression struct {
	text  string
	line  int  // of its first line
	lines bool // each line of the text is one of the policy
}

// Question is a condition that has to be answered before a request can be decided
// on: that of a rule which applies if it holds.
type Question struct {
	Rule string
	// Match is the condition, in CEL.
	Match string

	at expression
}

// Line is the line of the policy on which the line-th line of Match is, counting
// from 1; nearly, where YAML has folded it.
func (q Question) Line(line int) int {
	if q.at.lines && line > 1 {
		return q.at.line + line - 1
	}
	return q.at.line
}

// Answer is what a rule's condition came to.
type Answer struct {
	Rule  string
	Holds bool
}

// Conditional reports whether any rule has a condition.
func (p *Policy) Conditional() bool {
	return p != nil && slices.ContainsFunc(p.rules, func(q rule) bool { return q.match.text != "" })
}

// Conditions returns those of all rules, in the policy's order.
func (p *Policy) Conditions() []Question {
	if p == nil {
		return nil
	}
	var all []Question
	for _, q := range p.rules {
		if q.match.text != "" {
			all = append(all, Question{Rule: q.name, Match: q.match.text, at: q.match})
		}
	}
	return all
}

// Questions returns the conditions that decide which rules apply to a request, in
// the policy's order: none, for what Decide refuses without looking at rules.
func Questions(p *Policy, r Request) []Question {
	if incomplete(p, r) != "" {
		return nil
	}
	var all []Question
	for _, q := range p.touching(r) {
		if q.match.text != "" {
			all = append(all, Question{Rule: q.name, Match: q.match.text, at: q.match})
		}
	}
	return all
}

// Service is what the policy says of a service, for conditions to look at: empty
// for one that it does not list.
func (p *Policy) Service(name string) (tier string, labels map[string]string) {
	s := p.services[name]
	return s.tier, maps.Clone(s.labels)
}

// Services are the names of the services that the policy lists, in order; none for one that
// lists no services.
func (p *Policy) Services() []string {
	if p == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(p.services))
}

// touching returns the rules that apply to a request, were all conditions to hold.
func (p *Policy) touching(r Request) []rule {
	var all []rule
	wanted := r.Scope.Permissions()
	for _, q := range p.rules {
		if p.isAbout(q, r.Scope.Service()) && q.concerns(r.Requester, r.Groups, r.Subject) && overlapsAny(q.permissions, wanted) {
			all = append(all, q)
		}
	}
	return all
}

// applying sorts the rules that touch a request by whether their conditions hold.
// The answers must be to exactly the questions: one that is missing would let a
// rule fall away that demands more than the others, and nobody would see it.
func (p *Policy) applying(r Request) (applying, missed []rule, reason string) {
	answers := r.Answers
	for _, q := range p.touching(r) {
		if q.match.text == "" {
			applying = append(applying, q)
			continue
		}
		if len(answers) == 0 || answers[0].Rule != q.name {
			return nil, nil, fmt.Sprintf("nobody has said whether the condition of rule %q holds", q.name)
		}
		if answers[0].Holds {
			applying = append(applying, q)
		} else {
			missed = append(missed, q)
		}
		answers = answers[1:]
	}
	if len(answers) > 0 {
		return nil, nil, fmt.Sprintf("an answer about rule %q, whose condition does not matter here", answers[0].Rule)
	}
	return applying, missed, ""
}

// expression reads a condition: one line, or several of a block.
func (r *reader) expression(n *yaml.Node) expression {
	text := strings.TrimRight(n.Value, "\n")
	switch {
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		r.fail(n, "match is %s: write a condition in quotes, such as match: 'request.writes'", kindOf(n))
	case strings.TrimSpace(text) == "":
		r.fail(n, "match is empty: write a condition, or leave it out")
	case len(text) > maxExpression:
		r.fail(n, "match is %d bytes: at most %d", len(text), maxExpression)
	case strings.ContainsFunc(text, func(c rune) bool { return c != '\n' && c < ' ' || c == 0x7f }):
		r.fail(n, "match holds a control character")
	default:
		e := expression{text: text, line: n.Line, lines: n.Style == yaml.LiteralStyle}
		if n.Style == yaml.LiteralStyle || n.Style == yaml.FoldedStyle {
			e.line++ // the text begins below the sign for it
		}
		return e
	}
	return expression{}
}

// reasonRule is what a rule demands of the reason.
type reasonRule struct {
	pattern *regexp.Regexp
	example string
}

// reason reads {pattern: …, example: …}.
func (r *reader) reason(n *yaml.Node, denies bool) *reasonRule {
	f := r.fields(n, "reason", "pattern", "example")
	if f == nil {
		return nil
	}
	if denies {
		r.fail(n, "reason in a rule that denies: leave it out, or look at request.reason in its match")
		return nil
	}
	p, e := r.must(n, f, "pattern"), r.must(n, f, "example")
	if p == nil || e == nil {
		return nil
	}
	pattern, example := r.text(p, "pattern"), r.text(e, "example")
	if pattern == "" || example == "" {
		return nil
	}
	compiled, err := compilePattern(pattern)
	switch {
	case err != nil:
		r.fail(p, "pattern: %v", err)
		return nil
	case !compiled.MatchString(example):
		// Whoever is refused is shown the example.
		r.fail(e, "example %q does not match %q", example, pattern)
		return nil
	}
	return &reasonRule{compiled, example}
}

// compilePattern takes the part of RE2 that reads the same in every build: \p and
// (?i) go by tables of Unicode, which a new release of Go may bring anew, and two
// nodes would come to two states.
func compilePattern(text string) (*regexp.Regexp, error) {
	if len(text) > maxPattern {
		return nil, fmt.Errorf("%d bytes: at most %d", len(text), maxPattern)
	}
	tree, err := syntax.Parse(text, syntax.Perl&^syntax.UnicodeGroups)
	if err != nil {
		return nil, fmt.Errorf("%w (as in RE2, without \\p)", err)
	}
	if foldsCase(tree) {
		return nil, fmt.Errorf("%q ignores case by (?i): write both letters, as in [Oo][Pp][Ss]", text)
	}
	return regexp.Compile(text)
}

func foldsCase(tree *syntax.Regexp) bool {
	return tree.Flags&syntax.FoldCase != 0 || slices.ContainsFunc(tree.Sub, foldsCase)
}

// wrongReason says what is wrong with the reason, or "".
func wrongReason(applying []rule, reason string) string {
	for _, q := range applying {
		if q.reason != nil && !q.reason.pattern.MatchString(reason) {
			return fmt.Sprintf("rule %q wants a reason that matches %q, such as %q", q.name, q.reason.pattern, q.reason.example)
		}
	}
	return ""
}

// services reads what there is: [{name: payments, tier: critical, labels: {team: money}}].
func (r *reader) services(n *yaml.Node) map[string]service {
	all := make(map[string]service)
	if n.Kind == yaml.SequenceNode && len(n.Content) > MaxRules {
		r.fail(n, "%d services: at most %d", len(n.Content), MaxRules)
		return all
	}
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		r.fail(n, "services is %s: write a list, such as [{name: payments, tier: critical}], or leave it out", kindOf(n))
		return all
	}
	for _, item := range n.Content {
		f := r.fields(item, "a service", r.keys([]string{"name", "tier", "labels"}, nil, "description", "owners", "bundles")...)
		if f == nil {
			continue
		}
		v := r.must(item, f, "name")
		if v == nil {
			continue
		}
		name := r.text(v, "name")
		if err := grant.ValidService(name); name != "" && err != nil {
			r.fail(v, "%v", err)
		}
		if _, twice := all[name]; twice && name != "" {
			r.fail(v, "service %s twice: keep one", name)
		}
		var s service
		if v := f["tier"]; v != nil {
			s.tier = r.name(v)
		}
		if v := f["labels"]; v != nil {
			s.labels = r.labels(v)
		}
		r.catalogue(f, name, &s)
		all[name] = s
	}
	return all
}

func (r *reader) labels(n *yaml.Node) map[string]string {
	if n.Kind != yaml.MappingNode || len(n.Content) > 2*maxList {
		r.fail(n, "labels is %s: write at most %d keys and values, such as {team: money}", kindOf(n), maxList)
		return nil
	}
	labels := make(map[string]string)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name, text := r.name(key), r.text(value, "a label")
		if _, twice := labels[name]; twice && name != "" {
			r.fail(key, "label %s twice: keep one", name)
		}
		if len(text) > maxPattern {
			r.fail(value, "a label of %d bytes: at most %d", len(text), maxPattern)
		}
		labels[name] = text
	}
	return labels
}

// known refuses a rule's service that a policy which lists its services does not
// list, and "*" where none are: a rule about a misspelt service is about none.
func (r *reader) known(n *yaml.Node, name string) {
	if r.version < 2 || name == "" {
		return
	}
	_, listed := r.listed[name]
	switch {
	case name == anyService && len(r.listed) == 0:
		r.fail(n, "service \"*\" stands for all that the policy lists under services, and it lists none")
	case name != anyService && r.listed != nil && !listed:
		r.fail(n, "service %q is not among services: %s", name, list(slices.Collect(maps.Keys(r.listed))))
	}
}

// Demand is a rule that needs approval: who may ask by it and who must approve.
type Demand struct {
	Rule    string
	Line    int
	Require []Requirement
	Groups  []string      // of persons who may ask
	IDs     []spiffeid.ID // that may ask
	Anyone  bool          // a pattern may ask, and whom it names is not known
}

// Demands returns every rule that needs approval, in the policy's order.
func (p *Policy) Demands() []Demand {
	if p == nil {
		return nil
	}
	var all []Demand
	for _, q := range p.rules {
		if len(q.require) == 0 {
			continue
		}
		all = append(all, q.demand(q.require))
	}
	return all
}

// demand is what whoever asks by the rule needs.
func (q rule) demand(require []Requirement) Demand {
	d := Demand{Rule: q.name, Line: q.line, Require: slices.Clone(require)}
	for _, who := range q.requesters {
		switch {
		case who.group != "":
			d.Groups = append(d.Groups, who.group)
		case who.prefix != "":
			d.Anyone = true
		default:
			d.IDs = append(d.IDs, who.id)
		}
	}
	return d
}

// DeniesAll reports whether the policy has rules and each of them denies.
func (p *Policy) DeniesAll() bool {
	return p != nil && len(p.rules) > 0 && !slices.ContainsFunc(p.rules, func(q rule) bool { return q.deny == "" })
}
