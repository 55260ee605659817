package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hallpass/hallpass/proxy/records"
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
//
// What is written is hashed as it goes: head says what the log's Merkle root is.
type accessLog struct {
	path     string
	deny     bool
	rotation logRotation
	log      *slog.Logger
	now      func() time.Time
	export   func(r *record, line []byte) // nil: records go to the file alone

	broken atomic.Bool
	tidy   tidier

	mu      sync.Mutex // owns what follows
	out     io.Writer
	file    *os.File // nil for standard output
	buf     []byte
	lost    bool // the file was removed and cannot be made again
	missed  int64
	retryAt time.Time

	size  int64     // of file, as far as we wrote it
	began time.Time // when the file did
	tree  records.Tree
	id    string    // of tree
	holds bool      // tree has more than its first line
	later time.Time // a rotation that failed is tried again then

	anchoredBy string // the service that anchors it; "": nobody yet
	turned     bool   // it goes on under a new name before it is anchored again
}

func openAccessLog(cfg *config, stdout io.Writer) (*accessLog, error) {
	l := &accessLog{path: cfg.logPath, deny: cfg.logDeny, rotation: cfg.rotation, log: cfg.log, now: cfg.now, export: cfg.exportRecords()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path == "-" {
		l.out, l.began = stdout, l.now()
		return l, l.beginTree(nil)
	}
	f, err := openLogFile(l.path)
	if err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	if err := l.useFile(f, nil); err != nil {
		return nil, fmt.Errorf("access log: %w", errors.Join(err, f.Close()))
	}
	l.tidy = newTidier(l.path, l.rotation, l.log)
	l.tidy.start(nil)
	return l, nil
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
	if l.export != nil {
		l.export(r, l.buf)
	}
	if l.rotation.full(l.size, len(l.buf)) {
		l.rotate()
	}
	if err := l.put(l.buf); err != nil {
		l.missed++
		l.fail(err)
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
		l.size += int64(len(b))
		l.holds = l.holds || l.tree.Size() > 0
		l.tree.Append(b[:len(b)-1])
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

// reopen follows a log file that was moved away, removed or cut short, and rotates
// one that is old. It is called every second and on Reload; with force it opens
// the file anew in any case.
func (l *accessLog) reopen(force bool) error {
	l.retry()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	same := l.sameFile()
	if same && !force {
		if l.rotation.old(l.now().Sub(l.began)) && l.holds && !l.broken.Load() {
			l.rotate()
		}
		return nil
	}
	f, err := openLogFile(l.path)
	if l.lost = err != nil; l.lost {
		return fmt.Errorf("access log: %w", err)
	}
	old := l.file
	if same { // it goes on where it was
		l.file, l.out = f, f
		return old.Close()
	}
	before := l.tree.Head(l.id)
	if err := l.useFile(f, &before); err != nil {
		// Nothing was written to the new file, and the old one is gone: what comes
		// next is tried on the new one, and denied if that fails.
		l.fail(err)
	}
	return old.Close()
}

// fail marks the log broken. The caller holds mu.
func (l *accessLog) fail(err error) {
	l.broken.Store(true)
	l.retryAt = time.Now().Add(time.Second)
	l.log.Error("access log cannot be written", slog.Any("error", err), slog.Bool("denying", l.deny))
}

// head says which tree the log is at, how long it is, and its root.
func (l *accessLog) head() records.Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.Head(l.id)
}

func (l *accessLog) close() error {
	l.tidy.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.broken.Store(true)
	return err
}
