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
	ctx, cancel := b.waiting(ctx, call, wait)
	defer cancel()
	last = after
	for {
		seen := b.store.Index()
		var err error
		if events, last, err = b.eventsAfter(ctx, call, last); err != nil || len(events) > 0 {
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
func (b backend) eventsAfter(ctx context.Context, call api.Call, after uint64) (events []api.Event, last uint64, err error) {
	for len(events) == 0 && ctx.Err() == nil {
		var size uint64
		if err := b.local(func(s approval.State) (err error) {
			size, err = auditSize(s)
			return err
		}); err != nil || after >= size {
			return nil, after, err
		}
		entries, err := b.entries(ctx, after, min(size, after+eventBatch))
		if err != nil {
			return nil, after, err
		}
		if events, err = b.visible(call, entries); err != nil {
			return nil, after, err
		}
		after += uint64(len(entries))
	}
	return events, after, nil
}

// entries reads the entries of these numbers.
func (n *node) entries(ctx context.Context, from, to uint64) (entries []entry, err error) {
	var bad error
	err = n.bodies(ctx, from, to, func(at uint64, body []byte) bool {
		var en entry
		if err := json.Unmarshal(body, &en); err != nil {
			bad = fmt.Errorf("audit entry %d: %w", at, err)
			return false
		}
		entries = append(entries, en)
		return true
	})
	return entries, errors.Join(bad, err)
}

// visible makes events of the entries that the caller may see.
func (n *node) visible(call api.Call, entries []entry) (events []api.Event, err error) {
	err = n.local(func(s approval.State) error {
		e, err := eyesOf(s, call.Caller.ID)
		if err != nil {
			return err
		}
		for _, en := range entries {
			if e.seesEvent(s, en) {
				events = append(events, api.Event{
					ID: en.Index + 1, Kind: en.Kind, Time: en.Time, Actor: en.Actor, Object: en.Object, Details: en.Details,
				})
			}
		}
		return nil
	})
	return events, err
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
