package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// dialLocal opens a program's connection to a connector.
func dialLocal(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		t.Fatal(err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatal("no TCP connection")
	}
	return tcp
}

// servingTCP is a service whose connections are each handed to serve.
func servingTCP(t testing.TB, serve func(c *net.TCPConn)) string {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if tcp, ok := c.(*net.TCPConn); ok {
				wg.Go(func() { serve(tcp) })
			}
		}
	})
	return "tcp://" + ln.Addr().String()
}

// TestStreamsShareOneConnection: however many a program opens, each with an open
// and an end record of its own, and no more than one grant may have.
func TestStreamsShareOneConnection(t *testing.T) {
	e := start(t, options{upstream: "tcp://" + tcpEcho(t), edit: func(s *Settings) {
		tcpService(s)
		s.Limits.MaxConnectionsPerGrant = 4
	}})
	cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "tcp")})
	cfg.TCP = true
	addr := e.connect(cfg, "127.0.0.1:0")
	var all []*net.TCPConn
	for range 3 {
		c := dialLocal(t, addr)
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if n := e.px.live.len(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	extra, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err == nil { // else it was broken off before the dialer had looked
		defer func() { _ = extra.Close() }()
		_, err = io.Copy(io.Discard, extra)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one above the limit looks finished: %v", err)
	}
	e.record("the refusal", func(r logLine) bool { return r.Kind == kindHandshake && r.Reason == reasonLimit && r.Grant != "" })
	for _, c := range all {
		_ = c.Close()
	}
	e.eventually("three ends", func() bool {
		conns := map[uint64]int{}
		for _, r := range e.records() {
			if r.Protocol == "tcp" {
				conns[r.Conn]++
			}
		}
		return len(conns) == 3 && conns[e.records()[0].Conn] == 2
	})
	e.eventually("room again", func() bool {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return false
		}
		defer func() { _ = c.Close() }()
		_, err = io.WriteString(c, "hello")
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
		return err == nil
	})
}

// TestStreamHalves: each side can end its half and go on hearing the other's, and
// nothing of what was said before is lost.
func TestStreamHalves(t *testing.T) {
	const much = 3 << 20
	heard := make(chan int64, 1)
	e := start(t, options{edit: tcpService, upstream: servingTCP(t, func(c *net.TCPConn) {
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, strings.Repeat("x", much))
		_ = c.CloseWrite() // the service has said all, and goes on listening
		n, err := io.Copy(io.Discard, c)
		if err != nil {
			n = -1
		}
		heard <- n
	})})
	cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "tcp")})
	cfg.TCP = true
	c := dialLocal(t, e.connect(cfg, "127.0.0.1:0"))
	if n, err := io.Copy(io.Discard, c); n != much || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if _, err := io.WriteString(c, strings.Repeat("y", much)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-heard:
		if n != much {
			t.Errorf("the service heard %d bytes", n)
		}
	case <-time.After(2 * patience):
		t.Error("the service heard no end")
	}
	r := e.record("its end", func(r logLine) bool { return r.Protocol == "tcp" && r.Event == "end" })
	if r.Reason != "" || r.BytesIn != much || r.BytesOut != much {
		t.Errorf("record %+v", r)
	}
}

// TestStreamBroken: what breaks off on one side looks broken on the other, and the
// streams beside it go on.
func TestStreamBroken(t *testing.T) {
	heard := make(chan error, 1)
	e := start(t, options{edit: tcpService, upstream: servingTCP(t, func(c *net.TCPConn) {
		b := make([]byte, 1)
		for {
			_, err := io.ReadFull(c, b)
			switch {
			case err != nil:
				heard <- err
				_ = c.Close()
				return
			case b[0] == 'x':
				breakOff(c)
				return
			default:
				_, _ = c.Write(b)
			}
		}
	})})
	cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "tcp")})
	cfg.TCP = true
	addr := e.connect(cfg, "127.0.0.1:0")
	talk := func(c *net.TCPConn) {
		t.Helper()
		if _, err := io.WriteString(c, "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	beside, reset, leaves := dialLocal(t, addr), dialLocal(t, addr), dialLocal(t, addr)
	talk(beside)
	talk(reset)
	talk(leaves)
	if _, err := io.WriteString(reset, "x"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(reset); err == nil {
		t.Errorf("a service that broke off looks finished after %q", got)
	}
	e.record("it", func(r logLine) bool { return r.Protocol == "tcp" && r.Reason == reasonUpstreamBroke })
	breakOff(leaves)
	select {
	case err := <-heard:
		if errors.Is(err, io.EOF) {
			t.Error("a program that broke off looks finished")
		}
	case <-time.After(patience):
		t.Error("the service heard no end")
	}
	e.record("it", func(r logLine) bool { return r.Protocol == "tcp" && r.Reason == reasonClientGone })
	talk(beside)
}

// TestBytesServiceCarriesNoRequests: nor does its carrier.
func TestBytesServiceCarriesNoRequests(t *testing.T) {
	e := start(t, options{upstream: servingTCP(t, func(c *net.TCPConn) {
		t.Error("the upstream was reached")
		_ = c.Close()
	}), edit: tcpService})
	m := e.mux(e.pki.grant(time.Hour, "tcp"))
	if status, err := m.get("/a"); err != nil || status != 400 {
		t.Errorf("%d, %v", status, err)
	}
	// Other clients of a service of bytes may offer whatever its own protocol is.
	for _, protocols := range [][]string{nil, {"h2"}, {"postgresql", "h2", "http/1.1"}} {
		c := e.dial(e.pki.grant(time.Hour, "* /**"), protocols...)
		if got := c.ConnectionState().NegotiatedProtocol; got != "" {
			t.Errorf("%v: negotiated %q", protocols, got)
		}
	}
}

// TestConnectorOtherProxies: another maker's proxy knows nothing of carriers.
func TestConnectorOtherProxies(t *testing.T) {
	p := newPKI(t)
	base := func(protocols ...string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{p.serviceSVID("payments")}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13, NextProtos: protocols}
	}
	for name, protocols := range map[string][]string{"none": nil, "HTTP/1 alone": {"http/1.1"}} {
		t.Run("http/"+name, func(t *testing.T) {
			var dialled atomic.Int64
			srv := httptest.NewUnstartedServer(http.HandlerFunc(echoHandler))
			srv.TLS = base(protocols...)
			srv.Config.Protocols = new(http.Protocols)
			srv.Config.Protocols.SetHTTP1(true)
			srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					dialled.Add(1)
				}
			}
			srv.StartTLS()
			t.Cleanup(srv.Close)
			e := &env{t: t, pki: p, addr: srv.Listener.Addr().String()}
			addr := e.connect(e.connectorConfig(fixedSource{p.grant(time.Hour, "GET /**")}), "127.0.0.1:0")
			for range 5 {
				if a, err := plainGet(t, addr, "/a"); err != nil || a.status != 200 || a.seen(t).Proto != "HTTP/1.1" {
					t.Fatalf("%+v, %v", a, err)
				}
			}
			if n := dialled.Load(); n > 2 { // the first finds out
				t.Errorf("%d connections for 5 requests", n)
			}
		})
	}
	for name, protocols := range map[string][]string{"none": nil, "its own, and no other": {"postgresql"}} {
		t.Run("tcp/"+name, func(t *testing.T) {
			ln, err := tls.Listen("tcp", "127.0.0.1:0", base(protocols...))
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			t.Cleanup(wg.Wait)
			t.Cleanup(func() { _ = ln.Close() })
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					wg.Go(func() {
						_, _ = io.Copy(c, c)
						_ = c.Close()
					})
				}
			})
			e := &env{t: t, pki: p, addr: ln.Addr().String()}
			cfg := e.connectorConfig(fixedSource{p.grant(time.Hour, "tcp")})
			cfg.TCP = true
			addr := e.connect(cfg, "127.0.0.1:0")
			for range 3 {
				c := dialLocal(t, addr)
				if _, err := io.WriteString(c, "hello"); err != nil {
					t.Fatal(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
}
