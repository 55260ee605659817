package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// sanOf encodes URI names as they are, whatever net/url would make of them.
func sanOf(t testing.TB, uris ...string) []byte {
	t.Helper()
	var all []asn1.RawValue
	for _, u := range uris {
		all = append(all, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(u)})
	}
	der, err := asn1.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestHandshakeRefusals presents certificates that must not complete a handshake
// and looks for the alert, for the record and for an upstream that heard nothing.
func TestHandshakeRefusals(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") })})
	p := e.pki
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	uri := grantURI(t, "payments", newGrantID(t), "GET /accounts/**")
	other := newPKI(t)
	spec := func(edit func(*leafSpec)) tls.Certificate {
		s := leafSpec{uris: []string{uri}, issuer: p.grantIssuer, eku: client}
		edit(&s)
		return p.mint(s)
	}
	expiredIssuer := p.authorityUntil("expired issuer", p.grantRoot, time.Now().Add(-time.Minute))

	tests := []struct {
		name, reason string
		cert         tls.Certificate
	}{
		{"expired", reasonExpired, spec(func(s *leafSpec) {
			s.notBefore, s.notAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
		})},
		{"not yet valid", reasonNotYetValid, spec(func(s *leafSpec) { s.notBefore = time.Now().Add(time.Hour) })},
		{"expired issuer", reasonExpired, spec(func(s *leafSpec) { s.issuer = expiredIssuer })},
		{"wrong trust domain", reasonTrustDomain, spec(func(s *leafSpec) { s.uris = []string{"spiffe://evil.test/user/alice"} })},
		{"subdomain of the grants domain", reasonTrustDomain, spec(func(s *leafSpec) { s.uris = []string{strings.Replace(uri, testGrantTD, "x."+testGrantTD, 1)} })},
		{"wrong service", reasonWrongService, spec(func(s *leafSpec) {
			s.uris = []string{grantURI(t, "payments2", newGrantID(t), "GET /accounts/**")}
		})},
		{"server EKU", reasonKeyUsage, spec(func(s *leafSpec) { s.eku = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		{"no EKU", reasonKeyUsage, spec(func(s *leafSpec) { s.eku = nil })},
		{"any EKU", reasonKeyUsage, spec(func(s *leafSpec) { s.eku = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })},
		{"two URI names", reasonNames, spec(func(s *leafSpec) { s.uris = []string{uri, alice} })},
		{"no name", reasonNames, spec(func(s *leafSpec) { s.uris = nil })},
		{"only a DNS name", reasonNames, spec(func(s *leafSpec) { s.uris, s.dns = nil, []string{"payments.acme.test"} })},
		{"a grant with a DNS name", reasonNames, spec(func(s *leafSpec) { s.dns = []string{"payments.acme.test"} })},
		{"over-long name", reasonTooLong, spec(func(s *leafSpec) { s.uris = []string{alice + strings.Repeat("/a", 1024)} })},
		{"malformed scope", reasonScope, spec(func(s *leafSpec) { s.uris = []string{"spiffe://grants.acme.test/v1/payments/_can/everything"} })},
		{"no scope", reasonScope, spec(func(s *leafSpec) { s.uris = []string{"spiffe://grants.acme.test/user/alice"} })},
		{"scope of another version", reasonScope, spec(func(s *leafSpec) { s.uris = []string{strings.Replace(uri, "/v1/", "/v2/", 1)} })},
		{"upper-case scheme", reasonNames, spec(func(s *leafSpec) { s.rawSAN = sanOf(t, "SPIFFE"+strings.TrimPrefix(uri, "spiffe")) })},
		{"empty fragment", reasonNames, spec(func(s *leafSpec) { s.rawSAN = sanOf(t, uri+"#") })},
		{"empty query", reasonNames, spec(func(s *leafSpec) { s.rawSAN = sanOf(t, uri+"?") })},
		{"upper-case trust domain", reasonNames, spec(func(s *leafSpec) { s.rawSAN = sanOf(t, strings.Replace(uri, testGrantTD, "GRANTS.acme.test", 1)) })},
		{"a grant signed by the identity issuer", reasonUntrusted, spec(func(s *leafSpec) { s.issuer = p.idIssuer })},
		{"an identity signed by the grants issuer", reasonUntrusted, spec(func(s *leafSpec) { s.uris = []string{alice} })},
		{"a stranger's root", reasonUntrusted, spec(func(s *leafSpec) { s.issuer = other.grantIssuer })},
		{"no certificate", reasonNoCertificate, tls.Certificate{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := len(e.records())
			c := e.dialOnly(t, tt.cert)
			var alert tls.AlertError
			if err := readError(c); err == nil {
				t.Fatal("the handshake was completed")
			} else if !errors.As(err, &alert) && !strings.Contains(err.Error(), "remote error: tls") {
				t.Errorf("no TLS alert, but %v", err)
			}
			eventually(t, "one more record", func() bool { return len(e.records()) == before+1 })
			r := e.records()[before]
			if r.Kind != kindHandshake || r.Decision != decisionRefuse || r.Reason != tt.reason || r.Peer == "" || r.Service != "payments" {
				t.Errorf("record %+v, want reason %s", r, tt.reason)
			}
		})
	}
}

// dialOnly connects; a refusal may show as an error here already or at the first read.
func (e *env) dialOnly(t testing.TB, cert tls.Certificate) *tls.Conn {
	t.Helper()
	return e.dial(cert, "http/1.1")
}

func readError(c *tls.Conn) error {
	if _, err := io.WriteString(c, "GET /accounts/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// TestRefusedRecordNamesTheGrant: where the chain is good and only the use is
// not, the record says whose certificate it was.
func TestRefusedRecordNamesTheGrant(t *testing.T) {
	e := start(t, options{})
	id := newGrantID(t)
	cert := e.pki.mint(leafSpec{
		uris: []string{grantURI(t, "orders", id, "GET /")}, issuer: e.pki.grantIssuer, eku: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err := readError(e.dial(cert)); err == nil {
		t.Fatal("the handshake was completed")
	}
	r := e.record("the handshake", func(r logLine) bool { return r.Kind == kindHandshake })
	if r.Grant != id || r.Subject != alice || r.Issuer != hexSum(e.pki.grantIssuer.cert) || r.Serial == "" {
		t.Errorf("record %+v", r)
	}
}

// TestOldTLS: TLS 1.2 has renegotiation, session ids and CBC; none of it here.
func TestOldTLS(t *testing.T) {
	e := start(t, options{})
	cfg := e.tlsConfig(e.pki.grant(time.Hour, "GET /"))
	cfg.MaxVersion = tls.VersionTLS12
	d := tls.Dialer{Config: cfg}
	if c, err := d.DialContext(t.Context(), "tcp", e.addr); err == nil {
		_ = c.Close()
		t.Fatal("TLS 1.2 was spoken")
	}
	e.record("the refusal", func(r logLine) bool { return r.Reason == reasonTLSVersion })
}

// TestNoResumption: a client that keeps tickets gets none to keep, and every
// connection is proven anew.
func TestNoResumption(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	cache := &countingCache{ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	cfg := e.tlsConfig(e.pki.grant(time.Hour, "GET /**"), "http/1.1")
	cfg.ClientSessionCache = cache //nolint:forbidigo // a client that would resume is what is tested
	for range 3 {
		d := tls.Dialer{Config: cfg}
		nc, err := d.DialContext(t.Context(), "tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := nc.(*tls.Conn)
		if _, err := io.WriteString(c, "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(body), "HTTP/1.1 200") {
			t.Fatalf("%q, %v", body, err)
		}
		if c.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		_ = c.Close()
	}
	if cache.puts > 0 {
		t.Errorf("the proxy issued %d tickets", cache.puts)
	}
}

type countingCache struct {
	tls.ClientSessionCache
	puts int
}

func (c *countingCache) Put(key string, s *tls.ClientSessionState) {
	if s != nil {
		c.puts++
	}
	c.ClientSessionCache.Put(key, s)
}

// TestSlowHandshake: a peer that says nothing is let go, and recorded.
func TestSlowHandshake(t *testing.T) {
	e := start(t, options{edit: func(s *Settings) { s.Limits.HandshakeTimeout = 200 * time.Millisecond }})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	e.record("the timeout", func(r logLine) bool { return r.Kind == kindHandshake && r.Reason == reasonTimeout })
	if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("read: %v", err)
	}
}

// TestNotTLS: plain HTTP on the TLS port.
func TestNotTLS(t *testing.T) {
	e := start(t, options{})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	e.record("plain HTTP", func(r logLine) bool { return r.Kind == kindHandshake && r.Reason == reasonNotTLS })
}

// TestSilentFlood: whoever connects and says nothing keeps nobody out, and is
// recorded.
func TestSilentFlood(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) {
		s.Limits.MaxHandshakes, s.Limits.MaxConnections, s.Limits.HandshakeTimeout = 4, 6, time.Hour
	}})
	flood := make([]net.Conn, 0, 12)
	for i := range cap(flood) {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		flood = append(flood, c)
		e.eventually("its place", func() bool { return e.px.shaking.len() == min(i+1, 4) })
	}
	for range 5 { // the last two take places of silent ones
		if a := e.must(e.client(e.pki.grant(time.Hour, "GET /**"), false), "GET", "/a"); a.status != 200 {
			t.Errorf("status %d", a.status)
		}
	}
	if err := flood[0].SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := flood[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest silent connection was left open: %v", err)
	}
	e.eventually("a record of each that had to go", func() bool {
		n := 0
		for _, r := range e.records() {
			if r.Kind == kindHandshake && r.Reason == reasonLimit && r.Decision == decisionRefuse {
				n++
			}
		}
		return n >= 8
	})
}

// TestConnectionLimits: the cap over all connections, and the one of a grant.
func TestConnectionLimits(t *testing.T) {
	t.Run("all", func(t *testing.T) {
		e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) { s.Limits.MaxConnections = 2 }})
		one, two := e.client(e.pki.grant(time.Hour, "GET /**"), false), e.client(e.pki.grant(time.Hour, "GET /**"), false)
		for _, c := range []*http.Client{one, two} {
			if a := e.must(c, "GET", "/a"); a.status != 200 {
				t.Fatalf("status %d", a.status)
			}
		}
		if _, err := e.do(e.client(e.pki.grant(time.Hour, "GET /**"), false), "GET", "/a"); err == nil {
			t.Error("a third connection was admitted")
		}
		e.record("the limit", func(r logLine) bool { return r.Reason == reasonLimit })
		one.CloseIdleConnections()
		e.eventually("room", func() bool { return e.px.open.Load() < 2 })
		if a := e.must(e.client(e.pki.grant(time.Hour, "GET /**"), false), "GET", "/a"); a.status != 200 {
			t.Errorf("status %d after one left", a.status)
		}
	})
	t.Run("one grant", func(t *testing.T) {
		e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) { s.Limits.MaxConnectionsPerGrant = 1 }})
		cert := e.pki.grant(time.Hour, "GET /**")
		if a := e.must(e.client(cert, false), "GET", "/a"); a.status != 200 {
			t.Fatalf("status %d", a.status)
		}
		if _, err := e.do(e.client(cert, false), "GET", "/a"); err == nil {
			t.Error("a second connection of the grant was admitted")
		}
		if a := e.must(e.client(e.pki.grant(time.Hour, "GET /**"), false), "GET", "/a"); a.status != 200 {
			t.Errorf("another grant: status %d", a.status)
		}
	})
}
