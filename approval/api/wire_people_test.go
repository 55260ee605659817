package api_test

import (
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

func TestEnough(t *testing.T) {
	at := time.Now()
	leads := func(given int) []api.Requirement {
		return []api.Requirement{{Group: "leads", Approvals: 1, Given: given}}
	}
	for what, tt := range map[string]struct {
		state string
		e     *api.Escalation
		want  bool
	}{
		"never":         {api.RequestPending, nil, false},
		"not yet":       {api.RequestPending, &api.Escalation{Require: leads(1)}, false},
		"one is needed": {api.RequestPending, &api.Escalation{Require: leads(0), EscalatedAt: &at}, false},
		"met before":    {api.RequestPending, &api.Escalation{Require: leads(1), EscalatedAt: &at}, true},
		"granted":       {api.RequestApproved, &api.Escalation{Require: leads(1), EscalatedAt: &at}, false},
	} {
		if got := (api.Request{State: tt.state, Escalation: tt.e}).Enough(); got != tt.want {
			t.Errorf("%s: %t", what, got)
		}
	}
	for given, want := range map[int]bool{0: false, 1: true} {
		if got := (api.Request{State: api.RequestPending, Require: leads(given)}).Enough(); got != want {
			t.Errorf("%d of what it requires: %t", given, got)
		}
	}
}
