package raftstore

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// This schedule shows hashicorp/raft#697 and that bridge mends it.
//
//	n3 was away and is sent a snapshot up to index i: of its log before i nothing is left that reaches i.
//	The leader sends it the entries from i+1 on. n3 keeps them; its answer is lost.
//	The leader sends them again, "after i". The last entry that n3 knows of is a later one now, and in its log there is
//	no i: it refuses. The leader goes back through its log for a place where they agree, finds none, and sends the same
//	snapshot again. There it began.
func TestLostAnswerAfterASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		leader := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, leader, "set a 0")
		var id string
		for _, m := range c.members {
			if m.ID != leader.cfg.ID {
				id = m.ID
			}
		}
		away := c.nodes[id]
		c.net.isolate(id)
		for range 200 {
			simPropose(t, leader, "set a 1")
		}
		if err := leader.Snapshot(); err != nil {
			t.Fatal(err)
		}
		simPropose(t, leader, "set a 2")
		simPropose(t, leader, "set a 3")

		// Entries come through until the first that follow the snapshot; of these the answer is lost, once.
		back := simLink{raft.ServerAddress(id), raft.ServerAddress(leader.cfg.ID)}
		snapshots, lost := 0, false
		c.net.heal()
		c.net.change(func() {
			c.net.only = func(m simMessage) bool {
				if m.to != raft.ServerAddress(id) {
					return true
				}
				switch r := m.command.(type) {
				case *raft.InstallSnapshotRequest:
					snapshots++
				case *raft.AppendEntriesRequest:
					delete(c.net.cut, back)
					if snapshots > 0 && len(r.Entries) > 0 && !lost {
						c.net.cut[back], lost = true, true
					}
				}
				return true
			}
		})
		for range 1000 {
			if get(t, away, "a") == "3" {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		simPropose(t, leader, "set a 4")
		time.Sleep(time.Second)
		if got := get(t, away, "a"); got != "4" || !lost || snapshots != 1 {
			t.Errorf("a = %q, want 4; an answer was lost: %v; snapshots sent: %d, want 1", got, lost, snapshots)
		}
	})
}
