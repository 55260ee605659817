package control

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
	"github.com/hallpass/hallpass/policy/condition"
)

// checkPolicyFor is how long the tests of a proposed policy may take in all. Any
// person may propose one.
const checkPolicyFor = 10 * time.Second

// conditions keeps those of the policy that was last asked about, compiled.
type conditions struct {
	last atomic.Pointer[condition.Set]
}

// of compiles the conditions of p, once as long as it is the policy in force.
func (c *conditions) of(p *policy.Policy) (*condition.Set, error) {
	if s := c.last.Load(); s != nil && s.Policy() == p {
		return s, nil
	}
	s, err := condition.Compile(p)
	if err != nil {
		return nil, err
	}
	c.last.Store(s)
	return s, nil
}

// answers are what the policy's conditions say to a request. One that cannot be
// evaluated refuses the request.
func (n *node) answers(ctx context.Context, p *policy.Policy, r policy.Request) ([]policy.Answer, error) {
	if !p.Conditional() {
		return nil, nil
	}
	s, err := n.compiled.of(p)
	if err == nil {
		var answers []policy.Answer
		if answers, err = s.Answer(ctx, r); err == nil {
			return answers, nil
		}
	}
	return nil, api.NewProblem(api.CodeDenied, err.Error(), "an admin has to mend the policy (hallpass policy propose)")
}

func toAnswer(a policy.Answer) approval.Answer { return approval.Answer(a) }

// begins is when a grant that is given now would begin.
func (n *node) begins(start int64) time.Time {
	now := n.now()
	if at := time.UnixMilli(start); start != 0 && at.After(now) {
		return at
	}
	return now
}

// startOf is from when on r would give access that there is not without it, 0 for
// at once.
func startOf(r approval.Request) int64 {
	if r.Extends != nil {
		return int64(r.Extends.From)
	}
	return int64(r.Start)
}

// answerDecision fills in what a decision on r says besides its caller's own
// words: the revisions that were looked at and, for an approval, what the policy's
// conditions say now, to the request as it is and as the decision narrows it.
func (n *node) answerDecision(ctx context.Context, s approval.State, r approval.Request, b *approval.DecideRequest) error {
	rev, err := s.Revisions()
	if err != nil {
		return err
	}
	b.PolicyRevision, b.DirectoryRevision = rev.Policy, rev.Directory
	p, err := s.Rules()
	if err != nil || b.Verdict != approval.Approve || !p.Conditional() {
		return err
	}
	v := r.Current()
	if b.Answers, err = n.answersAbout(ctx, s, r, v); err != nil {
		return err
	}
	was := v
	if len(b.Permissions) > 0 {
		v.Permissions = b.Permissions
	}
	if b.Duration != 0 {
		v.DurationMS = b.Duration
	}
	if v.DurationMS == was.DurationMS && slices.Equal(v.Permissions, was.Permissions) {
		return nil
	}
	b.Narrowed, err = n.answersAbout(ctx, s, r, v)
	return err
}

// answersAbout are the answers about r, with the scope and duration of v.
func (n *node) answersAbout(ctx context.Context, s approval.State, r approval.Request, v approval.Revision) ([]approval.Answer, error) {
	p, err := s.Rules()
	if err != nil {
		return nil, err
	}
	requester, err := spiffeid.FromString(r.Requester)
	if err != nil {
		return nil, err
	}
	subject, err := spiffeid.FromString(r.Subject)
	if err != nil {
		return nil, err
	}
	scope, err := grant.ParseScope(r.Service, v.Permissions)
	if err != nil {
		return nil, err
	}
	said, err := n.answers(ctx, p, policy.Request{
		Requester: requester, Groups: s.GroupsOf(s.PersonName(requester)), Subject: subject, Scope: scope,
		Duration: time.Duration(v.DurationMS) * time.Millisecond, Reason: r.Reason, Start: n.begins(startOf(r)),
	})
	if err != nil || len(said) == 0 {
		return nil, err
	}
	return mapped(said, toAnswer), nil
}

// checkProposed refuses a policy with a condition that does not compile or a test
// that fails, before it is committed. Apply checks all but these two: they go by an
// evaluator that it must not go by.
func checkProposed(ctx context.Context, yaml string) error {
	ctx, cancel := context.WithTimeout(ctx, checkPolicyFor)
	defer cancel()
	_, err := condition.Check(ctx, []byte(yaml))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, policy.ErrPolicy):
		return api.NewProblem(api.CodeInvalid, err.Error(), "see it offline: hallpass policy test FILE")
	case ctx.Err() != nil:
		return api.NewProblem(api.CodeInvalid, "the policy's tests did not end in "+checkPolicyFor.String(), "write fewer, or simpler conditions")
	default:
		return err
	}
}
