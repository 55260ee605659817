package proxy

import (
	"container/heap"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// errCut is the cause of the context of a connection that was ended from outside.
var errCut = errors.New("connection cut")

// lookEvery bounds how long the wall clock goes unlooked at. Monotonic timers
// stand still in a suspended laptop; this many milliseconds after it wakes, what
// expired meanwhile is gone.
const lookEvery = 250 * time.Millisecond

// conn is one admitted connection. What is not atomic is set before the
// connection is entered in live and never changed; live's mutex owns index and next.
type conn struct {
	id      uint64
	raw     net.Conn       // the socket under TLS, or a carrier's stream
	adm     *admission     // what the handshake proved; see proven
	matcher *grant.Matcher // nil for an identity
	perms   []grant.Permission
	texts   []string // of perms
	headers identityHeaders
	peer    string
	started time.Time
	drainAt time.Time
	ctx     context.Context
	cancel  context.CancelCauseFunc
	carrier *carrier // what only a connection that carries streams and renews itself has; else nil
	within  *conn    // the carrier that this stream is of; nil for a connection of its own

	renewed  atomic.Pointer[admission]   // what was proven last, in band; nil: nothing since the handshake
	front    atomic.Pointer[front]       // the connection's own, of HTTP/1; nil until it serves
	http2    atomic.Pointer[http.Server] // the connection's own, of HTTP/2; nil until it has begun
	draining atomic.Bool
	why      atomic.Pointer[string] // why it was cut; nil while it was not
	requests atomic.Int64
	closed   sync.Once
	partings partings
	together *together // of HTTP/2, the connection's own; else nil
	atEnd    func()    // runs once, when the socket closes

	next  time.Time // the next moment live has to look at it
	index int       // in live's heap

	holding *holding // what its holder has; set when it is entered in live
}

// cut ends the connection at once, with whatever is in flight. The socket is
// reset rather than closed: a close would go on delivering what the kernel holds
// to a slow reader, after NotAfter. It is gone before anybody hears of it: who
// ended the TLS above it, as those do who wait for the context, would have said
// close_notify, and half a download would have looked like a whole one. A protocol
// that has a word for it says it first, and carries nothing more meanwhile: see partings.
func (c *conn) cut(why string) {
	if c.why.CompareAndSwap(nil, &why) && !c.partings.run(why, c.sever) {
		c.sever()
	}
}

func (c *conn) sever() {
	breakOff(c.raw)
	c.cancel(errCut)
	c.close()
}

// reset closes the socket so that the client sees it broken, not finished.
func (c *conn) reset() {
	breakOff(c.raw)
	c.close()
}

// close closes the socket and, the first time, has its end noted.
func (c *conn) close() {
	_ = c.raw.Close() // nothing can be done about a socket that does not close twice
	c.closed.Do(func() {
		c.cancel(net.ErrClosed)
		if c.atEnd != nil {
			c.atEnd()
		}
	})
}

// cutReason is why the connection, or the one that carries it, was cut, or "".
func (c *conn) cutReason() string {
	if w := c.why.Load(); w != nil {
		return *w
	}
	if c.within != nil {
		return c.within.cutReason()
	}
	return ""
}

// proven is the latest that was proven on this very connection: what it ends with,
// and what a list of denials is asked about.
func (c *conn) proven() *admission {
	if c.within != nil {
		return c.within.proven()
	}
	if a := c.renewed.Load(); a != nil {
		return a
	}
	return c.adm
}

// permissionText is p.String() without building it anew for every request.
func (c *conn) permissionText(p grant.Permission) string {
	for i := range c.perms {
		if c.perms[i] == p {
			return c.texts[i]
		}
	}
	return p.String()
}

// socket is the net.Conn under TLS: whoever closes it, the connection's end is noted.
type socket struct {
	net.Conn
	c   *conn       // set once, when the connection is admitted, before anyone else reads it
	eof atomic.Bool // the peer closed the socket

	head     []byte // read already, and to be read again; the reader's
	askedTLS bool   // a Postgres client asked for TLS before it began; set before the handshake

	out *together // set with c, of HTTP/2: what is written goes by it; nil: it goes at once
}

func (s *socket) Read(p []byte) (int, error) {
	if len(s.head) > 0 {
		n := copy(p, s.head)
		s.head = s.head[n:]
		return n, nil
	}
	n, err := s.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		s.eof.Store(true)
	}
	return n, err
}

func (s *socket) Write(p []byte) (int, error) {
	if s.out != nil {
		return s.out.write(p)
	}
	return s.Conn.Write(p)
}

func (s *socket) Close() error {
	if s.c == nil {
		return s.Conn.Close()
	}
	s.c.close()
	return nil
}

// SetLinger is net.TCPConn's.
func (s *socket) SetLinger(sec int) error {
	if tcp, ok := s.Conn.(interface{ SetLinger(sec int) error }); ok {
		return tcp.SetLinger(sec)
	}
	return nil
}

// holding is what one holder of connections has.
type holding struct {
	conns    map[*conn]struct{} // live's mutex owns it
	requests atomic.Int64       // of HTTP/2 that are under way
}

// beginRequest counts a request of HTTP/2, unless most are under way. A connection
// has many, each of which may keep one to the upstream until its body ends: by the
// limits of connections and of streams alone, one grant could have all the files that
// the proxy may open.
func (h *holding) beginRequest(most int) bool {
	if h.requests.Add(1) > int64(most) {
		h.requests.Add(-1)
		return false
	}
	return true
}

func (h *holding) endRequest() { h.requests.Add(-1) }

// open is how many connections there are.
func (h *holding) open() int { return len(h.all()) }

// all are the connections. The caller holds live's mutex.
func (h *holding) all() map[*conn]struct{} {
	if h == nil {
		return nil
	}
	return h.conns
}

// live knows every admitted connection and brings each to its end on time.
type live struct {
	now  func() time.Time
	wake chan struct{}

	mu      sync.Mutex // owns what follows
	due     dueHeap
	holders map[string]*holding // by grant, or by subject where there is none
	streams map[string]int      // that carriers hold open, by the same
	drain   bool                // the proxy is stopping: whoever still comes in is drained at once
	shut    bool                // nobody comes in any more
}

func newLive(now func() time.Time) *live {
	return &live{now: now, wake: make(chan struct{}, 1), holders: make(map[string]*holding), streams: make(map[string]int)}
}

// enter adds an admitted connection, unless its holder has perHolder already or
// the proxy is at its end.
func (l *live) enter(c *conn, perHolder int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return refuse(reasonShutdown, "the proxy is stopping")
	}
	h := l.holders[c.adm.holder()]
	if n := h.open() + l.streams[c.adm.holder()]; n >= perHolder {
		return refuse(reasonLimit, "%d connections are open already", n)
	}
	if h == nil {
		h = &holding{conns: make(map[*conn]struct{})}
		l.holders[c.adm.holder()] = h
	}
	h.conns[c] = struct{}{}
	c.holding = h
	c.draining.Store(l.drain)
	c.next = c.drainAt
	heap.Push(&l.due, c)
	if c.index == 0 {
		l.nudge()
	}
	return nil
}

func (l *live) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// leave forgets a connection that has ended.
func (l *live) leave(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.index >= 0 && c.index < len(l.due) && l.due[c.index] == c {
		heap.Remove(&l.due, c.index)
	}
	if h := l.holders[c.adm.holder()]; h != nil {
		delete(h.conns, c)
		if len(h.conns) == 0 {
			delete(l.holders, c.adm.holder())
		}
	}
}

// rearm has a connection live as long as what was proven on it now says, unless
// its end has come already.
func (l *live) rearm(c *conn, a *admission) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.index < 0 || c.index >= len(l.due) || l.due[c.index] != c || !wall(l.now).Before(c.proven().notAfter) {
		return false
	}
	c.renewed.Store(a)
	c.next = a.notAfter
	heap.Fix(&l.due, c.index)
	return true
}

// enterStream counts a carrier's stream like a connection of its own: one grant
// opens no more of them by carrying them in one connection.
func (l *live) enterStream(holder string, perHolder int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut || l.drain {
		return refuse(reasonShutdown, "the proxy is stopping")
	}
	if n := l.holders[holder].open() + l.streams[holder]; n >= perHolder {
		return refuse(reasonLimit, "%d connections are open already", n)
	}
	l.streams[holder]++
	return nil
}

func (l *live) leaveStream(holder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.streams[holder]--; l.streams[holder] <= 0 {
		delete(l.streams, holder)
	}
}

func (l *live) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.due)
}

// run looks at the clock until ctx ends: drains what is about to expire, cuts
// what has expired.
func (l *live) run(ctx context.Context) {
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	for {
		timer.Reset(l.sweep()) //nolint:contextcheck // each connection has its own
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// sweep does what is due and says when to look again.
func (l *live) sweep() time.Duration {
	now := wall(l.now)
	var told, expired []*conn
	l.mu.Lock()
	wait := lookEvery
	for len(l.due) > 0 {
		c := l.due[0]
		if now.Before(c.next) {
			wait = min(wait, c.next.Sub(now))
			break
		}
		c.draining.Store(true)
		if until := c.proven().notAfter; now.Before(until) {
			told = append(told, c)
			c.next = until
			heap.Fix(&l.due, c.index)
			continue
		}
		heap.Pop(&l.due)
		expired = append(expired, c)
	}
	l.mu.Unlock()
	for _, c := range expired {
		c.cut(reasonExpired)
	}
	for _, c := range told {
		c.goAway()
	}
	return max(wait, time.Millisecond)
}

// cutWhere cuts the connections that match says so of, and returns how many.
func (l *live) cutWhere(why string, match func(*conn) bool) int {
	l.mu.Lock()
	all := slices.Clone(l.due)
	l.mu.Unlock()
	n := 0
	for _, c := range all {
		if match(c) {
			c.cut(why)
			n++
		}
	}
	return n
}

// cutRevoked cuts the connections of these grants.
func (l *live) cutRevoked(ids []string) {
	var found []*conn
	l.mu.Lock()
	for _, id := range ids {
		for c := range l.holders[id].all() {
			found = append(found, c)
		}
	}
	l.mu.Unlock()
	for _, c := range found {
		c.cut(reasonRevoked)
	}
}

// drainAll has every connection told to go elsewhere after its current request.
func (l *live) drainAll() {
	l.mu.Lock()
	l.drain = true
	all := slices.Clone(l.due)
	for _, c := range all {
		c.draining.Store(true)
	}
	l.mu.Unlock()
	for _, c := range all {
		c.goAway()
	}
}

// shutdown cuts what is left and admits nothing more.
func (l *live) shutdown() {
	l.mu.Lock()
	l.shut = true
	l.mu.Unlock()
	l.cutWhere(reasonShutdown, func(*conn) bool { return true })
}

// dueHeap orders connections by when they must be looked at next.
type dueHeap []*conn

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].next.Before(h[j].next) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is heap.Interface's.
func (h *dueHeap) Push(x any) {
	c, ok := x.(*conn)
	if !ok {
		return
	}
	c.index = len(*h)
	*h = append(*h, c)
}

// Pop is heap.Interface's.
func (h *dueHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	c.index = -1
	*h = old[:len(old)-1]
	return c
}
