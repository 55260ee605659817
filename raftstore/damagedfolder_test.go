package raftstore

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	randv2 "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

// lone is a cluster of one node, which has all it has from its own folder.
type lone struct {
	key    ed25519.PrivateKey
	format LogFormat
}

func (l lone) config(t *testing.T, dir string) Config {
	listener := listen(t, "127.0.0.1:0")
	pub, _ := l.key.Public().(ed25519.PublicKey)
	return Config{
		ID: "n1", Dir: dir, Listener: listener, Key: l.key, Machine: kv{}, LogFormat: l.format, TrailingLogs: 5,
		Members: []Member{{ID: "n1", Address: listener.Addr().String(), Key: pub}},
		Timing:  Timing{Heartbeat: 50 * time.Millisecond, Election: 50 * time.Millisecond, Lease: 50 * time.Millisecond, DiskStall: time.Minute},
	}
}

func (l lone) open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(l.config(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func give(t *testing.T, s *Store, format string, args ...any) {
	t.Helper()
	eventually(t, "a command", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, _, err := s.Propose(ctx, fmt.Appendf(nil, format, args...))
		if errors.Is(err, ErrHalted) {
			t.Fatal(err)
		}
		return err
	})
}

// nodeHolds is all that a node must not forget.
type nodeHolds struct {
	pairs        pairSum
	records      string
	last, term   uint64
	lacksRecords bool
}

func holdsNow(t *testing.T, s *Store) (h nodeHolds) {
	t.Helper()
	eventually(t, "a read", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := s.Linearize(ctx); errors.Is(err, ErrHalted) {
			t.Fatal(err)
		} else if err != nil {
			return err
		}
		if err := s.View(func(r Reader, _ uint64) error { h.pairs = sumOf(r); return nil }); err != nil {
			return err
		}
		all := sha256.New()
		err := s.ReadRecords(ctx, 0, func(number uint64, record []byte) bool {
			_, _ = fmt.Fprintf(all, "%d %q\n", number, record) // a hash's Write never fails
			return true
		})
		if h.lacksRecords = errors.Is(err, ErrRecordsMissing); err != nil && !h.lacksRecords {
			return err
		}
		h.records = fmt.Sprintf("%x", all.Sum(nil))
		st := s.Status()
		h.last, h.term = st.LastLog, st.Term
		return nil
	})
	return h
}

// fill gives a node commands that leave something in each of its files.
func fillNode(t *testing.T, s *Store, round int) {
	t.Helper()
	for i := range 12 {
		give(t, s, "set k%d %s", i, strings.Repeat(fmt.Sprint(round), 100*i))
		give(t, s, "note %d %d %s", round, i, strings.Repeat("x", 90*i))
	}
}

// damageNode makes a node, and returns its files as they were early on, and after a stop, in order or by a kill.
func (l lone) damageNode(t *testing.T, kill bool) (older, files folder, want nodeHolds) {
	t.Helper()
	dir := t.TempDir()
	s := l.open(t, dir)
	s.records.full = 4 << 10
	for round := range 4 {
		fillNode(t, s, round)
		eventually(t, "a snapshot", s.Snapshot)
		if round == 1 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			older = readFolder(t, dir)
			s = l.open(t, dir)
			s.records.full = 4 << 10
		}
	}
	fillNode(t, s, 9)
	want = holdsNow(t, s)
	stop := s.Close
	if kill {
		stop = s.Abort
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return older, readFolder(t, dir), want
}

// TestDamagedFolder damages each file of a node's folder in each way, and demands that the node either has all it had or
// does not start and says what docs/operations.md says that it says.
func TestDamagedFolder(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		format LogFormat
		kill   bool
	}{
		"bolt closed": {LogBolt, false},
		"bolt killed": {LogBolt, true},
		"wal closed":  {LogWAL, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			l := lone{key, tt.format}
			older, files, want := l.damageNode(t, tt.kill)
			says := manual(t)
			random := randv2.New(randv2.NewPCG(3, uint64(len(name))))
			count := map[string]int{}
			var mu sync.Mutex
			t.Cleanup(func() { t.Logf("%d files: %v", len(files), count) })
			for _, file := range slices.Sorted(maps.Keys(files)) {
				flips := 2
				if first := firstOf(file); first == walDir || first == logFile {
					flips = 0 // TestDamagedLogIsRefused flips hundreds
				}
				for _, h := range harms(files[file], older[file], flips, random) {
					t.Run(file+", "+h.what, func(t *testing.T) {
						t.Parallel()
						how := l.tryDamaged(t, files.with(file, h.content).write(t), file, want, says)
						mu.Lock()
						defer mu.Unlock()
						count[how]++
					})
				}
			}
		})
	}
}

// tryDamaged starts a node on a folder of which one file is damaged, and says what became of it.
func (l lone) tryDamaged(t *testing.T, dir, file string, want nodeHolds, says map[string][]string) string {
	t.Helper()
	s, err := Open(l.config(t, dir))
	if err != nil {
		if row := kindOfFile(file); !strings.Contains(err.Error(), filepath.Join(dir, firstOf(file))) ||
			!slices.ContainsFunc(says[row], func(s string) bool { return strings.Contains(err.Error(), s) }) {
			t.Errorf("refused with %q, and the manual says of %s %q", err, row, says[row])
		}
		return "refused"
	}
	got := holdsNow(t, s)
	if err := s.Abort(); err != nil {
		t.Error(err)
	}
	switch {
	case got.pairs != want.pairs:
		t.Error("it starts with another state")
	case got.last < want.last:
		t.Errorf("it starts with a log up to %d of %d", got.last, want.last)
	case got.term <= want.term:
		t.Errorf("it asks for votes in term %d, having been in %d", got.term, want.term)
	case got.lacksRecords && kindOfFile(file) == "records":
		return "lacks records, and says so"
	case got.records != want.records:
		t.Error("it starts with other records")
	}
	return "as before"
}

// kindOfFile is the name under which the manual has a file.
func kindOfFile(file string) string {
	switch first := firstOf(file); first {
	case "snapshots", "wal", "records":
		return first
	default:
		return file
	}
}

// manual reads the table of docs/operations.md that says what is said of which file.
func manual(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n### What is broken, what it says, what to do\n")
	if !ok {
		t.Fatal("the manual has no such section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	says := map[string][]string{}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			continue
		}
		for _, file := range quoted(cells[1]) {
			says[file] = append(says[file], quoted(cells[2])...)
		}
	}
	return says
}

// quoted returns what is in backquotes.
func quoted(cell string) (all []string) {
	for i, part := range strings.Split(cell, "`") {
		if i%2 == 1 {
			all = append(all, part)
		}
	}
	return all
}

// Whatever a bit makes of a snapshot's meta.json, it is taken for what it was or for none.
func TestFlippedSnapshotMeta(t *testing.T) {
	dir := t.TempDir()
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, newRaftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	store := snapshots{files, filepath.Join(dir, snapshotsDir)}
	members := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}, {ID: "n2", Address: "n2", Suffrage: raft.Nonvoter}}}
	_, network := raft.NewInmemTransport("n1")
	sink, err := store.Create(1, 42, 3, members, 7, network)
	if err != nil {
		t.Fatal(err)
	}
	_, err = sink.Write(snapshotOf(t, newTestState(t), position{42, 3}, 100))
	if err := errors.Join(err, sink.Close()); err != nil {
		t.Fatal(err)
	}
	list, err := store.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("list %v, %v", list, err)
	}
	want := *list[0]
	path := filepath.Join(store.dir, want.ID, metaFile)
	whole := readFile(t, path)
	left := 0
	for bit := 0; bit < 8*len(whole); bit += 3 {
		flipped := slices.Clone(whole)
		flipped[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := store.List()
		if err != nil {
			t.Fatal(err)
		}
		_, why, err := store.broken()
		switch {
		case err != nil:
			t.Fatal(err)
		case len(list) == 0 && why == nil:
			t.Errorf("bit %d of byte %d: it is left out without a word", bit%8, bit/8)
		case len(list) == 0:
			left++
		case !cmp.Equal(*list[0], want):
			t.Errorf("bit %d of byte %d: %s", bit%8, bit/8, cmp.Diff(want, *list[0]))
		}
	}
	if left == 0 {
		t.Error("it is never left out")
	}
}
