//go:build faults

package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/faults/failpoint"
	"github.com/hallpass/hallpass/internal/ledger"
)

// campaign breaks one cluster again and again, while writers write.
type campaign struct {
	*cluster
	t       *testing.T
	rand    *rand.Rand
	writers *ledger.Ledger
	bob     *api.Client
	each    map[string]*api.Client // asks one node alone, by its name
	places  []Point
	killed  map[string]int // by place; "" is any moment
	before  map[string]int // the same, of the clusters before
	tried   map[string]int // by place, of all clusters
}

func (c *campaign) kills() (n int) {
	for _, k := range c.killed {
		n += k
	}
	return n
}

// TestKilled kills nodes of clusters with either log. Each cluster is a new one, so that each check
// can be of everything.
func TestKilled(t *testing.T) {
	total, come, tried := 0, make(map[string]int), make(map[string]int)
	for i, want := range []struct {
		log   string
		kills int
	}{{"bolt", 70}, {"bolt", 70}, {"wal", 65}} {
		t.Run(fmt.Sprintf("%d %s", i+1, want.log), func(t *testing.T) {
			c := newCampaign(t, want.log, uint64(i))
			c.before, c.tried = come, tried
			c.breakUntil(want.kills)
			c.nothingLost()
			total += c.kills()
			for place, n := range c.killed {
				come[place] += n
			}
		})
	}
	t.Logf("killed %d times, %d of them at a place: %v", total, total-come[""], come)
	if total < 200 {
		t.Errorf("killed %d times, want 200", total)
	}
	for _, p := range Places() {
		if come[p.Place] == 0 {
			t.Errorf("nothing was killed at %q", p.Place)
		}
	}
}

func newCampaign(t *testing.T, log string, n uint64) *campaign {
	t.Helper()
	return campaignOn(t, newCluster(t, built.faulty, log), log, n)
}

// campaignOn starts a cluster, and writers.
func campaignOn(t *testing.T, on *cluster, log string, n uint64) *campaign {
	t.Helper()
	c := &campaign{
		cluster: on, t: t, rand: rand.New(rand.NewPCG(n, 1)),
		each: make(map[string]*api.Client), killed: make(map[string]int),
	}
	for _, p := range Places() {
		if !p.WAL || log == "wal" {
			c.places = append(c.places, p)
		}
	}
	c.bob = c.client(t, "bob")
	for _, n := range c.nodes {
		c.each[n.name] = c.client(t, "bob", n)
		n.start(t)
	}
	c.backAgain(c.nodes)
	c.writers = c.writing(t)
	return c
}

// breakUntil comes by all places in turn, and kills at any moment in between.
func (c *campaign) breakUntil(kills int) {
	c.t.Helper()
	for {
		from := c.places
		if c.kills() >= kills {
			if from = c.missed(); len(from) == 0 {
				return
			}
		}
		p := c.next(from)
		c.tried[p.Place]++
		switch p.When {
		case Leading:
			c.whileWorking(p, c.leader(), 8)
		case Writing:
			c.whileWorking(p, c.some(1+c.rand.IntN(3)), 8)
		case Compacting:
			c.whileWorking(p, c.some(1+c.rand.IntN(3)), 1)
		case Electing:
			c.whileElecting(p)
		case Starting:
			c.whileStarting(p)
		case Stopping:
			c.whileStopping(p)
		case Joining:
			c.whileJoining(p)
		case Restoring, Recovering:
			c.t.Fatalf("%q is no place of a node that runs", p.Place)
		}
		if c.rand.IntN(4) == 0 {
			c.anyMoment(c.some(1 + c.rand.IntN(3)))
		}
		if _, err := c.writers.Rounds(); err != nil {
			c.t.Fatal(err)
		}
	}
}

// next is one of those that were tried the least.
func (c *campaign) next(from []Point) Point {
	least := slices.MinFunc(from, func(a, b Point) int { return c.tried[a.Place] - c.tried[b.Place] })
	from = slices.DeleteFunc(slices.Clone(from), func(p Point) bool { return c.tried[p.Place] > c.tried[least.Place] })
	return from[c.rand.IntN(len(from))]
}

// missed are the places that nothing was killed at yet and that may be tried again: which node does
// what is not for a test to say.
func (c *campaign) missed() []Point {
	return slices.DeleteFunc(slices.Clone(c.places), func(p Point) bool {
		return c.killed[p.Place]+c.before[p.Place] > 0 || c.tried[p.Place] >= 8
	})
}

// some are n of the nodes.
func (c *campaign) some(n int) []*node {
	all := slices.Clone(c.nodes)
	c.rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:n]
}

// leader is the node that leads, as far as one can be asked.
func (c *campaign) leader() []*node {
	c.t.Helper()
	now, err := c.bob.Cluster(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.nodes {
		if n.name == now.Leader {
			return []*node{n}
		}
	}
	return c.some(1)
}

// order has a node die at a place, or, where it may go on for a moment, within what follows.
func (c *campaign) order(n *node, p Point, nth int) {
	o := failpoint.Order{Place: p.Place, Nth: nth}
	if p.When != Stopping && c.rand.IntN(3) == 0 {
		o.After = time.Duration(c.rand.IntN(3000)) * time.Microsecond
	}
	temp := n.order() + ".new"
	write(c.t, temp, o.String())
	if err := os.Rename(temp, n.order()); err != nil {
		c.t.Fatal(err)
	}
}

// died waits for a node to die at its place. One that does not come by in time is killed all the
// same, at any moment.
func (c *campaign) died(n *node, p Point, within time.Duration) {
	c.t.Helper()
	n.ended(within)
	_ = os.Remove(n.order()) // it may be carried out
	_, err := os.Stat(failpoint.Taken(n.order()))
	if err == nil {
		n.ended(bearable)
	} else {
		n.kill()
	}
	status, ok := n.ended(0)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		c.t.Fatalf("%s ended with %v at %q, not by SIGKILL", n.name, status, p.Place)
	}
	if err != nil {
		c.killed[""]++
		return
	}
	c.killed[p.Place]++
	if err := os.Remove(failpoint.Taken(n.order())); err != nil {
		c.t.Fatal(err)
	}
}

// whileWorking has nodes die at a place that they come by in their work.
func (c *campaign) whileWorking(p Point, victims []*node, most int) {
	for _, n := range victims {
		c.order(n, p, 1+c.rand.IntN(most))
	}
	for _, n := range victims {
		c.died(n, p, 3*time.Second)
	}
	c.startAll(victims)
}

// whileElecting has the leader die in its work, and one or both of the others while they elect the
// next.
func (c *campaign) whileElecting(p Point) {
	victims, work := c.leader(), c.any(Leading)
	others := slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return n == victims[0] })
	c.order(victims[0], work, 1)
	for _, n := range others[c.rand.IntN(2):] {
		c.order(n, p, 1)
		victims = append(victims, n)
	}
	c.died(victims[0], work, 3*time.Second)
	for _, n := range victims[1:] {
		c.died(n, p, 3*time.Second)
	}
	c.startAll(victims)
}

// any is one of the places that are come by then.
func (c *campaign) any(when When) Point {
	all := slices.DeleteFunc(slices.Clone(c.places), func(p Point) bool { return p.When != when })
	return all[c.rand.IntN(len(all))]
}

// whileStarting has nodes die in their work, and once more while they start.
func (c *campaign) whileStarting(p Point) {
	victims, work := c.some(1+c.rand.IntN(2)), c.any(Writing)
	for _, n := range victims {
		c.order(n, work, 1)
	}
	for _, n := range victims {
		c.died(n, work, 3*time.Second)
		c.order(n, p, 1)
		n.start(c.t)
	}
	for _, n := range victims {
		c.died(n, p, 3*time.Second)
	}
	c.startAll(victims)
}

// whileStopping tells a node to stop.
func (c *campaign) whileStopping(p Point) {
	n := c.some(1)[0]
	c.order(n, p, 1)
	if err := n.process().cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	c.died(n, p, bearable)
	c.startAll([]*node{n})
}

// whileJoining takes a node's disk away.
func (c *campaign) whileJoining(p Point) {
	n := c.some(1)[0]
	n.kill()
	c.killed[""]++
	if err := os.RemoveAll(n.data()); err != nil {
		c.t.Fatal(err)
	}
	c.order(n, p, 1)
	n.start(c.t)
	c.died(n, p, 20*time.Second)
	c.startAll([]*node{n})
}

func (c *campaign) anyMoment(victims []*node) {
	time.Sleep(time.Duration(c.rand.IntN(100)) * time.Millisecond)
	for _, n := range victims {
		n.kill()
		c.killed[""]++
	}
	c.startAll(victims)
}

// startAll starts nodes that were killed and asks each for everything that was acknowledged.
func (c *campaign) startAll(nodes []*node) {
	c.t.Helper()
	for _, n := range nodes {
		n.start(c.t)
	}
	c.backAgain(nodes)
}

func (c *campaign) backAgain(nodes []*node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), bearable)
	defer cancel()
	errs := make([]error, len(nodes))
	var checks sync.WaitGroup
	for i, n := range nodes {
		checks.Go(func() { errs[i] = c.check(ctx, n) })
	}
	checks.Wait()
	if err := errors.Join(errs...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *campaign) check(ctx context.Context, n *node) error {
	if err := n.ready(ctx); err != nil {
		return err
	}
	if c.writers == nil {
		return nil
	}
	acknowledged := c.writers.Entries()
	if err := ledger.CatchUp(ctx, c.each[n.name], c.bob); err != nil {
		return fmt.Errorf("%s: %w", n.name, err)
	}
	if err := ledger.Check(ctx, c.each[n.name], acknowledged); err != nil {
		return fmt.Errorf("%s, after it was started: %w", n.name, err)
	}
	return nil
}

// nothingLost closes the ledger and checks it at each node, to the last certificate.
func (c *campaign) nothingLost() {
	t := c.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*bearable)
	defer cancel()
	all, err := c.writers.Close(ctx)
	if err != nil {
		t.Fatal(err)
	}
	live := 0
	for i := range all {
		if e := &all[i]; e.Live() {
			live++
			if err := e.CheckFetch(ctx, c.client(t, strings.SplitN(e.Reason, "'", 2)[0])); err != nil {
				t.Error(err)
			}
		}
	}
	var logs [][]byte
	certificates := 0
	for _, n := range c.nodes {
		client := c.each[n.name]
		if err := errors.Join(ledger.CatchUp(ctx, client, c.bob), ledger.Check(ctx, client, all)); err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
		log, err := ledger.ReadLog(ctx, client)
		if err != nil {
			t.Fatalf("the log of %s: %v", n.name, err)
		}
		issued, err := ledger.CheckLog(log, all)
		if err != nil {
			t.Errorf("the log of %s: %v", n.name, err)
		}
		if err := ledger.CheckIssuances(ctx, client, issued); err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
		certificates = len(issued)
		logs = append(logs, log)
	}
	slices.SortFunc(logs, func(a, b []byte) int { return len(a) - len(b) })
	for i := range len(logs) - 1 {
		if !bytes.HasPrefix(logs[i+1], logs[i]) {
			t.Error("two nodes tell two histories")
		}
	}
	out := filepath.Join(c.dir, "audit")
	c.must(t, "audit", "export", "--out", out, "--server", "https://"+c.nodes[0].api, "--identity", filepath.Join(c.dir, "offline", "persons", "bob"))
	c.must(t, "audit", "verify", out, "--manifest", filepath.Join(c.dir, "offline", "manifest.json"))
	t.Logf("%d kills; %d requests acknowledged, %d grants live, %d certificates committed, %d audit entries",
		c.kills(), len(all), live, certificates, bytes.Count(logs[0], []byte("\n")))
}
