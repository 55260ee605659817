package sim

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// conn is one end of a byte stream between two sites. A cut link holds what was written until it heals, as TCP's
// retransmissions do; the end of a process resets it. A Write never waits: net/http and crypto/tls hold locks while they
// write, and a goroutine that waits for a lock keeps a bubble's clock from going on.
type conn struct {
	in, out       *stream
	local, remote net.Addr
	peer          string // the site at the other end
	read, write   deadline
	net           *network
}

// stream is one direction of a conn.
type stream struct {
	net  *network
	link link

	mu     sync.Mutex
	chunks []chunk       // guarded by mu
	ended  bool          // guarded by mu; the writer has closed
	broken error         // guarded by mu; the connection was reset
	gone   bool          // guarded by mu; the reader has closed
	last   time.Time     // guarded by mu; when the newest chunk arrives
	wake   chan struct{} // guarded by mu; closed and replaced when any of the above changes
}

type chunk struct {
	data []byte
	at   time.Time // when it arrives
}

func newStream(n *network, l link) *stream {
	return &stream{net: n, link: l, wake: make(chan struct{})}
}

func (s *stream) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	close(s.wake)
	s.wake = make(chan struct{})
}

func (s *stream) write(b []byte) (int, error) {
	data, late := append([]byte(nil), b...), s.net.latency(s.link)
	var err error
	s.change(func() {
		switch {
		case s.broken != nil:
			err = s.broken
		case s.ended:
			err = io.ErrClosedPipe
		case s.gone:
			err = syscall.EPIPE
		default:
			if at := time.Now().Add(late); at.After(s.last) {
				s.last = at
			}
			s.chunks = append(s.chunks, chunk{data, s.last})
		}
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// pause says when it is worth looking again.
type pause struct {
	again   time.Duration // 0: not before one of the channels is closed
	wake    <-chan struct{}
	changed <-chan struct{}
}

// take moves what has arrived into b.
func (s *stream) take(b []byte) (n int, p pause, err error) {
	cut, changed := s.net.state(s.link)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.wake = s.wake
	switch {
	case s.broken != nil:
		return 0, p, s.broken
	case s.gone:
		return 0, p, io.ErrClosedPipe
	case len(s.chunks) == 0 && s.ended:
		return 0, p, io.EOF
	case len(s.chunks) == 0:
		return 0, p, nil
	case cut:
		p.changed = changed
		return 0, p, nil
	}
	now := time.Now()
	if p.again = s.chunks[0].at.Sub(now); p.again > 0 {
		return 0, p, nil
	}
	for n < len(b) && len(s.chunks) > 0 && !s.chunks[0].at.After(now) {
		m := copy(b[n:], s.chunks[0].data)
		n += m
		if s.chunks[0].data = s.chunks[0].data[m:]; len(s.chunks[0].data) == 0 {
			s.chunks = s.chunks[1:]
		}
	}
	return n, p, nil
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	for {
		moved := c.read.wait() // before the look, so that no move is missed
		if c.read.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		n, p, err := c.in.take(b)
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		p.until(moved)
	}
}

func (p pause) until(moved <-chan struct{}) {
	var timer <-chan time.Time
	if p.again > 0 {
		t := time.NewTimer(p.again)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-p.wake:
	case <-p.changed:
	case <-timer:
	case <-moved:
	}
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	if c.write.passed() {
		return 0, os.ErrDeadlineExceeded
	}
	return c.out.write(b)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.out.change(func() { c.out.ended = true })
	c.in.change(func() { c.in.gone, c.in.chunks = true, nil })
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	delete(c.net.conns, c)
	return nil
}

// reset breaks both directions at once.
func (c *conn) reset() {
	err := fmt.Errorf("%s to %s: %w", c.out.link.from, c.out.link.to, syscall.ECONNRESET)
	for _, s := range []*stream{c.in, c.out} {
		s.change(func() { s.broken, s.chunks = err, nil })
	}
}

// PeerID names the site at the other end.
func (c *conn) PeerID() string { return c.peer }

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.read.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.write.set(t)
	return nil
}

// deadline is a moment that can be moved while someone waits for it.
type deadline struct {
	mu    sync.Mutex
	at    time.Time     // guarded by mu; zero for none
	timer *time.Timer   // guarded by mu
	wake  chan struct{} // guarded by mu; closed when the deadline passes or moves
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	d.rouse()
	if t.IsZero() {
		return
	}
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.rouse()
		})
	}
}

// rouse MUST be called with mu held.
func (d *deadline) rouse() {
	if d.wake != nil {
		close(d.wake)
	}
	d.wake = make(chan struct{})
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wake == nil {
		d.wake = make(chan struct{})
	}
	return d.wake
}

// address is host:port, or a node's name for streams between nodes.
type address string

func (address) Network() string  { return "sim" }
func (a address) String() string { return string(a) }

// listener accepts what others dial at an address.
type listener struct {
	net    *network
	site   string
	addr   address
	conns  chan *conn
	closed chan struct{}
	once   sync.Once
}

// listen takes an address, also from a listener that has not let it go yet.
func (n *network) listen(site string, addr address) *listener {
	l := &listener{net: n, site: site, addr: addr, conns: make(chan *conn, 1024), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[string(addr)] = l
	return l
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.net.mu.Lock()
	if l.net.listeners[string(l.addr)] == l {
		delete(l.net.listeners, string(l.addr))
	}
	l.net.mu.Unlock()
	l.end()
	return nil
}

// end also resets what nobody has accepted.
func (l *listener) end() {
	l.once.Do(func() { close(l.closed) })
	for {
		select {
		case c := <-l.conns:
			c.reset()
		default:
			return
		}
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// dial opens a stream from a site to an address. Behind a cut link it waits until that heals or ctx ends.
func (n *network) dial(ctx context.Context, from string, addr address, site string) (net.Conn, error) {
	there, back := link{from, site}, link{site, from}
	for {
		cut, changed := n.state(there)
		if cutBack, _ := n.state(back); !cut && !cutBack {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("dial %s: %w", addr, context.Cause(ctx))
		}
	}
	time.Sleep(n.latency(there) + n.latency(back))
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[string(addr)]
	if l == nil {
		n.trouble++
		return nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
	}
	out, in := newStream(n, there), newStream(n, back)
	mine := &conn{in: in, out: out, local: address(from), remote: addr, peer: site, net: n}
	theirs := &conn{in: out, out: in, local: addr, remote: address(from), peer: from, net: n}
	select {
	case l.conns <- theirs:
	default:
		return nil, fmt.Errorf("dial %s: %w: its queue is full", addr, syscall.ECONNREFUSED)
	}
	n.conns[mine], n.conns[theirs] = struct{}{}, struct{}{}
	return mine, nil
}

// streams carries the application's streams of one node.
type streams struct {
	*listener
	id string
}

// Dial implements raftstore.Streams.
func (s streams) Dial(ctx context.Context, id string) (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	default:
	}
	return s.net.dial(ctx, s.id, peerAddress(id), id)
}

func peerAddress(id string) address { return address("peer " + id) }

// dialer opens connections from a site to nodes' APIs.
func (n *network) dialer(from string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		site, _, _ := strings.Cut(addr, ".")
		return n.dial(ctx, from, address(addr), site)
	}
}
