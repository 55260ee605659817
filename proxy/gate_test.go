package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// smuggling is what has split one request in two between a proxy and an upstream
// that read it otherwise. net/http alone takes those marked so.
var smuggling = []struct {
	name, reason string
	status       int
	text         string
}{
	{"TE and CL (net/http takes it)", "te_and_cl", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"CL and TE", "te_and_cl", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"},
	{"CL twice, equal (net/http takes it)", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"},
	{"CL twice, different", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 30\r\n\r\nabc"},
	{"CL list", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3, 3\r\n\r\nabc"},
	{"CL with a sign", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: +3\r\n\r\nabc"},
	{"CL negative", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: -3\r\n\r\nabc"},
	{"CL hex", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x3\r\n\r\nabc"},
	{"CL empty", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length:\r\n\r\n"},
	{"CL overflowing", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n"},
	{"Content_Length (net/http takes it)", "content_length", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent_Length: 3\r\n\r\n"},
	{"TE identity", "transfer_encoding", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\n\r\n"},
	{"TE gzip, chunked", "transfer_encoding", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
	{"TE chunked twice", "transfer_encoding", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"TE chunked and a byte", "header", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n"},
	{"TE xchunked", "transfer_encoding", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
	{"TE with a blank before the colon", "header", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"},
	{"Transfer_Encoding (net/http takes it)", "transfer_encoding", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"TE on HTTP/1.0 (net/http takes it)", "transfer_encoding", 400, "POST /a HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"folded header (net/http takes it)", "folded_header", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nX-A: 1\r\n Transfer-Encoding: chunked\r\n\r\n"},
	{"folded with a tab", "folded_header", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nX-A: 1\r\n\tb\r\n\r\n"},
	{"first header folded", "folded_header", 400, "GET /a HTTP/1.1\r\n Host: localhost\r\n\r\n"},
	{"bare LF in the head (net/http takes it)", "bare_lf", 400, "GET /a HTTP/1.1\r\nHost: localhost\nX: 1\r\n\r\n"},
	{"bare LF everywhere", "bare_lf", 400, "GET /a HTTP/1.1\nHost: localhost\n\n"},
	{"bare LF ends the head", "bare_lf", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\n\nGET /b HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"bare CR in a header", "header", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nX: 1\rTransfer-Encoding: chunked\r\n\r\n"},
	{"bare CR in the request line", "target", 400, "GET /a\r HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"NUL in a header", "header", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n"},
	{"no colon", "header", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n"},
	{"empty name", "header", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n"},
	{"no Host", "missing_host", 400, "GET /a HTTP/1.1\r\nX: 1\r\n\r\n"},
	{"no Host on HTTP/1.0", "missing_host", 400, "GET /a HTTP/1.0\r\n\r\n"},
	{"Host twice", "duplicate_host", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n"},
	{"Host twice, equal", "duplicate_host", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"},
	{"absolute form (net/http takes it)", "target_form", 400, "GET http://localhost/a HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"absolute form of another host", "target_form", 400, "GET http://evil.test/a HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"asterisk form (net/http answers it)", "target_form", 400, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"CONNECT", "target_form", 400, "CONNECT upstream:80 HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"CONNECT with a path", "method", 400, "CONNECT /a HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"TRACE", "method", 400, "TRACE /a HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"lower-case method", "method", 400, "get /a HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"HTTP/0.9", "request_line", 400, "GET /a\r\n\r\n"},
	{"HTTP/2 over HTTP/1", "request_line", 400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	{"HTTP/1.2", "request_line", 400, "GET /a HTTP/1.2\r\nHost: localhost\r\n\r\n"},
	{"two spaces", "request_line", 400, "GET  /a HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"space in the target", "request_line", 400, "GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"leading empty line", "request_line", 400, "\r\nGET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"upgrade to h2c", "upgrade", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"},
	{"upgrade to websocket and h2c", "upgrade", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n"},
	{"two upgrades", "upgrade", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n"},
	{"upgrade to TLS", "upgrade", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n"},
	{"upgrade with a body", "upgrade", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc"},
	{"upgrade without Connection", "upgrade", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n"},
	{"upgrade by POST", "upgrade", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"},
	{"Connection names Cookie", "connection_option", 400, "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close, Cookie\r\nCookie: a=b\r\n\r\n"},
	{"another expectation", "expect", 400, "POST /a HTTP/1.1\r\nHost: localhost\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\na"},
	{"head too large", "head_too_large", 431, "GET /a HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("a", 70000) + "\r\n\r\n"},
	{"many headers", "too_many_headers", 431, "GET /a HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("X: 1\r\n", 200) + "\r\n"},
	{"target too long", "target_too_long", 414, "GET /" + strings.Repeat("a", 9000) + " HTTP/1.1\r\nHost: localhost\r\n\r\n"},
	{"chunk size with an extension (net/http takes it)", "bad_chunk", 400, chunked("3;a=b\r\nabc\r\n0\r\n\r\n")},
	{"chunk size with a blank", "bad_chunk", 400, chunked("3 \r\nabc\r\n0\r\n\r\n")},
	{"chunk size 0x", "bad_chunk", 400, chunked("0x3\r\nabc\r\n0\r\n\r\n")},
	{"chunk size overflowing", "bad_chunk", 400, chunked("10000000000000003\r\nabc\r\n0\r\n\r\n")},
	{"chunk size with bare LF (net/http takes it)", "bare_lf", 400, chunked("3\nabc\r\n0\r\n\r\n")},
	{"chunk end with bare LF", "bare_lf", 400, chunked("3\r\nabc\n0\r\n\r\n")},
	{"chunk longer than it says", "bad_chunk", 400, chunked("3\r\nabcd\r\n0\r\n\r\n")},
	{"chunked trailer with framing", "trailer", 400, chunked("3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n")},
	{"chunked trailer folded", "folded_header", 400, chunked("3\r\nabc\r\n0\r\nX: 1\r\n 2\r\n\r\n")},
}

func chunked(body string) string {
	return "POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + body
}

// TestSmuggling sends each as raw bytes, in one piece and byte by byte. Each is
// answered once, with its reason; the connection closes; what stands behind it is
// no request; the upstream sees nothing of a malformed head, and of a malformed
// body no whole request.
func TestSmuggling(t *testing.T) {
	t.Run("http1 upstream", func(t *testing.T) { testSmuggling(t, upstreamServer, true) })
	t.Run("h2c upstream", func(t *testing.T) { testSmuggling(t, h2cServer, false) }) // behind net/http, and the gate before it
}

// h2cServer is an upstream that speaks HTTP/2 without TLS.
func h2cServer(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return "h2c" + strings.TrimPrefix(srv.URL, "http")
}

func testSmuggling(t *testing.T, upstream func(testing.TB, http.HandlerFunc) string, pieces bool) {
	var mu sync.Mutex
	var whole []string
	e := start(t, options{upstream: upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			mu.Lock()
			whole = append(whole, r.Method+" "+r.RequestURI)
			mu.Unlock()
		}
	})})
	cert := e.pki.grant(time.Hour, "* /**")
	for _, tt := range smuggling {
		for _, piecewise := range []bool{false, true} {
			if piecewise && (!pieces || len(tt.text) > 2000) {
				continue
			}
			t.Run(fmt.Sprintf("%s/piecewise=%v", tt.name, piecewise), func(t *testing.T) {
				e := e.with(t)
				before := len(e.records())
				c := e.dial(cert, "http/1.1")
				text := tt.text + "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
				if piecewise {
					for i := range len(text) {
						if _, err := io.WriteString(c, text[i:i+1]); err != nil {
							break
						}
					}
				} else {
					_, _ = io.WriteString(c, text) // cut short by the answer
				}
				got, err := io.ReadAll(c)
				_ = c.Close()
				if !bytes.HasPrefix(got, fmt.Appendf(nil, "HTTP/1.1 %d ", tt.status)) {
					t.Fatalf("answer %.200q, %v", got, err)
				}
				if n := bytes.Count(got, []byte("HTTP/1.1 ")); n != 1 {
					t.Errorf("%d answers: %q", n, got)
				}
				if !bytes.Contains(got, []byte(`"code":"`+tt.reason+`"`)) || !bytes.Contains(got, []byte("Connection: close\r\n")) {
					t.Errorf("want %s in %q", tt.reason, got)
				}
				e.eventually("two records", func() bool { return len(e.records()) == before+2 })
				found := 0
				for _, r := range e.records()[before:] {
					if r.Kind == kindRequest {
						found++
						if r.Decision != decisionRefuse || r.Reason != tt.reason || r.Status != tt.status || r.Grant == "" {
							t.Errorf("record %+v", r)
						}
					}
				}
				if found != 1 {
					t.Errorf("%d request records", found)
				}
			})
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(whole) > 0 {
		t.Errorf("the upstream saw %q", whole)
	}
}

// TestPipelining: requests sent in one go are answered in order, each decided by
// itself, and a bad one behind a good one does not disturb the good one's answer.
func TestPipelining(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		time.Sleep(20 * time.Millisecond) // long enough for what follows to be read ahead
		_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, body)
	})})
	cert := e.pki.grant(time.Hour, "* /a/**")
	got := e.raw(cert, "GET /a/1 HTTP/1.1\r\nHost: localhost\r\n\r\n"+
		"POST /a/2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"+
		"POST /a/3 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\n"+
		"GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n"+
		"GET /a/4 HTTP/1.1\nHost: localhost\r\n\r\n"+
		"GET /a/5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	var order []string
	for _, want := range []string{"GET /a/1 ", "POST /a/2 abc", "POST /a/3 xyz", `"status":403`, `"code":"bare_lf"`} {
		i := strings.Index(got, want)
		if i < 0 {
			t.Fatalf("no %q in %q", want, got)
		}
		got = got[i+len(want):]
		order = append(order, want)
	}
	if strings.Contains(got, "/a/5") {
		t.Errorf("after %q came %q", order, got)
	}
}

// TestSlowHeaders: a head that dribbles in is cut off, answered and recorded.
func TestSlowHeaders(t *testing.T) {
	e := start(t, options{edit: func(s *Settings) { s.Limits.HeaderTimeout = time.Second }})
	c := e.dial(e.pki.grant(time.Hour, "GET /**"), "http/1.1")
	if _, err := io.WriteString(c, "GET /a HTTP/1.1\r\nHost: local"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 408 ") || !strings.Contains(string(got), "slow_headers") {
		t.Errorf("%q, %v", got, err)
	}
	r := e.record("it", func(r logLine) bool { return r.Reason == "slow_headers" })
	if r.Status != 408 || r.Method != "GET" || r.Path != "/a" {
		t.Errorf("record %+v", r)
	}
}

// TestIncompleteHead: so does one whose sender leaves.
func TestIncompleteHead(t *testing.T) {
	e := start(t, options{})
	c := e.dial(e.pki.grant(time.Hour, "GET /**"), "http/1.1")
	if _, err := io.WriteString(c, "GET /a HT"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(c); !strings.HasPrefix(string(got), "HTTP/1.1 400 ") {
		t.Errorf("%q", got)
	}
	e.record("it", func(r logLine) bool { return r.Reason == "incomplete_head" })
}

// TestHugeHeadersH2: net/http would answer them by itself, unrecorded.
func TestHugeHeadersH2(t *testing.T) {
	e := start(t, options{})
	c := e.client(e.pki.grant(time.Hour, "GET /**"), true)
	a := e.must(c, "GET", "/a", "X-Big", strings.Repeat("a", 70000))
	if a.status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", a.status)
	}
	e.record("it", func(r logLine) bool { return r.Reason == "head_too_large" && r.Protocol == "h2" })
	// Far beyond, HTTP/2 itself says no; the connection lives and so does the proxy.
	if a, err := e.do(c, "GET", "/a", "X-Big", strings.Repeat("a", 500000)); err == nil && a.status == 200 {
		t.Errorf("status %d", a.status)
	}
	if a := e.must(c, "GET", "/a"); a.status != http.StatusBadGateway {
		t.Errorf("status %d", a.status)
	}
}

// TestGateIsTransparent: whatever is good comes through unchanged, however it is cut up.
func TestGateIsTransparent(t *testing.T) {
	text := "POST /a?x=y HTTP/1.1\r\nHost: localhost\r\nX-Odd:\t v \xc3\xa9 \r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n" +
		"a\r\n0123456789\r\n00003\r\nabc\r\n0\r\nX-T: 1\r\n\r\n" +
		"PUT /b HTTP/1.0\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n\r\n\r\n\n" +
		"GET /c HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for size := 1; size < len(text); size += 7 {
		g := &gate{limits: gateLimits{head: 1 << 12, target: 1 << 10, lines: 32}, head: freshHead()}
		for i := 0; i < len(text); {
			piece := text[i:min(i+size, len(text))]
			used, bad := g.feed([]byte(piece))
			if bad != nil || used == 0 {
				t.Fatalf("pieces of %d: at %d %+v", size, i, bad)
			}
			i += used
		}
		if g.state != gateStart || len(g.line) != 0 {
			t.Errorf("pieces of %d: state %d", size, g.state)
		}
	}
}
