package proxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// backendIdle is how long a connection to the upstream is kept without work.
const backendIdle = 90 * time.Second

// backend is one HTTP/1 connection to the upstream. One exchange at a time owns it.
type backend struct {
	net.Conn
	raw    syscall.RawConn // nil: what is not a socket carries one exchange only
	reused bool
	since  time.Time // when it was given back
}

// backends are the connections to the upstream that wait for work.
type backends struct {
	dial func(ctx context.Context) (net.Conn, error)
	most int

	mu     sync.Mutex // owns what follows
	idle   []*backend // the one used last comes last
	closed bool
}

// get takes a connection that was used before, or makes one.
func (s *backends) get(ctx context.Context) (*backend, error) {
	for {
		b := s.pop()
		if b == nil {
			return s.fresh(ctx)
		}
		// An upstream that closed meanwhile would lose the request. One that has sent
		// something has answered what nobody asked: taken for the answer to this
		// request, it would be another's, and so on from here.
		if b.quiet() {
			return b, nil
		}
		b.drop()
	}
}

func (s *backends) fresh(ctx context.Context) (*backend, error) {
	c, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	b := &backend{Conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		if b.raw, err = sc.SyscallConn(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return b, nil
}

func (s *backends) pop() *backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.idle)
	if n == 0 {
		return nil
	}
	b := s.idle[n-1]
	s.idle[n-1] = nil
	s.idle = s.idle[:n-1]
	return b
}

// put gives back a connection whose exchange ended as it should.
func (s *backends) put(b *backend, now time.Time) {
	if b.raw == nil {
		b.drop()
		return
	}
	b.reused, b.since = true, now
	s.mu.Lock()
	keep := !s.closed && len(s.idle) < s.most
	if keep {
		s.idle = append(s.idle, b)
	}
	s.mu.Unlock()
	if !keep {
		b.drop()
	}
}

// sweep closes those that nobody has needed for a while.
func (s *backends) sweep(now time.Time) {
	s.mu.Lock()
	n := 0
	for n < len(s.idle) && now.Sub(s.idle[n].since) > backendIdle {
		n++
	}
	old := append([]*backend(nil), s.idle[:n]...)
	s.idle = append(s.idle[:0], s.idle[n:]...)
	s.mu.Unlock()
	for _, b := range old {
		b.drop()
	}
}

func (s *backends) close() {
	s.mu.Lock()
	old := s.idle
	s.idle, s.closed = nil, true
	s.mu.Unlock()
	for _, b := range old {
		b.drop()
	}
}

func (b *backend) drop() { _ = b.Close() } // nothing can be done about it

// SetLinger is net.TCPConn's.
func (b *backend) SetLinger(sec int) error {
	if tcp, ok := b.Conn.(interface{ SetLinger(sec int) error }); ok {
		return tcp.SetLinger(sec)
	}
	return nil
}

// CloseWrite is net.TCPConn's.
func (b *backend) CloseWrite() error {
	if half, ok := b.Conn.(halfCloser); ok {
		return half.CloseWrite()
	}
	return nil
}

// quiet says whether the socket is open and nothing has arrived on it.
func (b *backend) quiet() bool {
	ready := true
	err := b.raw.Control(func(fd uintptr) { ready = readable(fd) })
	return err == nil && !ready
}

// readable says whether a read would return at once, be it with the end or an error.
func readable(fd uintptr) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds[:], 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n > 0
		}
	}
}
