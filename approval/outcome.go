package approval

import (
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/policy"
)

// outcome is what the policy in force says to r with the scope and duration of
// v, given the answers to its conditions. It looks at the groups that the
// requester's person is in now.
func (t *turn) outcome(r Request, v Revision, answers []Answer) (policy.Outcome, error) {
	p, err := t.state().Rules()
	if err != nil {
		return policy.Outcome{}, err
	}
	requester, err := spiffeid.FromString(r.Requester)
	if err != nil {
		return policy.Outcome{}, err
	}
	subject, err := spiffeid.FromString(r.Subject)
	if err != nil {
		return policy.Outcome{}, err
	}
	scope, err := t.scopeOf(r.Service, v.Permissions)
	if err != nil {
		return policy.Outcome{}, err
	}
	var groups []string
	person := t.person
	if requester != t.actor {
		person = t.state().personOf(requester)
	}
	if person != "" {
		groups = t.state().GroupsOf(person)
	}
	total, err := t.totalLife(r, v)
	if err != nil {
		return policy.Outcome{}, err
	}
	out := policy.Decide(p, policy.Request{
		Requester: requester, Groups: groups, Subject: subject, Scope: scope,
		Duration: time.Duration(v.DurationMS) * time.Millisecond, Reason: r.Reason, Answers: policyAnswers(answers),
		BreakGlass: r.Review != nil, Total: total, Delegable: r.Delegation != nil,
	})
	if out.Allowed && !out.Auto && len(requirements(out)) == 0 {
		// Nobody required must never read as nobody needed.
		out = policy.Outcome{Reason: "the policy requires no approval and does not say auto either"}
	}
	if n := len(seats(requirements(out))); n > MaxDecisions {
		out = policy.Outcome{Reason: fmt.Sprintf("it needs %d approvals, and a request has at most %d", n, MaxDecisions)}
	}
	if e := escalationOf(out.Escalation); e != nil && len(seats(e.Requirements)) > MaxDecisions {
		out = policy.Outcome{Reason: fmt.Sprintf("once it is escalated it needs %d approvals, and a request has at most %d", len(seats(e.Requirements)), MaxDecisions)}
	}
	return out, nil
}

func policyAnswers(all []Answer) []policy.Answer {
	var out []policy.Answer
	for _, a := range all {
		out = append(out, policy.Answer(a))
	}
	return out
}

// answerTexts are answers as an audit leaf has them.
func answerTexts(all []Answer) []string {
	var out []string
	for _, a := range all {
		out = append(out, fmt.Sprintf("%s=%t", a.Rule, a.Holds))
	}
	return out
}

// requirements are those of an outcome, by group.
func requirements(out policy.Outcome) []Requirement {
	all := make([]Requirement, 0, len(out.Require))
	for _, q := range out.Require {
		if q.Approvals > 0 {
			all = append(all, Requirement(q))
		}
	}
	slices.SortFunc(all, func(a, b Requirement) int {
		if a.Group < b.Group {
			return -1
		}
		return 1
	})
	return all
}

// checkRevisions refuses a command that was decided on from an older policy or
// directory than the ones in force.
func (t *turn) checkRevisions(policyRevision, directoryRevision uint64) error {
	if policyRevision == t.m.PolicyRevision && directoryRevision == t.m.DirectoryRevision {
		return nil
	}
	return (&Error{
		Code:   CodeStaleRevision,
		Detail: "the policy or the directory has changed meanwhile",
	}).then("try again")
}

// pin writes what the policy says about a revision into it, and its hash.
func pin(r *Request, v Revision, out policy.Outcome) (Revision, error) {
	v.Requirements, v.Auto, v.Escalation = requirements(out), out.Auto, escalationOf(out.Escalation)
	v.MaxDurationMS, v.CertificateTTL = out.MaxDuration.Milliseconds(), out.CertificateTTL.Milliseconds()
	hash, err := contentHash(*r, v)
	if err != nil {
		return Revision{}, err
	}
	v.Hash = hash
	r.Rules = out.Rules
	r.pinned(v)
	return v, nil
}

// pinned adds a revision.
func (r *Request) pinned(v Revision) {
	// Whoever approved an earlier revision did so under its lifetimes: those
	// only shrink.
	first := len(r.Revisions) == 0
	if first || v.MaxDurationMS < r.MaxDurationMS {
		r.MaxDurationMS = v.MaxDurationMS
	}
	if first || v.CertificateTTL < r.CertificateTTL {
		r.CertificateTTL = v.CertificateTTL
	}
	r.Auto = v.Auto
	r.Revisions = append(slices.Clone(r.Revisions), v)
}

// checkPinned refuses to go on with a request that the policy in force would
// treat differently from the one it was made under.
func (t *turn) checkPinned(r *Request, b DecideRequest) error {
	v, answers := r.Current(), b.Answers
	out, err := t.outcome(*r, v, answers)
	if err != nil {
		return err
	}
	d := delegationOf(out.Delegation)
	if out.Allowed && d.within(r.Delegation) && r.Delegation.within(d) && out.Auto == v.Auto && slices.Equal(requirements(out), v.Requirements) && escalationOf(out.Escalation).same(v.Escalation) &&
		out.MaxDuration.Milliseconds() == v.MaxDurationMS && out.CertificateTTL.Milliseconds() == v.CertificateTTL {
		if err := checkChannel(b, out.Channels); err != nil {
			return err
		}
		if t.m.version() >= 4 {
			// Others may ask as much and not take what was decided in Slack: they count from now on.
			r.Rules = out.Rules
		}
		return nil
	}
	if len(answers) > 0 {
		return stale("the policy no longer says the same about request %s: it, its conditions (the hour, perhaps) or who is in which group has changed", r.ID).
			then("cancel the request and ask again")
	}
	return stale("the policy, or who is in which group, has changed since request %s was made", r.ID).
		then("cancel the request and ask again")
}
