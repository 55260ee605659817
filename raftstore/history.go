package raftstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A restore and a recovery make a node's directory anew: another log of another lineage, and a snapshot that it begins
// with. They do so in a folder inside of the directory, which may be the root of a volume and have no place beside it.
// Each step is one rename:
//
//	new-history.tmp  is being written: no node starts, and nothing else was touched
//	new-history      is whole, and on the disk: from here on it is done. What it replaces is being put aside
//	new-history.in   has nothing to replace any more: what is in it is being put in place
//
// Whoever comes after a crash, the next start among others, goes on from where it was.
const (
	historyTmp   = "new-history.tmp"
	historyWhole = "new-history"
	historyIn    = "new-history.in"

	historyLock  = "lock"  // held by who writes
	historyAside = "aside" // names the folder that what is replaced goes to; missing where there is nothing to replace
)

// ownFiles are what a node keeps in its directory, and a new history replaces. What else is there is its host's.
func ownFiles() []string {
	return []string{logFile, walDir, markFile, snapshotsDir, recordsDir, stateFile, markerFile, stateFile + ".restore"}
}

// newHistory is one that is being written.
type newHistory struct {
	dir   string // of the node
	stage string // where it is written
	lock  *os.File
	log   LogFormat
	line  lineage
}

// beginHistory makes the folder to write to. What an earlier one left that did not get to its end is thrown away.
func beginHistory(dir string, format LogFormat, line lineage) (_ *newHistory, err error) {
	if err := format.Valid(); err != nil {
		return nil, err
	}
	if err := checkDone(dir); err != nil {
		return nil, err
	}
	h := &newHistory{dir: dir, stage: filepath.Join(dir, historyTmp), log: format, line: line}
	if err := os.Mkdir(h.stage, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if h.lock, err = os.OpenFile(filepath.Join(h.stage, historyLock), os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(h.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: another restore or recovery is at work there: %w", h.stage, err), h.lock.Close())
	}
	if err := h.clear(); err != nil {
		return nil, errors.Join(err, h.lock.Close())
	}
	return h, nil
}

// checkDone refuses a directory in which a new history is on its way that has come too far to be thrown away.
func checkDone(dir string) error {
	for _, name := range []string{historyWhole, historyIn} {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("%w: %s is there: a restore or a recovery is done already; start the node", ErrNotEmpty, path), err)
		}
	}
	return nil
}

// clear empties the folder but for its lock.
func (h *newHistory) clear() error {
	left, err := os.ReadDir(h.stage)
	if err != nil {
		return err
	}
	for _, e := range left {
		if e.Name() != historyLock {
			err = errors.Join(err, os.RemoveAll(filepath.Join(h.stage, e.Name())))
		}
	}
	return err
}

// abandon leaves the directory as it was.
func (h *newHistory) abandon() error {
	return errors.Join(h.clear(), os.RemoveAll(h.stage), h.lock.Close())
}

// writeLog makes an empty log of a node, in the new lineage and up to a term.
func (h *newHistory) writeLog(id string, term uint64) (err error) {
	log, err := openLog(h.stage, h.log)
	if err != nil {
		return err
	}
	return errors.Join(
		log.Set([]byte(ownerKey), []byte(id)),
		log.Set([]byte(lineageKey), h.line[:]),
		log.SetUint64([]byte(termKey), term),
		log.Close(),
	)
}

// commit brings all of it to the disk and puts it in place. Before it has done the first, nothing has happened; after, it
// will happen.
func (h *newHistory) commit(aside string) error {
	err := h.ready(aside)
	if err == nil {
		err = os.Rename(h.stage, filepath.Join(h.dir, historyWhole))
	}
	if err != nil {
		if aside != "" {
			_ = os.Remove(filepath.Join(h.dir, aside)) // unless there is something in it, which is not ours then
		}
		return errors.Join(err, h.abandon())
	}
	if err := errors.Join(syncDir(h.dir), takeHistory(h.dir), h.lock.Close()); err != nil {
		return fmt.Errorf("it is done, and the next start will bring it to its end, which failed now: %w", err)
	}
	return nil
}

func (h *newHistory) ready(aside string) error {
	if aside != "" {
		if err := os.Mkdir(filepath.Join(h.dir, aside), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(h.stage, historyAside), []byte(aside), 0o600); err != nil {
			return err
		}
	} else if there, err := presentIn(h.dir); err != nil || len(there) > 0 {
		return errors.Join(err, fmt.Errorf("%w: a node has begun to write to %s: %s", ErrNotEmpty, h.dir, strings.Join(there, ", ")))
	}
	return errors.Join(syncTree(h.stage), syncDir(h.dir))
}

// presentIn lists which of a node's own files are in a directory.
func presentIn(dir string) (names []string, err error) {
	for _, name := range ownFiles() {
		switch _, err := os.Lstat(filepath.Join(dir, name)); {
		case err == nil:
			names = append(names, name)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return names, nil
}

// takeHistory puts a new history in place, from wherever that has come to. It refuses to go on from one that is not whole:
// beside it there may be nothing, and a node with nothing could make another cluster.
func takeHistory(dir string) error {
	tmp := filepath.Join(dir, historyTmp)
	if _, err := os.Lstat(tmp); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%w: %s is there: a snapshot restore or a cluster recover has not come to its end, "+
			"and has changed nothing else. Run it again; or, to do without it, delete that folder", ErrUnfinished, tmp), err)
	}
	whole, in := filepath.Join(dir, historyWhole), filepath.Join(dir, historyIn)
	switch _, err := os.Lstat(whole); {
	case err == nil:
		if err := putAside(dir, whole); err != nil {
			return fmt.Errorf("put the old history aside: %w", err)
		}
		if err := errors.Join(os.Rename(whole, in), syncDir(dir)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := putInPlace(dir, in); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put the new history in place: %w", err)
	}
	return nil
}

// putAside moves what a new history replaces to the folder that it names.
func putAside(dir, whole string) error {
	there, err := presentIn(dir)
	if err != nil || len(there) == 0 {
		return err
	}
	text, err := os.ReadFile(filepath.Join(whole, historyAside))
	aside := string(text)
	if err != nil || !strings.HasPrefix(aside, asidePrefix) || aside != filepath.Base(aside) {
		return errors.Join(fmt.Errorf("%w: %s is to replace nothing, and beside it are %s", ErrNotEmpty, whole, strings.Join(there, ", ")), err)
	}
	for _, name := range there {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, aside, name)); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(filepath.Join(dir, aside)), syncDir(dir))
}

// putInPlace moves a new history to where the node looks for it.
func putInPlace(dir, in string) error {
	parts, err := os.ReadDir(in)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if p.Name() == historyLock || p.Name() == historyAside {
			continue
		}
		if err := os.Rename(filepath.Join(in, p.Name()), filepath.Join(dir, p.Name())); err != nil {
			return err
		}
	}
	if err := errors.Join(syncDir(dir), syncDir(in)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(in), syncDir(dir))
}

// asidePrefix begins the name of a folder with what a recovery has replaced.
const asidePrefix = "before-"

func (h *newHistory) asideName() string { return asidePrefix + hex.EncodeToString(h.line[:4]) }

// checkEmpty refuses a directory in which there is anything. A volume's own folder is nobody's data.
func checkEmpty(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "lost+found" && e.Name() != historyTmp {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("%w: in %s there are %s. Stop the node if it runs, and move what is there away: "+
		"nothing is deleted or written over here", ErrNotEmpty, dir, clipList(names))
}

func clipList(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// checkStopped refuses a directory that a process has open: what is read of it would be of no moment.
func checkStopped(dir string) error {
	for _, path := range []string{filepath.Join(dir, logFile), walIndex(dir), filepath.Join(dir, stateFile)} {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) // bbolt's is exclusive
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%w: stop the node first", inUse(dir))
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return nil
}

// syncTree returns once a folder and all in it have reached the disk.
func syncTree(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		if e.IsDir() {
			err = syncTree(path)
		} else {
			err = syncRead(path)
		}
		if err != nil {
			return err
		}
	}
	return syncDir(root)
}

func syncRead(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// readMarker reads how the state file was left, and leaves the marker there.
func readMarker(dir string) (l left, ok bool) {
	text, err := os.ReadFile(filepath.Join(dir, markerFile))
	if err != nil {
		return l, false
	}
	return parseMarker(text)
}
