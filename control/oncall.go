package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/notify"
)

const (
	// handOversAtOnce is how many groups one round of duties looks at.
	handOversAtOnce = 64
	// dutyMargin is how far from the longest time that a resolver's word holds one stays that says longer: the log's clock may be
	// behind this node's.
	dutyMargin = time.Hour
)

// handOvers has each group whose next turn is due, or whose resolver's last word holds no more, looked at by the state machine.
func (n *node) handOvers(ctx context.Context) error {
	var due []string
	err := n.local(func(s approval.State) error {
		due = s.DutiesDue(approval.MillisOf(n.now()), handOversAtOnce)
		return nil
	})
	if err != nil || len(due) == 0 {
		return err
	}
	if err := n.checkEpoch(); err != nil {
		return err
	}
	var failed error
	for _, group := range due {
		if ctx.Err() != nil {
			break
		}
		if err := n.setDuty(ctx, approval.SetDuty{Group: group}); err != nil && failed == nil {
			failed = fmt.Errorf("hand over in group %s: %w", group, err)
		}
	}
	return failed
}

func (n *node) setDuty(ctx context.Context, body approval.SetDuty) (err error) {
	ctx, span := n.spans.Start(ctx, "group.duty")
	defer func() { ended(span, err) }()
	cmd, err := n.command(ctx, body)
	if err != nil {
		return err
	}
	res, err := n.commit(ctx, cmd)
	if errors.Is(err, approval.ErrConflict) || errors.Is(err, approval.ErrNotFound) {
		return nil // the group is another one by now
	}
	if err != nil {
		return err
	}
	if d, ok := res.Object.(approval.Duty); ok && res.Changed {
		n.log.LogAttrs(ctx, slog.LevelInfo, "others are on call", slog.String("group", body.Group), slog.Any("persons", d.Persons))
	}
	return nil
}

// resolve asks a resolver again and again while this node leads. One that does not answer, or says what cannot be, changes nothing:
// what it said last holds until its end.
func (n *node) resolve(ctx context.Context, r *notify.Resolver) {
	for said := ""; ctx.Err() == nil; {
		err := n.askResolver(ctx, r)
		if err != nil && ctx.Err() == nil {
			n.metrics.unresolvedDuty(ctx)
			if text := err.Error(); text != said {
				said = text
				n.log.LogAttrs(ctx, slog.LevelWarn, "who is on call is not known anew",
					slog.String("group", r.Group()), slog.String("resolver", r.Host()), slog.String("error", text))
			}
		}
		if err == nil {
			said = ""
		}
		// Not all at one moment, of all groups and clusters that ask the same server.
		if pause(ctx, r.Every()-time.Duration(rand.Int64N(int64(r.Every()/10)))) != nil { //nolint:gosec // no secret
			return
		}
	}
}

// dutyAnswer is what a resolver says.
type dutyAnswer struct {
	OnCall []string   `json:"on_call"`
	Until  *time.Time `json:"until"`
}

func (n *node) askResolver(ctx context.Context, r *notify.Resolver) error {
	if err := n.mayNotify(ctx); err != nil {
		return err
	}
	g, d, err := n.turnsOf(r.Group())
	if err != nil {
		return err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	text, err := r.Ask(ctx, "duty_"+id.String(), g.Members)
	if err != nil {
		return err
	}
	body, err := dutyOf(g, text, n.now())
	if err != nil || !worthSaying(d, body, n.now(), r.Every()) {
		return err
	}
	return n.setDuty(ctx, body)
}

// turnsOf reads a group in which a resolver says who is on call, and who is.
func (n *node) turnsOf(name string) (g approval.Group, d approval.Duty, err error) {
	err = n.local(func(s approval.State) error {
		groups, err := s.Groups()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(groups, func(g approval.Group) bool { return g.Name == name })
		if i < 0 || groups[i].OnCall == nil || !groups[i].OnCall.Resolver {
			return errors.New("the cluster has no such group whose members take turns as a resolver says: hallpass group set NAME --resolver")
		}
		g = groups[i]
		d, _, err = s.Duty(name)
		return err
	})
	return g, d, err
}

// dutyOf reads an answer. Nothing of it is taken unless all of it can be: half of a schedule would be one that nobody has made.
func dutyOf(g approval.Group, text []byte, now time.Time) (approval.SetDuty, error) {
	body := approval.SetDuty{Group: g.Name}
	var a dutyAnswer
	if err := api.UnmarshalStrict(text, &a); err != nil {
		return body, errors.New(`the answer is not the JSON that is wanted: {"on_call": ["NAME"], "until": "RFC 3339"}`)
	}
	switch {
	case a.OnCall == nil:
		return body, errors.New(`the answer has no "on_call": want a list of names, [] for nobody`)
	case a.Until == nil || !a.Until.After(now):
		return body, errors.New(`the answer has no "until" that is to come: want a moment as RFC 3339 has it`)
	}
	for _, name := range a.OnCall {
		if !slices.Contains(g.Members, name) {
			return body, errors.New("the answer names somebody who is no member of the group") // whose text is not ours to print
		}
	}
	body.Persons = a.OnCall
	body.Until = min(approval.MillisOf(*a.Until), approval.MillisOf(now).Add(approval.MaxDuty-dutyMargin))
	return body, nil
}

// worthSaying says whether an answer is to be an entry of the log: others are on call, or what was said last is half over or was to
// hold for longer. The same every minute would be all that there is in the log.
func worthSaying(d approval.Duty, body approval.SetDuty, now time.Time, every time.Duration) bool {
	if d.Until == 0 || !slices.Equal(d.Persons, body.Persons) || body.Until < d.Until.Add(-every) {
		return true
	}
	return body.Until > d.Until && approval.MillisOf(now) > d.Since+(d.Until-d.Since)/2
}

// wireGroup shows a group, and who is in it now.
func wireGroup(s approval.State, g approval.Group) (api.Group, error) {
	out := api.Group{Name: g.Name, Members: list(g.Members), OnCall: wireOnCall(g.OnCall), Substitutes: g.Substitutes}
	ins, err := s.StandIns(g.Name)
	if out.StandIns = mapped(ins, wireStandIn); err != nil || g.OnCall == nil {
		return out, err
	}
	now, err := s.Counting(g)
	if err != nil {
		return out, err
	}
	d, _, err := s.Duty(g.Name)
	out.Now, out.Until = list(now), moment(d.Until)
	return out, err
}

func wireOnCall(o *approval.OnCall) *api.OnCall {
	if o == nil {
		return nil
	}
	return &api.OnCall{Order: o.Order, From: moment(o.From), Every: duration(o.EveryMS), AtOnce: o.AtOnce, Resolver: o.Resolver, Otherwise: string(o.Otherwise)}
}

func onCallOf(in *api.OnCall) *approval.OnCall {
	if in == nil {
		return nil
	}
	o := &approval.OnCall{Order: in.Order, EveryMS: time.Duration(in.Every).Milliseconds(), AtOnce: in.AtOnce, Resolver: in.Resolver, Otherwise: approval.Otherwise(in.Otherwise)}
	if in.From != nil {
		o.From = approval.MillisOf(*in.From)
	}
	return o
}
