package raftstore

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// RecoverConfig says which node goes on without a quorum.
type RecoverConfig struct {
	ID        string
	Dir       string
	LogFormat LogFormat
	Machine   Machine
	Logger    *slog.Logger // nil discards

	// Lost MUST name all voters but this node. Who names them has looked whether they are gone for good.
	Lost []string
	// Finish is as in RestoreConfig; r reads the state that the node will begin with.
	Finish func(folder string, r Reader, done Recovered) error
}

// Survey is what a node that does not run has of the log.
type Survey struct {
	Node      string
	Lineage   string // of its log, in hex
	Term      uint64 // of the last entry
	Index     uint64 // of the last entry. Of several nodes that are left, that with the highest Term, and then Index, has most
	Committed uint64 // up to here a quorum is known to have had the entries; what follows may or may not have been acknowledged
	Voters    []string
	Nonvoters []string
	Joining   bool // it had not caught up with the others yet
}

// Others are the voters but for the node itself.
func (s Survey) Others() []string {
	return slices.DeleteFunc(slices.Clone(s.Voters), func(id string) bool { return id == s.Node })
}

// Recovered is what Recover has made.
type Recovered struct {
	Survey
	NewLineage string // that begins, in hex
	Records    uint64
	Missing    uint64 // records that the state counts and that are not here
	Aside      string // folder with what the node had before
}

// SurveyLog looks at a node that does not run, and changes nothing.
func SurveyLog(cfg RecoverConfig) (Survey, error) {
	o, err := cfg.openOffline()
	if err != nil {
		return Survey{}, fmt.Errorf("raftstore: look at %s: %w", cfg.Dir, err)
	}
	return o.survey, o.log.Close()
}

// Recover makes a node that has lost its quorum for good the only voter of a new lineage. It keeps all that the node's log
// holds, also what is not known to be committed: it may have been acknowledged by those that are lost. It is all or
// nothing: an error means that Dir is as it was, and a crash leaves what no node starts on, or all of it. What the node had
// is put aside and not deleted.
func Recover(cfg RecoverConfig) (done Recovered, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("raftstore: recover %s: %w", cfg.Dir, err)
		}
	}()
	o, err := cfg.openOffline()
	if err != nil {
		return done, err
	}
	if err := o.survey.checkLost(cfg.Lost); err != nil {
		return done, errors.Join(err, o.log.Close())
	}
	line, err := newLineage()
	if err != nil {
		return done, errors.Join(err, o.log.Close())
	}
	h, err := beginHistory(cfg.Dir, o.format, line)
	if err != nil {
		return done, errors.Join(err, o.log.Close())
	}
	done = Recovered{Survey: o.survey, NewLineage: hex.EncodeToString(line[:]), Aside: filepath.Join(cfg.Dir, h.asideName())}
	err = o.build(h, cfg, &done)
	if err = errors.Join(err, o.log.Close()); err != nil {
		return done, errors.Join(err, h.abandon())
	}
	return done, h.commit(h.asideName())
}

// checkLost refuses to go on without a voter that nobody has named, or to believe who names another: it may be alive, and
// have acknowledged what is not here.
func (s Survey) checkLost(lost []string) error {
	others := s.Others()
	slices.Sort(lost)
	switch {
	case len(s.Voters) == 1 && len(others) == 0:
		return fmt.Errorf("%w: %s is the only voter: nothing is lost; start it", ErrMembership, s.Node)
	case !slices.Equal(slices.Compact(lost), others):
		return fmt.Errorf("%w: the other voters are %s, and named as lost are %s: name exactly those, once each of them is stopped for good",
			ErrMembership, strings.Join(others, ", "), cmp.Or(strings.Join(lost, ", "), "none"))
	}
	return nil
}

// offline is a node's directory without the node.
type offline struct {
	dir    string
	format LogFormat
	log    LogStore
	snaps  snapshots
	logger *slog.Logger
	first  *raft.SnapshotMeta // that the log goes on from; nil: it begins at its first entry
	survey Survey
	failed error // of the log's watcher, which never writes here
}

// openOffline opens a node's log, which keeps others from it, and looks which of its snapshots the log goes on from.
func (cfg RecoverConfig) openOffline() (_ *offline, err error) {
	o := &offline{dir: cfg.Dir, format: cmp.Or(cfg.LogFormat, LogBolt), logger: logTo(cfg.Logger)}
	if err := checkDone(cfg.Dir); err != nil {
		return nil, err
	}
	if err := checkStopped(cfg.Dir); err != nil {
		return nil, err
	}
	if there, err := presentIn(cfg.Dir); err != nil || !slices.Contains(there, o.format.file()) {
		return nil, errors.Join(fmt.Errorf("%w: there is no log in the format %q: nothing to go on from. "+
			"Run this on the node that has its data, or restore a snapshot", ErrWrongNode, o.format), err)
	}
	if o.log, err = openLog(cfg.Dir, o.format); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.log.Close())
		}
	}()
	files, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, snapshotsKept, newRaftLogger(o.logger))
	if err != nil {
		return nil, err
	}
	o.snaps = snapshots{files, filepath.Join(cfg.Dir, snapshotsDir)}
	return o, o.look(cfg.ID)
}

// look reads everything that a survey says.
func (o *offline) look(id string) error {
	owner, err := kept(o.log, ownerKey)
	if err != nil {
		return err
	}
	if string(owner) != id {
		return fmt.Errorf("%w: this is node %q and the directory is %q's", ErrWrongNode, id, owner)
	}
	line, err := kept(o.log, lineageKey)
	if err != nil {
		return err
	}
	joining, err := kept(o.log, joiningKey)
	if err != nil {
		return err
	}
	watched := newWatchedLog(o.log, math.MaxInt64, func(err error) { o.failed = err })
	r := recovery{dir: o.dir, log: watched, snaps: o.snaps, logger: o.logger, format: o.format}
	if _, err := r.base(false); err != nil {
		return err
	}
	o.survey = Survey{Node: id, Lineage: hex.EncodeToString(line), Joining: len(joining) > 0}
	var members raft.Configuration
	list, err := o.snaps.List()
	if err != nil {
		return err
	}
	if len(list) > 0 {
		o.first = list[0]
		members = o.first.Configuration
		o.survey.Index, o.survey.Term, o.survey.Committed = o.first.Index, o.first.Term, o.first.Index
	}
	if err := o.entries(func(entry *raft.Log) error {
		o.survey.Index, o.survey.Term = entry.Index, entry.Term
		if entry.Type == raft.LogConfiguration {
			members = raft.DecodeConfiguration(entry.Data)
		}
		return nil
	}); err != nil {
		return err
	}
	if o.survey.Index == 0 || len(members.Servers) == 0 {
		return fmt.Errorf("%w: the log is empty: nothing to go on from. Run this on the node that has its data, or restore a snapshot", ErrWrongNode)
	}
	// A state that was left in order holds what this node knew to be committed, and no more.
	if l, ok := readMarker(o.dir); ok && l.at.index <= o.survey.Index {
		o.survey.Committed = max(o.survey.Committed, l.at.index)
	}
	for _, server := range members.Servers {
		list := &o.survey.Nonvoters
		if server.Suffrage == raft.Voter {
			list = &o.survey.Voters
		}
		*list = append(*list, string(server.ID))
	}
	slices.Sort(o.survey.Voters)
	slices.Sort(o.survey.Nonvoters)
	return nil
}

// kept reads a value that a log keeps beside its entries, nil when there is none.
func kept(log LogStore, key string) ([]byte, error) {
	value, err := log.Get([]byte(key))
	if err != nil && err.Error() != "not found" { // raft's stable stores agree on the text alone
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return value, nil
}

// entries calls fn with the log's entries behind the snapshot that it goes on from.
func (o *offline) entries(fn func(entry *raft.Log) error) error {
	last, err := o.log.LastIndex()
	if err != nil {
		return err
	}
	next := uint64(1)
	if o.first != nil {
		next = o.first.Index + 1
	}
	for ; next <= last; next++ {
		var entry raft.Log
		if err := o.log.GetLog(next, &entry); err != nil {
			return fmt.Errorf("entry %d: %w", next, err)
		}
		if err := fn(&entry); err != nil {
			return err
		}
	}
	return nil
}

// build makes the state of snapshot and log once more, in the new folder: the one that is there belongs to the old
// history, and is as it was if this one comes to nothing.
func (o *offline) build(h *newHistory, cfg RecoverConfig, done *Recovered) (err error) {
	path := filepath.Join(h.stage, stateFile)
	total, err := o.loadState(path)
	if err != nil {
		return err
	}
	st, err := openState(path)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			_, closeErr := st.close(false)
			err = errors.Join(err, closeErr)
		}
	}()
	if err := linkRecords(filepath.Join(o.dir, recordsDir), filepath.Join(h.stage, recordsDir), total, o.logger); err != nil {
		return err
	}
	recs, err := openRecords(filepath.Join(h.stage, recordsDir), o.logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, recs.close()) }()
	machine := &fsm{
		machine: cfg.Machine, state: st, records: recs, applied: newWatermark(), checks: &checkpoints{}, every: math.MaxUint64,
		halt: func(err error) { o.failed = err }, logger: o.logger,
	}
	if err := o.replay(machine); err != nil {
		return err
	}
	if err := o.snapshot(h, st, recs); err != nil {
		return err
	}
	term, err := o.log.GetUint64([]byte(termKey))
	if err != nil && err.Error() != "not found" {
		return err
	}
	if err := h.writeLog(cfg.ID, max(term, o.survey.Term)); err != nil {
		return err
	}
	err = st.view(func(t *boltTx, _ position) error {
		done.Records = t.content.records
		recs.expect(done.Records, false)
		_, done.Missing = recs.count()
		if cfg.Finish == nil {
			return nil
		}
		return cfg.Finish(h.stage, t, *done)
	})
	closed = true
	_, closeErr := st.close(false)
	return errors.Join(err, closeErr, os.Remove(path)) // the next start makes it of the snapshot, and checks it
}

// loadState makes a state file of the snapshot that the log goes on from, and says how many records it counts.
func (o *offline) loadState(path string) (records uint64, err error) {
	if o.first == nil {
		return 0, nil
	}
	_, source, err := o.snaps.Open(o.first.ID)
	if err != nil {
		return 0, err
	}
	info, err := writeStateFile(path, source)
	return info.content.records, errors.Join(err, source.Close())
}

// replay applies what follows the snapshot.
func (o *offline) replay(machine *fsm) error {
	var batch []*raft.Log
	flush := func() error {
		if len(batch) > 0 {
			machine.ApplyBatch(batch)
			batch = nil
		}
		return machine.failed
	}
	err := o.entries(func(entry *raft.Log) error {
		if entry.Type != raft.LogCommand && entry.Type != raft.LogConfiguration {
			return nil // as raft does
		}
		if batch = append(batch, entry); len(batch) < maxAppendEntries {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// snapshot writes the state as the new history's first.
func (o *offline) snapshot(h *newHistory, st *state, recs *records) error {
	snap, err := fixState(st, recs, func(err error) { o.failed = err })
	if err != nil {
		return err
	}
	defer snap.Release()
	sink, err := h.createSnapshot(o.survey.Node, o.survey.Index, o.survey.Term, o.logger)
	if err != nil {
		return err
	}
	if err := snap.Persist(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// linkRecords gives a folder the records of another up to a number; the other one stays as it is. What is full is shared
// where the disk can: there may be gigabytes.
func linkRecords(from, to string, total uint64, logger *slog.Logger) (err error) {
	segments, err := segmentsIn(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	var rest []*recordSegment
	for _, g := range segments {
		if !g.sealed || g.end() > total {
			rest = append(rest, g)
			continue
		}
		old, linked := filepath.Join(from, g.name()), filepath.Join(to, g.name())
		if os.Link(old, linked) != nil {
			if err := copyFile(linked, old); err != nil {
				return err
			}
		}
	}
	recs, err := openRecords(to, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, recs.close()) }()
	for _, g := range rest {
		if err := recs.copyFrom(g, filepath.Join(from, g.name()), total); err != nil {
			return err
		}
	}
	return nil
}

var errEnough = errors.New("that is all")

// copyFrom fills in what a segment of another folder has, up to a number.
func (r *records) copyFrom(g *recordSegment, path string, total uint64) error {
	var batch [][]byte
	first := g.first
	flush := func() error {
		err := r.fill(first, batch)
		first, batch = first+uint64(len(batch)), nil
		return err
	}
	damage, err := g.each(path, func(number uint64, record []byte) error {
		if number >= total {
			return errEnough
		}
		if batch = append(batch, slices.Clone(record)); len(batch) < RecordChunk {
			return nil
		}
		return flush()
	})
	if damage != nil {
		r.logger.Warn("a segment of records is damaged, and its end is left out", "error", damage)
	}
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	return flush()
}
