package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/attribute"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

// placeholderID stands for the id that a grant does not have yet.
const placeholderID = "00000000-0000-7000-8000-000000000000"

// asked is an access request that was read and understood.
type asked struct {
	subject spiffeid.ID
	scope   grant.Scope
	start   int64
	csrKey  string
	extends string   // a grant; "": it asks for one of its own
	bundles []string // that scope was made of, ascending
	in      api.RequestInput
}

func (n *node) understand(call api.Call, in api.RequestInput) (asked, error) {
	a := asked{subject: call.Caller.ID, in: in}
	var err error
	if in.Subject != "" {
		if a.subject, err = parseSPIFFEID("subject", in.Subject); err != nil {
			return a, err
		}
	}
	if err = grant.ValidService(in.Service); err != nil {
		return a, api.NewProblem(api.CodeInvalid, err.Error(), "see what there is: hallpass request search")
	}
	if len(in.Permissions) == 0 && len(in.Bundles) > 0 {
		// What they stand for is up to the policy in force: see expanded.
	} else if a.scope, err = grant.ParseScope(in.Service, in.Permissions); err != nil {
		return a, api.NewProblem(api.CodeInvalid, err.Error(), "permissions are written as: GET,HEAD /accounts/**")
	}
	if in.Duration <= 0 {
		return a, api.NewProblem(api.CodeInvalid, "duration: must be above 0", "want a form such as 30m")
	}
	if in.Start != nil {
		a.start = in.Start.UnixMilli()
	}
	if in.CSR != "" {
		if a.csrKey, err = keyOfCSR(in.CSR); err != nil {
			return a, err
		}
	}
	return a, nil
}

// keyOfCSR names the public key of a CSR.
func keyOfCSR(text string) (string, error) {
	key, err := ca.ParseCSR([]byte(text))
	if err != nil {
		return "", csrProblem(err)
	}
	return ca.Fingerprint(key)
}

// decide asks the policy in force what it says to a request, and under which
// revisions it says so.
func (n *node) decide(ctx context.Context, s approval.State, who spiffeid.ID, a asked) (verdict, error) {
	rev, err := s.Revisions()
	if err != nil {
		return verdict{}, err
	}
	p, err := s.Rules()
	if err != nil {
		return verdict{}, err
	}
	total, from, err := extends(s, a)
	if err != nil {
		return verdict{}, err
	}
	groups := s.GroupsOf(s.PersonName(who))
	if a, err = expanded(p, who, groups, a); err != nil {
		return verdict{}, err
	}
	r := policy.Request{
		Total:     total,
		Requester: who, Groups: groups, Subject: a.subject, Scope: a.scope,
		Duration: time.Duration(a.in.Duration), Reason: a.in.Reason, Start: n.begins(max(a.start, from)), BreakGlass: a.in.BreakGlass, Delegable: a.in.Delegable,
	}
	if r.Answers, err = n.answers(ctx, p, r); err != nil {
		return verdict{}, err
	}
	return verdict{policy.Decide(p, r), rev, r.Answers, a}, nil
}

// verdict is what the policy says to a request, the revisions under which it says
// so, and what its conditions came to.
type verdict struct {
	policy.Outcome

	rev     approval.Revisions
	answers []policy.Answer
	asked   asked // with what its bundles stand for
}

// DryRun implements api.RequestBackend.
func (b backend) DryRun(ctx context.Context, call api.Call, in api.RequestInput) (api.DryRun, error) {
	a, err := b.understand(call, in)
	if err != nil {
		return api.DryRun{}, err
	}
	return b.wouldBe(ctx, call, a)
}

// wouldBe says what the policy would answer.
func (b backend) wouldBe(ctx context.Context, call api.Call, a asked) (out api.DryRun, err error) {
	err = b.view(ctx, call, func(s approval.State) error {
		o, err := b.decide(ctx, s, call.Caller.ID, a)
		if err != nil {
			return err
		}
		out = api.DryRun{
			Allowed: o.Allowed, Auto: o.Auto, Rules: list(o.Rules), Reason: o.Reason,
			MaxDuration: api.Duration(o.MaxDuration), CertificateTTL: api.Duration(o.CertificateTTL),
			StepUp: api.Duration(o.StepUp), PolicyRevision: o.rev.Policy, BreakGlass: wouldBreak(o.BreakGlass), Escalation: wouldEscalate(o.Escalation), Delegation: wouldDelegate(o.Delegation),
			Require: mapped(o.Require, func(q policy.Requirement) api.Requirement {
				return api.Requirement{Group: q.Group, Approvals: q.Approvals}
			}),
		}
		out.Permissions, a = o.asked.scope.Texts(), o.asked
		return nil
	})
	if err != nil {
		return out, err
	}
	id, err := grant.NewID(b.grantDomain, a.scope, a.subject, placeholderID)
	if err != nil {
		return out, api.NewProblem(api.CodeInvalid, err.Error(), "ask for less, or in more than one request")
	}
	out.SPIFFEID = id.String()
	return out, nil
}

// CreateRequest implements api.RequestBackend. What the policy says here is a
// courtesy: Apply asks it again.
func (b backend) CreateRequest(ctx context.Context, call api.Call, in api.RequestInput) (out api.Request, err error) {
	a, err := b.understand(call, in)
	if err != nil {
		return out, b.counted(ctx, err)
	}
	return b.ask(ctx, call, a)
}

// ask opens a request.
func (b backend) ask(ctx context.Context, call api.Call, a asked) (out api.Request, err error) {
	in := a.in
	id, err := uuid.NewV7()
	if err != nil {
		return out, fmt.Errorf("request id: %w", err)
	}
	ctx, span := b.spans.Start(ctx, "request.create")
	defer func() { ended(span, err) }()
	span.SetAttributes(grantAttr(id.String()), attribute.String("hallpass.service", in.Service))
	var res approval.Result
	err = rebuilt(func() error {
		var o verdict
		if err := b.look(ctx, call, func(s approval.State) error {
			var err error
			if o, err = b.decide(ctx, s, call.Caller.ID, a); err != nil {
				return err
			}
			if o.Allowed {
				return checkID(id, o.rev)
			}
			// Refused before the commit: whoever asks for what no rule gives must
			// not make the log grow.
			return api.NewProblem(api.CodeDenied, o.Reason, "see which rule would decide: ask the same with dry_run ("+a.command()+" --dry-run)")
		}); err != nil {
			return err
		}
		res, err = b.propose(ctx, call, approval.CreateRequest{
			ID: id.String(), Subject: a.subject.String(), Service: in.Service, Permissions: o.asked.scope.Texts(), Bundles: o.asked.bundles,
			Reason: in.Reason, Start: a.start, Duration: time.Duration(in.Duration).Milliseconds(), CSRKey: a.csrKey,
			PolicyRevision: o.rev.Policy, DirectoryRevision: o.rev.Directory, Answers: mapped(o.answers, toAnswer),
			BreakGlass: in.BreakGlass, Extends: a.extends, Delegable: in.Delegable,
		})
		return err
	})
	if err != nil {
		return out, b.counted(ctx, err)
	}
	if r, ok := res.Object.(approval.Request); ok && r.Review != nil && (res.Changed || res.Replayed) { // at least once: whose first try got no answer is replayed
		b.glassBroken(ctx, r)
	}
	return b.requestResult(ctx, call, res)
}

// command is what a person asks by.
func (a asked) command() string {
	switch {
	case a.in.BreakGlass:
		return "hallpass breakglass"
	case a.extends != "":
		return "hallpass request extend"
	default:
		return "hallpass request create"
	}
}

// requestResult shows the request that a command changed. A replayed answer is
// shown only to who may still see it.
func (b backend) requestResult(ctx context.Context, call api.Call, res approval.Result) (out api.Request, err error) {
	r, ok := res.Object.(approval.Request)
	if !ok {
		return out, fmt.Errorf("result is a %T, not a request", res.Object)
	}
	if r.Ended != 0 && res.Changed && (r.Review == nil || len(r.Review.Findings) == 0) { // else it was decided before
		b.metrics.requestDecided(ctx, string(r.State), r.Ended.Time().Sub(r.Created.Time()))
	}
	err = b.told(func(s approval.State) error {
		if res.Replayed {
			e, err := eyesOf(s, call.Caller.ID)
			if err != nil {
				return err
			}
			if !e.sees(r) {
				return notFound("request", r.ID)
			}
		}
		var err error
		out, err = b.wireRequest(s, r)
		return err
	})
	return out, err
}

// visibleRequest reads a request if the caller may see it.
func visibleRequest(s approval.State, who spiffeid.ID, id string) (approval.Request, error) {
	r, err := s.Request(id)
	if errors.Is(err, approval.ErrNotFound) {
		return r, notFound("request", id)
	}
	if err != nil {
		return r, err
	}
	e, err := eyesOf(s, who)
	if err != nil {
		return r, err
	}
	if !e.sees(r) {
		return approval.Request{}, notFound("request", id)
	}
	return r, nil
}

// Request implements api.RequestBackend.
func (b backend) Request(ctx context.Context, call api.Call, id string, wait api.Wait) (out api.Request, index uint64, err error) {
	look := func(s approval.State) error {
		r, err := visibleRequest(s, call.Caller.ID, id)
		if err != nil {
			return err
		}
		if out, err = b.wireRequest(s, r); err != nil {
			return err
		}
		index = r.Index
		if g, err := s.Grant(id); err == nil {
			index = max(index, g.Index)
		}
		return nil
	}
	seen := b.store.Index()
	if err := b.view(ctx, call, look); err != nil || wait.For == 0 {
		return out, index, err
	}
	waiting, cancel := b.waiting(ctx, call, wait.For)
	defer cancel()
	for index <= wait.Index {
		if seen, err = b.store.Wait(waiting, seen); err != nil {
			if waiting.Err() != nil && ctx.Err() == nil {
				return out, index, nil // nothing changed in time, or the node stops
			}
			return out, index, storeProblem(err)
		}
		read := b.shown
		if call.Stale {
			read = b.local
		}
		if err := read(look); err != nil {
			return out, index, err
		}
	}
	return out, index, nil
}

func filter(f api.Filter) approval.Filter {
	return approval.Filter{
		State: f.State, Service: f.Service, Subject: f.Subject, Requester: f.Requester, Limit: f.Limit, Cursor: f.Cursor,
	}
}

// Requests implements api.RequestBackend.
func (b backend) Requests(ctx context.Context, call api.Call, f api.Filter) (api.RequestList, error) {
	return b.requestPage(ctx, call, f, approval.State.Requests)
}

// requestPage is a page of those of a list's requests that the caller may see.
func (b backend) requestPage(
	ctx context.Context, call api.Call, f api.Filter, list func(approval.State, approval.Filter) ([]approval.Request, string, error),
) (out api.RequestList, err error) {
	out.Requests = []api.Request{}
	err = b.view(ctx, call, func(s approval.State) error {
		e, err := eyesOf(s, call.Caller.ID)
		if err != nil {
			return err
		}
		page, cursor, err := visiblePage(e.among(filter(f)), func(f approval.Filter) ([]approval.Request, string, error) { return list(s, f) }, e.sees, weighRequest)
		if err != nil {
			return err
		}
		out.Next = cursor
		for _, r := range page {
			w, err := b.wireRequest(s, r)
			if err != nil {
				return err
			}
			out.Requests = append(out.Requests, w)
		}
		return nil
	})
	return out, err
}

// DecideRequest implements api.RequestBackend.
func (b backend) DecideRequest(ctx context.Context, call api.Call, id string, in api.DecisionInput) (out api.Request, err error) {
	var res approval.Result
	reader := call
	err = rebuilt(func() error {
		var r approval.Request
		body := approval.DecideRequest{
			Request: id, Hash: in.Hash, Verdict: approval.Verdict(in.Decision), Comment: in.Comment,
			Duration: time.Duration(in.Duration).Milliseconds(), Slack: in.Slack,
		}
		if err := b.look(ctx, call, func(s approval.State) error {
			var err error
			if in.Slack != "" {
				if reader.Caller.ID, err = eyesInSlack(s, call.Caller.ID, in.Slack); err != nil {
					return err
				}
			}
			if r, err = decidableRequest(s, reader.Caller.ID, id); err != nil {
				return err
			}
			if len(in.Permissions) > 0 {
				scope, err := grant.ParseScope(r.Service, in.Permissions)
				if err != nil {
					return api.NewProblem(api.CodeInvalid, err.Error(), "permissions are written as: GET,HEAD /accounts/**")
				}
				body.Permissions = scope.Texts()
			}
			return b.answerDecision(ctx, s, r, &body)
		}); err != nil {
			return err
		}
		ctx, span := b.continued(ctx, "request.decide", r.Trace, grantAttr(id), attribute.String("hallpass.decision", in.Decision))
		res, err = b.propose(ctx, call, body)
		ended(span, err)
		return err
	})
	if err != nil {
		return out, b.counted(ctx, err)
	}
	return b.requestResult(ctx, reader, res)
}

// eyesInSlack is whose eyes the bridge reads with: those of the person whose account
// it says. Somebody else would read requests in others' names.
func eyesInSlack(s approval.State, bridge spiffeid.ID, account string) (spiffeid.ID, error) {
	p, err := s.SlackVoter(bridge, account)
	if err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromString(p.IDs[0]) // one has one at least
}

// CancelRequest implements api.RequestBackend.
func (b backend) CancelRequest(ctx context.Context, call api.Call, id string) (out api.Request, err error) {
	if err := b.look(ctx, call, func(s approval.State) error {
		_, err := visibleRequest(s, call.Caller.ID, id)
		return err
	}); err != nil {
		return out, b.counted(ctx, err)
	}
	res, err := b.propose(ctx, call, approval.CancelRequest{Request: id})
	if err != nil {
		return out, b.counted(ctx, err)
	}
	return b.requestResult(ctx, call, res)
}
