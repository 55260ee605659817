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

// Deciders are all requirements of which a group may decide on the request now.
func (r Request) Deciders() []Requirement {
	if e := r.Escalation; e != nil && e.EscalatedAt != nil {
		return slices.Concat(r.Require, e.Require)
	}
	return r.Require
}
