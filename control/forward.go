package control

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

const (
	// Headers between nodes. They mean nothing on the API's listener.
	headerChain     = "Hallpass-Caller-Chain"
	headerRequestID = "Hallpass-Request-Id"

	pathVerified = "/peer/verified"

	// maxChainHeader bounds a caller's chain, base64.
	maxChainHeader = 64 << 10
	// relayed is how much of an answer is in hand before any of it is passed on.
	relayed = 64 << 10
)

// errNotSent is in the error of a forward that never reached the leader.
var errNotSent = errors.New("not sent")

// forwarder carries whole calls from a follower to the leader.
type forwarder struct {
	transport *http.Transport
}

func newForwarder(store *raftstore.Store) *forwarder {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // inside the store's own TLS
	return &forwarder{transport: &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			id, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", errNotSent, err)
			}
			c, err := store.DialPeer(ctx, id)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", errNotSent, err)
			}
			return peerConn{Conn: c, peer: id}, nil
		},
		IdleConnTimeout: time.Minute,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second},
	}}
}

func (f *forwarder) close() { f.transport.CloseIdleConnections() }

// do sends a request to another node.
func (f *forwarder) do(ctx context.Context, id, method, target string, header http.Header, body []byte) (*http.Response, error) {
	// A node's name is a DNS label, so it does for a host.
	req, err := http.NewRequestWithContext(ctx, method, "http://"+id+target, bytes.NewReader(body)) //nolint:gosec // the dialer knows members only
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	req.Header = header
	return f.transport.RoundTrip(req)
}

// elsewhere says who answers a call: nil for this node, else a handler that has
// the leader answer it. Calls that were forwarded once are answered here or not
// at all, so that two nodes that each take the other for the leader do not pass
// a call to and fro.
func (n *node) elsewhere(r *http.Request) http.Handler {
	if _, forwarded := r.Context().Value(viaKey).(string); forwarded || n.store.IsLeader() || servedLocally(r) {
		return nil
	}
	return http.HandlerFunc(n.toLeader)
}

// servedLocally reports whether a call is answered from the node's own state.
func servedLocally(r *http.Request) bool {
	switch r.URL.Path {
	case "/openapi.json", "/v1/bundle", "/v1/events", "/v1/revocations", "/v1/issuers/request":
		return true
	case "/v1/roots":
		return r.Method != http.MethodPost
	}
	return r.Method != http.MethodPost && r.URL.Query().Get("stale") == "true"
}

// toLeader forwards an admitted call.
func (n *node) toLeader(w http.ResponseWriter, r *http.Request) {
	who := callerFrom(r.Context())
	leader, ok := n.store.Leader()
	if !ok || who == nil {
		n.handler.Problem(w, r, noLeader())
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, api.BodyLimit(r)))
	if err != nil {
		n.handler.Problem(w, r, err)
		return
	}
	resp, err := n.forward.do(r.Context(), leader, r.Method, r.URL.RequestURI(), n.forwardHeader(r, who), body)
	if err != nil {
		n.log.LogAttrs(r.Context(), slog.LevelInfo, "forwarding failed", slog.String("leader", leader),
			slog.String("request_id", api.RequestIDFrom(r.Context())), slog.String("error", err.Error()))
		n.handler.Problem(w, r, forwardProblem(r, err))
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if err := relay(w, resp); err != nil {
		n.handler.Problem(w, r, forwardProblem(r, err))
	}
}

// relay gives the caller what the leader answers. An error means that nothing
// was given. A leader that breaks off later breaks the caller's answer off, too:
// half a list must not look like a whole one.
func relay(w http.ResponseWriter, resp *http.Response) error {
	answer, err := io.ReadAll(io.LimitReader(resp.Body, relayed))
	if err != nil {
		return err
	}
	for _, name := range []string{"Content-Type", "Location", "Retry-After", "X-Hallpass-Index", "Allow"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := w.Write(answer); err != nil || len(answer) < relayed {
		return nil //nolint:nilerr // the caller's loss
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// forwardHeader is all that the leader hears of a call besides its target and
// body: nothing a caller made up passes.
func (n *node) forwardHeader(r *http.Request, who *caller) http.Header {
	h := http.Header{}
	for _, name := range []string{"Accept", "Content-Type", "Idempotency-Key"} {
		if v := r.Header.Get(name); v != "" {
			h.Set(name, v)
		}
	}
	h.Set(headerRequestID, api.RequestIDFrom(r.Context()))
	var der []byte
	for _, c := range who.chain {
		der = append(der, c.Raw...)
	}
	h.Set(headerChain, base64.StdEncoding.EncodeToString(der))
	propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(h))
	return h
}

func noLeader() *api.Problem {
	p := api.NewProblem(api.CodeNoLeader, "the cluster has no leader, or none that has a quorum", "try again in a moment, with the same Idempotency-Key")
	p.RetryAfter = time.Second
	return p
}

func ambiguous() *api.Problem {
	p := api.NewProblem(api.CodeAmbiguous, "the call may or may not have happened", "repeat it with the same Idempotency-Key; without one, look first")
	p.RetryAfter = time.Second
	return p
}

// forwardProblem says what a failed forward means. A write that may have
// reached the leader is never sent again from here: only its caller knows
// whether it carries a key that makes that safe.
func forwardProblem(r *http.Request, err error) *api.Problem {
	if r.Method != http.MethodPost || errors.Is(err, errNotSent) {
		return noLeader()
	}
	return ambiguous()
}

// peerListener hides that the store's streams are TLS: net/http would look for
// the protocol in a handshake that did not negotiate one.
type peerListener struct{ net.Listener }

// peerConn is a stream from the node named.
type peerConn struct {
	net.Conn
	peer string
}

// Accept implements net.Listener.
func (l peerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	p := peerConn{Conn: c}
	if id, ok := c.(interface{ PeerID() string }); ok {
		p.peer = id.PeerID()
	}
	return p, nil
}

// peerServer serves the other nodes.
func (n *node) peerServer(serving context.Context) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	forwarded := n.observed(http.HandlerFunc(n.serveForwarded))
	return &http.Server{
		// Not a ServeMux, which would clean a path before anybody has looked at it.
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.Method + " " + r.RequestURI {
			case "GET " + pathVerified:
				n.serveVerified(w, r)
			case "GET " + pathClock:
				n.serveClock(w, r)
			case "GET " + pathSpeaks:
				n.serveSpeaks(w, r)
			default:
				forwarded.ServeHTTP(w, r)
			}
		}),
		ReadHeaderTimeout: n.limits.Header,
		MaxHeaderBytes:    maxHeader + maxChainHeader,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000},
		ErrorLog:          log.New(handshakeLog{n}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return serving },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			p, _ := c.(peerConn)
			return context.WithValue(ctx, viaKey, p.peer)
		},
	}
}

// serveForwarded answers a call that a follower forwards. The follower vouches
// that the caller holds the key; that the chain is an identity, this node
// checks itself.
func (n *node) serveForwarded(w http.ResponseWriter, r *http.Request) {
	via, _ := r.Context().Value(viaKey).(string)
	who, err := n.forwardedCaller(r.Header[headerChain])
	if via == "" || errors.Is(err, errNoCaller) {
		n.handler.Problem(w, r, api.NewProblem(api.CodeUnauthorized, "the forwarded call names no caller", ""))
		return
	}
	// By a clock that is off a good identity has ended, or an old one not yet.
	if err := n.clock.check(n.now()); err != nil {
		n.handler.Problem(w, r, err)
		return
	}
	if err != nil {
		n.log.LogAttrs(r.Context(), slog.LevelWarn, "forwarded caller refused",
			slog.String("via", via), slog.String("error", clip(err.Error(), 512)))
		n.handler.Problem(w, r, api.NewProblem(api.CodeUnauthorized, "the forwarded caller's certificate is not an identity that this node accepts", ""))
		return
	}
	if id := r.Header.Get(headerRequestID); len(id) == len(api.NewRequestID()) && strings.Trim(id, "0123456789abcdef-") == "" {
		r = r.WithContext(api.WithRequestID(r.Context(), id))
	}
	ctx := context.WithValue(r.Context(), callerKey, who)
	n.handler.ServeHTTP(w, r.WithContext(api.WithCaller(ctx, who.api())))
}

func parseChain(header string) ([]*x509.Certificate, error) {
	if len(header) > maxChainHeader {
		return nil, errors.New("a chain that is too long")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(header)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificates(der)
}

// asserting is the node that verified the caller: this one, or the one that
// forwarded the call.
func (n *node) asserting(ctx context.Context) string {
	if via, ok := ctx.Value(viaKey).(string); ok && via != "" {
		return via
	}
	return n.node.ID
}
