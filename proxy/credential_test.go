package proxy

import (
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
)

// TestConnectorShowsGrantsOnly: a certificate that is no grant for the service
// is not shown to the service's proxy; nobody is even dialled.
func TestConnectorShowsGrantsOnly(t *testing.T) {
	p := newPKI(t)
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	named := func(uris ...string) tls.Certificate {
		return p.mint(leafSpec{uris: uris, issuer: p.grantIssuer, eku: client, notAfter: time.Now().Add(time.Hour)})
	}
	good := grantURI(t, "payments", newGrantID(t), "* /**")
	unparsed := named(grantURI(t, "orders", newGrantID(t), "* /**"))
	unparsed.Leaf = nil
	for name, cert := range map[string]tls.Certificate{
		"another service":         named(grantURI(t, "orders", newGrantID(t), "* /**")),
		"without a parsed leaf":   unparsed,
		"a prefix of its name":    named(grantURI(t, "payment", newGrantID(t), "* /**")),
		"an identity":             p.identity(alice),
		"two grants":              named(good, grantURI(t, "orders", newGrantID(t), "* /**")),
		"a version of the future": named(strings.Replace(good, "/v1/", "/v2/", 1)),
		"no name":                 p.mint(leafSpec{dns: []string{"payments.acme.test"}, issuer: p.grantIssuer, eku: client, notAfter: time.Now().Add(time.Hour)}),
		"no certificate":          {},
		"no X.509":                {Certificate: [][]byte{{1}}},
	} {
		t.Run(name, func(t *testing.T) {
			var lc net.ListenConfig
			ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ln.Close() }()
			var dialled atomic.Bool
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					dialled.Store(true)
					_ = c.Close()
				}
			}()
			e := &env{t: t, pki: p, addr: ln.Addr().String()}
			cfg := e.connectorConfig(fixedSource{cert})
			a, err := plainGet(t, e.connect(cfg, "127.0.0.1:0"), "/a")
			if err != nil || a.status != http.StatusBadGateway || !strings.Contains(a.body, "no valid certificate") {
				t.Errorf("%+v, %v", a, err)
			}
			cfg.TCP = true
			if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", e.connect(cfg, "127.0.0.1:0")); err == nil { // else it was reset at once
				if got, err := io.ReadAll(c); err == nil {
					t.Errorf("the connection ended well, after %q", got)
				}
				_ = c.Close()
			}
			direct, err := NewConnector(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := direct.Dial(t.Context()); !errors.Is(err, errNoCertificate) {
				t.Errorf("Dial: %v", err)
			}
			if dialled.Load() {
				t.Error("the proxy was dialled")
			}
		})
	}
}

// TestConnectorKeepsItsPool: a source that hands out the same certificate in new
// wrapping costs no new connections; a renewed one does.
func TestConnectorKeepsItsPool(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	var cert atomic.Pointer[tls.Certificate]
	renew := func() {
		c := e.pki.grant(time.Hour, "GET /**")
		cert.Store(&c)
	}
	renew()
	cfg := e.connectorConfig(sourceFunc(func(context.Context) (*tls.Certificate, error) {
		c := *cert.Load()
		return &c, nil
	}))
	addr := e.connect(cfg, "127.0.0.1:0")
	ask := func(n uint64) {
		t.Helper()
		for range 5 {
			if a, err := plainGet(t, addr, "/a"); err != nil || a.status != 200 {
				t.Fatalf("%+v, %v", a, err)
			}
		}
		if got := e.px.conns.Load(); got != n {
			t.Errorf("%d connections, want %d", got, n)
		}
	}
	ask(1)
	renew()
	ask(2)
}

// TestConnectorTrailers arrive, of request and answer.
func TestConnectorTrailers(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		_, _ = w.Write(body)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
	})})
	cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "PUT /**")})
	for _, traced := range []bool{false, true} {
		cfg.TracerProvider = nil
		if traced {
			cfg.TracerProvider = newTracing().provider
		}
		body, sent := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+e.connect(cfg, "127.0.0.1:0")+"/a", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-Sum": nil}
		go func() {
			_, _ = io.WriteString(sent, "data")
			req.Trailer.Set("X-Sum", "4")
			_ = sent.Close()
		}()
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || string(got) != "data" || res.Trailer.Get("X-Sum") != "4" {
			t.Errorf("traced %t: %q with trailers %v, %v", traced, got, res.Trailer, err)
		}
	}
}
