package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/grant"
)

// MaxTests is how many tests a policy may carry. All of them are run before it is
// taken.
const MaxTests = 500

// Test is a request that a policy carries with it, and what it is to say to it.
type Test struct {
	Name string
	Line int
	// Request has no answers yet.
	Request Request

	want expectation
}

// expectation is what a test expects. Exactly one of deny, auto and require is set.
type expectation struct {
	deny           string // the refusal contains it
	auto           bool
	require        []Requirement
	maxDuration    time.Duration // 0: any
	certificateTTL time.Duration // 0: any
	stepUp         time.Duration // 0: any
	channels       []string      // nil: any
	rules          []string      // nil: any

	escalation *Escalation // nil: any

	breakGlass bool     // the glass is broken; require says what is done without
	review     []string // nil: any
}

// Tests returns the tests that the policy carries.
func (p *Policy) Tests() []Test {
	if p == nil {
		return nil
	}
	return slices.Clone(p.tests)
}

// Failed says how an outcome is not what the test expects, or "".
func (t Test) Failed(out Outcome) string {
	w := t.want
	got, want := out.String(), w.String()
	switch {
	case w.breakGlass && out.BreakGlass == nil, !w.breakGlass && out.BreakGlass != nil && w.deny == "":
		return fmt.Sprintf("it is %s, not %s", got, want)
	case w.deny != "":
		if out.Allowed || !strings.Contains(out.Reason, w.deny) {
			return fmt.Sprintf("it is %s, not denied with %q", got, w.deny)
		}
	case !out.Allowed, !w.breakGlass && (out.Auto != w.auto || !slices.Equal(out.Require, w.require)):
		return fmt.Sprintf("it is %s, not %s", got, want)
	case w.review != nil && !slices.Equal(w.review, out.BreakGlass.groups()):
		return fmt.Sprintf("the review is by %s, not by %s", list(out.BreakGlass.groups()), list(w.review))
	case w.escalation != nil && !w.escalation.like(out.Escalation):
		return fmt.Sprintf("it is %s, not %s%s", got, want, w.escalation.words())
	case w.maxDuration != 0 && out.MaxDuration != w.maxDuration:
		return fmt.Sprintf("max_duration is %s, not %s", span(out.MaxDuration), span(w.maxDuration))
	case w.certificateTTL != 0 && out.CertificateTTL != w.certificateTTL:
		return fmt.Sprintf("certificate_ttl is %s, not %s", span(out.CertificateTTL), span(w.certificateTTL))
	case w.stepUp != 0 && out.StepUp != w.stepUp:
		return fmt.Sprintf("step_up is %s, not %s", span(out.StepUp), span(w.stepUp))
	}
	if w.channels != nil && !slices.Equal(w.channels, out.Channels) {
		return fmt.Sprintf("channels are %s, not %s", list(out.Channels), list(w.channels))
	}
	if w.rules != nil && !slices.Equal(w.rules, slices.Sorted(slices.Values(out.Rules))) {
		return fmt.Sprintf("the rules that apply are %s, not %s", list(out.Rules), list(w.rules))
	}
	return ""
}

// String says in words what was decided.
func (o Outcome) String() string {
	switch {
	case !o.Allowed:
		return "denied: " + o.Reason
	case o.BreakGlass != nil:
		return o.BreakGlass.words()
	case o.Auto:
		return "granted at once"
	default:
		return "to be approved by " + approvers(o.Require) + o.Escalation.words()
	}
}

func (w expectation) String() string {
	switch {
	case w.deny != "":
		return fmt.Sprintf("denied with %q", w.deny)
	case w.breakGlass:
		return "granted at once by breaking the glass"
	case w.auto:
		return "granted at once"
	}
	return "to be approved by " + approvers(w.require)
}

func approvers(all []Requirement) string {
	texts := make([]string, len(all))
	for i, q := range all {
		texts[i] = strconv.Itoa(q.Approvals) + " of " + q.Group
	}
	return strings.Join(texts, " and ")
}

// quietMoment is when a test without at asks: a Monday, at noon.
func quietMoment() time.Time { return time.Date(2026, time.January, 5, 12, 0, 0, 0, time.UTC) }

func (r *reader) tests(n *yaml.Node) []Test {
	if n.Kind != yaml.SequenceNode || len(n.Content) > MaxTests {
		r.fail(n, "tests is %s of %d: write a list of at most %d, or leave it out", kindOf(n), len(n.Content), MaxTests)
		return nil
	}
	var all []Test
	names := make(map[string]int)
	for _, item := range n.Content {
		t := r.test(item)
		if line, twice := names[t.Name]; twice && t.Name != "" {
			r.fail(item, "test %q: another of this name is on line %d", t.Name, line)
		}
		names[t.Name] = item.Line
		all = append(all, t)
	}
	return all
}

func (r *reader) test(n *yaml.Node) Test {
	f := r.fields(n, "a test", r.keys([]string{
		"name", "requester", "groups", "subject", "service", "permissions", "duration", "reason", "at", "expect",
	}, nil, "break_glass", "extended_to", "delegable")...)
	if f == nil {
		return Test{}
	}
	t := Test{Line: n.Line, Request: Request{Start: quietMoment()}}
	if v := r.must(n, f, "name"); v != nil {
		t.Name = r.text(v, "name")
	}
	if v := r.must(n, f, "requester"); v != nil {
		t.Request.Requester = r.id(v, "requester")
	}
	t.Request.Subject = t.Request.Requester
	if v := f["subject"]; v != nil {
		t.Request.Subject = r.id(v, "subject")
	}
	if v := f["groups"]; v != nil {
		for _, item := range r.items(v, "groups", "[engineers]") {
			t.Request.Groups = append(t.Request.Groups, r.group(item))
		}
	}
	t.Request.Scope = r.scope(n, f)
	if v := r.must(n, f, "duration"); v != nil {
		t.Request.Duration = r.duration(v, "duration", time.Second, MaxDuration)
	}
	if v := f["reason"]; v != nil {
		t.Request.Reason = r.text(v, "reason")
	}
	if v := f["delegable"]; v != nil {
		t.Request.Delegable = r.yes(v, "delegable", "leave it out to ask for oneself alone")
	}
	if v := f["extended_to"]; v != nil {
		t.Request.Total = r.duration(v, "extended_to", time.Second, MaxDuration)
	}
	if v := f["break_glass"]; v != nil {
		t.Request.BreakGlass = r.yes(v, "break_glass", "leave it out to ask as usual")
	}
	if v := f["at"]; v != nil {
		at, err := time.Parse(time.RFC3339, v.Value)
		if v.Kind != yaml.ScalarNode || err != nil {
			r.fail(v, "at is %s: write a time such as 2026-03-02T22:30:00Z", kindOf(v))
		}
		t.Request.Start = at.UTC()
	}
	if v := r.must(n, f, "expect"); v != nil {
		t.want = r.expectation(v)
	}
	return t
}

func (r *reader) id(n *yaml.Node, what string) spiffeid.ID {
	text := r.text(n, what)
	if text == "" {
		return spiffeid.ID{}
	}
	id, err := spiffeid.FromString(text)
	if err != nil || id.Path() == "" {
		r.fail(n, "%s: %q is not the SPIFFE ID of anybody: write spiffe://TRUST-DOMAIN/PATH", what, text)
	}
	return id
}

func (r *reader) scope(n *yaml.Node, f map[string]*yaml.Node) grant.Scope {
	service, permissions := r.must(n, f, "service"), r.must(n, f, "permissions")
	if service == nil || permissions == nil {
		return grant.Scope{}
	}
	name := r.text(service, "service")
	var texts []string
	for _, item := range r.items(permissions, "permissions", `["GET /accounts/42"]`) {
		texts = append(texts, r.text(item, "permissions"))
	}
	if name == "" || len(texts) == 0 || slices.Contains(texts, "") {
		return grant.Scope{}
	}
	s, err := grant.ParseScope(name, texts)
	if err != nil {
		r.fail(permissions, "%v", err)
	}
	return s
}

func (r *reader) expectation(n *yaml.Node) expectation {
	f := r.fields(n, "expect", r.keys([]string{"deny", "auto", "require", "max_duration", "certificate_ttl", "rules"}, nil, "break_glass", "review", "step_up", "channels", "escalate")...)
	if f == nil {
		return expectation{}
	}
	var q rule
	var w expectation
	if v := f["break_glass"]; v != nil {
		w.breakGlass = r.yes(v, "break_glass", "or expect something else")
		for _, key := range []string{"require", "auto", "deny"} {
			if f[key] != nil {
				r.fail(f[key], "%s together with break_glass: keep one of require, auto, deny and break_glass", key)
			}
		}
	} else {
		r.verdict(n, f, &q)
		w = expectation{deny: q.deny, auto: q.auto, require: q.require}
	}
	if v := f["review"]; v != nil {
		if !w.breakGlass {
			r.fail(v, "review of what breaks no glass: leave it out")
		}
		w.review = r.groupNames(v, "review", "[security]")
		slices.Sort(w.review)
	}
	if v := f["escalate"]; v != nil {
		if e := r.escalate(v, f, nil); e != nil {
			w.escalation = &Escalation{After: e.after, Require: sorted(e.to)}
		}
	}
	w.require = sorted(w.require)
	for key, to := range map[string]*time.Duration{"max_duration": &w.maxDuration, "certificate_ttl": &w.certificateTTL, "step_up": &w.stepUp} {
		v := f[key]
		switch {
		case v == nil:
		case f["deny"] != nil:
			r.fail(v, "%s of what is denied: leave it out", key)
		default:
			*to = r.duration(v, key, MinDuration, MaxDuration)
		}
	}
	if v := f["channels"]; v != nil {
		switch {
		case f["deny"] != nil:
			r.fail(v, "channels of what is denied: leave it out")
		case v.Kind == yaml.SequenceNode && len(v.Content) == 0:
			w.channels = []string{} // certificates alone
		default:
			w.channels = r.channelNames(r.items(v, "channels", "[slack]"))
		}
	}
	if v := f["rules"]; v != nil {
		for _, item := range r.items(v, "rules", "[payments-read]") {
			w.rules = append(w.rules, r.name(item))
		}
		slices.Sort(w.rules)
	}
	return w
}
