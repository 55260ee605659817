package api

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Escalation says who may approve a request in place of those that it requires, once it
// has waited.
type Escalation struct {
	Require     []Requirement `json:"require" doc:"what may be met in place of the request's own require, all of it"`
	After       Duration      `json:"after" doc:"how long a request waits, from when it was asked for"`
	At          *time.Time    `json:"at,omitempty" doc:"when they may decide, if nobody has; absent of what dry_run says"`
	EscalatedAt *time.Time    `json:"escalated_at,omitempty" doc:"since when they may; absent: they may not yet"`
}

// Enough says whether those that it requires, or that it was escalated to, have approved it
// already, and nobody has counted since: who approved does so once more. It comes about when
// it is escalated, or when one who has approved is back from where another stood in for them.
func (r Request) Enough() bool {
	if r.State != RequestPending {
		return false
	}
	e := r.Escalation
	return given(r.Require) || e != nil && e.EscalatedAt != nil && given(e.Require)
}

// given says whether there is nothing missing of what is required.
func given(require []Requirement) bool {
	return len(require) > 0 && !slices.ContainsFunc(require, func(q Requirement) bool { return q.Given < q.Approvals })
}

// Deciders are all requirements of which a group may decide on the request now.
func (r Request) Deciders() []Requirement {
	if e := r.Escalation; e != nil && e.EscalatedAt != nil {
		return slices.Concat(r.Require, e.Require)
	}
	return r.Require
}

// OnCall says how the members of a group take turns in it: by a rota of order, from, every and at_once, or as a resolver says, with otherwise.
type OnCall struct {
	Order     []string   `json:"order,omitempty" maxItems:"1000" nullable:"false" doc:"members, one after the other"`
	From      *time.Time `json:"from,omitempty" doc:"when the first one's turn begins"`
	Every     Duration   `json:"every,omitempty" doc:"from one hand-over to the next, from 1h to 840h"`
	AtOnce    int        `json:"at_once,omitempty" minimum:"0" doc:"how many are on call together, fewer than take turns"`
	Resolver  bool       `json:"resolver,omitempty" doc:"who is on call is what the resolver says that the control nodes are configured with"`
	Otherwise string     `json:"otherwise,omitempty" enum:"members,nobody" doc:"who is in the group while the resolver has said nothing that still holds"`
}

// Words is what it says, in a line; "" for members who do not take turns.
func (o *OnCall) Words() string {
	switch {
	case o == nil:
		return ""
	case o.Resolver:
		return "as its resolver says, otherwise " + o.Otherwise
	case o.From == nil:
		return "" // none that was ever taken
	default:
		return fmt.Sprintf("%s, %d at once, handed over every %s from %s on", strings.Join(o.Order, ", "), o.AtOnce, o.Every, o.From.UTC().Format(time.RFC3339))
	}
}
