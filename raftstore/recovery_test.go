package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

func TestRestartKeepsState(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	index, _ := c.propose("grow b")
	c.agree(index)
	id := c.followers()[0].cfg.ID
	c.stop(id)
	c.propose("grow b")
	s := c.start(id)
	if s.Index() < index {
		t.Errorf("after a restart in order the state stands at %d, before %d", s.Index(), index)
	}
	if _, err := os.Stat(filepath.Join(c.dirs[id], markerFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the marker outlives the start: %v", err)
	}
	index, _ = c.propose("grow b")
	c.agree(index) // no command was applied twice or left out
}

// After a crash not a byte of the state file is believed.
func TestCrashRebuildsState(t *testing.T) {
	c := newCluster(t, nil)
	index, _ := c.propose("set a 1")
	id := c.followers()[0].cfg.ID
	await(t, c.nodes[id], index)
	c.kill(id)

	// A state file that is well-formed and wrong, as after a power failure that lost some of its pages.
	path := filepath.Join(c.dirs[id], stateFile)
	wrong, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := wrong.write(position{index, 1}, func(tx *boltTx) { tx.Put([]byte("a"), []byte("forged")) }); err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.close(true); err != nil {
		t.Fatal(err)
	}
	s := c.start(id)
	index, _ = c.propose("set b 2")
	await(t, s, index)
	if got := get(t, s, "a") + get(t, s, "b"); got != "12" {
		t.Errorf("a and b = %q, want 12", got)
	}
}

func TestWholeClusterCrashes(t *testing.T) { onBothLogs(t, wholeClusterCrashes) }

func wholeClusterCrashes(t *testing.T, format LogFormat) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.LogFormat = format })
	for i := range 30 {
		c.propose("set k%d %d", i, i)
	}
	for _, m := range c.members {
		c.kill(m.ID)
	}
	for _, m := range c.members {
		c.start(m.ID)
	}
	index, _ := c.propose("set last 1")
	for _, s := range c.nodes {
		await(t, s, index)
		for i := range 30 {
			if got := get(t, s, fmt.Sprintf("k%d", i)); got != fmt.Sprint(i) {
				t.Errorf("%s: k%d = %q", s.cfg.ID, i, got)
			}
		}
	}
}

// compacted has every node take a snapshot and drop the log before it, and returns a follower's ID.
func compacted(t *testing.T, c *cluster) string {
	t.Helper()
	for round := range 2 {
		var index uint64
		for i := range 30 {
			index, _ = c.propose("set k%d %d", i, round)
		}
		c.matched(index) // or the leader, with its log dropped, sends a snapshot of its own
		for _, s := range c.nodes {
			await(t, s, index)
			eventually(t, "snapshot", s.Snapshot)
		}
	}
	return c.followers()[0].cfg.ID
}

// matched waits until the leader knows that all have the index.
func (c *cluster) matched(index uint64) {
	c.t.Helper()
	eventually(c.t, "all logs agree", func() error {
		for _, p := range c.leader().Status().Peers {
			if p.Match < index {
				return fmt.Errorf("%s up to %d of %d", p.ID, p.Match, index)
			}
		}
		return nil
	})
}

func newestSnapshot(t *testing.T, dir string) string {
	t.Helper()
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := files.List()
	if err != nil || len(list) == 0 {
		t.Fatalf("snapshots: %v, %v", list, err)
	}
	return filepath.Join(dir, "snapshots", list[0].ID)
}

func damage(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// openFails starts the node, which must refuse.
func (c *cluster) openFails(t *testing.T, id string, want error) string {
	t.Helper()
	cfg := c.config(id)
	cfg.Listener = listen(t, c.address(id))
	s, err := Open(cfg)
	if err == nil {
		t.Fatal(errors.Join(errors.New("it starts"), s.Close()))
	}
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
	return err.Error()
}

// A node whose only way to its state is damaged says what to do, and doing so helps.
func TestDamagedSnapshotAtStart(t *testing.T) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.TrailingLogs = 5 })
	id := compacted(t, c)
	c.kill(id)
	bad := newestSnapshot(t, c.dirs[id])
	damage(t, filepath.Join(bad, "state.bin"))
	message := c.openFails(t, id, ErrDamagedSnapshot)
	for _, want := range []string{"Copy the newest folder", filepath.Join(c.dirs[id], "snapshots"), "from a healthy node", "Keep raft.db"} {
		if !strings.Contains(message, want) {
			t.Errorf("the error does not say %q: %s", want, message)
		}
	}
	good := newestSnapshot(t, c.dirs[c.leader().cfg.ID])
	if err := os.RemoveAll(bad); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(c.dirs[id], "snapshots", filepath.Base(good)), os.DirFS(good)); err != nil {
		t.Fatal(err)
	}
	s := c.start(id)
	index, _ := c.propose("set after 1")
	await(t, s, index)
	if got := get(t, s, "k7") + get(t, s, "after"); got != "11" {
		t.Errorf("k7 and after = %q, want 11", got)
	}
}

// With a log that reaches back to an older snapshot the newest one is not needed.
func TestOlderSnapshotAndLog(t *testing.T) {
	c := newCluster(t, nil)
	id := compacted(t, c)
	c.kill(id)
	damage(t, filepath.Join(newestSnapshot(t, c.dirs[id]), "state.bin"))
	s := c.start(id)
	index, _ := c.propose("set after 1")
	await(t, s, index)
	if got := get(t, s, "k7") + get(t, s, "after"); got != "11" {
		t.Errorf("k7 and after = %q, want 11", got)
	}
}

func TestMissingSnapshots(t *testing.T) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.TrailingLogs = 5 })
	id := compacted(t, c)
	c.kill(id)
	if err := os.RemoveAll(filepath.Join(c.dirs[id], "snapshots")); err != nil {
		t.Fatal(err)
	}
	c.openFails(t, id, ErrDamagedSnapshot)
}

// A log that was thrown away is missed, and a state file kept beside it must not hide what a new log says.
func TestStateWithoutItsLog(t *testing.T) {
	c := newCluster(t, nil)
	index, _ := c.propose("set a 1")
	for _, s := range c.nodes {
		await(t, s, index)
	}
	for _, m := range c.members {
		c.stop(m.ID)
		if err := os.Remove(filepath.Join(c.dirs[m.ID], logFile)); err != nil {
			t.Fatal(err)
		}
		if message := c.openFails(t, m.ID, ErrWrongNode); !strings.Contains(message, "let it join anew") {
			t.Errorf("a log that is gone: %s", message)
		}
		for _, name := range []string{markFile, markerFile} {
			if err := os.Remove(filepath.Join(c.dirs[m.ID], name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, m := range c.members {
		c.start(m.ID)
	}
	index, _ = c.propose("set b 1")
	for _, s := range c.nodes {
		await(t, s, index)
		if got := get(t, s, "a"); got != "" {
			t.Errorf("%s: a new cluster has the old one's a = %q", s.cfg.ID, got)
		}
		if got := get(t, s, "b"); got != "1" {
			t.Errorf("%s: b = %q, want 1", s.cfg.ID, got)
		}
	}
}

// A state file is believed only where the marker, the snapshot and the log agree that it can be.
func TestStateThatDoesNotFit(t *testing.T) {
	store := raft.NewInmemStore()
	for i := range uint64(20) {
		if err := store.StoreLog(&raft.Log{Index: i + 1, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	r := recovery{log: store}
	tests := map[string]struct {
		at, left, base position
		ok             bool
	}{
		"as it was left":             {position{10, 1}, position{10, 1}, position{8, 1}, true},
		"without a snapshot":         {position{10, 1}, position{10, 1}, position{}, true},
		"at the end of the log":      {position{20, 1}, position{20, 1}, position{}, true},
		"another index than left":    {position{9, 1}, position{10, 1}, position{}, false},
		"another term than left":     {position{10, 2}, position{10, 1}, position{}, false},
		"older than the snapshot":    {position{10, 1}, position{10, 1}, position{11, 1}, false},
		"newer than the log":         {position{21, 1}, position{21, 1}, position{}, false},
		"newer, but in the snapshot": {position{30, 1}, position{30, 1}, position{30, 1}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := r.fits(tt.at, tt.left, tt.base); (err == nil) != tt.ok {
				t.Errorf("fits = %v, want it to fit: %v", err, tt.ok)
			}
		})
	}
}

func TestMarker(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		ok   bool
	}{
		"whole":    {left{position{12, 3}, 0xabc}.marker(), true},
		"torn":     {left{position{12, 3}, 0xabc}.marker()[:30], false},
		"empty":    {"", false},
		"trailing": {left{position{12, 3}, 0xabc}.marker() + "x", false},
		"padded":   {strings.Replace(left{position{12, 3}, 0xabc}.marker(), "12", "012", 1), false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, markerFile), []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			at, ok, err := takeMarker(dir)
			if err != nil || ok != tt.ok || ok && at != (left{position{12, 3}, 0xabc}) {
				t.Errorf("takeMarker = %v, %v, %v", at, ok, err)
			}
			if _, ok, err := takeMarker(dir); ok || err != nil {
				t.Errorf("taken twice: %v, %v", ok, err)
			}
		})
	}
}

// A directory copied from another node would vote a second time with its votes.
func TestAnotherNodesDirectory(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	followers := c.followers()
	one, two := followers[0].cfg.ID, followers[1].cfg.ID
	c.stop(one)
	c.stop(two)
	c.dirs[one], c.dirs[two] = c.dirs[two], c.dirs[one]
	c.openFails(t, one, ErrWrongNode)
	c.dirs[one], c.dirs[two] = c.dirs[two], c.dirs[one]
	c.start(one)
	c.start(two)
	c.propose("set a 2")
}

func TestAnotherMembership(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	id := c.followers()[0].cfg.ID
	c.stop(id)
	members := c.members
	c.members = nil
	for _, m := range members {
		if m.ID == id {
			c.members = append(c.members, m)
		}
	}
	c.openFails(t, id, ErrWrongNode)
	c.members = members
	c.start(id)
}

func TestDirectoryInUse(t *testing.T) {
	c := newCluster(t, nil)
	id := c.followers()[0].cfg.ID
	cfg := c.config(id)
	cfg.Listener = listen(t, "127.0.0.1:0")
	s, err := Open(cfg)
	if err == nil {
		t.Fatal(errors.Join(errors.New("two processes on one directory"), s.Close()))
	}
	if !strings.Contains(err.Error(), "another process") {
		t.Errorf("error %q", err)
	}
}
