package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

// backend implements api.Backend on a node.
type backend struct{ *node }

var _ api.Backend = backend{}

// maxRebuilds is how often a command is built anew because policy or directory
// changed while it was on its way.
const maxRebuilds = 3

// view reads the state for a call: after everything acknowledged before it, or
// the node's own state when the call says so.
func (n *node) view(ctx context.Context, call api.Call, fn func(approval.State) error) error {
	if !call.Stale {
		if err := n.store.Linearize(ctx); err != nil {
			return storeProblem(err)
		}
		return n.shown(fn)
	}
	return n.local(fn)
}

// shown reads the node's own state for somebody who is to rely on it. What has
// ended depends on the time, so a node whose clock is off says nothing.
func (n *node) shown(fn func(approval.State) error) error {
	err := n.local(fn)
	if cerr := n.clock.check(n.now()); cerr != nil {
		return cerr
	}
	return err
}

// look is view for a call that goes on to propose a command. A yes from the
// leader's own state is enough, without asking a quorum whether it still leads:
// the command asks it, and Apply decides on everything again. A no would be the
// last word, so it is looked up. fn may run twice.
func (n *node) look(ctx context.Context, call api.Call, fn func(approval.State) error) error {
	if n.store.IsLeader() && n.local(fn) == nil {
		return nil
	}
	return n.view(ctx, call, fn)
}

// local reads the node's own state.
func (n *node) local(fn func(approval.State) error) error {
	err := n.store.View(func(r raftstore.Reader, _ uint64) error { return fn(n.memory.Read(r)) })
	return storeProblem(err)
}

// told is shown for a write that has been committed: whoever made it learns from
// another node, by asking again, what it came to.
func (n *node) told(fn func(approval.State) error) error {
	err := n.local(fn)
	if n.clock.check(n.now()) != nil {
		return ambiguous()
	}
	return err
}

// storeProblem turns the store's errors into what a caller can do about them.
func storeProblem(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raftstore.ErrAmbiguous):
		return ambiguous()
	case errors.Is(err, raftstore.ErrNotLeader), errors.Is(err, raftstore.ErrNoQuorum), errors.Is(err, raftstore.ErrClosed), errors.Is(err, raftstore.ErrHalted):
		return noLeader()
	case errors.Is(err, raftstore.ErrBusy):
		p := api.NewProblem(api.CodeUnavailable, "the cluster has more to write than it can", "try again in a moment, with the same Idempotency-Key")
		p.RetryAfter = time.Second
		return p
	case errors.Is(err, raftstore.ErrRecordsMissing):
		p := api.NewProblem(api.CodeUnavailable, "this node does not have these audit entries yet, and cannot get them from another now",
			"ask another node, or this one again later")
		p.RetryAfter = 5 * time.Second
		return p
	case errors.Is(err, raftstore.ErrTooLarge):
		return api.NewProblem(api.CodeTooLarge, "the call makes a command that is too large", "")
	}
	return err
}

// propose commits one command for a call and returns what it came to. The error
// is a refusal of the state machine, or says that nothing or something unknown
// happened.
func (n *node) propose(ctx context.Context, call api.Call, body approval.Body) (approval.Result, error) {
	if err := n.checkEpoch(); err != nil {
		return approval.Result{}, err
	}
	cmd, err := n.command(ctx, body)
	if err != nil {
		return approval.Result{}, err
	}
	cmd.Actor = call.Caller.ID.String()
	if call.Key != "" {
		cmd.Idem = &approval.Idem{Key: call.Key, BodyHash: call.BodyHash}
	}
	res, err := n.commit(ctx, cmd)
	if err == nil {
		err = storeProblem(n.failpoint("after a call's commit"))
	}
	return res, err
}

// command fills in what the node knows.
func (n *node) command(ctx context.Context, body approval.Body) (approval.Command, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return approval.Command{}, fmt.Errorf("command id: %w", err)
	}
	return approval.Command{
		V: max(int(n.version.Load()), 1), ID: id.String(), Now: n.now().UnixMilli(), Node: n.asserting(ctx), Trace: traceparent(ctx), Body: body,
	}, nil
}

// commit proposes a command and returns what it came to.
func (n *node) commit(ctx context.Context, cmd approval.Command) (res approval.Result, err error) {
	if err := n.clock.check(time.UnixMilli(cmd.Now)); err != nil {
		return res, err
	}
	data, err := cmd.Encode()
	if err != nil {
		return res, api.NewProblem(api.CodeInvalid, err.Error(), "")
	}
	ctx, span := n.spans.Start(ctx, "raft.commit")
	defer func() { ended(span, err) }()
	// The caller may leave; what it asked for is decided all the same, and its
	// key will find the outcome.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.limits.Propose)
	defer cancel()
	if err := n.failpoint("before the commit"); err != nil {
		return res, storeProblem(err)
	}
	_, raw, err := n.store.Propose(ctx, data)
	if err != nil {
		return res, storeProblem(err)
	}
	res, ok := raw.(approval.Result)
	if !ok {
		return res, fmt.Errorf("the command came to a %T", raw)
	}
	return res, res.Failure()
}

// rebuilt calls fn, again when policy or directory changed between the look and
// the commit.
func rebuilt(fn func() error) error {
	var err error
	for range maxRebuilds {
		if err = fn(); !errors.Is(err, approval.ErrStaleRevision) {
			return err
		}
	}
	return err
}

// counted counts refusals by code.
func (n *node) counted(ctx context.Context, err error) error {
	var ae *approval.Error
	var p *api.Problem
	switch {
	case errors.As(err, &ae):
		n.metrics.refused(ctx, api.Code(ae.Code))
	case errors.As(err, &p):
		n.metrics.refused(ctx, p.Code)
	}
	return err
}

// eyes says what a caller may see.
type eyes struct {
	id     spiffeid.ID
	person string
	ids    []string // of the person, or the caller's own
	owns   []string
	groups []string
	away   []string // groups in which somebody stands in for the person, who still sees what they do
	admin  bool
}

func eyesOf(s approval.State, id spiffeid.ID) (eyes, error) {
	e := eyes{id: id, ids: []string{id.String()}}
	p, ok, err := s.PersonOf(id)
	if err != nil || !ok {
		return e, err
	}
	e.person, e.ids, e.owns, e.groups = p.Name, p.IDs, p.Owns, s.GroupsOf(p.Name)
	e.away, e.admin = s.AwayFrom(p.Name), slices.Contains(e.groups, approval.AdminGroup)
	return e, nil
}

// mapped refuses callers who are no person.
func (e eyes) mapped() error {
	if e.person == "" {
		return api.NewProblem(api.CodeDenied, fmt.Sprintf("%s maps to no person", e.id), "ask an admin to add it to a person, or call as a person")
	}
	return nil
}

func (e eyes) involved(requester, subject string, required []approval.Requirement) bool {
	return e.admin || slices.Contains(e.ids, requester) || slices.Contains(e.ids, subject) || slices.Contains(e.owns, subject) ||
		slices.ContainsFunc(required, func(q approval.Requirement) bool {
			return slices.Contains(e.groups, q.Group) || slices.Contains(e.away, q.Group)
		})
}

// sees reports whether a request is the caller's to see: its requester and
// subject, the subject's owners, whoever may decide it, and admins. All
// identities that a person has now are that person; one that was taken from a
// person takes what was asked for under it along.
func (e eyes) sees(r approval.Request) bool {
	for _, rev := range r.Revisions {
		if e.involved(r.Requester, r.Subject, rev.Requirements) {
			return true
		}
		if rev.Escalation != nil && r.Escalated != 0 && e.involved(r.Requester, r.Subject, rev.Escalation.Requirements) {
			return true
		}
	}
	// Who is to review a broken glass sees it, before and after.
	return r.Review != nil && e.involved(r.Requester, r.Subject, r.Review.Requirements())
}

// among has a list leave out what is not the caller's to see, without reading it:
// whatever sees goes by is a name in the record.
func (e eyes) among(f approval.Filter) approval.Filter {
	if e.admin {
		return f
	}
	own := slices.Concat(e.ids, e.owns)
	if len(e.groups)+len(e.away) == 0 && len(own) <= approval.MaxOf {
		f.Of = own
		return f
	}
	f.Among = slices.Concat(own, e.groups, e.away)
	return f
}

func (e eyes) seesGrant(g approval.Grant) bool {
	return e.involved(g.Requester, g.Subject, slices.Concat(g.Requirements, g.Escalated))
}

func notFound(what, id string) error {
	return api.NewProblem(api.CodeNotFound, fmt.Sprintf("no %s %s that you may see", what, clip(id, 64)), "check the id, and who you are: GET /v1/whoami")
}

// waiting is ctx for a read that blocks for d at most, not beyond the caller's
// certificate, whoever forwards the call, and not while the node stops.
func (n *node) waiting(ctx context.Context, call api.Call, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, min(d, api.MaxWait, call.Caller.NotAfter.Sub(n.now())))
	stop := context.AfterFunc(n.stopping, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}
