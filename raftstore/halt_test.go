package raftstore

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// A node whose state file takes no more acknowledges nothing, stops, and leaves the cluster to the others.
func TestStateFailureHalts(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	sick := c.leader()
	id := sick.cfg.ID
	sick.state.mu.Lock()
	err := sick.state.db.Close()
	if err == nil {
		sick.state.db, err = openStateFile(sick.state.path, 256<<10)
	}
	sick.state.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	big := "set big " + strings.Repeat("x", 512<<10)
	_, _, err = sick.Propose(t.Context(), []byte(big))
	if !errors.Is(err, ErrAmbiguous) {
		t.Fatalf("Propose on a full state file = %v, want ErrAmbiguous", err)
	}
	select {
	case <-sick.Done():
	case <-time.After(patience):
		t.Fatal("the node does not halt")
	}
	if sick.Err() == nil {
		t.Error("it does not say why")
	}
	if _, _, err := sick.Propose(t.Context(), []byte("set a 2")); !errors.Is(err, ErrHalted) {
		t.Errorf("Propose on a halted node = %v, want ErrHalted", err)
	}
	if err := sick.Linearize(t.Context()); !errors.Is(err, ErrHalted) {
		t.Errorf("Linearize on a halted node = %v, want ErrHalted", err)
	}
	c.stop(id)
	index, _ := c.propose("set a 3")
	for _, s := range c.nodes {
		await(t, s, index)
	}
	// Restarted with room, it has everything: a halt leaves no clean marker.
	index, _ = c.propose("set a 4")
	s := c.start(id)
	await(t, s, index)
	if got := get(t, s, "a"); got != "4" {
		t.Errorf("a = %q, want 4", got)
	}
}

func TestPanickingMachineHalts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		leader := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, leader, "set a 1")
		_, _, err := leader.Propose(t.Context(), []byte("fail"))
		if !errors.Is(err, ErrAmbiguous) {
			t.Errorf("Propose = %v, want ErrAmbiguous", err)
		}
		<-leader.Done()
		if err := leader.Err(); err == nil || !strings.Contains(err.Error(), "told to") {
			t.Errorf("Err = %v, want the panic", err)
		}
	})
}

// brokenDisk is a disk that can hang or fail.
type brokenDisk struct {
	simDisk

	mu   sync.Mutex
	hang chan struct{} // guarded by mu; writes wait for it
	fail error         // guarded by mu
	term error         // guarded by mu; of writes of numbers alone
}

func (d *brokenDisk) StoreLogs(logs []*raft.Log) error {
	d.mu.Lock()
	hang, fail := d.hang, d.fail
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if fail != nil {
		return fail
	}
	return d.simDisk.StoreLogs(logs)
}

func (d *brokenDisk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

func (d *brokenDisk) SetUint64(key []byte, value uint64) error {
	d.mu.Lock()
	fail := d.term
	d.mu.Unlock()
	if fail != nil {
		return fail
	}
	return d.simDisk.SetUint64(key, value)
}

// newBrokenCluster has brokenDisks.
func newBrokenCluster(t *testing.T) (*simCluster, map[string]*brokenDisk) {
	disks := map[string]*brokenDisk{}
	c := newSimCluster(t, nil, func(id string) LogStore {
		disks[id] = &brokenDisk{simDisk: simDisk{raft.NewInmemStore()}}
		return disks[id]
	})
	return c, disks
}

// A leader whose disk hangs is replaced, although raft's heartbeats would go on for ever (raft#503), and its unfinished
// write does no harm when the disk comes back.
func TestHungDiskLosesLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, disks := newBrokenCluster(t)
		defer c.close()
		sick := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, sick, "set a 1")
		hang := make(chan struct{})
		disk := disks[sick.cfg.ID]
		disk.mu.Lock()
		disk.hang = hang
		disk.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := sick.Propose(ctx, []byte("set a doubtful")); !errors.Is(err, ErrAmbiguous) {
			t.Errorf("Propose on a hung disk = %v, want ErrAmbiguous", err)
		}
		var others []string
		for _, m := range c.members {
			if m.ID != sick.cfg.ID {
				others = append(others, m.ID)
			}
		}
		next := c.leaderAmong(sick.raft.CurrentTerm(), others...)
		simPropose(t, next, "set a 2")
		if !sick.Status().DiskStalled || sick.IsLeader() {
			t.Errorf("the sick node says %+v and leads: %v", sick.Status(), sick.IsLeader())
		}
		disk.mu.Lock()
		disk.hang = nil
		disk.mu.Unlock()
		close(hang)
		simPropose(t, next, "set b 3")
		for range 1000 {
			if get(t, sick, "b") == "3" {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if got := get(t, sick, "a") + get(t, sick, "b"); got != "23" {
			t.Errorf("the cured node has a and b = %q, want 23", got)
		}
	})
}

// A node whose disk fails stops instead of being elected again and again (raft#614).
func TestFailedDiskHalts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, disks := newBrokenCluster(t)
		defer c.close()
		sick := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, sick, "set a 1")
		disk := disks[sick.cfg.ID]
		disk.mu.Lock()
		disk.fail = errors.New("no space left on device")
		disk.mu.Unlock()
		if _, _, err := sick.Propose(t.Context(), []byte("set a 2")); !errors.Is(err, ErrAmbiguous) {
			t.Errorf("Propose on a failed disk = %v, want ErrAmbiguous", err)
		}
		<-sick.Done()
		if err := sick.Err(); !strings.Contains(err.Error(), "no space left") {
			t.Errorf("Err = %v", err)
		}
		var others []string
		for _, m := range c.members {
			if m.ID != sick.cfg.ID {
				others = append(others, m.ID)
			}
		}
		simPropose(t, c.leaderAmong(0, others...), "set a 3")
	})
}

// A term that cannot be kept stops the node, and not the process that raft's panic would end.
func TestFailedTermHalts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, disks := newBrokenCluster(t)
		defer c.close()
		leader := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, leader, "set a 1")
		var others []string
		for _, m := range c.members {
			if m.ID != leader.cfg.ID {
				others = append(others, m.ID)
			}
		}
		sick, next := c.nodes[others[0]], others[1]
		disk := disks[sick.cfg.ID]
		disk.mu.Lock()
		disk.term = errors.New("no space left on device")
		disk.mu.Unlock()
		if err := leader.TransferLeadershipTo(next); err != nil {
			t.Fatal(err)
		}
		<-sick.Done() // it hears of a new term, and cannot keep it
		if err := sick.Err(); !strings.Contains(err.Error(), "no space left") {
			t.Errorf("Err = %v", err)
		}
		simPropose(t, c.leaderAmong(0, next, leader.cfg.ID), "set a 2")
		if at, _, err := sick.StateHash(); err == nil && at >= c.nodes[next].Index() {
			t.Errorf("the halted node has index %d", at)
		}
	})
}

// Raft that refuses everything for a transfer that never ends (raft#696) is noticed by the first command or barrier.
func TestWedgedTransferHalts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		s := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, s, "set a 1")
		s.passed.Store(int64(max(time.Since(s.origin), 1)))
		if err := s.translate(raft.ErrLeadershipTransferInProgress); !errors.Is(err, ErrNotLeader) {
			t.Errorf("during a transfer: %v, want ErrNotLeader", err)
		}
		if s.Err() != nil {
			t.Fatalf("it halts in the middle of a transfer: %v", s.Err())
		}
		time.Sleep(10 * time.Second)
		_ = s.translate(raft.ErrLeadershipTransferInProgress)
		if !errors.Is(s.Err(), errWedged) {
			t.Errorf("Err = %v, want errWedged", s.Err())
		}
	})
}

// A transfer without a quorum must not reach raft, where it would wedge (raft#696).
func TestTransferWithoutQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		s := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, s, "set a 1")
		c.net.isolate(s.cfg.ID)
		if err := s.TransferLeadership(); err == nil {
			t.Error("handed over to nobody")
		}
		if s.passed.Load() != 0 {
			t.Error("raft was asked to")
		}
		c.net.heal()
		simPropose(t, c.leaderAmong(0, "n1", "n2", "n3"), "set a 2")
	})
}

func TestCompactionIsInSteps(t *testing.T) {
	store := raft.NewInmemStore()
	for i := range uint64(4 * compactionStep) {
		if err := store.StoreLog(&raft.Log{Index: i + 1, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	counted := &countingDisk{simDisk: simDisk{store}}
	l := newWatchedLog(counted, time.Second, func(error) { t.Error("halted") })
	if err := l.DeleteRange(1, 2*compactionStep+1); err != nil {
		t.Fatal(err)
	}
	if first, err := store.FirstIndex(); err != nil || first != 2*compactionStep+2 || counted.deletes != 3 {
		t.Errorf("the log begins at %d after %d steps, %v", first, counted.deletes, err)
	}
	if err := l.DeleteRange(2*compactionStep+5, 4*compactionStep); err != nil {
		t.Fatal(err)
	}
	if last, err := store.LastIndex(); err != nil || last != 2*compactionStep+4 || counted.deletes != 4 {
		t.Errorf("a conflicting suffix: the log ends at %d after %d steps in all, %v", last, counted.deletes, err)
	}
}

type countingDisk struct {
	simDisk
	deletes int
}

func (d *countingDisk) DeleteRange(from, to uint64) error {
	d.deletes++
	return d.simDisk.DeleteRange(from, to)
}

// tornDisk loses its room between the deletion of a conflicting suffix and the write of what takes its place.
type tornDisk struct {
	simDisk
	torn func() error // called once instead of that write
	cut  bool
}

func (d *tornDisk) DeleteRange(from, to uint64) error {
	if last, _ := d.LastIndex(); d.torn != nil && to == last {
		d.cut = true
	}
	return d.simDisk.DeleteRange(from, to)
}

func (d *tornDisk) StoreLogs(logs []*raft.Log) error {
	if d.cut && d.torn != nil {
		torn := d.torn
		d.torn = nil
		return torn()
	}
	return d.simDisk.StoreLogs(logs)
}

func (d *tornDisk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// A node that could delete the entries of a dead leader but not write those in their place halts. Raft still takes the
// deleted ones for its own, and is told in the very next request that entries up to there are committed.
func TestTornReplacementHalts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disks := map[string]*tornDisk{}
		c := newSimCluster(t, nil, func(id string) LogStore {
			disks[id] = &tornDisk{simDisk: simDisk{raft.NewInmemStore()}}
			return disks[id]
		})
		defer c.close()
		old := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, old, "set a 1")
		shared := old.Index()
		var others []string
		for _, m := range c.members {
			if m.ID != old.cfg.ID {
				others = append(others, m.ID)
			}
		}
		c.net.isolate(old.cfg.ID)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		for range 3 { // entries that nobody else will have
			if _, _, err := old.Propose(ctx, []byte("set a lost")); err == nil {
				t.Fatal("committed without the others")
			}
		}
		next := c.leaderAmong(old.raft.CurrentTerm(), others...)
		for range 5 {
			simPropose(t, next, "set a 2")
		}
		var before raft.Log
		if err := next.log.GetLog(shared, &before); err != nil {
			t.Fatal(err)
		}
		disk := disks[old.cfg.ID]
		answered := make(chan struct{})
		disk.torn = func() error {
			go func() {
				defer close(answered)
				answer := new(raft.AppendEntriesResponse)
				_ = simCall(next.trans.Transport.(*simTransport), raft.ServerAddress(old.cfg.ID), &raft.AppendEntriesRequest{
					RPCHeader:    raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte(next.cfg.ID), ID: []byte(next.cfg.ID)},
					Term:         next.raft.CurrentTerm(),
					PrevLogEntry: shared, PrevLogTerm: before.Term, LeaderCommitIndex: next.raft.CommitIndex(),
				}, nil, answer)
				if answer.Success {
					t.Error("it agrees, after its log has failed")
				}
			}()
			time.Sleep(10 * simLatency) // the request waits right before raft
			return errors.New("no space left on device")
		}
		c.net.heal()
		<-old.Done()
		<-answered
		if err := old.Err(); !strings.Contains(err.Error(), "no space left") {
			t.Errorf("Err = %v", err)
		}
	})
}
