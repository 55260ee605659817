package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestCrossingFramings: every way in which the upstream's answer may end arrives
// at an HTTP/2 client as one that ends.
func TestCrossingFramings(t *testing.T) {
	p := newPKI(t)
	cert := p.grant(time.Hour, "* /**")
	for _, tt := range []struct {
		name, method, answer string
		status               int
		body                 string
		header               [2]string // the value of one
		trailer              string    // of X-Sum
	}{
		{"a length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\nX-A: c\r\n\r\nok", 200, "ok", [2]string{"X-A", "b|c"}, ""},
		{"a length of 0", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", [2]string{"Content-Length", "0"}, ""},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, "", [2]string{"Content-Length", "5"}, ""},
		{"HEAD of chunks", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, "", [2]string{"Transfer-Encoding", ""}, ""},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n", 304, "", [2]string{"Content-Length", ""}, ""},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", [2]string{"Content-Length", ""}, ""},
		{"after interim answers", "GET", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", [2]string{"Link", ""}, ""},
		{"Connection names a header", "GET", "HTTP/1.1 200 OK\r\nX-Hop: 1\r\nConnection: X-Hop, keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, "ok", [2]string{"X-Hop", ""}, ""},
		{"chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3\r\nay!\r\n0\r\n\r\n", 200, "okay!", [2]string{"Transfer-Encoding", ""}, ""},
		{"declared trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", 200, "ok", [2]string{}, "1"},
		{"trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n", 200, "ok", [2]string{}, "1"},
		{"no type is guessed", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", 200, "<html>", [2]string{"Content-Type", ""}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := start(t, options{pki: p, upstream: dripping(t, tt.answer)})
			c := e.client(cert, true)
			for range 2 { // the connection to the upstream goes on behind it
				req, err := http.NewRequestWithContext(t.Context(), tt.method, "https://"+e.addr+"/a", http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err != nil || res.StatusCode != tt.status || string(body) != tt.body {
					t.Errorf("%d %q, %v", res.StatusCode, body, err)
				}
				if got := strings.Join(res.Header.Values(tt.header[0]), "|"); tt.header[0] != "" && got != tt.header[1] {
					t.Errorf("%s: %q", tt.header[0], got)
				}
				if got := res.Trailer.Get("X-Sum"); got != tt.trailer {
					t.Errorf("trailer %q", got)
				}
			}
		})
	}
	t.Run("until the connection ends", func(t *testing.T) {
		e := start(t, options{pki: p, upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			if _, ok := took(r); ok {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nall of it")
			}
		})})
		if a := e.must(e.client(cert, true), "GET", "/a"); a.status != 200 || a.body != "all of it" {
			t.Errorf("%d %q", a.status, a.body)
		}
		e.record("it", func(r logLine) bool { return r.Status == 200 && r.BytesOut == 9 && r.Reason == "" })
	})
}

// TestCrossingBodies: what the upstream reads of an HTTP/2 client's body, byte for
// byte. A length is kept to, and everything else is in chunks of ours.
func TestCrossingBodies(t *testing.T) {
	got := make(chan string, 1)
	e := start(t, options{upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.RequestURI == "/reset" {
				got <- "a head"
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				got <- "broken off: " + req.RequestURI
				return
			}
			got <- fmt.Sprintf("%s %s %v %d %q %q close=%v te=%q", req.Method, req.RequestURI, req.TransferEncoding, req.ContentLength,
				body, req.Trailer.Get("X-Sum"), req.Close, req.Header.Get("Te"))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})})
	s := e.h2session(e.pki.grant(time.Hour, "* /**"))
	defer func() { _ = s.conn.Close() }()
	next := func(want string) {
		t.Helper()
		select {
		case what := <-got:
			if what != want {
				t.Errorf("the upstream read %s, want %s", what, want)
			}
		case <-time.After(patience):
			t.Fatalf("the upstream read nothing, want %s", want)
		}
	}
	s.send(1, h2fields("POST", "/none"), true)
	next(`POST /none [] 0 "" "" close=false te=""`)
	s.send(3, h2fields("POST", "/length", [2]string{"content-length", "4"}), false)
	s.must(s.fr.WriteData(3, false, []byte("da")))
	s.must(s.fr.WriteData(3, true, []byte("ta")))
	next(`POST /length [] 4 "data" "" close=false te=""`)
	s.send(5, h2fields("POST", "/chunks", [2]string{"trailer", "x-sum, x-hallpass-subject"}, [2]string{"te", "trailers"}), false)
	s.must(s.fr.WriteData(5, false, []byte("da")))
	s.must(s.fr.WriteData(5, false, []byte("ta")))
	s.send(5, [][2]string{{"x-sum", "1"}, {"x-hallpass-subject", "root"}}, true)
	next(`POST /chunks [chunked] -1 "data" "1" close=false te="trailers"`)
	s.send(7, h2fields("GET", "/get"), false)
	s.must(s.fr.WriteData(7, true, []byte("body")))
	next(`GET /get [chunked] -1 "body" "" close=true te=""`)
	// Half a body never looks whole, be it the client or its own word that breaks it off.
	s.send(9, h2fields("POST", "/reset"), false)
	s.must(s.fr.WriteData(9, false, []byte("half")))
	next("a head") // one that is reset before it has gone out goes nowhere
	s.must(s.fr.WriteRSTStream(9, 8))
	next("broken off: /reset")
	s.send(11, h2fields("POST", "/short", [2]string{"content-length", "9"}), false)
	s.must(s.fr.WriteData(11, true, []byte("half")))
	next("broken off: /short")
}

// TestCrossingBroken: what goes wrong behind a good head resets the stream.
func TestCrossingBroken(t *testing.T) {
	p := newPKI(t)
	for name, text := range brokenBodies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t, options{pki: p, upstream: breaksOff(t, text)})
			a, err := e.do(e.client(p.grant(time.Hour, "GET /**"), true), "GET", "/a")
			if err == nil {
				t.Errorf("it looks whole: %d %q", a.status, a.body)
			}
			e.record("it", func(r logLine) bool { return r.Path == "/a" && r.Reason == reasonUpstreamBroke })
		})
	}
}

// TestCrossingUnread: an upstream that breaks off before it has all of a body is to blame, not the
// client, which is told so: it would take a reset stream for one that it may open again.
func TestCrossingUnread(t *testing.T) {
	for name, tt := range map[string]struct {
		upstream string
		length   [][2]string
	}{
		"a length":     {rawUpstream(t, func(_ int, _ net.Conn, r *bufio.Reader) { _, _ = http.ReadRequest(r) }), [][2]string{{"content-length", "4"}}},
		"chunks":       {rawUpstream(t, func(_ int, _ net.Conn, r *bufio.Reader) { _, _ = http.ReadRequest(r) }), nil},
		"HTTP/2 there": {h2cServer(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), nil},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, options{upstream: tt.upstream})
			s := e.h2session(e.pki.grant(time.Hour, "* /**"))
			defer func() { _ = s.conn.Close() }()
			s.send(1, h2fields("POST", "/a", tt.length...), false)
			s.must(s.fr.WriteData(1, false, []byte("da")))
			s.next("answer", func(f http2.Frame) bool {
				h, ok := f.(*http2.MetaHeadersFrame)
				if reset, is := f.(*http2.RSTStreamFrame); is {
					t.Fatalf("%v", reset)
				}
				if ok && h.PseudoValue("status") != "502" {
					t.Errorf("status %s", h.PseudoValue("status"))
				}
				return ok
			})
			e.record("it", func(r logLine) bool { return r.Path == "/a" && r.Status == 502 && r.Reason == reasonUpstream })
		})
	}
}

// TestCrossingHeads: nothing in an HTTP/2 header becomes a line of its own, whoever
// let it through before.
func TestCrossingHeads(t *testing.T) {
	for name, h := range map[string]http.Header{
		"CRLF in a value": {"X": {"a\r\nX-Hallpass-Subject: root"}},
		"LF in a value":   {"X": {"ok", "a\nb"}},
		"NUL in a value":  {"X": {"a\x00"}},
		"CRLF in a name":  {"X: a\r\nY": {"b"}},
		"colon in a name": {"X:": {"b"}},
		"no name":         {"": {"b"}},
	} {
		c := &crossing{x: &exchange{c: &conn{}, r: &http.Request{Method: "GET", RequestURI: "/a", Host: "localhost", Header: h}}}
		if b, bad := c.compose(nil, &shape{}); bad == nil {
			t.Errorf("%s: %q", name, b)
		}
	}
}

// TestCrossingLengths: a body that is longer than it was said to be is broken off before
// a byte of it could begin the next request, and one that is shorter never ends.
func TestCrossingLengths(t *testing.T) {
	for body, whole := range map[string]bool{"body": true, "bodyGET /admin HTTP/1.1\r\n": false, "bod": false, "": false} {
		near, far := net.Pipe()
		got := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(far) // its end is what is looked at
			got <- string(b)
		}()
		from := &requestBody{ReadCloser: io.NopCloser(strings.NewReader(body))}
		err := countedTo(&backend{Conn: near}, from, 4, make([]byte, 64))
		_ = near.Close()
		if sent := <-got; (err == nil) != whole || len(sent) > 4 || from.failed.Load() == whole {
			t.Errorf("%q: sent %q, %v", body, sent, err)
		}
	}
}
