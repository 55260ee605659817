package control

import (
	"context"
	"log/slog"
	"slices"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/policy"
)

// OpenReviews implements api.LifeBackend.
func (b backend) OpenReviews(ctx context.Context, call api.Call, f api.Filter) (out api.RequestList, err error) {
	out.Requests = []api.Request{}
	err = b.view(ctx, call, func(s approval.State) error {
		e, err := eyesOf(s, call.Caller.ID)
		if err != nil {
			return err
		}
		page, cursor, err := visiblePage(e.among(filter(f)), s.Reviews, e.sees, weighRequest)
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
