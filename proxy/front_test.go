package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// rawUpstream runs script on each connection, with its number from 1 on, and
// closes it afterwards.
func rawUpstream(t testing.TB, script func(n int, c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		all.Wait()
	})
	all.Go(func() {
		for n := 1; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = c.Close() }()
				if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
					t.Error(err)
				}
				script(n, c, bufio.NewReader(c))
			})
		}
	})
	return "http://" + ln.Addr().String()
}

// dripping answers each request alike, in the smallest pieces.
func dripping(t testing.TB, answer string) string {
	t.Helper()
	return rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for {
			if _, ok := took(r); !ok {
				return
			}
			for i := range len(answer) {
				if _, err := io.WriteString(c, answer[i:i+1]); err != nil {
					return
				}
			}
		}
	})
}

// took reads one request and its body off a connection, and says whether there was one.
func took(r *bufio.Reader) (*http.Request, bool) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil, false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return req, err == nil
}

// fixed answers every request with text.
func fixed(t testing.TB, text string) string {
	t.Helper()
	return rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for {
			if _, ok := took(r); !ok {
				return
			}
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	})
}

const getA = "GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"

// malformedAnswers are heads that two readers take for different answers, or for
// different numbers of them.
var malformedAnswers = map[string]string{
	"length and chunks":       "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"two lengths":             "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
	"a list of lengths":       "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc",
	"a length with a sign":    "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
	"a length that overflows": "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nabc",
	"another encoding":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
	"chunked twice":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"chunks in HTTP/1.0":      "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"a folded header":         "HTTP/1.1 200 OK\r\nX: 1\r\n Content-Length: 3\r\n\r\nabc",
	"a blank before a colon":  "HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc",
	"no colon":                "HTTP/1.1 200 OK\r\nContent-Length\r\n\r\n",
	"bare LF in the head":     "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
	"bare LF ends the head":   "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\nHTTP/1.1 200 OK\r\n\r\n",
	"bare CR":                 "HTTP/1.1 200 OK\r\nX: a\rContent-Length: 3\r\n\r\nabc",
	"NUL":                     "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
	"another version":         "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
	"a status of two digits":  "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
	"a status of four":        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
	"a status below 100":      "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
	"a body in a 204":         "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
	"chunks in a 204":         "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"a body in a 103":         "HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	"a switch nobody asked":   "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	"no end of 1xx":           strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 50) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	"not HTTP":                "SSH-2.0-x\r\n\r\n",
}

// TestMalformedAnswers: each is refused with 502, once, and nothing of it reaches
// the client; its connection is not used again.
func TestMalformedAnswers(t *testing.T) {
	p := newPKI(t)
	both(t, func(t *testing.T, h2 bool) {
		for name, text := range malformedAnswers {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				e := start(t, options{pki: p, upstream: rawUpstream(t, func(n int, c net.Conn, r *bufio.Reader) {
					for {
						if _, ok := took(r); !ok {
							return
						}
						answer := text
						if n > 1 {
							answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
						}
						if _, err := io.WriteString(c, answer); err != nil {
							return
						}
					}
				})})
				c := e.client(p.grant(time.Hour, "GET /**"), h2)
				a := e.must(c, "GET", "/a")
				if a.status != http.StatusBadGateway || a.problem(t).Code != reasonUpstream {
					t.Errorf("%d %q", a.status, a.body)
				}
				if a := e.must(c, "GET", "/b"); a.status != 200 || a.body != "good" {
					t.Errorf("the next: %d %q", a.status, a.body)
				}
				r := e.record("it", func(r logLine) bool { return r.Path == "/a" })
				if r.Status != 502 || r.Reason != reasonUpstream || r.Decision != decisionAllow {
					t.Errorf("record %+v", r)
				}
			})
		}
	})
}

// brokenBodies are answers with a good head and a body that cannot be whole.
var brokenBodies = map[string]string{
	"cut off":              "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhalf",
	"cut off in a chunk":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n9\r\nhalf",
	"cut off after chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n4\r\nhalf\r\n",
	"cut off in trailers":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n4\r\nhalf\r\n0\r\nX: 1\r\n",
	"a chunk extension":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nhalf\r\n0\r\n\r\n",
	"bare LF in a chunk":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\nhalf\r\n0\r\n\r\n",
	"a chunk too long":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalfx\r\n0\r\n\r\n",
	"a framing trailer":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nContent-Length: 3\r\n\r\n",
}

// breaksOff is an upstream that answers with text, and ends there if text says so.
func breaksOff(t testing.TB, text string) string {
	t.Helper()
	return rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		if _, ok := took(r); ok {
			_, _ = io.WriteString(c, text)
		}
		if !strings.Contains(text, "Connection: close") {
			_, _ = r.ReadByte() // until the proxy closes it
		}
	})
}

// TestBrokenBodies: what goes wrong behind a good head never looks whole.
func TestBrokenBodies(t *testing.T) {
	p := newPKI(t)
	for name, text := range brokenBodies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t, options{pki: p, upstream: breaksOff(t, text)})
			conn := e.dial(p.grant(time.Hour, "GET /**"), "http/1.1")
			if _, err := io.WriteString(conn, getA); err != nil {
				t.Fatal(err)
			}
			got, err := readWhole(conn)
			if err == nil {
				t.Errorf("it looks whole: %q", got)
			}
			e.record("it", func(r logLine) bool { return r.Path == "/a" && r.Reason == reasonUpstreamBroke })
		})
	}
}

// readWhole reads one answer to its end, as a client does that trusts its framing.
func readWhole(c net.Conn) (string, error) {
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(res.Body)
	return string(body), errors.Join(err, res.Body.Close())
}

// TestAnswerFramings: every way in which a body may end arrives as one that the
// client understands.
func TestAnswerFramings(t *testing.T) {
	p := newPKI(t)
	cert := p.grant(time.Hour, "* /**")
	for _, tt := range []struct{ name, request, answer, want, not string }{
		{"HEAD", "HEAD /a HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "Content-Length: 5\r\n", ""},
		{"HEAD of chunks", "HEAD /a HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\n", "chunked"},
		{"304 with a length", getA, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n", "ETag: x\r\n", ""},
		{"204", getA, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 No Content\r\n", "Content-Length"},
		{"no reason", getA, "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 \r\n", ""},
		{"after interim answers", getA, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "\r\n\r\nok", "Link"},
		{"Connection names a header", getA, "HTTP/1.1 200 OK\r\nX-Hop: 1\r\nConnection: X-Hop\r\nContent-Length: 2\r\n\r\nok", "\r\n\r\nok", "X-Hop"},
		{"chunks and trailers", getA, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", "2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", ""},
		{"chunks to HTTP/1.0", "GET /a HTTP/1.0\r\nHost: localhost\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n3\r\nay!\r\n0\r\nX-Sum: 1\r\n\r\n", "Connection: close\r\n\r\nokay!", "X-Sum"},
		{"a date is added", getA, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "Date: ", ""},
		{"a date is left", getA, "HTTP/1.1 200 OK\r\ndate: then\r\nContent-Length: 2\r\n\r\nok", "date: then\r\n", "Date: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := start(t, options{pki: p, upstream: dripping(t, tt.answer)})
			// The connection goes on behind it, or ends if it must.
			got := e.raw(cert, tt.request+strings.Replace(tt.request, "HTTP/1.1\r\n", "HTTP/1.1\r\nConnection: close\r\n", 1))
			answers := 2
			if strings.Contains(tt.request, "HTTP/1.0") {
				answers = 1
			}
			if n := strings.Count(got, "HTTP/1.1 "); n != answers || strings.Count(got, tt.want) != answers || tt.not != "" && strings.Contains(got, tt.not) {
				t.Errorf("%d answers: %q", n, got)
			}
		})
	}
	t.Run("until the connection ends", func(t *testing.T) {
		e := start(t, options{pki: p, upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			if _, ok := took(r); ok {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nall of it")
			}
		})})
		got := e.raw(cert, getA)
		if !strings.HasSuffix(got, "Connection: close\r\n\r\nall of it") {
			t.Errorf("%q", got)
		}
		e.record("it", func(r logLine) bool { return r.Status == 200 && r.BytesOut == 9 && r.Reason == "" })
	})
}

// TestAnswersNobodyAskedFor: an upstream that says more than it was asked, be it
// with an answer or later, does not have that taken for the answer to the next request.
func TestAnswersNobodyAskedFor(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
		for name, later := range map[string]bool{"at once": false, "later": true} {
			t.Run(name, func(t *testing.T) {
				said := make(chan struct{}, 16)
				e := start(t, options{upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
					for {
						req, ok := took(r)
						if !ok {
							return
						}
						answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.RequestURI), req.RequestURI)
						if !later {
							_, _ = io.WriteString(c, answer+poison)
							continue
						}
						_, _ = io.WriteString(c, answer)
						time.Sleep(20 * time.Millisecond) // the answer is read without it
						_, _ = io.WriteString(c, poison)
						said <- struct{}{}
					}
				})})
				cert := e.pki.grant(time.Hour, "GET /**")
				for i := range 5 {
					path := fmt.Sprintf("/victim/%d", i)
					if a := e.must(e.client(cert, h2), "GET", path); a.status != 200 || a.body != path {
						t.Errorf("%s was answered with %d %q", path, a.status, a.body)
					}
					if later {
						<-said
						// What was written has arrived: loopback delivers before write returns.
					}
				}
			})
		}
	})
}

// TestConnectionsThatWereClosed: a request that found a connection closed is sent
// again where the upstream cannot have acted on it, and never otherwise.
func TestConnectionsThatWereClosed(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		var posts, gets atomic.Int32
		e := start(t, options{upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			for first := true; ; first = false {
				req, ok := took(r)
				if !ok {
					return
				}
				if req.Method == http.MethodPost {
					posts.Add(1)
				} else if req.RequestURI == "/again" {
					gets.Add(1)
				}
				if !first {
					return // read, perhaps acted on, not answered
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})})
		c := e.client(e.pki.grant(time.Hour, "* /**"), h2)
		warm := func() {
			t.Helper()
			if a := e.must(c, "GET", "/warm"); a.status != 200 {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
		warm()
		if a := e.must(c, "POST", "/act"); a.status != http.StatusBadGateway || posts.Load() != 1 {
			t.Errorf("POST: %d, sent %d times", a.status, posts.Load())
		}
		warm()
		if a := e.must(c, "GET", "/again"); a.status != 200 || gets.Load() != 2 {
			t.Errorf("GET: %d, sent %d times", a.status, gets.Load())
		}
	})
}

// TestClosedWhileIdle: a connection that the upstream closed in the meantime costs nothing.
func TestClosedWhileIdle(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		closed := make(chan struct{}, 8)
		e := start(t, options{upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			if _, ok := took(r); ok {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
			_ = c.Close()
			closed <- struct{}{}
		})})
		c := e.client(e.pki.grant(time.Hour, "* /**"), h2)
		for range 3 {
			if a := e.must(c, "POST", "/a"); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
			<-closed
		}
	})
}

// TestEarlyAnswer: an upstream that has heard enough is heard, and the connection
// ends behind its answer, since the rest of the body is not wanted.
func TestEarlyAnswer(t *testing.T) {
	e := start(t, options{upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!")
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20)) // long enough for the answer to be read
	})})
	for name, framing := range map[string]string{"length": "Content-Length: 100000000", "chunks": "Transfer-Encoding: chunked"} {
		c := e.dial(e.pki.grant(time.Hour, "POST /**"), "http/1.1")
		if _, err := io.WriteString(c, "POST /a HTTP/1.1\r\nHost: localhost\r\n"+framing+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 413 ") || !strings.HasSuffix(string(got), "Connection: close\r\n\r\nno!") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestExpect: the client hears that it may go on from us, and only if it may.
func TestExpect(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	cert := e.pki.grant(time.Hour, "PUT /a")
	for path, want := range map[string][]string{"/a": {"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\n"}, "/b": {"HTTP/1.1 403 Forbidden\r\n"}} {
		c := e.dial(cert, "http/1.1")
		r := bufio.NewReader(c)
		if _, err := io.WriteString(c, "PUT "+path+" HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		for i, line := range want {
			got := make([]byte, len(line))
			if _, err := io.ReadFull(r, got); err != nil || string(got) != line {
				t.Fatalf("%s: %q, %v, want %q", path, got, err, line)
			}
			if i == 0 && len(want) > 1 {
				if _, err := io.WriteString(c, "hello"); err != nil {
					t.Fatal(err)
				}
			}
		}
		rest, err := io.ReadAll(r)
		if err != nil || path == "/a" && (!strings.Contains(string(rest), `"Body":"hello"`) || strings.Contains(string(rest), "Expect")) {
			t.Errorf("%s: %q, %v", path, rest, err)
		}
	}
}

// TestChunkSizesAreOurs: an upstream that counts chunks in 32 bits must not see
// one of 4 GB and three bytes, nor any spelling of a size but the shortest.
func TestChunkSizesAreOurs(t *testing.T) {
	got := make(chan string, 1)
	e := start(t, options{upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		var all []byte
		for !strings.HasSuffix(string(all), "\r\n0\r\n\r\n") {
			b, err := r.ReadByte()
			if err != nil {
				return
			}
			all = append(all, b)
		}
		_, body, _ := strings.Cut(string(all), "\r\n\r\n")
		got <- body
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})})
	a := e.raw(e.pki.grant(time.Hour, "POST /**"), "POST /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n000000000003\r\nabc\r\n0A\r\n0123456789\r\n000\r\n\r\n")
	if !strings.HasPrefix(a, "HTTP/1.1 200 ") {
		t.Fatalf("%q", a)
	}
	if s := <-got; s != "3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n" {
		t.Errorf("the upstream read %q", s)
	}
	huge := e.dial(e.pki.grant(time.Hour, "POST /**"), "http/1.1")
	if _, err := io.WriteString(huge, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n100000003\r\nabc\r\n0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if s := <-got; !strings.HasPrefix(s, "c\r\nabc\r\n0\r\n\r\n") && !strings.HasPrefix(s, "3\r\nabc\r\n") && !strings.HasPrefix(s, "a\r\nabc") {
		t.Errorf("the upstream read %q", s)
	}
}

// TestRestingConnection: one that was silent for long, and has given its memory
// back, is served as if it had not.
func TestRestingConnection(t *testing.T) {
	t.Parallel()
	e := start(t, options{upstream: fixed(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")})
	c := e.dial(e.pki.grant(time.Hour, "GET /**"), "http/1.1")
	r := bufio.NewReader(c)
	for i := range 2 {
		if i > 0 {
			time.Sleep(settle + settle/2)
		}
		if _, err := io.WriteString(c, getA); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil || string(body) != "ok" {
			t.Errorf("%q, %v", body, err)
		}
	}
}
