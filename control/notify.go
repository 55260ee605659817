package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/notify"
	"github.com/hallpass/hallpass/policy"
)

// Notify says whom the leader tells what happens. It should be the same on all nodes:
// that of the node that leads counts.
type Notify struct {
	Targets []*notify.Target
	// Console is where people have their console, for links: "http://127.0.0.1:8700". ""
	// leaves links out.
	Console string
	Pace    notify.Pace // zero: the recommended one
}

// notifySince is the version of commands that knows the outbox.
const notifySince = 4

// outbox is the replicated log as notify.Notifier takes it.
type outbox struct {
	n       *node
	console string
}

func (n *node) newNotifier(c Notify) (*notify.Notifier, error) {
	return notify.New(notify.Config{
		Cluster: n.manifest.Cluster, Targets: c.Targets, Outbox: outbox{n, strings.TrimSuffix(c.Console, "/")},
		Logger: n.log, Now: n.now, Pace: c.Pace,
		Meter:  n.meter.Meter("github.com/hallpass/hallpass/approval/notify"),
		Tracer: n.tracer.Tracer("github.com/hallpass/hallpass/approval/notify"),
	})
}

// notifyAll tells the targets what happens while this node leads.
func (n *node) notifyAll(ctx context.Context) {
	if len(n.notifier.Targets()) == 0 {
		return
	}
	for said := ""; ctx.Err() == nil; {
		err := n.mayNotify(ctx)
		if err == nil {
			n.notifier.Run(ctx)
			return
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			n.log.LogAttrs(ctx, slog.LevelInfo, "notifications wait", slog.String("error", said))
		}
		if pause(ctx, n.limits.Tick) != nil {
			return
		}
	}
}

// mayNotify returns nil once this node knows all that earlier leaders have settled:
// one that did not would send it again.
func (n *node) mayNotify(ctx context.Context) error {
	if err := n.checkEpoch(); err != nil {
		return err
	}
	if err := n.store.Linearize(ctx); err != nil {
		return storeProblem(err)
	}
	if n.version.Load() < notifySince {
		return errors.New("a node runs a release that knows no notifications")
	}
	return nil
}

// Target implements notify.Outbox.
func (o outbox) Target(name string) (t approval.Target, err error) {
	err = o.n.local(func(s approval.State) error {
		t, _, err = s.Target(name)
		return err
	})
	return t, err
}

// Settle implements notify.Outbox.
func (o outbox) Settle(ctx context.Context, body approval.SettleOutbox) (approval.Target, error) {
	cmd, err := o.n.command(ctx, body)
	if err != nil {
		return approval.Target{}, err
	}
	res, err := o.n.commit(ctx, cmd)
	if err != nil {
		return approval.Target{}, err
	}
	t, ok := res.Object.(approval.Target)
	if !ok {
		return t, fmt.Errorf("result is a %T, not a target", res.Object)
	}
	return t, nil
}

// Size implements notify.Outbox.
func (o outbox) Size() (size, mark uint64, err error) {
	mark = o.n.store.Index()
	err = o.n.local(func(s approval.State) error {
		size, err = auditSize(s)
		return err
	})
	return size, mark, err
}

// Wait implements notify.Outbox.
func (o outbox) Wait(ctx context.Context, mark uint64) error {
	_, err := o.n.store.Wait(ctx, mark)
	return storeProblem(err)
}

// Entries implements notify.Outbox.
func (o outbox) Entries(ctx context.Context, from, to uint64) (all []notify.Entry, err error) {
	var bad error
	err = o.n.bodies(ctx, from, to, func(_ uint64, body []byte) bool {
		var e notify.Entry
		if e, bad = notify.ParseEntry(slices.Clone(body)); bad != nil {
			return false
		}
		all = append(all, e)
		return true
	})
	return all, errors.Join(bad, err)
}

// Named implements notify.Outbox. What a request says of it never changes.
func (o outbox) Named(e notify.Entry, target string) (named bool, err error) {
	err = o.n.local(func(s approval.State) error {
		for _, id := range e.About() {
			r, err := s.Request(id)
			if err != nil && !errors.Is(err, approval.ErrNotFound) {
				return err
			}
			named = named || err == nil && slices.Contains(r.Notify, target)
		}
		return nil
	})
	return named, err
}

// Event implements notify.Outbox.
func (o outbox) Event(e notify.Entry) (notify.Event, error) {
	ev := notify.Event{Entry: e, Cluster: o.n.manifest.Cluster, TrustDomain: o.n.trustDomain.Name()}
	err := o.n.local(func(s approval.State) error {
		r, err := s.Request(e.Object)
		if errors.Is(err, approval.ErrNotFound) {
			return nil // it is about something else, or about one that is forgotten
		}
		if err != nil {
			return err
		}
		now := r.Current()
		if ev.Buttons, err = o.n.buttons(s, r); err != nil {
			return err
		}
		ev.Request = &notify.Request{
			ID: r.ID, State: string(r.State), Requester: r.Requester, Subject: r.Subject, Service: r.Service,
			Permissions: list(now.Permissions), DurationMS: now.DurationMS, Reason: r.Reason, Hash: r.Hash(),
		}
		if o.console != "" {
			ev.Link = o.console + "/requests/" + url.PathEscape(r.ID)
		}
		return nil
	})
	return ev, err
}

// buttons are the verdicts that may be given in Slack now: none where the policy has
// certificates alone decide, no second approval, and none of what has more to it than
// a message shows.
func (n *node) buttons(s approval.State, r approval.Request) (all []approval.Verdict, err error) {
	p, err := s.Rules()
	if err != nil || r.StateAt(approval.MillisOf(n.now())) != approval.RequestPending || !slices.Contains(p.Channels(r.Rules), policy.ChannelSlack) {
		return nil, err
	}
	whole := r.Start == 0 && r.CSRKey == "" && r.Delegation == nil && r.Extends == nil && r.Parent == ""
	if whole && !slices.ContainsFunc(r.Decisions, func(d approval.Decision) bool { return d.Slack != "" }) {
		all = append(all, approval.Approve)
	}
	return append(all, approval.Deny), nil
}

// asAdmin reads what admins alone may.
func (b backend) asAdmin(ctx context.Context, call api.Call, fn func(approval.State) error) error {
	return b.view(ctx, call, func(s approval.State) error {
		if !s.IsAdmin(call.Caller.ID) {
			return &approval.Error{Code: approval.CodeDenied, Detail: "only an admin sees and handles notifications"}
		}
		return fn(s)
	})
}

// NotifyTargets implements api.NotifyBackend.
func (b backend) NotifyTargets(ctx context.Context, call api.Call) (out api.NotifyTargets, err error) {
	out.Targets = []api.NotifyTarget{}
	err = b.asAdmin(ctx, call, func(s approval.State) error {
		known, err := s.Targets()
		if err != nil {
			return err
		}
		size, err := auditSize(s)
		if err != nil {
			return err
		}
		for _, t := range b.notifier.Targets() {
			if !slices.ContainsFunc(known, func(k approval.Target) bool { return k.Name == t.Name() }) {
				known = append(known, approval.Target{Name: t.Name(), Position: size})
			}
		}
		p, err := s.Rules()
		if err != nil {
			return err
		}
		out.Missing = list(b.missingTargets(p))
		for _, k := range known {
			out.Targets = append(out.Targets, b.wireTarget(k, size))
		}
		return nil
	})
	return out, b.counted(ctx, err)
}

// missingTargets are those that the policy names and this node's configuration does not
// have: nobody is told what was meant for them.
func (n *node) missingTargets(p *policy.Policy) []string {
	return slices.DeleteFunc(p.Targets(), func(name string) bool {
		_, ok := n.notifier.Configured(name)
		return ok
	})
}

// wireTarget shows a target with what this node's configuration says of it.
func (n *node) wireTarget(k approval.Target, size uint64) api.NotifyTarget {
	t := api.NotifyTarget{
		Name: k.Name, Position: k.Position, Behind: size - min(k.Position, size), Sent: k.Sent, Dead: k.Dead, Dropped: k.Dropped,
		Open: []api.NotifyOpen{}, Events: []string{}, Cause: k.Cause,
	}
	if k.Paused != 0 {
		at := k.Paused.Time()
		t.PausedAt = &at
	}
	if c, ok := n.notifier.Configured(k.Name); ok {
		t.Configured, t.Kind, t.Host, t.Events, t.OnlyNamed = true, string(c.Kind()), c.Host(), c.Events(), c.OnlyNamed()
	}
	for _, o := range k.Open {
		t.Open = append(t.Open, api.NotifyOpen{Entry: o.Entry, Since: o.Since.Time(), Tries: o.Tries, Cause: o.Cause})
	}
	return t
}

// DeadLetters implements api.NotifyBackend.
func (b backend) DeadLetters(ctx context.Context, call api.Call, target string) (out api.DeadLetters, err error) {
	out.Letters = []api.DeadLetter{}
	var dead []approval.DeadLetter
	if err = b.asAdmin(ctx, call, func(s approval.State) error {
		dead, err = s.DeadLetters(target)
		return err
	}); err != nil {
		return out, b.counted(ctx, err)
	}
	for _, l := range dead {
		w := api.DeadLetter{Target: l.Target, Entry: l.Entry, Since: l.Since.Time(), At: l.At.Time(), Tries: l.Tries, Cause: l.Cause}
		entries, err := outbox{n: b.node}.Entries(ctx, l.Entry, l.Entry+1)
		if err != nil {
			return out, err
		}
		for _, e := range entries {
			w.Delivery, w.Kind, w.Object = notify.DeliveryID(b.manifest.Cluster, e, l.Target), string(e.Kind), e.Object
		}
		out.Letters = append(out.Letters, w)
	}
	return out, nil
}

// ReplayNotifications implements api.NotifyBackend.
func (b backend) ReplayNotifications(ctx context.Context, call api.Call, target string, in api.ReplayInput) (out api.NotifyTarget, err error) {
	entries := slices.Compact(slices.Sorted(slices.Values(in.Entries)))
	if in.All {
		if len(entries) > 0 {
			return out, b.counted(ctx, api.NewProblem(api.CodeInvalid, "all, and entries besides", "give one of them"))
		}
		if err := b.asAdmin(ctx, call, func(s approval.State) error {
			t, _, err := s.Target(target)
			if err != nil {
				return err
			}
			dead, err := s.DeadLetters(target)
			// As many as there is room for: the rest once these are through.
			for _, l := range dead[:max(min(len(dead), approval.MaxOpenDeliveries-len(t.Open)), 0)] {
				entries = append(entries, l.Entry)
			}
			return err
		}); err != nil {
			return out, b.counted(ctx, err)
		}
	}
	return b.aboutTarget(ctx, call, approval.ReplayOutbox{Target: target, Entries: list(entries)})
}

// ForgetTarget implements api.NotifyBackend.
func (b backend) ForgetTarget(ctx context.Context, call api.Call, target string) (api.NotifyTarget, error) {
	return b.aboutTarget(ctx, call, approval.ForgetOutbox{Target: target})
}

func (b backend) aboutTarget(ctx context.Context, call api.Call, body approval.Body) (out api.NotifyTarget, err error) {
	res, err := b.proposeAsAdmin(ctx, call, body)
	if err != nil {
		return out, err
	}
	t, ok := res.Object.(approval.Target)
	if !ok {
		return out, fmt.Errorf("result is a %T, not a target", res.Object)
	}
	err = b.told(func(s approval.State) error {
		size, err := auditSize(s)
		out = b.wireTarget(t, size)
		return err
	})
	return out, err
}

// TestTarget implements api.NotifyBackend. It sends now, from the node that leads, and
// changes nothing.
func (b backend) TestTarget(ctx context.Context, call api.Call, target string) (out api.NotifyTested, err error) {
	if err := b.asAdmin(ctx, call, func(approval.State) error { return nil }); err != nil {
		return out, b.counted(ctx, err)
	}
	if _, ok := b.notifier.Configured(target); !ok {
		return out, b.counted(ctx, &approval.Error{
			Code: approval.CodeNotFound, Detail: fmt.Sprintf("target %q is not in the configuration of node %s, which leads", target, b.node.node.ID), Next: "hallpass notify list",
		})
	}
	id, err := uuid.NewV7()
	if err != nil {
		return out, fmt.Errorf("test id: %w", err)
	}
	out = api.NotifyTested{Target: target, Delivery: "test_" + strings.ReplaceAll(id.String(), "-", "")}
	start := time.Now()
	err = b.notifier.Test(ctx, target, out.Delivery, notify.TestEvent(b.manifest.Cluster, b.trustDomain.Name(), call.Caller.ID.String(), b.now()))
	out.TookMS = time.Since(start).Milliseconds()
	var f *notify.Failure
	switch {
	case errors.As(err, &f):
		out.Cause = f.Cause
	case err != nil:
		return out, err
	}
	out.Delivered = err == nil
	b.log.LogAttrs(ctx, slog.LevelInfo, "a test message was sent", slog.String("target", target), slog.String("by", call.Caller.ID.String()), slog.Bool("delivered", out.Delivered))
	return out, nil
}

// checkNotifications warns while somebody is not told what he should be.
func (n *node) checkNotifications() Finding {
	const what = "notifications"
	var known []approval.Target
	var missing []string
	err := n.local(func(s approval.State) error {
		p, err := s.Rules()
		if err != nil {
			return err
		}
		missing = n.missingTargets(p)
		known, err = s.Targets()
		return err
	})
	if err != nil {
		return Finding{what, statusOK, ""} // there is no state yet: other findings say so
	}
	var bad []string
	for _, name := range missing {
		bad = append(bad, "the policy names "+name+", which is not in this node's configuration")
	}
	for _, t := range known {
		failing := slices.IndexFunc(t.Open, func(o approval.OpenDelivery) bool { return o.Tries > 0 })
		_, configured := n.notifier.Configured(t.Name)
		switch {
		case !configured:
			bad = append(bad, t.Name+" is not in this node's configuration")
		case t.Paused != 0:
			bad = append(bad, t.Name+" wants no more: "+t.Cause)
		case t.Dead > 0:
			bad = append(bad, fmt.Sprintf("%s has %d dead letters", t.Name, t.Dead))
		case failing >= 0:
			bad = append(bad, fmt.Sprintf("%s cannot be told of entry %d: %s", t.Name, t.Open[failing].Entry, t.Open[failing].Cause))
		}
	}
	if len(bad) > 0 {
		return Finding{what, statusWarn, clip(strings.Join(bad, "; ")+"; see hallpass notify list", 1024)}
	}
	return Finding{what, statusOK, ""}
}
