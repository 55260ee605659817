package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/hallpass/hallpass/approval"
)

const (
	// workers is how many deliveries to one target are under way at once.
	workers = 8
	// batch is how many audit entries one look takes.
	batch = 256
	// drift is how far a target's position may be behind what was looked at and is told
	// to nobody: what a new leader has to look at again.
	drift = 4096
	// reportEvery is how often what fails is written down while nothing is settled.
	reportEvery = 30 * time.Second
	// lookEvery is how often the log is looked at, at most.
	lookEvery = 20 * time.Millisecond
)

// errAnew is returned when a target was forgotten meanwhile.
var errAnew = errors.New("the target was forgotten, and begins anew")

// pending is a delivery that is not settled.
type pending struct {
	Delivery
	keys []string

	since   time.Time
	tries   uint64
	cause   string
	next    time.Time // not before
	pauses  *backoff.ExponentialBackOff
	busy    bool
	outcome approval.Outcome // "" while it is open
	told    uint64           // tries that are written down
}

// result is how one try ended.
type result struct {
	entry uint64
	err   error
}

// runner delivers to one target. All but send runs in one goroutine.
type runner struct {
	n *Notifier
	t *Target

	known   approval.Target     // as settled last
	cursor  uint64              // the first entry that was not looked at
	begun   uint64              // the log's size when this leader began: what is before, another may have sent
	open    map[uint64]*pending // by entry
	order   []uint64            // the keys of open, ascending
	busy    int
	paused  string    // why the receiver wants no more, until it is settled
	quiet   time.Time // until when the receiver asked to be left alone
	settled time.Time
	results chan result
	group   sync.WaitGroup
}

// quietMost is for how long one answer keeps all of a target waiting: a receiver that has trouble with one delivery
// alone, and says so with a time, would else be told of nothing else for as long.
const quietMost = time.Minute

// follow delivers until ctx ends or something is wrong.
func (n *Notifier) follow(ctx context.Context, t *Target) error {
	ctx, cancel := context.WithCancel(ctx)
	r := &runner{n: n, t: t, open: map[uint64]*pending{}, results: make(chan result, workers)}
	defer r.group.Wait()
	defer cancel()
	if err := r.begin(ctx); err != nil {
		return err
	}
	said := ""
	for ctx.Err() == nil {
		_, mark, err := n.cfg.Outbox.Size()
		if err == nil {
			err = r.turn(ctx)
		}
		if err == nil {
			err = r.wait(ctx, mark)
		}
		switch {
		case errors.Is(err, errAnew):
			return err
		case err == nil:
			said = ""
		case ctx.Err() == nil:
			// What was sent and is not settled is in r alone: to begin anew would send it again.
			if text := clean(err.Error()); text != said {
				said = text
				n.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "notifications wait", slog.String("target", t.name), slog.String("error", text))
			}
			sleep(ctx, n.cfg.Pace.Retry)
		}
	}
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// begin learns how far the target is, and makes it if nobody has: it is told of nothing
// that was before.
func (r *runner) begin(ctx context.Context) error {
	known, err := r.n.cfg.Outbox.Target(r.t.name)
	if err != nil {
		return err
	}
	size, _, err := r.n.cfg.Outbox.Size()
	if err != nil {
		return err
	}
	r.begun = size
	if known.Revision == 0 {
		if known, err = r.n.cfg.Outbox.Settle(ctx, approval.SettleOutbox{Target: r.t.name, Position: size, Deliveries: []approval.Settlement{}}); err != nil {
			return err
		}
	}
	r.cursor = known.Position
	return r.merge(ctx, known)
}

// turn does what can be done now.
func (r *runner) turn(ctx context.Context) error {
	for more := true; more; {
		select {
		case done := <-r.results:
			r.took(ctx, done)
		default:
			more = false
		}
	}
	if err := r.refresh(ctx); err != nil {
		return err
	}
	if err := r.take(ctx); err != nil {
		return err
	}
	err := r.settle(ctx)
	if r.known.Paused == 0 && r.paused == "" {
		r.launch(ctx) // also when it could not be settled: what ends makes room
	}
	return err
}

// refresh takes in what others have changed: an admin who has dead letters sent again.
func (r *runner) refresh(ctx context.Context) error {
	known, err := r.n.cfg.Outbox.Target(r.t.name)
	if err != nil || known.Revision == r.known.Revision {
		return err
	}
	if known.Revision < r.known.Revision {
		return errAnew
	}
	return r.merge(ctx, known)
}

// merge makes what is open here what is open there. What this runner has finished and
// others have settled is not settled again.
func (r *runner) merge(ctx context.Context, known approval.Target) error {
	there := make(map[uint64]approval.OpenDelivery, len(known.Open))
	for _, o := range known.Open {
		there[o.Entry] = o
	}
	for _, at := range slices.Clone(r.order) {
		if _, ok := there[at]; !ok && at < known.Position {
			r.drop(at)
		}
	}
	for _, o := range known.Open {
		if _, ok := r.open[o.Entry]; ok {
			continue
		}
		entries, err := r.n.cfg.Outbox.Entries(ctx, o.Entry, o.Entry+1)
		if err != nil {
			return err
		}
		if len(entries) != 1 {
			return fmt.Errorf("audit entry %d is missing", o.Entry)
		}
		p, err := r.add(entries[0], o.Since.Time())
		if err != nil {
			return err
		}
		p.tries, p.told, p.cause, p.Again = o.Tries, o.Tries, o.Cause, true
		for range min(o.Tries, 16) {
			p.pauses.NextBackOff()
		}
	}
	r.known, r.cursor = known, max(r.cursor, known.Position)
	return nil
}

// add has an entry be delivered.
func (r *runner) add(e Entry, since time.Time) (*pending, error) {
	event, err := r.n.cfg.Outbox.Event(e)
	if err != nil {
		return nil, err
	}
	p := &pending{
		Delivery: Delivery{ID: DeliveryID(r.n.cfg.Cluster, e, r.t.name), Event: event, Again: e.Index < r.begun}, keys: e.keys(), since: since,
		pauses: &backoff.ExponentialBackOff{InitialInterval: r.n.cfg.Pace.Retry, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: r.n.cfg.Pace.Most},
	}
	r.open[e.Index] = p
	if at, ok := slices.BinarySearch(r.order, e.Index); !ok {
		r.order = slices.Insert(r.order, at, e.Index)
	}
	return p, nil
}

func (r *runner) drop(entry uint64) {
	delete(r.open, entry)
	if at, ok := slices.BinarySearch(r.order, entry); ok {
		r.order = slices.Delete(r.order, at, at+1)
	}
}

// take looks at what the log has grown by, while there is room for more.
func (r *runner) take(ctx context.Context) error {
	size, _, err := r.n.cfg.Outbox.Size()
	if err != nil || r.known.Paused != 0 {
		return err
	}
	for r.cursor < size && len(r.open) < approval.MaxOpenDeliveries {
		entries, err := r.n.cfg.Outbox.Entries(ctx, r.cursor, min(size, r.cursor+batch))
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return fmt.Errorf("audit entry %d is missing", r.cursor)
		}
		for _, e := range entries {
			if len(r.open) >= approval.MaxOpenDeliveries {
				return nil
			}
			wanted, err := r.wants(e)
			if err != nil {
				return err
			}
			if wanted {
				if _, err := r.add(e, r.n.cfg.Now()); err != nil {
					return err
				}
			}
			r.cursor = e.Index + 1
		}
	}
	return nil
}

// wants reports whether the target is told of an entry.
func (r *runner) wants(e Entry) (bool, error) {
	if !r.t.wants(e) || !r.t.named {
		return r.t.wants(e), nil
	}
	return r.n.cfg.Outbox.Named(e, r.t.name)
}

// launch starts what may be sent now. What shares a key with something earlier waits for
// it; everything else does not.
func (r *runner) launch(ctx context.Context) {
	now, before := r.n.cfg.Now(), map[string]bool{}
	if now.Before(r.quiet) {
		return
	}
	for _, at := range r.order {
		p := r.open[at]
		if p.outcome != "" {
			continue
		}
		waits := slices.ContainsFunc(p.keys, func(k string) bool { return before[k] })
		for _, k := range p.keys {
			before[k] = true
		}
		if waits || p.busy || now.Before(p.next) || r.busy >= workers {
			continue
		}
		p.busy = true
		r.busy++
		r.group.Go(func() { r.send(ctx, at, p.Delivery) })
	}
}

func (r *runner) send(ctx context.Context, entry uint64, d Delivery) {
	err := r.n.try(ctx, r.t, d)
	select {
	case r.results <- result{entry, err}:
	case <-ctx.Done():
	}
}

// took notes how a try ended.
func (r *runner) took(ctx context.Context, done result) {
	r.busy--
	p, ok := r.open[done.entry]
	if !ok {
		return // settled by another meanwhile
	}
	p.busy = false
	if done.err == nil {
		p.outcome, p.cause = approval.OutcomeSent, ""
		return
	}
	f := failed(done.err)
	now := r.n.cfg.Now()
	p.tries, p.cause, p.Again = p.tries+1, f.Cause, true
	p.next = now.Add(max(p.pauses.NextBackOff(), f.After))
	if end := now.Add(min(f.After, quietMost)); f.After > 0 && end.After(r.quiet) {
		r.quiet = end // it is the receiver that is busy, not this delivery: the others would be turned away, too
	}
	if f.Gone {
		r.paused = f.Cause
	}
	if f.Gone || f.Permanent || p.next.Sub(p.since) > r.t.giveUp {
		p.outcome = approval.OutcomeDead
		r.n.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "a notification was given up", slog.String("target", r.t.name),
			slog.String("delivery", p.ID), slog.Uint64("entry", done.entry), slog.Uint64("tries", p.tries), slog.String("error", p.cause))
	}
}

// settle writes down what is new, if it is time to.
func (r *runner) settle(ctx context.Context) error {
	since := time.Since(r.settled)
	due, report := r.cursor-r.known.Position >= drift || r.paused != "", since >= reportEvery
	for _, at := range r.order {
		p := r.open[at]
		due = due || p.outcome != "" || report && p.tries != p.told
	}
	if !due || since < r.n.cfg.Pace.Settle {
		return nil
	}
	body, news := r.settlement()
	if !news && !report && r.paused == "" {
		r.settled = time.Now()
		return nil // what has ended lies behind what there is no room for
	}
	r.settled = time.Now()
	known, err := r.n.cfg.Outbox.Settle(ctx, body)
	if errors.Is(err, approval.ErrConflict) {
		return nil // refresh takes in what it is now, and this comes again
	}
	if err != nil {
		return err // whether it was committed is not known: refresh finds out
	}
	for _, s := range body.Deliveries {
		if s.Outcome != approval.OutcomeOpen {
			r.drop(s.Entry)
		} else if p, ok := r.open[s.Entry]; ok {
			p.told = s.Tries
		}
	}
	r.known, r.paused = known, ""
	return nil
}

// settlement is what can be written down now, and whether that is more than is written down. No more
// may be open there than approval takes: where an admin's replay has taken the room, the position
// stops before the first that does not fit, and what has ended behind it waits here.
func (r *runner) settlement() (body approval.SettleOutbox, news bool) {
	body = approval.SettleOutbox{
		Target: r.t.name, Base: r.known.Revision, Position: r.cursor, Paused: r.paused, Deliveries: []approval.Settlement{},
	}
	open := 0
	for _, at := range r.order {
		p := r.open[at]
		s := approval.Settlement{Entry: at, Outcome: p.outcome, Tries: p.tries, Cause: p.cause}
		switch {
		case s.Outcome != "":
			news = true
		case open == approval.MaxOpenDeliveries && at >= r.known.Position:
			body.Position = at
			return body, news || at > r.known.Position
		default:
			open++
			if s.Outcome = approval.OutcomeOpen; at < r.known.Position && p.tries == p.told {
				continue // it is written down as it is
			}
		}
		body.Deliveries = append(body.Deliveries, s)
	}
	return body, news || body.Position > r.known.Position
}

// wait returns when there may be something to do.
func (r *runner) wait(ctx context.Context, mark uint64) error {
	timer := time.NewTimer(r.idle())
	defer timer.Stop()
	start := time.Now()
	grown, cancel := context.WithCancel(ctx)
	defer cancel()
	news := make(chan error, 1)
	r.group.Go(func() { news <- r.n.cfg.Outbox.Wait(grown, mark) })
	select {
	case <-ctx.Done():
		return ctx.Err()
	case done := <-r.results:
		r.took(ctx, done)
	case <-timer.C:
	case err := <-news:
		if err == nil { // a cluster that is busy is looked at now and then, not at every commit
			sleep(ctx, lookEvery-time.Since(start))
		}
		return err
	}
	return nil
}

// idle is how long nothing is to be done if nothing happens.
func (r *runner) idle() time.Duration {
	d := reportEvery
	now := r.n.cfg.Now()
	if wait := r.quiet.Sub(now); wait > 0 {
		d = min(d, wait)
	}
	for _, at := range r.order {
		p := r.open[at]
		switch {
		case p.outcome != "":
			d = min(d, r.n.cfg.Pace.Settle-time.Since(r.settled))
		case !p.busy:
			if wait := p.next.Sub(now); wait > 0 {
				d = min(d, wait)
			}
		}
	}
	return max(d, time.Millisecond)
}
