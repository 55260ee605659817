package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// connector is a local end of a tcp service of the fleet, and its address.
func (f *fleet) connector(t *testing.T, name string) string {
	td := spiffeid.RequireTrustDomainFromString(testTD)
	return (&env{t: t}).connect(ConnectorConfig{
		Service: name, Address: f.address(shared), TrustDomain: td, Host: name + ".acme.test", TCP: true,
		Bundle: x509bundle.FromX509Authorities(td, []*x509.Certificate{f.pki.idRoot.cert}), Source: fixedSource{f.grant(name, "tcp")},
	}, "127.0.0.1:0")
}

// saying is a tcp service of one word.
func saying(t *testing.T, word string) string {
	return servingTCP(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, word)
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	})
}

func hear(t *testing.T, addr string) string {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	b, _ := io.ReadAll(c) // cut, where it may hear nothing
	return string(b)
}

// TestChangesReachCarriers. A right that was taken out of the configuration must not live
// on in the server that carriers are taken by, nor in a carrier that is older.
func TestChangesReachCarriers(t *testing.T) {
	p := newPKI(t)
	f := startFleet(t, p, service("raw", saying(t, "old"), ", protocol: tcp"))
	older := f.connector(t, "raw")
	if got := hear(t, older); got != "old" {
		t.Fatalf("before: %q", got)
	}
	f.f.mu.Lock()
	px := f.f.members["raw"].px
	f.f.mu.Unlock()
	change := func(more string, upstream string) {
		was := px.newest.Load()
		f.write(f.yaml(service("raw", upstream, ", protocol: tcp"+more)))
		eventually(t, "the change", func() bool { return px.newest.Load() != was })
	}
	next := saying(t, "new")
	change("", next)
	for name, addr := range map[string]string{"an older carrier": older, "a newer carrier": f.connector(t, "raw")} {
		if got := hear(t, addr); got != "new" {
			t.Errorf("by %s: %q, want what the new upstream says", name, got)
		}
	}
	change(", limits: {sources: [203.0.113.0/24]}", next)
	for name, addr := range map[string]string{"an older carrier": older, "a newer carrier": f.connector(t, "raw")} {
		if got := hear(t, addr); got != "" {
			t.Errorf("by %s from elsewhere than limits.sources: %q", name, got)
		}
	}
	denied := 0
	for _, r := range readRecords(t, filepath.Join(f.dir, "access.jsonl")) {
		if r.Decision == decisionDeny && r.Reason == reasonSource {
			denied++
		}
	}
	if denied < 2 {
		t.Errorf("%d records of what was denied, want 2", denied)
	}
}

// TestBalancedAndShared: services behind a balancer may share a listener.
func TestBalancedAndShared(t *testing.T) {
	p := newPKI(t)
	both := []string{service("payments", upstreamServer(t, says("p")), ""), service("ledger", upstreamServer(t, says("l")), "")}
	f := startFleet(t, p, both...)
	f.f.mu.Lock()
	px := f.f.members["payments"].px
	f.f.mu.Unlock()
	was := px.newest.Load()
	f.write("listen_proxy_protocol: {trusted: [127.0.0.0/8]}\n" + f.yaml(both...))
	eventually(t, "the change", func() bool { return px.newest.Load() != was })
	dial := func(header string) (*tls.Conn, error) {
		raw, err := (&net.Dialer{Timeout: patience}).DialContext(t.Context(), "tcp", f.address(shared))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = raw.Close() })
		_ = raw.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(raw, header)
		c := tls.Client(raw, f.tls(f.grant("ledger", "GET /**"), "ledger.acme.test"))
		return c, c.HandshakeContext(t.Context())
	}
	for name, header := range map[string]string{"a client's": proxyHeader(0x21, 0x11, clientV4...), "the balancer's own": proxyHeader(0x20, 0)} {
		c, err := dial(header)
		if err == nil {
			_, err = fmt.Fprint(c, "GET /a HTTP/1.1\r\nHost: ledger.acme.test\r\nConnection: close\r\n\r\n")
		}
		if err != nil {
			t.Fatalf("%s connection: %v", name, err)
		}
		if got, err := io.ReadAll(c); !strings.Contains(string(got), " 200 ") {
			t.Errorf("%s connection: %q, %v", name, got, err)
		}
	}
	// Who could choose whether to be announced could choose where it comes from.
	if _, err := dial(""); err == nil {
		t.Error("a connection without the header from where a balancer must say it is taken")
	}
	f.records(t, func(r logLine) bool {
		return r.Kind == kindRequest && strings.HasPrefix(r.Peer, "203.0.113.7:")
	})
}

// records wants one that is so.
func (f *fleet) records(t *testing.T, is func(logLine) bool) {
	t.Helper()
	eventually(t, "the record", func() bool {
		return slices.ContainsFunc(readRecords(t, filepath.Join(f.dir, "access.jsonl")), is)
	})
}

// TestCarriedAnswersAreReadAsStrictly: any client may have its HTTP/1 carried in a stream.
func TestCarriedAnswersAreReadAsStrictly(t *testing.T) {
	e := start(t, options{upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 2\nX-A: b\n folded\n\nok")
	})})
	cert := e.pki.grant(time.Hour, "* /**")
	if got := e.must(e.client(cert, false), "GET", "/a").status; got != 502 {
		t.Errorf("direct: %d, want 502", got)
	}
	addr := e.connect(e.connectorConfig(fixedSource{cert}), "127.0.0.1:0")
	a, err := plainGet(t, addr, "/a", "Upgrade", "websocket", "Connection", "Upgrade")
	if err != nil || a.status != 502 {
		t.Errorf("in a stream: %d %q, %v, want 502", a.status, a.body, err)
	}
}
