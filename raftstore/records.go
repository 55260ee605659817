package raftstore

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

const recordsDir = "records"

// records are the records that the Machine appended, in segments of their own beside the state, so that no snapshot holds
// them. How many there are is part of the state, and what they are follows from the log; so a segment needs to reach the
// disk no sooner than a snapshot that covers it. After a crash the first entry that is replayed cuts back what it is about
// to write again.
//
// A node that was sent a snapshot lacks the records before it. It appends where the state says, which leaves a gap, and
// fills the gap from the others: see backfill.
type records struct {
	dir    string
	logger *slog.Logger
	full   int64         // bytes from which a segment takes no more
	wake   chan struct{} // has room for one: something may be missing

	writing sync.Mutex                  // held by who changes files; for no more than a rename or one segment's content
	open    map[*recordSegment]*os.File // guarded by writing; for writing

	mu       sync.Mutex
	segments []*recordSegment // guarded by mu; ascending, none overlaps another; changed by who holds writing
	total    uint64           // guarded by mu; how many there are as of the state
	version  uint64           // guarded by mu; counts what makes a reader's file another one: cuts, renames, removals
	doubted  bool             // guarded by mu; what is here is to be looked through
	trusted  uint64           // guarded by mu; as far as that has come
}

// openRecords reads what is in the directory.
func openRecords(dir string, logger *slog.Logger) (*records, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	r := &records{dir: dir, logger: logger, full: segmentSize, open: make(map[*recordSegment]*os.File), wake: make(chan struct{}, 1)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		g, ok := parseSegment(e.Name())
		if !ok {
			continue
		}
		if !g.sealed {
			if err := r.recover(g); err != nil {
				return nil, fmt.Errorf("read %s: %w", r.path(g), err)
			}
		}
		r.segments = append(r.segments, g)
	}
	return r, r.disentangle()
}

func (r *records) path(g *recordSegment) string { return filepath.Join(r.dir, g.name()) }

// recover reads a segment that was growing and cuts off what is torn: what was written last before a crash.
func (r *records) recover(g *recordSegment) error {
	damage, err := g.scan(r.path(g))
	if err != nil || damage == nil {
		return err
	}
	r.logger.Warn("cutting a segment back to where it is whole", "segment", g.name(), "records", g.count, "why", damage)
	return os.Truncate(r.path(g), g.size)
}

// disentangle drops segments that hold nothing and those that begin within another, which a crash between two steps can
// leave behind. What is dropped is fetched or written again.
func (r *records) disentangle() error {
	slices.SortFunc(r.segments, func(a, b *recordSegment) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.count, a.count))
	})
	var kept []*recordSegment
	for _, g := range r.segments {
		if g.count == 0 || len(kept) > 0 && g.first < kept[len(kept)-1].end() {
			if err := os.Remove(r.path(g)); err != nil {
				return err
			}
			continue
		}
		kept = append(kept, g)
	}
	r.segments = kept
	return nil
}

// expect says how many records the state has, where it does not follow from what was appended: at a start, and when the
// state was replaced. In doubt, what is here is checked against the state.
func (r *records) expect(total uint64, doubt bool) {
	r.mu.Lock()
	r.total = total
	if doubt {
		r.doubted, r.trusted = true, 0
	}
	r.mu.Unlock()
	r.stir()
}

// suspect returns the first record of a chunk that is to be checked, and the version that it is in.
func (r *records) suspect() (first, version uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trusted >= r.total {
		r.doubted = false // what came since was appended here
	}
	return r.trusted, r.version, r.doubted
}

// trust says that a chunk is as it should be.
func (r *records) trust(first uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trusted == first {
		r.trusted += RecordChunk
	}
}

// stir has the gaps looked at.
func (r *records) stir() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// append writes records from the given number on, and first cuts back what is there from it on: entries are being applied
// again. The state that counts them is to be committed next.
func (r *records) append(first uint64, list [][]byte) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	r.total = first
	r.mu.Unlock()
	if err := r.cut(first); err != nil {
		return fmt.Errorf("cut the records back to %d: %w", first, err)
	}
	var g *recordSegment
	if n := len(r.segments); n > 0 && r.segments[n-1].end() == first {
		g = r.segments[n-1]
	}
	if err := r.extend(g, first, list); err != nil {
		return fmt.Errorf("append record %d: %w", first, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total = first + uint64(len(list))
	return nil
}

// fill writes records that were missing.
func (r *records) fill(first uint64, list [][]byte) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	i, _ := r.find(first)
	if i < len(r.segments) {
		next := r.segments[i]
		if next.first <= first {
			return nil // here meanwhile
		}
		list = list[:min(uint64(len(list)), next.first-first)]
	}
	var g *recordSegment
	if i > 0 && r.segments[i-1].end() == first {
		g = r.segments[i-1]
	}
	if err := r.extend(g, first, list); err != nil {
		return fmt.Errorf("fill in record %d: %w", first, err)
	}
	return nil
}

// find returns the first segment that ends after the record, and whether that holds it. The caller holds writing or mu.
func (r *records) find(number uint64) (i int, ok bool) {
	i, _ = slices.BinarySearchFunc(r.segments, number, func(g *recordSegment, n uint64) int {
		if g.end() <= n {
			return -1
		}
		return 1
	})
	return i, i < len(r.segments) && r.segments[i].first <= number
}

// extend writes to the end of a segment, or of a new one when it is nil or full. The caller holds writing.
func (r *records) extend(g *recordSegment, first uint64, list [][]byte) error {
	if len(list) == 0 {
		return nil
	}
	fresh := g == nil || g.sealed || g.size >= r.full
	if fresh {
		g = &recordSegment{first: first, size: int64(segmentHeader)}
	}
	file, err := r.openFor(g, fresh)
	if err != nil {
		return err
	}
	grown := *g
	var b []byte
	for i, record := range list {
		grown.mark(g.size + int64(len(b)))
		grown.count++
		b = appendFrame(b, first+uint64(i), record)
	}
	if _, err := file.WriteAt(b, g.size); err != nil {
		return err // what was written past the end is cut off when the segment is sealed or read at a start
	}
	grown.size += int64(len(b))
	r.mu.Lock()
	defer r.mu.Unlock()
	*g = grown
	if fresh {
		i, _ := r.find(first)
		r.segments = slices.Insert(r.segments, i, g)
	}
	return nil
}

// openFor opens a segment for writing, or makes it. The caller holds writing.
func (r *records) openFor(g *recordSegment, fresh bool) (*os.File, error) {
	if file := r.open[g]; file != nil {
		return file, nil
	}
	flags := os.O_WRONLY
	if fresh {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	file, err := os.OpenFile(r.path(g), flags, 0o600)
	if err != nil {
		return nil, err
	}
	if fresh {
		if _, err := file.Write(segmentHead(g.first)); err != nil {
			return nil, errors.Join(err, file.Close(), os.Remove(r.path(g)))
		}
	}
	r.open[g] = file
	return file, nil
}

// shut closes a segment's file, if it is open. The caller holds writing.
func (r *records) shut(g *recordSegment) error {
	file := r.open[g]
	if file == nil {
		return nil
	}
	delete(r.open, g)
	return file.Close()
}

// cut drops the records from the given number on, the last segments first. The caller holds writing.
func (r *records) cut(number uint64) error {
	for n := len(r.segments); n > 0 && r.segments[n-1].end() > number; n = len(r.segments) {
		g := r.segments[n-1]
		if g.first >= number {
			if err := r.drop(n - 1); err != nil {
				return err
			}
			continue
		}
		return r.shorten(g, number)
	}
	return nil
}

// drop removes a segment. The caller holds writing.
func (r *records) drop(i int) error {
	g := r.segments[i]
	if err := errors.Join(r.shut(g), os.Remove(r.path(g))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.segments = slices.Delete(r.segments, i, i+1)
	r.version++
	return nil
}

// shorten cuts a segment back so that it ends before the given number, or where it is damaged. It is one that may grow
// then. The caller holds writing.
func (r *records) shorten(g *recordSegment, number uint64) error {
	was := r.path(g)
	short := recordSegment{first: g.first}
	if _, err := short.scan(was); err != nil {
		return err
	}
	if number < short.end() {
		if err := short.trim(was, number); err != nil {
			return err
		}
	}
	if err := r.shut(g); err != nil {
		return err
	}
	// Under the name of one that may grow before it is cut: its other name says how much is in it.
	if err := errors.Join(os.Rename(was, r.path(&short)), os.Truncate(r.path(&short), short.size)); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	*g = short
	r.version++
	return nil
}

// trim has the segment, as it is known, end before the given number.
func (g *recordSegment) trim(path string, number uint64) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	mark := (number - g.first) / markEvery
	f, err := framesAt(file, g.first+mark*markEvery, g.marks[mark])
	for err == nil && f.number < number {
		_, err = f.next()
	}
	if err != nil {
		return err
	}
	g.count, g.size = number-g.first, f.offset
	g.marks = g.marks[:(g.count+markEvery-1)/markEvery]
	return nil
}

// sync returns when all that was appended before has reached the disk, and seals what is full.
func (r *records) sync() error {
	r.mu.Lock()
	growing := make(map[*recordSegment]string)
	for _, g := range r.segments {
		if !g.sealed {
			growing[g] = r.path(g)
		}
	}
	r.mu.Unlock()
	for g, path := range growing {
		if err := r.syncOne(g, path); err != nil {
			return fmt.Errorf("sync records: %w", err)
		}
	}
	if len(growing) == 0 {
		return nil
	}
	return syncDir(r.dir)
}

func (r *records) syncOne(g *recordSegment, path string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // cut away, or sealed by another sync
	}
	if err != nil {
		return err
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return err
	}
	return r.seal(g)
}

// seal gives a segment that will not grow any more its other name. Nothing else was written to it since it was synced,
// but perhaps a piece of a failed write after its end.
func (r *records) seal(g *recordSegment) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	i := slices.Index(r.segments, g)
	last := len(r.segments) - 1
	if i < 0 || g.sealed || i == last && g.size < r.full {
		return nil
	}
	if i < last && g.size < r.full && r.segments[i+1].first != g.end() {
		return nil // in the middle of a gap that is being filled
	}
	was := r.path(g)
	if err := errors.Join(r.shut(g), trimFile(was, g.size)); err != nil {
		return err
	}
	sealed := *g
	sealed.sealed = true
	if err := os.Rename(was, r.path(&sealed)); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	*g = sealed
	r.version++
	return nil
}

// trimFile syncs a file that was synced a moment ago, cut to its size.
func trimFile(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(size), file.Sync(), file.Close())
}

// close closes the files.
func (r *records) close() (err error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	for _, g := range r.segments {
		err = errors.Join(err, r.shut(g))
	}
	return err
}
