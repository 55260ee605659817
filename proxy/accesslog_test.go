package proxy

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/proxy/records"
)

// TestRecordEscapes: whatever byte a peer chose, a record is one line of plain
// ASCII that reads back as what was meant.
func TestRecordEscapes(t *testing.T) {
	for b := range 256 {
		text := "x" + string([]byte{byte(b)}) + "y"
		r := record{kind: kindRequest, path: text, time: time.Unix(0, 0)}
		line := r.appendTo(nil)
		if bytes.Count(line, []byte("\n")) != 1 || !bytes.HasSuffix(line, []byte("}\n")) {
			t.Errorf("%q: %q", text, line)
		}
		for _, c := range line[:len(line)-1] {
			if c < ' ' || c > '~' {
				t.Errorf("%q: byte %#x in %q", text, c, line)
			}
		}
		var back logLine
		if err := json.Unmarshal(line, &back); err != nil || b < 0x80 && back.Path != text {
			t.Errorf("%q read back as %q, %v", text, back.Path, err)
		}
	}
	for text, want := range map[string]string{
		"é漢😀": "é漢😀", "\u2028\u202e": "\u2028\u202e", `a"b\c`: `a"b\c`, "\xff\xfe": "\ufffd\ufffd",
	} {
		line := (&record{path: text}).appendTo(nil)
		var back logLine
		if err := json.Unmarshal(line, &back); err != nil || back.Path != want {
			t.Errorf("%q read back as %q, %v", text, back.Path, err)
		}
	}
}

// TestLogInjection tries to write lines of one's own through everything a
// client can choose.
func TestLogInjection(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	cert := e.pki.grant(time.Hour, "* /**")
	for _, text := range []string{
		"GET /a\"} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
		"GET /a\x1b[2J HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /a\xe2\x80\xa8{ HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /a,\"grant\":\"x\" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
		"GET /a HTTP/1.1\r\nHost: localhost\r\nTraceparent: 00-\"},{\"aaaaaaaaaaaaaaaaaaaaaaaaaa-aaaaaaaaaaaaaaaa-01\r\nConnection: close\r\n\r\n",
	} {
		_ = e.raw(cert, text)
	}
	n := 0
	e.eventually("records", func() bool { n = len(e.records()); return n == 10 }) // reading fails on a line that is no record
	data, err := os.ReadFile(filepath.Join(e.dir, "access.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexFunc(data, func(r rune) bool { return (r < ' ' && r != '\n') || r > '~' }); i >= 0 {
		t.Errorf("byte %#x in the log", data[i])
	}
	info, err := os.Stat(filepath.Join(e.dir, "access.jsonl"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// fullDisk takes part of a write and then no more, until it is emptied.
type fullDisk struct {
	mu   sync.Mutex // owns what follows
	buf  bytes.Buffer
	full bool
}

var errFull = errors.New("no space left on device")

func (d *fullDisk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return 0, errFull
	}
	return d.buf.Write(p)
}

func (d *fullDisk) fill(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

func (e *env) onDisk(d *fullDisk) {
	e.px.access.mu.Lock()
	defer e.px.access.mu.Unlock()
	e.px.access.out, e.px.access.file = d, nil
}

// TestLogFailureDenies: from the record that cannot be written, nobody gets
// anything, the answer of that very request included; and when the log can be
// written again it tells how many it missed.
func TestLogFailureDenies(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		var reached sync.Map
		e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
			reached.Store(r.URL.Path, true)
			echoHandler(w, r)
		})})
		disk := &fullDisk{}
		e.onDisk(disk)
		cert := e.pki.grant(time.Hour, "GET /**")
		c := e.client(cert, h2)
		if a := e.must(c, "GET", "/1"); a.status != 200 {
			t.Fatalf("status %d", a.status)
		}
		disk.fill(true)
		if a, err := e.do(c, "GET", "/2"); err == nil {
			t.Errorf("an answer whose record was lost left the proxy: %d", a.status)
		}
		if a, err := e.do(c, "GET", "/3"); err == nil && a.status != http.StatusServiceUnavailable {
			t.Errorf("status %d", a.status)
		}
		if _, err := e.do(e.client(cert, h2), "GET", "/4"); err == nil {
			t.Error("a new connection was taken")
		}
		for _, path := range []string{"/3", "/4"} {
			if _, ok := reached.Load(path); ok {
				t.Errorf("%s reached the upstream", path)
			}
		}
		if ready, why := e.ready(); ready || !strings.Contains(why, "access log") {
			t.Errorf("ready: %s", why)
		}
		disk.fill(false)
		e.eventually("recovery", func() bool {
			a, err := e.do(c, "GET", "/5")
			return err == nil && a.status == 200
		})
		disk.mu.Lock()
		text := disk.buf.String()
		disk.mu.Unlock()
		if !strings.Contains(text, `"kind":"gap"`) || !strings.Contains(text, `"missed":`) || strings.Contains(text, `"path":"/3"`) {
			t.Errorf("log:\n%s", text)
		}
	})
}

// hungDisk takes every write and never ends it.
type hungDisk struct{ release chan struct{} }

func (d hungDisk) Write(p []byte) (int, error) {
	<-d.release
	return len(p), nil
}

// TestHungDisk: a disk that hangs delays records, not the end of anybody's access.
func TestHungDisk(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, drip)})
	var lag stalls
	ctx, cancel := contextWithCancel(t)
	defer cancel()
	go lag.watch(ctx)
	var broken []func() error
	var certs []tls.Certificate
	for i := range 3 {
		cert := e.pki.grant(time.Duration(3+i/2)*time.Second, "GET /**")
		certs = append(certs, cert)
		broken = append(broken, download(i%2 == 0)(e, cert))
	}
	disk := hungDisk{make(chan struct{})}
	e.px.access.mu.Lock()
	e.px.access.out, e.px.access.file = disk, nil
	e.px.access.mu.Unlock()
	for i, end := range broken {
		err := end()
		if over := time.Since(certs[i].Leaf.NotAfter); err == nil || over > time.Second+lag.most() {
			t.Errorf("stream %d ended with %v, %s late (machine stalls up to %s)", i, err, over, lag.most())
		}
	}
	close(disk.release)
}

// TestLogFailureAllows is what on_failure: allow says.
func TestLogFailureAllows(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) { s.AccessLog.OnFailure = "allow" }})
	disk := &fullDisk{}
	e.onDisk(disk)
	disk.fill(true)
	for range 3 {
		if a := e.must(e.client(e.pki.grant(time.Hour, "GET /**"), true), "GET", "/a"); a.status != 200 {
			t.Errorf("status %d", a.status)
		}
	}
	if ready, why := e.ready(); !ready {
		t.Error(why)
	}
}

// tornWriter takes half of what it is given.
type tornWriter struct{ f *os.File }

func (w tornWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p[:len(p)/2])
	return n, errors.Join(err, errFull)
}

// TestTornRecord: half a line, from a full disk or a crash, costs no other line.
func TestTornRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	open := func() *accessLog {
		l, err := openAccessLog(&config{logPath: path, logDeny: true, log: slog.New(slog.DiscardHandler), now: time.Now}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open()
	if err := l.write(&record{kind: "one"}); err != nil {
		t.Fatal(err)
	}
	l.out = tornWriter{l.file}
	if err := l.write(&record{kind: "two"}); !errors.Is(err, errLogUnavailable) {
		t.Errorf("%v", err)
	}
	l.out = l.file
	l.retryAt = time.Time{}
	if !l.admits() {
		t.Error("still broken")
	}
	if err := l.write(&record{kind: "three"}); err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"kind":"torn by a cra`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	l = open()
	if err := l.write(&record{kind: "four"}); err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for line := range strings.Lines(string(data)) {
		var r logLine
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			r.Kind = "?"
		}
		if r.Kind == records.KindLog {
			continue
		}
		kinds = append(kinds, r.Kind)
	}
	if got := strings.Join(kinds, " "); got != "one gap three ? four" {
		t.Errorf("lines %s:\n%s", got, data)
	}
}

// TestLogRotation: a file moved away is followed by a new one; where none can be
// made, records do not vanish into the old one unseen.
func TestLogRotation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "access.jsonl")
	l, err := openAccessLog(&config{logPath: path, logDeny: true, log: slog.New(slog.DiscardHandler), now: time.Now}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.reopen(false); err != nil {
		t.Fatal(err)
	}
	if err := l.write(&record{kind: "after"}); err != nil {
		t.Fatal(err)
	}
	if got := readRecords(t, path); len(got) != 1 || got[0].Kind != "after" {
		t.Errorf("%+v", got)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := l.reopen(false); err == nil {
		t.Error("no error")
	}
	if err := l.write(&record{kind: "lost"}); !errors.Is(err, errLogUnavailable) {
		t.Errorf("%v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.reopen(false); err != nil {
		t.Fatal(err)
	}
	l.retryAt = time.Time{}
	if !l.admits() {
		t.Error("still broken")
	}
}

// TestStandardOutput is what "-" means.
func TestStandardOutput(t *testing.T) {
	var out bytes.Buffer
	l, err := openAccessLog(&config{logPath: "-", log: slog.New(slog.DiscardHandler), now: time.Now}, &out)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.write(&record{kind: "x"}), l.reopen(true), l.close()); err != nil || !strings.Contains(out.String(), `"kind":"x"`) {
		t.Errorf("%q, %v", out.String(), err)
	}
}
