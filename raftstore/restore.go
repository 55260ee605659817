package raftstore

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"
)

// RestoreConfig says which node is made of a backup.
type RestoreConfig struct {
	ID        string
	Dir       string // MUST be empty, or missing
	LogFormat LogFormat
	Check     BackupCheck
	Logger    *slog.Logger // nil discards

	// Accept, unless nil, may refuse a backup: of another cluster, of another version. It is called once for the head, with a
	// nil Reader, and once for the state, with the pairs of Check.Keep, as soon as each is known; neither is a promise that
	// the rest of the backup is whole.
	Accept func(head BackupHead, r Reader) error
	// Records gives the records, from 0 on, where the backup has none; they are checked as the backup's own. Nil: they are
	// left out, and the node lacks them.
	Records func(total uint64, fn func(record []byte) error) error
	// Finish, unless nil, is called when all was read and checked. It may refuse, and may put files of its own into the
	// folder, which become the directory's with the rest.
	Finish func(folder string, r Restored) error
}

// Restored is what Restore has made.
type Restored struct {
	Head    BackupHead
	Lineage string // that begins, in hex
	Missing uint64 // records that the state counts and that are not there
	kept    Reader
}

// State has the pairs of BackupCheck.Keep, for RestoreConfig.Finish.
func (r Restored) State() Reader { return r.kept }

// Restore makes a node's directory of a backup: the only voter of a new lineage, in which the other nodes can join it once
// they have nothing of an older one. It is all or nothing: an error means that Dir is as it was, and a crash leaves
// something that no node starts on, or all of it.
func Restore(cfg RestoreConfig, backup io.Reader) (done Restored, err error) {
	cfg.LogFormat, cfg.Logger = cmp.Or(cfg.LogFormat, LogBolt), logTo(cfg.Logger)
	defer func() {
		if err != nil {
			err = fmt.Errorf("raftstore: restore %s: %w", cfg.Dir, err)
		}
	}()
	if !validID(cfg.ID) {
		return done, fmt.Errorf("%w: node ID %q", ErrWrongNode, cfg.ID)
	}
	if err := checkEmpty(cfg.Dir); err != nil {
		return done, err
	}
	line, err := newLineage()
	if err != nil {
		return done, err
	}
	h, err := beginHistory(cfg.Dir, cfg.LogFormat, line)
	if err != nil {
		return done, err
	}
	if done, err = cfg.build(h, backup); err != nil {
		return done, errors.Join(err, h.abandon())
	}
	return done, h.commit("")
}

func newLineage() (line lineage, err error) {
	_, err = io.ReadFull(rand.Reader, line[:])
	return line, err
}

func logTo(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// build writes all of the new history to its folder.
func (cfg RestoreConfig) build(h *newHistory, backup io.Reader) (done Restored, err error) {
	done.Lineage = hex.EncodeToString(h.line[:])
	recs, err := openRecords(filepath.Join(h.stage, recordsDir), cfg.Logger)
	if err != nil {
		return done, err
	}
	state := &pendingSnapshot{history: h, id: cfg.ID, logger: cfg.Logger}
	done.Head, err = readBackup(backup, cfg.Check, backupSink{
		head: func(head BackupHead) error {
			state.index, state.term = head.Index, head.Term
			if cfg.Accept == nil {
				return nil
			}
			return cfg.Accept(head, nil)
		},
		state: state,
		kept: func(head BackupHead, r Reader) error {
			if done.kept = r; cfg.Accept == nil {
				return nil
			}
			return cfg.Accept(head, r)
		},
		records: recs.append,
	})
	if err = errors.Join(err, state.end(err == nil)); err == nil && !done.Head.WithRecords {
		err = cfg.takeRecords(done, recs)
	}
	recs.expect(done.Head.Records, false)
	_, done.Missing = recs.count()
	if err = errors.Join(err, recs.sync(), recs.close()); err != nil {
		return done, err
	}
	if err := h.writeLog(cfg.ID, done.Head.Term); err != nil || cfg.Finish == nil {
		return done, err
	}
	return done, cfg.Finish(h.stage, done)
}

// takeRecords takes in records that come from elsewhere, each chunk once it is known to be the state's.
func (cfg RestoreConfig) takeRecords(done Restored, recs *records) error {
	total := done.Head.Records
	if total == 0 || cfg.Records == nil {
		return nil
	}
	var chunk [][]byte
	next := uint64(0)
	flush := func() error {
		first := next - uint64(len(chunk))
		if check := cfg.Check.CheckRecords; check != nil {
			if err := check(done.kept, first, chunk); err != nil {
				return fmt.Errorf("records %d to %d that were given are not those of the backup: %w", first, next-1, err)
			}
		}
		err := recs.append(first, chunk)
		chunk = nil
		return err
	}
	err := cfg.Records(total, func(record []byte) error {
		if next == total {
			return nil
		}
		chunk = append(chunk, slices.Clone(record))
		if next++; next%RecordChunk != 0 && next != total {
			return nil
		}
		return flush()
	})
	if err == nil && next < total {
		err = fmt.Errorf("%w: record %d", ErrRecordsMissing, next)
	}
	return err
}

// RecordsIn reads the records in a node's directory, which stays as it is, from 0 on, up to a number of them. Nothing but
// their checksums is checked.
func RecordsIn(dir string, total uint64, fn func(record []byte) error) error {
	if _, err := os.Stat(filepath.Join(dir, recordsDir)); err == nil {
		dir = filepath.Join(dir, recordsDir)
	}
	segments, err := segmentsIn(dir)
	if err != nil {
		return err
	}
	next := uint64(0)
	var damage error
	for _, g := range segments {
		if g.first > next || next >= total {
			break
		}
		damaged, err := g.each(filepath.Join(dir, g.name()), func(number uint64, record []byte) error {
			if number != next || next == total {
				return nil
			}
			next++
			return fn(record)
		})
		if err != nil {
			return err
		}
		damage = errors.Join(damage, damaged)
	}
	if next < total {
		return errors.Join(fmt.Errorf("%w: record %d of %d, in %s", ErrRecordsMissing, next, total, dir), damage)
	}
	return nil
}

// segmentsIn lists a folder's segments, and touches none.
func segmentsIn(dir string) (list []*recordSegment, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if g, ok := parseSegment(e.Name()); ok {
			list = append(list, g)
		}
	}
	slices.SortFunc(list, func(a, b *recordSegment) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.count, a.count))
	})
	return list, nil
}

// each calls fn with a segment's records up to the first damage, if there is any.
func (g *recordSegment) each(path string, fn func(number uint64, record []byte) error) (damage error, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	f, err := openFrames(file, g.first)
	for err == nil {
		number := f.number
		var record []byte
		if record, err = f.next(); err == nil {
			if err := fn(number, record); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil, nil
	case errors.Is(err, errDamagedSegment):
		return fmt.Errorf("%s: %w", path, err), nil
	}
	return nil, err
}

// pendingSnapshot is the snapshot that a new history begins with; it is made at the first byte, since where it stands is
// known by then.
type pendingSnapshot struct {
	history     *newHistory
	id          string
	logger      *slog.Logger
	index, term uint64
	sink        raft.SnapshotSink
}

func (p *pendingSnapshot) Write(b []byte) (int, error) {
	if p.sink == nil {
		var err error
		if p.sink, err = p.history.createSnapshot(p.id, p.index, p.term, p.logger); err != nil {
			return 0, err
		}
	}
	return p.sink.Write(b)
}

// end keeps the snapshot, or not.
func (p *pendingSnapshot) end(keep bool) error {
	switch {
	case p.sink == nil && keep:
		return fmt.Errorf("%w: there is no state in it", ErrDamagedBackup)
	case p.sink == nil:
		return nil
	case !keep:
		return p.sink.Cancel()
	}
	return p.sink.Close()
}

// createSnapshot begins a snapshot whose members are one node.
func (h *newHistory) createSnapshot(id string, index, term uint64, logger *slog.Logger) (raft.SnapshotSink, error) {
	files, err := raft.NewFileSnapshotStoreWithLogger(h.stage, snapshotsKept, newRaftLogger(logger))
	if err != nil {
		return nil, err
	}
	alone := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(id), Address: raft.ServerAddress(id)}}}
	return snapshots{files, filepath.Join(h.stage, snapshotsDir)}.Create(raft.SnapshotVersionMax, index, term, alone, 1, peerNames{})
}

// peerNames is as much of a transport as a snapshot's members are written by.
type peerNames struct{ raft.Transport }

// EncodePeer implements raft.Transport.
func (peerNames) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }
