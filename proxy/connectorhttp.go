package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/propagation"
)

// pool carries requests under one certificate. When the certificate is renewed
// a new pool takes over: requests then leave on connections that live on, while
// the old ones finish what they carry.
type pool struct {
	cred *credential
	h2   *http.Transport
	h1   *http.Transport // for WebSocket, which HTTP/2 would need extended CONNECT for
}

func (c *Connector) newPool(cred *credential) *pool {
	transport := func(protocols ...string) *http.Transport {
		return &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return c.dialWith(ctx, cred, protocols)
			},
			ForceAttemptHTTP2:     len(protocols) > 1,
			DisableCompression:    true,
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       60 * time.Second,
			ExpectContinueTimeout: time.Second,
			// A proxy that falls silent, as one does when a laptop changes its network,
			// is found out; the connection would hold up requests for a quarter of an hour.
			HTTP2: &http.HTTP2Config{SendPingTimeout: c.silence, PingTimeout: c.silence / 2},
		}
	}
	return &pool{cred: cred, h2: transport("h2", "http/1.1"), h1: transport("http/1.1")}
}

func (p *pool) retire() {
	p.h2.CloseIdleConnections()
	p.h1.CloseIdleConnections()
}

// RoundTrip sends one request with the certificate of now.
func (c *Connector) RoundTrip(r *http.Request) (*http.Response, error) {
	r, span := c.carryingHTTP(r)
	res, err := c.send(r, span)
	if err != nil {
		span.failed(err)
		return nil, err
	}
	span.answered(res)
	return res, nil
}

func (c *Connector) send(r *http.Request, span *carrying) (*http.Response, error) {
	cred, err := c.credential(r.Context())
	if err != nil {
		return nil, err
	}
	span.under(cred)
	p := c.poolOf(cred)
	if r.Header.Get("Upgrade") != "" {
		return p.h1.RoundTrip(r)
	}
	return p.h2.RoundTrip(r)
}

// poolOf is the pool of a credential; that of the one before is retired.
func (c *Connector) poolOf(cred *credential) *pool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pool == nil || c.pool.cred != cred {
		if c.pool != nil {
			c.pool.retire()
		}
		c.pool = c.newPool(cred)
	}
	return c.pool
}

// serveHTTP is a reverse proxy for programs on this machine. It returns when the
// last request has ended.
func (c *Connector) serveHTTP(ctx context.Context, ln net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC clients without TLS, by prior knowledge
	_, overTCP := ln.Addr().(*net.TCPAddr)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var requests tally
	srv := &http.Server{
		Handler:                      requests.of(c.handler(overTCP)),
		Protocols:                    protocols,
		ReadHeaderTimeout:            30 * time.Second,
		IdleTimeout:                  2 * time.Minute,
		MaxHeaderBytes:               128 << 10,
		DisableGeneralOptionsHandler: true, // OPTIONS * would be answered unseen
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, local net.Conn) context.Context {
			return context.WithValue(ctx, localKey{}, local)
		},
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // ends Serve
	defer stop()
	err := srv.Serve(ln)
	ended := ctx.Err() != nil
	cancel()
	requests.wait()
	c.mu.Lock()
	if c.pool != nil {
		c.pool.retire()
	}
	c.mu.Unlock()
	if errors.Is(err, http.ErrServerClosed) && ended {
		return nil
	}
	return err
}

type localKey struct{}

// breakWith breaks a connection off when ctx ends: net/http closes none that has
// switched protocols, and a program that neither reads nor writes would keep it.
func breakWith(r *http.Request) (stop func() bool) {
	local, ok := r.Context().Value(localKey{}).(net.Conn)
	if !ok || r.Header["Upgrade"] == nil {
		return func() bool { return true }
	}
	return context.AfterFunc(r.Context(), func() { breakOff(local) })
}

// tally counts the requests under way.
type tally struct {
	mu   sync.Mutex // owns over
	over bool
	wg   sync.WaitGroup
}

func (t *tally) of(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.mu.Lock()
		if t.over {
			t.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		t.wg.Add(1)
		t.mu.Unlock()
		defer t.wg.Done()
		next.ServeHTTP(w, r)
	})
}

// wait lets nothing more begin and waits for what has.
func (t *tally) wait() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.wg.Wait()
}

func (c *Connector) handler(overTCP bool) http.Handler {
	rp := &httputil.ReverseProxy{
		Transport:     c,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
		Rewrite: func(pr *httputil.ProxyRequest) {
			// The target as it came, byte for byte: the proxy reads it, nobody before.
			pr.Out.URL = &url.URL{Scheme: "https", Host: c.address, Opaque: pr.In.RequestURI}
			pr.Out.Host = c.host
			pr.Out.Trailer = pr.In.Trailer // filled in while the body is read
			if pr.Out.Header.Get("Origin") != "" {
				pr.Out.Header.Set("Origin", "https://"+c.host)
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			c.log.Error("request not carried", slog.Any("error", err))
			_, detail := connectTrouble(err)
			c.answer(w, newProblem(http.StatusBadGateway, "proxy_unreachable", detail, c.service))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if why := c.foreign(r, overTCP); why != "" {
			c.answer(w, newProblem(http.StatusForbidden, "foreign_origin", why, c.service))
			return
		}
		if strings.HasPrefix(r.RequestURI, "//") {
			// net/url takes what follows for a host, and would ask for another path.
			c.answer(w, newProblem(http.StatusBadRequest, "ambiguous_path", "the path begins with two slashes", c.service))
			return
		}
		if c.tracer != nil {
			r = r.WithContext(propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header)))
		}
		defer breakWith(r)()
		rp.ServeHTTP(w, r)
	})
}

func (c *Connector) answer(w http.ResponseWriter, pr problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(pr.Status)
	_, _ = w.Write(pr.json()) // who asked may be gone
}

// connectTrouble says what went wrong, in one word for machines and in words that
// help and give nothing away.
func connectTrouble(err error) (kind, detail string) {
	text := err.Error()
	switch {
	// The second is what HTTP/2 makes of a TLS alert that comes with its first read.
	case strings.Contains(text, "remote error: tls"), strings.Contains(text, "could not be established"):
		return "proxy_refused", "the proxy refused the connection, most likely for its certificate; see `hallpass status` and the proxy's access log"
	case errors.Is(err, errNoCertificate):
		return "no_certificate", "there is no valid certificate and none could be fetched"
	default:
		return "proxy_unreachable", "the proxy could not be reached or is not the service's"
	}
}

// foreign says why a request must not be carried, or "". A listener on loopback
// can be reached by every page the user's browser has open: by DNS rebinding,
// with a Host of the attacker's, or by a plain cross-site form or fetch.
func (c *Connector) foreign(r *http.Request, overTCP bool) string {
	if !strings.HasPrefix(r.RequestURI, "/") {
		return "this is no forward proxy"
	}
	if overTCP && !c.ownHost(r.Host) {
		return "Host is neither loopback nor the service"
	}
	for _, origin := range r.Header["Origin"] {
		if origin != "http://"+r.Host {
			return "the request comes from a page of another origin"
		}
	}
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" {
			return "the request comes from a page of another site"
		}
	}
	return ""
}

// ownHost says whether a Host is this machine's or the service's.
func (c *Connector) ownHost(h string) bool {
	name, _, err := net.SplitHostPort(h)
	if err != nil {
		name = h
		if inner, ok := strings.CutPrefix(h, "["); ok {
			name = strings.TrimSuffix(inner, "]")
		}
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.IsLoopback() && ip.Zone() == ""
	}
	return strings.EqualFold(name, "localhost") || strings.EqualFold(name, c.host)
}
