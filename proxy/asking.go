package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"syscall"
)

// grip is an exchange's hold on its connection to the upstream: whoever ends the
// exchange from outside breaks that off.
type grip struct {
	hands sync.Mutex // owns back
	back  *backend
}

// abandon breaks off what is under way with the upstream.
func (g *grip) abandon() {
	g.hands.Lock()
	defer g.hands.Unlock()
	if g.back != nil {
		breakOff(g.back)
	}
}

// hold makes b what abandon breaks off. When ctx ends, abandon is called.
func (g *grip) hold(ctx context.Context, b *backend) error {
	g.hands.Lock()
	g.back = b
	g.hands.Unlock()
	return ctx.Err() // abandon may have looked before
}

// take makes the connection to the upstream one that abandon does not know: it
// may be another client's by the time that this one is cut.
func (g *grip) take() *backend {
	g.hands.Lock()
	defer g.hands.Unlock()
	b := g.back
	g.back = nil
	return b
}

// question is a request that is sent to the upstream.
type question interface {
	hold(ctx context.Context, b *backend) error
	take() *backend
	// body begins to send what of the body is not with the head, and says whether
	// there is any.
	body(b *backend) bool
	// answer reads the head of the answer, and says how much was read of it.
	answer(b *backend) (read int, err error)
	// harmless says whether the request changes nothing (RFC 9110 §9.2.1) and has no body.
	harmless() bool
	// left says whether the client is gone.
	left() bool
}

// ask sends a request, whose head is given, and has the head of the answer read. A
// connection that turns out to have been closed while it waited for work is
// replaced, once, if the upstream cannot have acted on what it was sent: none of it
// was taken, or it is harmless.
func (s *backends) ask(ctx context.Context, q question, head []byte) (*backend, error) {
	b, err := s.get(ctx)
	if err != nil {
		return nil, err
	}
	for {
		if err := q.hold(ctx, b); err != nil {
			return nil, err
		}
		begun, read := false, 0
		sent, err := b.Write(head)
		if err == nil {
			begun = q.body(b)
			if read, err = q.answer(b); err == nil {
				return b, nil
			}
			sent = len(head)
		}
		again := b.reused && read == 0 && !begun && ctx.Err() == nil && !q.left() && isLoss(err) &&
			(sent == 0 || q.harmless())
		if !again {
			return nil, err
		}
		q.take()
		b.drop()
		if b, err = s.fresh(ctx); err != nil {
			return nil, err
		}
	}
}

func isSafe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// isLoss says whether err is of a connection that the other side has closed.
func isLoss(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
