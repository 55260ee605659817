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
	"go.opentelemetry.io/otel/trace"

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
	case "/openapi.json", "/v1/bundle", "/v1/events", "/v1/revocations", "/v1/issuers/request", pathSeen:
		return true
	case "/v1/roots", "/v1/issuers":
		return r.Method != http.MethodPost
	}
	return r.Method != http.MethodPost && r.URL.Query().Get("stale") == "true"
}

// leaderWait is how long a call waits for a leader: longer than an election
// takes as a rule, and its caller would only come again.
const leaderWait = time.Second

// toLeader forwards an admitted call.
func (n *node) toLeader(w http.ResponseWriter, r *http.Request) {
	who := callerFrom(r.Context())
	if who == nil {
		n.handler.Problem(w, r, noLeader())
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, api.BodyLimit(r)))
	if err != nil {
		n.handler.Problem(w, r, err)
		return
	}
	patience, cancel := context.WithTimeout(r.Context(), leaderWait)
	defer cancel()
	for {
		changed := n.store.LeaderChanged()
		if n.store.IsLeader() {
			r.Body = io.NopCloser(bytes.NewReader(body))
			n.handler.Answer(w, r)
			return
		}
		leader, ok := n.store.Leader()
		err := fmt.Errorf("%w: there is no leader", errNotSent)
		if ok {
			if err = n.handOn(w, r, leader, who, body); err == nil {
				return
			}
		}
		// What was not sent is safe to send to the next. A leader that is gone is
		// still taken for one for a moment.
		if !errors.Is(err, errNotSent) || !n.await(patience, changed) {
			n.log.LogAttrs(r.Context(), slog.LevelInfo, "forwarding failed", slog.String("leader", leader),
				slog.String("request_id", api.RequestIDFrom(r.Context())), slog.String("error", err.Error()))
			n.handler.Problem(w, r, forwardProblem(r, err))
			return
		}
	}
}

// await waits for another leader, or for a moment; false when ctx has ended.
func (n *node) await(ctx context.Context, changed <-chan struct{}) bool {
	moment := time.NewTimer(leaderWait / 4)
	defer moment.Stop()
	select {
	case <-changed:
	case <-moment.C:
	case <-n.stopping.Done():
		return false
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// handOn has the leader answer. An error means that the caller was told nothing.
func (n *node) handOn(w http.ResponseWriter, r *http.Request, leader string, who *caller, body []byte) error {
	if r.Method == http.MethodPost && len(body) <= api.MaxBody {
		a, err := n.links.do(r.Context(), leader, who.raw(), n.forwardedCall(r, body))
		if err == nil {
			a.write(w)
		}
		if !errors.Is(err, errNoCalls) {
			return err
		}
	}
	resp, err := n.forward.do(r.Context(), leader, r.Method, r.URL.RequestURI(), n.forwardHeader(r, who), body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return relay(w, api.Steady(w, r), resp)
}

const relayedCount = 5

// relayedHeaders are those of the leader's answer that the caller gets.
func relayedHeaders() [relayedCount]string {
	return [...]string{"Content-Type", "Location", "Retry-After", "X-Hallpass-Index", "Allow"}
}

// write gives the caller what the leader answered.
func (a *callAnswer) write(w http.ResponseWriter) {
	for i, name := range relayedHeaders() {
		if v := a.header[i]; v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the caller's loss
}

// relay gives the caller what the leader answers. An error means that nothing
// was given. A leader that breaks off later breaks the caller's answer off, too:
// half a list must not look like a whole one. rest writes to w what is not in
// hand at once.
func relay(w http.ResponseWriter, rest io.Writer, resp *http.Response) error {
	answer, err := io.ReadAll(io.LimitReader(resp.Body, relayed))
	if err != nil {
		return err
	}
	for _, name := range relayedHeaders() {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := w.Write(answer); err != nil || len(answer) < relayed {
		return nil //nolint:nilerr // the caller's loss
	}
	if _, err := io.Copy(rest, resp.Body); err != nil {
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
	h.Set(headerChain, base64.StdEncoding.EncodeToString(who.raw()))
	propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(h))
	return h
}

// forwardedCall is the same for a stream of calls.
func (n *node) forwardedCall(r *http.Request, body []byte) *forwardedCall {
	c := &forwardedCall{
		target: r.URL.RequestURI(), accept: r.Header.Get("Accept"), contentType: r.Header.Get("Content-Type"),
		key: r.Header.Get("Idempotency-Key"), requestID: api.RequestIDFrom(r.Context()), body: body,
	}
	if trace.SpanContextFromContext(r.Context()).IsValid() {
		h := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(r.Context(), h)
		c.traceparent, c.tracestate = h["traceparent"], h["tracestate"]
	}
	return c
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

// peerConn is a stream from the node named. It hides that the store's streams are
// TLS: net/http would look for the protocol in a handshake that did not negotiate
// one.
type peerConn struct {
	net.Conn
	peer string
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
			case "POST " + pathCosign:
				n.serveCosign(w, r)
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
	n.serveFor(w, r, func() (*caller, error) { return n.forwardedCaller(r.Header[headerChain]) })
}

// serveFor is serveForwarded for a caller whose chain came in whichever way.
func (n *node) serveFor(w http.ResponseWriter, r *http.Request, whose func() (*caller, error)) {
	via, _ := r.Context().Value(viaKey).(string)
	who, err := whose()
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
	done, refused := n.paced(r, who)
	if refused != nil {
		n.handler.Refuse(w, r, refused)
		return
	}
	defer done()
	ctx := context.WithValue(r.Context(), callerKey, who)
	n.handler.ServeHTTP(w, r.WithContext(api.WithCaller(ctx, who.api())))
}

func parseChain(header string) ([]*x509.Certificate, error) {
	if len(header) > maxChainHeader {
		return nil, errors.New("a chain that is too long")
	}
	// The decoder passes over line ends: one chain would have many spellings, and each would be
	// verified, and remembered, as one more caller.
	if strings.ContainsAny(header, "\r\n") {
		return nil, errors.New("a line end in a chain")
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
