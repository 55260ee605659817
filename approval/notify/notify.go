package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/approval"
)

// Outbox is what the replicated log is to a Notifier.
type Outbox interface {
	// Target MUST return what is known of a target, after everything that any leader
	// settled before this node led; the zero Target when nothing is.
	Target(name string) (approval.Target, error)
	// Settle MUST commit and return what the target is then. An error that is
	// approval.ErrConflict says that it was settled from another revision.
	Settle(ctx context.Context, s approval.SettleOutbox) (approval.Target, error)
	// Size MUST return how many entries the audit log has, and a mark for Wait.
	Size() (size uint64, mark uint64, err error)
	// Wait MUST return when something was committed after the mark, or ctx is over.
	Wait(ctx context.Context, mark uint64) error
	// Entries MUST return the audit entries from one number up to another, in order.
	Entries(ctx context.Context, from, to uint64) ([]Entry, error)
	// Named MUST report whether a request that an entry is about was made under a rule of
	// the policy that names the target.
	Named(e Entry, target string) (bool, error)
	// Event fills in what is said of an entry.
	Event(e Entry) (Event, error)
}

// Config is what a Notifier works with. All of it is needed.
type Config struct {
	Cluster string
	Targets []*Target
	Outbox  Outbox
	Logger  *slog.Logger
	Now     func() time.Time
	Meter   metric.Meter
	Tracer  trace.Tracer
	Pace    Pace // zero: the recommended one
}

// Pace is how fast a Notifier is. Zero fields mean the value named.
type Pace struct {
	Settle time.Duration // between settlements of one target: 250 ms
	Retry  time.Duration // before the first retry, about twice as long before each later one: 1 s
	Most   time.Duration // before any retry: 10 min
}

// Notifier sends what the configured targets are told.
type Notifier struct {
	cfg    Config
	sent   metric.Int64Counter
	took   metric.Float64Histogram
	byName map[string]*Target
}

// New checks that the targets can be together.
func New(cfg Config) (*Notifier, error) {
	if err := checkAll(cfg.Targets); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.Pace.Settle, 250 * time.Millisecond}, {&cfg.Pace.Retry, time.Second}, {&cfg.Pace.Most, 10 * time.Minute}} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	n := &Notifier{cfg: cfg, byName: map[string]*Target{}}
	for _, t := range cfg.Targets {
		n.byName[t.name] = t
	}
	var err, err2 error
	n.sent, err = cfg.Meter.Int64Counter("hallpass.notify.deliveries", metric.WithDescription("tries to deliver a notification, by kind of target and outcome"))
	n.took, err2 = cfg.Meter.Float64Histogram("hallpass.notify.duration", metric.WithUnit("s"), metric.WithDescription("of tries to deliver a notification"),
		metric.WithExplicitBucketBoundaries(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60))
	return n, errors.Join(err, err2)
}

// Targets are the configured ones, in the order of the configuration.
func (n *Notifier) Targets() []*Target { return slices.Clone(n.cfg.Targets) }

// Configured returns a target of this node's configuration.
func (n *Notifier) Configured(name string) (*Target, bool) {
	t, ok := n.byName[name]
	return t, ok
}

// Run delivers to all targets until ctx ends. One node runs it at a time: the leader.
func (n *Notifier) Run(ctx context.Context) {
	var group sync.WaitGroup
	for _, t := range n.cfg.Targets {
		group.Go(func() { n.serve(ctx, t) })
	}
	group.Wait()
}

// Test sends an event that says nothing to a target, once.
func (n *Notifier) Test(ctx context.Context, name, id string, e Event) error {
	t, ok := n.byName[name]
	if !ok {
		return fmt.Errorf("notify: target %q is not configured", name)
	}
	return n.try(ctx, t, Delivery{ID: id, Event: e})
}

// try sends once, and measures it.
func (n *Notifier) try(ctx context.Context, t *Target, d Delivery) (err error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	ctx, span := n.cfg.Tracer.Start(ctx, "notify.deliver", trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
		attribute.String("hallpass.notify.target", t.name), attribute.String("hallpass.notify.event", string(d.Kind)),
		attribute.String("messaging.message.id", d.ID)))
	defer span.End()
	start := time.Now()
	if err = t.channel.Send(ctx, d); err != nil {
		err = failed(err)
		span.RecordError(err)
	}
	outcome := "sent"
	if err != nil {
		outcome = "failed"
	}
	labels := metric.WithAttributes(attribute.String("kind", string(t.kind)), attribute.String("outcome", outcome))
	n.sent.Add(ctx, 1, labels)
	n.took.Record(ctx, time.Since(start).Seconds(), labels)
	return err
}

// serve delivers to one target until ctx ends, beginning anew where it could not go on.
func (n *Notifier) serve(ctx context.Context, t *Target) {
	wait, said := n.cfg.Pace.Retry, ""
	for ctx.Err() == nil {
		started := time.Now()
		err := n.follow(ctx, t)
		if ctx.Err() != nil {
			return
		}
		if text := clean(fmt.Sprint(err)); text != said {
			said = text
			n.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "notifications do not go on", slog.String("target", t.name), slog.String("error", text))
		}
		if time.Since(started) > time.Minute {
			wait = n.cfg.Pace.Retry
		}
		sleep(ctx, wait)
		wait = min(2*wait, time.Minute)
	}
}
