package control

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

var errStop = errors.New("stop")

// TestRevocationStream: every node tells of a revocation, and goes on vouching
// for its list.
func TestRevocationStream(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	csr, _ := newCSR(t)
	_, err := c.as("user/alice").GrantCertificate(t.Context(), r.ID, csr)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()

	var fresh, told sync.WaitGroup
	for _, n := range c.live() {
		cl := c.at(n, "service/payments") // any identity follows the feed
		fresh.Add(1)
		told.Go(func() {
			var vouched sync.Once
			var verified time.Time
			var beats int
			err := cl.WatchRevocations(ctx, func(e api.FeedEvent) error {
				if e.Heartbeat != nil {
					if e.Heartbeat.VerifiedAt.After(verified) {
						verified = e.Heartbeat.VerifiedAt
						beats++
					}
					if beats == 3 {
						vouched.Do(fresh.Done)
					}
					return nil
				}
				if len(e.Feed.Grants) == 1 && e.Feed.Grants[0].ID == r.ID {
					return errStop
				}
				return nil
			})
			if !errors.Is(err, errStop) {
				t.Errorf("node %s: %v", n.ID(), err)
			}
		})
	}
	fresh.Wait()
	_, err = c.as("user/carol").RevokeGrant(t.Context(), r.ID, "not any more")
	must(t, err)
	told.Wait()

	// A denied issuer is on the feed too.
	cluster, err := c.as("user/ann").Cluster(t.Context())
	must(t, err)
	_, err = c.as("user/alice").DenyIssuer(t.Context(), cluster.Issuers[0].ID, "x")
	wantProblem(t, err, api.CodeDenied)
	issuer, err := c.as("user/ann").DenyIssuer(t.Context(), cluster.Issuers[0].ID, "node stolen")
	must(t, err)
	if issuer.Denied == nil || issuer.Denied.By != "spiffe://acme.test/user/ann" {
		t.Errorf("denied: %+v", issuer)
	}
	c.until("the issuer is on the feed", func() bool {
		f, err := c.as("user/bob").Revocations(t.Context())
		must(t, err)
		return len(f.Issuers) == 1 && f.Issuers[0].ID == issuer.ID
	})
}

// TestEvents: persons hear of everything that the audit log says, workloads of
// what is theirs; nothing is missed or told twice over reconnects.
func TestEvents(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	in := readAccounts()
	robot := c.as("agent/robot")
	own, err := robot.CreateRequest(t.Context(), in)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()

	last := uint64(0)
	var kinds []string
	err = c.as("user/bob").WatchEvents(ctx, 0, func(e api.Event) error {
		if e.ID != last+1 {
			t.Errorf("event %d after %d", e.ID, last)
		}
		last = e.ID
		kinds = append(kinds, e.Kind)
		if e.Object == own.ID {
			return errStop
		}
		return nil
	})
	if !errors.Is(err, errStop) || kinds[0] != "bootstrap" || kinds[1] != "request.create" || kinds[2] != "request.decide" {
		t.Errorf("%v %v", kinds, err)
	}
	err = robot.WatchEvents(ctx, 0, func(e api.Event) error {
		if e.Object == r.ID || e.Kind == "bootstrap" {
			t.Errorf("the robot hears of %s %s", e.Kind, e.Object)
		}
		return errStop
	})
	if !errors.Is(err, errStop) {
		t.Error(err)
	}
	c.checkFromNow(ctx, t)
}

// checkFromNow: a stream without a position tells only what happens after it
// was opened.
func (c *cluster) checkFromNow(ctx context.Context, t *testing.T) {
	t.Helper()
	before, err := c.as("user/bob").AuditCheckpoint(ctx)
	must(t, err)
	got := make(chan api.Event, 1)
	go func() {
		_ = c.as("user/carol").WatchEvents(ctx, api.FromNow, func(e api.Event) error {
			got <- e
			return errStop
		})
	}()
	for { // until one of these happens after the stream was opened
		r, err := c.as("agent/robot").CreateRequest(ctx, readAccounts())
		must(t, err)
		_, err = c.as("agent/robot").CancelRequest(ctx, r.ID)
		must(t, err)
		select {
		case e := <-got:
			if e.ID <= before.Size {
				t.Errorf("event %d, the log had %d entries before", e.ID, before.Size)
			}
			return
		default:
		}
	}
}

// TestBlockingRead: a read with an index returns when the request changes, or
// when its time is over.
func TestBlockingRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for _, n := range []*running{c.leader(), c.follower()} {
		alice := c.at(n, "user/alice")
		r, err := alice.CreateRequest(t.Context(), readAccounts())
		must(t, err)
		_, index, err := alice.PollRequest(t.Context(), r.ID, 0, 0)
		must(t, err)
		began := time.Now()
		same, at, err := alice.PollRequest(t.Context(), r.ID, index, 300*time.Millisecond)
		must(t, err)
		if took := time.Since(began); same.State != api.RequestPending || at != index || took < 300*time.Millisecond {
			t.Errorf("node %s: %s at %d after %s", n.ID(), same.State, at, took)
		}
		done := make(chan error, 1)
		go func() {
			changed, at, err := alice.PollRequest(t.Context(), r.ID, index, 30*time.Second)
			if err == nil && (changed.State != api.RequestDenied || at <= index) {
				err = errors.New(changed.State)
			}
			done <- err
		}()
		_, err = c.as("user/bob").DecideRequest(t.Context(), r.ID, api.DecisionInput{Decision: "deny", Hash: r.Hash})
		must(t, err)
		must(t, <-done)
	}
}
