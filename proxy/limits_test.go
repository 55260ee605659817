package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestBodyLimit: a body longer than the limit is refused before the upstream hears
// of it where its length was said, and never arrives whole where it was not.
func TestBodyLimit(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		var mu sync.Mutex // owns whole
		whole := map[string]int{}
		e := start(t, options{edit: func(s *Settings) { s.Limits.MaxBodyBytes = 1000 }, upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/early" {
				_ = http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
			}
			if body, err := io.ReadAll(r.Body); err == nil {
				mu.Lock()
				whole[r.URL.Path] = len(body)
				mu.Unlock()
			}
		})})
		c := e.client(e.pki.grant(time.Hour, "POST /**"), h2)
		for _, tt := range []struct {
			path       string
			said, long int64
			status     int
		}{
			{"/said", 1000, 1000, 200},
			{"/said-and-long", 1001, 1001, 413},
			{"/unsaid", -1, 1000, 200},
			{"/unsaid-and-long", -1, 1001, 413},
			{"/unsaid-and-far-too-long", -1, 1 << 20, 413},
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+e.addr+tt.path, io.LimitReader(zeros{}, tt.long))
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = tt.said
			res, err := c.Do(req)
			if err != nil {
				t.Errorf("%s: %v", tt.path, err)
				continue
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			mu.Lock()
			n, arrived := whole[tt.path]
			mu.Unlock()
			if res.StatusCode != tt.status || arrived != (tt.status == 200) || arrived && int64(n) != tt.long {
				t.Errorf("%s: %d, and %d bytes (%v) arrived", tt.path, res.StatusCode, n, arrived)
			}
			r := e.record(tt.path, func(r logLine) bool { return r.Path == tt.path && r.Event == "end" })
			if tt.status == 413 && (r.Decision != decisionRefuse || r.Reason != reasonBodyTooLarge || r.Status != 413) {
				t.Errorf("record %+v", r)
			}
		}
		// With the answer begun there is no other than to break off.
		body, send := io.Pipe()
		defer func() { _ = send.Close() }()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+e.addr+"/early", body)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = send.Write(make([]byte, 500)) }()
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		go func() {
			_, _ = send.Write(make([]byte, 501))
			_ = send.Close()
		}()
		if got, err := io.ReadAll(res.Body); err == nil || res.StatusCode != 200 {
			t.Errorf("%d, %q, and a whole answer", res.StatusCode, got)
		}
		r := e.record("/early", func(r logLine) bool { return r.Path == "/early" && r.Event == "end" })
		if r.Reason != reasonBodyTooLarge {
			t.Errorf("record %+v", r)
		}
		mu.Lock()
		defer mu.Unlock()
		if n, ok := whole["/early"]; ok {
			t.Errorf("%d bytes arrived", n)
		}
	})
}

// TestBodyLimitGRPC is RESOURCE_EXHAUSTED.
func TestBodyLimitGRPC(t *testing.T) {
	e := start(t, options{edit: func(s *Settings) { s.Limits.MaxBodyBytes = 1000 }, upstream: echoGRPC(t)})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cc := e.grpcConn(e.pki.grant(time.Hour, "grpc a.B/*"))
	for long, want := range map[int]codes.Code{900: codes.OK, 1100: codes.ResourceExhausted} {
		in, out := make([]byte, long), []byte(nil)
		if err := cc.Invoke(ctx, "/a.B/Get", &in, &out); status.Code(err) != want {
			t.Errorf("%d bytes: %v", long, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestNeverSentTwice: an upstream that took a request and broke off may have done
// it. The proxy does not send it again, whatever the method, and the client learns.
func TestNeverSentTwice(t *testing.T) {
	var mu sync.Mutex // owns seen
	seen := map[string]int{}
	up := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			mu.Lock()
			seen[req.RequestURI]++
			mu.Unlock()
			if req.RequestURI != "/warm" {
				return // broken off, on a connection that has been used before
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	e := start(t, options{upstream: up})
	both(t, func(t *testing.T, h2 bool) {
		e := e.with(t)
		c := e.client(e.pki.grant(time.Hour, "* /**"), h2)
		for i, tt := range []struct {
			method, body string
			headers      []string
		}{
			{"POST", "", nil},
			{"POST", "x", nil},
			{"PATCH", "x", nil},
			{"PUT", "x", nil},
			{"DELETE", "", nil},
			{"POST", "x", []string{"Idempotency-Key", "k"}},
			{"POST", "", []string{"Idempotency-Key", "k"}},
			{"POST", "", []string{"X-Idempotency-Key", "k"}},
		} {
			if a := e.must(c, "GET", "/warm"); a.status != 200 {
				t.Fatalf("status %d", a.status)
			}
			path := fmt.Sprintf("/%v/%d", h2, i)
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "https://"+e.addr+path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			for j := 0; j+1 < len(tt.headers); j += 2 {
				req.Header.Set(tt.headers[j], tt.headers[j+1])
			}
			req.GetBody = nil // nor shall this test's client send it twice
			res, err := c.Do(req)
			if err != nil {
				t.Errorf("%s %s: %v", tt.method, path, err)
				continue
			}
			_ = res.Body.Close()
			mu.Lock()
			n := seen[path]
			mu.Unlock()
			if res.StatusCode != http.StatusBadGateway || n != 1 {
				t.Errorf("%s with %q and %v: %d, sent %d times", tt.method, tt.body, tt.headers, res.StatusCode, n)
			}
		}
	})
}

// TestHostWhateverTheSNI: the name in the TLS hello chooses nothing and allows
// nothing. What counts is the Host of each request.
func TestHostWhateverTheSNI(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	cert := e.pki.grant(time.Hour, "GET /**")
	for _, sni := range []string{"localhost", "payments.acme.test", "evil.test", ""} {
		for host, want := range map[string]int{
			"localhost": 200, "payments.acme.test": 200, "PAYMENTS.acme.test:9443": 200, "localhost:1": 200, "127.0.0.1:80": 200,
			"evil.test": 421, "localhost.": 421, "localhost.evil.test": 421, "evil.localhost": 421, "localhost:x": 421, "localhost:99999": 421, "[localhost]:1:2": 421, "": 421, "127.0.0.1.": 421, "10.0.0.1": 421,
		} {
			cfg := e.tlsConfig(cert, "http/1.1")
			cfg.ServerName, cfg.InsecureSkipVerify = sni, true
			d := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: cfg}
			c, err := d.DialContext(t.Context(), "tcp", e.addr)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "GET /a HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
			got, _ := io.ReadAll(c)
			_ = c.Close()
			if !strings.HasPrefix(string(got), fmt.Sprintf("HTTP/1.1 %d ", want)) {
				t.Errorf("SNI %q, Host %q: %.60q, want %d", sni, host, got, want)
			}
		}
	}
}

// TestRequestsPerGrant. The attack: one grant's requests, each of which waits for its body,
// hold as many connections to the upstream as the proxy may have open files.
func TestRequestsPerGrant(t *testing.T) {
	const most = 5
	e := start(t, options{
		upstream: rawUpstream(t, func(_ int, _ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) }),
		edit:     func(s *Settings) { s.Limits.MaxRequestsPerGrant = most },
	})
	cert := e.pki.grant(time.Hour, "* /**")
	waiting := [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", "/a"}}
	status := func(s *h2session) string {
		for {
			f, err := s.fr.ReadFrame()
			s.must(err)
			if h, ok := f.(*http2.MetaHeadersFrame); ok {
				return h.PseudoValue("status")
			}
		}
	}
	first, second := e.h2session(cert), e.h2session(cert)
	for i := range uint32(most) {
		first.send(2*i+1, waiting, false)
	}
	e.eventually("the requests", func() bool { return e.px.active.Load() == most })
	second.send(1, waiting, false)
	if got := status(second); got != "429" {
		t.Errorf("one more, on another connection: %s, want 429", got)
	}
	if got := status(func() *h2session {
		s := e.h2session(e.pki.grant(time.Hour, "GET /b"))
		s.send(1, waiting, true)
		return s
	}()); got != "403" {
		t.Errorf("another grant's: %s, want 403", got)
	}
	first.must(first.fr.WriteRSTStream(1, http2.ErrCodeCancel))
	e.eventually("one less", func() bool { return e.px.active.Load() < most })
	second.send(3, waiting, false)
	e.eventually("another in its place", func() bool { return e.px.active.Load() == most })
}
