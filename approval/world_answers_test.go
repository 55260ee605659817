package approval

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
	"github.com/hallpass/hallpass/policy/condition"
)

// answersToCreate are what an honest leader says to a request that is not yet one.
func (w *world) answersToCreate(requester string, b CreateRequest) []Answer {
	subject := b.Subject
	if subject == "" {
		subject = requester
	}
	return w.answers(Request{
		Requester: requester, Subject: subject, Service: b.Service, Reason: b.Reason, Start: Millis(b.Start),
		Revisions: []Revision{{Permissions: b.Permissions, DurationMS: b.Duration}},
	}, nil, 0)
}

// narrowed are its answers about what a decision makes of a request.
func (w *world) narrowed(r Request, b DecideRequest) []Answer {
	if v := r.Current(); len(b.Permissions) == 0 && (b.Duration == 0 || b.Duration == v.DurationMS) {
		return nil
	}
	return w.answers(r, b.Permissions, b.Duration)
}

// answers are those about r, with other permissions and another duration where
// these are given.
func (w *world) answers(r Request, permissions []string, duration int64) []Answer {
	w.tb.Helper()
	state, v := Read(w.a), r.Current()
	if len(permissions) == 0 {
		permissions = v.Permissions
	}
	if duration == 0 {
		duration = v.DurationMS
	}
	p, err := state.Rules()
	if err != nil {
		w.tb.Fatal(err)
	}
	set, err := condition.Compile(p)
	if err != nil {
		w.tb.Fatal(err)
	}
	scope, err := grant.ParseScope(r.Service, permissions)
	if err != nil {
		return nil // Apply says what is wrong
	}
	requester, err := spiffeid.FromString(r.Requester)
	if err != nil {
		return nil
	}
	subject, err := spiffeid.FromString(r.Subject)
	if err != nil {
		return nil
	}
	start := w.now
	if r.Start != 0 && r.Start.Time().After(start) {
		start = r.Start.Time()
	}
	said, err := set.Answer(context.Background(), policy.Request{
		Requester: requester, Groups: state.GroupsOf(state.PersonName(requester)), Subject: subject, Scope: scope,
		Duration: time.Duration(duration) * time.Millisecond, Reason: r.Reason, Start: start,
	})
	if err != nil {
		w.tb.Fatal(err)
	}
	var all []Answer
	for _, a := range said {
		all = append(all, Answer(a))
	}
	return all
}
