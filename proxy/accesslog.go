package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// errLogUnavailable is returned when the access log could not take a record.
var errLogUnavailable = errors.New("access log unavailable")

// accessLog writes records, each whole or not at all.
//
// A record is written when what it tells of has ended, or is a second old and
// still under way, before the last of a short answer leaves. One that cannot be
// written marks the log broken: with on_failure deny every request, connection
// and handshake after it is refused until the log can be written again, and what
// is refused meanwhile is counted and told by a "gap" record. So at most what was
// already under way at that moment goes unrecorded, and the gap says how much.
type accessLog struct {
	path string
	deny bool
	log  *slog.Logger
	now  func() time.Time

	broken atomic.Bool

	mu      sync.Mutex // owns what follows
	out     io.Writer
	file    *os.File // nil for standard output
	buf     []byte
	lost    bool // the file was removed and cannot be made again
	missed  int64
	retryAt time.Time
}

func openAccessLog(cfg *config, stdout io.Writer) (*accessLog, error) {
	l := &accessLog{path: cfg.logPath, deny: cfg.logDeny, log: cfg.log, now: cfg.now}
	if l.path == "-" {
		l.out = stdout
		return l, nil
	}
	f, err := openLogFile(l.path)
	if err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	l.file, l.out = f, f
	return l, nil
}

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

// admits says whether anything new may begin. While the log is broken and
// on_failure is deny, it tries the log again at most every second and says no.
func (l *accessLog) admits() bool {
	if !l.broken.Load() {
		return true
	}
	l.retry()
	return !l.broken.Load() || !l.deny
}

// write writes one record. Its error is nil while on_failure is allow.
func (l *accessLog) write(r *record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken.Load() {
		l.missed++
		return l.failure()
	}
	l.buf = r.appendTo(l.buf[:0])
	if err := l.put(l.buf); err != nil {
		l.broken.Store(true)
		l.missed++
		l.retryAt = time.Now().Add(time.Second)
		l.log.Error("access log cannot be written", slog.Any("error", err), slog.Bool("denying", l.deny))
		return l.failure()
	}
	return nil
}

func (l *accessLog) failure() error {
	if l.deny {
		return errLogUnavailable
	}
	return nil
}

// skip counts a record that is not even tried, as the log is known to be broken.
func (l *accessLog) skip() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.missed++
}

// put writes all of b or takes back what it wrote: a full disk takes half a line.
func (l *accessLog) put(b []byte) error {
	if l.lost {
		return os.ErrNotExist
	}
	n, err := l.out.Write(b)
	if err == nil {
		return nil
	}
	if n > 0 && l.file != nil {
		if info, serr := l.file.Stat(); serr == nil && info.Mode().IsRegular() {
			err = errors.Join(err, l.file.Truncate(info.Size()-int64(n)))
		}
	}
	return err
}

// retry tries a broken log again and tells of the gap when it works.
func (l *accessLog) retry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.broken.Load() || time.Now().Before(l.retryAt) {
		return
	}
	l.retryAt = time.Now().Add(time.Second)
	gap := record{time: l.now(), kind: kindGap, missed: l.missed, reason: reasonLogUnavailable}
	l.buf = gap.appendTo(l.buf[:0])
	if err := l.put(l.buf); err != nil {
		return
	}
	l.log.Info("access log can be written again", slog.Int64("missed", l.missed))
	l.missed = 0
	l.broken.Store(false)
}

// reopen follows a log file that was moved away or removed. It is called every
// second and on Reload; with force it reopens in any case.
func (l *accessLog) reopen(force bool) error {
	l.retry()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	if !force {
		there, err := os.Stat(l.path)
		mine, merr := l.file.Stat()
		if err == nil && merr == nil && os.SameFile(there, mine) {
			return nil
		}
	}
	f, err := openLogFile(l.path)
	if l.lost = err != nil; l.lost {
		return fmt.Errorf("access log: %w", err)
	}
	old := l.file
	l.file, l.out = f, f
	return old.Close()
}

func (l *accessLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.broken.Store(true)
	return err
}
