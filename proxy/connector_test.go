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
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// fixedSource always gives the same certificate.
type fixedSource struct{ cert tls.Certificate }

func (s fixedSource) Certificate(context.Context) (*tls.Certificate, error) { return &s.cert, nil }

type sourceFunc func(context.Context) (*tls.Certificate, error)

func (f sourceFunc) Certificate(ctx context.Context) (*tls.Certificate, error) { return f(ctx) }

func (e *env) connectorConfig(s CertSource) ConnectorConfig {
	td := spiffeid.RequireTrustDomainFromString(testTD)
	return ConnectorConfig{
		Service: "payments", Address: e.addr, TrustDomain: td, Host: "payments.acme.test",
		Bundle: x509bundle.FromX509Authorities(td, []*x509.Certificate{e.pki.idRoot.cert}), Source: s,
	}
}

// connect runs a connector and returns where it listens.
func (e *env) connect(cfg ConnectorConfig, listen string) string {
	e.t.Helper()
	c, err := NewConnector(cfg)
	if err != nil {
		e.t.Fatal(err)
	}
	return e.serveConnector(c, listen)
}

func (e *env) serveConnector(c *Connector, listen string) string {
	e.t.Helper()
	ln, err := ListenLocal(e.t.Context(), listen)
	if err != nil {
		e.t.Fatal(err)
	}
	e.runConnector(c, ln)
	return ln.Addr().String()
}

func (e *env) runConnector(c *Connector, ln net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx, ln) }()
	e.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			e.t.Errorf("connector: %v", err)
		}
	})
}

func plainGet(t testing.TB, addr, path string, headers ...string) (answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		} else {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(body)}, err
}

// TestConnectorHTTP: a program that knows nothing of certificates gets through,
// over loopback and over a socket; targets arrive as they were.
func TestConnectorHTTP(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	addr := e.connect(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "GET /accounts/**")}), "127.0.0.1:0")
	a, err := plainGet(t, addr, "/accounts/a%20b?x=%zz;y")
	if err != nil || a.status != 200 {
		t.Fatalf("%+v, %v", a, err)
	}
	s := a.seen(t)
	if s.Target != "/accounts/a%20b?x=%zz;y" || s.Host != "payments.acme.test" || s.Header.Get("X-Hallpass-Subject") != alice {
		t.Errorf("%+v", s)
	}
	if a, err := plainGet(t, addr, "/other"); err != nil || a.status != 403 || a.problem(t).Code != reasonOutsideScope {
		t.Errorf("%+v, %v", a, err)
	}

	path := t.TempDir() + "/c.sock"
	e.connect(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "GET /accounts/**")}), "unix:"+path)
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET /accounts/1 HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 200 ")) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestConnectorForeign: what pages in the user's browser can make it send.
func TestConnectorForeign(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	addr := e.connect(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "* /**")}), "127.0.0.1:0")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		headers []string
		status  int
	}{
		{"plain", nil, 200},
		{"localhost", []string{"Host", "localhost:" + port}, 200},
		{"the service's name", []string{"Host", "payments.acme.test"}, 200},
		{"DNS rebinding", []string{"Host", "evil.test:" + port}, 403},
		{"DNS rebinding, look-alike", []string{"Host", "127.0.0.1.evil.test"}, 403},
		{"a name that resolves here", []string{"Host", "localhost.evil.test"}, 403},
		{"cross-site form", []string{"Origin", "https://evil.test"}, 403},
		{"sandboxed frame", []string{"Origin", "null"}, 403},
		{"another port's page", []string{"Origin", "http://127.0.0.1:1"}, 403},
		{"own page", []string{"Origin", "http://" + addr, "Sec-Fetch-Site", "same-origin"}, 200},
		{"cross-site image", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"same site", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"typed by the user", []string{"Sec-Fetch-Site", "none"}, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := plainGet(t, addr, "/a", tt.headers...)
			if err != nil || a.status != tt.status {
				t.Errorf("%d %s, %v", a.status, a.body, err)
			}
		})
	}
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET http://localhost/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(c); !bytes.HasPrefix(got, []byte("HTTP/1.1 403 ")) {
		t.Errorf("as a forward proxy: %q", got)
	}
}

// TestConnectorStreams: WebSocket, gRPC and raw TCP.
func TestConnectorStreams(t *testing.T) {
	t.Run("websocket", func(t *testing.T) {
		e := start(t, options{upstream: wsUpstream(t)})
		addr := e.connect(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "GET /ws")}), "127.0.0.1:0")
		ctx := t.Context()
		c, _, err := websocket.Dial(ctx, "ws://"+addr+"/ws", nil) //nolint:bodyclose // the connection is the body's
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.CloseNow() }()
		if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != "hello" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("grpc", func(t *testing.T) {
		e := start(t, options{upstream: echoGRPC(t)})
		addr := e.connect(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "grpc a.B/*")}), "127.0.0.1:0")
		cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cc.Close() }()
		s, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/a.B/C")
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			m := []byte("hello")
			if err := s.SendMsg(&m); err != nil {
				t.Fatal(err)
			}
			var got []byte
			if err := s.RecvMsg(&got); err != nil || string(got) != "hello" {
				t.Fatalf("%q, %v", got, err)
			}
		}
	})
	t.Run("tcp", func(t *testing.T) {
		up, all := tcpUpstream(t)
		e := start(t, options{upstream: up, edit: tcpService})
		cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "tcp")})
		cfg.TCP = true
		addr := e.connect(cfg, "127.0.0.1:0")
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			t.Fatal("no TCP connection")
		}
		if err := tcp.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != "got 5" {
			t.Errorf("%q, %v", got, err)
		}
		if s := <-all; s.data != "hello" || s.err != nil {
			t.Errorf("%+v", s)
		}
	})
}

// TestConnectorVerifies: our certificate is not even shown to who is not the service.
func TestConnectorVerifies(t *testing.T) {
	p := newPKI(t)
	stranger := newPKI(t)
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for name, cert := range map[string]tls.Certificate{
		"another service":     p.serviceSVID("orders"),
		"a user":              p.identity("spiffe://acme.test/user/mallory"),
		"a stranger":          stranger.serviceSVID("payments"),
		"a grant":             p.mint(leafSpec{uris: []string{"spiffe://grants.acme.test/service/payments"}, issuer: p.grantIssuer, eku: server}),
		"no server's EKU":     p.mint(leafSpec{uris: []string{"spiffe://acme.test/service/payments"}, issuer: p.idIssuer, eku: p.grant(time.Hour, "tcp").Leaf.ExtKeyUsage}),
		"expired":             p.mint(leafSpec{uris: []string{"spiffe://acme.test/service/payments"}, issuer: p.idIssuer, eku: server, notBefore: time.Now().Add(-time.Hour), notAfter: time.Now().Add(-time.Second)}),
		"only the right name": p.mint(leafSpec{dns: []string{"payments.acme.test"}, issuer: p.idIssuer, eku: server}),
	} {
		t.Run(name, func(t *testing.T) {
			var shown atomic.Bool
			ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
				Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13,
				VerifyConnection: func(cs tls.ConnectionState) error { shown.Store(len(cs.PeerCertificates) > 0); return nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ln.Close() }()
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					_, _ = c.Read(make([]byte, 1))
					_ = c.Close()
				}
			}()
			e := &env{t: t, pki: p, addr: ln.Addr().String()}
			addr := e.connect(e.connectorConfig(fixedSource{p.grant(time.Hour, "* /**")}), "127.0.0.1:0")
			a, err := plainGet(t, addr, "/a")
			if err != nil || a.status != http.StatusBadGateway {
				t.Errorf("%d %s, %v", a.status, a.body, err)
			}
			if shown.Load() {
				t.Error("the certificate was shown")
			}
		})
	}
}

// TestConnectorRefusedByProxy: the user learns what to look at.
func TestConnectorRefusedByProxy(t *testing.T) {
	e := start(t, options{})
	expired := e.pki.grant(-time.Minute, "GET /")
	addr := e.connect(e.connectorConfig(fixedSource{expired}), "127.0.0.1:0")
	a, err := plainGet(t, addr, "/")
	if err != nil || a.status != http.StatusBadGateway || !strings.Contains(a.body, "refused the connection") {
		t.Errorf("%d %s, %v", a.status, a.body, err)
	}
	broken := sourceFunc(func(context.Context) (*tls.Certificate, error) { return nil, errors.New("renew certificate: no") })
	addr = e.connect(e.connectorConfig(broken), "127.0.0.1:0")
	if a, err := plainGet(t, addr, "/"); err != nil || a.status != http.StatusBadGateway || !strings.Contains(a.body, "no valid certificate") {
		t.Errorf("%d %s, %v", a.status, a.body, err)
	}
}

// TestConnectorRenews: certificates of a few seconds, one after the other, carry
// requests for longer than any of them lives, without one failing.
func TestConnectorRenews(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	id := newGrantID(t)
	var fetched atomic.Int64
	source := NewRenewingSource(func(context.Context) (*tls.Certificate, error) {
		fetched.Add(1)
		c := e.pki.grantWithID(id, 4*time.Second, "GET /**")
		c.Leaf = nil
		return &c, nil
	}, nil)
	addr := e.connect(e.connectorConfig(source), "127.0.0.1:0")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	n := 0
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); n++ {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/a", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := bufio.NewReader(res.Body).ReadString('\n')
		_ = res.Body.Close()
		if res.StatusCode != 200 {
			t.Fatalf("request %d: %d %s", n, res.StatusCode, body)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if f := fetched.Load(); f < 2 || f > 8 {
		t.Errorf("%d certificates fetched for %d requests", f, n)
	}
}

// TestBadConnector: what cannot work is said at once.
func TestBadConnector(t *testing.T) {
	e := &env{t: t, pki: newPKI(t), addr: "127.0.0.1:1"}
	for name, spoil := range map[string]func(*ConnectorConfig){
		"service":      func(c *ConnectorConfig) { c.Service = "Payments" },
		"address":      func(c *ConnectorConfig) { c.Address = "payments" },
		"source":       func(c *ConnectorConfig) { c.Source = nil },
		"bundle":       func(c *ConnectorConfig) { c.Bundle = nil },
		"trust domain": func(c *ConnectorConfig) { c.TrustDomain = spiffeid.TrustDomain{} },
	} {
		cfg := e.connectorConfig(fixedSource{})
		spoil(&cfg)
		if _, err := NewConnector(cfg); !errors.Is(err, ErrConnector) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
