package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/policy"
)

// escalationsAtOnce is how many requests one round of duties escalates.
const escalationsAtOnce = 64

// escalations has requests that have waited for as long as the policy says decided on by
// those whom it names then. Each is a command of its own, so that it is an entry of the
// audit log about this request, and told as one.
func (n *node) escalations(ctx context.Context) error {
	var due []string
	err := n.local(func(s approval.State) error {
		due = s.ToEscalate(approval.MillisOf(n.now()), escalationsAtOnce)
		return nil
	})
	if err != nil || len(due) == 0 {
		return err
	}
	if err := n.checkEpoch(); err != nil {
		return err
	}
	var failed error
	for _, id := range due {
		if ctx.Err() != nil {
			break
		}
		if err := n.escalate(ctx, id); err != nil && failed == nil {
			failed = fmt.Errorf("escalate request %s: %w", id, err)
		}
	}
	return failed
}

func (n *node) escalate(ctx context.Context, id string) (err error) {
	ctx, span := n.spans.Start(ctx, "request.escalate")
	defer func() { ended(span, err) }()
	span.SetAttributes(grantAttr(id))
	cmd, err := n.command(ctx, approval.EscalateRequest{Request: id})
	if err != nil {
		return err
	}
	res, err := n.commit(ctx, cmd)
	if errors.Is(err, approval.ErrConflict) || errors.Is(err, approval.ErrExpired) {
		return nil // somebody has decided meanwhile, or nobody will
	}
	if err != nil {
		return err
	}
	if r, ok := res.Object.(approval.Request); ok && res.Changed {
		n.metrics.requestEscalated(ctx)
		n.log.LogAttrs(ctx, slog.LevelInfo, "a request was escalated: nobody has decided in time",
			slog.String("request", r.ID), slog.String("service", r.Service), slog.Any("to", groupsOf(r.Alternative())))
	}
	return nil
}

func groupsOf(required []approval.Requirement) []string {
	return mapped(required, func(q approval.Requirement) string { return q.Group })
}

// wireEscalation shows who may approve r in place of others, and when; nil for nobody.
// Given are the votes of an approved one.
func wireEscalation(s approval.State, r approval.Request, given map[string]int) *api.Escalation {
	e := r.Current().Escalation
	if e == nil || r.Escalates() == 0 {
		return nil
	}
	if r.State != approval.RequestApproved {
		given = map[string]int{}
		for _, v := range s.Instead(r) {
			given[v.Group]++
		}
	}
	return &api.Escalation{
		After: duration(e.AfterMS), At: moment(r.Escalates()), EscalatedAt: moment(r.Escalated),
		Require: mapped(e.Requirements, func(q approval.Requirement) api.Requirement {
			return api.Requirement{Group: q.Group, Approvals: q.Approvals, Given: given[q.Group]}
		}),
	}
}

// wouldEscalate shows whom the policy names for a request that nobody decides on.
func wouldEscalate(e *policy.Escalation) *api.Escalation {
	if e == nil {
		return nil
	}
	return &api.Escalation{After: api.Duration(e.After), Require: mapped(e.Require, func(q policy.Requirement) api.Requirement {
		return api.Requirement{Group: q.Group, Approvals: q.Approvals}
	})}
}

// awaits reports whether a request is one that the caller may decide on once it is
// escalated. Until then it is not theirs to see.
func (e eyes) awaits(r approval.Request) bool {
	v := r.Current().Escalation
	return v != nil && r.State == approval.RequestPending && r.Escalates() != 0 &&
		slices.ContainsFunc(v.Requirements, func(q approval.Requirement) bool { return slices.Contains(e.groups, q.Group) })
}

// decidableRequest reads a request for who decides on it: one to whom it may be escalated
// is told when.
func decidableRequest(s approval.State, who spiffeid.ID, id string) (approval.Request, error) {
	r, err := visibleRequest(s, who, id)
	if err == nil {
		return r, nil
	}
	hidden, missing := s.Request(id)
	e, unknown := eyesOf(s, who)
	if missing == nil && unknown == nil && e.awaits(hidden) {
		return hidden, nil
	}
	return r, err
}
