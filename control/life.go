package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

// OpenReviews implements api.LifeBackend.
func (b backend) OpenReviews(ctx context.Context, call api.Call, f api.Filter) (api.RequestList, error) {
	return b.requestPage(ctx, call, f, approval.State.Reviews)
}

// CloseReview implements api.LifeBackend.
func (b backend) CloseReview(ctx context.Context, call api.Call, id string, in api.ReviewInput) (out api.Request, err error) {
	var r approval.Request
	if err := b.look(ctx, call, func(s approval.State) (err error) {
		r, err = visibleRequest(s, call.Caller.ID, id)
		return err
	}); err != nil {
		return out, b.counted(ctx, err)
	}
	ctx, span := b.continued(ctx, "review.close", r.Trace, grantAttr(id))
	defer func() { ended(span, err) }()
	res, err := b.propose(ctx, call, approval.CloseReview{Request: id, Finding: in.Finding})
	if err != nil {
		return out, b.counted(ctx, err)
	}
	return b.requestResult(ctx, call, res)
}

// ExtendGrant implements api.LifeBackend.
func (b backend) ExtendGrant(ctx context.Context, call api.Call, id string, in api.ExtendInput) (out api.Request, err error) {
	a, err := b.extension(ctx, call, id, in)
	if err != nil {
		return out, b.counted(ctx, err)
	}
	return b.ask(ctx, call, a)
}

// DelegateGrant implements api.LifeBackend. No policy is asked: it has let the grant
// be delegated, and Apply checks that this is within it.
func (b backend) DelegateGrant(ctx context.Context, call api.Call, id string, in api.DelegateInput) (out api.Request, err error) {
	subject, err := parseSPIFFEID("subject", in.Subject)
	if err != nil {
		return out, b.counted(ctx, err)
	}
	if in.Duration <= 0 {
		return out, b.counted(ctx, api.NewProblem(api.CodeInvalid, "duration: must be above 0", "want a form such as 10m"))
	}
	made, err := uuid.NewV7()
	if err != nil {
		return out, fmt.Errorf("request id: %w", err)
	}
	var res approval.Result
	err = rebuilt(func() error {
		var g approval.Grant
		body := approval.CreateRequest{
			ID: made.String(), Parent: id, Subject: subject.String(), Reason: in.Reason, Duration: time.Duration(in.Duration).Milliseconds(),
		}
		if err := b.look(ctx, call, func(s approval.State) (err error) {
			if g, err = visibleGrant(s, call.Caller.ID, id); err != nil {
				return err
			}
			rev, err := s.Revisions()
			body.PolicyRevision, body.DirectoryRevision = rev.Policy, rev.Directory
			return errors.Join(err, checkID(made, rev))
		}); err != nil {
			return err
		}
		body.Service, body.Permissions = g.Service, g.Permissions
		if len(in.Permissions) > 0 {
			scope, err := grant.ParseScope(g.Service, in.Permissions)
			if err != nil {
				return api.NewProblem(api.CodeInvalid, err.Error(), "permissions are written as: GET,HEAD /accounts/**")
			}
			body.Permissions = scope.Texts()
		}
		ctx, span := b.continued(ctx, "grant.delegate", g.Trace, grantAttr(made.String()))
		res, err = b.propose(ctx, call, body)
		ended(span, err)
		return err
	})
	if err != nil {
		return out, b.counted(ctx, err)
	}
	return b.requestResult(ctx, call, res)
}

func wireDelegation(d *approval.Delegation) *api.Delegation {
	if d == nil {
		return nil
	}
	return &api.Delegation{To: list(d.To), Most: d.Most, MaxDuration: duration(d.MaxDurationMS)}
}

// wouldDelegate shows what the policy lets be done with a delegable request.
func wouldDelegate(d *policy.Delegation) *api.Delegation {
	if d == nil {
		return nil
	}
	return &api.Delegation{To: list(d.To), Most: d.Most, MaxDuration: api.Duration(d.MaxDuration)}
}

// DryRunExtend implements api.LifeBackend.
func (b backend) DryRunExtend(ctx context.Context, call api.Call, id string, in api.ExtendInput) (out api.DryRun, err error) {
	a, err := b.extension(ctx, call, id, in)
	if err != nil {
		return out, err
	}
	return b.wouldBe(ctx, call, a)
}

// extension reads what a request for one asks for: all that the grant is, for longer.
func (b backend) extension(ctx context.Context, call api.Call, id string, in api.ExtendInput) (a asked, err error) {
	if in.Duration <= 0 {
		return a, api.NewProblem(api.CodeInvalid, "duration: must be above 0", "want a form such as 30m")
	}
	var g approval.Grant
	if err := b.look(ctx, call, func(s approval.State) (err error) {
		g, err = visibleGrant(s, call.Caller.ID, id)
		return err
	}); err != nil {
		return a, err
	}
	if a.subject, err = spiffeid.FromString(g.Subject); err != nil {
		return a, err
	}
	if a.scope, err = grant.ParseScope(g.Service, g.Permissions); err != nil {
		return a, err
	}
	a.in = api.RequestInput{Service: g.Service, Permissions: g.Permissions, Reason: in.Reason, Duration: in.Duration}
	a.extends = g.ID
	return a, nil
}

// extends looks at the grant that a request would extend: how long it would live in
// all, and from when on it would live longer. Both are 0 for one that extends none.
func extends(s approval.State, a asked) (total time.Duration, from int64, err error) {
	if a.extends == "" {
		return 0, 0, nil
	}
	g, err := s.Grant(a.extends)
	return approval.TotalLife(g, time.Duration(a.in.Duration).Milliseconds()), int64(g.Expiry), err
}

// wireExtends shows the grant that r extends, if it does.
func (n *node) wireExtends(s approval.State, r approval.Request, out *api.Request, given map[string]int) error {
	if r.Extends == nil {
		return nil
	}
	to := r.Extends.From + approval.Millis(r.Current().DurationMS)
	out.Extends = &api.Extends{Grant: r.Extends.Grant, From: r.Extends.From.Time(), To: to.Time()}
	if r.State != approval.RequestApproved {
		return nil
	}
	for _, q := range r.Current().Requirements {
		if r.Escalated != 0 {
			break // it may be others who did
		}
		given[q.Group] = q.Approvals // or it would not have been approved
	}
	g, err := s.Grant(r.Extends.Grant)
	if errors.Is(err, approval.ErrNotFound) {
		return nil // forgotten
	}
	wire := n.wireGrant(g)
	out.Grant = &wire
	return err
}

// glassBroken makes it heard that somebody did without approval: at once, where
// whoever watches the cluster looks.
func (n *node) glassBroken(ctx context.Context, r approval.Request) {
	n.metrics.brokenGlass(ctx)
	n.log.LogAttrs(ctx, slog.LevelWarn, "the glass was broken: access without approval, to be reviewed",
		slog.String("request", r.ID), slog.String("requester", r.Requester), slog.String("person", r.RequesterPerson),
		slog.String("service", r.Service), slog.Any("permissions", r.Current().Permissions), slog.String("reason", r.Reason),
		slog.Any("review", r.Review.Groups), slog.Time("due", r.Review.Due.Time()))
}

// wireReview shows the review of a request, nil where there is none.
func (n *node) wireReview(s approval.State, r approval.Request) *api.BreakGlass {
	v := r.Review
	if v == nil {
		return nil
	}
	open := s.OpenReview(r)
	return &api.BreakGlass{
		DueAt: moment(v.Due), ClosedAt: moment(v.Closed), WaitsFor: list(open),
		Overdue: v.Closed == 0 && v.Due <= approval.MillisOf(n.now()),
		Review: mapped(v.Groups, func(g string) api.Requirement {
			q := api.Requirement{Group: g, Approvals: 1, Given: 1}
			if slices.Contains(open, g) {
				q.Given = 0
			}
			return q
		}),
		Findings: mapped(v.Findings, func(f approval.Finding) api.Finding {
			return api.Finding{Person: f.Person, Identity: f.Actor, Finding: f.Text, At: f.At.Time()}
		}),
	}
}

// wouldBreak shows what the policy makes of a request to break the glass.
func wouldBreak(b *policy.BrokenGlass) *api.BreakGlass {
	if b == nil {
		return nil
	}
	out := &api.BreakGlass{Within: api.Duration(b.ReviewWithin), Findings: []api.Finding{}, WaitsFor: []string{}}
	for _, q := range b.Review {
		out.Review = append(out.Review, api.Requirement{Group: q.Group, Approvals: q.Approvals})
		out.WaitsFor = append(out.WaitsFor, q.Group)
	}
	return out
}
