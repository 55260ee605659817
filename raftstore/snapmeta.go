package raftstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"
)

// Raft keeps a snapshot in a folder of its own: state.bin, which it checks by a checksum, and beside it meta.json, with
// that checksum, the index and the members, which nothing checks. One digit of the index, and entries are left out or
// applied twice; one letter of a member, and the node counts another quorum. So a third file has the checksum of what
// meta.json says. A folder of an earlier version has none and is believed, as it was.
const (
	snapshotsDir = "snapshots"
	stateBin     = "state.bin"
	metaFile     = "meta.json"
	metaSumFile  = "meta.sum"
	unfinished   = ".tmp" // raft's, of a folder that is being written
)

// metaSum is what metaSumFile holds.
func metaSum(meta *raft.SnapshotMeta) (string, error) {
	fixed := *meta
	fixed.Size = 0 // not known when the sum is written; it is the file's
	text, err := json.Marshal(fixed)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("CRC-32C %08x\n", crc32.Checksum(text, castagnoli())), nil
}

// writeMetaSum puts the sum of a snapshot that was begun beside what raft wrote of it.
func (s snapshots) writeMetaSum(id string) (err error) {
	folder := filepath.Join(s.dir, id+unfinished)
	text, err := os.ReadFile(filepath.Join(folder, metaFile))
	if err != nil {
		return err
	}
	var meta raft.SnapshotMeta
	if err := json.Unmarshal(text, &meta); err != nil {
		return err
	}
	sum, err := metaSum(&meta)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(folder, metaSumFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(sum)
	return errors.Join(err, file.Sync(), file.Close())
}

// List is raft's list without the snapshots of which it cannot be known what they are.
func (s snapshots) List() ([]*raft.SnapshotMeta, error) {
	list, err := s.FileSnapshotStore.List()
	if err != nil {
		return nil, err
	}
	var good []*raft.SnapshotMeta
	for _, meta := range list {
		if s.check(meta) == nil {
			good = append(good, meta)
		}
	}
	return good, nil
}

// check compares what meta.json says with what stands beside it.
func (s snapshots) check(meta *raft.SnapshotMeta) error {
	folder := filepath.Join(s.dir, meta.ID)
	broken := func(name, what string) error {
		return fmt.Errorf("%w: %s %s", ErrDamagedSnapshot, filepath.Join(folder, name), what)
	}
	if !strings.HasPrefix(meta.ID, fmt.Sprintf("%d-%d-", meta.Term, meta.Index)) || strings.ContainsRune(meta.ID, filepath.Separator) {
		return broken(metaFile, "is another snapshot's")
	}
	info, err := os.Stat(filepath.Join(folder, stateBin))
	if err != nil || info.Size() != meta.Size {
		return broken(stateBin, "is not of the size that it had")
	}
	text, err := os.ReadFile(filepath.Join(folder, metaSumFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of an earlier version
	}
	if err != nil {
		return err
	}
	if sum, err := metaSum(meta); err != nil || string(text) != sum {
		return broken(metaFile, "is not what was written")
	}
	return nil
}

// broken returns what is wrong with the folders that List leaves out, and the highest index that one of them is named by.
func (s snapshots) broken() (index uint64, why error, err error) {
	folders, err := s.leftOut()
	for name, wrong := range folders {
		why = errors.Join(why, wrong)
		var term, at uint64
		if n, _ := fmt.Sscanf(name, "%d-%d-", &term, &at); n == 2 {
			index = max(index, at)
		}
	}
	return index, why, err
}

// leftOut is what is wrong with each folder that List leaves out.
func (s snapshots) leftOut() (map[string]error, error) {
	folders, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	out := make(map[string]error)
	for _, f := range folders {
		name := f.Name()
		if !f.IsDir() || strings.HasSuffix(name, unfinished) {
			continue
		}
		if err := s.checkFolder(name); err != nil {
			out[name] = err
		}
	}
	return out, nil
}

// checkFolder is nil for a snapshot that List gives, or would if it gave more than the newest.
func (s snapshots) checkFolder(name string) error {
	var meta struct { // as raft reads it
		raft.SnapshotMeta
		CRC []byte
	}
	path := filepath.Join(s.dir, name, metaFile)
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(text)).Decode(&meta)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s cannot be read: %w", ErrDamagedSnapshot, path, err)
	case meta.ID != name || meta.Version < raft.SnapshotVersionMin || meta.Version > raft.SnapshotVersionMax:
		return fmt.Errorf("%w: %s is not what was written", ErrDamagedSnapshot, path)
	}
	return s.check(&meta.SnapshotMeta)
}

// putAside has raft forget the snapshots named and those that List leaves out: it keeps the newest two by what they say of
// themselves, and would sooner or later remove a good one for a damaged one.
func (s snapshots) putAside(names []string) error {
	folders, err := s.leftOut()
	if err != nil {
		return err
	}
	for name := range folders {
		names = append(names, name)
	}
	for _, name := range names {
		path := filepath.Join(s.dir, name)
		aside := path + ".damaged" + unfinished
		if err := errors.Join(os.RemoveAll(aside), os.Rename(path, aside)); err != nil {
			return fmt.Errorf("put a damaged snapshot aside: %w", err)
		}
	}
	return syncDir(s.dir)
}
