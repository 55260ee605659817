package proxy

import (
	"compress/gzip"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hallpass/hallpass/proxy/records"
)

// Size is a number of bytes, written as 512KiB, 100MiB, 2GiB or a plain number.
type Size int64

// errSize is returned when a text is no size.
var errSize = errors.New("want a size such as 100MiB")

// UnmarshalText is encoding.TextUnmarshaler's.
func (s *Size) UnmarshalText(text []byte) error {
	digits, unit := string(text), int64(1)
	for i, suffix := range []string{"KiB", "MiB", "GiB"} {
		if d, ok := strings.CutSuffix(digits, suffix); ok {
			digits, unit = d, int64(1)<<(10*(i+1))
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<50)/unit || digits[0] == '+' {
		return errSize
	}
	*s = Size(n * unit)
	return nil
}

// MarshalText is encoding.TextMarshaler's.
func (s Size) MarshalText() ([]byte, error) {
	for i, suffix := range []string{"GiB", "MiB", "KiB"} {
		if unit := Size(1) << (10 * (3 - i)); s >= unit && s%unit == 0 {
			return []byte(strconv.FormatInt(int64(s/unit), 10) + suffix), nil
		}
	}
	return []byte(strconv.FormatInt(int64(s), 10)), nil
}

// rotation says when the log goes on in a new file, and what becomes of the old.
type logRotation struct {
	maxSize  int64
	maxAge   time.Duration
	keep     int
	compress bool
}

const (
	minLogSize = 64 << 10 // a record has up to 50 KB
	minLogAge  = time.Minute
)

func (c *config) readRotation(s *Settings) error {
	a := s.AccessLog
	c.rotation = logRotation{maxSize: int64(a.MaxSize), maxAge: a.MaxAge, keep: a.Keep, compress: a.Compress}
	var errs []error
	if a.MaxSize != 0 && a.MaxSize < minLogSize {
		errs = append(errs, s.mistake("access_log.max_size", "is under 64KiB, and one record may have 50"))
	}
	if a.MaxAge != 0 && a.MaxAge < minLogAge {
		errs = append(errs, s.mistake("access_log.max_age", "%s is under 1m", a.MaxAge))
	}
	if a.Keep < 0 {
		errs = append(errs, s.mistake("access_log.keep", "%d is negative", a.Keep))
	}
	rotates := a.MaxSize != 0 || a.MaxAge != 0
	switch {
	case rotates && a.Path == "-":
		errs = append(errs, s.mistake("access_log.path", "is standard output, which has no max_size and no max_age"))
	case !rotates && (a.Keep != 0 || a.Compress):
		errs = append(errs, s.mistake("access_log", "keep and compress need max_size or max_age: who else puts files aside also keeps and compresses them"))
	}
	return errors.Join(errs...)
}

// on says whether this proxy rotates its log itself.
func (r logRotation) on() bool { return r.maxSize > 0 || r.maxAge > 0 }

func (r logRotation) full(size int64, more int) bool {
	return r.maxSize > 0 && size > 0 && size+int64(more) > r.maxSize
}

func (r logRotation) old(age time.Duration) bool { return r.maxAge > 0 && age >= r.maxAge }

// openLogFile opens for appending. A last line torn by a crash is ended first,
// so that the next record stands on a line of its own.
func openLogFile(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if info.Mode().IsRegular() && info.Size() > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], info.Size()-1); err == nil && last[0] != '\n' {
			if _, err := f.Write([]byte("\n")); err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
	}
	return f, nil
}

// useFile goes on in another file, with a tree of its own. The caller holds mu.
func (l *accessLog) useFile(f *os.File, before *records.Head) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	l.file, l.out, l.size, l.began = f, f, 0, l.now()
	if info.Mode().IsRegular() && info.Size() > 0 {
		l.size, l.began = info.Size(), l.beginning(f)
	}
	return l.beginTree(before)
}

// beginning is when a file that was there already was begun: its age must not
// start anew with each start of the proxy.
func (l *accessLog) beginning(f *os.File) time.Time {
	head := make([]byte, 1024)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return l.now()
	}
	line, _, _ := strings.Cut(string(head[:n]), "\n")
	first, ok := records.ParseFirst([]byte(line))
	if !ok || first.Time.After(l.now()) {
		return l.now()
	}
	return first.Time
}

// beginTree writes the first line of a new tree. The caller holds mu.
func (l *accessLog) beginTree(before *records.Head) error {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	l.tree, l.id, l.holds = records.Tree{}, hex.EncodeToString(id[:]), false
	line, err := records.First{Time: l.now(), Log: l.id, Previous: before}.Line()
	if err != nil {
		return err
	}
	return l.put(append(line, '\n'))
}

// sameFile says whether the path still leads to the file that is written, and
// nobody has cut that short. The caller holds mu.
func (l *accessLog) sameFile() bool {
	there, err := os.Stat(l.path)
	if err != nil {
		return false
	}
	mine, err := l.file.Stat()
	if err != nil || !os.SameFile(there, mine) {
		return false
	}
	return !mine.Mode().IsRegular() || mine.Size() >= l.size
}

// rotate puts the file aside and goes on in a new one, between two records. When
// that cannot be done the old file goes on: a log that is too long is better than
// one with a hole. The caller holds mu.
func (l *accessLog) rotate() {
	if l.file == nil || time.Now().Before(l.later) {
		return
	}
	old, before := l.file, l.tree.Head(l.id)
	if err := l.nextFile(&before); err != nil {
		l.later = time.Now().Add(minLogAge)
		l.log.Error("access log cannot be rotated, going on in the old file", slog.Any("error", err))
		return
	}
	l.tidy.start(old)
}

// nextFile makes the new file beside the old one, its first line included, before
// it moves anything: a disk that is full is found out while the old file stands.
func (l *accessLog) nextFile(before *records.Head) error {
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || !l.sameFile() {
		return errors.New("its path leads elsewhere") // reopen follows it in a second
	}
	next := l.path + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(next, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	was := *l.writing()
	undo := func(err error) error {
		l.resume(was)
		return errors.Join(err, f.Close(), os.Remove(next))
	}
	if err := l.useFile(f, before); err != nil {
		return undo(err)
	}
	aside, err := asideName(l.path, l.now())
	if err != nil {
		return undo(err)
	}
	if err := os.Rename(l.path, aside); err != nil {
		return undo(err)
	}
	if err := os.Rename(next, l.path); err != nil {
		return undo(errors.Join(err, os.Rename(aside, l.path)))
	}
	return nil
}

// writing is where the log is at.
type writing struct {
	file  *os.File
	size  int64
	began time.Time
	tree  records.Tree
	id    string
	holds bool
}

func (l *accessLog) writing() *writing {
	return &writing{l.file, l.size, l.began, l.tree, l.id, l.holds}
}

func (l *accessLog) resume(w writing) {
	l.file, l.out, l.size, l.began, l.tree, l.id, l.holds = w.file, w.file, w.size, w.began, w.tree, w.id, w.holds
}

// asideLayout is of the time in the name of a file that was put aside.
const asideLayout = "20060102T150405.000Z"

// asideName is a name for a file that is put aside which no other has.
func asideName(path string, now time.Time) (string, error) {
	for range 1000 {
		name := asidePrefix(path) + now.UTC().Format(asideLayout) + filepath.Ext(path)
		_, err := os.Lstat(name)
		_, zerr := os.Lstat(name + ".gz")
		if errors.Is(err, fs.ErrNotExist) && errors.Is(zerr, fs.ErrNotExist) {
			return name, nil
		}
		now = now.Add(time.Millisecond)
	}
	return "", fmt.Errorf("%s: every name is taken", asidePrefix(path))
}

func asidePrefix(path string) string { return strings.TrimSuffix(path, filepath.Ext(path)) + "-" }

// isAside says whether a path is one that asideName gives, compressed or not.
// Nothing else in that folder is ours to compress or to remove.
func isAside(path, name string) bool {
	middle, ok := strings.CutPrefix(strings.TrimSuffix(name, ".gz"), asidePrefix(path))
	if !ok {
		return false
	}
	middle, ok = strings.CutSuffix(middle, filepath.Ext(path))
	if !ok {
		return false
	}
	at, err := time.Parse(asideLayout, middle)
	return err == nil && at.Format(asideLayout) == middle
}

// tidier brings files that were put aside to the disk, compresses them and removes
// the oldest, behind the proxy's back. Its zero value does nothing.
type tidier struct {
	path     string
	rotation logRotation
	log      *slog.Logger
	work     chan *os.File
	done     chan struct{}
	once     *sync.Once
	ended    *sync.WaitGroup
}

func newTidier(path string, r logRotation, log *slog.Logger) tidier {
	t := tidier{path: path, rotation: r, log: log}
	if r.on() {
		t.work, t.done, t.once, t.ended = make(chan *os.File, 16), make(chan struct{}), new(sync.Once), new(sync.WaitGroup)
		t.ended.Go(t.run)
	}
	return t
}

// start has the folder tidied, and a file that was put aside closed, if it is not nil.
func (t *tidier) start(old *os.File) {
	if t.work == nil {
		return
	}
	select {
	case t.work <- old:
	default: // it is far behind, and looks at the whole folder when it comes to it
		if old != nil {
			_ = old.Close() // its records are with the system already
		}
	}
}

// stop ends it, and leaves what it was at for the next start.
func (t *tidier) stop() {
	if t.work == nil {
		return
	}
	t.once.Do(func() { close(t.done) })
	t.ended.Wait()
}

func (t *tidier) run() {
	for {
		select {
		case <-t.done:
			for {
				select {
				case old := <-t.work:
					t.settle(old)
				default:
					return
				}
			}
		case old := <-t.work:
			t.settle(old)
			if err := t.tidy(); err != nil {
				t.log.Warn("access logs that were put aside cannot be tidied", slog.Any("error", err))
			}
		}
	}
}

func (t *tidier) settle(old *os.File) {
	if old == nil {
		return
	}
	if err := errors.Join(old.Sync(), old.Close()); err != nil {
		t.log.Error("an access log that was put aside may not be whole on the disk", slog.String("file", old.Name()), slog.Any("error", err))
	}
}

func (t *tidier) tidy() error {
	dir := filepath.Dir(t.path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var aside []string
	for _, e := range entries {
		if name := filepath.Join(dir, e.Name()); e.Type().IsRegular() && isAside(t.path, name) {
			aside = append(aside, name)
		}
	}
	slices.Sort(aside) // by time
	var errs []error
	if n := len(aside) - t.rotation.keep; t.rotation.keep > 0 && n > 0 {
		for _, name := range aside[:n] {
			errs = append(errs, os.Remove(name))
		}
		aside = aside[n:]
	}
	if t.rotation.compress {
		for _, name := range aside {
			if !strings.HasSuffix(name, ".gz") {
				errs = append(errs, t.compress(name))
			}
		}
	}
	return errors.Join(errs...)
}

// errStopped is returned when a file is not compressed as the proxy stops.
var errStopped = errors.New("stopped")

// compress replaces a file by one that holds the same. Until that is whole and on
// the disk the first one stays.
func (t *tidier) compress(name string) (err error) {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	part := t.path + ".gz.next"
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part))
		}
		if errors.Is(err, errStopped) {
			err = nil // the next start does it
		}
	}()
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, &untilDone{in, t.done})
	if err = errors.Join(err, z.Close(), out.Sync(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(part, name+".gz"); err != nil {
		return err
	}
	return os.Remove(name)
}

// untilDone reads until done is closed.
type untilDone struct {
	r    io.Reader
	done <-chan struct{}
}

func (u *untilDone) Read(p []byte) (int, error) {
	select {
	case <-u.done:
		return 0, errStopped
	default:
		return u.r.Read(p)
	}
}
