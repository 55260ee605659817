package control

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// maxStreamCalls is how many calls of one stream may be under way.
const maxStreamCalls = 1000

// peerStreams tells the streams of calls among those that other nodes open from
// those of HTTP/2, and serves them.
type peerStreams struct {
	net.Listener // of the store
	n            *node
	serving      context.Context
	handler      http.Handler // of calls

	rest chan net.Conn // of HTTP/2
	done chan struct{} // closed when Accept of the store's ended
	err  error         // of that; written before done is closed

	group sync.WaitGroup // of all goroutines of the streams, which end when the store or the other node closes them

	mu       sync.Mutex
	under    int           // guarded by mu; calls under way
	stopping bool          // guarded by mu; no more are begun
	idle     chan struct{} // closed when stopping and no call is under way
}

func newPeerStreams(serving context.Context, n *node) *peerStreams {
	p := &peerStreams{
		Listener: n.store.PeerListener(), n: n, serving: serving, rest: make(chan net.Conn), done: make(chan struct{}),
		idle: make(chan struct{}),
	}
	p.handler = n.observed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handed, _ := r.Context().Value(handedKey).(*handedChain)
		n.serveFor(w, r, func() (*caller, error) { return n.handedCaller(handed) })
	}))
	p.group.Go(p.accept)
	return p
}

// accept ends when the store closes its listener.
func (p *peerStreams) accept() {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			p.err = err
			close(p.done)
			return
		}
		peer := peerConn{Conn: c}
		if id, ok := c.(interface{ PeerID() string }); ok {
			peer.peer = id.PeerID()
		}
		p.group.Go(func() { p.admit(peer) })
	}
}

func (p *peerStreams) admit(c peerConn) {
	head := make([]byte, len(callMagic))
	if c.SetReadDeadline(time.Now().Add(p.n.limits.Header)) != nil {
		_ = c.Close()
		return
	}
	if _, err := io.ReadFull(c, head); err != nil || c.SetReadDeadline(time.Time{}) != nil {
		_ = c.Close() // it did not say what it is
		return
	}
	if string(head) == callMagic {
		if err := p.serve(c); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && p.serving.Err() == nil {
			p.n.log.LogAttrs(p.serving, slog.LevelInfo, "a stream of calls broke",
				slog.String("node", c.peer), slog.String("error", err.Error()))
		}
		return
	}
	c.Conn = begunConn{Conn: c.Conn, in: io.MultiReader(bytes.NewReader(head), c.Conn)}
	select {
	case p.rest <- c:
	case <-p.done:
		_ = c.Close()
	}
}

// begunConn is a connection of which the first bytes were read.
type begunConn struct {
	net.Conn
	in io.Reader
}

func (c begunConn) Read(b []byte) (int, error) { return c.in.Read(b) }

// Accept implements net.Listener, for streams of HTTP/2.
func (p *peerStreams) Accept() (net.Conn, error) {
	select {
	case c := <-p.rest:
		return c, nil
	case <-p.done:
		return nil, p.err
	}
}

// handedChain is a caller's chain as another node handed it on.
type handedChain struct {
	key [sha256.Size]byte // in callers
	der []byte
}

// serve answers the calls on one stream until it ends.
func (p *peerStreams) serve(c peerConn) error {
	defer func() { _ = c.Close() }()
	out := &frameWriter{conn: c}
	if _, err := out.send(func(b []byte) []byte { return append(b, callMagic...) }); err != nil {
		return err
	}
	var slots [callSlots]*handedChain
	under := new(atomic.Int32)
	ctx := context.WithValue(p.serving, viaKey, c.peer)
	for in := bufio.NewReaderSize(c, 32<<10); ; {
		kind, content, err := readFrame(in)
		if err != nil {
			return err
		}
		switch kind {
		case framePing:
			_, err = out.send(func(b []byte) []byte { return appendFrame(b, framePong, nothing) })
		case frameChain:
			f := &frameReader{rest: content}
			slot := f.uint16()
			if f.bad || int(slot) >= callSlots || len(f.rest) > maxChainHeader {
				return errCallFrame
			}
			slots[slot] = &handedChain{sha256.Sum256(append([]byte("der\x00"), f.rest...)), f.rest}
		case frameCall:
			call, number, slot, bad := parseCall(content)
			if bad != nil || int(slot) >= callSlots || slots[slot] == nil {
				return errCallFrame
			}
			under.Add(1)
			handed := slots[slot]
			p.group.Go(func() {
				defer under.Add(-1)
				a := p.answer(context.WithValue(ctx, handedKey, handed), call, under.Load() > maxStreamCalls)
				if _, err := out.send(func(b []byte) []byte {
					return appendFrame(b, frameAnswer, func(b []byte) []byte { return a.append(b, number) })
				}); err != nil {
					_ = c.Close() // the other node takes no answers
				}
			})
		default:
			err = fmt.Errorf("%w: kind %d", errCallFrame, kind)
		}
		if err != nil {
			return err
		}
	}
}

// answer has a call answered as one by HTTP is. One that breaks off has status 0.
func (p *peerStreams) answer(ctx context.Context, call *forwardedCall, full bool) (a *callAnswer) {
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
				p.n.log.LogAttrs(ctx, slog.LevelError, "a forwarded call broke off", slog.Any("panic", v))
			}
			a = &callAnswer{}
		}
	}()
	if !p.begin() {
		return &callAnswer{status: statusNotTaken}
	}
	defer p.end()
	deepen()
	w := &answerWriter{header: http.Header{}}
	r, err := call.request(ctx)
	switch {
	case err != nil:
		return &callAnswer{}
	case full:
		p.n.handler.Problem(w, r, overloaded())
	default:
		p.handler.ServeHTTP(w, r)
	}
	return w.answer()
}

// request is the call as HTTP brings it.
func (c *forwardedCall) request(ctx context.Context) (*http.Request, error) {
	target, err := url.ParseRequestURI(c.target)
	if err != nil {
		return nil, err
	}
	h := make(http.Header, 8)
	for _, v := range []struct{ name, value string }{
		{"Accept", c.accept},
		{"Content-Type", c.contentType},
		{"Idempotency-Key", c.key},
		{headerRequestID, c.requestID},
		{"Traceparent", c.traceparent},
		{"Tracestate", c.tracestate},
	} {
		if v.value != "" {
			h[v.name] = []string{v.value}
		}
	}
	r := &http.Request{
		Method: http.MethodPost, URL: target, RequestURI: c.target, Proto: "HTTP/2.0", ProtoMajor: 2, Header: h,
		Body: io.NopCloser(bytes.NewReader(c.body)), ContentLength: int64(len(c.body)),
	}
	return r.WithContext(ctx), nil
}

// answerWriter keeps an answer in memory.
type answerWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (w *answerWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *answerWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// Write implements http.ResponseWriter.
func (w *answerWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.body.Len()+len(b) > maxLeanBody {
		panic(http.ErrAbortHandler) // half an answer must not look like a whole one
	}
	return w.body.Write(b)
}

func (w *answerWriter) answer() *callAnswer {
	w.WriteHeader(http.StatusOK)
	a := &callAnswer{status: w.status, body: w.body.Bytes()}
	for i, name := range relayedHeaders() {
		a.header[i] = w.header.Get(name)
	}
	return a
}

// begin counts a call until its end; false once the node stops.
func (p *peerStreams) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopping {
		p.under++
	}
	return !p.stopping
}

func (p *peerStreams) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.under--; p.under == 0 && p.stopping {
		close(p.idle)
	}
}

// shutdown begins no more calls and lets those under way end, until ctx does.
func (p *peerStreams) shutdown(ctx context.Context) {
	p.mu.Lock()
	p.stopping = true
	under := p.under
	p.mu.Unlock()
	if under == 0 {
		return
	}
	select {
	case <-p.idle:
	case <-ctx.Done():
	}
}
