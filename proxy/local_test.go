package proxy

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListenLocalTakesNobodysPlace: what is at the path and is not a socket that
// nobody listens on stays there, and works.
func TestListenLocalTakesNobodysPlace(t *testing.T) {
	dir := t.TempDir()
	datagram := filepath.Join(dir, "dev-log") // refuses streams, as syslog's socket does
	pc, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: datagram, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pc.Close() }()
	link := filepath.Join(dir, "link")
	file := filepath.Join(dir, "file")
	writeFile(t, file, []byte("precious"))
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{datagram, file, link, dir} {
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ListenLocal(t.Context(), "unix:"+path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s was replaced: %v", path, err)
		}
	}
	if _, err := listenPrivate(t.Context(), file); !errors.Is(err, os.ErrExist) { // made since it was looked for
		t.Errorf("over a file: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".hp*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestListenLocalCloses its own socket and no other's.
func TestListenLocalCloses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := ListenLocal(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if got := first.Addr().String(); got != path {
		t.Errorf("it says that it listens on %s", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := ListenLocal(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatalf("the second's socket is gone: %v", err)
	}
	_ = c.Close()
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestListenLocalRefuses what is no address.
func TestListenLocalRefuses(t *testing.T) {
	for _, addr := range []string{"unix:", "unix://", "127.0.0.1", "localhost.evil.test:0", "0x7f.1:0"} {
		if ln, err := ListenLocal(t.Context(), addr); !errors.Is(err, ErrNotLocal) {
			t.Errorf("%q: %v", addr, err)
			if err == nil {
				_ = ln.Close()
			}
		}
	}
}
