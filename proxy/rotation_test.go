package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/log/noop"
	sdklog "go.opentelemetry.io/otel/sdk/log"

	"github.com/hallpass/hallpass/proxy/records"
)

func openRotating(t *testing.T, path string, r logRotation, c *clock) *accessLog {
	t.Helper()
	l, err := openAccessLog(&config{logPath: path, logDeny: true, rotation: r, log: slog.New(slog.DiscardHandler), now: c.now}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.close() })
	return l
}

// logFiles are the log and those put aside, oldest first.
func logFiles(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if name := filepath.Join(filepath.Dir(path), e.Name()); isAside(path, name) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return append(all, path)
}

// readChain reads files as one history: each tree begins where the one before ended.
func readChain(t *testing.T, files []string) (paths []string, heads []records.Head) {
	t.Helper()
	var last records.Head
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", name, info.Mode())
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		err = records.Scan(f, func(l records.Line) error {
			switch {
			case l.First != nil && len(heads) > 0 && (l.First.Previous == nil || *l.First.Previous != last):
				t.Errorf("%s: goes on from %+v, and the last was %+v", name, l.First.Previous, last)
			case l.First == nil:
				_, rest, _ := strings.Cut(string(l.Text), `"path":"`)
				path, _, ok := strings.Cut(rest, `"`)
				if !ok || !strings.HasSuffix(string(l.Text), "}") {
					t.Errorf("%s: %q is no whole record", name, l.Text)
				}
				paths = append(paths, path)
			}
			last = l.Tree.Head(l.Log)
			return nil
		})
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		heads = append(heads, last)
	}
	return paths, heads
}

// TestRotationLosesNothing has many write while the log rotates: every record is
// in some file, whole and once, no file is too long, and each goes on from the
// root of the one before.
func TestRotationLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.jsonl")
	const size, writers, each = 8 << 10, 8, 100
	l := openRotating(t, path, logRotation{maxSize: size, compress: true}, &clock{})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := l.write(&record{kind: kindRequest, path: fmt.Sprintf("/%d/%d", w, i)}); err != nil {
					t.Error(err)
				}
				if i%20 == 0 {
					if err := l.reopen(i%40 == 0); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	want := l.head()
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range logFiles(t, path) {
		if info, err := os.Stat(name); err != nil || info.Size() > size {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	paths, heads := readChain(t, logFiles(t, path))
	if len(heads) < 4 {
		t.Errorf("%d files", len(heads))
	}
	if got := heads[len(heads)-1]; got != want {
		t.Errorf("the log's head is %+v, its file's %+v", want, got)
	}
	slices.Sort(paths)
	if n := len(slices.Compact(slices.Clone(paths))); n != writers*each || len(paths) != n {
		t.Errorf("%d records, %d different, of %d", len(paths), n, writers*each)
	}
}

// TestRotationByAge: also over a restart, and not while there is nothing to put aside.
func TestRotationByAge(t *testing.T) {
	path, c := filepath.Join(t.TempDir(), "access.jsonl"), &clock{}
	r := logRotation{maxAge: time.Hour}
	l := openRotating(t, path, r, c)
	look := func(want int) {
		t.Helper()
		if err := l.reopen(false); err != nil {
			t.Fatal(err)
		}
		if n := len(logFiles(t, path)); n != want {
			t.Errorf("%d files, want %d", n, want)
		}
	}
	c.moveOn(2 * time.Hour)
	look(1)
	if err := l.write(&record{kind: kindRequest, path: "/a"}); err != nil {
		t.Fatal(err)
	}
	look(2)
	if err := l.write(&record{kind: kindRequest, path: "/b"}); err != nil {
		t.Fatal(err)
	}
	look(2)
	c.moveOn(40 * time.Minute)
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	l = openRotating(t, path, r, c)
	if err := l.write(&record{kind: kindRequest, path: "/c"}); err != nil {
		t.Fatal(err)
	}
	c.moveOn(30 * time.Minute)
	look(3)
}

// TestKeepAndCompress: the oldest go, the others are compressed, and nothing that
// is not ours is touched.
func TestKeepAndCompress(t *testing.T) {
	dir, c := t.TempDir(), &clock{}
	path := filepath.Join(dir, "access.jsonl")
	others := []string{"access-2026.jsonl", "access-20260101T000000.000Z.json", "access-.jsonl", "other-20260101T000000.000Z.jsonl", "access-20260101T000000.000Z.jsonl.bak"}
	for _, name := range others {
		writeFile(t, filepath.Join(dir, name), []byte("x"))
	}
	writeFile(t, filepath.Join(dir, "access-20250101T000000.000Z.jsonl"), []byte("left by a run before\n"))
	l := openRotating(t, path, logRotation{maxAge: time.Hour, keep: 2, compress: true}, c)
	for i := range 4 {
		if err := l.write(&record{kind: kindRequest, path: fmt.Sprint("/", i)}); err != nil {
			t.Fatal(err)
		}
		c.moveOn(2 * time.Hour)
		if err := l.reopen(false); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "tidied", func() bool {
		files := logFiles(t, path)
		return len(files) == 3 && strings.HasSuffix(files[0], ".gz") && strings.HasSuffix(files[1], ".gz")
	})
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if paths, _ := readChain(t, logFiles(t, path)[:2]); !slices.Equal(paths, []string{"/2", "/3"}) {
		t.Errorf("kept %v", paths)
	}
	for _, name := range others {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestRotationThatFails goes on in the old file: what cannot be put aside is no
// reason to lose a record, nor to refuse anybody.
func TestRotationThatFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "access.jsonl")
	l := openRotating(t, path, logRotation{maxSize: 1 << 10}, &clock{})
	// A folder in the place of the next file, which nobody can remove by mistake.
	if err := os.MkdirAll(filepath.Join(path+".next", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := l.write(&record{kind: kindRequest, path: fmt.Sprint("/", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if files := logFiles(t, path); len(files) != 1 || l.broken.Load() {
		t.Fatalf("%v, broken %v", files, l.broken.Load())
	}
	if err := os.RemoveAll(path + ".next"); err != nil {
		t.Fatal(err)
	}
	l.later = time.Time{}
	if err := l.write(&record{kind: kindRequest, path: "/last"}); err != nil {
		t.Fatal(err)
	}
	paths, heads := readChain(t, logFiles(t, path))
	if len(paths) != 21 || len(heads) != 2 {
		t.Errorf("%d records in %d files", len(paths), len(heads))
	}
}

// TestCutShort: who truncates the file under the proxy, as copytruncate does, gets
// a new tree; the old root stays what was in the file before.
func TestCutShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.jsonl")
	l := openRotating(t, path, logRotation{}, &clock{})
	for range 3 {
		if err := l.write(&record{kind: kindRequest, path: "/x"}); err != nil {
			t.Fatal(err)
		}
	}
	before := l.head()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.reopen(false); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	n := 0
	if err := records.Scan(f, func(l records.Line) error {
		if n++; l.First == nil || l.First.Previous == nil || *l.First.Previous != before {
			t.Errorf("%q, before %+v", l.Text, before)
		}
		return nil
	}); err != nil || n != 1 || l.head().Log == before.Log {
		t.Errorf("%d lines, %v", n, err)
	}
}

// TestSize reads what it writes, and nothing that means two things.
func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "1": 1, "1023": 1023, "64KiB": 64 << 10, "100MiB": 100 << 20, "2GiB": 2 << 30} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
		if back, err := s.MarshalText(); err != nil || string(back) != text {
			t.Errorf("%s: %s, %v", text, back, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "+1", "1.5GiB", "100M", "100MB", "100 MiB", "1e3", "9999999999GiB", "0x10"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

// collected is an OpenTelemetry exporter.
type collected struct {
	mu   sync.Mutex
	list []sdklog.Record // guarded by mu
}

func (c *collected) Export(_ context.Context, list []sdklog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range list {
		c.list = append(c.list, list[i].Clone())
	}
	return nil
}
func (*collected) Shutdown(context.Context) error   { return nil }
func (*collected) ForceFlush(context.Context) error { return nil }

// TestRecordsAreExported: what is in the file is told to OpenTelemetry, with the trace it is of.
func TestRecordsAreExported(t *testing.T) {
	var got collected
	provider := sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewSimpleProcessor(&got)))
	e := start(t, options{upstream: upstreamServer(t, echoHandler), config: func(c *Config) { c.LoggerProvider = provider }})
	const trace = "0af7651916cd43dd8448eb211c80319c"
	if a := e.must(e.client(e.pki.grant(time.Hour, "GET /**"), true), "GET", "/a", "Traceparent", "00-"+trace+"-b7ad6b7169203331-01"); a.status != 200 {
		t.Fatalf("status %d", a.status)
	}
	want := e.record("the request", func(r logLine) bool { return r.Path == "/a" })
	var r *sdklog.Record
	eventually(t, "the exported record", func() bool {
		got.mu.Lock()
		defer got.mu.Unlock()
		for i := range got.list {
			if got.list[i].EventName() == recordEvent && strings.Contains(got.list[i].Body().AsString(), `"path":"/a"`) {
				r = &got.list[i]
			}
		}
		return r != nil
	})
	data, err := os.ReadFile(filepath.Join(e.dir, "access.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if body := r.Body().AsString(); !strings.Contains(string(data), body+"\n") || !strings.Contains(body, want.Grant) || r.TraceID().String() != trace {
		t.Errorf("%s of %s", body, r.TraceID())
	}
	if l := (&config{records: noop.NewLoggerProvider()}).exportRecords(); l == nil {
		t.Error("a provider is not used")
	}
}
