package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/hallpass/hallpass/internal/near"
)

// proxyHeader is a PROXY protocol v2 header, byte by byte.
func proxyHeader(verCmd, family byte, rest ...byte) string {
	return "\r\n\r\n\x00\r\nQUIT\n" + string([]byte{verCmd, family, byte(len(rest) >> 8), byte(len(rest))}) + string(rest)
}

var (
	clientV4 = []byte{203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x67, 0x24, 0xe3} // 203.0.113.7:4711 to 192.0.2.1:9443
	clientV6 = append(append(bytes.Repeat([]byte{0x20, 0x01, 0x0d, 0xb8}, 4), bytes.Repeat([]byte{0x20, 0x01, 0x0d, 0xb9}, 4)...), 0x12, 0x67, 0x24, 0xe3)
)

// behind opens a TLS connection in which the first bytes are a balancer's. In
// pieces, they come one by one.
func (e *env) behind(first string, pieces bool, cert tls.Certificate, protocols ...string) (*tls.Conn, error) {
	e.t.Helper()
	raw, err := (&net.Dialer{Timeout: patience}).DialContext(e.t.Context(), "tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = raw.Close() })
	if err := raw.SetDeadline(time.Now().Add(2 * patience)); err != nil {
		e.t.Fatal(err)
	}
	for step := len(first); len(first) > 0; first = first[step:] {
		if pieces {
			step = 1
		}
		if _, err := io.WriteString(raw, first[:step]); err != nil {
			return nil, err
		}
	}
	c := tls.Client(raw, e.tlsConfig(cert, protocols...))
	return c, c.HandshakeContext(e.t.Context())
}

func trusting(networks ...string) func(*Settings) {
	return func(s *Settings) { s.ListenProxyProtocol.Trusted = networks }
}

// ask sends one request and gives the answer.
func ask(t *testing.T, c net.Conn) answer {
	t.Helper()
	if _, err := io.WriteString(c, "GET /a HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 10.9.9.9\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(got), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200 ") {
		t.Fatalf("%q", got)
	}
	return answer{status: 200, body: body}
}

// TestProxyProtocolIn: the address that a trusted balancer says is the client's in
// every record and for the upstream.
func TestProxyProtocolIn(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: trusting("10.0.0.0/8", "127.0.0.0/8")})
	for name, tt := range map[string]struct{ header, peer string }{
		"IPv4":                {proxyHeader(0x21, 0x11, clientV4...), "203.0.113.7:4711"},
		"IPv6":                {proxyHeader(0x21, 0x21, clientV6...), "[2001:db8:2001:db8:2001:db8:2001:db8]:4711"},
		"values behind it":    {proxyHeader(0x21, 0x11, append(bytes.Clone(clientV4), 0x04, 0, 3, 'a', 'b', 'c')...), "203.0.113.7:4711"},
		"the balancer's own":  {proxyHeader(0x20, 0x00), "127.0.0.1"},
		"its own, and filled": {proxyHeader(0x20, 0x11, clientV4...), "127.0.0.1"},
	} {
		for _, pieces := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				e := e.with(t)
				id := newGrantID(t)
				c, err := e.behind(tt.header, pieces, e.pki.grantWithID(id, time.Hour, "GET /a"), "http/1.1")
				if err != nil {
					t.Fatal(err)
				}
				host, _, err := net.SplitHostPort(tt.peer)
				if err != nil {
					host = tt.peer
				}
				if got := ask(t, c).seen(t).Header["X-Forwarded-For"]; len(got) != 1 || got[0] != host {
					t.Errorf("the upstream was told %q", got)
				}
				for _, kind := range []string{kindRequest, kindConnection} {
					r := e.record(kind, func(r logLine) bool { return r.Kind == kind && r.Grant == id })
					if !strings.HasPrefix(r.Peer, tt.peer) {
						t.Errorf("record %+v", r)
					}
				}
			})
		}
	}
}

// TestProxyProtocolRequired: a trusted balancer that says nothing, or something
// else than one header of version 2, admits nobody: else whoever reaches the port
// past it would be written down as the balancer.
func TestProxyProtocolRequired(t *testing.T) {
	e := start(t, options{edit: trusting("127.0.0.1/32")})
	for name, tt := range map[string]struct{ first, reason string }{
		"no header":         {"", reasonProxyHeader},
		"version 1":         {"PROXY TCP4 203.0.113.7 192.0.2.1 4711 9443\r\n", reasonProxyHeader},
		"version 3":         {proxyHeader(0x31, 0x11, clientV4...), reasonProxyHeader},
		"another command":   {proxyHeader(0x22, 0x11, clientV4...), reasonProxyHeader},
		"no address":        {proxyHeader(0x21, 0x00), reasonProxyHeader},
		"UDP":               {proxyHeader(0x21, 0x12, clientV4...), reasonProxyHeader},
		"a Unix socket":     {proxyHeader(0x21, 0x31, make([]byte, 216)...), reasonProxyHeader},
		"short addresses":   {proxyHeader(0x21, 0x11, clientV4[:8]...), reasonProxyHeader},
		"an unknown family": {proxyHeader(0x21, 0x13, clientV4...), reasonProxyHeader},
		"far too long":      {proxyHeader(0x21, 0x11, make([]byte, 4000)...), reasonProxyHeader},
		"two headers":       {proxyHeader(0x21, 0x11, clientV4...) + proxyHeader(0x21, 0x11, clientV4...), reasonNotTLS},
		"half a header":     {proxyHeader(0x21, 0x11, clientV4...)[:20], ""}, // TLS's bytes fill it; what is left is no TLS
	} {
		t.Run(name, func(t *testing.T) {
			e := e.with(t)
			before := len(e.records())
			c, err := e.behind(tt.first, false, e.pki.grant(time.Hour, "GET /a"), "http/1.1")
			if err == nil {
				err = readError(c)
			}
			if err == nil {
				t.Error("it was admitted")
			}
			e.eventually("a record", func() bool { return len(e.records()) > before })
			r := e.records()[before]
			if r.Kind != kindHandshake || r.Decision != decisionRefuse || tt.reason != "" && r.Reason != tt.reason {
				t.Errorf("record %+v", r)
			}
			if r.Reason == reasonProxyHeader && !strings.HasPrefix(r.Peer, "127.0.0.1:") {
				t.Errorf("the record believes %s", r.Peer)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		e := start(t, options{edit: func(s *Settings) {
			trusting("127.0.0.1/32")(s)
			s.Limits.HandshakeTimeout = 200 * time.Millisecond
		}})
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := io.WriteString(c, proxyHeader(0x21, 0x11, clientV4...)[:15]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Log(err) // a reset will do
		}
		e.record("it", func(r logLine) bool { return r.Kind == kindHandshake && r.Reason == reasonTimeout })
	})
}

// TestProxyProtocolSpoofed: whoever is not a trusted balancer says another address
// than its own to no effect but a refusal, which names its own.
func TestProxyProtocolSpoofed(t *testing.T) {
	for name, edit := range map[string]func(*Settings){
		"from elsewhere": trusting("192.0.2.0/24", "fd00::/8"),
		"not configured": nil,
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: edit})
			cert := e.pki.grant(time.Hour, "GET /a")
			c, err := e.behind(proxyHeader(0x21, 0x11, clientV4...), false, cert, "http/1.1")
			if err == nil {
				err = readError(c)
			}
			if err == nil {
				t.Error("it was admitted")
			}
			r := e.record("it", func(r logLine) bool { return r.Kind == kindHandshake })
			if r.Reason != reasonNotTLS || !strings.HasPrefix(r.Peer, "127.0.0.1:") {
				t.Errorf("record %+v", r)
			}
			if c, err = e.behind("", false, cert, "http/1.1"); err != nil {
				t.Fatal(err)
			}
			if got := ask(t, c).seen(t).Header["X-Forwarded-For"]; len(got) != 1 || got[0] != "127.0.0.1" {
				t.Errorf("without a header the upstream was told %q", got)
			}
		})
	}
}

// TestProxyProtocolCut: behind a balancer, too, a cut is a reset and never the end
// of a stream, and the upstream is told whose bytes it gets.
func TestProxyProtocolCut(t *testing.T) {
	headers := make(chan *proxyproto.Header, 4)
	up := rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		h, err := proxyproto.Read(r)
		if err != nil {
			headers <- nil
			return
		}
		headers <- h
		_, _ = io.Copy(c, r) // ends with the connection
	})
	e := start(t, options{upstream: "tcp://" + hostOf(up), edit: func(s *Settings) {
		tcpService(s)
		trusting("127.0.0.0/8")(s)
		s.UpstreamProxyProtocol = "v2"
	}})
	for _, tt := range []struct{ name, first, source, destination string }{
		{"IPv4", proxyHeader(0x21, 0x11, clientV4...), "203.0.113.7:4711", "192.0.2.1:9443"},
		{"IPv6", proxyHeader(0x21, 0x21, clientV6...), "[2001:db8:2001:db8:2001:db8:2001:db8]:4711", "[2001:db9:2001:db9:2001:db9:2001:db9]:9443"},
		{"its own", proxyHeader(0x20, 0x00), "", e.addr},
	} {
		c, err := e.behind(tt.first, false, e.pki.grant(time.Hour, "tcp"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if got := make([]byte, 1); readFull(c, got) != nil || got[0] != 'x' {
			t.Fatalf("%q", got)
		}
		source := tt.source
		if source == "" {
			source = c.LocalAddr().String()
		}
		h := <-headers
		if h == nil || h.Version != 2 || h.SourceAddr.String() != source || h.DestinationAddr.String() != tt.destination {
			t.Errorf("%s: the upstream was told %+v", tt.name, h)
		}
		if tt.source == "" {
			continue
		}
		e.px.live.cutWhere("test", func(*conn) bool { return true })
		if err := readError(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the cut looked like %v", tt.name, err)
		}
	}
}

func readFull(r io.Reader, buf []byte) error {
	_, err := io.ReadFull(r, buf)
	return err
}

// FuzzProxyHeader: what is taken for a header is one in the eyes of another reader
// too (go-proxyproto, on all that came), names a TCP client or none, and nothing
// behind it is touched: a byte too many or too few would be missing from TLS.
func FuzzProxyHeader(f *testing.F) {
	for _, s := range []string{
		proxyHeader(0x21, 0x11, clientV4...), proxyHeader(0x21, 0x21, clientV6...), proxyHeader(0x20, 0x00), proxyHeader(0x20, 0x11, clientV4...),
		proxyHeader(0x21, 0x11, append(bytes.Clone(clientV4), 0x03, 0, 4, 1, 2, 3, 4)...), proxyHeader(0x21, 0x31, make([]byte, 216)...),
		"PROXY TCP4 203.0.113.7 192.0.2.1 4711 9443\r\n",
	} {
		for _, protocol := range []byte{0x00, 0x11, 0x12, 0x21, 0x22, 0x31} {
			f.Add([]byte(s+"\x16\x03\x01"), uint16(12), protocol)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		for _, data := range near.Of(data, at, b) {
			tryProxyHeader(t, data)
		}
	})
}

func tryProxyHeader(t *testing.T, data []byte) {
	t.Helper()
	r := bytes.NewReader(data)
	h, err := readProxyHeader(r)
	if err != nil {
		if h != nil {
			t.Errorf("%v, and a header", err)
		}
		return
	}
	long := 16 + int(data[14])<<8 + int(data[15])
	if used := len(data) - r.Len(); used != long {
		t.Errorf("%d bytes were taken for a header of %d", used, long)
	}
	other, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(data)))
	if err != nil || !h.EqualsTo(other) {
		t.Errorf("another reader has %+v, %v", other, err)
	}
	if data[12] == 0x20 {
		return
	}
	source, ok := h.SourceAddr.(*net.TCPAddr)
	if !ok || data[12] != 0x21 {
		t.Fatalf("a client at %v", h.SourceAddr)
	}
	at := data[16:20]
	if data[13] == 0x21 {
		at = data[16:32]
	}
	if !source.IP.Equal(net.IP(at)) {
		t.Errorf("the client is at %s, and was said to be at %v", source.IP, at)
	}
}
