package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// eventBatch is how many audit entries one look at the log takes.
const eventBatch = 256

// entry is an audit entry as far as an event tells it.
type entry struct {
	Index   uint64          `json:"index"`
	Kind    string          `json:"kind"`
	Time    time.Time       `json:"time"`
	Actor   string          `json:"actor"`
	Object  string          `json:"object"`
	Details json.RawMessage `json:"details"`
}

// LastEvent implements api.StreamBackend.
func (b backend) LastEvent(context.Context, api.Call) (last uint64, err error) {
	err = b.local(func(s approval.State) error {
		last, err = auditSize(s)
		return err
	})
	return last, err
}

// Events implements api.StreamBackend.
func (b backend) Events(ctx context.Context, call api.Call, after uint64, wait time.Duration) (events []api.Event, last uint64, err error) {
	ctx, cancel := b.waiting(ctx, wait)
	defer cancel()
	last = after
	for {
		seen := b.store.Index()
		if err := b.local(func(s approval.State) (err error) {
			events, last, err = eventsAfter(s, call, last)
			return err
		}); err != nil || len(events) > 0 {
			return events, last, err
		}
		if _, err := b.store.Wait(ctx, seen); err != nil {
			if b.stopping.Err() != nil {
				return nil, last, stopped()
			}
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
				return nil, last, nil // nothing happened in time
			}
			return nil, last, storeProblem(err)
		}
	}
}

// eventsAfter reads the entries after the given one, up to a batch that holds
// something for the caller or the end of the log.
func eventsAfter(s approval.State, call api.Call, after uint64) (events []api.Event, last uint64, err error) {
	size, err := auditSize(s)
	if err != nil || after >= size {
		return nil, after, err
	}
	e, err := eyesOf(s, call.Caller.ID)
	if err != nil {
		return nil, after, err
	}
	for at := after; at < size; at++ {
		if at >= after+eventBatch && len(events) > 0 {
			return events, at, nil
		}
		var en entry
		if err := json.Unmarshal(s.AuditBody(int64(at)), &en); err != nil {
			return nil, after, fmt.Errorf("audit entry %d: %w", at, err)
		}
		if e.seesEvent(s, en) {
			events = append(events, api.Event{
				ID: at + 1, Kind: en.Kind, Time: en.Time, Actor: en.Actor, Object: en.Object, Details: en.Details,
			})
		}
	}
	return events, size, nil
}

// seesEvent reports whether an event is the caller's to see: persons read the
// audit log; a workload hears of its own requests and grants.
func (e eyes) seesEvent(s approval.State, en entry) bool {
	if e.person != "" {
		return true
	}
	r, err := s.Request(en.Object)
	return err == nil && e.sees(r)
}
