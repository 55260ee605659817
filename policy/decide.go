package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// Decide says what the policy makes of a request. It is pure, and denies
// whenever the policy is nil or empty or the request is incomplete.
func Decide(p *Policy, r Request) Outcome {
	if reason := incomplete(p, r); reason != "" {
		return Outcome{Reason: reason}
	}
	wanted := r.Scope.Permissions()
	applying, missed, reason := p.applying(r)
	if reason != "" {
		return Outcome{Reason: reason}
	}
	out := Outcome{Rules: ruleNames(applying)}
	for _, q := range applying {
		if q.deny != "" {
			out.Reason = denyReason(q, r.Scope)
			return out
		}
	}
	for _, w := range wanted {
		if !covered(applying, w) {
			out.Reason = uncoveredReason(p, r, missed, w)
			return out
		}
	}
	if out.Reason = wrongReason(applying, r.Reason); out.Reason != "" {
		return out
	}
	if out = strictest(applying, r.Duration, out); !out.Allowed {
		return out
	}
	out.Notify = told(applying)
	if r.Total != 0 {
		if reason := unextended(applying, r); reason != "" {
			return Outcome{Rules: out.Rules, Reason: reason}
		}
	}
	if r.Delegable {
		var reason string
		if out.Delegation, reason = undelegated(applying, r); reason != "" {
			return Outcome{Rules: out.Rules, Reason: reason}
		}
	}
	if !r.BreakGlass {
		if !out.Auto {
			out.Escalation = escalated(applying, out.Require)
		}
		return out
	}
	if reason := unbroken(applying, r); reason != "" {
		return Outcome{Rules: out.Rules, Reason: reason}
	}
	return broken(applying, out)
}

// incomplete returns why nothing can be decided, or "".
func incomplete(p *Policy, r Request) string {
	switch {
	case p == nil || len(p.rules) == 0:
		return "the policy has no rules, and what no rule allows is denied; an admin has to propose a policy"
	case r.Requester.IsZero():
		return "the request does not say who asks"
	case r.Subject.IsZero():
		return "the request does not say whom it is for"
	case r.Scope.IsZero() || len(r.Scope.Permissions()) == 0:
		return "the request has no scope: name a service and at least one permission"
	case r.Duration <= 0:
		return fmt.Sprintf("the request is for %s: ask for a duration above zero", r.Duration)
	}
	return ""
}

// strictest completes the outcome of a request that the applying rules, none
// of which denies, cover.
func strictest(applying []rule, asked time.Duration, out Outcome) Outcome {
	out.Auto = true
	need := make(map[string]int)
	var shortest rule
	for i, q := range applying {
		out.Auto = out.Auto && q.auto
		for _, require := range q.require {
			need[require.Group] = max(need[require.Group], require.Approvals)
		}
		if i == 0 || q.maxDuration < shortest.maxDuration {
			shortest = q
		}
		if i == 0 || q.certificateTTL < out.CertificateTTL {
			out.CertificateTTL = q.certificateTTL
		}
	}
	if asked > shortest.maxDuration {
		return Outcome{
			Rules: out.Rules, MaxDuration: shortest.maxDuration,
			Reason: fmt.Sprintf("%s is longer than the %s that rule %q allows; ask for at most %s",
				span(asked), span(shortest.maxDuration), shortest.name, span(shortest.maxDuration)),
		}
	}
	for _, group := range slices.Sorted(maps.Keys(need)) {
		out.Require = append(out.Require, Requirement{Group: group, Approvals: need[group]})
	}
	out.MaxDuration, out.StepUp, out.Channels = shortest.maxDuration, stepUp(applying), channels(applying)
	out.Allowed = len(applying) > 0 && (out.Auto || len(out.Require) > 0)
	return out
}

// isAbout reports whether the rule is about a service: by its name, or as one of
// those that the policy lists.
func (p *Policy) isAbout(q rule, service string) bool {
	if q.service == anyService {
		_, listed := p.services[service]
		return listed
	}
	return q.service == service
}

// concerns reports whether the rule, which is about the service, is about these
// people.
func (q rule) concerns(requester spiffeid.ID, groups []string, subject spiffeid.ID) bool {
	if !anyMatches(q.requesters, requester, groups) {
		return false
	}
	if q.deny != "" {
		// A denial that names no subjects holds for all: were it only for
		// oneself, asking by way of another identity would get around it.
		return len(q.subjects) == 0 || anyMatches(q.subjects, subject, nil)
	}
	return subject == requester || anyMatches(q.subjects, subject, nil)
}

func overlapsAny(have, wanted []grant.Permission) bool {
	for _, w := range wanted {
		if slices.ContainsFunc(have, func(h grant.Permission) bool { return h.Overlaps(w) }) {
			return true
		}
	}
	return false
}

// covered reports whether every call that wanted allows lies within the rules'
// permissions. Methods may be covered by different rules, because a scope
// always merges the methods of one path.
func covered(rules []rule, wanted grant.Permission) bool {
	for _, w := range perMethod(wanted) {
		ok := slices.ContainsFunc(rules, func(q rule) bool {
			return slices.ContainsFunc(q.permissions, func(h grant.Permission) bool { return h.Covers(w) })
		})
		if !ok {
			return false
		}
	}
	return true
}

// perMethod splits an HTTP permission into one per method; others, and what
// cannot be split, are returned whole.
func perMethod(p grant.Permission) []grant.Permission {
	methods, path, ok := strings.Cut(p.String(), " ")
	if p.Kind() != grant.KindHTTP || !ok || !strings.Contains(methods, ",") {
		return []grant.Permission{p}
	}
	var split []grant.Permission
	for method := range strings.SplitSeq(methods, ",") {
		one, err := grant.ParsePermission(method + " " + path)
		if err != nil {
			return []grant.Permission{p}
		}
		split = append(split, one)
	}
	return split
}

func ruleNames(rules []rule) []string {
	var names []string
	for _, q := range rules {
		names = append(names, q.name)
	}
	return names
}

func denyReason(q rule, s grant.Scope) string {
	for _, wanted := range s.Permissions() {
		for _, denied := range q.permissions {
			if !denied.Overlaps(wanted) {
				continue
			}
			if denied.Covers(wanted) {
				return fmt.Sprintf("rule %q denies %q: %s", q.name, wanted, q.deny)
			}
			return fmt.Sprintf("rule %q denies %q, which %q overlaps: %s; ask for less", q.name, denied, wanted, q.deny)
		}
	}
	return fmt.Sprintf("rule %q denies it: %s", q.name, q.deny)
}

// uncoveredReason says how far from any rule a wanted permission is, so that
// whoever asks knows whether to change the service, the subject or the
// permission, or to ask for a rule.
func uncoveredReason(p *Policy, r Request, missed []rule, wanted grant.Permission) string {
	service := r.Scope.Service()
	for _, q := range missed {
		if q.deny == "" && covered([]rule{q}, wanted) {
			return fmt.Sprintf("no rule allows %q at %q as things are; rule %q would if this held: %s", wanted, service, q.name, q.match.text)
		}
	}
	if len(p.naming(r.Requester, r.Groups)) == 0 {
		// Who tries names must not learn which services there are, nor who may ask for them.
		return fmt.Sprintf("no rule lets %s ask for anything; have an admin see to it", r.Requester)
	}
	var about, naming, fitting []rule
	for _, q := range p.rules {
		if q.deny != "" || !p.isAbout(q, service) {
			continue
		}
		about = append(about, q)
		if !anyMatches(q.requesters, r.Requester, r.Groups) {
			continue
		}
		naming = append(naming, q)
		if q.concerns(r.Requester, r.Groups, r.Subject) {
			fitting = append(fitting, q)
		}
	}
	switch {
	case len(about) == 0:
		return fmt.Sprintf("no rule allows anything at the service %q; rules allow access to: %s", service, list(services(p)))
	case len(naming) == 0:
		return fmt.Sprintf("no rule lets %s ask for anything at %q; rules for it name: %s", r.Requester, service, list(names(about, rule.requesterTexts)))
	case len(fitting) == 0:
		reason := fmt.Sprintf("no rule lets %s ask at %q for another subject, %s; ask for yourself", r.Requester, service, r.Subject)
		if others := names(naming, rule.subjectTexts); len(others) > 0 {
			reason += ", or for: " + list(others)
		}
		return reason
	default:
		return fmt.Sprintf("no rule allows %q at %q; rules that apply to you allow: %s", wanted, service, list(names(fitting, rule.permissionTexts)))
	}
}

func services(p *Policy) []string {
	var out []string
	for _, q := range p.rules {
		switch {
		case q.deny != "":
		case q.service == anyService:
			out = slices.AppendSeq(out, maps.Keys(p.services))
		default:
			out = append(out, q.service)
		}
	}
	return out
}

func names(rules []rule, texts func(rule) []string) []string {
	var out []string
	for _, q := range rules {
		out = append(out, texts(q)...)
	}
	return out
}

func (q rule) requesterTexts() []string  { return texts(q.requesters) }
func (q rule) subjectTexts() []string    { return texts(q.subjects) }
func (q rule) permissionTexts() []string { return texts(q.permissions) }

func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}

// list writes at most ten of the texts, sorted, each once.
func list(texts []string) string {
	const most = 10
	texts = slices.Compact(slices.Sorted(slices.Values(texts)))
	if len(texts) == 0 {
		return "nothing"
	}
	more := ""
	if len(texts) > most {
		more = fmt.Sprintf(" and %d more", len(texts)-most)
		texts = texts[:most]
	}
	return strings.Join(texts, ", ") + more
}

// span writes a duration without its zero parts: 1h, not 1h0m0s.
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
