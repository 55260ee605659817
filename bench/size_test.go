package main

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A seeded cluster is gone on with only by the code that made it.
func TestSeedsGoByTheCode(t *testing.T) {
	dir := t.TempDir()
	hash := func() string {
		h, err := codeHash(dir, "a", "go.mod")
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	write(t, filepath.Join(dir, "go.mod"), "module x")
	write(t, filepath.Join(dir, "a", "b", "c.go"), "package b")
	first := hash()
	write(t, filepath.Join(dir, "a", "b", "c_test.go"), "package b")
	write(t, filepath.Join(dir, "a", "readme.md"), "words")
	if hash() != first {
		t.Error("a test or a text makes it another")
	}
	for name, text := range map[string]string{"a/b/c.go": "package b // changed", "a/d.go": "package a", "go.mod": "module y"} {
		before := hash()
		write(t, filepath.Join(dir, filepath.FromSlash(name)), text)
		if hash() == before {
			t.Errorf("%s changes nothing", name)
		}
	}
	if _, err := codeHash(dir, "not there"); err == nil {
		t.Error("what is not there has a hash")
	}
}

// A copy of a stage shares what never changes and nothing else, and has no links of the one it was copied from.
func TestCopyStage(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	segment := func(i int) string {
		return filepath.Join("n1", "data", "records", string(rune('a'+i))+".seg")
	}
	for i := range 12 {
		write(t, filepath.Join(from, segment(i)), "records")
	}
	write(t, filepath.Join(from, "n1", "data", "state.db"), "state")
	write(t, filepath.Join(from, "n1", "keys", "key.pem"), "key")
	if err := os.Symlink(filepath.Join(from, "n1"), filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	if err := copyStage(to, from); err != nil {
		t.Fatal(err)
	}
	same := func(name string) bool {
		a, err := os.Stat(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.Stat(filepath.Join(to, name))
		if err != nil {
			t.Fatal(err)
		}
		return os.SameFile(a, b)
	}
	for name, want := range map[string]bool{
		segment(0): true, segment(11): false, filepath.Join("n1", "data", "state.db"): false, filepath.Join("n1", "keys", "key.pem"): false,
	} {
		if got := same(name); got != want {
			t.Errorf("%s is the same file: %v", name, got)
		}
	}
	if _, err := os.Lstat(filepath.Join(to, "link")); !os.IsNotExist(err) {
		t.Errorf("the link was copied: %v", err)
	}
	_ = filepath.WalkDir(to, func(path string, d fs.DirEntry, _ error) error {
		if info, err := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s may be read by others", path)
		}
		return nil
	})
}

// What a process has in memory is its own.
func TestMemoryIsMeasured(t *testing.T) {
	before, err := memoryOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Straight from the kernel: what the heap gives may be memory that it has had before.
	held, err := unix.Mmap(-1, 0, 64<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(held) }()
	for i := range held {
		held[i] = 1
	}
	after, err := memoryOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if grown := after.anon - before.anon; grown < 50 || after.rss < after.anon || after.peak < after.rss {
		t.Errorf("64 MiB more are %.0f MB more: %+v, %+v", grown, before, after)
	}
}

func TestSleepEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sleep(ctx, time.Hour); err == nil {
		t.Error("it slept for an hour")
	}
	if err := sleep(t.Context(), -time.Hour); err != nil {
		t.Error(err)
	}
}
