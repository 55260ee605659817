package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// say writes text on a connection of its own, ends its half of it if it is to,
// and returns all that comes back.
func say(t testing.TB, addr, text string, half bool) (string, error) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if hc, ok := c.(halfCloser); ok && half {
		_ = hc.CloseWrite()
	}
	got, err := io.ReadAll(c)
	return string(got), err
}

// TestConnectorTargets: what net/url would take for a host, and another path be
// asked for than was, is not carried at all.
func TestConnectorTargets(t *testing.T) {
	var asked atomic.Int64
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		echoHandler(w, r)
	})})
	addr := e.connect(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "* /**")}), "127.0.0.1:0")
	for line, want := range map[string]string{
		"GET //payments.acme.test/admin": " 400 ",
		"GET //payments.acme.test":       " 400 ",
		"GET //":                         " 400 ",
		"OPTIONS *":                      " 403 ",
		"CONNECT payments.acme.test:443": " 403 ",
		"GET /..//admin":                 " 400 ", // the proxy's
	} {
		got, err := say(t, addr, line+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", false)
		if err != nil || !strings.HasPrefix(got, "HTTP/1.1"+want) {
			t.Errorf("%s: %q, %v", line, got, err)
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// TestConnectorHosts of other spellings of this machine, and of others.
func TestConnectorHosts(t *testing.T) {
	c, err := NewConnector((&env{t: t, pki: newPKI(t), addr: "127.0.0.1:1"}).connectorConfig(fixedSource{}))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"127.0.0.1:80@": false, "127.0.0.1:80@elsewhere.test": false, "127.0.0.1:8a": false, "localhost:-1": false, "[::1": false, "[::1]x": false,
		"[::1]:80]": false, "::1": false, "[127.0.0.1]": false, "[localhost]": false,
		"127.0.0.1": true, "127.0.0.1:80": true, "127.9.9.9:80": true, "[::1]": true, "[::1]:80": true,
		"localhost": true, "LOCALHOST:80": true, "payments.acme.test": true, "Payments.acme.test:9443": true,
		"": false, ":80": false, "0.0.0.0:80": false, "[::]:80": false, "2130706433": false, "127.1": false, "0x7f.0.0.1": false,
		"localhost.": false, "localhost.evil.test": false, "localhost:80:80": false, "127.0.0.1.evil.test": false,
		"evil.test": false, "payments.acme.test.evil.test": false, "acme.test": false, "[::1%25lo]": false, "10.0.0.1": false,
	} {
		if got := c.ownHost(host); got != want {
			t.Errorf("%q: %t, want %t", host, got, want)
		}
	}
}

// TestConnectorTimes: who says nothing, or one byte at a time, is not waited for.
func TestConnectorTimes(t *testing.T) {
	p := newPKI(t)
	cfg := (&env{t: t, pki: p, addr: "127.0.0.1:1"}).connectorConfig(sourceFunc(func(context.Context) (*tls.Certificate, error) {
		return nil, errors.New("none")
	}))
	synctest.Test(t, func(t *testing.T) {
		c, err := NewConnector(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ln := newHandoff(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		var serving sync.WaitGroup
		serving.Go(func() {
			if err := c.Serve(ctx, ln); err != nil {
				t.Error(err)
			}
		})
		for name, text := range map[string]string{
			"silent":         "",
			"slow head":      "GET / HTTP/1.1\r\nHost: local",
			"idle after one": "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
		} {
			near, far := net.Pipe()
			if !ln.give(far) {
				t.Fatal("not listening")
			}
			began := time.Now()
			go func() { _, _ = io.WriteString(near, text) }()
			_, _ = io.Copy(io.Discard, near)
			if took := time.Since(began); took > 3*time.Minute {
				t.Errorf("%s: held for %s", name, took)
			}
		}
		stop()
		serving.Wait()
	})
}

// relay is a wire to the proxy that can fall silent, as a network that is left does.
type relay struct {
	addr   string
	silent atomic.Bool
}

func newRelay(t testing.TB, to string) *relay {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	r := &relay{addr: ln.Addr().String()}
	copying := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				_ = to.Close()
				return
			}
			if r.silent.Load() {
				continue // taken off the wire, and never heard of again
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", to)
			if err != nil {
				_ = near.Close()
				return
			}
			t.Cleanup(func() { _, _ = near.Close(), far.Close() })
			go copying(near, far)
			go copying(far, near)
		}
	}()
	return r
}

// TestConnectorSilentProxy: a proxy that is gone without a word holds up requests
// for seconds, and the next goes out on a new connection.
func TestConnectorSilentProxy(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	wire := newRelay(t, e.addr)
	cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "GET /**")})
	cfg.Address = wire.addr
	c, err := NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.silence = 200 * time.Millisecond
	addr := e.serveConnector(c, "127.0.0.1:0")
	if a, err := plainGet(t, addr, "/a"); err != nil || a.status != 200 {
		t.Fatalf("%+v, %v", a, err)
	}
	wire.silent.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/b", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatalf("a request to a silent proxy: %v", err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusBadGateway {
		t.Errorf("status %d", res.StatusCode)
	}
	wire.silent.Store(false)
	if a, err := plainGet(t, addr, "/c"); err != nil || a.status != 200 {
		t.Errorf("when it is back: %+v, %v", a, err)
	}
}

// TestConnectorTruncation: a download that ends without TLS saying so, as whoever
// can cut the wire can make it, does not look whole.
func TestConnectorTruncation(t *testing.T) {
	p := newPKI(t)
	for _, whole := range []bool{true, false} {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
			Certificates: []tls.Certificate{p.serviceSVID("payments")}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ln.Close() }()
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
			_, _ = io.WriteString(c, "half a download")
			if whole {
				return
			}
			if tc, ok := c.(*tls.Conn); ok {
				if hc, ok := tc.NetConn().(halfCloser); ok {
					_ = hc.CloseWrite()
				}
			}
			_, _ = io.Copy(io.Discard, c)
		}()
		e := &env{t: t, pki: p, addr: ln.Addr().String()}
		cfg := e.connectorConfig(fixedSource{p.grant(time.Hour, "tcp")})
		cfg.TCP = true
		got, err := say(t, e.connect(cfg, "127.0.0.1:0"), "", true)
		if whole && (err != nil || got != "half a download") {
			t.Errorf("a whole one: %q, %v", got, err)
		}
		if !whole && err == nil {
			t.Errorf("%q looks whole", got)
		}
	}
}

// hiccup is a listener that is out of file descriptors for once.
type hiccup struct {
	net.Listener
	once sync.Once
}

type outOfFiles struct{ error }

func (outOfFiles) Temporary() bool { return true }

func (h *hiccup) Accept() (net.Conn, error) {
	var err error
	h.once.Do(func() { err = outOfFiles{errors.New("too many open files")} })
	if err != nil {
		return nil, err
	}
	return h.Listener.Accept()
}

// halfOpen notes whether its other half was closed.
type halfOpen struct {
	bytes.Buffer
	over bool
}

func (h *halfOpen) CloseWrite() error {
	h.over = true
	return nil
}

// TestConnectorHandsOnNoEnd: what nobody has said is not handed on as an end, be it that a carrier was cut and
// closed under a stream, or that one direction was closed since the other has broken off.
func TestConnectorHandsOnNoEnd(t *testing.T) {
	closed := &net.OpError{Op: "write", Net: "tcp", Err: net.ErrClosed}
	for name, tt := range map[string]struct {
		from io.Reader
		want error
	}{
		"between pieces":   {&pieces{from: io.MultiReader(strings.NewReader("\x00\x04half"), iotest.ErrReader(closed))}, errTruncated},
		"within a piece":   {&pieces{from: io.MultiReader(strings.NewReader("\x00\x05half"), iotest.ErrReader(closed))}, errTruncated},
		"a closed program": {io.MultiReader(strings.NewReader("half"), iotest.ErrReader(closed)), nil},
	} {
		var to halfOpen
		var n atomic.Int64
		if err := pipe(&to, tt.from, &n); !errors.Is(err, tt.want) || to.over || to.String() != "half" || n.Load() != 4 {
			t.Errorf("%s: %q, ended %t, %v", name, to.String(), to.over, err)
		}
	}
	var to halfOpen
	if err := pipe(&to, &pieces{from: strings.NewReader("\x00\x05whole\x00\x00")}, new(atomic.Int64)); err != nil || !to.over || to.String() != "whole" {
		t.Errorf("what was said: %q, ended %t, %v", to.String(), to.over, err)
	}
}

// TestConnectorAccepts: being out of file descriptors for a moment ends nothing.
func TestConnectorAccepts(t *testing.T) {
	up, all := tcpUpstream(t)
	e := start(t, options{upstream: up, edit: tcpService})
	cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "tcp")})
	cfg.TCP = true
	c, err := NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ListenLocal(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.runConnector(c, &hiccup{Listener: ln})
	if got, err := say(t, ln.Addr().String(), "hello", true); err != nil || got != "got 5" {
		t.Fatalf("%q, %v", got, err)
	}
	<-all
}

// TestConnectorStops though a program has gone over to WebSocket and neither
// reads nor writes any more.
func TestConnectorStops(t *testing.T) {
	var sent atomic.Int64
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		for {
			n, err := c.Write(make([]byte, 64<<10))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})})
	c, err := NewConnector(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "GET /ws")}))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ListenLocal(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := contextWithCancel(t)
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx, ln) }()
	local, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = local.Close() }()
	if _, err := io.WriteString(local, "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReaderSize(local, 16).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 101 ") {
		t.Fatalf("%q, %v", line, err)
	}
	// The wires fill up; at the latest the last buffer before the program's is full then.
	e.eventually("standstill", func() bool {
		before := sent.Load()
		time.Sleep(100 * time.Millisecond)
		return before > 0 && sent.Load() == before
	})
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("it does not stop")
	}
}
