package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// welcome takes one connection through its handshake and on to its protocol. It
// ends when the connection is refused or net/http has it, and for tcp when the
// connection has ended.
func (p *Proxy) welcome(ctx context.Context, raw net.Conn, web *web) {
	growStack()
	started := p.cfg.now()
	open := p.open.Add(1)
	admitted, alerted := false, false
	defer func() {
		if admitted {
			return
		}
		if alerted {
			farewell(raw)
		}
		_ = raw.Close() // nothing can be done about it
		p.open.Add(-1)
	}()
	switch {
	case !p.access.admits():
		p.access.skip()
		p.tele.reason(ctx, p.tele.refused, reasonLogUnavailable)
		return
	case open > int64(p.cfg.limits.conns) && !p.shaking.makeRoom():
		p.turnedAway(ctx, raw, started, nil, refuse(reasonLimit, "too many connections"))
		return
	}
	shaking := p.shaking.begin(raw, p.cfg.limits.handshakes)
	var t *tls.Conn
	var adm *admission
	var m *material
	client, err := p.cfg.introduce(raw)
	raw = directly(client)
	sock := &socket{Conn: raw}
	if err == nil {
		t, adm, m, err = p.handshake(ctx, sock)
	}
	p.shaking.end(shaking)
	alerted = true
	if errors.Is(err, errPlainCancel) {
		return // it has its record, and no session was asked for
	}
	if shaking.dropped.Load() {
		err = refuse(reasonLimit, "too many handshakes")
	}
	if err != nil {
		p.turnedAway(ctx, raw, started, adm, err)
		return
	}
	c := p.newConn(ctx, sock, adm, started)
	c.carries(t)
	if c.carrier != nil || t.ConnectionState().NegotiatedProtocol == "h2" {
		c.together = &together{to: raw}
		sock.out = c.together
	}
	if err := p.live.enter(c, p.cfg.limits.perGrant); err != nil {
		c.cancel(err)
		p.turnedAway(ctx, raw, started, adm, err)
		return
	}
	admitted = true
	sock.c = c
	// Whatever changed between the check and the entry was told only to those
	// who had entered: look again.
	if err := p.recheck(c, m); err != nil {
		c.cut(reasonOf(err))
		return
	}
	if p.tele.measuring {
		p.tele.handshakes.Add(ctx, 1)
	}
	p.sayEmergency(ctx, c)
	p.begin(c, t, web) //nolint:contextcheck // the connection has its own, c.ctx
}

// farewell ends a refused connection so that the alert arrives. In TLS 1.3 a
// client may send its first request along with its certificate, and closing over
// unread bytes resets the connection: the client would see that instead.
func farewell(raw net.Conn) {
	if hc, ok := raw.(halfCloser); ok && hc.CloseWrite() == nil && raw.SetReadDeadline(time.Now().Add(500*time.Millisecond)) == nil {
		_, _ = io.CopyN(io.Discard, raw, 64<<10) // whatever comes is thrown away, errors too
	}
}

func (p *Proxy) begin(c *conn, t *tls.Conn, web *web) {
	p = p.newest.Load() // a handshake takes its time
	if c.together != nil {
		if !web.take(c, t) {
			c.cut(reasonShutdown)
		}
		return
	}
	if p.speak(c, t) {
		return
	}
	if !p.cfg.upstream.h2c {
		web.fronts.Go(func() { p.newFront(c, t, web).serve() })
		return
	}
	if !web.take(c, p.gated(c, t)) {
		c.cut(reasonShutdown)
	}
}

// speak carries a connection of a service of bytes, be it one of its own or a
// carrier's stream, until it has ended. It says whether the service is one.
func (p *Proxy) speak(c *conn, client secureConn) bool {
	switch {
	case p.cfg.tcp:
		p.serveTCP(c, client)
	case p.cfg.pg != nil:
		p.servePostgres(c, client, withinTunnel(client))
	default:
		return false
	}
	return true
}

// gated is an HTTP/1 connection behind its gate.
func (p *Proxy) gated(c *conn, t secureConn) *gate {
	return newGate(t, c, p.cfg, func(v *violation) []byte { return p.gateRefused(c, v) })
}

// handshake runs TLS and the checks of who may complete it. All of them sit in
// VerifyConnection, and there are no session tickets: a resumed session skips
// VerifyPeerCertificate, and a ticket from another proxy would do for this one.
func (p *Proxy) handshake(ctx context.Context, sock *socket) (*tls.Conn, *admission, *material, error) {
	var adm *admission
	m := p.keeper.cur.Load()
	cfg := &tls.Config{
		Certificates:           []tls.Certificate{m.cert},
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		// Else the first megabyte goes out in records of a packet each, and a write each.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			adm, err = p.admit(cs.PeerCertificates, m)
			return err
		},
	}
	if p.cfg.tcp {
		// What other clients of a service of bytes offer is between them and the
		// service, and with a list of our own they would have to be refused.
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if !slices.Contains(hello.SupportedProtos, carrierALPN) {
				return nil, nil //nolint:nilnil // go on with cfg
			}
			carrying := cfg.Clone()
			carrying.NextProtos = []string{carrierALPN}
			return carrying, nil
		}
	} else {
		cfg.NextProtos = []string{carrierALPN, "h2", "http/1.1"}
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.limits.handshakeTime)
	defer cancel()
	if p.cfg.pg != nil {
		cfg.NextProtos = []string{carrierALPN, pgALPN}
		if err := p.pgNegotiate(ctx, sock); err != nil {
			return nil, nil, m, err
		}
	}
	t := tls.Server(sock, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, adm, m, err
	}
	return t, adm, m, nil
}

// admit decides over a presented chain.
func (p *Proxy) admit(chain []*x509.Certificate, m *material) (*admission, error) {
	adm, err := examine(chain, m, p.cfg, wall(p.cfg.now))
	p.shown.saw(adm, m)
	if err != nil {
		return adm, err
	}
	if why := p.rev.cur.Load().denies(adm); why != "" {
		return adm, refuse(why, "denied by the revocation feed")
	}
	return adm, nil
}

// recheck repeats admit's questions for a connection that has just entered.
func (p *Proxy) recheck(c *conn, m *material) error {
	if now, inForce := p.keeper.cur.Load(), p.newest.Load(); now != m || inForce != p {
		if _, err := examine(c.proven().chain, now, inForce.cfg, wall(p.cfg.now)); err != nil {
			return err
		}
	}
	if why := p.denied(c); why != "" {
		return refuse(why, "denied by the revocation feed")
	}
	return nil
}

func (p *Proxy) newConn(ctx context.Context, sock *socket, adm *admission, started time.Time) *conn {
	c := &conn{
		id: p.conns.Add(1), raw: sock.Conn, adm: adm, peer: sock.RemoteAddr().String(),
		started: started, index: -1,
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	host, _, err := net.SplitHostPort(c.peer)
	if err != nil {
		host = c.peer
	}
	sum := sha256.Sum256(adm.chain[0].Raw)
	c.headers = newIdentityHeaders(p.cfg.self.String(), adm, hex.EncodeToString(sum[:]), host)
	if adm.isGrant() {
		scope := adm.grant.Scope()
		c.matcher, c.perms, c.texts = scope.Matcher(), scope.Permissions(), scope.Texts()
	}
	// A certificate of a few seconds is drained in its last quarter.
	now := wall(p.cfg.now)
	before := min(p.cfg.before, adm.notAfter.Sub(now)/4)
	c.drainAt = adm.notAfter.Add(-before)
	c.atEnd = func() { p.ended(c) } //nolint:contextcheck // the connection has its own, c.ctx
	return c
}

// ended notes the end of an admitted connection.
func (p *Proxy) ended(c *conn) {
	p.live.leave(c)
	p.open.Add(-1)
	why := c.cutReason()
	if why != "" {
		p.tele.reason(context.WithoutCancel(c.ctx), p.tele.cuts, why)
	}
	if (p.cfg.tcp || p.cfg.pg != nil) && c.carrier == nil {
		return // serveTCP writes this connection's records
	}
	p.recordEnd(c, why)
}

// recordEnd notes the end of a connection of HTTP, or of a carrier.
func (p *Proxy) recordEnd(c *conn, why string) {
	r := &record{
		time: c.started, kind: kindConnection, event: "end", conn: c.id, service: p.cfg.service, protocol: "tls",
		decision: decisionAllow, reason: why, peer: c.peer, requests: c.requests.Load(), duration: since(p.cfg.now, c.started),
	}
	r.of(c.proven())
	// Not on the goroutine that cuts: a disk that hangs must not let those live on
	// whose turn comes next. Serve waits for it at its end.
	p.active.Add(1)
	go func() {
		defer p.active.Add(-1)
		_ = p.access.write(r) // a failure denies the next
	}()
}

// turnedAway records a refused handshake.
func (p *Proxy) turnedAway(ctx context.Context, raw net.Conn, started time.Time, adm *admission, err error) {
	reason := reasonOf(err)
	p.tele.reason(ctx, p.tele.refused, reason)
	r := record{
		time: started, kind: kindHandshake, event: "end", service: p.cfg.service,
		decision: decisionRefuse, reason: reason, peer: raw.RemoteAddr().String(),
	}
	r.of(adm)
	_ = p.access.write(&r) // a failure denies the next
}

// reasonOf names why a handshake failed.
func reasonOf(err error) string {
	var r *refusal
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &r):
		return r.reason
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return reasonTimeout
	case errors.Is(err, context.Canceled):
		return reasonShutdown
	case errors.As(err, &header):
		return reasonNotTLS
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return reasonAborted
	}
	// crypto/tls has no error values for these two.
	switch text := err.Error(); {
	case strings.Contains(text, "didn't provide a certificate"):
		return reasonNoCertificate
	case strings.Contains(text, "unsupported versions"), strings.Contains(text, "protocol version"):
		return reasonTLSVersion
	case strings.Contains(text, "connection reset"), strings.Contains(text, "broken pipe"):
		return reasonAborted
	default:
		return reasonTLS
	}
}

// gateRefused records what a gate refused and renders the answer.
func (p *Proxy) gateRefused(c *conn, v *violation) []byte {
	pr := newProblem(v.status, v.reason, v.detail, p.cfg.service)
	body := pr.raw()
	r := record{
		time: p.cfg.now(), kind: kindRequest, event: "end", conn: c.id, service: p.cfg.service,
		decision: decisionRefuse, reason: v.reason, protocol: "http/1.1", method: v.method, path: pathOf(v.target),
		status: v.status, bytesOut: int64(len(body)), peer: c.peer,
	}
	r.of(c.adm)
	c.requests.Add(1)
	p.tele.request(c.ctx, &r)
	_ = p.access.write(&r) // a failure denies the next
	return body
}

// connContext gives handlers their connection.
func connContext(ctx context.Context, nc net.Conn) context.Context {
	var c *conn
	switch t := nc.(type) {
	case *gate:
		ctx = context.WithValue(ctx, gateKey{}, t)
		c = t.c
	case *tls.Conn:
		if s, ok := t.NetConn().(*socket); ok {
			c = s.c
		}
	}
	if c == nil {
		return ctx
	}
	return context.WithValue(endWith(ctx, c), connKey{}, c)
}

// endWith is a context that ends with the connection, too.
func endWith(ctx context.Context, c *conn) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	return ctx
}
