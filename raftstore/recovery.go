package raftstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

const (
	stateFile  = "state.db"
	markerFile = "state.clean"
)

// recovery decides at start what the state is made from.
type recovery struct {
	dir    string
	log    raft.LogStore
	snaps  snapshots
	logger *slog.Logger
	format LogFormat
}

// open returns the state file as it was left, or an empty one. The state file is never synced while it runs, so that only
// a marker written after the last sync says that the disk holds all of it: after a power failure its pages may be from
// different transactions, each of them well-formed.
func (r recovery) open(path string) (_ *state, kept bool, err error) {
	was, clean, err := takeMarker(r.dir)
	if err != nil {
		return nil, false, err
	}
	base, err := r.base(clean)
	if err != nil {
		return nil, false, err
	}
	if clean {
		s, err := r.keep(path, was, base)
		if err == nil {
			return s, true, nil
		}
		if errors.Is(err, ErrDamagedLog) {
			return nil, false, err
		}
		r.logger.Warn("rebuilding the state", "why", err)
		if _, err := r.base(false); err != nil {
			return nil, false, err
		}
	}
	for _, old := range []string{path, path + ".restore"} {
		if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, false, err
		}
	}
	s, err := openState(path)
	return s, false, err
}

// keep opens the state file if it is the one the marker was written for and fits the log.
func (r recovery) keep(path string, was left, base position) (*state, error) {
	sum, err := sumFile(path)
	if err != nil {
		return nil, err
	}
	if sum != was.sum {
		return nil, fmt.Errorf("%s is not what it was when it was closed", path)
	}
	s, err := openState(path)
	if err != nil {
		return nil, err
	}
	at, err := s.position()
	if err == nil {
		err = r.fits(at, was.at, base)
	}
	if err != nil {
		_, closeErr := s.close(false)
		return nil, errors.Join(err, closeErr)
	}
	return s, nil
}

func (r recovery) fits(at, left, base position) error {
	last, err := r.log.LastIndex()
	if err != nil {
		return err
	}
	switch {
	case at != left:
		return fmt.Errorf("the state file stands at %d and was left at %d", at.index, left.index)
	case at.index < base.index:
		return fmt.Errorf("the state file stands at %d, before the snapshot at %d", at.index, base.index)
	case at.index > max(last, base.index):
		// What is in the state was in the log first. Another state can be made; another log cannot.
		return damagedFile(filepath.Join(r.dir, r.format.file()), fmt.Errorf("it ends at entry %d, and the state at %d", last, at.index))
	}
	return nil
}

// base returns where the newest snapshot stands that can be used, after checking that the log goes on from there: raft
// itself would panic on a gap. With a clean state only the log matters, for raft then reads no more than what the snapshot
// says of itself.
func (r recovery) base(clean bool) (position, error) {
	list, err := r.snaps.List()
	if err != nil {
		return position{}, err
	}
	lost, problem, err := r.snaps.broken()
	if err != nil {
		return position{}, err
	}
	var at position
	var index uint64 // of the snapshot, which may be beyond that of the last command in it
	var bad []string
	for _, meta := range list {
		if clean {
			at, index = position{meta.Index, meta.Term}, meta.Index
			break
		}
		info, err := r.verify(meta)
		if err == nil {
			at, index = info.at, meta.Index
			break
		}
		lost, bad = max(lost, meta.Index), append(bad, meta.ID)
		problem = errors.Join(problem, fmt.Errorf("snapshot %s: %w", meta.ID, err))
	}
	if err := r.goesOn(index, lost, problem); err != nil {
		return position{}, err
	}
	if problem != nil {
		r.logger.Error("a snapshot cannot be used, and is not needed", "error", problem)
		return at, r.snaps.putAside(bad)
	}
	return at, nil
}

// goesOn refuses a log that does not go on from a snapshot up to an index; lost is up to where a damaged one went.
func (r recovery) goesOn(index, lost uint64, problem error) error {
	first, err := r.whole()
	if err != nil {
		return err
	}
	last, err := r.log.LastIndex()
	if err != nil {
		return err
	}
	gap := last > index && first > index+1
	if !gap && lost <= max(last, index) {
		return nil
	}
	if problem == nil {
		problem = fmt.Errorf("%w: a snapshot up to %d or later is missing", ErrDamagedSnapshot, first-1)
	}
	return fmt.Errorf("%w (the log begins at %d). Copy the newest folder in %s from a healthy node, "+
		"delete the damaged one here, and start again. Keep %s: it holds this node's votes and what it acknowledged",
		problem, first, filepath.Join(r.dir, snapshotsDir), r.format.file())
}

// whole returns the entry from which on the log has no gap. What is before one, a snapshot that was sent has made up for.
func (r recovery) whole() (uint64, error) {
	if log, ok := r.log.(*watchedLog); ok {
		return log.whole()
	}
	return r.log.FirstIndex()
}

func (r recovery) verify(meta *raft.SnapshotMeta) (info snapshotInfo, err error) {
	_, source, err := r.snaps.Open(meta.ID)
	if err != nil {
		return info, fmt.Errorf("%w: %w", ErrDamagedSnapshot, err)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	if info, err = readSnapshot(source, nil); err != nil {
		return info, err
	}
	// It may go beyond: raft counts entries in that are no commands, and that the state never sees.
	if info.at.index > meta.Index || info.at.term > meta.Term {
		return info, fmt.Errorf("%w: its %s says that it is up to %d, and its state is that of %d", ErrDamagedSnapshot, metaFile, meta.Index, info.at.index)
	}
	return info, nil
}

// left is how a state file was left: where it stands, and the CRC-32C of the whole file.
type left struct {
	at  position
	sum uint32
}

// takeMarker reads the clean-shutdown marker and removes it for good before anything is changed.
func takeMarker(dir string) (l left, ok bool, err error) {
	path := filepath.Join(dir, markerFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, false, nil
	}
	if err != nil {
		return l, false, err
	}
	if err := os.Remove(path); err != nil {
		return l, false, err
	}
	if err := syncDir(dir); err != nil {
		return l, false, err
	}
	l, ok = parseMarker(text)
	return l, ok, nil
}

// parseMarker reads a marker. One that is torn, or of a version that left no checksum, is as good as none.
func parseMarker(text []byte) (l left, ok bool) {
	n, _ := fmt.Sscanf(string(text), markerText, &l.at.index, &l.at.term, &l.sum)
	if n != 3 || string(text) != l.marker() {
		return left{}, false
	}
	return l, true
}

const markerText = "state closed in order at index %d term %d, CRC-32C %08x\n"

func (l left) marker() string { return fmt.Sprintf(markerText, l.at.index, l.at.term, l.sum) }

// leaveMarker says that the state file at this position has reached the disk.
func leaveMarker(dir string, at position) error {
	sum, err := sumFile(filepath.Join(dir, stateFile))
	if err != nil {
		return err
	}
	path := filepath.Join(dir, markerFile)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(left{at, sum}.marker())
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return syncDir(dir)
}

// sumFile is the CRC-32C of a file.
func sumFile(path string) (sum uint32, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	crc := newCRC()
	if _, err := io.CopyBuffer(struct{ io.Writer }{crc}, struct{ io.Reader }{file}, make([]byte, 1<<20)); err != nil {
		return 0, err
	}
	return crc.Sum32(), nil
}
