package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
)

const (
	headerKey   = "Idempotency-Key"
	headerIndex = "X-Hallpass-Index"

	// maxAnswer bounds what the client reads of one answer.
	maxAnswer = 16 << 20

	minBackoff = 25 * time.Millisecond
	maxBackoff = 250 * time.Millisecond
)

// ErrUnauthenticated is returned when no server accepts the client's
// certificate: expired, of another trust domain, or a grant certificate.
var ErrUnauthenticated = errors.New("the server does not accept this identity")

// errNotNode is in the error of a call to a server that is no control node.
var errNotNode = errors.New("the server is not a control node")

// ClientConfig says which cluster to talk to, and as whom.
type ClientConfig struct {
	// Servers are the control nodes' URLs, https://host:port. Any one serves.
	Servers []string
	// Identity is a folder with cert.pem, key.pem and identity-bundle.pem. The
	// certificate is read again for each connection, so a renewed one is used.
	Identity string
	// Certificate and Roots are used instead of Identity.
	Certificate *tls.Certificate
	Roots       *x509.CertPool
	// Node is the id of the only control node that may answer; empty: any.
	Node string
	// Timeout bounds one attempt at one server; zero means 10 s. A blocking
	// read adds its wait.
	Timeout time.Duration
	// RetryFor bounds how long a call is repeated while servers cannot answer;
	// zero means 10 s, negative means one round.
	RetryFor time.Duration
	// Logger gets a line a failover; nil means none.
	Logger *slog.Logger
	// TracerProvider makes a span an attempt; with nil there are none, and the
	// trace of a call's context is sent along as it is.
	TracerProvider trace.TracerProvider
	// DialContext replaces the dialer; nil means TCP.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client calls the API. It is safe for concurrent use.
type Client struct {
	servers  []string
	http     *http.Client
	pool     *http.Transport // under http
	tls      *tls.Config
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	timeout  time.Duration
	retryFor time.Duration
	log      *slog.Logger
	current  atomic.Uint32 // the server that last answered
}

// NewClient makes a Client. It opens no connection.
func NewClient(cfg ClientConfig) (*Client, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("api client: no server given")
	}
	c := &Client{timeout: cfg.Timeout, retryFor: cfg.RetryFor, log: cfg.Logger}
	if c.timeout == 0 {
		c.timeout = 10 * time.Second
	}
	if c.retryFor == 0 {
		c.retryFor = 10 * time.Second
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	for _, s := range cfg.Servers {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("api client: server %q: want https://host:port", s)
		}
		c.servers = append(c.servers, "https://"+u.Host)
	}
	conf, err := clientTLS(cfg)
	if err != nil {
		return nil, err
	}
	c.tls, c.dial = conf.Clone(), cfg.DialContext
	if c.dial == nil {
		c.dial = (&net.Dialer{}).DialContext
	}
	c.pool = &http.Transport{
		TLSClientConfig:     conf,
		ForceAttemptHTTP2:   true,
		DialContext:         cfg.DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     time.Minute,
		// A node that falls silent is found out within seconds, not at the
		// end of each call's time.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 3 * time.Second, PingTimeout: 3 * time.Second},
	}
	c.http = &http.Client{
		Transport: traced(c.pool, cfg.TracerProvider),
		// A redirect would send the body and the key to a place nobody named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.pool.CloseIdleConnections() }

func clientTLS(cfg ClientConfig) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: cfg.Roots}
	if cfg.Certificate != nil {
		if cfg.Roots == nil {
			return nil, errors.New("api client: Certificate is given without Roots")
		}
		cert := cfg.Certificate
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		conf.VerifyConnection = cfg.verifyNode
		return conf, nil
	}
	if cfg.Identity == "" {
		return nil, errors.New("api client: no identity given")
	}
	certFile, keyFile := filepath.Join(cfg.Identity, "cert.pem"), filepath.Join(cfg.Identity, "key.pem")
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		return nil, fmt.Errorf("api client: identity: %w", err)
	}
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		return &cert, err
	}
	pem, err := os.ReadFile(filepath.Join(cfg.Identity, "identity-bundle.pem"))
	if err != nil {
		return nil, fmt.Errorf("api client: identity: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("api client: identity-bundle.pem holds no certificate")
	}
	conf.VerifyConnection = cfg.verifyNode
	return conf, nil
}

// verifyNode refuses a server that has a right certificate for the dialled
// name, yet is a service or a person: an issued service identity that carries a
// control node's DNS name would otherwise pass for the control plane.
func (cfg ClientConfig) verifyNode(cs tls.ConnectionState) error {
	for _, u := range cs.PeerCertificates[0].URIs {
		switch id, ok := strings.CutPrefix(u.Path, "/node/"); {
		case !ok:
			return fmt.Errorf("%w: it is %s", errNotNode, u)
		case cfg.Node != "" && id != cfg.Node:
			// One stolen node would be several to whoever asks them all.
			return fmt.Errorf("%w %q: it is %s", errNotNode, cfg.Node, u)
		}
	}
	if cfg.Node != "" && len(cs.PeerCertificates[0].URIs) != 1 {
		return fmt.Errorf("%w: it has no name", errNotNode)
	}
	return nil
}

// CallOption changes one call.
type CallOption func(*call)

// WithKey sends this Idempotency-Key instead of a fresh one: for a caller that
// remembers it across its own restarts.
func WithKey(key string) CallOption { return func(c *call) { c.key = key } }

// Stale accepts an answer from the node's own state, without asking the leader.
func Stale() CallOption { return func(c *call) { c.query.Set("stale", "true") } }

// call is one API call, repeated over servers until one answers.
type call struct {
	method, path string
	query        url.Values
	body         []byte
	key          string
	wait         time.Duration
	sink         func(io.Reader) error // takes the answer, instead of what do was given
	index        uint64                // X-Hallpass-Index of the answer
}

func newCall(method, path string, opts []CallOption) *call {
	cl := &call{method: method, path: path, query: url.Values{}}
	for _, o := range opts {
		o(cl)
	}
	return cl
}

func (c *Client) get(ctx context.Context, path string, query url.Values, out any, opts []CallOption) error {
	cl := newCall(http.MethodGet, path, opts)
	maps.Copy(cl.query, query)
	return c.do(ctx, cl, out)
}

func (c *Client) post(ctx context.Context, path string, in, out any, opts []CallOption) error {
	cl := newCall(http.MethodPost, path, opts)
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	cl.body = body
	if cl.key == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("idempotency key: %w", err)
		}
		cl.key = id.String()
	}
	return c.do(ctx, cl, out)
}

// do tries the servers in turn, starting with the one that last answered,
// until one gives an answer that another server would give too. A POST is
// repeated under its one Idempotency-Key only.
func (c *Client) do(ctx context.Context, cl *call, out any) error {
	deadline := time.Now().Add(c.retryFor)
	first := c.current.Load()
	backoff := minBackoff
	var said *Problem // by a node in this round: it says more than that another is down
	var refusal error // by a node in this round, of this identity
	for n := uint32(0); ; n++ {
		at := (first + n) % uint32(len(c.servers))
		err := c.attempt(ctx, c.servers[at], cl, out)
		if pause := toldToWait(err, CodeLimit); pause > 0 && ctx.Err() == nil {
			if time.Now().Add(pause).After(deadline) {
				return err
			}
			if err := sleep(ctx, pause+rand.N(maxBackoff)); err != nil { //nolint:gosec // jitter
				return err
			}
			n-- // the same server again: going round the others is what is not wanted
			continue
		}
		if !retryable(err) || ctx.Err() != nil {
			if err == nil {
				c.current.Store(at)
			}
			return err
		}
		c.log.LogAttrs(ctx, slog.LevelDebug, "trying another server",
			slog.String("server", c.servers[at]), slog.String("error", err.Error()))
		_ = errors.As(err, &said)
		if errors.Is(err, ErrUnauthenticated) {
			refusal = err
		}
		if (n+1)%uint32(len(c.servers)) != 0 {
			continue
		}
		// A node without a leader says when to come back, too, but elections take
		// less than the second that a header can say.
		pause := max(backoff/2+rand.N(backoff), toldToWait(err, CodeUnavailable)) //nolint:gosec // jitter
		switch {
		case refusal != nil && said == nil: // whoever says anything else has accepted it
			return refusal
		case unverified(err):
			return err
		case !time.Now().Before(deadline) && said != nil:
			return said
		case !time.Now().Before(deadline):
			return err
		}
		if err := sleep(ctx, min(pause, max(time.Until(deadline), backoff))); err != nil {
			return err
		}
		said, refusal, backoff = nil, nil, min(2*backoff, maxBackoff)
	}
}

// attempt makes the call at one server.
func (c *Client) attempt(ctx context.Context, server string, cl *call, out any) error {
	if cl.sink != nil {
		return c.download(ctx, server, cl)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout+cl.wait)
	defer cancel()
	resp, err := c.send(ctx, server, cl, "application/json")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return &transportError{cl.method + " " + server + cl.path, err}
	}
	if resp.StatusCode >= 300 {
		return readProblem(resp, body)
	}
	cl.index, _ = strconv.ParseUint(resp.Header.Get(headerIndex), 10, 64)
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%s %s: answer: %w", cl.method, cl.path, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, server string, cl *call, accept string) (*http.Response, error) {
	target := server + cl.path
	if len(cl.query) > 0 {
		target += "?" + cl.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, cl.method, target, bytes.NewReader(cl.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", "hallpass")
	if cl.method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set(headerKey, cl.key)
	}
	injectTrace(ctx, req.Header)
	resp, err := c.http.Do(req)
	if err != nil {
		if refused(err) {
			return nil, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
		}
		if alert := c.alert(ctx, server, err); alert != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnauthenticated, alert)
		}
		if called, ok := errors.AsType[*url.Error](err); ok {
			err = called.Err // the rest of it is said already
		}
		return nil, &transportError{cl.method + " " + server + cl.path, err}
	}
	return resp, nil
}

// transportError is a call that got no answer.
type transportError struct {
	op  string
	err error
}

func (e *transportError) Error() string { return e.op + ": " + e.err.Error() }
func (e *transportError) Unwrap() error { return e.err }

// retryable reports whether another server may say something else. That holds for
// an identity that is refused, too: a node that has only begun to join, or is
// behind, does not know the roots and denials that the others go by.
func retryable(err error) bool {
	if err == nil {
		return false
	}
	if errors.Is(err, ErrUnauthenticated) {
		return true
	}
	if _, ok := errors.AsType[*transportError](err); ok {
		return true
	}
	var p *Problem
	return errors.As(err, &p) && (p.Status == http.StatusServiceUnavailable ||
		p.Status == http.StatusBadGateway || p.Status == http.StatusGatewayTimeout)
}

// toldToWait gives for how long a server that answered with the code wants to be
// left alone; zero when it did not say.
func toldToWait(err error, code Code) time.Duration {
	var p *Problem
	if !errors.As(err, &p) || p.Code != code {
		return 0
	}
	return p.RetryAfter
}

// unverified reports whether a server could not prove that it is a control node.
// The others are tried, but nothing gets better by waiting.
func unverified(err error) bool {
	var ve *tls.CertificateVerificationError
	return errors.As(err, &ve) || errors.Is(err, errNotNode)
}

func readProblem(resp *http.Response, body []byte) error {
	p := new(Problem)
	if err := json.Unmarshal(body, p); err != nil || p.Code == "" {
		p = &Problem{Title: http.StatusText(resp.StatusCode), Code: CodeInternal, Detail: "the answer is not a problem document"}
	}
	p.Status = resp.StatusCode
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		p.RetryAfter = time.Duration(s) * time.Second
	}
	return p
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
