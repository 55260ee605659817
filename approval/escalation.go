package approval

import (
	"slices"
	"time"

	"github.com/hallpass/hallpass/policy"
)

// Escalation says who may approve a request in place of those that it requires, once
// it has waited for so long. It is a part of what a decision is about.
type Escalation struct {
	AfterMS      int64         `json:"after_ms" cbor:"1,keyasint"` // from when the request was made
	Requirements []Requirement `json:"requirements" cbor:"2,keyasint"`
}

// EscalateRequest has those to whom the policy escalates a request decide on it from
// now on. The actor is the cluster. That it is time is up to Apply's clock: the leader
// only looks.
type EscalateRequest struct {
	Request string `cbor:"1,keyasint"`
}

func (EscalateRequest) kind() Kind       { return KindEscalateRequest }
func (b EscalateRequest) target() string { return b.Request }

// escalationOf is what the policy says of it, nil for nothing.
func escalationOf(e *policy.Escalation) *Escalation {
	if e == nil {
		return nil
	}
	return &Escalation{AfterMS: e.After.Milliseconds(), Requirements: asRequirements(e.Require)}
}

// same reports whether two say the same.
func (e *Escalation) same(other *Escalation) bool {
	if e == nil || other == nil {
		return e == other
	}
	return e.AfterMS == other.AfterMS && slices.Equal(e.Requirements, other.Requirements)
}

// escalationDetails is an Escalation in the order in which an audit leaf has it.
type escalationDetails struct {
	AfterMS      int64               `json:"after_ms"`
	Requirements []requirementDetail `json:"requirements"`
}

func (e *Escalation) details() *escalationDetails {
	if e == nil {
		return nil
	}
	return &escalationDetails{e.AfterMS, requirementDetails(e.Requirements)}
}

// Escalates is when others may decide on a request, as it reads now; 0: never.
func (r Request) Escalates() Millis {
	e := r.Current().Escalation
	if e == nil {
		return 0
	}
	if at := r.Created.Add(time.Duration(e.AfterMS) * time.Millisecond); at < r.Expires {
		return at
	}
	return 0
}

// Alternative is what may be met in place of the requirements: nil before the request
// was escalated.
func (r Request) Alternative() []Requirement {
	if e := r.Current().Escalation; e != nil && r.Escalated != 0 {
		return e.Requirements
	}
	return nil
}

// deciders are all requirements of which a group may decide on r now.
func (r Request) deciders() []Requirement {
	return slices.Concat(r.Current().Requirements, r.Alternative())
}

// awaitEscalation lists r as one that is to be escalated, and no longer as one that
// was to be as it read before.
func (t *turn) awaitEscalation(r Request) {
	if at := r.Escalates(); at != 0 && r.Escalated == 0 {
		u, _ := parseUID(r.ID)
		t.mark(dueAt(prefixEscalate, at, dueEscalation, string(u[:])))
	}
}

func (t *turn) noEscalation(r Request) {
	if at := r.Escalates(); at != 0 && r.Escalated == 0 {
		u, _ := parseUID(r.ID)
		t.unmark(dueAt(prefixEscalate, at, dueEscalation, string(u[:])))
	}
}

// ToEscalate returns up to n requests that have waited for as long as the policy says,
// the oldest first.
func (s State) ToEscalate(now Millis, n int) (ids []string) {
	s.r.Scan([]byte(prefixEscalate), nil, func(k, _ []byte) bool {
		item, ok := parseDue(prefixEscalate, k)
		if !ok || item.at > now || len(ids) == n {
			return false
		}
		ids = append(ids, item.uid().String())
		return true
	})
	return ids
}

// escalateRequest opens r to those whom the policy escalates it to. A second leader
// that does so, too, finds that it was done.
func (t *turn) escalateRequest(b EscalateRequest) (Object, error) {
	r, err := t.pendingRequest(b.Request)
	if err != nil {
		return nil, err
	}
	at := r.Escalates()
	switch {
	case at == 0:
		return nil, invalid("request %s is escalated to nobody", r.ID)
	case r.Escalated != 0:
		t.unchanged = true
		return r, nil
	case t.now < at:
		// Who proposes it too early would cut short the time of those who are to decide.
		return nil, conflict("request %s is escalated at %s, not before", r.ID, at)
	}
	t.noEscalation(r)
	r.Escalated = t.now
	t.saveRequest(&r)
	t.details = requestDetails{Escalation: r.Current().Escalation.details(), Extends: r.extends(), Hash: r.Hash(), State: r.State}
	return r, nil
}

// tooEarly refuses one who could decide once r is escalated; nil for anyone else.
func (t *turn) tooEarly(r Request) error {
	e, at := r.Current().Escalation, r.Escalates()
	if at == 0 || r.Escalated != 0 || len(t.state().groupsFor(e.Requirements, t.person)) == 0 {
		return nil
	}
	if t.now >= at {
		return denied("%s may decide on it from %s on, and the cluster is about to say so", t.person, at).then("try again in a moment")
	}
	return denied("%s may decide on it from %s on, if nobody has by then: until then it is for %s", t.person, at, describe(r.Current().Requirements)).
		then("wait until then, or have one of them decide")
}
