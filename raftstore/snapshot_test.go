package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// memSink is a raft.SnapshotSink in memory.
type memSink struct {
	bytes.Buffer
	cancelled, closed bool
}

func (s *memSink) ID() string    { return "mem" }
func (s *memSink) Cancel() error { s.cancelled = true; return nil }
func (s *memSink) Close() error  { s.closed = true; return nil }

// snapshotOf fills a state with n keys and returns its snapshot.
func snapshotOf(t *testing.T, s *state, at position, n int) []byte {
	t.Helper()
	if err := s.write(at, func(tx *boltTx) {
		for i := range n {
			tx.Put(fmt.Appendf(nil, "key%05d", i), fmt.Appendf(nil, "value %d at %d", i, at.index))
		}
	}); err != nil {
		t.Fatal(err)
	}
	f := testFSM(t, s)
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	var sink memSink
	if err := snap.Persist(&sink); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(sink.Bytes())
}

// testFSM halts into a channel of one.
func testFSM(t *testing.T, s *state) *haltingFSM {
	f := &haltingFSM{halted: make(chan error, 10)}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	segments, err := openRecords(t.TempDir(), logger)
	if err != nil {
		t.Fatal(err)
	}
	f.fsm = &fsm{
		machine: kv{}, state: s, records: segments, applied: newWatermark(), logger: logger,
		halt: func(err error) { f.halted <- err },
	}
	return f
}

type haltingFSM struct {
	*fsm
	halted chan error
}

func TestSnapshotAndRestore(t *testing.T) {
	from, to := newTestState(t), newTestState(t)
	snap := snapshotOf(t, from, position{42, 3}, 2000)
	f := testFSM(t, to)

	// A reader that began before keeps its state until it ends, and the restore waits for it.
	reading, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		err := to.view(func(r *boltTx, at position) error {
			close(reading)
			for range 1000 {
				if r.Get([]byte("key00001")) != nil || at.index != 0 {
					return errors.New("a reader's state was exchanged under it")
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	<-reading
	if err := f.Restore(io.NopCloser(bytes.NewReader(snap))); err != nil {
		t.Fatal(err)
	}
	<-done
	want, wantSum, err := from.content()
	if err != nil {
		t.Fatal(err)
	}
	got, gotSum, err := to.content()
	if err != nil {
		t.Fatal(err)
	}
	if got != want || gotSum != wantSum {
		t.Errorf("restored %v %x, want %v %x", got, gotSum, want, wantSum)
	}
	if index, _ := f.applied.get(); index != 42 {
		t.Errorf("applied %d, want 42", index)
	}
	if err := to.write(position{43, 3}, func(tx *boltTx) { tx.Put([]byte("more"), nil) }); err != nil {
		t.Errorf("the restored state takes no write: %v", err)
	}
}

// No damaged snapshot replaces a state, whatever byte of it is wrong or missing.
func TestDamagedSnapshotIsRefused(t *testing.T) {
	snap := snapshotOf(t, newTestState(t), position{42, 3}, 20)
	to := newTestState(t)
	snapshotOf(t, to, position{7, 1}, 1)
	at, sum, err := to.content()
	if err != nil {
		t.Fatal(err)
	}
	f := testFSM(t, to)
	refuse := func(what string, b []byte) {
		t.Helper()
		if err := f.Restore(io.NopCloser(bytes.NewReader(b))); !errors.Is(err, ErrDamagedSnapshot) {
			t.Fatalf("%s: %v, want ErrDamagedSnapshot", what, err)
		}
	}
	step := max(len(snap)/400, 1)
	for i := 0; i < len(snap); i += step {
		b := bytes.Clone(snap)
		b[i] ^= 0x10
		refuse(fmt.Sprintf("byte %d of %d flipped", i, len(snap)), b)
		refuse(fmt.Sprintf("cut to %d of %d bytes", i, len(snap)), snap[:i])
	}
	for i := range snapshotHeader {
		b := bytes.Clone(snap)
		b[i] ^= 0x80
		refuse(fmt.Sprintf("header byte %d flipped", i), b)
	}
	refuse("one byte more", append(bytes.Clone(snap), 0))
	refuse("another format", []byte("PK\x03\x04 and so on, longer than a header is, surely"))
	refuse("a checksum over another state than is hashed", rehash(snap))
	if nowAt, nowSum, err := to.content(); err != nil || nowAt != at || nowSum != sum {
		t.Errorf("a refused snapshot changed the state: %v, %v", nowAt, err)
	}
	if _, err := os.Stat(to.path + ".restore"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused snapshot left its file: %v", err)
	}
	select {
	case err := <-f.halted:
		t.Errorf("a refused snapshot halted the node: %v", err)
	default:
	}
}

// rehash gives the snapshot another state hash, with the right checksum over it.
func rehash(snap []byte) []byte {
	b := bytes.Clone(snap)
	b[len(b)-crc32.Size-1] ^= 1 // of the sum, in the content
	crc := newCRC()
	_, _ = crc.Write(b[:len(b)-crc32.Size])
	return crc.Sum(b[:len(b)-crc32.Size])
}

func TestRestoreNeverGoesBack(t *testing.T) {
	older := snapshotOf(t, newTestState(t), position{42, 3}, 5)
	to := newTestState(t)
	snapshotOf(t, to, position{50, 3}, 6)
	f := testFSM(t, to)
	if err := f.Restore(io.NopCloser(bytes.NewReader(older))); err != nil {
		t.Fatal(err)
	}
	if at, err := to.position(); err != nil || at.index != 50 {
		t.Errorf("the state went back to %v, %v", at, err)
	}
}

// At one index there is one state: a node that has another halts rather than choose.
func TestDivergenceHalts(t *testing.T) {
	theirs := snapshotOf(t, newTestState(t), position{42, 3}, 5)
	to := newTestState(t)
	snapshotOf(t, to, position{42, 3}, 6)
	f := testFSM(t, to)
	if err := f.Restore(io.NopCloser(bytes.NewReader(theirs))); err == nil {
		t.Error("restored over a state that differs at the same index")
	}
	select {
	case err := <-f.halted:
		t.Logf("halted: %v", err)
	default:
		t.Error("the node goes on")
	}
	out := f.Apply(&raft.Log{Index: 43, Term: 3, Type: raft.LogCommand, Data: []byte("set a b")}).(outcome)
	if out.err == nil {
		t.Error("a halted node acknowledges")
	}
}

// A transfer that arrives damaged does not become a snapshot, so that it cannot push out a good one.
func TestDamagedTransferIsNotKept(t *testing.T) {
	dir := t.TempDir()
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, newRaftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	store := snapshots{files, filepath.Join(dir, snapshotsDir)}
	snap := snapshotOf(t, newTestState(t), position{42, 3}, 100)
	write := func(b []byte, chunk int) error {
		sink, err := store.Create(1, 42, 3, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		for len(b) > 0 {
			n := min(chunk, len(b))
			if _, err := sink.Write(b[:n]); err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
		return sink.Close()
	}
	bad := bytes.Clone(snap)
	bad[len(bad)/2] ^= 1
	for name, b := range map[string][]byte{"flipped": bad, "cut": snap[:len(snap)-1], "empty": nil} {
		if err := write(b, 1000); !errors.Is(err, ErrDamagedSnapshot) {
			t.Errorf("%s: %v, want ErrDamagedSnapshot", name, err)
		}
		if list, err := store.List(); err != nil || len(list) != 0 {
			t.Errorf("%s: kept as %v, %v", name, list, err)
		}
	}
	for _, chunk := range []int{1, 3, 4, 5, 1 << 20} {
		if err := write(snap, chunk); err != nil {
			t.Errorf("a good one in pieces of %d: %v", chunk, err)
		}
	}
}

// A node that was away while the others took snapshots and dropped their logs gets a snapshot.
func TestLaggingNodeIsSentASnapshot(t *testing.T) { onBothLogs(t, laggingNode) }

func laggingNode(t *testing.T, format LogFormat) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.TrailingLogs, cfg.LogFormat = 10, format })
	c.propose("set a 0")
	away := c.followers()[0].cfg.ID
	c.kill(away)
	var index uint64
	for i := range 100 {
		index, _ = c.propose("set a %d", i)
	}
	for _, s := range c.nodes {
		await(t, s, index)
		eventually(t, "snapshot", s.Snapshot)
	}
	s := c.start(away)
	await(t, s, index)
	if got := get(t, s, "a"); got != "99" {
		t.Errorf("a = %q, want 99", got)
	}
	if s.Status().Snapshot == 0 {
		t.Error("it caught up without a snapshot")
	}
	index, _ = c.propose("set a last")
	await(t, s, index)
	if _, err := os.Stat(filepath.Join(c.dirs[away], stateFile+".restore")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the restore left its file: %v", err)
	}
}
