package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// fake answers what the test put into it, and remembers the calls.
type fake struct {
	api.Backend // what is not overridden panics, which the handler must survive

	mu       sync.Mutex
	calls    []api.Call
	requests []api.RequestInput
	err      error
	feed     api.Feed
	changed  chan struct{}
	events   []api.Event
}

func newFake() *fake { return &fake{changed: make(chan struct{})} }

func (f *fake) note(c api.Call) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
	return f.err
}

func (f *fake) lastCall(t *testing.T) api.Call {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		t.Fatal("the backend was not called")
	}
	return f.calls[len(f.calls)-1]
}

func (f *fake) called() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

func (f *fake) CreateRequest(_ context.Context, c api.Call, in api.RequestInput) (api.Request, error) {
	if err := f.note(c); err != nil {
		return api.Request{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, in)
	return api.Request{ID: "r1", State: api.RequestPending, Service: in.Service, Permissions: in.Permissions, Duration: in.Duration}, nil
}

func (f *fake) DryRun(_ context.Context, c api.Call, _ api.RequestInput) (api.DryRun, error) {
	return api.DryRun{Allowed: true}, f.note(c)
}

func (f *fake) Request(_ context.Context, c api.Call, id string, w api.Wait) (api.Request, uint64, error) {
	if err := f.note(c); err != nil {
		return api.Request{}, 0, err
	}
	state := api.RequestPending
	if w.Index >= 7 {
		state = api.RequestApproved
	}
	return api.Request{ID: id, State: state}, 7, nil
}

func (f *fake) Requests(_ context.Context, c api.Call, fl api.Filter) (api.RequestList, error) {
	return api.RequestList{Requests: []api.Request{}, Next: fl.State}, f.note(c)
}

func (f *fake) CancelRequest(_ context.Context, c api.Call, id string) (api.Request, error) {
	return api.Request{ID: id, State: api.RequestCancelled}, f.note(c)
}

func (f *fake) DecideRequest(_ context.Context, c api.Call, id string, _ api.DecisionInput) (api.Request, error) {
	return api.Request{ID: id}, f.note(c)
}

func (f *fake) WhoAmI(_ context.Context, c api.Call) (api.WhoAmI, error) {
	return api.WhoAmI{ID: c.Caller.ID.String()}, f.note(c)
}

func (f *fake) Revocations(ctx context.Context, c api.Call, since api.FeedPosition, wait time.Duration) (api.Feed, error) {
	deadline := time.After(wait)
	for {
		f.mu.Lock()
		feed, changed, err := f.feed, f.changed, f.err
		f.mu.Unlock()
		if err != nil || wait == 0 || feed.Revision != since.Revision {
			return feed, err
		}
		select {
		case <-changed:
		case <-deadline:
			return feed, nil
		case <-ctx.Done():
			return feed, ctx.Err()
		}
	}
}

func (f *fake) set(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) Events(ctx context.Context, c api.Call, after uint64, wait time.Duration) ([]api.Event, uint64, error) {
	deadline := time.After(wait)
	for {
		f.mu.Lock()
		events, changed := f.events, f.changed
		f.mu.Unlock()
		if n := uint64(len(events)); n > after {
			return events[after:], n, nil
		}
		select {
		case <-changed:
		case <-deadline:
			return nil, after, nil
		case <-ctx.Done():
			return nil, after, ctx.Err()
		}
	}
}

func (f *fake) LastEvent(context.Context, api.Call) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(len(f.events)), nil
}

var (
	errSecret = errors.New("bbolt: /var/lib/secret is on fire")
	errStale  = &approval.Error{Code: approval.CodeStale, Detail: "the request changed", Next: "look again"}
)

func alice() api.Caller {
	return api.Caller{ID: spiffeid.RequireFromString("spiffe://acme.test/user/alice"), NotAfter: time.Now().Add(time.Hour)}
}

type auditFake struct {
	*fake
	entry string
}

func (f *auditFake) AuditEntries(context.Context, api.Call, uint64, int) (api.AuditEntries, error) {
	return api.AuditEntries{Entries: []json.RawMessage{json.RawMessage(f.entry)}, Size: 1}, nil
}
