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
)

const pathClock = "/peer/clock"

// clockWatch compares this node's clock with the others'. A leader whose clock
// is ahead would end grants before their time, and for good: time in the state
// never goes back. One whose clock is behind would mint past their end.
type clockWatch struct {
	mu  sync.Mutex
	off time.Duration // guarded by mu; how far the others' median is ahead of this node
	bad bool          // guarded by mu; that is more than the skew
}

func (w *clockWatch) get() (off time.Duration, bad bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.off, w.bad
}

func (w *clockWatch) set(off time.Duration, bad bool) (changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed = w.bad != bad
	w.off, w.bad = off, bad
	return changed
}

// check refuses to propose while the clock is off.
func (w *clockWatch) check() error {
	off, bad := w.get()
	if !bad {
		return nil
	}
	p := api.NewProblem(api.CodeUnavailable, fmt.Sprintf("this node's clock differs from the others' by %s", off.Round(time.Millisecond)),
		"try again in a moment, with the same Idempotency-Key; set the node's clock")
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
		if _, bad := n.clock.get(); bad && n.store.IsLeader() {
			if err := n.store.TransferLeadership(); err != nil {
				n.log.LogAttrs(ctx, slog.LevelWarn, "leadership cannot be handed over", slog.String("error", err.Error()))
			}
		}
		if pause(ctx, 2*n.limits.Tick) != nil {
			return
		}
	}
}

func (n *node) compareClocks(ctx context.Context) {
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		all   []reading // guarded by mu
	)
	for _, peer := range n.manifest.Nodes {
		if peer.ID == n.node.ID {
			continue
		}
		group.Go(func() {
			r, err := n.readClock(ctx, peer.ID)
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
		return // nobody to compare with: what was known stands
	}
	bad := r.offset.Abs()-r.doubt > n.skew
	if n.clock.set(r.offset, bad) {
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
	off, bad := n.clock.get()
	if bad {
		return Finding{"clock", statusFail, fmt.Sprintf("differs from the other nodes' by %s, more than the skew of %s", off.Round(time.Millisecond), n.skew)}
	}
	return Finding{"clock", statusOK, ""}
}
