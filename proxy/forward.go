package proxy

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// identityHeaders are what the upstream is told of the client. They are the same
// for a whole connection, and nobody appends to them.
type identityHeaders struct {
	xfcc, subject, grant, service, forwardedFor, proto []string

	emergency []string // nil unless an emergency issuer signed the certificate

	block []byte // all of them, as they go on the wire
}

func (h *identityHeaders) set(to http.Header) {
	to["X-Forwarded-Client-Cert"] = h.xfcc
	to["X-Hallpass-Subject"] = h.subject
	to["X-Hallpass-Grant"] = h.grant
	to["X-Hallpass-Service"] = h.service
	to["X-Forwarded-For"] = h.forwardedFor
	to["X-Forwarded-Proto"] = h.proto
	if h.emergency != nil {
		to["X-Hallpass-Emergency"] = h.emergency
	}
}

// errBodyTooLarge is returned when a request's body passes limits.max_body_bytes.
var errBodyTooLarge = errors.New("the request body is too large")

// requestBody counts what the upstream reads, and hands on trailers at its end.
// The transport may read it after the handler has returned.
type requestBody struct {
	io.ReadCloser
	n      atomic.Int64
	most   int64         // 0: no limit
	over   atomic.Bool   // it was longer
	failed atomic.Bool   // reading from the client failed
	ended  atomic.Bool   // all of it was read
	broken atomic.Bool   // for its framing, not for the client's leaving
	closed atomic.Bool   // by us, who need no more of it
	from   *http.Request // its Trailer is filled in when Read has returned io.EOF
	to     http.Header
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	total := b.n.Add(int64(n))
	switch {
	case b.most > 0 && total > b.most:
		// Its length was not said before, or the client has lied about it.
		b.over.Store(true)
		b.failed.Store(true)
		return 0, errBodyTooLarge
	case err == nil:
	case errors.Is(err, io.EOF):
		b.trailers()
		b.ended.Store(true)
	case b.closed.Load():
		// The client has not failed: an upstream that broke off before all was sent is to be told of.
	default:
		var gone net.Error
		b.broken.Store(!errors.As(err, &gone) && !errors.Is(err, io.ErrUnexpectedEOF))
		b.failed.Store(true)
	}
	return n, err
}

// Close ends who reads. What fails from then on is not the client's doing.
func (b *requestBody) Close() error {
	b.closed.Store(true)
	return b.ReadCloser.Close()
}

// trailers copies the trailers that were announced and that are the client's to
// say. An HTTP/1 client can send trailers it never announced, and an upstream
// that merges them into the head would take x-hallpass-subject from there.
func (b *requestBody) trailers() {
	for name := range b.to {
		b.to[name] = b.from.Trailer[name]
	}
}

// announced is the request's trailer names that may pass.
func announced(r *http.Request) http.Header {
	if len(r.Trailer) == 0 {
		return nil
	}
	to := make(http.Header, len(r.Trailer))
	for name := range r.Trailer {
		var buf [foldedMax]byte
		if ruleOf(fold(buf[:0], name)) == ruleKeep {
			to[name] = nil
		}
	}
	return to
}

// forward sends the request to the upstream and its answer to the client.
func (x *exchange) forward(s *shape) {
	x.watch()
	if x.r.ProtoMajor == 2 && !x.p.up.h2c {
		x.cross(s)
		return
	}
	out := x.outgoing(s)
	res, err := x.p.up.transport.RoundTrip(out)
	if err != nil {
		x.failed(err, s.grpc)
		return
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.switchProtocols(s, res)
		return
	}
	defer func() { _ = res.Body.Close() }() // its end is known already
	x.respond(res)
}

// outgoing is the request for the upstream. What was matched is what is
// forwarded: the target goes out as the bytes that came in, by way of URL.Opaque,
// which net/http does not parse or clean.
func (x *exchange) outgoing(s *shape) *http.Request {
	r, p := x.r, x.p
	out := r.WithContext(x.traceUpstream())
	x.url = url.URL{Scheme: "http", Host: p.up.authority, Opaque: r.RequestURI}
	out.URL = &x.url
	out.RequestURI, out.Close, out.TransferEncoding, out.Trailer = "", false, nil, nil
	if r.ContentLength == 0 {
		out.Body = nil
	} else {
		out.Trailer = announced(r)
		x.body = &requestBody{ReadCloser: r.Body, most: p.cfg.limits.bodyBytes, from: r, to: out.Trailer}
		out.Body = x.body
		if r.ProtoMajor == 1 {
			// Without this net/http swallows what is left of the body before the
			// first byte of the answer.
			_ = http.NewResponseController(x.w).EnableFullDuplex() // fails for no HTTP/1 connection
		}
		// An upstream that overlooks the body of a GET would take it for the next
		// request on its connection, one that nobody matched.
		if !p.up.h2c && bodyUnexpected(r.Method) {
			out.Close = true
		}
	}
	h := out.Header
	x.c.headers.set(h)
	if s.trailers {
		h["Te"] = []string{"trailers"}
	}
	if s.websocket {
		h["Connection"] = []string{"Upgrade"}
		h["Upgrade"] = []string{"websocket"}
	}
	// net/http takes a client's Idempotency-Key for leave to send a request twice,
	// and looks for it under this spelling alone.
	for _, name := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, ok := h[name]; ok {
			delete(h, name)
			h[strings.ToLower(name)] = v
		}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = nil // else the transport puts its own
	}
	return out
}

func bodyUnexpected(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete:
		return true
	default:
		return false
	}
}

// failed answers for an upstream that gave no answer, or a client that broke off.
func (x *exchange) failed(err error, grpc bool) {
	status := http.StatusBadGateway
	switch {
	case x.c.cutReason() != "":
		x.reason, x.abort = x.c.cutReason(), true
		return
	case x.body != nil && (x.body.failed.Load() || !x.body.ended.Load() && gateViolation(x.ctx) != nil):
		// net/http ends the request's context before the body's reader hears of a violation in it.
		v := gateViolation(x.ctx)
		if x.body.over.Load() {
			v = bodyTooLarge()
		}
		if v == nil && x.body.broken.Load() && x.r.ProtoMajor == 1 {
			v = badChunk() // net/http saw the first byte of it before the gate had the line
		}
		if v != nil {
			x.refuse(v, grpc)
			return
		}
		x.reason, x.abort = reasonClientGone, true
		return
	case x.r.Context().Err() != nil:
		x.reason, x.abort = reasonClientGone, true
		return
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		status = http.StatusGatewayTimeout
	}
	x.p.upstreamTrouble(err)
	pr := newProblem(status, reasonUpstream, "the service behind the proxy gave no answer", x.p.cfg.service)
	pr.TraceID = x.rec.trace
	x.reason = reasonUpstream
	x.answer(pr, grpc)
}

// respond copies the upstream's answer.
func (x *exchange) respond(res *http.Response) {
	h := x.w.Header()
	removeHop(res.Header)
	maps.Copy(h, res.Header)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // else net/http guesses one from the body
	}
	declared := len(res.Trailer)
	if declared > 0 {
		names := make([]string, 0, declared)
		for name := range res.Trailer {
			names = append(names, name)
		}
		h["Trailer"] = []string{strings.Join(names, ", ")}
	}
	x.sayDrain()
	x.status = res.StatusCode
	x.w.WriteHeader(res.StatusCode)
	if !x.copyBody(res) {
		x.abort = true
		return
	}
	x.copyTrailers(res, declared)
}

// copyBody copies until the end and says whether it got there. An answer of
// unknown length is flushed as it comes: it may be a stream.
func (x *exchange) copyBody(res *http.Response) bool {
	buf := x.p.up.buffer()
	defer x.p.up.release(buf)
	flusher, _ := x.w.(http.Flusher)
	if flusher != nil && res.ContentLength >= 0 && !strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		flusher = nil
	}
	head := flushSoon(flusher)
	n, rerr := res.Body.Read(*buf)
	head.stop()
	if n > 0 && flusher != nil && x.c.together != nil {
		x.c.together.awaitMore() // the head, for the part of the body that is flushed with it
	}
	for ; ; n, rerr = res.Body.Read(*buf) {
		if n > 0 {
			m, werr := x.w.Write((*buf)[:n])
			x.out.Add(int64(m))
			if werr != nil {
				x.reason = x.brokenBy(reasonClientGone)
				return false
			}
			if flusher != nil && rerr == nil {
				flusher.Flush()
			}
		}
		switch {
		case rerr == nil:
		case errors.Is(rerr, io.EOF):
			return true
		case x.r.Context().Err() != nil:
			x.reason = x.brokenBy(reasonClientGone)
			return false
		default:
			x.reason = x.brokenBy(reasonUpstreamBroke)
			return false
		}
	}
}

// headFlush sends the head of a stream whose first bytes are long in coming,
// without a write of its own for all those whose body comes along with it.
type headFlush struct {
	timer *time.Timer

	mu   sync.Mutex // owns done and, until done, the response writer
	done bool
}

func flushSoon(f http.Flusher) *headFlush {
	if f == nil {
		return nil
	}
	h := &headFlush{}
	h.timer = time.AfterFunc(time.Millisecond, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.done {
			f.Flush()
		}
	})
	return h
}

func (h *headFlush) stop() {
	if h == nil {
		return
	}
	h.timer.Stop()
	h.mu.Lock()
	h.done = true
	h.mu.Unlock()
}

func (x *exchange) brokenBy(otherwise string) string {
	if why := x.c.cutReason(); why != "" {
		return why
	}
	if x.body != nil && x.body.over.Load() {
		return reasonBodyTooLarge
	}
	return otherwise
}

// copyTrailers sends the trailers: those that were declared under their own
// names, the others, as gRPC's are, with net/http's prefix for undeclared ones.
func (x *exchange) copyTrailers(res *http.Response, declared int) {
	if len(res.Trailer) == 0 {
		return
	}
	if flusher, ok := x.w.(http.Flusher); ok {
		flusher.Flush() // makes net/http choose chunks, which is where trailers live
	}
	h := x.w.Header()
	prefix := ""
	if len(res.Trailer) != declared {
		prefix = http.TrailerPrefix
	}
	for name, values := range res.Trailer {
		h[prefix+name] = values
	}
}

// removeHop takes out what is between the upstream and us only.
func removeHop(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.Trim(name, " \t"); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		delete(h, name)
	}
}

// newIdentityHeaders says who the client is in the upstream's words, Envoy's
// x-forwarded-client-cert first. None of the values holds a comma, semicolon or
// quote: SPIFFE IDs have no such bytes.
func newIdentityHeaders(self string, a *admission, hash, peerIP string) identityHeaders {
	h := identityHeaders{
		xfcc:         []string{"By=" + self + ";Hash=" + hash + ";URI=" + a.id.String()},
		subject:      []string{a.subject},
		forwardedFor: []string{peerIP},
		proto:        []string{"https"},
	}
	if a.grant != (grant.ID{}) {
		h.grant = []string{a.grantID}
		h.service = []string{a.grant.Scope().Service()}
	}
	if a.emergency {
		h.emergency = []string{"true"}
	}
	h.block = h.lines()
	return h
}

// lines renders the headers as they go on the wire.
func (h *identityHeaders) lines() []byte {
	var b []byte
	for _, line := range []struct {
		name   string
		values []string
	}{
		{"X-Forwarded-Client-Cert", h.xfcc},
		{"X-Hallpass-Subject", h.subject},
		{"X-Hallpass-Grant", h.grant},
		{"X-Hallpass-Service", h.service},
		{"X-Hallpass-Emergency", h.emergency},
		{"X-Forwarded-For", h.forwardedFor},
		{"X-Forwarded-Proto", h.proto},
	} {
		for _, v := range line.values {
			b = append(append(append(append(b, line.name...), ": "...), v...), "\r\n"...)
		}
	}
	return b
}
