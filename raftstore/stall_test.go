package raftstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A disk of a machine that is busy, or of a cloud that moves it, takes no write for a second every now and then.
const stall = time.Second

// stop has no write reach the disk until the function that it returns is called.
func (d *brokenDisk) stop() (resume func()) {
	hang := make(chan struct{})
	d.mu.Lock()
	d.hang = hang
	d.mu.Unlock()
	return func() {
		d.mu.Lock()
		d.hang = nil
		d.mu.Unlock()
		close(hang)
	}
}

// writers write through whoever leads, and keep what was acknowledged.
type stallWriters struct {
	c    *simCluster
	stop context.CancelFunc
	done sync.WaitGroup

	mu    sync.Mutex
	acked []string      // guarded by mu; keys
	worst time.Duration // guarded by mu; from a key's first try to when it was acknowledged
}

func (c *simCluster) startWriting(n int) *stallWriters {
	ctx, cancel := context.WithCancel(c.t.Context())
	w := &stallWriters{c: c, stop: cancel}
	for i := range n {
		w.done.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				time.Sleep(20 * time.Millisecond)
				w.write(ctx, fmt.Sprintf("w%d-%d", i, k))
			}
		})
	}
	return w
}

// write tries until the key is acknowledged: a set can be repeated.
func (w *stallWriters) write(ctx context.Context, key string) {
	for begin := time.Now(); ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		for _, s := range w.c.nodes {
			if !s.IsLeader() {
				continue
			}
			if _, _, err := s.Propose(ctx, []byte("set "+key+" "+key)); err == nil {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.acked, w.worst = append(w.acked, key), max(w.worst, time.Since(begin))
				return
			} else if errors.Is(err, ErrHalted) {
				w.c.t.Errorf("%s: %v", s.cfg.ID, err)
			}
		}
	}
}

func (w *stallWriters) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// halt ends the writing.
func (w *stallWriters) halt() {
	w.stop()
	w.done.Wait()
}

// finish ends the writing and checks that every node has what was acknowledged.
func (w *stallWriters) finish() {
	t := w.c.t
	t.Helper()
	w.halt()
	simPropose(t, w.c.leaderAmong(0, "n1", "n2", "n3"), "set last 1")
	for id, s := range w.c.nodes {
		for range 1000 {
			if get(t, s, "last") == "1" {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		for _, key := range w.acked {
			if got := get(t, s, key); got != key {
				t.Fatalf("%s was acknowledged, and %s has %q", key, id, got)
			}
		}
	}
	t.Logf("%d writes acknowledged, none lost, the slowest took %v", len(w.acked), w.worst)
}

// terms is the term of each node, with who leads.
func (c *simCluster) terms() string {
	var all []string
	for _, m := range c.members {
		s := c.nodes[m.ID]
		all = append(all, m.ID+" "+strconv.FormatUint(s.raft.CurrentTerm(), 10)+" "+strconv.FormatBool(s.IsLeader()))
	}
	return strings.Join(all, ", ")
}

// A second's stall of one disk, the leader's or a follower's, costs no leadership: nobody asks for a vote, and what was
// written meanwhile waits at most for the leader's own disk.
func TestStalledDiskElectsNobody(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, disks := newBrokenCluster(t)
				defer c.close()
				leader := c.leaderAmong(0, "n1", "n2", "n3")
				simPropose(t, leader, "set a 1")
				w := c.startWriting(4)
				defer w.halt()
				time.Sleep(time.Second)
				before := c.terms()
				id := leader.cfg.ID
				if who == "follower" {
					id = next(id)
				}
				for range 10 {
					resume := disks[id].stop()
					time.Sleep(stall / 2)
					during := w.count()
					time.Sleep(stall / 2)
					if who == "follower" && w.count() == during {
						t.Error("nothing is acknowledged while one of three disks stalls")
					}
					resume()
					time.Sleep(stall)
					if now := c.terms(); now != before {
						t.Fatalf("an election: %s, and before %s", now, before)
					}
				}
				w.finish()
			})
		})
	}
}

// A second's stall of two disks, or of all, costs nothing that was acknowledged, whoever leads then; and writing goes on.
func TestStalledMajorityLosesNothing(t *testing.T) {
	for what, stalls := range map[string]func(id, leader string) bool{
		"followers":             func(id, leader string) bool { return id != leader },
		"leader and a follower": func(id, leader string) bool { return id == leader || id == next(leader) },
		"all":                   func(string, string) bool { return true },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, disks := newBrokenCluster(t)
				defer c.close()
				simPropose(t, c.leaderAmong(0, "n1", "n2", "n3"), "set a 1")
				w := c.startWriting(4)
				defer w.halt()
				for range 10 {
					time.Sleep(stall)
					leader := c.leaderAmong(0, "n1", "n2", "n3").cfg.ID
					var resume []func()
					for id, disk := range disks {
						if stalls(id, leader) {
							resume = append(resume, disk.stop())
						}
					}
					time.Sleep(stall)
					for _, fn := range resume {
						fn()
					}
					for before := w.count(); w.count() == before; {
						time.Sleep(10 * time.Millisecond)
					}
				}
				w.finish()
			})
		})
	}
}

// next is another node.
func next(id string) string { return map[string]string{"n1": "n2", "n2": "n3", "n3": "n1"}[id] }
