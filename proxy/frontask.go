package proxy

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// exchange takes one request through, whose head has been read and is good as a
// head, and says whether the connection goes on.
func (f *front) exchange(head []byte) bool {
	p, x := f.p, &f.x
	p.active.Add(1)
	defer p.active.Add(-1)
	f.served = true
	x.started = p.cfg.now() // not earlier: a head may have been long in coming
	f.up.reset()
	f.c.requests.Add(1)
	var ctx context.Context
	ctx, x.spans = p.tele.begin(f.c.ctx, spanned{x.method, x.target, 1, x.trace}, f.c)
	x.rec = record{
		time: x.started, kind: kindRequest, event: "end", conn: f.c.id, service: p.cfg.service,
		protocol: "http/1.1", method: x.method, path: pathOf(x.target), peer: f.c.peer, trace: x.spans.traceID,
	}
	x.rec.of(f.c.proven())
	// Behind an Upgrade no more heads are read: nothing may follow on this connection.
	x.last = x.last || f.head.old || f.head.upgrade
	if !p.access.admits() {
		p.access.skip()
		x.silent = true
		return f.deny(head, &verdict{status: http.StatusServiceUnavailable, reason: reasonLogUnavailable, detail: "the proxy cannot write its access log, and admits nobody meanwhile"})
	}
	if bad := f.screen(); bad != nil {
		return f.refuse(head, bad)
	}
	switch {
	case x.shape.grpc:
		x.rec.protocol = "grpc"
	case x.shape.websocket:
		x.rec.protocol = "websocket"
	}
	if no := p.judge(ctx, f.c, x.method, &x.shape, &x.rec); no != nil {
		return f.deny(head, no)
	}
	x.decision = decisionAllow
	if p.tele.tracer != nil {
		if x.trace == nil {
			x.trace = make(http.Header, 2)
		}
		ctx = p.tele.ask(ctx, &x.spans, x.method, x.trace, f.c)
	}
	return f.forward(ctx, head)
}

// deny answers a request that is well-formed and not allowed.
func (f *front) deny(head []byte, no *verdict) bool {
	f.x.decision, f.x.reason = decisionDeny, no.reason
	pr := newProblem(no.status, no.reason, no.detail, f.p.cfg.service)
	if !no.need.IsZero() {
		pr.missing(no.need, f.p.cfg.requestURL)
	}
	on := f.answer(pr, f.wants(head), no.sayWhen)
	if no.cut {
		f.c.cut(no.reason)
	}
	return on
}

// refuse answers a request that is not well-formed, and is the connection's last.
func (f *front) refuse(head []byte, bad *violation) bool {
	f.refused(bad, f.wants(head))
	return false
}

func (f *front) refused(bad *violation, wants http.Header) {
	f.x.decision, f.x.reason, f.x.last = decisionRefuse, bad.reason, true
	f.answer(newProblem(bad.status, bad.reason, bad.detail, f.p.cfg.service), wants, nil)
}

// wants is what of a request's header decides in which form we answer it ourselves.
func (f *front) wants(head []byte) http.Header {
	h := make(http.Header, 2)
	for _, name := range []string{"accept", "content-type"} {
		if v := f.values(head, name); v != nil {
			h[http.CanonicalHeaderKey(name)] = v
		}
	}
	return h
}

// answer sends an answer of our own, and says whether the connection goes on: what
// a request's body may still bring is not read.
func (f *front) answer(pr problem, wants http.Header, more func(http.Header)) bool {
	x := &f.x
	pr.TraceID = x.rec.trace
	// What went to an upstream that gave no answer was read already: with that passed over a
	// second time, what follows would be read from its middle on, and a body be taken for a request.
	left := f.head.length - x.bytesIn
	switch {
	case f.up.begun || f.head.chunked:
		x.last = x.last || !f.up.whole
	case left > int64(f.w-f.r):
		x.last = true
	case left > 0:
		f.r += int(left)
	}
	x.last = x.last || f.c.draining.Load()
	w := &pen{header: make(http.Header, 6), status: http.StatusOK}
	if more != nil {
		more(w.header)
	}
	x.status, x.bytesOut = f.p.answers.send(w, &http.Request{Method: x.method, Header: wants}, pr, x.shape.grpc)
	b := append([]byte("HTTP/1.1 "+strconv.Itoa(w.status)+" "), http.StatusText(w.status)+"\r\n"...)
	for name, values := range w.header {
		for _, v := range values {
			b = append(b, name+": "+v+"\r\n"...)
		}
	}
	if w.header["Content-Length"] == nil {
		b = append(b, "Content-Length: "+strconv.Itoa(len(w.body))+"\r\n"...)
	}
	if x.last {
		b = append(b, "Connection: close\r\n"...)
	}
	if !f.finish() {
		return false
	}
	f.say(append(append(b, "\r\n"...), w.body...))
	if x.last {
		f.farewell()
	}
	return !x.last
}

// finish writes the request's record, before the end of its answer leaves: with
// on_failure deny, what cannot be recorded is never whole. It says whether it is written.
func (f *front) finish() bool {
	x := &f.x
	if x.finished || x.rec.kind == "" {
		return !x.spoiled
	}
	x.finished = true
	f.end()
	r := x.rec
	r.decision, r.reason, r.status = x.decision, x.reason, x.status
	r.bytesIn, r.bytesOut = x.bytesIn+f.up.bytes.Load(), x.bytesOut
	r.duration = since(f.p.cfg.now, x.started)
	f.p.tele.request(f.c.ctx, &r)
	x.spans.end(&r)
	if !x.silent && f.p.access.write(&r) != nil {
		f.spoil("")
	}
	return !x.spoiled
}

// spoil breaks the connection off, so that what was sent does not look whole.
func (f *front) spoil(reason string) bool {
	if reason != "" {
		f.x.reason = reason
		if why := f.c.cutReason(); why != "" {
			f.x.reason = why
		}
	}
	f.x.spoiled = true
	f.finish()
	f.c.reset()
	return false
}

// forward carries the request to the upstream and the answer back.
func (f *front) forward(ctx context.Context, head []byte) bool {
	pool := f.p.up
	buf, out := pool.buffer(), pool.buffer()
	defer pool.release(buf)
	defer pool.release(out)
	f.gone.Store(false)
	f.begin()
	defer f.finish()
	defer f.part()
	defer func() { f.q = quest{} }() // its buffer is given back
	b, ans, n, err := f.ask(ctx, head, buf, (*out)[:0])
	if err != nil {
		return f.failed(head, err)
	}
	return f.relay(b, head, ans, n, (*out)[:0])
}

// part lets go of the connection to the upstream, which is not used again.
func (f *front) part() {
	if b := f.take(); b != nil {
		b.drop()
	}
	f.up.stop(f)
}

// ask sends the request, whose head is composed in out, and reads the head of the
// answer: ans, in a buffer that has read bytes in it.
func (f *front) ask(ctx context.Context, head []byte, buf *[]byte, out []byte) (b *backend, ans []byte, read int, err error) {
	out = f.compose(out, head)
	whole := !f.head.chunked
	if f.head.length > 0 {
		if here := int(min(f.head.length, int64(f.w-f.r))); here <= cap(out)-len(out) {
			out = append(out, f.desk.in[f.r:f.r+here]...)
			f.r += here
			f.x.bytesIn = int64(here)
		}
		whole = f.x.bytesIn == f.head.length
	}
	f.q = quest{front: f, head: head, buf: *buf, whole: whole}
	if b, err = f.p.up.backends.ask(ctx, &f.q, out); err != nil {
		return nil, nil, 0, err
	}
	return b, f.q.buf[:f.q.end], f.q.read, nil
}

// quest is what is known of the question under way; see question.
type quest struct {
	*front
	head      []byte // of the request
	buf       []byte // what has been read of the answer
	end, read int    // of its head; of all
	whole     bool   // the request went out with its head
}

func (q *quest) body(b *backend) bool {
	if !q.whole {
		q.up.start(q.front, b, q.head)
	}
	return !q.whole
}

func (q *quest) answer(b *backend) (int, error) {
	var err error
	q.buf, q.end, q.read, q.desk.theirs, err = q.ans.readFinal(b, q.buf, q.x.method, q.desk.theirs)
	return q.read, err
}

func (q *quest) harmless() bool { return !q.hasBody() && isSafe(q.x.method) }

func (q *quest) left() bool { return q.gone.Load() }

// failed answers for an upstream that gave no answer, or a client that broke off.
func (f *front) failed(head []byte, err error) bool {
	x := &f.x
	if b := f.take(); b != nil {
		breakOff(b)
	}
	f.up.stop(f)
	f.end()
	switch {
	case f.c.cutReason() != "":
		return f.spoil(reasonClientGone)
	case f.up.bad != nil:
		f.refused(f.up.bad, f.up.wants)
		return false
	case f.up.gone || f.gone.Load():
		return f.spoil(reasonClientGone)
	}
	status := http.StatusBadGateway
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		status = http.StatusGatewayTimeout
	}
	f.p.upstreamTrouble(err)
	x.reason = reasonUpstream
	if f.up.wants == nil {
		f.up.wants = f.wants(head)
	}
	return f.answer(newProblem(status, reasonUpstream, "the service behind the proxy gave no answer", f.p.cfg.service), f.up.wants, nil)
}

// relay sends the answer whose head is ans, and of which n bytes are in its buffer,
// to the client.
func (f *front) relay(b *backend, head, ans []byte, n int, out []byte) bool {
	x, a := &f.x, &f.ans
	if a.status == http.StatusSwitchingProtocols {
		return f.tunnel(b, head, ans, n, out)
	}
	x.status = a.status
	inTime := f.up.inTime()
	x.last = x.last || f.c.draining.Load() || a.framing == framedClose || a.framing == framedChunks && f.head.old || !inTime
	out = a.compose(out, ans, f.desk.theirs, f.head.old, x.last)
	rest := ans[len(ans):n:cap(ans)]
	flow := flow{f: f, b: b, out: out, buf: ans[:cap(ans)], rest: rest}
	var ok bool
	switch a.framing {
	case framedNone:
		ok = flow.send(nil, true)
	case framedLength:
		ok = flow.length(a.length)
	case framedChunks:
		ok = flow.chunks()
	case framedClose:
		ok = flow.untilClose()
	}
	if !ok {
		return f.spoil(x.reason)
	}
	if inTime && !a.close && !f.gone.Load() && !f.oneUse() && len(flow.rest) == 0 {
		f.take()
		f.p.up.backends.put(b, time.Now())
	}
	if x.last {
		f.part()
		f.farewell()
	}
	return !x.last
}

// tunnel ties the client and the upstream together, which have agreed on WebSocket.
func (f *front) tunnel(b *backend, head, ans []byte, n int, out []byte) bool {
	x := &f.x
	if !x.shape.websocket || !f.ans.upgrade {
		return f.failed(head, malformed("it switches to a protocol that nobody asked for"))
	}
	f.end()
	f.disarm()
	x.status = f.ans.status
	out = f.ans.compose(out, ans, f.desk.theirs, false, true)
	if _, err := f.tls.Write(append(out, ans[len(ans):n:cap(ans)]...)); err != nil {
		return f.spoil(reasonClientGone)
	}
	x.bytesOut = int64(n - len(ans))
	if early := f.desk.in[f.r:f.w]; len(early) > 0 {
		m, err := b.Write(early)
		x.bytesIn += int64(m)
		if err != nil {
			return f.spoil(reasonUpstreamBroke)
		}
	}
	f.tunnelled(b)
	return false
}

// tunnelled copies both ways until either side ends.
func (f *front) tunnelled(b *backend) {
	f.mu.Lock()
	f.asking, f.blind = true, true
	if !f.ticking {
		f.ticking = true
		f.timer.Reset(noticeAfter)
	}
	f.mu.Unlock()
	var in, out atomic.Int64
	reason := f.p.splice(f.c, tunnelEnd{f.tls}, b, &in, &out)
	f.end()
	f.x.reason = reason
	f.x.bytesIn += in.Load()
	f.x.bytesOut += out.Load()
}
