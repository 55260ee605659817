package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/internal/near"
)

// fuzzScope is what the fuzzed client may do.
var fuzzScope = []string{"GET,POST /a/**", "GET /ws"}

// strictUpstream reads requests off its connections as the pickiest reader would:
// CRLF only, one framing header, nothing between requests. What it cannot read so
// is a violation, and so is a request that the scope does not cover.
type strictUpstream struct {
	mu   sync.Mutex // owns what follows
	bad  []string
	seen map[string][]reading // by x-forwarded-for: what arrived whole
}

func (u *strictUpstream) complain(what string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bad = append(u.bad, what)
}

func (u *strictUpstream) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	var raw bytes.Buffer
	r := bufio.NewReader(io.TeeReader(c, &raw))
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return // between requests, or in the middle of one that was given up
		}
		method, rest, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		target, version, ok := strings.Cut(rest, " ")
		if !ok || version != "HTTP/1.1" || strings.ContainsAny(target, " \t\r\n\x00") {
			u.complain("request line " + line)
			return
		}
		h, ok := u.head(r)
		if !ok {
			return
		}
		if h.hosts != 1 {
			u.complain("not one Host")
		}
		if !inFuzzScope(method, target) {
			u.complain("out of scope: " + method + " " + target)
		}
		body := io.LimitReader(r, h.length)
		if h.chunked {
			body = chunkReader(r)
		}
		data, err := io.ReadAll(body)
		if h.chunked && errors.Is(err, io.ErrClosedPipe) || !h.chunked && err == nil && int64(len(data)) == h.length {
			u.mu.Lock()
			u.seen[h.from] = append(u.seen[h.from], reading{method, target, h.host, string(data)})
			u.mu.Unlock()
		}
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

// chunkReader reads a chunked body up to its end, which has no trailers here or
// only those that a chunked reader of net/http skips.
func chunkReader(r *bufio.Reader) io.Reader {
	res, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), r)), nil) //nolint:bodyclose // the caller reads it to its end
	if err != nil {
		return iotestErr{err}
	}
	return closing{res.Body}
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

// closing ends the upstream's connection after a chunked body: what the reader
// above had buffered is lost to it.
type closing struct{ io.Reader }

func (c closing) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if err == io.EOF {
		err = io.ErrClosedPipe
	}
	return n, err
}

// upstreamHead is what the head of a request says to the upstream.
type upstreamHead struct {
	length     int64
	chunked    bool
	hosts      int
	host, from string
}

func (u *strictUpstream) head(r *bufio.Reader) (h upstreamHead, ok bool) {
	framing := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return h, false
		}
		if !strings.HasSuffix(line, "\r\n") {
			u.complain("bare LF: " + line)
			return h, false
		}
		if line = strings.TrimSuffix(line, "\r\n"); line == "" {
			if framing > 1 {
				u.complain("two framing headers")
			}
			return h, true
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if strings.ContainsAny(line, "\r\x00") || name == "" || strings.ContainsAny(name, " \t") {
			u.complain("header line " + line)
		}
		var buf [foldedMax]byte
		switch folded := string(fold(buf[:0], name)); {
		case folded == "content-length":
			n, fine := plainNumber(value)
			if !fine {
				u.complain(line)
			}
			h.length, framing = n, framing+1
		case folded == "transfer-encoding":
			if value != "chunked" {
				u.complain(line)
			}
			h.chunked, framing = true, framing+1
		case folded == "host":
			h.hosts++
			h.host = value
		case folded == "x-forwarded-for" && !strings.Contains(value, "evil"):
			h.from = value
		case strings.HasPrefix(folded, "x-hallpass-") && strings.Contains(value, "evil"),
			strings.HasPrefix(folded, "x-forwarded-") && strings.Contains(value, "evil"),
			ruleOf([]byte(folded)) == ruleOverride:
			u.complain(line)
		}
	}
}

// inFuzzScope reads a target naively, as an upstream would that trusts its proxy.
func inFuzzScope(method, target string) bool {
	path := pathOf(target)
	if path == "/ws" {
		return method == "GET"
	}
	if strings.Contains(path, "..") && strings.Contains(path, "/../") || strings.HasSuffix(path, "/..") || strings.Contains(strings.ToLower(path), "%2f") || strings.Contains(strings.ToLower(path), "%2e") {
		return false
	}
	return (method == "GET" || method == "POST") && strings.HasPrefix(path, "/a/")
}

// FuzzRequestBytes sends arbitrary bytes as an admitted client. Whatever they
// are, the upstream sees only plain requests that the scope allows, in the eyes of
// the pickiest reader, and those that arrive whole are, in method, target, host and
// body, what net/http reads in the client's bytes: there is no second reading.
func FuzzRequestBytes(f *testing.F) {
	for _, s := range smuggling {
		if len(s.text) < 2000 {
			f.Add([]byte(strings.Replace(s.text, " /a", " /a/x", 1)+"GET /a/2 HTTP/1.1\r\nHost: localhost\r\n\r\n"), uint16(2), byte('x'))
		}
	}
	for _, s := range []string{
		"GET /a/1?q#x HTTP/1.1\r\nHost: localhost\r\n\r\nGET /b HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST /a/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\nGET /b HTTP/1.1\r\nHost: localhost\r\n\r\nxxxxx",
		"POST /a/1 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /a/2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /a/%2e%2e/b HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /a/..;/b HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /a/1 HTTP/1.1\r\nHost: localhost\r\nX-Hallpass-Subject: evil\r\nx_forwarded_client_cert: evil\r\n\r\n",
		"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
		"GET /a/1 HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\nGET /a/2 HTTP/1.0\r\nHost: localhost\r\n\r\n",
		"POST /a/1 HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
	} {
		f.Add([]byte(s), uint16(2), byte('x'))
	}
	h := newFuzzHarness(f)
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		if len(data) > 8<<10 {
			return
		}
		for _, data := range near.Of(data, at, b) {
			h.exchange(t, data)
		}
	})
}

// fuzzHarness is a proxy's HTTP half over pipes: no sockets, no TLS handshakes.
type fuzzHarness struct {
	p    *Proxy
	up   *strictUpstream
	runs uint32 // numbers the exchanges, and gives each a client's address of its own
	adm  *admission
	pair tls.Certificate
}

func newFuzzHarness(f *testing.F) *fuzzHarness {
	p := newPKI(f)
	s := settings(f, p, f.TempDir())
	s.AccessLog.OnFailure = "allow"
	px, err := New(Config{Settings: s})
	if err != nil {
		f.Fatal(err)
	}
	h := &fuzzHarness{p: px, up: &strictUpstream{seen: map[string][]reading{}}, pair: p.grant(time.Hour, fuzzScope...)}
	px.up.backends.dial = func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		go h.up.serve(far) // ends when the transport closes near
		return near, nil
	}
	if h.adm, err = examine(chainOf(f, h.pair), px.keeper.cur.Load(), px.cfg, time.Now()); err != nil {
		f.Fatal(err)
	}
	return h
}

func chainOf(t testing.TB, c tls.Certificate) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range c.Certificate {
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, parsed)
	}
	return chain
}

// exchange sends data on a connection of its own and waits for its end.
func (h *fuzzHarness) exchange(t *testing.T, data []byte) {
	h.runs++
	wire := newWire(data)
	wire.from = net.IPv4(10, byte(h.runs>>16), byte(h.runs>>8), byte(h.runs))
	sock := &socket{Conn: wire}
	c := h.p.newConn(t.Context(), sock, h.adm, time.Now())
	sock.c = c
	go h.p.newFront(c, wire, nil).serve() // ends with the wire
	select {
	case <-wire.closed:
	case <-time.After(patience):
		t.Fatal("the connection does not end")
	}
	h.up.mu.Lock()
	defer h.up.mu.Unlock()
	for _, what := range h.up.bad {
		t.Errorf("the upstream saw %q", what)
	}
	checkReadings(t, data, h.up.seen[wire.from.String()])
	h.up.bad = nil
	delete(h.up.seen, wire.from.String())
}

// wire is a client that sends its bytes and waits for the answers: to a reader of
// more than one byte, which waits for a request, it is at its end; to a look-ahead of
// one byte, while an answer is under way, it says nothing for a second: that may be the
// last byte of a body, too, which does not come.
type wire struct {
	closed chan struct{}
	once   sync.Once
	from   net.IP

	mu     sync.Mutex // owns what follows
	data   []byte
	past   bool // the read deadline is
	wakeUp *sync.Cond
	end    bool
	gone   bool // it has said nothing for a second
}

func newWire(data []byte) *wire {
	w := &wire{data: data, closed: make(chan struct{})}
	w.wakeUp = sync.NewCond(&w.mu)
	return w
}

func (w *wire) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.end:
			return 0, net.ErrClosed
		case w.past:
			return 0, os.ErrDeadlineExceeded
		case len(w.data) > 0:
			n := copy(p, w.data)
			w.data = w.data[n:]
			return n, nil
		case len(p) > 1, w.gone:
			return 0, io.EOF
		}
		leaves := time.AfterFunc(time.Second, func() {
			w.mu.Lock()
			w.gone = true
			w.mu.Unlock()
			w.wakeUp.Broadcast()
		})
		w.wakeUp.Wait()
		leaves.Stop()
	}
}

func (w *wire) Close() error {
	w.mu.Lock()
	w.end = true
	w.mu.Unlock()
	w.wakeUp.Broadcast()
	w.once.Do(func() { close(w.closed) })
	return nil
}

func (w *wire) SetReadDeadline(t time.Time) error {
	w.mu.Lock()
	w.past = !t.IsZero() && t.Before(time.Now())
	w.mu.Unlock()
	w.wakeUp.Broadcast()
	return nil
}

func (w *wire) Write(p []byte) (int, error)        { return len(p), nil }
func (w *wire) CloseWrite() error                  { return nil }
func (w *wire) SetDeadline(t time.Time) error      { return w.SetReadDeadline(t) }
func (w *wire) SetWriteDeadline(_ time.Time) error { return nil }
func (w *wire) LocalAddr() net.Addr                { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

func (w *wire) RemoteAddr() net.Addr { return &net.TCPAddr{IP: w.from} }
