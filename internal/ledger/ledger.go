package ledger

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// Writer asks as one person and decides as another. The clients repeat what a broken cluster does
// not answer, for as long as a fault may last.
type Writer struct {
	Name  string      // of who asks: part of each reason
	Asker *api.Client // asks, withdraws and fetches certificates
	Owner *api.Client // decides and revokes
	Voter string      // the person behind Owner
}

// Config says who writes what.
type Config struct {
	Writers []Writer
	Ask     api.RequestInput // the reason is put in: each round has its own
	Pause   time.Duration    // of a writer between two rounds
}

// Entry is what was acknowledged of one request. A field is set once its answer is there.
type Entry struct {
	ID, Reason   string
	Voter        string // who decides
	Decision     string // "approve", "deny" or, before that, ""
	Hash         string // what was decided on
	Cancelled    bool
	Certificates []tls.Certificate // with their keys; every one that was handed out
	Revoked      bool
	Revoking     bool // or about to be
	Over         bool // the round has ended
}

// Ledger is the writers at work and what they were answered.
type Ledger struct {
	stop    chan struct{}
	ended   chan struct{} // closed when all writers have ended
	closing sync.Once

	mu   sync.Mutex
	all  []*Entry      // guarded by mu, with what it points at
	done int           // guarded by mu; rounds that ended
	slow time.Duration // guarded by mu; the longest that a call took
	err  error         // guarded by mu; of the writers that gave up
}

// Open starts the writers. They end with Close, or with ctx.
func Open(ctx context.Context, c Config) *Ledger {
	l := &Ledger{stop: make(chan struct{}), ended: make(chan struct{})}
	var writers sync.WaitGroup
	for _, who := range c.Writers {
		w := &writer{Writer: who, ask: c.Ask, pause: c.Pause, ledger: l}
		writers.Go(func() {
			if err := w.work(ctx); err != nil {
				l.change(func() { l.err = errors.Join(l.err, fmt.Errorf("writer %s: %w", w.Name, err)) })
			}
		})
	}
	go func() { // ends with the writers
		writers.Wait()
		close(l.ended)
	}()
	return l
}

func (l *Ledger) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// Rounds is how many whole rounds were written, and why a writer gave up, if one did.
func (l *Ledger) Rounds() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done, l.err
}

// Slowest is the longest that a call took from the first try to its answer.
func (l *Ledger) Slowest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.slow
}

// Entries is all that was acknowledged by now, oldest first. It belongs to the caller.
func (l *Ledger) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Entry, 0, len(l.all))
	for _, e := range l.all {
		own := *e
		own.Certificates = slices.Clone(e.Certificates)
		all = append(all, own)
	}
	return all
}

// Close lets the writers end their rounds, waits for that until ctx ends, and gives all that was
// acknowledged.
func (l *Ledger) Close(ctx context.Context) ([]Entry, error) {
	l.closing.Do(func() { close(l.stop) })
	select {
	case <-l.ended:
	case <-ctx.Done():
		return nil, fmt.Errorf("the writers have not ended: %w", context.Cause(ctx))
	}
	_, err := l.Rounds()
	return l.Entries(), err
}
