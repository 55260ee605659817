package raftstore

import (
	"errors"
	"fmt"
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
	left, clean, err := takeMarker(r.dir)
	if err != nil {
		return nil, false, err
	}
	base, err := r.base(clean)
	if err != nil {
		return nil, false, err
	}
	if clean {
		s, err := r.keep(path, left, base)
		if err == nil {
			return s, true, nil
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
func (r recovery) keep(path string, left, base position) (*state, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	s, err := openState(path)
	if err != nil {
		return nil, err
	}
	at, err := s.position()
	if err == nil {
		err = r.fits(at, left, base)
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
		return fmt.Errorf("the state file stands at %d, past the end of the log at %d", at.index, last)
	}
	return nil
}

// base returns where the newest snapshot stands that can be used, after checking that the log goes on from there: raft
// itself would panic on a gap. With a clean state only the log matters, for raft then reads no more than the snapshot's
// name.
func (r recovery) base(clean bool) (position, error) {
	list, err := r.snaps.List()
	if err != nil {
		return position{}, err
	}
	var at position
	var index uint64
	var problem error
	if len(list) > 0 && clean {
		at, index = position{list[0].Index, list[0].Term}, list[0].Index
		list = nil
	}
	for _, meta := range list {
		info, err := r.verify(meta.ID)
		if err == nil {
			at, index = info.at, meta.Index
			break
		}
		problem = errors.Join(problem, fmt.Errorf("snapshot %s: %w", meta.ID, err))
		r.logger.Error("a snapshot cannot be used", "snapshot", meta.ID, "error", err)
	}
	first, err := r.log.FirstIndex()
	if err != nil {
		return position{}, err
	}
	last, err := r.log.LastIndex()
	if err != nil {
		return position{}, err
	}
	noneLeft := len(list) > 0 && index == 0
	if gap := last > index && first > index+1; gap || noneLeft {
		if problem == nil {
			problem = fmt.Errorf("%w: a snapshot up to %d or later is missing", ErrDamagedSnapshot, first-1)
		}
		return position{}, fmt.Errorf("%w (the log begins at %d). Copy the newest folder in %s from a healthy node, "+
			"delete the damaged one here, and start again. Keep %s: it holds this node's votes and what it acknowledged",
			problem, first, filepath.Join(r.dir, "snapshots"), r.format.file())
	}
	return at, nil
}

func (r recovery) verify(id string) (info snapshotInfo, err error) {
	_, source, err := r.snaps.Open(id)
	if err != nil {
		return info, fmt.Errorf("%w: %w", ErrDamagedSnapshot, err)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	return readSnapshot(source, nil)
}

// takeMarker reads the clean-shutdown marker and removes it for good before anything is changed.
func takeMarker(dir string) (left position, ok bool, err error) {
	path := filepath.Join(dir, markerFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return left, false, nil
	}
	if err != nil {
		return left, false, err
	}
	if err := os.Remove(path); err != nil {
		return left, false, err
	}
	if err := syncDir(dir); err != nil {
		return left, false, err
	}
	n, _ := fmt.Sscanf(string(text), markerText, &left.index, &left.term)
	if n != 2 || string(text) != left.marker() {
		return position{}, false, nil // torn: as good as none
	}
	return left, true, nil
}

const markerText = "state closed in order at index %d term %d\n"

func (p position) marker() string { return fmt.Sprintf(markerText, p.index, p.term) }

// leaveMarker says that the state file at this position has reached the disk.
func leaveMarker(dir string, at position) error {
	path := filepath.Join(dir, markerFile)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(at.marker())
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return syncDir(dir)
}
