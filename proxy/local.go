package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrNotLocal is returned when an address for local use is neither a Unix
// socket nor loopback.
var ErrNotLocal = errors.New("not a local address")

// ListenLocal listens on `unix:PATH` or `unix:///PATH`, with mode 0600, or on a loopback
// HOST:PORT; on nothing else. A socket that a dead process left behind is
// replaced, nothing else is.
func ListenLocal(ctx context.Context, addr string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(addr, "unix:")
	path = strings.TrimPrefix(path, "//")
	switch {
	case !isUnix:
		return listenLoopback(ctx, addr)
	case path == "":
		return nil, fmt.Errorf("%w: %q", ErrNotLocal, addr)
	}
	if err := clearSocket(ctx, path); err != nil {
		return nil, err
	}
	return listenPrivate(ctx, path)
}

func listenLoopback(ctx context.Context, addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %q", ErrNotLocal, addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%w: %q", ErrNotLocal, addr)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	// The name localhost is what somebody's hosts file says it is.
	if a, ok := ln.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("%w: %q is %s", ErrNotLocal, addr, ln.Addr()), ln.Close())
	}
	return ln, nil
}

// listenPrivate binds in a folder of mode 0700 and links into place: between
// bind and chmod a socket has the umask's mode, and whoever connects in that
// moment stays connected. Unlike a rename, a link takes nobody's place.
func listenPrivate(ctx context.Context, path string) (_ net.Listener, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".hp")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	inner := filepath.Join(dir, "s")
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", inner)
	if err != nil {
		return nil, err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // it would look under the old name
	}
	if err := errors.Join(os.Chmod(inner, 0o600), os.Link(inner, path)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	self, err := os.Lstat(inner)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &privateListener{Listener: ln, path: path, self: self}, nil
}

// privateListener removes its socket when it is closed, if it is still its own.
type privateListener struct {
	net.Listener
	path string
	self os.FileInfo
	once sync.Once
}

// Addr is net.Listener's.
func (l *privateListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *privateListener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() {
		if there, lerr := os.Lstat(l.path); lerr == nil && os.SameFile(there, l.self) {
			err = errors.Join(err, os.Remove(l.path))
		}
	})
	return err
}

// clearSocket removes a socket that nobody listens on.
func clearSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("%s is in use", path), c.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	default: // of another kind, another's, or too busy to answer
		return fmt.Errorf("%s may be in use: %w", path, err)
	}
}
