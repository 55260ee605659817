package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/hallpass/hallpass/approval"
)

// fakeLog is an audit log with the outbox beside it, as the state machine keeps it: a
// settlement is an entry.
type fakeLog struct {
	mu      sync.Mutex
	entries []Entry
	targets map[string]approval.Target
	dead    []approval.DeadLetter
	grown   chan struct{}
	fail    error // of the next settlements
}

func newFakeLog() *fakeLog {
	return &fakeLog{targets: map[string]approval.Target{}, grown: make(chan struct{})}
}

// append adds an entry and returns its number. It is called with mu held.
func (l *fakeLog) append(kind approval.Kind, object, details string) uint64 {
	e := Entry{
		Index: uint64(len(l.entries)), Kind: kind, Time: time.Now().UTC().Truncate(time.Millisecond), Object: object,
		Command: fmt.Sprintf("command-%d", len(l.entries)), Details: json.RawMessage(details),
	}
	e.Body, _ = json.Marshal(e)
	l.entries = append(l.entries, e)
	close(l.grown)
	l.grown = make(chan struct{})
	return e.Index
}

func (l *fakeLog) add(kind approval.Kind, object string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(kind, object, "{}")
}

func (l *fakeLog) Target(name string) (approval.Target, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.targets[name], nil
}

func (l *fakeLog) Settle(_ context.Context, s approval.SettleOutbox) (approval.Target, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return approval.Target{}, l.fail
	}
	t := l.targets[s.Target]
	if t.Revision != s.Base {
		return t, &approval.Error{Code: approval.CodeConflict}
	}
	open := map[uint64]approval.OpenDelivery{}
	for _, o := range t.Open {
		open[o.Entry] = o
	}
	for _, d := range s.Deliveries {
		if _, ok := open[d.Entry]; !ok && d.Entry < t.Position {
			return t, errors.New("a delivery that is settled is settled again")
		}
		o := approval.OpenDelivery{Entry: d.Entry, Since: approval.MillisOf(time.Now()), Tries: d.Tries, Cause: d.Cause}
		if was, ok := open[d.Entry]; ok {
			o.Since = was.Since
		}
		switch d.Outcome {
		case approval.OutcomeOpen:
			open[d.Entry] = o
			continue
		case approval.OutcomeSent:
			t.Sent++
		case approval.OutcomeDead:
			t.Dead++
			l.dead = append(l.dead, approval.DeadLetter{Target: s.Target, Entry: d.Entry, Tries: d.Tries, Cause: d.Cause})
		}
		delete(open, d.Entry)
	}
	if len(open) > approval.MaxOpenDeliveries {
		return l.targets[s.Target], fmt.Errorf("at most %d would be open, not %d", approval.MaxOpenDeliveries, len(open))
	}
	t.Open = nil
	for _, o := range open {
		t.Open = append(t.Open, o)
	}
	slices.SortFunc(t.Open, func(a, b approval.OpenDelivery) int { return int(a.Entry) - int(b.Entry) })
	t.Name, t.Position = s.Target, s.Position
	t.Revision++
	if s.Paused != "" {
		t.Paused, t.Cause = approval.MillisOf(time.Now()), s.Paused
	}
	l.targets[s.Target] = t
	l.append(approval.KindSettleOutbox, s.Target, "{}")
	return t, nil
}

// replay is what approval.ReplayOutbox does.
func (l *fakeLog) replay(target string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.targets[target]
	for _, d := range l.dead {
		t.Open = append(t.Open, approval.OpenDelivery{Entry: d.Entry, Since: approval.MillisOf(time.Now())})
	}
	slices.SortFunc(t.Open, func(a, b approval.OpenDelivery) int { return int(a.Entry) - int(b.Entry) })
	l.dead, t.Dead, t.Paused, t.Cause = nil, 0, 0, ""
	t.Revision++
	l.targets[target] = t
	l.append(approval.KindReplayOutbox, target, "{}")
}

func (l *fakeLog) Size() (size, mark uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.entries)), uint64(len(l.entries)), nil
}

func (l *fakeLog) Wait(ctx context.Context, mark uint64) error {
	for {
		l.mu.Lock()
		grown, more := l.grown, uint64(len(l.entries)) > mark
		l.mu.Unlock()
		if more {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *fakeLog) Entries(_ context.Context, from, to uint64) ([]Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries[from:min(to, uint64(len(l.entries)))]), nil
}

// Named says so of what is called as the target is: chat-1 of chat.
func (l *fakeLog) Named(e Entry, target string) (bool, error) {
	return slices.ContainsFunc(e.About(), func(id string) bool { return strings.HasPrefix(id, target+"-") }), nil
}

func (l *fakeLog) Event(e Entry) (Event, error) {
	return Event{Entry: e, Cluster: "acme", TrustDomain: "acme.test"}, nil
}

// fakeChannel remembers what it was sent; answer says what comes of it.
type fakeChannel struct {
	mu     sync.Mutex
	got    []Delivery
	answer func(ctx context.Context, d Delivery, try int) error
	tries  map[string]int
}

func (c *fakeChannel) Send(ctx context.Context, d Delivery) error {
	c.mu.Lock()
	if c.tries == nil {
		c.tries = map[string]int{}
	}
	c.tries[d.ID]++
	try := c.tries[d.ID]
	c.got = append(c.got, d)
	c.mu.Unlock()
	if c.answer == nil {
		return nil
	}
	return c.answer(ctx, d, try)
}

// sent are the entries that were sent, in the order of the tries.
func (c *fakeChannel) sent() (all []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.got {
		all = append(all, d.Index)
	}
	return all
}

// lead runs a notifier of one target as a leader does, until stop is called.
func lead(t *testing.T, log *fakeLog, c *fakeChannel, giveUp time.Duration) (stop func(), said *strings.Builder) {
	t.Helper()
	return leadTo(t, log, &Target{name: "chat", kind: "fake", events: []string{"request.*", "subject.*", "tick", "outbox.settle", "access.anchor"}, timeout: time.Minute, giveUp: giveUp, channel: c})
}

func leadTo(t *testing.T, log *fakeLog, target *Target) (stop func(), said *strings.Builder) {
	t.Helper()
	said = &strings.Builder{}
	n, err := New(Config{
		Cluster: "acme", Outbox: log, Logger: slog.New(slog.NewTextHandler(said, nil)), Now: time.Now,
		Targets: []*Target{target},
		Meter:   metricnoop.NewMeterProvider().Meter(""), Tracer: tracenoop.NewTracerProvider().Tracer(""),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}, said
}
