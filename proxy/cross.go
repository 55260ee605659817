package proxy

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// crossing is a request of an HTTP/2 client on its way to an upstream of HTTP/1. It
// takes the connections that front takes, and answers are read as strictly: what
// one client's answer ends with must not become another's.
//
// The handler's goroutine owns it; a body is carried by one of its own.
type crossing struct {
	grip
	x      *exchange
	buf    []byte // what has been read of the answer
	end    int    // of its head
	read   int    // of all
	ans    reply
	theirs []field
	up     *ferry // nil: there is no body, or the upstream has not been asked
}

// cross sends the request to the upstream and its answer to the client.
func (x *exchange) cross(s *shape) {
	pool := x.p.up
	buf, out := pool.buffer(), pool.buffer()
	defer pool.release(buf)
	defer pool.release(out)
	ctx := x.traceUpstream()
	c := &crossing{x: x, buf: *buf}
	if x.r.ContentLength != 0 {
		x.body = &requestBody{ReadCloser: x.r.Body, most: x.p.cfg.limits.bodyBytes, from: x.r, to: announced(x.r)}
	}
	head, bad := c.compose((*out)[:0], s)
	if bad != nil {
		x.refuse(bad, s.grpc)
		return
	}
	stop := context.AfterFunc(ctx, c.abandon)
	defer stop()
	defer c.part()
	b, err := pool.backends.ask(ctx, c, head)
	if err == nil && c.ans.status == http.StatusSwitchingProtocols {
		err = malformed("it switches to a protocol that nobody asked for")
	}
	if err != nil {
		c.abandon()
		c.part()
		x.failed(err, s.grpc)
		return
	}
	inTime := c.up.inTime()
	c.head()
	rest, ok := c.copyBody(b)
	if !ok {
		x.abort = true
		return
	}
	if inTime && !c.ans.close && !c.oneUse() && len(rest) == 0 && stop() {
		c.take()
		pool.backends.put(b, time.Now())
	}
}

// part lets go of the connection to the upstream, which is not used again, and
// waits until nobody reads the request's body.
func (c *crossing) part() {
	if b := c.take(); b != nil {
		b.drop()
	}
	c.up.stop(c.x.body)
}

// compose appends the head for the upstream. HTTP/2 carries in a value what would
// end a line here: net/http has looked for that, and nothing else stands between a
// client and a request of its own making, so it is looked for again.
func (c *crossing) compose(b []byte, s *shape) ([]byte, *violation) {
	x, r := c.x, c.x.r
	b = append(append(append(append(b, r.Method...), ' '), r.RequestURI...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, r.Host...), "\r\n"...)
	for name, values := range r.Header {
		if !isToken(name) {
			return nil, badRequest("header", "a header's name is no token")
		}
		for _, v := range values {
			if !plainValue(v) {
				return nil, badRequest("header", "a header's value holds a control byte")
			}
			b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
		}
	}
	b = append(b, x.c.headers.block...)
	if c.oneUse() {
		b = append(b, "Connection: close\r\n"...)
	}
	if s.trailers {
		b = append(b, "TE: trailers\r\n"...)
	}
	switch {
	case r.ContentLength > 0, r.ContentLength == 0 && !bodyUnexpected(r.Method):
		b = strconv.AppendInt(append(b, "Content-Length: "...), r.ContentLength, 10)
		b = append(b, "\r\n"...)
	case r.ContentLength < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		for name := range x.body.to {
			b = append(append(append(b, "Trailer: "...), name...), "\r\n"...)
		}
	}
	return append(b, "\r\n"...), nil
}

// oneUse is front.oneUse.
func (c *crossing) oneUse() bool { return c.x.body != nil && bodyUnexpected(c.x.r.Method) }

func (c *crossing) body(b *backend) bool {
	if c.x.body == nil {
		return false
	}
	c.up = &ferry{done: make(chan struct{})}
	go c.up.run(b, c.x.body, c.x.r.ContentLength, c.x.p.up)
	return true
}

func (c *crossing) answer(b *backend) (int, error) {
	var err error
	c.buf, c.end, c.read, c.theirs, err = c.ans.readFinal(b, c.buf, c.x.r.Method, c.theirs)
	return c.read, err
}

func (c *crossing) harmless() bool { return c.x.body == nil && isSafe(c.x.r.Method) }

func (c *crossing) left() bool { return c.x.r.Context().Err() != nil }

// head sends the head of the answer. All of its names and values lie in one string.
func (c *crossing) head() {
	x, a := c.x, &c.ans
	h := x.w.Header()
	text := string(c.buf[:c.end])
	values := make([]string, len(c.theirs))
	for i, f := range c.theirs {
		if f.rule != ruleKeep && a.framing != framedChunks {
			continue // Trailer, where there are none
		}
		name := http.CanonicalHeaderKey(text[f.start:f.name])
		values[i] = strings.Trim(text[f.name+1:f.end], " \t")
		if before := h[name]; before != nil {
			h[name] = append(before, values[i])
		} else {
			h[name] = values[i : i+1 : i+1]
		}
	}
	// Beside a 304 some clients wait for that many bytes.
	if a.framing == framedLength || a.length >= 0 && x.r.Method == http.MethodHead {
		h["Content-Length"] = []string{strconv.FormatInt(a.length, 10)}
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // else net/http guesses one from the body
	}
	x.status = a.status
	x.w.WriteHeader(a.status)
}

// copyBody sends the answer's body on, and says whether it got to its end. What
// was read behind that comes back: it is the answer to nothing.
func (c *crossing) copyBody(b *backend) (rest []byte, ok bool) {
	x := c.x
	in := inflow{x: x, b: b, buf: c.buf[:cap(c.buf)], rest: c.buf[c.end:c.read]}
	if a := &c.ans; a.framing != framedLength || strings.HasPrefix(x.w.Header().Get("Content-Type"), "text/event-stream") {
		in.flusher, _ = x.w.(http.Flusher) // it may be a stream
	}
	var err error
	switch c.ans.framing {
	case framedNone:
	case framedLength:
		err = in.length(c.ans.length)
	case framedChunks:
		err = in.chunks()
	case framedClose:
		err = in.untilClose()
	}
	switch {
	case err == nil:
		return in.rest, true
	case errors.Is(err, errClient), x.r.Context().Err() != nil:
		x.reason = x.brokenBy(reasonClientGone)
	default:
		x.reason = x.brokenBy(reasonUpstreamBroke)
	}
	return nil, false
}
