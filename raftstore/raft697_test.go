package raftstore

import (
	"bytes"
	"errors"
	"io"
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

// A request with a snapshot is late: it comes again when its receiver has long been further, and has compacted the entries
// after it. Raft itself goes back to the snapshot, and panics when it is told of the next commit.
func TestLateSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		leader := c.leaderAmong(0, "n1", "n2", "n3")
		for range 10 {
			simPropose(t, leader, "set a 1")
		}
		if err := leader.Snapshot(); err != nil {
			t.Fatal(err)
		}
		list, err := leader.snaps.List()
		if err != nil {
			t.Fatal(err)
		}
		meta, source, err := leader.snaps.Open(list[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(source)
		if err := errors.Join(err, source.Close()); err != nil {
			t.Fatal(err)
		}
		var away *Store
		for _, m := range c.members {
			if m.ID != leader.cfg.ID {
				away = c.nodes[m.ID]
			}
		}
		for range 200 {
			simPropose(t, leader, "set a 2")
		}
		time.Sleep(time.Second)
		if err := away.Snapshot(); err != nil {
			t.Fatal(err)
		}
		before := away.raft.AppliedIndex()
		c.net.change(func() { // nothing else reaches it until it has been looked at
			c.net.only = func(m simMessage) bool {
				_, snapshot := m.command.(*raft.InstallSnapshotRequest)
				return snapshot || m.to != raft.ServerAddress(away.cfg.ID)
			}
		})
		rest, answer := bytes.NewReader(data), new(raft.InstallSnapshotResponse)
		if err := simCall(leader.trans.Transport.(*simTransport), raft.ServerAddress(away.cfg.ID), &raft.InstallSnapshotRequest{
			RPCHeader:       raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte(leader.cfg.ID), ID: []byte(leader.cfg.ID)},
			SnapshotVersion: meta.Version, Term: leader.raft.CurrentTerm(),
			LastLogIndex: meta.Index, LastLogTerm: meta.Term, Size: meta.Size,
			Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex,
		}, rest, answer); err != nil || !answer.Success || rest.Len() > 0 {
			t.Errorf("the late request: %+v, %v, %d bytes of it are left to be read as the next", answer, err, rest.Len())
		}
		if after := away.raft.AppliedIndex(); after < before {
			t.Fatalf("it went back from %d to %d", before, after)
		}
		c.net.heal()
		simPropose(t, leader, "set a 3")
		time.Sleep(time.Second)
		if got := get(t, away, "a"); got != "3" {
			t.Errorf("a = %q, want 3", got)
		}

		// A leader that takes it at its word goes on with the entries after the snapshot, of which it has some no more.
		entries := make([]*raft.Log, 0, 200)
		for i := meta.Index + 1; i <= leader.Index(); i++ {
			e := &raft.Log{Index: i, Term: meta.Term, Type: raft.LogNoop}
			if err := leader.log.GetLog(i, e); err != nil && !errors.Is(err, raft.ErrLogNotFound) {
				t.Fatal(err)
			}
			entries = append(entries, e)
		}
		next := new(raft.AppendEntriesResponse)
		if err := simCall(leader.trans.Transport.(*simTransport), raft.ServerAddress(away.cfg.ID), &raft.AppendEntriesRequest{
			RPCHeader:    raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte(leader.cfg.ID), ID: []byte(leader.cfg.ID)},
			Term:         leader.raft.CurrentTerm(),
			PrevLogEntry: meta.Index, PrevLogTerm: meta.Term, Entries: entries, LeaderCommitIndex: leader.Index(),
		}, nil, next); err != nil || !next.Success {
			t.Errorf("the entries after it: %+v, %v", next, err)
		}
		simPropose(t, leader, "set a 4")
		time.Sleep(time.Second)
		if got := get(t, away, "a"); got != "4" {
			t.Errorf("a = %q, want 4", got)
		}
	})
}
