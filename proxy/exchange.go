package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// openAfter is how old a request must be to get an "open" record before it ends,
// so that the log tells of streams while they run.
const openAfter = time.Second

// exchange is one request on its way through. It belongs to the goroutine of its
// handler. Others read two things of it: rec, which stays as it is once the
// upstream is asked, and the counters.
type exchange struct {
	p       *Proxy
	c       *conn
	w       http.ResponseWriter
	r       *http.Request
	ctx     context.Context
	started time.Time
	rec     record
	spans   spans
	body    *requestBody
	timer   *time.Timer
	url     url.URL // of the request to the upstream

	decision, reason string
	status           int

	out    atomic.Int64
	in     atomic.Int64 // of a tunnel
	abort  bool         // the connection or stream must break off, lest a cut answer look whole
	silent bool         // counted as missed; not recorded
	whole  bool         // all of a small answer to HTTP/2 lies ready, and goes out when the handler ends
}

type connKey struct{}

// ServeHTTP takes every HTTP request, of either version, one at a time.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		panic(http.ErrAbortHandler) // not a connection that was admitted
	}
	growStack()
	p = p.newest.Load() // a connection may be older than the configuration in force
	p.active.Add(1)
	defer p.active.Add(-1)
	x := &exchange{p: p, c: c, w: w, r: r, started: p.cfg.now()}
	defer x.finish()
	x.ctx, x.spans = p.tele.begin(r.Context(), spanned{r.Method, r.RequestURI, r.ProtoMajor, r.Header}, c)
	c.requests.Add(1)
	x.rec = record{
		time: x.started, kind: kindRequest, event: "end", conn: c.id, service: p.cfg.service,
		protocol: protocolOf(r), method: r.Method, path: pathOf(r.RequestURI), peer: c.peer, trace: x.spans.traceID,
	}
	x.rec.of(c.proven())
	if r.Header["Upgrade"] != nil {
		// Behind an Upgrade the gate reads no more heads: nothing may follow on this connection.
		w.Header().Set("Connection", "close")
	}
	if !p.access.admits() {
		p.access.skip()
		x.silent = true
		x.deny(http.StatusServiceUnavailable, reasonLogUnavailable, "the proxy cannot write its access log, and admits nobody meanwhile", grant.Permission{}, false)
		return
	}
	s, bad := p.cfg.screen(r)
	if bad != nil {
		x.refuse(bad, s.grpc)
		return
	}
	switch {
	case s.grpc:
		x.rec.protocol = "grpc"
	case s.websocket:
		x.rec.protocol = "websocket"
	}
	if r.ProtoMajor == 2 {
		if !c.holding.beginRequest(p.cfg.limits.requests) {
			w.Header().Set("Retry-After", "1")
			x.deny(http.StatusTooManyRequests, reasonLimit, "too many requests of this grant are under way", grant.Permission{}, s.grpc)
			return
		}
		defer c.holding.endRequest()
	}
	if x.decide(&s) {
		x.forward(&s) //nolint:contextcheck // x.ctx is the request's
	}
}

func protocolOf(r *http.Request) string {
	if r.ProtoMajor == 2 {
		return "h2"
	}
	return "http/1.1"
}

// verdict is why a request is not let through.
type verdict struct {
	status         int
	reason, detail string
	need           grant.Permission // what would have allowed it; zero when nothing can
	retryAfter     time.Duration
	cut            bool // the connection ends with the answer, cut
}

// judge decides over one well-formed request: time, news of revocations, and what
// permits says. It is asked anew for every request, of whichever version of HTTP,
// and notes in rec what decided.
func (p *Proxy) judge(ctx context.Context, c *conn, method string, s *shape, rec *record) *verdict {
	switch {
	case !wall(p.cfg.now).Before(c.proven().notAfter):
		// The clock is read again for each request: a connection that was not cut
		// yet opens nothing past NotAfter.
		return &verdict{status: http.StatusForbidden, reason: reasonExpired, detail: "the certificate has expired", cut: true}
	case p.stale(c.adm):
		return &verdict{status: http.StatusServiceUnavailable, reason: reasonStale, detail: "news of revocations is too old, and this service admits nobody without"}
	}
	if why := p.denied(c); why != "" {
		return &verdict{status: http.StatusForbidden, reason: why, detail: "the grant has been revoked", cut: true}
	}
	return p.permitted(ctx, c, method, s, rec)
}

// decide says whether the request may go to the upstream, and answers it if not.
func (x *exchange) decide(s *shape) bool {
	no := x.p.judge(x.ctx, x.c, x.r.Method, s, &x.rec)
	if no == nil {
		x.decision = decisionAllow
		return true
	}
	no.sayWhen(x.w.Header())
	x.deny(no.status, no.reason, no.detail, no.need, s.grpc)
	if no.cut {
		x.c.cut(no.reason)
	}
	return false
}

// sayWhen says how long to wait, where waiting helps.
func (v *verdict) sayWhen(h http.Header) {
	if v.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((v.retryAfter+time.Second-1)/time.Second)))
	}
}

// smallest is the least permission that allows the request; zero when none can.
func smallest(method string, s *shape) grant.Permission {
	var need grant.Permission
	var err error
	if s.grpc {
		need, err = grant.GRPCPermission(s.path)
	} else {
		need, err = grant.HTTPPermission(method, s.path)
	}
	if err != nil {
		return grant.Permission{}
	}
	return need
}

// deny answers a request that is well-formed and not allowed.
func (x *exchange) deny(status int, reason, detail string, need grant.Permission, grpc bool) {
	x.decision, x.reason = decisionDeny, reason
	pr := newProblem(status, reason, detail, x.p.cfg.service)
	pr.TraceID = x.rec.trace
	if !need.IsZero() {
		pr.missing(need, x.p.cfg.requestURL)
	}
	x.answer(pr, grpc)
}

// refuse answers a request that is not well-formed, and closes the connection.
func (x *exchange) refuse(v *violation, grpc bool) {
	x.decision, x.reason = decisionRefuse, v.reason
	pr := newProblem(v.status, v.reason, v.detail, x.p.cfg.service)
	pr.TraceID = x.rec.trace
	if x.r.ProtoMajor == 1 {
		x.w.Header().Set("Connection", "close")
	}
	x.answer(pr, grpc)
}

func (x *exchange) answer(pr problem, grpc bool) {
	x.sayDrain()
	status, n := x.p.answers.send(x.w, x.r, pr, grpc)
	x.status = status
	x.out.Add(n)
}

// sayDrain has an HTTP/1 client reconnect. An HTTP/2 one has been told by GOAWAY.
func (x *exchange) sayDrain() {
	if x.r.ProtoMajor == 1 && x.c.draining.Load() {
		x.w.Header().Set("Connection", "close")
	}
}

// watch has an "open" record written if the request is still under way in a second.
func (x *exchange) watch() {
	x.timer = time.AfterFunc(openAfter, func() { x.recordOpen() })
}

func (x *exchange) recordOpen() {
	r := x.rec
	r.event, r.decision = "open", decisionAllow
	_ = x.p.access.write(&r) // what it denies is what comes next; this one ends with its own record
}

// finish writes the request's record, after everything else and before the end
// of the answer is flushed: with on_failure deny, a short answer that cannot be
// recorded never leaves.
func (x *exchange) finish() {
	v := recover()
	if x.timer != nil {
		x.timer.Stop()
	}
	r := x.rec
	r.decision, r.reason = x.decision, x.reason
	if v != nil && v != http.ErrAbortHandler { //nolint:errorlint // a panic value, not an error chain
		r.reason, x.abort = reasonHandlerPanicked, true
		x.p.log.Error("request handler panicked", slog.String("panic", fmt.Sprint(v)), slog.String("stack", string(debug.Stack())))
	}
	r.status, r.bytesOut = x.status, x.out.Load()
	r.bytesIn = x.in.Load()
	if x.body != nil {
		r.bytesIn = x.body.n.Load()
	}
	r.duration = since(x.p.cfg.now, x.started)
	x.p.tele.request(x.ctx, &r)
	x.spans.end(&r)
	if !x.silent {
		if err := x.p.access.write(&r); err != nil {
			x.abort = true
		}
	}
	if x.abort {
		panic(http.ErrAbortHandler)
	}
	if x.whole {
		x.c.together.awaitMore() // the head, which is written next and then the body
	}
}
