package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// folder is the files of a directory.
type folder map[string]*fileContent

// fileContent is a file without the zeros at its end, of which some have sixteen million.
type fileContent struct {
	data []byte
	size int
}

func readFolder(t *testing.T, dir string) folder {
	t.Helper()
	files := folder{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err == nil {
			var text []byte
			text, err = os.ReadFile(path)
			files[name] = &fileContent{bytes.TrimRight(text, "\x00"), len(text)}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// write makes a directory of the files.
func (f folder) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range f {
		path := filepath.Join(dir, name)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, content.data, 0o600),
			os.Truncate(path, int64(content.size)))
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// with is the folder with another content of a file; nil: without the file.
func (f folder) with(name string, content *fileContent) folder {
	other := maps.Clone(f)
	other[name] = content
	if content == nil {
		delete(other, name)
	}
	return other
}

// harm is a way in which a file is not what it was.
type harm struct {
	what    string
	content *fileContent // nil: the file is gone
}

// harms are all the ways, with flips bits among what is not zero at the end of the file. older is an earlier content of
// the file, nil when there is none.
func harms(file, older *fileContent, flips int, random *rand.Rand) []harm {
	cut := func(size int) *fileContent { return &fileContent{file.data[:min(size, len(file.data))], size} }
	list := []harm{{"gone", nil}, {"empty", cut(0)}}
	if file.size > 1 {
		list = append(list, harm{"half", cut(file.size / 2)}, harm{"without its last byte", cut(file.size - 1)})
	}
	if older != nil && (older.size != file.size || !bytes.Equal(older.data, file.data)) {
		list = append(list, harm{"an older copy", older})
	}
	used := len(file.data)
	for i := range min(flips, 8*used) {
		bit := random.IntN(8 * used)
		switch i % 3 { // two of three where a page begins, every other of these in the first two pages
		case 1:
			bit = min(bit, random.IntN(2)<<15+random.IntN(8*80))
		case 2:
			bit = bit&^(1<<15-1) + bit%(8*128)
			bit = min(bit, 8*used-1)
		}
		flipped := bytes.Clone(file.data)
		flipped[bit/8] ^= 1 << (bit % 8)
		list = append(list, harm{fmt.Sprintf("bit %d of byte %d flipped", bit%8, bit/8), &fileContent{flipped, file.size}})
	}
	return list
}

// logHolds is all that a log was given and must not forget.
type logHolds struct {
	entries map[uint64]string
	kept    map[string]string
	last    uint64
}

func contentOf(log LogStore) (h logHolds, err error) {
	h = logHolds{entries: map[uint64]string{}, kept: map[string]string{}}
	first, err := log.FirstIndex()
	if err != nil {
		return h, err
	}
	if h.last, err = log.LastIndex(); err != nil {
		return h, err
	}
	for i := first; i <= h.last && i > 0; i++ {
		var e raft.Log
		if err := log.GetLog(i, &e); err != nil {
			return h, err
		}
		h.entries[i] = fmt.Sprintf("%d %d %d %x %x", e.Index, e.Term, e.Type, e.Data, e.Extensions)
	}
	for _, key := range []string{termKey, voteKey, "LastVoteCand", lineageKey, ownerKey} {
		value, err := log.Get([]byte(key))
		if err != nil {
			return h, err
		}
		h.kept[key] = string(value)
	}
	return h, nil
}

func (h logHolds) differ(other logHolds) error {
	if !maps.Equal(h.kept, other.kept) {
		return fmt.Errorf("it kept %q, and was given %q", other.kept, h.kept)
	}
	if !maps.Equal(h.entries, other.entries) {
		return fmt.Errorf("its entries up to %d are not those up to %d that it was given", other.last, h.last)
	}
	return nil
}

// damageLog makes a log, and returns its files as they were before its last writes and after them.
func damageLog(t *testing.T, format LogFormat) (older, newer folder, want logHolds) {
	t.Helper()
	dir := t.TempDir()
	log := openTestLog(t, dir, format)
	keep := func(term uint64, candidate string) {
		t.Helper()
		err := errors.Join(log.SetUint64([]byte(termKey), term), log.SetUint64([]byte(voteKey), term),
			log.Set([]byte("LastVoteCand"), []byte(candidate)), log.Set([]byte(lineageKey), []byte("a history of 16.")),
			log.Set([]byte(ownerKey), []byte("n1")))
		if err != nil {
			t.Fatal(err)
		}
	}
	keep(3, "n1")
	for i := uint64(1); i <= 40; i += 4 {
		appendTo(t, log, i, i+3)
	}
	if err := errors.Join(log.DeleteRange(1, 3), log.DeleteRange(38, 40)); err != nil {
		t.Fatal(err)
	}
	markFollows(t, log, dir)
	older = readFolder(t, dir)
	keep(5, "n2")
	appendTo(t, log, 38, 39)
	appendTo(t, log, 40, 41)
	want, err := contentOf(log)
	if err != nil {
		t.Fatal(err)
	}
	markFollows(t, log, dir)
	newer = readFolder(t, dir) // as a kill leaves it
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return older, newer, want
}

// markFollows waits until the mark says what was written.
func markFollows(t *testing.T, log LogStore, dir string) {
	t.Helper()
	var mark *logMark
	switch log := log.(type) {
	case *boltLog:
		mark = log.mark
	case *walLog:
		mark = log.mark
	}
	eventually(t, "the mark", func() error {
		mark.mu.Lock()
		now := mark.now
		mark.mu.Unlock()
		if b := readFile(t, filepath.Join(dir, markFile)); !bytes.Equal(b, now.encode()) {
			return fmt.Errorf("it says %x, not %+v", b, now)
		}
		return nil
	})
}

// A log of which any file is damaged in any way holds what it was given, or is refused with a sentence that names the
// file and says what to do.
func TestDamagedLogIsRefused(t *testing.T) {
	onBothLogs(t, func(t *testing.T, format LogFormat) {
		t.Parallel()
		older, files, want := damageLog(t, format)
		random := rand.New(rand.NewPCG(1, uint64(len(format))))
		kept, refused := 0, 0
		for _, name := range slices.Sorted(maps.Keys(files)) {
			for _, h := range harms(files[name], older[name], 120/len(files), random) {
				dir := files.with(name, h.content).write(t)
				log, err := openAnyLog(dir, format)
				if err == nil {
					var got logHolds
					if got, err = contentOf(log); err == nil {
						err = want.differ(got)
					}
					if err = errors.Join(err, log.Close()); err != nil {
						t.Errorf("%s, %s: it opens, and %v", name, h.what, err)
					}
					kept++
				} else {
					if !errors.Is(err, ErrDamagedLog) && !errors.Is(err, ErrWrongNode) ||
						!strings.Contains(err.Error(), filepath.Join(dir, firstOf(name))) || !strings.Contains(err.Error(), "let it join anew") {
						t.Errorf("%s, %s: refused with %q", name, h.what, err)
					}
					refused++
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Logf("%d files: %d times nothing was lost, %d times it was refused", len(files), kept, refused)
		if kept == 0 || refused == 0 {
			t.Errorf("%d times nothing was lost and %d times it was refused", kept, refused)
		}
	})
}

func firstOf(name string) string {
	first, _, _ := strings.Cut(name, string(filepath.Separator))
	return first
}

// openAnyLog opens a log with small segments.
func openAnyLog(dir string, format LogFormat) (LogStore, error) {
	if format == LogWAL {
		return openWAL(dir, smallSegment)
	}
	return openBolt(dir)
}

// A log that an earlier version wrote, with no checksums and no mark, is read as it was, and an earlier version reads ours.
func TestLogOfAnEarlierVersion(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, logFile)
	earlier := func() *raftboltdb.BoltStore {
		file, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{NoFreelistSync: true}})
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	plain := func(i uint64) *raft.Log { return &raft.Log{Index: i, Term: 2, Data: fmt.Append(nil, "entry ", i)} }
	reads := func(log raft.LogStore, last uint64) {
		t.Helper()
		for i := uint64(1); i <= last; i++ {
			var got raft.Log
			if err := log.GetLog(i, &got); err != nil || string(got.Data) != string(plain(i).Data) {
				t.Errorf("entry %d is %q, %v", i, got.Data, err)
			}
		}
	}
	file := earlier()
	if err := errors.Join(file.StoreLogs([]*raft.Log{plain(1), plain(2), plain(3)}), file.SetUint64([]byte(termKey), 2), file.Close()); err != nil {
		t.Fatal(err)
	}
	log := openTestLog(t, dir, LogBolt)
	reads(log, 3)
	if err := errors.Join(log.StoreLogs([]*raft.Log{plain(4), plain(5)}), log.Close()); err != nil {
		t.Fatal(err)
	}
	file = earlier()
	reads(file, 5)
	// It goes on in its own way, and says nothing of it in the mark.
	err := errors.Join(file.DeleteRange(3, 5), file.StoreLogs([]*raft.Log{plain(3)}), file.SetUint64([]byte(termKey), 3), file.Close())
	if err != nil {
		t.Fatal(err)
	}
	log = openTestLog(t, dir, LogBolt)
	reads(log, 3)
	if term, err := log.GetUint64([]byte(termKey)); err != nil || term != 3 {
		t.Errorf("term %d, %v", term, err)
	}
}
