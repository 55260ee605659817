package raftstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// span is the records from first up to, but not including, end.
type span struct{ first, end uint64 }

// gap returns the first records that are missing.
func (r *records) gap() (span, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := uint64(0)
	for _, g := range r.segments {
		if g.first > next {
			break
		}
		next = g.end()
	}
	if next >= r.total {
		return span{}, false
	}
	i, _ := r.find(next)
	end := r.total
	if i < len(r.segments) {
		end = min(end, r.segments[i].first)
	}
	return span{next, end}, true
}

// count returns how many records the state has, and how many of them are not here.
func (r *records) count() (total, missing uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	missing = r.total
	for _, g := range r.segments {
		if g.first < r.total {
			missing -= min(g.end(), r.total) - g.first
		}
	}
	return r.total, missing
}

// read calls fn with records from the given number on until it returns false or there are no more. The error wraps
// ErrRecordsMissing where one is not here; next is the number it came to.
func (r *records) read(from uint64, fn func(number uint64, record []byte) bool) (next uint64, err error) {
	for more := true; more; {
		g, path, version, err := r.lookup(from)
		if g.count == 0 {
			return from, err
		}
		if g.marks == nil {
			err = r.index(&g, path, version)
		}
		if err == nil {
			from, more, err = g.read(path, from, fn)
		}
		switch {
		case err == nil:
		case !errors.Is(err, errDamagedSegment):
			return from, fmt.Errorf("read record %d: %w", from, err)
		default:
			if err := r.distrust(from, version, err); err != nil {
				return from, err
			}
		}
	}
	return from, nil
}

// lookup returns a copy of the segment that holds the record, up to the end of the state; one that holds nothing when
// there is no such record, with an error if there ought to be.
func (r *records) lookup(number uint64) (g recordSegment, path string, version uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if number >= r.total {
		return g, "", 0, nil
	}
	i, ok := r.find(number)
	if !ok {
		return g, "", 0, fmt.Errorf("%w: record %d", ErrRecordsMissing, number)
	}
	g = *r.segments[i]
	path = r.path(&g)
	g.count = min(g.count, r.total-g.first)
	return g, path, r.version, nil
}

// index finds the marks of a sealed segment that is read for the first time.
func (r *records) index(g *recordSegment, path string, version uint64) error {
	whole := recordSegment{first: g.first}
	if _, err := whole.scan(path); err != nil {
		return missingIsDamage(err)
	}
	g.marks = whole.marks
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, ok := r.find(g.first); ok && r.version == version {
		r.segments[i].marks = whole.marks
	}
	return nil
}

func missingIsDamage(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errDamagedSegment, err)
	}
	return err
}

// read calls fn with the segment's records from one of them on.
func (g *recordSegment) read(path string, from uint64, fn func(number uint64, record []byte) bool) (next uint64, more bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return from, true, missingIsDamage(err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	f, err := g.seek(file, from)
	if err != nil {
		return from, true, err
	}
	for end := g.end(); f.number < end; {
		number := f.number
		record, err := f.next()
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: record %d: it ends before it", errDamagedSegment, number)
		}
		if err != nil {
			return max(from, number), true, err
		}
		if number >= from && !fn(number, record) {
			return number + 1, false, nil
		}
	}
	return g.end(), true, nil
}

// seek begins at the nearest mark, or at the beginning of a file that has none yet.
func (g *recordSegment) seek(file *os.File, number uint64) (*frames, error) {
	if mark := (number - g.first) / markEvery; mark < uint64(len(g.marks)) {
		return framesAt(file, g.first+mark*markEvery, g.marks[mark])
	}
	return openFrames(file, g.first)
}

// distrust takes the records from a damaged one up to the end of its segment out of use, to be fetched again, unless the
// file has become another one since that version: then the reader was mistaken. The file as it was is kept beside the
// others: should nobody have these records any more, somebody may read them from it by hand.
func (r *records) distrust(number, version uint64, why error) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	i, ok := r.find(number)
	if !ok || r.version != version {
		return nil
	}
	g := r.segments[i]
	was := r.path(g)
	kept := filepath.Join(r.dir, fmt.Sprintf("%016x.damaged", g.first))
	r.logger.Error("a segment of records is damaged: they are fetched again from another node",
		"segment", g.name(), "record", number, "until", g.end(), "kept", kept, "error", why)
	gone := errors.Is(why, fs.ErrNotExist)
	if !gone {
		if err := copyFile(kept, was); err != nil {
			return fmt.Errorf("keep a damaged segment: %w", err)
		}
	}
	defer r.stir()
	if number == g.first || gone {
		return r.drop(i)
	}
	if err := r.shorten(g, number); err != nil {
		return err
	}
	if g.count == 0 {
		return r.drop(i)
	}
	return nil
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
