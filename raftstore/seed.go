package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Seeder makes the directory of a first member as a long life would have left it, without the cluster and without the
// time: commands go through the same code to the same files, and nobody had to agree on them. It is for measuring and
// testing what a store costs that is large; no node is ever started on its files before Close. It is used by one
// goroutine.
//
// A seeder does not sync before each command, and has the log's last entries in memory until the end. What it leaves is
// a node that was closed in order: the state file with its marker, the records, the newest snapshot, and as much of the
// log as raft would have kept.
type Seeder struct {
	cfg   settings
	fsm   *fsm
	snaps snapshots
	at    position

	tail   []*raft.Log // the newest entries, the oldest first
	failed error       // what halted it
	taken  position    // of the snapshot
}

// Seeded entries are of the term in which the first leader of a new cluster leads.
const (
	foundingTerm = 1 // of the entry that founds it
	seededTerm   = 2
	syncEvery    = 1 << 16 // entries after which the records are brought to the disk, as snapshots do
)

// NewSeeder begins in cfg.Dir, which MUST be empty or missing.
func NewSeeder(cfg Config) (*Seeder, error) {
	cfg.Listener = nil
	_, cfg.Transport = raft.NewInmemTransport(raft.ServerAddress(cfg.ID)) // nothing is sent
	set, err := cfg.settings()
	if err != nil {
		return nil, fmt.Errorf("raftstore: seed: %w", err)
	}
	s := &Seeder{cfg: set}
	if err := errors.Join(set.canFound(), s.open()); err != nil {
		return nil, fmt.Errorf("raftstore: seed %s: %w", set.Dir, err)
	}
	return s, nil
}

func (s *Seeder) open() error {
	if err := emptyDir(s.cfg.Dir); err != nil {
		return err
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(s.cfg.Dir, snapshotsKept, newRaftLogger(s.cfg.Logger))
	if err != nil {
		return err
	}
	s.snaps = snapshots{files, filepath.Join(s.cfg.Dir, snapshotsDir)}
	recs, err := openRecords(filepath.Join(s.cfg.Dir, recordsDir), s.cfg.Logger)
	if err != nil {
		return err
	}
	st, err := openState(filepath.Join(s.cfg.Dir, stateFile))
	if err != nil {
		return errors.Join(err, recs.close())
	}
	s.fsm = &fsm{
		machine: s.cfg.Machine, state: st, records: recs, applied: newWatermark(), logger: s.cfg.Logger,
		checks: &checkpoints{}, every: s.cfg.StateCheck, halt: func(err error) { s.failed = err },
	}
	s.at = position{1, foundingTerm}
	s.tail = []*raft.Log{{Index: 1, Term: foundingTerm, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(s.cfg.raftMembers())}}
	return nil
}

// emptyDir makes a directory, or refuses one that holds something.
func emptyDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	found, err := os.ReadDir(dir)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%s is there already: nothing may be", found[0].Name())
	}
	return err
}

// Apply applies commands in one transaction and returns what each came to.
func (s *Seeder) Apply(commands [][]byte) ([]any, error) {
	if len(commands) == 0 {
		return nil, nil
	}
	logs := make([]*raft.Log, len(commands))
	for i, data := range commands {
		logs[i] = &raft.Log{Index: s.at.index + uint64(i) + 1, Term: seededTerm, Type: raft.LogCommand, Data: data, AppendedAt: time.Now()}
	}
	results := make([]any, len(logs))
	for i, result := range s.fsm.ApplyBatch(logs) {
		out, _ := result.(outcome) // it is nothing else
		if out.err != nil {
			return nil, fmt.Errorf("raftstore: seed: %w", out.err)
		}
		results[i] = out.result
	}
	before := s.at.index
	s.at = position{logs[len(logs)-1].Index, seededTerm}
	s.keep(logs)
	if before/syncEvery != s.at.index/syncEvery {
		return results, s.fsm.records.sync()
	}
	return results, nil
}

// keep remembers the end of the log, of which raft keeps TrailingLogs and what came since the snapshot.
func (s *Seeder) keep(logs []*raft.Log) {
	s.tail = append(s.tail, logs...)
	most := int(s.cfg.TrailingLogs + s.cfg.SnapshotThreshold)
	if len(s.tail) > 2*most {
		s.tail = append([]*raft.Log(nil), s.tail[len(s.tail)-most:]...)
	}
}

// View runs fn on the state as it is.
func (s *Seeder) View(fn func(r Reader) error) error {
	return s.fsm.state.view(func(t *boltTx, _ position) error { return fn(t) })
}

// Snapshot takes a snapshot of the state as it is; a node that is started without the state file begins from the last
// one.
func (s *Seeder) Snapshot() error {
	snap, err := s.fsm.Snapshot()
	if err != nil {
		return err
	}
	defer snap.Release()
	sink, err := s.snaps.Create(raft.SnapshotVersionMax, s.at.index, s.at.term, s.cfg.raftMembers(), 1, s.cfg.Transport)
	if err != nil {
		return err
	}
	if err := snap.Persist(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	s.taken = s.at
	return sink.Close()
}

// StateHash is what nodes compare.
func (s *Seeder) StateHash() (hash [32]byte, err error) {
	_, c, err := s.fsm.state.content()
	return c.hash(), err
}

// Close leaves the directory of a node that was closed in order. Without a snapshot there MUST be no more entries than
// raft keeps.
func (s *Seeder) Close() error {
	err := errors.Join(s.failed, s.fsm.records.sync(), s.fsm.records.close())
	at, closeErr := s.fsm.state.close(err == nil)
	if err = errors.Join(err, closeErr); err == nil {
		err = leaveMarker(s.cfg.Dir, at)
	}
	if err == nil {
		err = s.writeLog(s.cfg)
	}
	if err != nil {
		return fmt.Errorf("raftstore: seed: %w", err)
	}
	return nil
}

// kept is the entries that raft would have: from the snapshot back as many as it keeps, and all since.
func (s *Seeder) kept() ([]*raft.Log, error) {
	first := s.tail[0].Index
	if from := s.taken.index; from > s.cfg.TrailingLogs+first {
		first = from - s.cfg.TrailingLogs
	}
	if s.tail[0].Index > s.taken.index+1 {
		return nil, fmt.Errorf("the last snapshot is at entry %d, and of the log there is what follows %d: take one nearer to the end",
			s.taken.index, s.tail[0].Index-1)
	}
	return s.tail[first-s.tail[0].Index:], nil
}

// writeLog makes a member's log.
func (s *Seeder) writeLog(cfg settings) error {
	entries, err := s.kept()
	if err != nil {
		return err
	}
	log, err := openLog(cfg.Dir, cfg.LogFormat)
	if err != nil {
		return err
	}
	founding := cfg.foundingHash()
	line := lineage(founding[:lineageSize])
	err = errors.Join(
		log.Set([]byte(ownerKey), []byte(cfg.ID)), log.Set([]byte(lineageKey), line[:]),
		log.SetUint64([]byte(termKey), s.at.term),
	)
	for len(entries) > 0 && err == nil {
		n := min(len(entries), maxAppendEntries)
		err = log.StoreLogs(entries[:n])
		entries = entries[n:]
	}
	return errors.Join(err, log.Close())
}

// Replicate makes the directory of another of the first members, after Close. Segments of records that are full and that
// no start will look into are the same files in both.
func (s *Seeder) Replicate(cfg Config) error {
	cfg.Listener = nil
	_, cfg.Transport = raft.NewInmemTransport(raft.ServerAddress(cfg.ID))
	set, err := cfg.settings()
	if err == nil && set.foundingHash() != s.cfg.foundingHash() {
		err = errors.New("it has other first members")
	}
	if err == nil {
		err = emptyDir(set.Dir)
	}
	if err == nil {
		err = CopySeeded(set.Dir, s.cfg.Dir, s.cfg.LogFormat.file(), markFile)
	}
	if err == nil {
		err = s.writeLog(set)
	}
	if err != nil {
		return fmt.Errorf("raftstore: seed %s: %w", set.Dir, err)
	}
	return nil
}

// unlinked is how many of a node's newest full segments a copy has of its own: entries that are applied again after a
// crash cut the records back, and a segment that was cut is written to.
const unlinked = 8

// CopySeeded copies a node's directory, without what is to be left out, into one that is there. Only one of the two MUST
// be started with the keys of that node.
func CopySeeded(to, from string, leaveOut ...string) error {
	segments, err := filepath.Glob(filepath.Join(from, recordsDir, "*.seg")) // in order of their numbers
	if err != nil {
		return err
	}
	shared := make(map[string]bool)
	for _, path := range segments[:max(len(segments)-unlinked, 0)] {
		shared[path] = true
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch {
		case slices.Contains(leaveOut, name) && d.IsDir():
			return fs.SkipDir
		case slices.Contains(leaveOut, name):
			return nil
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case shared[path] && os.Link(path, target) == nil: //nolint:gosec // both are folders that the caller has made
			return nil
		}
		return copyFile(target, path)
	})
}
