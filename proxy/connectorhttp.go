package proxy

import (
	"context"
	"errors"
	"io"
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

// http1 is the HTTP/1 connections of one certificate: for WebSocket, and for other
// makers' proxies that speak nothing newer. When the certificate is renewed, new
// ones take over, while the old ones finish what they carry.
type http1 struct {
	cred *credential
	*http.Transport
}

// over1 is the HTTP/1 connections of a credential; those of the one before are retired.
func (ln *lane) over1(cred *credential) *http1 {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.h1 == nil || ln.h1.cred != cred {
		if ln.h1 != nil {
			ln.h1.CloseIdleConnections()
		}
		ln.h1 = &http1{cred, &http.Transport{
			DialTLSContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return ln.dial1(ctx, cred) },
			DisableCompression:    true,
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       60 * time.Second,
			ExpectContinueTimeout: time.Second,
		}}
	}
	return ln.h1
}

// dial1 opens a connection for HTTP/1: a stream, which is renewed along with what
// carries it, or else one of its own.
func (ln *lane) dial1(ctx context.Context, cred *credential) (net.Conn, error) {
	l, raw, err := ln.c.links.get(ctx, ln)
	switch {
	case err != nil:
		return nil, err
	case raw != nil:
		return raw, nil
	case l.carrier:
		// The transport's dial ends before what it has dialled does.
		return l.open(context.WithoutCancel(ctx))
	}
	l.release()
	return ln.c.dialWith(ctx, cred, []string{"http/1.1"})
}

// release gives back the stream that was reserved on l.
func (l *link) release() {
	_, _ = l.cc.RoundTrip(new(http.Request)) //nolint:bodyclose // as http2.ClientConnPool says: it is refused, and the reservation gone
}

// RoundTrip sends one request with the certificate of now, while Serve runs.
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

// laneOf is what a request goes out with. It may wait; the request's body is not
// touched before it is sent, once.
func (c *Connector) laneOf(r *http.Request) (*lane, error) {
	if c.wallet == nil {
		return c.lane, nil
	}
	w, err := c.wantOf(r)
	if err != nil {
		return nil, err
	}
	return c.laneFor(r.Context(), w)
}

func (c *Connector) send(r *http.Request, span *carrying) (*http.Response, error) {
	ln, err := c.laneOf(r)
	if err != nil {
		return nil, err
	}
	cred, err := ln.credential(r.Context())
	if err != nil {
		return nil, err
	}
	span.under(cred)
	if own, ok := r.Context().Value(bodyKey{}).(io.ReadCloser); ok && r.Body != nil {
		r = r.WithContext(r.Context())
		r.Body = own
	}
	if r.Header.Get("Upgrade") != "" || c.links.plain.Load() {
		return ln.over1(cred).RoundTrip(r)
	}
	res, err := c.links.roundTrip(r, ln)
	if errors.Is(err, errNoStreams) { // and the request has not been touched
		return ln.over1(cred).RoundTrip(r)
	}
	return res, err
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
	c.rest()
	if errors.Is(err, http.ErrServerClosed) && ended {
		return nil
	}
	return err
}

type localKey struct{}

// bodyKey is the key of a request's body as the server gave it, of HTTP/2. What
// httputil.ReverseProxy makes of it does nothing when it is closed, and http2's
// transport closes it to stop reading when a connection has broken off, and waits for
// that before it tells whoever reads the answer. A program that is silent itself, as
// at the far end of a gRPC stream, would wait for ever on what has ended.
type bodyKey struct{}

// rest closes what carries nothing.
func (c *Connector) rest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ln := range c.lanes {
		ln.rest()
	}
	c.lane.rest()
}

func (ln *lane) rest() {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.h1 != nil {
		ln.h1.CloseIdleConnections()
	}
}

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
			if no, ok := errors.AsType[*notGranted](err); ok {
				c.log.Warn("request not carried", slog.Any("error", err), slog.String("permission", no.problem.Permission))
				if isGRPC(r.Header) {
					sendGRPC(w, r, no.problem)
					return
				}
				c.answer(w, no.problem)
				return
			}
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
		if r.ProtoMajor == 2 {
			r = r.WithContext(context.WithValue(r.Context(), bodyKey{}, r.Body))
		}
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
	var no *notGranted
	switch {
	case errors.As(err, &no):
		return no.problem.Code, no.problem.Detail
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

// ownHost says whether a Host is this machine's or the service's. It is read in one way alone (RFC 9110, section 7.2: a name and a
// port of digits): "127.0.0.1:80@elsewhere" begins as loopback does, and whoever parses it as a URL is led elsewhere.
func (c *Connector) ownHost(h string) bool {
	name := h
	if i := strings.LastIndexByte(h, ':'); i > strings.LastIndexByte(h, ']') {
		if strings.Trim(h[i+1:], "0123456789") != "" {
			return false
		}
		name = h[:i]
	}
	inner, bracketed := strings.CutPrefix(name, "[")
	if bracketed {
		if name, bracketed = strings.CutSuffix(inner, "]"); !bracketed {
			return false
		}
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.IsLoopback() && ip.Zone() == "" && ip.Is6() == bracketed
	}
	return !bracketed && (strings.EqualFold(name, "localhost") || strings.EqualFold(name, c.host))
}
