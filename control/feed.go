package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

// feedWatch holds the revocation feed as this node knows it, and since when a
// quorum is known to agree.
type feedWatch struct {
	mu       sync.Mutex
	feed     approval.Feed // guarded by mu
	index    uint64        // guarded by mu; what feed has seen of the log
	loaded   bool          // guarded by mu
	verified time.Time     // guarded by mu; the leader's clock
	changed  chan struct{} // guarded by mu; closed and replaced when feed changes
}

func newFeedWatch() *feedWatch { return &feedWatch{changed: make(chan struct{})} }

func (w *feedWatch) set(feed approval.Feed, index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := !w.loaded || feed.Revision != w.feed.Revision || feed.Epoch != w.feed.Epoch
	w.feed, w.index, w.loaded = feed, index, true
	if news {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// confirm notes that everything up to index was the newest there was at a time.
// A node that has not come that far says nothing: its list could lack what the
// leader vouches for.
func (w *feedWatch) confirm(index uint64, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.loaded || w.index < index {
		return false
	}
	if at.After(w.verified) {
		w.verified = at
	}
	return true
}

func (w *feedWatch) get() (feed approval.Feed, verified time.Time, loaded bool, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.feed, w.verified, w.loaded, w.changed
}

// watchFeed reads the feed anew after each applied command, until ctx ends.
func (n *node) watchFeed(ctx context.Context) {
	for {
		var seen uint64
		err := n.store.View(func(r raftstore.Reader, index uint64) error {
			seen = index
			feed, err := approval.Read(r).Feed()
			if err != nil {
				return nil //nolint:nilerr // not bootstrapped yet: there is no feed
			}
			n.feed.set(feed, index)
			return n.learn(ctx, approval.Read(r))
		})
		if err == nil {
			_, err = n.store.Wait(ctx, seen)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			n.log.LogAttrs(ctx, slog.LevelWarn, "revocation feed cannot be read", slog.String("error", err.Error()))
			if pause(ctx, n.limits.Tick) != nil {
				return
			}
		}
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// verification is what a leader tells followers: that a quorum confirmed at At,
// by its clock, that nothing newer than Index was committed.
type verification struct {
	Index uint64    `json:"index"`
	At    time.Time `json:"at"`
}

// verify asks the quorum. The time is taken before, so that it never claims
// more than was confirmed.
func (n *node) verify(ctx context.Context) (verification, error) {
	v := verification{At: n.now().UTC()}
	if err := n.store.Linearize(ctx); err != nil {
		return v, err
	}
	// A list that is confirmed as of an hour from now would pass for fresh for as
	// long, wherever no newer one comes through.
	if err := n.clock.check(v.At); err != nil {
		return v, err
	}
	v.Index = n.store.Index()
	return v, nil
}

// serveVerified answers a follower.
func (n *node) serveVerified(w http.ResponseWriter, r *http.Request) {
	v, err := n.verify(r.Context())
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the follower's loss
}

// followVerified keeps the feed's verified time fresh while this node can hear
// a leader that has a quorum, until ctx ends. When it cannot, the time stays
// what it was: whoever reads the feed sees how old its assurance is.
func (n *node) followVerified(ctx context.Context) {
	for {
		round, cancel := context.WithTimeout(ctx, 2*time.Second)
		v, err := n.askVerified(round)
		if err == nil {
			n.awaitConfirm(round, v)
		}
		cancel()
		if pause(ctx, n.limits.Tick) != nil {
			return
		}
	}
}

func (n *node) askVerified(ctx context.Context) (verification, error) {
	if n.store.IsLeader() {
		return n.verify(ctx)
	}
	leader, ok := n.store.Leader()
	if !ok {
		return verification{}, raftstore.ErrNoQuorum
	}
	resp, err := n.forward.do(ctx, leader, http.MethodGet, pathVerified, http.Header{}, nil)
	if err != nil {
		return verification{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return verification{}, fmt.Errorf("leader %s does not lead", leader)
	}
	var v verification
	err = json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&v)
	return v, err
}

// awaitConfirm applies v once this node has come as far as the leader was.
func (n *node) awaitConfirm(ctx context.Context, v verification) {
	for !n.feed.confirm(v.Index, v.At) {
		if n.store.Index() < v.Index {
			if _, err := n.store.Wait(ctx, v.Index-1); err != nil {
				return
			}
		}
		if pause(ctx, 5*time.Millisecond) != nil { // watchFeed is about to read it
			return
		}
	}
}

// Revocations implements api.StreamBackend: the node's own copy, also when it
// hears of no leader. Everyone may ask: ids say nothing to whoever does not know
// the grant.
func (b backend) Revocations(ctx context.Context, _ api.Call, since api.FeedPosition, wait time.Duration) (api.Feed, error) {
	end := time.NewTimer(wait)
	defer end.Stop()
	for {
		feed, verified, loaded, changed := b.feed.get()
		if !loaded {
			return api.Feed{}, unready()
		}
		if wait == 0 || feed.Epoch != since.Epoch || feed.Revision != since.Revision {
			return b.wireFeed(feed, verified), nil
		}
		select {
		case <-changed:
		case <-end.C:
			feed, verified, _, _ = b.feed.get()
			return b.wireFeed(feed, verified), nil
		case <-b.stopping.Done():
			return api.Feed{}, stopped()
		case <-ctx.Done():
			return b.wireFeed(feed, verified), ctx.Err()
		}
	}
}

func (n *node) wireFeed(f approval.Feed, verified time.Time) api.Feed {
	entry := func(e approval.FeedEntry) api.FeedEntry { return api.FeedEntry{ID: e.ID, Until: e.Until.Time()} }
	return api.Feed{
		Epoch: f.Epoch, EpochBegan: moment(f.Began), Revision: f.Revision, VerifiedAt: verified,
		Grants: mapped(f.Grants, entry), Issuers: mapped(f.Issuers, entry), Roots: n.custody.get().documents,
	}
}

func unready() error {
	p := api.NewProblem(api.CodeUnavailable, "this node has not joined a bootstrapped cluster yet", "try again in a moment, or another node")
	p.RetryAfter = time.Second
	return p
}

func stopped() error {
	p := api.NewProblem(api.CodeUnavailable, "this node is stopping", "connect to another node")
	p.RetryAfter = time.Second
	return p
}
