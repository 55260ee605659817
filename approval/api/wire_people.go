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

// Enough says whether those that it was escalated to have approved it already, and
// nobody has counted since: who approved does so once more.
func (r Request) Enough() bool {
	e := r.Escalation
	return e != nil && e.EscalatedAt != nil && r.State == RequestPending &&
		!slices.ContainsFunc(e.Require, func(q Requirement) bool { return q.Given < q.Approvals })
}

// Deciders are all requirements of which a group may decide on the request now.
func (r Request) Deciders() []Requirement {
	if e := r.Escalation; e != nil && e.EscalatedAt != nil {
		return slices.Concat(r.Require, e.Require)
	}
	return r.Require
}
