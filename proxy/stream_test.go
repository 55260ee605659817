package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestServerSentEvents: the head and each event arrive as they are sent, and the
// log tells of the stream while it runs.
func TestServerSentEvents(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		next := make(chan string)
		e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_ = http.NewResponseController(w).Flush()
			for {
				select {
				case s, ok := <-next:
					if !ok {
						return
					}
					_, _ = io.WriteString(w, s)
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		})})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+e.addr+"/events", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := e.client(e.pki.grant(time.Hour, "GET /events"), h2).Do(req) // returns with the head
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		r := bufio.NewReader(res.Body)
		for i := range 5 {
			want := fmt.Sprintf("data: %d\n", i)
			next <- want
			if got, err := r.ReadString('\n'); err != nil || got != want {
				t.Fatalf("%q, %v", got, err)
			}
		}
		open := e.anyRecord("the open stream", func(r logLine) bool { return r.Event == "open" })
		if open.Decision != decisionAllow || open.Grant == "" || open.Path != "/events" {
			t.Errorf("record %+v", open)
		}
		close(next)
		if _, err := r.ReadString('\n'); !errors.Is(err, io.EOF) {
			t.Errorf("the stream ended with %v", err)
		}
		e.record("its end", func(r logLine) bool { return r.Event == "end" && r.Path == "/events" && r.BytesOut == 40 })
	})
}

func wsUpstream(t testing.TB) string {
	t.Helper()
	return upstreamServer(t, echoSockets)
}

func echoSockets(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/refuse" {
		http.Error(w, "no websocket here", http.StatusTeapot)
		return
	}
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	for {
		kind, data, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, data); err != nil {
			return
		}
	}
}

func (e *env) websocket(ctx context.Context, cert tls.Certificate, path string) (*websocket.Conn, *http.Response, error) {
	return websocket.Dial(ctx, "wss://"+e.addr+path, &websocket.DialOptions{HTTPClient: e.client(cert, false)})
}

// TestWebSocket: a real client talks through; the end of it is recorded.
func TestWebSocket(t *testing.T) {
	e := start(t, options{upstream: wsUpstream(t)})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cert := e.pki.grant(time.Hour, "GET /ws", "GET /refuse")
	c, _, err := e.websocket(ctx, cert, "/ws") //nolint:bodyclose // the connection is the body's
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		text := strings.Repeat("x", i*100)
		if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != text {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Errorf("close: %v", err)
	}
	r := e.record("the end", func(r logLine) bool { return r.Kind == kindRequest && r.Event == "end" })
	if r.Protocol != "websocket" || r.Status != 101 || r.Permission != "GET /ws" || r.BytesIn == 0 || r.BytesOut == 0 || r.Reason != "" {
		t.Errorf("record %+v", r)
	}
	// An upstream that does not switch: its answer arrives, and nothing follows on
	// that connection.
	if _, res, err := e.websocket(ctx, cert, "/refuse"); err == nil || res == nil || res.StatusCode != http.StatusTeapot { //nolint:bodyclose // websocket.Dial has read it
		t.Errorf("%v, %v", res, err)
	}
	got := e.raw(cert, "GET /refuse HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if n := strings.Count(got, "HTTP/1.1 "); n != 1 || !strings.HasPrefix(got, "HTTP/1.1 418 ") {
		t.Errorf("%q", got)
	}
	if _, res, err := e.websocket(ctx, cert, "/other"); err == nil || res == nil || res.StatusCode != http.StatusForbidden { //nolint:bodyclose // websocket.Dial has read it
		t.Errorf("out of scope: %v, %v", res, err)
	}
}

// TestWebSocketEarlyBytes: frames that come with the request are the upstream's.
func TestWebSocketEarlyBytes(t *testing.T) {
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	got := make(chan string, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
		buf := make([]byte, 5)
		_, _ = io.ReadFull(r, buf)
		got <- string(buf)
	}()
	e := start(t, options{upstream: "http://" + ln.Addr().String()})
	answer := e.raw(e.pki.grant(time.Hour, "GET /ws"), "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x03abc")
	if !strings.HasPrefix(answer, "HTTP/1.1 101 ") || !strings.HasSuffix(answer, "hello") {
		t.Errorf("%q", answer)
	}
	if s := <-got; s != "\x81\x03abc" {
		t.Errorf("the upstream read %q", s)
	}
}

// tcpUpstream answers what it read, reversed in no way, once the client has said
// all; and tells what it read and how it ended.
type tcpSeen struct {
	data string
	err  error
}

func tcpUpstream(t testing.TB) (string, <-chan tcpSeen) {
	t.Helper()
	all := make(chan tcpSeen, 16)
	up := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		data, err := io.ReadAll(r)
		all <- tcpSeen{string(data), err}
		_, _ = fmt.Fprintf(c, "got %d", len(data))
	})
	return "tcp://" + hostOf(up), all
}

func tcpService(s *Settings) { s.Protocol, s.Hosts = "tcp", nil }

// TestTCP: bytes both ways, and a half-close that is one on the other side.
func TestTCP(t *testing.T) {
	up, all := tcpUpstream(t)
	e := start(t, options{upstream: up, edit: tcpService})
	c := e.dial(e.pki.grant(time.Hour, "tcp"))
	data := bytes.Repeat([]byte("0123456789"), 50000)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "got 500000" {
		t.Errorf("%q, %v", got, err)
	}
	if s := <-all; s.err != nil || s.data != string(data) {
		t.Errorf("the upstream read %d bytes, %v", len(s.data), s.err)
	}
	open := e.anyRecord("the beginning", func(r logLine) bool { return r.Event == "open" })
	end := e.record("the end", func(r logLine) bool { return r.Event == "end" })
	if open.Kind != kindConnection || open.Permission != "tcp" || open.Grant == "" || end.Grant != open.Grant || end.BytesIn != 500000 || end.BytesOut != 10 || end.Reason != "" || end.Decision != decisionAllow {
		t.Errorf("records %+v %+v", open, end)
	}
}

// TestTCPDenied: who may not gets the connection closed and the upstream hears nothing.
func TestTCPDenied(t *testing.T) {
	up, all := tcpUpstream(t)
	e := start(t, options{upstream: up, edit: tcpService})
	for reason, cert := range map[string]tls.Certificate{
		reasonNoGrant:      e.pki.identity(alice),
		reasonOutsideScope: e.pki.grant(time.Hour, "* /**"),
	} {
		c := e.dial(cert)
		_, _ = io.WriteString(c, "hello")
		if got, _ := io.ReadAll(c); len(got) > 0 {
			t.Errorf("%q", got)
		}
		r := e.record(reason, func(r logLine) bool { return r.Reason == reason })
		if r.Kind != kindConnection || r.Decision != decisionDeny || r.Subject != alice {
			t.Errorf("record %+v", r)
		}
	}
	select {
	case s := <-all:
		t.Errorf("the upstream read %q", s.data)
	default:
	}
	// And an HTTP service opens nothing to a tcp permission.
	web := start(t, options{upstream: upstreamServer(t, echoHandler)})
	if a := web.must(web.client(web.pki.grant(time.Hour, "tcp"), false), "GET", "/"); a.status != 403 {
		t.Errorf("status %d", a.status)
	}
}

// TestTCPTruncation: a socket that ends without TLS saying so, as an attacker on
// the wire can make it, must not look like the end of an upload.
func TestTCPTruncation(t *testing.T) {
	up, all := tcpUpstream(t)
	e := start(t, options{upstream: up, edit: tcpService})
	c := e.dial(e.pki.grant(time.Hour, "tcp"))
	if _, err := io.WriteString(c, "half an upload"); err != nil {
		t.Fatal(err)
	}
	e.anyRecord("the beginning", func(r logLine) bool { return r.Event == "open" })
	tcp, ok := c.NetConn().(*net.TCPConn)
	if !ok {
		t.Fatal("no TCP connection")
	}
	if err := tcp.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-all:
		if s.err == nil {
			t.Errorf("the upstream took %q for whole", s.data)
		}
	case <-time.After(patience):
		t.Error("the upstream waits")
	}
	e.record("the end", func(r logLine) bool { return r.Event == "end" && r.Reason == reasonClientGone })
}

// TestTCPUpstreamReset: and half a download must not look like a whole one.
func TestTCPUpstreamReset(t *testing.T) {
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "half a download")
		_, _ = c.Read(make([]byte, 1))
		breakOff(c)
	}()
	e := start(t, options{upstream: "tcp://" + ln.Addr().String(), edit: tcpService})
	c := e.dial(e.pki.grant(time.Hour, "tcp"))
	if _, err := io.ReadFull(c, make([]byte, 15)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "x")
	if got, err := io.ReadAll(c); err == nil {
		t.Errorf("the stream ended well after %q", got)
	}
	e.record("the end", func(r logLine) bool { return r.Event == "end" && r.Reason == reasonUpstreamBroke })
}

// TestUnixUpstream: a service on a socket.
func TestUnixUpstream(t *testing.T) {
	path := t.TempDir() + "/up.sock"
	ln, err := ListenLocal(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(echoHandler), ReadHeaderTimeout: patience}
	go func() { _ = srv.Serve(ln) }() // ends with Close
	t.Cleanup(func() { _ = srv.Close() })
	e := start(t, options{upstream: "unix://" + path})
	a := e.must(e.client(e.pki.grant(time.Hour, "GET /**"), true), "GET", "/a?b")
	if a.status != 200 || a.seen(t).Target != "/a?b" || !strings.HasPrefix(a.seen(t).Host, "127.0.0.1") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestClientLeaves: the upstream learns of it.
func TestClientLeaves(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		gone := make(chan struct{})
		begun := make(chan struct{})
		e := start(t, options{upstream: upstreamServer(t, func(_ http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
			close(gone)
		})})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-begun
			cancel()
		}()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+e.addr+"/a", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if res, err := e.client(e.pki.grant(time.Hour, "GET /a"), h2).Do(req); err == nil {
			_ = res.Body.Close()
			t.Error("an answer came")
		}
		select {
		case <-gone:
		case <-time.After(patience):
			t.Error("the upstream still works")
		}
		e.record("it", func(r logLine) bool { return r.Kind == kindRequest && r.Reason == reasonClientGone })
	})
}

// TestCutSaysNoGoodbye: whoever waits for a connection's context closes the TLS
// above its socket, which says close_notify, as at the end of a stream. A cut must
// have taken the socket away by then.
func TestCutSaysNoGoodbye(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	raw, peer := net.Pipe()
	t.Cleanup(func() { _ = peer.Close() })
	if err := raw.SetDeadline(time.Now().Add(time.Second)); err != nil { // nobody reads
		t.Fatal(err)
	}
	c := &conn{raw: raw, ctx: ctx}
	c.cancel = func(cause error) {
		if _, err := raw.Write([]byte("close_notify")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("when the connection's context ended, its socket took bytes: %v", err)
		}
		cancel(cause)
	}
	c.cut("expired")
	if ctx.Err() == nil || c.cutReason() != "expired" {
		t.Errorf("cut, and its context ended with %v for %q", ctx.Err(), c.cutReason())
	}
}
