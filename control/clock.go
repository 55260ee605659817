package control

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

const pathClock = "/peer/clock"

// clockWatch compares this node's clock with the others'. A leader whose clock
// is ahead would end grants before their time, and for good: time in the state
// never goes back. One whose clock is behind would mint past their end.
//
// A comparison holds for as long as the clock goes on as it did. A jump since
// then shows at once, against the monotonic clock that no one sets.
type clockWatch struct {
	jumped chan struct{} // holds a token when a comparison is wanted at once

	mu    sync.Mutex
	known bool          // guarded by mu; it has been compared, or there is nobody to compare it with
	off   time.Duration // guarded by mu; how far the others' median is ahead of this node
	bad   bool          // guarded by mu; that is more than the skew
	since instant       // guarded by mu; of the last comparison; zero before the first
}

// instant is one moment on both clocks: the one that says what time it is, and
// the one that only says how long ago.
type instant struct{ wall, mono time.Time }

func (n *node) instant() instant { return instant{n.now().Round(0), time.Now()} }

// maxJump is how far the clock may come off its way between two comparisons
// before it counts as set by somebody.
const maxJump = time.Second

func newClockWatch() *clockWatch { return &clockWatch{jumped: make(chan struct{}, 1)} }

func (w *clockWatch) get() (off time.Duration, bad, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.off, w.bad, w.known
}

// set notes what a comparison that began at the moment given has found.
func (w *clockWatch) set(off time.Duration, bad bool, since instant) (changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed = w.bad != bad
	w.known, w.off, w.bad, w.since = true, off, bad, since
	return changed
}

// check refuses to use a time that this node's clock has just shown, unless the
// others are known to agree with it.
func (w *clockWatch) check(shown time.Time) error {
	w.mu.Lock()
	known, off, bad, since := w.known, w.off, w.bad, w.since
	w.mu.Unlock()
	var jump time.Duration
	if !since.wall.IsZero() {
		jump = shown.Round(0).Sub(since.wall) - time.Since(since.mono)
	}
	switch {
	case !known:
		return clockProblem("this node's clock has not been compared with the others' yet")
	case bad:
		return clockProblem(fmt.Sprintf("this node's clock differs from the others' by %s", off.Round(time.Millisecond)))
	case jump.Abs() > maxJump:
		select {
		case w.jumped <- struct{}{}:
		default: // one is wanted already
		}
		return clockProblem(fmt.Sprintf("this node's clock was set by %s since it was last compared", jump.Round(time.Millisecond)))
	}
	return nil
}

func clockProblem(detail string) error {
	p := api.NewProblem(api.CodeUnavailable, detail, "try again in a moment, with the same Idempotency-Key; set the node's clock")
	p.RetryAfter = time.Second
	return p
}

// reading is one look at another node's clock.
type reading struct {
	offset time.Duration // its clock minus ours
	doubt  time.Duration // half of how long the look took
}

// median is the middle reading; of two middle ones that which is nearer to ours,
// since a single node that is wrong must not put the right ones in doubt.
func median(all []reading) (reading, bool) {
	if len(all) == 0 {
		return reading{}, false
	}
	slices.SortFunc(all, func(a, b reading) int { return cmp.Compare(a.offset, b.offset) })
	upper, lower := all[len(all)/2], all[(len(all)-1)/2]
	if lower.offset.Abs() < upper.offset.Abs() {
		return lower, true
	}
	return upper, true
}

// watchClock looks at the others' clocks until ctx ends. A node that is off and
// leads hands leadership over.
func (n *node) watchClock(ctx context.Context) {
	for {
		n.compareClocks(ctx)
		_, bad, known := n.clock.get()
		if bad && n.store.IsLeader() {
			if err := n.store.TransferLeadership(); err != nil {
				n.log.LogAttrs(ctx, slog.LevelWarn, "leadership cannot be handed over", slog.String("error", err.Error()))
			}
		}
		wait := time.NewTimer(2 * n.limits.Tick)
		if !known {
			wait.Reset(n.limits.Tick / 10)
		}
		select {
		case <-wait.C:
		case <-n.clock.jumped:
		case <-ctx.Done():
		}
		wait.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// compareClocks looks at the clocks of the other voters. Their median is what a
// quorum takes for the time. The one voter that there is asks those that have no
// vote: they are no quorum, but its clock may be set to any hour as any other.
func (n *node) compareClocks(ctx context.Context) {
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		all   []reading // guarded by mu
		began = n.instant()
		peers = map[raftstore.Role][]string{}
		votes bool // this node
	)
	for id, role := range n.store.Membership() {
		if id == n.node.ID {
			votes = role == raftstore.RoleVoter
			continue
		}
		peers[role] = append(peers[role], id)
	}
	alone := votes && len(peers[raftstore.RoleVoter]) == 0
	asked := peers[raftstore.RoleVoter]
	if alone {
		asked = peers[raftstore.RoleNonvoter]
	}
	for _, id := range asked {
		group.Go(func() {
			r, err := n.readClock(ctx, id)
			if err != nil {
				return // unreachable: no quorum will be formed with it either
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, r)
		})
	}
	group.Wait()
	r, ok := median(all)
	if !ok {
		// With nobody there to compare with its own time is the cluster's; with
		// nobody who answers what was known stands, if anything was. Either way
		// what it shows from here on is held against this moment: a clock that is
		// set later, when others are there again, must not pass for this one.
		if _, _, known := n.clock.get(); alone && (len(asked) == 0 || !known) {
			n.clock.set(0, false, began)
		}
		return
	}
	bad := r.offset.Abs()-r.doubt > n.skew
	if n.clock.set(r.offset, bad, began) {
		level, message := slog.LevelError, "this node's clock is off: it neither leads nor proposes"
		if !bad {
			level, message = slog.LevelInfo, "this node's clock is right again"
		}
		n.log.LogAttrs(ctx, level, message, slog.Duration("others_ahead_by", r.offset))
	}
}

func (n *node) readClock(ctx context.Context, peer string) (reading, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	before := n.now()
	resp, err := n.forward.do(ctx, peer, http.MethodGet, pathClock, http.Header{}, nil)
	if err != nil {
		return reading{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	var theirs time.Time
	if err := json.NewDecoder(io.LimitReader(resp.Body, 256)).Decode(&theirs); err != nil {
		return reading{}, err
	}
	took := n.now().Sub(before)
	return reading{offset: theirs.Sub(before) - took/2, doubt: took / 2}, nil
}

func (n *node) serveClock(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(n.now().UTC()) // the other node's loss
}

func (n *node) checkClock() Finding {
	off, bad, known := n.clock.get()
	switch {
	case !known:
		return Finding{"clock", statusFail, "not compared with the other nodes' yet"}
	case bad:
		return Finding{"clock", statusFail, fmt.Sprintf("differs from the other nodes' by %s, more than the skew of %s", off.Round(time.Millisecond), n.skew)}
	}
	return Finding{"clock", statusOK, ""}
}
