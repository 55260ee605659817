package raftstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// restoreConfig is how the tests restore one of the nodes.
func (c *cluster) restoreConfig(id string, format LogFormat) RestoreConfig {
	return RestoreConfig{ID: id, Dir: c.dirs[id], LogFormat: format, Check: kvCheck(), Logger: testLogger(c.t, id)}
}

// wipe stops a node and takes its directory away.
func (c *cluster) wipe(id string) {
	c.t.Helper()
	if c.nodes[id] != nil {
		c.stop(id)
	}
	if err := os.RemoveAll(c.dirs[id]); err != nil {
		c.t.Fatal(err)
	}
}

// A cluster is made of a backup: one node first, which has exactly what was backed up, then the others. Nothing of the
// old history comes back with a node that still has it.
func TestRestore(t *testing.T) { onBothLogs(t, restores) }

func restores(t *testing.T, format LogFormat) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.LogFormat = format })
	c.propose("set a before")
	c.note(0, 600)
	_, backup := c.backup(true)
	index, _ := c.propose("set a lost")
	for _, s := range c.nodes {
		await(t, s, index)
	}
	c.stop("n3") // and comes back with what it has
	c.wipe("n1")
	c.wipe("n2")

	done, err := Restore(c.restoreConfig("n1", format), bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	if done.Missing != 0 || done.Lineage == done.Head.Lineage || len(done.Lineage) != 2*lineageSize {
		t.Errorf("restored %+v", done)
	}
	c.start("n1")
	if got := get(t, c.leader(), "a"); got != "before" {
		t.Errorf("a = %q after the restore", got)
	}
	if members := c.nodes["n1"].Membership(); len(members) != 1 || members["n1"] != RoleVoter {
		t.Errorf("members %v", members)
	}
	if line := c.nodes["n1"].place.lineage(); hex.EncodeToString(line[:]) != done.Lineage {
		t.Errorf("its lineage is %s, told %s", line, done.Lineage)
	}
	c.start("n3")
	eventually(t, "the node with the old history is refused", func() error {
		conn, err := c.nodes["n1"].DialPeer(t.Context(), "n3")
		if err == nil {
			_ = conn.Close()
		}
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "another epoch") {
			return fmt.Errorf("it is let in: %w", err)
		}
		return nil
	})
	if c.nodes["n3"].IsLeader() {
		t.Error("it leads")
	}
	c.wipe("n3")
	for _, id := range []string{"n2", "n3"} {
		c.start(id)
		c.join(id)
	}
	index, _ = c.propose("set b after")
	c.note(600, 605)
	c.agree(index)
	for id, s := range c.nodes {
		if got := get(t, s, "a"); got != "before" {
			t.Errorf("%s: a = %q", id, got)
		}
		eventually(t, id+" has all records", func() error {
			if st := s.Status(); st.RecordsMissing > 0 || st.Records < 605 {
				return fmt.Errorf("%d of %d are missing", st.RecordsMissing, st.Records)
			}
			return nil
		})
	}
	c.stop("n1")
	c.start("n1") // from what it now has
	index, _ = c.propose("set c again")
	c.agree(index)
}

// A backup without records takes them from a node's directory, which stays as it is, and takes no others.
func TestRestoreWithRecordsBesideIt(t *testing.T) {
	c := newCluster(t, nil)
	c.note(0, 600)
	_, backup := c.backup(false)
	c.note(600, 610) // more than the backup knows of
	other := c.dirs["n2"]
	c.stop("n2")
	c.wipe("n1")
	before := listing(t, other)
	cfg := c.restoreConfig("n1", LogBolt)
	cfg.Records = func(total uint64, fn func([]byte) error) error { return RecordsIn(other, total, fn) }
	done, err := Restore(cfg, bytes.NewReader(backup))
	if err != nil || done.Missing != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if after := listing(t, other); after != before {
		t.Errorf("the other node's directory was %s and is %s", before, after)
	}
	c.stop("n3")
	c.start("n1")
	if st := c.leader().Status(); st.RecordsMissing != 0 || st.Records != done.Head.Records {
		t.Errorf("%d of %d are missing", st.RecordsMissing, st.Records)
	}
	c.wipe("n1")
	for what, records := range map[string]func(total uint64, fn func([]byte) error) error{
		"too few": func(total uint64, fn func([]byte) error) error { return RecordsIn(other, total-1, fn) },
		"forged": func(total uint64, fn func([]byte) error) error {
			n := 0
			return RecordsIn(other, total, func(record []byte) error {
				if n++; n == 300 {
					record = []byte("note forged")
				}
				return fn(record)
			})
		},
		"of another folder": func(total uint64, fn func([]byte) error) error { return RecordsIn(t.TempDir(), total, fn) },
	} {
		cfg.Records = records
		if _, err := Restore(cfg, bytes.NewReader(backup)); err == nil {
			t.Errorf("%s: taken", what)
		}
		if left := listing(t, c.dirs["n1"]); left != "" {
			t.Errorf("%s: left behind: %s", what, left)
		}
	}
	cfg.Records = nil
	if done, err := Restore(cfg, bytes.NewReader(backup)); err != nil || done.Missing != done.Head.Records {
		t.Errorf("without them: %+v, %v", done, err)
	}
}

// listing names all files below a directory, with their sizes.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err == nil && !d.IsDir() {
			all = append(all, fmt.Sprintf("%s(%d)", path[len(dir)+1:], info.Size()))
		} else if err == nil {
			all = append(all, path[len(dir)+1:])
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// What is damaged, cut short, forged or refused leaves nothing, and what is there already is not touched.
func TestRestoreIsAllOrNothing(t *testing.T) {
	c := newCluster(t, nil)
	c.note(0, 300)
	_, backup := c.backup(true)
	c.wipe("n1")
	cfg := c.restoreConfig("n1", LogBolt)
	fails := func(what string, cfg RestoreConfig, b []byte) error {
		t.Helper()
		before := listing(t, cfg.Dir)
		_, err := Restore(cfg, bytes.NewReader(b))
		if err == nil {
			t.Fatalf("%s: restored", what)
		}
		if after := listing(t, cfg.Dir); after != before {
			t.Errorf("%s: the directory was [%s] and is [%s]", what, before, after)
		}
		return err
	}
	for at := 0; at < len(backup); at += len(backup)/41 + 1 {
		b := bytes.Clone(backup)
		b[at] ^= 1
		if err := fails(fmt.Sprintf("byte %d", at), cfg, b); !errors.Is(err, ErrDamagedBackup) {
			t.Errorf("byte %d: %v", at, err)
		}
		if err := fails(fmt.Sprintf("cut at %d", at), cfg, backup[:at]); !errors.Is(err, ErrDamagedBackup) {
			t.Errorf("cut at %d: %v", at, err)
		}
	}
	forged := reframe(t, backup, func(kind byte, payload []byte) []byte {
		return bytes.Replace(payload, []byte("note 77"), []byte("note 7x"), 1)
	})
	_ = fails("forged records", cfg, forged)
	refused := errors.New("not this one")
	for _, early := range []bool{true, false} {
		cfg := cfg
		cfg.Accept = func(_ BackupHead, r Reader) error {
			if (r == nil) == early {
				return refused
			}
			return nil
		}
		if err := fails("not accepted", cfg, backup); !errors.Is(err, refused) {
			t.Error(err)
		}
	}
	cfg.Finish = func(folder string, r Restored) error {
		if r.State().Get([]byte(kvCount)) == nil || r.Lineage == "" {
			t.Errorf("finishing %+v", r)
		}
		return refused
	}
	if err := fails("not finished", cfg, backup); !errors.Is(err, refused) {
		t.Error(err)
	}
	cfg.Finish = nil
	if err := os.WriteFile(filepath.Join(c.dirs["n1"], "somebody's"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fails("a directory that is not empty", cfg, backup); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), "move") {
		t.Error(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(c.dirs["n1"], "somebody's")), os.Mkdir(filepath.Join(c.dirs["n1"], "lost+found"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(cfg, bytes.NewReader(backup)); err != nil {
		t.Errorf("into the root of a volume: %v", err)
	}
	_ = fails("a second time", cfg, backup)
}

// A crash at any of the steps leaves what no node starts on, or all of it.
func TestCrashInARestore(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	c.note(0, 20)
	_, backup := c.backup(true)
	c.stop("n2")
	c.stop("n3")
	c.wipe("n1")
	dir := c.dirs["n1"]
	refuses := func(what string) {
		t.Helper()
		cfg := c.config("n1")
		cfg.Listener = listen(t, c.address("n1"))
		if s, err := Open(cfg); err == nil {
			_ = s.Close()
			t.Fatalf("%s: it starts", what)
		} else if !errors.Is(err, ErrUnfinished) || !strings.Contains(err.Error(), "Run it again") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Half of it: what was written so far.
	stage := filepath.Join(dir, historyTmp)
	cfg := c.restoreConfig("n1", LogBolt)
	var half string
	cfg.Finish = func(folder string, _ Restored) error {
		half = filepath.Join(t.TempDir(), "half")
		return os.CopyFS(half, os.DirFS(folder))
	}
	if _, err := Restore(cfg, bytes.NewReader(backup)); err != nil {
		t.Fatal(err)
	}
	c.wipe("n1")
	for _, drop := range [][]string{{"records", "snapshots", "raft.db", "log.mark"}, {"raft.db", "log.mark"}, nil} {
		if err := os.CopyFS(stage, os.DirFS(half)); err != nil {
			t.Fatal(err)
		}
		for _, name := range drop {
			if err := os.RemoveAll(filepath.Join(stage, name)); err != nil {
				t.Fatal(err)
			}
		}
		refuses(fmt.Sprintf("without %v", drop))
		if err := os.RemoveAll(stage); err != nil {
			t.Fatal(err)
		}
	}
	// After the one rename that counts: whatever was moved already.
	for _, name := range []string{historyWhole, historyIn} {
		for moved := range 5 {
			if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700), os.CopyFS(filepath.Join(dir, name), os.DirFS(half))); err != nil {
				t.Fatal(err)
			}
			if parts := []string{"records", "snapshots", "raft.db", "log.mark"}; name == historyIn {
				for _, part := range parts[:min(moved, len(parts))] {
					if err := os.Rename(filepath.Join(dir, name, part), filepath.Join(dir, part)); err != nil {
						t.Fatal(err)
					}
				}
			}
			cfg.Finish = nil
			if _, err := Restore(cfg, bytes.NewReader(backup)); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("restored again over %s: %v", name, err)
			}
			c.start("n1")
			if got := get(t, c.leader(), "a"); got != "1" {
				t.Errorf("after a crash at %s, %d parts moved: a = %q", name, moved, got)
			}
			if st := c.nodes["n1"].Status(); st.RecordsMissing > 0 {
				t.Errorf("records are missing: %+v", st)
			}
			c.stop("n1")
		}
	}
	if left := listing(t, dir); strings.Contains(left, "new-history") {
		t.Errorf("left behind: %s", left)
	}
}

// What a restore that did not end has left does not stand in the way of the next, and two do not work at once.
func TestRestoreAgain(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	_, backup := c.backup(true)
	c.wipe("n1")
	stage := filepath.Join(c.dirs["n1"], historyTmp)
	if err := errors.Join(os.MkdirAll(filepath.Join(stage, snapshotsDir, "1-1-1"), 0o700), os.WriteFile(filepath.Join(stage, logFile), []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	cfg := c.restoreConfig("n1", LogBolt)
	cfg.Finish = func(string, Restored) error {
		if _, err := Restore(c.restoreConfig("n1", LogBolt), bytes.NewReader(backup)); err == nil || !strings.Contains(err.Error(), "at work") {
			t.Errorf("two at once: %v", err)
		}
		return nil
	}
	if _, err := Restore(cfg, bytes.NewReader(backup)); err != nil {
		t.Fatal(err)
	}
	// One that a node has begun to write beside, meanwhile, is called off.
	c.wipe("n1")
	cfg.Finish = func(string, Restored) error {
		return os.WriteFile(filepath.Join(c.dirs["n1"], logFile), []byte("a node's"), 0o600)
	}
	if _, err := Restore(cfg, bytes.NewReader(backup)); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("over what a node has written: %v", err)
	}
	if left := listing(t, c.dirs["n1"]); left != "raft.db(8)" {
		t.Errorf("in its directory there are %s", left)
	}
}

// Of three nodes one is left, with an entry that it alone has. It goes on from all that it has, alone, and then with
// others in the place of those that are lost.
func TestRecover(t *testing.T) { onBothLogs(t, recovers) }

func recovers(t *testing.T, format LogFormat) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.LogFormat = format })
	c.propose("set a 1")
	c.note(0, 300)
	index := c.note(300, 310)
	c.agree(index)
	id := c.leader().cfg.ID
	var lost []string
	for _, m := range c.members {
		if m.ID != id {
			lost = append(lost, m.ID)
		}
	}
	machine := RecoverConfig{ID: id, Dir: c.dirs[id], LogFormat: format, Machine: kv{}, Lost: lost, Logger: testLogger(t, id)}
	if _, err := Recover(machine); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("while the node runs: %v", err)
	}
	for _, other := range lost {
		c.kill(other)
	}
	c.stop(id)
	last := appendEntry(t, c.dirs[id], format, "set a lonely") // accepted by a leader that died before anybody else had it
	before := listing(t, c.dirs[id])

	survey, err := SurveyLog(machine)
	if err != nil || survey.Index != last || survey.Committed >= last || survey.Committed < index || len(survey.Voters) != 3 || survey.Joining {
		t.Errorf("%+v, %v", survey, err)
	}
	for _, wrong := range [][]string{nil, lost[:1], {id}, append([]string{id}, lost...), append([]string{"n4"}, lost...), {lost[0], lost[0]}} {
		machine.Lost = wrong
		if _, err := Recover(machine); !errors.Is(err, ErrMembership) || !strings.Contains(err.Error(), lost[0]) {
			t.Errorf("with %v named as lost: %v", wrong, err)
		}
	}
	refused := errors.New("no")
	machine.Lost, machine.Finish = lost, func(string, Reader, Recovered) error { return refused }
	if _, err := Recover(machine); !errors.Is(err, refused) {
		t.Error(err)
	}
	if after := listing(t, c.dirs[id]); after != before {
		t.Errorf("the directory was %s and is %s", before, after)
	}
	machine.Finish = func(folder string, r Reader, done Recovered) error {
		if got := string(r.Get([]byte("a"))); got != "lonely" || done.Missing != 0 {
			t.Errorf("finishing with a = %q, %+v", got, done)
		}
		return os.WriteFile(filepath.Join(folder, "word"), []byte("of the host"), 0o600)
	}
	done, err := Recover(machine)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(done.Aside, format.file())); err != nil {
		t.Errorf("what was there: %v", err)
	}
	if word, err := os.ReadFile(filepath.Join(c.dirs[id], "word")); err != nil || string(word) != "of the host" {
		t.Errorf("%q, %v", word, err)
	}
	c.start(id)
	if got := get(t, c.leader(), "a"); got != "lonely" {
		t.Errorf("a = %q", got)
	}
	c.propose("set b 2")
	if st := c.nodes[id].Status(); st.RecordsMissing > 0 || st.Records != done.Records {
		t.Errorf("%+v", st)
	}
	// A voter of before that is alive after all is nobody's any more.
	c.start(lost[0])
	eventually(t, "the voter of before is refused", func() error {
		conn, err := c.nodes[id].DialPeer(t.Context(), lost[0])
		if err == nil {
			_ = conn.Close()
		}
		if !errors.Is(err, ErrRefused) {
			return fmt.Errorf("%w", err)
		}
		return nil
	})
	for _, other := range lost {
		c.wipe(other)
		c.start(other)
		c.join(other)
	}
	index, _ = c.propose("set c 3")
	c.agree(index)
}

// appendEntry puts a command at the end of a stopped node's log.
func appendEntry(t *testing.T, dir string, format LogFormat, command string) (index uint64) {
	t.Helper()
	log, err := openLog(dir, format)
	if err != nil {
		t.Fatal(err)
	}
	term, err := log.GetUint64([]byte(termKey))
	last, lastErr := log.LastIndex()
	err = errors.Join(err, lastErr, log.StoreLog(&raft.Log{Index: last + 1, Term: term, Type: raft.LogCommand, Data: []byte(command)}), log.Close())
	if err != nil {
		t.Fatal(err)
	}
	return last + 1
}

// The log goes on from a snapshot, with the records before it in another place; one that is damaged is refused, as at a
// start.
func TestRecoverFromASnapshot(t *testing.T) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.TrailingLogs = 1 })
	c.note(0, 280)
	id := compacted(t, c)
	index := c.note(280, 300)
	await(t, c.nodes[id], index)
	for _, m := range c.members {
		c.kill(m.ID)
	}
	lost := slices.DeleteFunc([]string{"n1", "n2", "n3"}, func(other string) bool { return other == id })
	cfg := RecoverConfig{ID: id, Dir: c.dirs[id], Machine: kv{}, Lost: lost, Logger: testLogger(t, id)}
	if _, err := Recover(RecoverConfig{ID: lost[0], Dir: c.dirs[id], Machine: kv{}, Lost: lost}); !errors.Is(err, ErrWrongNode) {
		t.Errorf("as another node: %v", err)
	}
	if _, err := Recover(RecoverConfig{ID: id, Dir: c.dirs[id], LogFormat: LogWAL, Machine: kv{}, Lost: lost}); !errors.Is(err, ErrWrongNode) {
		t.Errorf("in another format: %v", err)
	}
	if _, err := Recover(RecoverConfig{ID: id, Dir: t.TempDir(), Machine: kv{}, Lost: lost}); !errors.Is(err, ErrWrongNode) || !strings.Contains(err.Error(), "restore a snapshot") {
		t.Errorf("on nothing: %v", err)
	}
	done, err := Recover(cfg)
	if err != nil || done.Missing != 0 || done.Committed == 0 || done.Committed > done.Index {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, err := Recover(cfg); err == nil || !strings.Contains(err.Error(), "nothing is lost") {
		t.Errorf("a second time: %v", err)
	}
	c.start(id)
	if got := get(t, c.leader(), kvCount); got != fmt.Sprint(done.Records) {
		t.Errorf("%s records, told %d", got, done.Records)
	}
	n := uint64(0)
	if err := c.nodes[id].ReadRecords(t.Context(), 0, func(uint64, []byte) bool { n++; return true }); err != nil || n != done.Records {
		t.Errorf("read %d records, %v", n, err)
	}
}

// A crash in a recovery leaves the node as it was, or done.
func TestCrashInARecovery(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	index := c.note(0, 20)
	c.agree(index)
	for _, id := range []string{"n2", "n3", "n1"} {
		c.stop(id)
	}
	dir := c.dirs["n1"]
	as := filepath.Join(t.TempDir(), "was")
	var half string
	cfg := RecoverConfig{ID: "n1", Dir: dir, Machine: kv{}, Lost: []string{"n2", "n3"}, Logger: testLogger(t, "n1")}
	cfg.Finish = func(folder string, _ Reader, _ Recovered) error {
		half = filepath.Join(t.TempDir(), "half")
		return errors.Join(os.CopyFS(half, os.DirFS(folder)), os.Remove(filepath.Join(half, stateFile)))
	}
	if err := os.CopyFS(as, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	done, err := Recover(cfg)
	if err != nil {
		t.Fatal(err)
	}
	aside := filepath.Base(done.Aside)
	reset := func() {
		t.Helper()
		if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(as))); err != nil {
			t.Fatal(err)
		}
	}
	reset() // before it was whole: nothing starts, and without the folder everything is as it was
	if err := os.CopyFS(filepath.Join(dir, historyTmp), os.DirFS(half)); err != nil {
		t.Fatal(err)
	}
	open := c.config("n1")
	open.Listener = listen(t, c.address("n1"))
	if _, err := Open(open); !errors.Is(err, ErrUnfinished) {
		t.Errorf("half of it: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, historyTmp)); err != nil {
		t.Fatal(err)
	}
	c.start("n1")
	c.start("n2")
	c.propose("set a 2")
	c.stop("n1")
	c.stop("n2")
	for put := range 4 { // once it was whole: some of what was there is put aside
		reset()
		if err := errors.Join(os.CopyFS(filepath.Join(dir, historyWhole), os.DirFS(half)), os.Mkdir(filepath.Join(dir, aside), 0o700),
			os.WriteFile(filepath.Join(dir, historyWhole, historyAside), []byte(aside), 0o600)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"raft.db", "log.mark", "records", "snapshots"}[:put] {
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, aside, name)); err != nil {
				t.Fatal(err)
			}
		}
		c.start("n1")
		if got := get(t, c.leader(), "a"); got != "1" || len(c.nodes["n1"].Membership()) != 1 {
			t.Errorf("%d parts put aside: a = %q, members %v", put, got, c.nodes["n1"].Membership())
		}
		c.stop("n1")
		if _, err := os.Stat(filepath.Join(dir, aside, logFile)); err != nil {
			t.Errorf("what was there: %v", err)
		}
	}
}

// Full segments are shared with what is put aside, and neither changes by what becomes of the other.
func TestLinkRecords(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), recordsDir)
	logger := testLogger(t, "n1")
	r, err := openRecords(from, logger)
	if err != nil {
		t.Fatal(err)
	}
	r.full = 2000
	for i := range uint64(500) {
		if err := r.append(i, [][]byte{fmt.Appendf(nil, "record %d", i)}); err != nil {
			t.Fatal(err)
		}
		if i%40 == 0 {
			if err := r.sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(r.sync(), r.close()); err != nil {
		t.Fatal(err)
	}
	before := listing(t, from)
	if err := linkRecords(from, to, 430, logger); err != nil {
		t.Fatal(err)
	}
	linked, err := openRecords(to, logger)
	if err != nil {
		t.Fatal(err)
	}
	if err := linked.append(430, [][]byte{[]byte("another one")}); err != nil {
		t.Fatal(err)
	}
	n := 0
	next, err := linked.read(0, func(number uint64, record []byte) bool {
		want := fmt.Sprintf("record %d", number)
		if number == 430 {
			want = "another one"
		}
		if string(record) != want {
			t.Errorf("record %d is %q", number, record)
		}
		n++
		return true
	})
	if err != nil || n != 431 || next != 431 {
		t.Errorf("%d records up to %d, %v", n, next, err)
	}
	if err := linked.close(); err != nil {
		t.Fatal(err)
	}
	if after := listing(t, from); after != before {
		t.Errorf("it was %s and is %s", before, after)
	}
	if !strings.Contains(listing(t, to), ".seg") {
		t.Error("nothing was shared")
	}
}
