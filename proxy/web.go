package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
)

// web is net/http, strict where it can be: one server for all HTTP/1
// connections, and one for each HTTP/2 connection. net/http says GOAWAY when a
// server shuts down and by no other way that also reaches a connection without a
// request; and our connections end one by one, each with its certificate.
type web struct {
	fronts   *sync.WaitGroup // connections of HTTP/1 that we serve ourselves; set before any is taken
	http1    *http.Server    // of those whose upstream speaks h2c
	pass     *handoff        // to http1
	newHTTP2 func(c *conn) *http.Server
}

func (p *Proxy) newWeb(ctx context.Context, addr net.Addr) *web {
	errorLog := slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)
	server := func(protocols *http.Protocols, frames *http.HTTP2Config) *http.Server {
		return &http.Server{
			Handler:           p,
			Protocols:         protocols,
			ReadHeaderTimeout: p.cfg.limits.headerTime,
			IdleTimeout:       p.cfg.limits.idle,
			// Above our own limit, so that the request which passes ours is answered
			// and recorded by us and not by net/http.
			MaxHeaderBytes:               2 * p.cfg.limits.headerBytes,
			HTTP2:                        frames,
			DisableGeneralOptionsHandler: true, // OPTIONS * would be answered without a record
			BaseContext:                  func(net.Listener) context.Context { return ctx },
			ConnContext:                  connContext,
			ErrorLog:                     errorLog,
		}
	}
	only1, only2 := new(http.Protocols), new(http.Protocols)
	only1.SetHTTP1(true)
	only2.SetHTTP2(true)
	frames := &http.HTTP2Config{
		MaxConcurrentStreams: p.cfg.limits.streams,
		CountError:           func(kind string) { p.tele.reason(ctx, p.tele.h2errors, kind) },
	}
	carrierFrames := *frames
	carrierFrames.MaxReceiveBufferPerStream = carrierStreamBuffer
	carrierFrames.MaxReceiveBufferPerConnection = carrierBuffer
	web := &web{http1: server(only1, nil), pass: newHandoff(addr)}
	web.newHTTP2 = func(c *conn) *http.Server { //nolint:contextcheck // the connection has its own, c.ctx
		s := server(only2, frames)
		if c.carrier != nil {
			s.HTTP2 = &carrierFrames
			s.MaxHeaderBytes = max(s.MaxHeaderBytes, 2*maxRenewal)
			s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.carry(c, web, w, r) })
			s.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
				carrierALPN: func(s *http.Server, t *tls.Conn, h http.Handler) { s.TLSNextProto["h2"](s, t, h) },
			}
		}
		// GOAWAY reaches a connection that net/http has among its own, as it has when
		// it first calls this. Who drains c before finds no server, and is made up for.
		s.ConnState = func(_ net.Conn, state http.ConnState) {
			if state != http.StateActive {
				return
			}
			c.http2.Store(s)
			if c.draining.Load() {
				c.goAway()
			}
		}
		return s
	}
	return web
}

// run serves HTTP/1 until the server is shut down.
func (w *web) run(log *slog.Logger) {
	if err := w.http1.Serve(w.pass); !errors.Is(err, http.ErrServerClosed) {
		log.Error("http server ended", slog.Any("error", err))
	}
}

// take hands a connection over to net/http, and says whether it could.
func (w *web) take(c *conn, nc net.Conn) bool {
	t, ok := nc.(*tls.Conn)
	if !ok {
		return w.pass.give(nc)
	}
	l := &only{conn: t}
	_ = w.newHTTP2(c).Serve(l) // it ends with the listener, and the connection goes on
	return l.conn == nil
}

// goAway tells an HTTP/2 client to open no more streams here. Those that are
// open go on; one that the client opens before it reads this is not looked at,
// and the client knows that it may send it again, on another connection.
func (c *conn) goAway() {
	if f := c.front.Load(); f != nil {
		f.nudge()
		return
	}
	s := c.http2.Load()
	if s == nil {
		return
	}
	begun, stop := context.WithCancel(c.ctx)
	stop() // Shutdown would wait for the connection's end
	_ = s.Shutdown(begun)
}

// handoff is the net.Listener that net/http takes handshaken connections from.
type handoff struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handoff) give(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

// Accept is net.Listener's.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close is net.Listener's.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr is net.Listener's.
func (h *handoff) Addr() net.Addr { return h.addr }

// only is the net.Listener of one connection.
type only struct{ conn net.Conn }

// Accept is net.Listener's.
func (o *only) Accept() (net.Conn, error) {
	c := o.conn
	if c == nil {
		return nil, net.ErrClosed
	}
	o.conn = nil
	return c, nil
}

// Close is net.Listener's. The connection outlives it.
func (o *only) Close() error { return nil }

// Addr is net.Listener's.
func (o *only) Addr() net.Addr { return &net.TCPAddr{} }
