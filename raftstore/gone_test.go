package raftstore

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// A heartbeat that is overdue only after so long has nothing to do with what these tests see.
const overdue = 5 * time.Second

func patient(_ string, cfg *Config) {
	cfg.Timing = Timing{Heartbeat: overdue, Election: overdue, Lease: overdue, DiskStall: 2 * overdue}
}

// A process that was killed leaves nothing that listens. The others see it at once, and do not wait for its heartbeats.
func TestAnotherStandsInForALeaderThatIsGone(t *testing.T) {
	c := newCluster(t, patient)
	index, _ := c.propose("set a 1")
	for _, s := range c.followers() {
		await(t, s, index) // one that is behind the other stands in vain, and the other waits for its heartbeats
	}
	old := c.leader()
	begin := time.Now()
	c.kill(old.cfg.ID)
	c.propose("set a 2")
	if took := time.Since(begin); took >= overdue {
		t.Errorf("the next command was committed after %s", took)
	}
}

// held is a kv that applies nothing while its gate is locked.
type held struct {
	kv

	gate *sync.RWMutex
}

func (h held) Apply(tx Tx, index uint64, data []byte) any {
	h.gate.RLock()
	defer h.gate.RUnlock()
	return h.kv.Apply(tx, index, data)
}

// One whose log is whole and whose state is far behind would win, and then answer nobody until it was through.
func TestWhoIsBehindDoesNotStandIn(t *testing.T) {
	gates := map[string]*sync.RWMutex{}
	c := newCluster(t, func(id string, cfg *Config) {
		patient(id, cfg)
		if gates[id] == nil {
			gates[id] = new(sync.RWMutex)
		}
		cfg.Machine = held{gate: gates[id]}
	})
	index, _ := c.propose("set a 1")
	old, followers := c.leader(), c.followers()
	for _, s := range followers {
		await(t, s, index)
	}
	first, second := followers[0], followers[1]
	if first.cfg.ID > second.cfg.ID {
		first, second = second, first // the first by name asks for votes at once
	}
	gates[first.cfg.ID].Lock()
	free := sync.OnceFunc(gates[first.cfg.ID].Unlock)
	t.Cleanup(free)
	var proposals sync.WaitGroup
	for range 3 * caughtUpWithin / 2 {
		proposals.Go(func() {
			if _, _, err := old.Propose(t.Context(), []byte("grow b")); err != nil {
				t.Errorf("propose: %v", err)
			}
		})
	}
	proposals.Wait()
	await(t, second, old.Index())
	eventually(t, "the first's log is whole", func() error {
		if st := first.Status(); st.LastLog < old.Index() || st.Behind() == 0 {
			return fmt.Errorf("%d of %d", st.LastLog, old.Index())
		}
		return nil
	})
	begin := time.Now()
	c.kill(old.cfg.ID)
	c.propose("set a 2")
	if took := time.Since(begin); took >= overdue {
		t.Errorf("the next command was committed after %s", took)
	}
	if leader := c.leader(); leader != second {
		t.Errorf("%s leads, whose state is behind", leader.cfg.ID)
	}
	free()
	await(t, first, second.Index())
	if st := first.Status(); st.Behind() != 0 {
		t.Errorf("%d entries behind at the end", st.Behind())
	}
}

// Streams end for many reasons. An election for each would let whoever can end them keep the cluster from its work.
func TestNobodyStandsInForALeaderThatIsThere(t *testing.T) {
	c := newCluster(t, patient)
	c.propose("set a 1")
	leader := c.leader()
	term := leader.raft.CurrentTerm()
	for _, s := range c.followers() {
		s.mux.mu.Lock()
		streams := slices.Clone(s.mux.arrived[peerKind{leader.cfg.ID, streamRaft}])
		s.mux.mu.Unlock()
		if len(streams) == 0 {
			t.Error("the leader has no stream to a follower")
		}
		for _, stream := range streams {
			_ = stream.Close()
		}
	}
	time.Sleep(overdue / 2) // the last of them would have asked by then
	c.propose("set a 2")
	if now := c.leader(); now != leader || now.raft.CurrentTerm() != term {
		t.Errorf("%s leads in term %d, before it was %s in term %d", now.cfg.ID, now.raft.CurrentTerm(), leader.cfg.ID, term)
	}
}
