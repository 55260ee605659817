package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// apiConn is a connection to the API. It is closed when the certificate that
// opened it ends.
type apiConn struct {
	net.Conn
	guard *apiListener
	from  netip.Prefix
	close sync.Once
	err   error

	use  *usage // guarded by guard.mu; of its caller, nil until a request has come
	over bool   // guarded by guard.mu; one more than its caller may have

	mu     sync.Mutex
	caller *caller // guarded by mu; nil until a chain was verified
}

func (c *apiConn) setCaller(who *caller) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.caller = who
}

func (c *apiConn) getCaller() *caller {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.caller
}

// Close implements net.Conn.
func (c *apiConn) Close() error {
	c.close.Do(func() {
		c.guard.forget(c)
		c.err = c.Conn.Close()
	})
	return c.err
}

// usage is what one caller holds of a node.
type usage struct{ conns, calls int }

// apiListener makes apiConns, bounds how many there are, and cuts those whose
// certificate has ended.
//
// A connection is fresh until its first request: so long nobody has proven
// anything on it, and anybody on the network can open it. Fresh ones make room
// for each other, the oldest first, and those of an address that has too many
// for their own kind: were newcomers turned away instead, whoever opens
// connections and says nothing would keep all others out, whose handshakes take
// milliseconds.
type apiListener struct {
	net.Listener
	limits Limits
	// dropped is told of each connection that had to go, outside of mu.
	dropped func(reason string, remote net.Addr)

	mu      sync.Mutex
	conns   map[*apiConn]struct{} // guarded by mu
	fresh   []*apiConn            // guarded by mu; oldest first
	froms   map[netip.Prefix]int  // guarded by mu; how many fresh ones an address has
	callers map[string]*usage     // guarded by mu; by SPIFFE ID
}

func newAPIListener(l net.Listener, limits Limits, dropped func(reason string, remote net.Addr)) *apiListener {
	return &apiListener{
		Listener: l, limits: limits, dropped: dropped, conns: map[*apiConn]struct{}{},
		froms: map[netip.Prefix]int{}, callers: map[string]*usage{},
	}
}

// Reasons for which a connection is dropped.
const (
	droppedForAddress = "too_many_of_address"
	droppedForOthers  = "too_many_handshakes"
	droppedFull       = "too_many_connections"
)

// Accept implements net.Listener.
func (l *apiListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ac := &apiConn{Conn: c, guard: l, from: sourceOf(c.RemoteAddr())}
		victim, reason := l.enter(ac)
		if victim != nil {
			l.dropped(reason, victim.RemoteAddr())
			_ = victim.Close() // nothing was said on it
		}
		if victim != ac {
			return ac, nil
		}
	}
}

// sourceOf is what connections of one peer have in common: its address, or for
// IPv6 the /64, of which one machine has every address.
func sourceOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := ap.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// enter takes a new connection in and returns the one that has to go for it,
// which is c itself when the node is full of callers.
func (l *apiListener) enter(c *apiConn) (victim *apiConn, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.froms[c.from] >= l.limits.HandshakesPerAddress:
		victim, reason = l.fresh[slices.IndexFunc(l.fresh, func(o *apiConn) bool { return o.from == c.from })], droppedForAddress
	case len(l.fresh) >= l.limits.Handshakes:
		victim, reason = l.fresh[0], droppedForOthers
	case len(l.conns) >= l.limits.Connections && len(l.fresh) > 0:
		victim, reason = l.fresh[0], droppedFull
	case len(l.conns) >= l.limits.Connections:
		return c, droppedFull
	}
	if victim != nil {
		l.settle(victim)
		delete(l.conns, victim)
	}
	l.conns[c] = struct{}{}
	l.fresh = append(l.fresh, c)
	l.froms[c.from]++
	return victim, reason
}

// settle takes a connection out of the fresh ones and reports whether it was
// one. Call with mu held.
func (l *apiListener) settle(c *apiConn) bool {
	i := slices.Index(l.fresh, c)
	if i < 0 {
		return false
	}
	l.fresh = slices.Delete(l.fresh, i, i+1)
	if l.froms[c.from]--; l.froms[c.from] == 0 {
		delete(l.froms, c.from)
	}
	return true
}

// arrived is told when the first request has come on a connection: its
// handshake is done, and its caller is who the certificate says. That the chain
// was verified is not enough, as TLS looks at it before the proof that the peer
// holds its key.
func (l *apiListener) arrived(c *apiConn) {
	who := c.getCaller()
	l.mu.Lock()
	defer l.mu.Unlock()
	if who == nil || !l.settle(c) {
		return
	}
	c.use = l.use(who)
	c.use.conns++
	c.over = c.use.conns > l.limits.ConnectionsPerCaller
}

// use is what a caller holds. Call with mu held.
func (l *apiListener) use(who *caller) *usage {
	id := who.id.String()
	u := l.callers[id]
	if u == nil {
		u = &usage{}
		l.callers[id] = u
	}
	return u
}

// drop forgets a caller who holds nothing. Call with mu held.
func (l *apiListener) drop(who *caller, u *usage) {
	if u.conns == 0 && u.calls == 0 {
		delete(l.callers, who.id.String())
	}
}

func (l *apiListener) forget(c *apiConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(c)
	delete(l.conns, c)
	if c.use != nil {
		c.use.conns--
		l.drop(c.getCaller(), c.use)
		c.use = nil
	}
}

// begin counts a call until its end, or says why the caller may not make it
// now, and whether it never may on this connection.
func (l *apiListener) begin(c *apiConn, who *caller) (end func(), refused *api.Problem, never bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.over {
		return nil, tooMany(fmt.Sprintf("%s has %d connections to this node already", who.id, l.limits.ConnectionsPerCaller),
			"close some: one connection carries many calls"), true
	}
	u := l.use(who)
	if u.calls >= l.limits.CallsPerCaller {
		return nil, tooMany(fmt.Sprintf("%s has %d calls under way at this node already", who.id, u.calls),
			"let some end, streams and blocking reads among them"), false
	}
	u.calls++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		u.calls--
		l.drop(who, u)
	}, nil, false
}

func tooMany(detail, next string) *api.Problem {
	p := api.NewProblem(api.CodeLimit, detail, next)
	p.RetryAfter = time.Second
	return p
}

func (l *apiListener) expired(over func(*caller) bool) []*apiConn {
	l.mu.Lock()
	all := slices.Collect(maps.Keys(l.conns))
	l.mu.Unlock()
	return slices.DeleteFunc(all, func(c *apiConn) bool {
		who := c.getCaller()
		return who == nil || !over(who)
	})
}

// connState follows the connections of the API's http.Server.
func connState(c net.Conn, s http.ConnState) {
	if s != http.StateActive {
		return
	}
	if tc, ok := c.(*tls.Conn); ok {
		if ac, ok := tc.NetConn().(*apiConn); ok {
			ac.guard.arrived(ac)
		}
	}
}

// droppedConn counts connections that had to go and says so in the log.
func (n *node) droppedConn(reason string, remote net.Addr) {
	ctx := context.Background()
	n.metrics.handshakeFailed(ctx, reason)
	if more, ok := n.refusals.allow(time.Now()); ok {
		n.log.LogAttrs(ctx, slog.LevelWarn, "connection dropped: there are too many",
			slog.String("reason", reason), slog.String("remote", remote.String()), slog.Int("unlogged", more))
	}
}

// rationed lets a few lines a second into the log: strangers who are refused as
// fast as they can connect must not fill the disk.
type rationed struct {
	mu       sync.Mutex
	since    time.Time // guarded by mu
	lines    int       // guarded by mu; since then
	unlogged int       // guarded by mu
}

// refusalLines is how many refusals a second are logged one by one.
const refusalLines = 20

// allow reports whether a line may be logged, and how many were not since the
// last that was.
func (r *rationed) allow(now time.Time) (unlogged int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.since) >= time.Second {
		r.since, r.lines = now, 0
	}
	if r.lines >= refusalLines {
		r.unlogged++
		return 0, false
	}
	r.lines++
	unlogged, r.unlogged = r.unlogged, 0
	return unlogged, true
}
