package proxy

import (
	"crypto/tls"
	"io"
	"net/http"
	"testing"
	"time"
)

// BenchmarkRequest is one GET over a kept connection, client and upstream included.
func BenchmarkRequest(b *testing.B) {
	for name, h2 := range map[string]bool{"http1": false, "http2": true} {
		b.Run(name, func(b *testing.B) {
			e := start(b, options{upstream: upstreamServer(b, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })})
			c := e.client(e.pki.grant(time.Hour, "GET /accounts/**"), h2)
			b.ReportAllocs()
			for b.Loop() {
				if a := e.must(c, "GET", "/accounts/42"); a.status != 200 {
					b.Fatal(a.status)
				}
			}
		})
	}
}

// BenchmarkHandshake is one new connection, admitted.
func BenchmarkHandshake(b *testing.B) {
	e := start(b, options{})
	cfg := e.tlsConfig(e.pki.grant(time.Hour, "GET /accounts/**"), "http/1.1")
	b.ReportAllocs()
	for b.Loop() {
		d := tls.Dialer{Config: cfg}
		c, err := d.DialContext(b.Context(), "tcp", e.addr)
		if err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}

// BenchmarkScreen is the reading of a request's head, behind net/http.
func BenchmarkScreen(b *testing.B) {
	p := newPKI(b)
	px, err := New(Config{Settings: settings(b, p, b.TempDir())})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = px.Close() }()
	r := &http.Request{
		Method: "GET", RequestURI: "/accounts/42?x=y", Host: "payments.acme.test:9443", ProtoMajor: 1,
		Header: http.Header{"User-Agent": {"curl/7.88"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"}, "X-Request-Id": {"1"}, "Cookie": {"a=b"}, "Traceparent": {traceparent}},
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, bad := px.cfg.screen(r); bad != nil {
			b.Fatal(bad)
		}
	}
}

// BenchmarkRecord is one access record, encoded.
func BenchmarkRecord(b *testing.B) {
	r := record{time: time.Now(), kind: kindRequest, event: "end", conn: 7, service: "payments", subject: alice, grant: newGrantID(b), issuer: "89ab", serial: "a143", permission: "GET /accounts/**", decision: decisionAllow, protocol: "http/1.1", method: "GET", path: "/accounts/42", status: 200, peer: "127.0.0.1:1"}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = r.appendTo(buf[:0])
	}
}
