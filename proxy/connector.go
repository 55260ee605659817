package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/grant"
)

// ErrConnector is returned when a ConnectorConfig cannot be used.
var ErrConnector = errors.New("bad connector configuration")

// ConnectorConfig is all that a Connector is made of.
type ConnectorConfig struct {
	// Service is the short name of the service, and Address its proxy's HOST:PORT.
	Service string
	Address string
	// TrustDomain is the identities' domain, and Bundle its roots: the proxy must
	// prove to be spiffe://TRUSTDOMAIN/service/SERVICE.
	TrustDomain spiffeid.TrustDomain
	Bundle      x509bundle.Source
	// Source gives the grant certificate to dial with, for every call. With Wallet
	// instead, each call goes out with a live grant that allows it.
	Source CertSource
	Wallet Wallet
	// Standing is what the identity may do without a grant; nil: nothing. OnDemand has
	// the rest asked for; nil: it is refused here. Both are for a Wallet.
	Standing *Standing
	OnDemand *OnDemand
	// Permission is what a service of bytes needs; zero: tcp.
	Permission grant.Permission
	// TCP carries bytes; otherwise HTTP requests are carried.
	TCP bool
	// Host is the name the proxy knows the service by; "" is Address's host.
	Host string
	// Logger may be nil. Now may be nil: time.Now.
	Logger *slog.Logger
	Now    func() time.Time
	// TracerProvider may be nil: then there are no spans, and a traceparent passes
	// through as it came.
	TracerProvider trace.TracerProvider
}

// Connector is the client's end: it listens for programs on this machine that
// know nothing of certificates, and carries what they say to a service's proxy.
type Connector struct {
	service       string
	address, host string
	want          spiffeid.ID
	bundle        x509bundle.Source
	source        CertSource
	tcp           bool
	log           *slog.Logger
	now           func() time.Time
	tracer        trace.Tracer         // nil: nothing is traced
	peer          []attribute.KeyValue // of every span
	silence       time.Duration        // of a proxy, after which it is asked whether it is there

	look    time.Duration // at most, until a renewed certificate is presented
	links   *links
	lane    *lane    // of the one source; without a source where there is a wallet
	wallet  Wallet   // nil where there is one source
	idLane  *lane    // of standing access; nil: there is none
	demands *demands // nil: nothing is asked for

	permission grant.Permission // that a service of bytes needs

	mu    sync.Mutex // owns what follows
	lanes map[*RenewingSource]*lane
}

const (
	connectTimeout = 10 * time.Second
	acceptWait     = 5 * time.Millisecond // doubled each time
)

// NewConnector checks the configuration. It dials nothing yet.
func NewConnector(cfg ConnectorConfig) (*Connector, error) {
	if err := grant.ValidService(cfg.Service); err != nil {
		return nil, fmt.Errorf("%w: service %q", ErrConnector, cfg.Service)
	}
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil || host == "" {
		return nil, fmt.Errorf("%w: address %q is no HOST:PORT", ErrConnector, cfg.Address)
	}
	if cfg.Bundle == nil || (cfg.Source == nil) == (cfg.Wallet == nil) || cfg.TrustDomain.IsZero() {
		return nil, fmt.Errorf("%w: trust domain, bundle and one of certificate source and wallet are needed", ErrConnector)
	}
	if cfg.Wallet == nil && (cfg.Standing != nil || cfg.OnDemand != nil) {
		return nil, fmt.Errorf("%w: standing access and access on demand need a wallet", ErrConnector)
	}
	want, err := spiffeid.FromSegments(cfg.TrustDomain, "service", cfg.Service)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConnector, err)
	}
	c := &Connector{
		service: cfg.Service, address: cfg.Address, host: cfg.Host, want: want, bundle: cfg.Bundle, source: cfg.Source,
		tcp: cfg.TCP, log: cfg.Logger, now: cfg.Now, peer: peerAttributes(cfg.Address),
		silence: 10 * time.Second, look: time.Second,
	}
	c.links = newLinks(c)
	c.lane = &lane{c: c, source: cfg.Source}
	c.hold(cfg)
	if cfg.TracerProvider != nil {
		c.tracer = cfg.TracerProvider.Tracer(scopeName)
	}
	if c.host == "" {
		c.host = host
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	return c, nil
}

// Serve carries what comes in on ln until ctx ends. ln should come from
// ListenLocal: whoever can connect to it acts with this grant.
func (c *Connector) Serve(ctx context.Context, ln net.Listener) error {
	c.links.enter()
	defer c.links.leave()
	if c.tcp {
		return c.serveTCP(ctx, ln)
	}
	return c.serveHTTP(ctx, ln)
}

// Dial opens a connection to the proxy with the certificate of now. In TLS 1.3
// the proxy's refusal of that certificate comes with the first read.
func (c *Connector) Dial(ctx context.Context, protocols ...string) (*tls.Conn, error) {
	if c.wallet != nil {
		return nil, fmt.Errorf("%w: which grant is to be used depends on the call", errNoCertificate)
	}
	cred, err := c.lane.credential(ctx)
	if err != nil {
		return nil, err
	}
	return c.dialWith(ctx, cred, protocols)
}

func (c *Connector) dialWith(ctx context.Context, cred *credential, protocols []string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// A connection that carries nothing must end as well when the proxy is gone.
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: c.silence, Interval: c.silence / 2, Count: 3}}
	raw, err := d.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", c.address, err)
	}
	t := tls.Client(&socket{Conn: raw}, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		ServerName: c.host,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return cred.cert, nil
		},
		InsecureSkipVerify:     true, //nolint:gosec // the name in the certificate is a SPIFFE ID, checked below
		SessionTicketsDisabled: true,
		// Runs before our certificate is shown, so that a proxy that is not the
		// service's does not even learn of the grant.
		VerifyConnection: func(cs tls.ConnectionState) error { return c.verify(cs.PeerCertificates) },
	})
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s: %w", c.address, err), ignoreClosed(raw.Close()))
	}
	return t, nil
}

func (c *Connector) verify(chain []*x509.Certificate) error {
	id, _, err := x509svid.Verify(chain, c.bundle, x509svid.WithTime(wall(c.now)))
	if err != nil {
		return err
	}
	if id != c.want {
		return fmt.Errorf("%s answers at %s; want %s", id, c.address, c.want)
	}
	if !slices.Contains(chain[0].ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return errors.New("the proxy's extended key usage has no serverAuth")
	}
	return nil
}

// serveTCP carries each local connection in a stream, or in a connection of its
// own to a proxy that carries no streams.
func (c *Connector) serveTCP(ctx context.Context, ln net.Listener) error {
	_, overTCP := ln.Addr().(*net.TCPAddr)
	running, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(running, func() { _ = ln.Close() }) // ends Accept
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wait := acceptWait
	for {
		local, err := ln.Accept()
		var te interface{ Temporary() bool }
		switch {
		case err == nil:
			wait = acceptWait
			wg.Go(func() { c.carry(running, local, overTCP) })
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &te) && te.Temporary(): // out of file descriptors: those that carry must not die of it
			c.log.Warn("accept", slog.Any("error", err))
			time.Sleep(wait)
			wait = min(2*wait, time.Second)
		default:
			return err
		}
	}
}

func (c *Connector) carry(ctx context.Context, local net.Conn, overTCP bool) {
	defer func() { _ = local.Close() }() // both ends are done with it
	ctx, span := c.carryingTCP(ctx)
	var in, out atomic.Int64
	remote, err := c.dialTCP(ctx, span)
	if err != nil {
		c.log.Error("cannot reach the proxy", slog.Any("error", err))
		span.failed(err)
		breakOff(local)
		return
	}
	defer func() { _ = remote.Close() }() // as above
	stop := context.AfterFunc(ctx, func() {
		breakOff(local)
		breakOffTLS(remote)
	})
	defer stop()
	var wg sync.WaitGroup
	var broken atomic.Pointer[error] // the first
	one := func(to io.Writer, from io.Reader, n *atomic.Int64) {
		if err := pipe(to, from, n); err != nil && broken.CompareAndSwap(nil, &err) {
			c.log.Warn("connection broke off", slog.Any("error", err))
			breakOff(local)
			breakOffTLS(remote)
		}
	}
	said := local
	if overTCP {
		said = &notForeign{Conn: local, foreign: func(r *http.Request) string { return c.foreign(r, true) }}
	}
	wg.Go(func() { one(remote, said, &in) })
	one(local, remote, &out)
	wg.Wait()
	if why := broken.Load(); why != nil {
		err = *why
	}
	span.carried(&in, &out, err)
}

func (c *Connector) dialTCP(ctx context.Context, span *carrying) (net.Conn, error) {
	ln, err := c.laneFor(ctx, want{need: c.permission})
	if err != nil {
		return nil, err
	}
	cred, err := ln.credential(ctx)
	if err != nil {
		return nil, err
	}
	span.under(cred)
	remote, err := c.openStream(ctx, ln)
	if err != nil {
		return nil, err
	}
	span.from(remote)
	return remote, nil
}

// openStream opens a connection to a service of bytes, in a stream if the proxy
// carries any.
func (c *Connector) openStream(ctx context.Context, ln *lane) (net.Conn, error) {
	l, raw, err := c.links.get(ctx, ln)
	switch {
	case err != nil:
		return nil, err
	case raw != nil:
		return raw, nil
	case l.carrier:
		return l.open(ctx)
	default:
		l.release()
		return nil, errors.New("the proxy speaks HTTP/2, and carries no streams")
	}
}

// breakOffTLS breaks off what a TLS connection is carried in, without close_notify.
func breakOffTLS(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	breakOff(c)
}

// pipe copies one direction and hands its end on as a half-close. An end that
// TLS did not say is none: whoever can cut the wire must not make half a download
// look like a whole one.
func pipe(to io.Writer, from io.Reader, n *atomic.Int64) error {
	m, err := io.Copy(to, from)
	n.Add(m)
	switch {
	case errors.Is(err, net.ErrClosed):
		// The other direction, or the end of all, has broken off what this one copies, or is about to: an end that
		// is handed on meanwhile would make half an upload look like a whole one.
		return nil
	case err != nil:
		return err
	case truncated(from):
		return errTruncated
	}
	if hc, ok := to.(halfCloser); ok {
		_ = hc.CloseWrite() // the other side may be gone already
	}
	return nil
}
