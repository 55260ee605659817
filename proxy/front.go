package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	deskSize = 4 << 10
	deskMost = 16 << 10 // larger ones are not kept
	// settle is how long a connection keeps its buffers after a request.
	settle = 2 * time.Second
	// noticeAfter is how long an exchange goes on before somebody looks whether the
	// client is still there.
	noticeAfter = 250 * time.Millisecond
)

// front serves one HTTP/1 connection whose upstream speaks HTTP/1 as well. It
// reads each request once, by the rules of the gate; what it has read and judged
// is what it writes to the upstream, with nothing in between that could read it in
// another way. Answers are read as strictly: an upstream that can be made to send
// two answers for one request would give one client another's.
//
// One goroutine serves; it owns every field but those that say otherwise. Two
// more may help it, and have ended before the next request: one carries a body
// that did not come along with its head (frontbody.go), one notices that the
// client has left (watch).
type front struct {
	*core
	p   *Proxy // the configuration in force when the request under way began
	c   *conn
	tls secureConn
	web *web // where the connection goes once the upstream speaks HTTP/2; nil: nowhere

	desk   *desk     // nil while the connection rests
	r, w   int       // what of desk.in is unread
	armed  time.Time // the read deadline that is set; zero: none
	began  time.Time // when reading on within a head began
	served bool
	handed bool // to web
	head   headFacts
	x      errand

	hostBefore string // of the last request

	up  sending
	ans reply
	q   quest

	idle atomic.Bool // between requests
	gone atomic.Bool // the client left during an exchange

	grip // on the connection to the upstream

	mu       sync.Mutex // owns what follows
	blind    bool       // a tunnel: nobody but its ends may read
	timer    *time.Timer
	ticking  bool
	asking   bool // an exchange is under way, since since
	since    time.Time
	opened   bool // its open record is written
	watching chan struct{}

	peek   [1]byte // what the watcher read; its own until watching is closed
	peeked bool
}

// desk is the memory of a connection that is in use.
type desk struct {
	in     []byte
	fields []field // of the request
	theirs []field // of the answer
}

func (p *Proxy) newFront(c *conn, t secureConn, web *web) *front {
	f := &front{core: p.core, p: p, c: c, tls: t, web: web}
	f.timer = time.AfterFunc(time.Hour, f.tick)
	f.timer.Stop()
	return f
}

// serve takes requests until either side ends the connection.
func (f *front) serve() {
	stop := context.AfterFunc(f.c.ctx, f.abandon)
	defer stop()
	defer f.leave()
	defer f.recovered()
	f.c.front.Store(f)
	for f.await() {
		head, bad := f.readHead()
		f.p = f.newest.Load() // a connection may be older than the configuration in force
		switch {
		case bad != nil:
			f.say(f.p.gateRefused(f.c, bad))
			f.farewell()
			return
		case head == nil:
			return
		case f.p.cfg.upstream.h2c:
			f.handOver(head)
			return
		case !f.exchange(head):
			return
		}
	}
}

// handOver gives the connection, with the request that came on it, to what serves
// an upstream of HTTP/2. What was read is judged anew, by the gate.
func (f *front) handOver(head []byte) {
	g := f.p.gated(f.c, f.tls)
	g.rest = bytes.Clone(f.desk.in[f.r-len(head) : f.w])
	f.c.front.Store(nil)
	f.disarm()
	f.handed = true
	if !f.web.take(f.c, g) {
		f.c.cut(reasonShutdown)
	}
}

// leave ends the connection, unless it was handed over. What was reset or cut is closed already.
func (f *front) leave() {
	f.timer.Stop()
	f.release()
	if !f.handed {
		_ = f.tls.Close() // says close_notify where it still can
	}
}

// recovered keeps a mistake of ours from taking the other connections along.
func (f *front) recovered() {
	v := recover()
	if v == nil {
		return
	}
	f.log.Error("connection panicked", slog.String("panic", fmt.Sprint(v)), slog.String("stack", string(debug.Stack())))
	f.c.reset()
	f.abandon()
	f.x.reason = reasonHandlerPanicked
	f.finish()
}

// say writes to the client; that it cannot is found out at the next read.
func (f *front) say(b []byte) { _, _ = f.tls.Write(b) }

// farewell ends our side and takes in some of what the client is still sending:
// closing over unread bytes resets the connection, and the client would see that
// instead of the answer.
func (f *front) farewell() {
	if f.tls.CloseWrite() == nil && f.tls.SetReadDeadline(time.Now().Add(500*time.Millisecond)) == nil {
		_, _ = io.CopyN(io.Discard, f.tls, 1<<20) // whatever comes is thrown away, errors too
	}
}

func (f *front) acquire() {
	if f.desk == nil {
		d, ok := f.p.up.desks.Get().(*desk)
		if !ok {
			d = &desk{in: make([]byte, deskSize)}
		}
		f.desk, f.r, f.w = d, 0, 0
	}
}

func (f *front) release() {
	if d := f.desk; d != nil && cap(d.in) <= deskMost {
		f.p.up.desks.Put(d)
	}
	f.desk = nil
}

// more reads what comes next behind what is there.
func (f *front) more() error {
	d := f.desk
	switch {
	case f.r == f.w:
		f.r, f.w = 0, 0
	case f.w == len(d.in) && f.r > 0:
		f.w = copy(d.in, d.in[f.r:f.w])
		f.r = 0
	case f.w == len(d.in):
		f.grow(2 * len(d.in))
	}
	n, err := f.tls.Read(d.in[f.w:])
	f.w += n
	if n > 0 {
		return nil // an error that came along comes again
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

func (f *front) grow(size int) {
	if size > len(f.desk.in) {
		in := make([]byte, size)
		f.w = copy(in, f.desk.in[f.r:f.w])
		f.r, f.desk.in = 0, in
	}
}

// arm sets the read deadline, unless one not much earlier is set.
func (f *front) arm(until time.Time) error {
	if !f.armed.IsZero() && !f.armed.After(until) && until.Sub(f.armed) < settle/2 {
		return nil
	}
	f.armed = until
	return f.tls.SetReadDeadline(until)
}

func (f *front) disarm() {
	if !f.armed.IsZero() {
		f.armed = time.Time{}
		_ = f.tls.SetReadDeadline(time.Time{}) // fails on a closed socket, as the next read does
	}
}

// await waits for the first byte of a request and says whether it came. A
// connection that stays silent gives its buffers back.
func (f *front) await() bool {
	if f.desk != nil && f.r < f.w {
		return true
	}
	f.idle.Store(true)
	defer f.idle.Store(false)
	limit := f.p.cfg.limits.idle
	if !f.served {
		limit = f.p.cfg.limits.headerTime
	}
	end := time.Now().Add(limit)
	for {
		f.acquire()
		until := time.Now().Add(settle)
		if until.After(end) {
			until = end
		}
		if f.arm(until) != nil || f.stopping.Load() {
			return false
		}
		err := f.more()
		switch {
		case err == nil:
			return true
		case !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(end):
			return false
		}
		if !f.rest(end) {
			return false
		}
	}
}

// rest waits, without buffers, until there is something to read. It says whether there is.
func (f *front) rest(end time.Time) bool {
	sc, ok := f.c.raw.(syscall.Conn)
	if !ok {
		return true // no socket: keep the buffers
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	f.release()
	f.armed = end
	if f.tls.SetReadDeadline(end) != nil || f.stopping.Load() {
		return false
	}
	return raw.Read(readable) == nil
}

// nudge ends the connection if it is between requests and the proxy is stopping.
func (f *front) nudge() {
	if f.stopping.Load() && f.idle.Load() {
		_ = f.tls.SetReadDeadline(past()) // a socket already closed needs no waking
	}
}

// past is a deadline that is over.
func past() time.Time { return time.Unix(1, 0) }

// begin has the exchange looked after from now on.
func (f *front) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asking, f.opened, f.blind, f.since = true, false, false, time.Now()
	if !f.ticking {
		f.ticking = true
		f.timer.Reset(noticeAfter)
	}
}

// tick looks at an exchange that takes long: has its open record written, and its
// client watched. The timer is not stopped between requests: at thousands of them a
// second it finds, four times a second, that none is old.
func (f *front) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.asking {
		f.ticking = false
		return
	}
	age := time.Since(f.since)
	if age >= noticeAfter && f.watching == nil && !f.blind && !f.up.running.Load() {
		f.watching = make(chan struct{})
		go f.watch(f.watching)
	}
	if age >= openAfter && !f.opened {
		f.opened = true
		r := f.x.rec
		r.event, r.decision = "open", decisionAllow
		_ = f.access.write(&r) // what it denies is what comes next; this one ends with its own record
	}
	if f.ticking = !f.opened || f.watching == nil && !f.blind; f.ticking {
		f.timer.Reset(noticeAfter)
	}
}

// watch reads one byte ahead, to hear that the client left. It ends with the exchange, or
// when somebody else is to read: see alone.
func (f *front) watch(done chan struct{}) {
	defer close(done)
	n, err := f.tls.Read(f.peek[:])
	switch {
	case n > 0:
		f.peeked = true
	case errors.Is(err, os.ErrDeadlineExceeded):
	default:
		f.gone.Store(true)
		f.abandon()
	}
}

// end is begin's counterpart: after it nobody but the serving goroutine reads.
func (f *front) end() {
	f.mu.Lock()
	f.asking = false
	f.mu.Unlock()
	f.alone()
}

// alone has watch end, and what it read lie where it belongs, behind what was read before:
// a byte that came to lie elsewhere would make another body of the client's, or another
// request. No other watch may begin meanwhile.
func (f *front) alone() {
	f.mu.Lock()
	watching := f.watching
	f.watching = nil
	f.mu.Unlock()
	if watching == nil {
		return
	}
	_ = f.tls.SetReadDeadline(past()) // fails on a closed socket, whose reader has ended
	<-watching
	f.armed = past()
	f.disarm()
	if !f.peeked || f.desk == nil {
		return
	}
	f.peeked = false
	if f.w == len(f.desk.in) {
		f.grow(2 * len(f.desk.in)) // and not moved: the request's head, which is before it, is in use
	}
	f.desk.in[f.w] = f.peek[0]
	f.w++
}

// pen is an http.ResponseWriter that collects a whole answer of our own.
type pen struct {
	header http.Header
	status int
	body   []byte
}

// Header is http.ResponseWriter's.
func (w *pen) Header() http.Header { return w.header }

// WriteHeader is http.ResponseWriter's.
func (w *pen) WriteHeader(status int) { w.status = status }

func (w *pen) Write(b []byte) (int, error) {
	w.body = append(w.body, b...)
	return len(b), nil
}

// tunnelEnd hides what of the client's connection a tunnel must not look at:
// a WebSocket says itself where it ends, and some clients leave without close_notify.
type tunnelEnd struct{ secureConn }

var _ net.Conn = tunnelEnd{}
