package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// A carrier is an HTTP/2 connection whose client asked for it by a protocol name
// of its own. It carries what would otherwise be many connections, each in one
// CONNECT stream, beside ordinary requests, and it is renewed in band: its end is
// that of the certificate that was proven on it last.
//
//	CONNECT hallpass!stream   a connection to the service: bytes, or HTTP/1 behind its gate
//	CONNECT hallpass!renew    a renewed chain and a proof, see renewal.go
//	anything else             a request like any other
//
// Nobody reaches these by mistake. CONNECT is refused everywhere else and never
// forwarded; no host has a name with "!" in it, and `hosts` takes none; and who
// did not ask for the protocol in the handshake speaks another one.
const (
	carrierALPN  = "hallpass/1"
	streamTarget = "hallpass!stream"
	renewTarget  = "hallpass!renew"
)

// What a client has sent on a stream and its service has not read is held here, and
// a stream may not send more. Streams of a carrier are different programs'
// connections: it takes many that are stuck, not one, to hold up the rest.
const (
	carrierStreamBuffer = 256 << 10
	carrierBuffer       = 32 * carrierStreamBuffer
)

// carrier is what a carrier has beyond a connection.
type carrier struct {
	export func(label string, context []byte, length int) ([]byte, error) // of its TLS session

	renewing atomic.Bool // a renewal is being looked at; whoever set it owns next
	next     time.Time   // before which no other is
}

// carries makes c a carrier if its client asked for one. A carrier is not told to
// go elsewhere before its certificate ends: its client renews it.
func (c *conn) carries(t *tls.Conn) {
	cs := t.ConnectionState()
	if cs.NegotiatedProtocol != carrierALPN {
		return
	}
	c.carrier = &carrier{export: cs.ExportKeyingMaterial}
	c.drainAt = c.adm.notAfter
}

// carry takes what comes in on a carrier.
func (p *Proxy) carry(c *conn, web *web, w http.ResponseWriter, r *http.Request) {
	p = p.newest.Load() // the carrier may be older than the configuration in force, and the server of every carrier is
	switch {
	case r.Method == http.MethodConnect && r.Host == streamTarget:
		p.carryStream(c, web, w, r)
	case r.Method == http.MethodConnect && r.Host == renewTarget:
		p.renew(c, w, r)
	default:
		p.ServeHTTP(w, r)
	}
}

// carryStream carries one stream as if it were a connection.
func (p *Proxy) carryStream(c *conn, web *web, w http.ResponseWriter, r *http.Request) {
	p.active.Add(1)
	defer p.active.Add(-1)
	c.requests.Add(1)
	s := newStream(w, r, c.raw)
	if err := p.enterStream(c); err != nil {
		if !errors.Is(err, errNotRecorded) {
			p.turnedAway(r.Context(), s, p.cfg.now(), c.proven(), err)
		}
		p.answers.send(w, r, newProblem(http.StatusServiceUnavailable, reasonOf(err), "the proxy takes no further connection now", p.cfg.service), false)
		return
	}
	child := p.streamConn(c, s)
	s.start(w)
	p.talk(child, s, web) //nolint:contextcheck // the connection has its own, child.ctx
	<-s.closed
	child.close()
	if !s.finish() {
		panic(http.ErrAbortHandler) // resets the stream: what broke off must not look whole
	}
}

// talk carries a stream on to its protocol, as begin does a connection.
func (p *Proxy) talk(child *conn, s *stream, web *web) {
	switch {
	case p.speak(child, s):
	case !p.cfg.upstream.h2c:
		p.newFront(child, s, web).serve()
	case !web.pass.give(p.gated(child, s)):
		child.cut(reasonShutdown)
	}
}

// errNotRecorded is in the refusal of a stream while the access log cannot be written.
var errNotRecorded = errors.New("the access log cannot be written")

// enterStream counts a stream among connections, unless there are too many.
func (p *Proxy) enterStream(c *conn) error {
	if !p.access.admits() {
		p.access.skip()
		return &refusal{reasonLogUnavailable, errNotRecorded}
	}
	if err := p.live.enterStream(c.adm.holder(), p.cfg.limits.perGrant); err != nil {
		return err
	}
	if p.open.Add(1) > int64(p.cfg.limits.conns) {
		p.open.Add(-1)
		p.live.leaveStream(c.adm.holder())
		return refuse(reasonLimit, "too many connections")
	}
	return nil
}

// streamConn is the connection that a stream stands for. It ends with its carrier.
func (p *Proxy) streamConn(c *conn, s *stream) *conn {
	child := &conn{
		id: p.conns.Add(1), raw: s, adm: c.proven(), peer: c.peer, started: p.cfg.now(), index: -1, within: c,
		matcher: c.matcher, perms: c.perms, texts: c.texts, headers: c.headers,
	}
	child.ctx, child.cancel = context.WithCancelCause(c.ctx)
	child.atEnd = func() {
		p.live.leaveStream(c.adm.holder())
		p.open.Add(-1)
		if !p.cfg.tcp && p.cfg.pg == nil { // serveTCP and servePostgres write their own records
			p.recordEnd(child, child.cutReason())
		}
	}
	return child
}

// addresses are the ends of the connection that a stream is carried in.
type addresses struct{ local, remote net.Addr }

// LocalAddr is net.Conn's.
func (a addresses) LocalAddr() net.Addr { return a.local }

// RemoteAddr is net.Conn's.
func (a addresses) RemoteAddr() net.Addr { return a.remote }
