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
	"time"
)

// ErrNotLocal is returned when an address for local use is neither a Unix
// socket nor loopback.
var ErrNotLocal = errors.New("not a local address")

// ListenLocal listens on `unix:PATH` or `unix:///PATH`, with mode 0600, or on a loopback
// HOST:PORT; on nothing else. A socket that a dead process left behind is
// replaced, one that still answers is not.
func ListenLocal(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	path, isUnix := strings.CutPrefix(addr, "unix:")
	path = strings.TrimPrefix(path, "//")
	if !isUnix {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("%w: %q", ErrNotLocal, addr)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("%w: %q", ErrNotLocal, addr)
		}
		return lc.Listen(ctx, "tcp", addr)
	}
	if err := clearSocket(ctx, path); err != nil {
		return nil, err
	}
	return listenPrivate(ctx, path)
}

// listenPrivate binds in a folder of mode 0700 and renames into place: between
// bind and chmod a socket has the umask's mode, and whoever connects in that
// moment stays connected.
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
	if err := errors.Join(os.Chmod(inner, 0o600), os.Rename(inner, path)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &privateListener{Listener: ln, path: path}, nil
}

// privateListener removes its socket when it is closed.
type privateListener struct {
	net.Listener
	path string
	once sync.Once
}

func (l *privateListener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { err = errors.Join(err, os.Remove(l.path)) })
	return err
}

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
	if c, err := d.DialContext(ctx, "unix", path); err == nil {
		return errors.Join(fmt.Errorf("%s is in use", path), c.Close())
	}
	return os.Remove(path)
}
