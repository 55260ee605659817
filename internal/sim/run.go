package sim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

const (
	// Small, so that a node that was away for a minute is sent a snapshot.
	snapshotThreshold = 64
	trailingLogs      = 32
	stateCheck        = 32

	// usualError is how far a node's clock is off at most when nothing is wrong with it, and slack how far apart what two
	// right nodes say of the time may be: what they tolerate of each other, and some.
	usualError = 2 * time.Second
	slack      = 15 * time.Second

	sampleEvery = 40 * time.Second
	calm        = 20 * time.Second // after the last fault, while people go on
)

// Options says what to run.
type Options struct {
	Seed   uint64
	Length time.Duration // of the faults; there is some calm before and after
	Dir    string        // of the nodes' files; empty
}

// run is one seed's cluster.
type run struct {
	seed    uint64
	dir     string
	world   *World
	counts  *counters
	history *history
	book    *book
	net     *network
	timing  raftstore.Timing
	members Membership
	nodes   []*node

	clockmaker chan struct{} // holds one token; who sets a clock wrong takes it
	registrar  chan struct{} // holds one token; who changes the membership takes it

	mu     sync.Mutex
	states map[uint64][sha256.Size]byte // guarded by mu; by index
}

func newRun(w *World, o Options) *run {
	r := &run{
		seed: o.Seed, dir: o.Dir, world: w, counts: &counters{}, book: newBook(),
		timing:     raftstore.Timing{Commit: 50 * time.Millisecond},
		clockmaker: make(chan struct{}, 1), registrar: make(chan struct{}, 1), states: map[uint64][sha256.Size]byte{},
	}
	r.clockmaker <- struct{}{}
	r.registrar <- struct{}{}
	r.history = &history{counts: r.counts}
	r.net = newNetwork(o.Seed, r.counts)
	r.members = storeMembership{r}
	rng := newRand(o.Seed, "clocks")
	for _, id := range nodeIDs() {
		n := newNode(r, id)
		n.usual = between(rng, -usualError, usualError)
		n.setClock(n.usual)
		r.nodes = append(r.nodes, n)
	}
	return r
}

// Result is what came of one run.
type Result struct {
	Seed   uint64
	Counts Counts
	run    *run
}

// Run runs one seed. It MUST be called in a bubble of testing/synctest that has just begun.
func Run(w *World, o Options) *Result {
	r := newRun(w, o)
	began := time.Now()
	if err := r.simulate(o); err != nil {
		r.history.violation("all", "%v", err)
	}
	r.end()
	r.counts.virtual.Store(int64(time.Since(began)))
	time.Sleep(time.Minute) // whoever was still dialling, for nobody any more, has ended
	return &Result{Seed: o.Seed, Counts: r.counts.read(), run: r}
}

func (r *run) simulate(o Options) error {
	for _, n := range r.nodes {
		if err := n.start(); err != nil {
			return fmt.Errorf("%s: %w", n.id, err)
		}
	}
	people, err := r.people()
	if err != nil {
		return err
	}
	if err := r.awaitReady(people); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var group sync.WaitGroup
	for _, p := range people {
		group.Go(func() { p.work(ctx) })
	}
	group.Go(func() { r.watch(ctx) })
	schedule := plan(o.Seed, o.Length)
	for _, f := range schedule {
		r.history.note("plan", "%s", f)
	}
	r.faults(schedule)
	r.mend()
	time.Sleep(calm)
	stop()
	group.Wait()
	for _, p := range people {
		p.client.Close()
	}
	if r.converge() {
		r.verify()
	}
	return nil
}

func (r *run) people() (people []*person, err error) {
	key, err := ca.GenerateKey()
	if err != nil {
		return nil, err
	}
	for _, group := range [][]string{engineers(), owners(), security(), admins()} {
		for _, name := range group {
			p, err := r.newPerson(len(people), name, key)
			if err != nil {
				return nil, err
			}
			people = append(people, p)
		}
	}
	return people, nil
}

// awaitReady waits until somebody is answered.
func (r *run) awaitReady(people []*person) (err error) {
	for range 30 {
		if _, err = people[0].client.WhoAmI(context.Background()); err == nil {
			return nil
		}
		time.Sleep(time.Second)
	}
	return errors.Join(errors.New("the cluster answers nobody"), err)
}

// watch looks at the nodes now and then.
func (r *run) watch(ctx context.Context) {
	for {
		select {
		case <-time.After(sampleEvery):
			r.sample()
		case <-ctx.Done():
			return
		}
	}
}

// mend leaves no fault behind: every fault ends by itself, but for nodes that halted when nobody looked and members that
// could not be added.
func (r *run) mend() {
	f := fault{kind: "mending"}
	for _, n := range r.nodes {
		if s := n.store(); s == nil || s.Err() != nil {
			r.revive(f, n)
		}
		r.changeMembers(f, n, "a voter", time.Minute, r.members.Add)
	}
}

// end stops all there is.
func (r *run) end() {
	for _, n := range r.nodes {
		<-n.chair
		if err := n.stop(); err != nil {
			r.history.violation(n.id, "it does not stop in order: %v", err)
		}
		n.chair <- struct{}{}
	}
	r.net.flying.Wait()
}

// Violations is everything that must never be and was. It MUST be called outside of the bubble, once.
func (r *Result) Violations() []string {
	wrong := append(r.run.history.violations(), r.run.book.linearizable()...)
	return wrong
}

// WriteHistory writes what happened, in order.
func (r *Result) WriteHistory(w io.Writer) { r.run.history.write(w) }
