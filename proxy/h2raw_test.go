package proxy

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2session is an HTTP/2 connection, frame by frame.
type h2session struct {
	t     testing.TB
	conn  *tls.Conn
	fr    *http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func (e *env) h2session(cert tls.Certificate) *h2session {
	e.t.Helper()
	return newH2Session(e.t, e.dial(cert, "h2"))
}

func newH2Session(t testing.TB, c *tls.Conn) *h2session {
	t.Helper()
	s := &h2session{t: t, conn: c}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	s.fr = http2.NewFramer(s.conn, s.conn)
	s.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.enc = hpack.NewEncoder(&s.block)
	s.must(s.fr.WriteSettings())
	return s
}

func (s *h2session) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// send opens a stream with these fields, in this order.
func (s *h2session) send(stream uint32, fields [][2]string, end bool) {
	s.t.Helper()
	s.block.Reset()
	for _, f := range fields {
		s.must(s.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	s.must(s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: s.block.Bytes(), EndHeaders: true, EndStream: end}))
}

// rawH2 sends one request as these fields, whatever a client would think of
// them, and returns the status, or 0 when the stream was reset.
func (e *env) rawH2(fields [][2]string, body string) int {
	e.t.Helper()
	s := e.h2session(e.pki.grant(time.Hour, "* /**"))
	defer func() { _ = s.conn.Close() }()
	s.send(1, fields, body == "")
	if body != "" {
		s.must(s.fr.WriteData(1, true, []byte(body)))
	}
	for {
		f, err := s.fr.ReadFrame()
		if err != nil {
			return 0
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			n, err := strconv.Atoi(f.PseudoValue("status"))
			s.must(err)
			return n
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0
		}
	}
}

func h2fields(method, path string, more ...[2]string) [][2]string {
	return append([][2]string{{":method", method}, {":scheme", "https"}, {":authority", "localhost"}, {":path", path}}, more...)
}

// TestRawH2 downgrades: what HTTP/2 can carry and HTTP/1 would read as the end of
// a line, of a head or of a request.
func TestRawH2(t *testing.T) {
	var mu sync.Mutex // owns reached
	var reached []string
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		reached = append(reached, r.Method+" "+r.RequestURI)
		mu.Unlock()
		echoHandler(w, r)
	})})
	if got := e.rawH2(h2fields("GET", "/ok"), ""); got != 200 {
		t.Fatalf("a plain request: %d", got)
	}
	for name, fields := range map[string][][2]string{
		"Host beside :authority":  h2fields("GET", "/a", [2]string{"host", "evil.test"}),
		"Host twice":              h2fields("GET", "/a", [2]string{"host", "localhost"}, [2]string{"host", "localhost"}),
		"no authority, bad Host":  {{":method", "GET"}, {":scheme", "https"}, {":path", "/a"}, {"host", "evil.test"}},
		"no authority, no Host":   {{":method", "GET"}, {":scheme", "https"}, {":path", "/a"}},
		"userinfo":                {{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost@evil.test"}, {":path", "/a"}},
		"absolute path":           h2fields("GET", "http://evil.test/a"),
		"asterisk":                h2fields("OPTIONS", "*"),
		"request line in a path":  h2fields("GET", "/a HTTP/1.1"),
		"CRLF in a path":          h2fields("GET", "/a\r\nX: y"),
		"fragment":                h2fields("GET", "/a#b"),
		"request line in method":  h2fields("GET /admin HTTP/1.1\r\n\r\nGET", "/a"),
		"CONNECT":                 {{":method", "CONNECT"}, {":authority", "localhost"}},
		"extended CONNECT":        h2fields("CONNECT", "/a", [2]string{":protocol", "websocket"}),
		"TRACE":                   h2fields("TRACE", "/a"),
		"CRLF in a value":         h2fields("GET", "/a", [2]string{"x", "a\r\nTransfer-Encoding: chunked"}),
		"grpc behind a blank":     h2fields("POST", "/a", [2]string{"content-type", " application/grpc-web"}),
		"a blank before a value":  h2fields("GET", "/a", [2]string{"x", " b"}),
		"a blank behind a value":  h2fields("GET", "/a", [2]string{"x", "b\t"}),
		"NUL in a value":          h2fields("GET", "/a", [2]string{"x", "a\x00b"}),
		"colon in a name":         h2fields("GET", "/a", [2]string{"x: y\r\nz", "a"}),
		"upper-case name":         h2fields("GET", "/a", [2]string{"X-A", "a"}),
		"transfer-encoding":       h2fields("POST", "/a", [2]string{"transfer-encoding", "chunked"}),
		"connection":              h2fields("GET", "/a", [2]string{"connection", "x-a"}),
		"upgrade":                 h2fields("GET", "/a", [2]string{"upgrade", "websocket"}),
		"content-length twice":    h2fields("POST", "/a", [2]string{"content-length", "4"}, [2]string{"content-length", "4"}),
		"content-length list":     h2fields("POST", "/a", [2]string{"content-length", "4, 4"}),
		"content_length":          h2fields("POST", "/a", [2]string{"content_length", "4"}),
		"content-length too long": h2fields("POST", "/a", [2]string{"content-length", "40"}),
		"pseudo twice":            append(h2fields("GET", "/a"), [2]string{":path", "/admin"}),
		"pseudo behind a header":  {{":method", "GET"}, {"x", "y"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", "/a"}},
		"another scheme":          {{":method", "GET"}, {":scheme", "file"}, {":authority", "localhost"}, {":path", "/a"}},
		"two content types":       h2fields("POST", "/a", [2]string{"content-type", "text/plain"}, [2]string{"content-type", "application/grpc"}),
		"te other than trailers":  h2fields("POST", "/a", [2]string{"te", "trailers, gzip"}),
		"te twice":                h2fields("POST", "/a", [2]string{"te", "trailers"}, [2]string{"te", "gzip"}),
		"keep-alive":              h2fields("GET", "/a", [2]string{"keep-alive", "timeout=5"}),
		"proxy-connection":        h2fields("GET", "/a", [2]string{"proxy-connection", "keep-alive"}),
		"transfer_encoding":       h2fields("POST", "/a", [2]string{"transfer_encoding", "chunked"}),
		"xchunked":                h2fields("POST", "/a", [2]string{"transfer-encoding", "xchunked"}),
		"upgrade h2c":             h2fields("GET", "/a", [2]string{"upgrade", "h2c"}, [2]string{"http2-settings", "AAMAAABk"}),
		"LF in a value":           h2fields("GET", "/a", [2]string{"x", "a\nX-Hallpass-Subject: root"}),
		"CR in a value":           h2fields("GET", "/a", [2]string{"x", "a\rb"}),
		"LF in a name":            h2fields("GET", "/a", [2]string{"x\ny", "a"}),
		"space in a name":         h2fields("GET", "/a", [2]string{"x ", "a"}),
		"empty name":              h2fields("GET", "/a", [2]string{"", "a"}),
		"colon alone":             h2fields("GET", "/a", [2]string{":", "a"}),
		"unknown pseudo":          h2fields("GET", "/a", [2]string{":x", "a"}),
		"response pseudo":         h2fields("GET", "/a", [2]string{":status", "200"}),
		"authority twice":         append(h2fields("GET", "/a"), [2]string{":authority", "localhost"}),
		"method twice":            append(h2fields("GET", "/a"), [2]string{":method", "DELETE"}),
		"scheme twice":            append(h2fields("GET", "/a"), [2]string{":scheme", "https"}),
		"no method":               {{":scheme", "https"}, {":authority", "localhost"}, {":path", "/a"}},
		"no path":                 {{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost"}},
		"empty path":              h2fields("GET", ""),
		"CRLF in the authority":   {{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost\r\nX: y"}, {":path", "/a"}},
		"space in the authority":  {{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost evil.test"}, {":path", "/a"}},
		"path in the authority":   {{":method", "GET"}, {":scheme", "https"}, {":authority", "localhost/b"}, {":path", "/a"}},
		"override":                h2fields("POST", "/a", [2]string{"x-http-method-override", "DELETE"}),
	} {
		t.Run(name, func(t *testing.T) {
			e := e.with(t)
			body := ""
			if name == "content-length too long" || name == "content-length twice" || name == "content-length list" || name == "content_length" {
				body = "data"
			}
			if got := e.rawH2(fields, body); got == 200 {
				t.Error("it was answered with 200")
			}
		})
	}
	mu.Lock()
	defer mu.Unlock()
	for _, what := range reached[1:] {
		if what != "POST /a" { // of the too long content-length: begun, and broken off for its missing body
			t.Errorf("the upstream was asked for %s", what)
		}
	}
}
