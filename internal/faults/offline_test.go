//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/faults/failpoint"
)

// come is how often the command comes by a place, where it does so for each part of a history.
func come(p Point, log string) int {
	if log == "bolt" && (p.Place == "history: moving in" || p.Place == "recover: putting aside") {
		return 4
	}
	return 1
}

// TestKilledInARestore kills `snapshot restore` and `cluster recover` at each of their steps. A node that is started then
// does not start, or has all of it, and its new epoch; the command, run again, comes to its end.
func TestKilledInARestore(t *testing.T) {
	for _, log := range []string{"bolt", "wal"} {
		t.Run(log, func(t *testing.T) {
			o := newOffline(t, log)
			for _, p := range OfflinePlaces() {
				for nth := 1; nth <= come(p, log); nth++ {
					if !o.killedAt(t, p, nth) {
						t.Errorf("nothing was killed at %q, time %d", p.Place, nth)
					}
				}
			}
		})
	}
}

// offline is a cluster that was stopped, and what it left.
type offline struct {
	*cluster
	alice, bob *api.Client
	live       api.Request // granted, before the snapshot
	snapshot   string
	was        string // the data of the first node
}

func newOffline(t *testing.T, log string) *offline {
	t.Helper()
	o := &offline{cluster: newCluster(t, built.faulty, log)}
	o.alice, o.bob = o.client(t, "alice"), o.client(t, "bob")
	ctx, cancel := context.WithTimeout(t.Context(), bearable)
	defer cancel()
	for _, n := range o.nodes {
		n.start(t)
	}
	for _, n := range o.nodes {
		if err := n.ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 { // enough for a snapshot of raft's, by the thresholds of this binary
		r, err := o.alice.CreateRequest(ctx, api.RequestInput{
			Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(50 * 60e9), Reason: fmt.Sprintf("ticket %d", i),
		})
		if err == nil && i == 0 {
			o.live, err = o.bob.DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash})
		} else if err == nil {
			_, err = o.alice.CancelRequest(ctx, r.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	o.snapshot, o.was = filepath.Join(o.dir, "cluster.snapshot"), filepath.Join(o.dir, "was")
	o.must(t, "snapshot", "save", o.snapshot, "--server", "https://"+o.nodes[0].api, "--identity", filepath.Join(o.dir, "offline", "persons", "bob"))
	for _, n := range o.nodes {
		n.kill()
	}
	if err := os.CopyFS(o.was, os.DirFS(o.nodes[0].data())); err != nil {
		t.Fatal(err)
	}
	return o
}

// command is the one that is killed.
func (o *offline) command(when When) []string {
	config := filepath.Join(o.nodes[0].dir, "server.yaml")
	if when == Restoring {
		return []string{"snapshot", "restore", o.snapshot, "--config", config}
	}
	return []string{"cluster", "recover", "--config", config, "--lost", "n2,n3", "--reason", "a fire"}
}

// run runs it, once more and to its end without an order.
func (o *offline) run(t *testing.T, when When, order *failpoint.Order) (status syscall.WaitStatus, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bearable)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.binary, o.command(when)...)
	if order != nil {
		write(t, o.nodes[0].order(), order.String())
		cmd.Env = append(os.Environ(), failpoint.Variable+"="+o.nodes[0].order())
	}
	out, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return cmd.ProcessState.Sys().(syscall.WaitStatus), string(out)
}

// killedAt kills the command at a step, and reports whether that was come by as often.
func (o *offline) killedAt(t *testing.T, p Point, nth int) bool {
	t.Helper()
	n := o.nodes[0]
	if err := os.RemoveAll(n.data()); err != nil {
		t.Fatal(err)
	}
	if p.When == Recovering {
		if err := os.CopyFS(n.data(), os.DirFS(o.was)); err != nil {
			t.Fatal(err)
		}
	}
	status, said := o.run(t, p.When, &failpoint.Order{Place: p.Place, Nth: nth})
	if os.Remove(failpoint.Taken(n.order())) != nil {
		if status.ExitStatus() != 0 {
			t.Fatalf("not killed at %q, time %d, and it ended with %v: %s", p.Place, nth, status, said)
		}
		_ = os.Remove(n.order())
		return false
	}
	if !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("at %q it ended with %v: %s", p.Place, status, said)
	}
	if !o.starts(t, p.Place) {
		if status, said := o.run(t, p.When, nil); status.ExitStatus() != 0 {
			t.Fatalf("after a kill at %q, run again, it ended with %v: %s", p.Place, status, said)
		}
		if !o.starts(t, p.Place) {
			t.Fatalf("after a kill at %q, and run again, the node does not start: %s", p.Place, n.said(5))
		}
	}
	return true
}

// starts starts the node and reports whether it did; if so, it is the whole cluster, in a new epoch, and no other.
func (o *offline) starts(t *testing.T, place string) bool {
	t.Helper()
	n := o.nodes[0]
	ctx, cancel := context.WithTimeout(t.Context(), bearable)
	defer cancel()
	n.start(t)
	defer n.kill()
	if err := n.ready(ctx); err != nil {
		if said := n.said(1); !strings.Contains(said, "has not come to its end") {
			t.Fatalf("after a kill at %q: %v: %s", place, err, said)
		}
		return false
	}
	now, err := o.client(t, "bob", n).Cluster(ctx)
	if err != nil || now.Epoch != 2 || now.Leader != "n1" {
		t.Errorf("after a kill at %q it is of epoch %d, led by %q, %v", place, now.Epoch, now.Leader, err)
	}
	grant, err := o.client(t, "alice", n).Grant(ctx, o.live.ID)
	if err != nil || grant.State != "revoked" {
		t.Errorf("after a kill at %q the grant of before is %q, %v", place, grant.State, err)
	}
	return true
}
