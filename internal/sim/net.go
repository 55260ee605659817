package sim

import (
	"math/rand/v2"
	"sync"
	"time"
)

// link is one direction between two sites. A site is a node or a person's machine.
type link struct{ from, to string }

// weather is how likely a message between nodes meets which fate, from 0 to 1.
type weather struct {
	lost  float64 // never arrives
	twice float64 // arrives a second time, later
	late  float64 // arrives after others that were sent after it, perhaps after its sender gave up
}

// network joins all sites. What it decides about single messages comes from the run's seed too, but in the order in which
// goroutines ask, which no seed fixes.
type network struct {
	counts *counters
	flying sync.WaitGroup // messages that outlive the call that sent them

	mu        sync.Mutex
	rng       *rand.Rand             // guarded by mu
	cut       map[link]int           // guarded by mu; how many faults cut it
	lag       map[link]time.Duration // guarded by mu; of each message, besides the usual
	sky       weather                // guarded by mu
	changed   chan struct{}          // guarded by mu; closed and replaced when a link is cut or healed
	transport map[string]*transport  // guarded by mu; by node
	listeners map[string]*listener   // guarded by mu; by address
	conns     map[*conn]struct{}     // guarded by mu
	trouble   uint64                 // guarded by mu; rises with everything that may have lost or repeated a message
}

func newNetwork(seed uint64, counts *counters) *network {
	return &network{
		counts: counts, rng: newRand(seed, "network"), cut: map[link]int{}, lag: map[link]time.Duration{},
		changed: make(chan struct{}), transport: map[string]*transport{}, listeners: map[string]*listener{},
		conns: map[*conn]struct{}{},
	}
}

// sever cuts links until the returned function is called.
func (n *network) sever(links []link) (heal func()) {
	n.adjust(links, 1)
	return func() { n.adjust(links, -1) }
}

func (n *network) adjust(links []link, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range links {
		if n.cut[l] += by; n.cut[l] == 0 {
			delete(n.cut, l)
		}
	}
	n.trouble++
	close(n.changed)
	n.changed = make(chan struct{})
}

// slow gives links a lag, zero for none.
func (n *network) slow(links []link, lag time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range links {
		if lag == 0 {
			delete(n.lag, l)
		} else {
			n.lag[l] = lag
		}
	}
	n.trouble++
}

func (n *network) setWeather(w weather) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sky = w
	n.trouble++
}

// state says whether the link is cut, and what tells of the next change.
func (n *network) state(l link) (cut bool, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[l] > 0, n.changed
}

func (n *network) isCut(l link) bool {
	cut, _ := n.state(l)
	return cut
}

// latency is how long the next message takes over the link.
func (n *network) latency(l link) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.latencyLocked(l)
}

func (n *network) latencyLocked(l link) time.Duration {
	const usual = time.Millisecond
	d := usual/4 + time.Duration(n.rng.Int64N(int64(usual)))
	if lag := n.lag[l]; lag > 0 {
		d += lag/2 + time.Duration(n.rng.Int64N(int64(lag)))
	}
	return d
}

// fate is what becomes of one message between nodes and of its answer.
type fate struct {
	lost          bool
	there, back   time.Duration
	again         time.Duration // when a second copy follows the first; 0 for never
	answerLost    bool
	patience      time.Duration // the sender's, when no answer comes
	undisturbed   bool          // nothing of the above but the usual latency
	incarnation   *transport    // of the receiver
	incarnationOK bool
}

func (n *network) fate(l link) fate {
	n.mu.Lock()
	defer n.mu.Unlock()
	back := link{l.to, l.from}
	f := fate{there: n.latencyLocked(l), back: n.latencyLocked(back), patience: rpcTimeout}
	f.incarnation, f.incarnationOK = n.transport[l.to]
	f.lost = n.cut[l] > 0
	f.undisturbed = !f.lost
	if n.sky == (weather{}) {
		return f
	}
	if n.rng.Float64() < n.sky.lost {
		f.lost = true
	}
	if n.rng.Float64() < n.sky.lost {
		f.answerLost = true
	}
	if n.rng.Float64() < n.sky.late {
		f.there += time.Duration(n.rng.Int64N(int64(2 * rpcTimeout)))
		n.counts.reordered.Add(1)
	}
	if n.rng.Float64() < n.sky.twice {
		f.again = time.Millisecond + time.Duration(n.rng.Int64N(int64(rpcTimeout)))
		n.counts.duplicated.Add(1)
	}
	if f.lost || f.answerLost {
		// A connection that lost something is noticed sooner or later.
		f.patience = rpcTimeout/30 + time.Duration(n.rng.Int64N(int64(rpcTimeout)))
		n.counts.dropped.Add(1)
	}
	f.undisturbed = !f.lost && !f.answerLost && f.again == 0 && f.there < rpcTimeout/30
	return f
}

// disturbance counts what may have lost or repeated messages so far. A call during which it did not rise was sent once
// and answered once.
func (n *network) disturbance() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.trouble
}

// join gives a node a transport, in place of that of its earlier life.
func (n *network) join(id string) *transport {
	t := newTransport(n, id)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.transport[id] = t
	return t
}

// vanish ends all that the node has open, as the kernel does for a process that died.
func (n *network) vanish(id string) {
	n.mu.Lock()
	n.trouble++
	var ends []func()
	if t := n.transport[id]; t != nil {
		delete(n.transport, id)
		ends = append(ends, t.end)
	}
	for addr, l := range n.listeners {
		if l.site == id {
			delete(n.listeners, addr)
			ends = append(ends, l.end)
		}
	}
	for c := range n.conns {
		if c.out.link.from == id || c.out.link.to == id {
			delete(n.conns, c)
			ends = append(ends, c.reset)
		}
	}
	n.mu.Unlock()
	for _, end := range ends {
		end()
	}
}

// newRand is the source of one purpose's choices in one run.
func newRand(seed uint64, purpose string) *rand.Rand {
	h := uint64(14695981039346656037)
	for _, c := range []byte(purpose) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, h)) //nolint:gosec // a simulation must be repeatable, not secret
}
