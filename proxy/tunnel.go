package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// errTruncated is returned when a peer's stream ended without TLS, or who carries it, saying so.
var errTruncated = errors.New("the stream ended, and nobody said so")

// gateViolation is what the gate of ctx's connection refused, or nil.
func gateViolation(ctx context.Context) *violation {
	if g, ok := ctx.Value(gateKey{}).(*gate); ok {
		return g.bad.Load()
	}
	return nil
}

type gateKey struct{}

// switchProtocols ties a client and an upstream together that have agreed on
// WebSocket. From here on nobody reads what they say; the deadline of the
// connection, a revocation and the end of either side still end it.
func (x *exchange) switchProtocols(s *shape, res *http.Response) {
	upstream, ok := res.Body.(io.ReadWriteCloser)
	if !ok || !s.websocket || !strings.EqualFold(res.Header.Get("Upgrade"), "websocket") {
		_ = res.Body.Close() // an upstream that switches to what nobody asked for
		x.failed(errors.New("upstream switched protocols unasked"), s.grpc)
		return
	}
	defer func() { _ = upstream.Close() }() // both ends are done with it
	client, early, err := x.hijack()
	if err != nil {
		x.reason, x.abort = reasonClientGone, true
		return
	}
	defer func() { _ = client.Close() }() // as above
	h := res.Header
	removeHop(h)
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	x.status = res.StatusCode
	var head strings.Builder
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	if err := h.Write(&head); err != nil {
		x.reason = reasonUpstreamBroke
		return
	}
	head.WriteString("\r\n")
	if _, err := io.WriteString(client, head.String()); err != nil {
		x.reason = x.brokenBy(reasonClientGone)
		return
	}
	if len(early) > 0 {
		n, err := upstream.Write(early)
		x.in.Add(int64(n))
		if err != nil {
			x.reason = reasonUpstreamBroke
			return
		}
	}
	x.reason = x.p.splice(x.c, client, upstream, &x.in, &x.out)
}

// hijack takes the connection from net/http, with what it had read ahead.
func (x *exchange) hijack() (net.Conn, []byte, error) {
	client, rw, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early := make([]byte, rw.Reader.Buffered())
	if _, err := io.ReadFull(rw.Reader, early); err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	if err := client.SetDeadline(time.Time{}); err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return client, early, nil
}

type halfCloser interface{ CloseWrite() error }

// splice copies both ways until both sides have ended or either breaks, and
// returns why it ended, "" when both simply did. One side's end is handed on as
// a half-close. It ends at once when the connection is cut.
func (p *Proxy) splice(c *conn, client net.Conn, upstream io.ReadWriteCloser, in, out *atomic.Int64) string {
	stop := context.AfterFunc(c.ctx, func() {
		_ = client.Close() // the cut has closed the socket; this ends what waits above it
		breakOff(upstream)
	})
	defer stop()
	var wg sync.WaitGroup
	var up, down error
	wg.Go(func() {
		if up = p.copyHalf(upstream, client, in); up != nil {
			breakOff(upstream)
			c.reset()
		}
	})
	if down = p.copyHalf(client, upstream, out); down != nil {
		breakOff(upstream)
		c.reset()
	}
	wg.Wait()
	switch {
	case c.cutReason() != "":
		return c.cutReason()
	case up == nil && down == nil:
		return ""
	case up != nil && down == nil, errors.Is(up, errTruncated):
		return reasonClientGone
	default:
		return reasonUpstreamBroke
	}
}

// copyHalf copies one direction and hands its end on.
func (p *Proxy) copyHalf(to io.Writer, from io.Reader, n *atomic.Int64) error {
	buf := p.up.buffer()
	defer p.up.release(buf)
	for {
		k, err := from.Read(*buf)
		if k > 0 {
			m, werr := to.Write((*buf)[:k])
			n.Add(int64(m))
			if werr != nil {
				return werr
			}
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return err
		case truncated(from):
			// Whoever can cut the wire must not be able to make half an upload
			// look like a whole one to the upstream.
			return errTruncated
		default:
			if hc, ok := to.(halfCloser); ok {
				_ = hc.CloseWrite() // the other side may be gone already
			}
			return nil
		}
	}
}

// truncated says whether a TLS stream ended with its socket rather than with close_notify.
func truncated(from io.Reader) bool {
	t, ok := from.(*tls.Conn)
	if !ok {
		return false
	}
	s, ok := t.NetConn().(*socket)
	return ok && s.eof.Load()
}

// breakOff ends a stream so that the other side sees it broken, not finished.
func breakOff(c io.Closer) {
	if t, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = t.SetLinger(0) // a socket already closed needs no reset
	}
	_ = c.Close() // nothing to do about it
}

// serveTCP carries one connection of a tcp service.
func (p *Proxy) serveTCP(c *conn, client net.Conn) {
	defer func() { _ = client.Close() }() // says close_notify where it still can
	rec := record{time: c.started, kind: kindConnection, event: "end", conn: c.id, service: p.cfg.service, protocol: "tcp", peer: c.peer}
	rec.of(c.adm)
	ctx, spans := p.tele.beginTCP(c.ctx, c)
	rec.trace = spans.traceID
	var in, out atomic.Int64
	defer func() {
		rec.bytesIn, rec.bytesOut = in.Load(), out.Load()
		rec.duration = since(p.cfg.now, c.started)
		p.tele.request(context.WithoutCancel(ctx), &rec)
		spans.end(&rec)
		_ = p.access.write(&rec) // a failure denies the next connection
	}()
	if rec.reason = p.mayTCP(c, &rec); rec.reason != "" {
		rec.decision = decisionDeny
		return
	}
	rec.decision = decisionAllow
	// The record of a connection's beginning comes before its first byte: the
	// one of its end may be hours away.
	open := rec
	open.event = "open"
	if err := p.access.write(&open); err != nil {
		rec.decision, rec.permission, rec.wouldDeny, rec.reason = decisionDeny, "", "", reasonLogUnavailable
		return
	}
	ctx = p.tele.upstream(ctx, &spans, "tcp", []attribute.KeyValue{attribute.String("hallpass.grant.id", c.adm.grantID)})
	upstream, err := p.dialFor(ctx, c)
	if err != nil {
		if rec.reason = c.cutReason(); rec.reason == "" {
			rec.reason = reasonUpstream
			p.upstreamTrouble(err)
		}
		return
	}
	defer func() { _ = upstream.Close() }() // both ends are done with it
	rec.reason = p.splice(c, client, upstream, &in, &out)
}

const grantTCPText = "tcp"

// mayTCP says why a connection may not reach a tcp upstream, or "".
func (p *Proxy) mayTCP(c *conn, rec *record) string {
	switch {
	case !wall(p.cfg.now).Before(c.proven().notAfter):
		return reasonExpired
	case p.stale(c.adm):
		return reasonStale
	case p.denied(c) != "":
		return p.denied(c)
	default:
		return p.permitTCP(c, rec)
	}
}

// upstreamTrouble tells operators what clients are not told.
func (p *Proxy) upstreamTrouble(err error) {
	p.log.Warn("upstream gave no answer", slog.String("upstream", p.cfg.upstream.address), slog.Any("error", err))
}
