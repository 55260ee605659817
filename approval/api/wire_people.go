package api

import (
	"slices"
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
