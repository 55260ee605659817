package approval

import (
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

// Delegation is what approvers were shown that the subject of a grant may make of it
// for others, without asking again.
type Delegation struct {
	To            []string `json:"to" cbor:"1,keyasint"` // SPIFFE IDs and patterns of them
	Most          int      `json:"most" cbor:"2,keyasint"`
	MaxDurationMS int64    `json:"max_duration_ms" cbor:"3,keyasint"`
}

func delegationOf(d *policy.Delegation) *Delegation {
	if d == nil {
		return nil
	}
	return &Delegation{To: d.To, Most: d.Most, MaxDurationMS: d.MaxDuration.Milliseconds()}
}

// delegationDetails is a Delegation in the order in which the audit leaf has it.
type delegationDetails struct {
	MaxDurationMS int64    `json:"max_duration_ms"`
	Most          int      `json:"most"`
	To            []string `json:"to"`
}

func (d *Delegation) details() *delegationDetails {
	if d == nil {
		return nil
	}
	return &delegationDetails{d.MaxDurationMS, d.Most, d.To}
}

// within says whether d allows nothing that other does not.
func (d *Delegation) within(other *Delegation) bool {
	if d == nil || other == nil {
		return d == nil
	}
	return d.Most <= other.Most && d.MaxDurationMS <= other.MaxDurationMS &&
		!slices.ContainsFunc(d.To, func(to string) bool { return !slices.Contains(other.To, to) })
}

// names says whether d is to this SPIFFE ID.
func (d Delegation) names(id spiffeid.ID) bool { return policy.Delegation{To: d.To}.Names(id) }

// childOf checks what the subject of a grant asks for in another's name, and answers
// with what the policy would say: no more than it did to the grant.
func (t *turn) childOf(r *Request, b CreateRequest) (policy.Outcome, error) {
	g, _, err := t.liveGrant(b.Parent)
	if err != nil {
		return policy.Outcome{}, err
	}
	parent, err := t.state().Request(g.ID)
	if err != nil {
		return policy.Outcome{}, err
	}
	if err := t.checkChild(*r, b, g); err != nil {
		return policy.Outcome{}, err
	}
	if err := t.checkChildSubject(*r, g); err != nil {
		return policy.Outcome{}, err
	}
	r.Parent = g.ID
	out := policy.Outcome{Allowed: true, Auto: g.Auto, Rules: parent.Rules, Notify: parent.Notify, MaxDuration: time.Duration(g.Delegation.MaxDurationMS) * time.Millisecond, CertificateTTL: g.TTL()}
	required := g.Requirements
	if g.Escalated != nil {
		required = g.Escalated // who approved the parent sees what is made of it
	}
	for _, q := range required {
		out.Require = append(out.Require, policy.Requirement(q))
	}
	return out, nil
}

// checkChild refuses what a grant does not let its subject hand on.
func (t *turn) checkChild(r Request, b CreateRequest, g Grant) error {
	switch {
	case t.cmd.Actor != g.Subject:
		return denied("only its subject, %s, delegates grant %s", g.Subject, g.ID)
	case g.Parent != "":
		return denied("grant %s was delegated itself, and goes no further", g.ID).then("have " + g.Requester + " delegate to whom you would")
	case g.Delegation == nil:
		return denied("grant %s was not approved to be delegated", g.ID).then("ask for one that is: hallpass request create --delegable")
	case b.BreakGlass, b.Delegable, b.Extends != "", b.Start != 0, b.CSRKey != "", len(b.Answers) > 0:
		return invalid("what is made of a grant is for now, has no key of its own and is not delegated again")
	case t.now < g.NotBefore:
		return conflict("grant %s starts at %s", g.ID, g.NotBefore).then("delegate it then")
	case b.Duration > g.Delegation.MaxDurationMS:
		return denied("grant %s may be delegated for at most %s", g.ID, time.Duration(g.Delegation.MaxDurationMS)*time.Millisecond)
	case t.now+Millis(b.Duration) > g.Expiry-Millis(g.extended()):
		// Access that outlives what was approved is access that nobody approved: whoever approved an
		// extension was not shown that it may be handed on, and the rules may not let it be by then.
		return denied("it would end at %s, after grant %s as it was approved to be delegated, until %s",
			t.now+Millis(b.Duration), g.ID, g.Expiry-Millis(g.extended())).then("ask for less time")
	}
	have, err := grant.ParseScope(g.Service, g.Permissions)
	if err != nil {
		return err
	}
	want, err := t.scopeOf(r.Service, b.Permissions)
	if err != nil {
		return err
	}
	if r.Service != g.Service || !have.Covers(want) {
		return denied("grant %s does not allow all of it", g.ID).then(fmt.Sprintf("delegate what it allows: %q", g.Permissions))
	}
	u, _ := parseUID(g.ID)
	if n := t.countOpen(pairPrefix(prefixChildOf, string(u[:])), g.Delegation.Most); n >= g.Delegation.Most {
		return limited("%d grants made of %s are live", n, g.ID).then("have one returned or revoked first")
	}
	return nil
}

// checkChildSubject refuses one to whom g may not be delegated, and one who is, or
// belongs to, a person whose vote g stands on: approvers would have approved their own
// access.
func (t *turn) checkChildSubject(r Request, g Grant) error {
	id, err := parseID("the subject", r.Subject)
	if err != nil {
		return err
	}
	if r.Subject == g.Subject || !g.Delegation.names(id) {
		return denied("grant %s may not be delegated to %s, but to %q", g.ID, r.Subject, g.Delegation.To)
	}
	for _, person := range t.state().orStandIn(append(t.state().Owners(id), t.state().personOf(id))) {
		if person != "" && g.StandsOn(person) {
			return denied("%s approved grant %s, and it is for what is theirs, or of whom they stand in for", person, g.ID).then("delegate it to another")
		}
	}
	return nil
}

// children are the grants that were made of one and live.
func (s State) children(id string) (all []Grant, err error) {
	u, ok := parseUID(id)
	if !ok {
		return nil, nil
	}
	for _, suffix := range suffixes(s.r, pairPrefix(prefixChildOf, string(u[:]))) {
		var c uid
		copy(c[:], suffix)
		child, ok, err := s.grantAt(c)
		if err != nil || !ok {
			return nil, fmt.Errorf("%w: grant %s has no child %s", errStored, id, c)
		}
		all = append(all, child)
	}
	return all, nil
}

// endChildren ends what was made of a grant that was cut short, and says what that
// was. Of one that has run out they have, too: no child ends later.
func (t *turn) endChildren(g Grant, state GrantState, reason string) (ended []string) {
	if state == GrantExpired || g.Delegation == nil {
		return nil
	}
	why := fmt.Sprintf("grant %s, of which it was made, was %s", g.ID, state)
	if reason != "" {
		why += ": " + reason
	}
	children, err := t.state().children(g.ID)
	if err != nil {
		t.fail(err)
		return nil
	}
	for _, child := range children {
		if child.StateAt(t.now) == GrantActive {
			t.endGrant(&child, GrantRevoked, why)
			ended = append(ended, child.ID)
		}
	}
	return ended
}
