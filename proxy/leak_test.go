package proxy

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestNothingIsLeft of a proxy that has stopped: no goroutine, whatever it carried.
func TestNothingIsLeft(t *testing.T) {
	web, ws := upstreamServer(t, drip), wsUpstream(t)
	tcp, _ := tcpUpstream(t)
	p := newPKI(t)
	node := startControl(t, p, nodeOne, feedDoc{Epoch: 1, Revision: 1, VerifiedAt: time.Now()})
	before := goleak.IgnoreCurrent()
	for _, up := range []string{web, ws, tcp} {
		e := start(t, options{pki: p, upstream: up, edit: func(s *Settings) {
			withFeed(node.url)(s)
			if up == tcp {
				tcpService(s)
			}
		}})
		e.eventually("feed", func() bool { return e.px.rev.cur.Load().epoch == 1 })
		var ended func() error
		switch up {
		case web:
			ended = download(true)(e, p.grant(time.Hour, "GET /**"))
		case ws:
			c, _, err := e.websocket(t.Context(), p.grant(time.Hour, "GET /ws"), "/ws") //nolint:bodyclose // the connection is the body's
			if err != nil {
				t.Fatal(err)
			}
			ended = func() error {
				_, _, err := c.Read(t.Context())
				_ = c.CloseNow()
				return err
			}
		case tcp:
			ended = liveTCP(e, p.grant(time.Hour, "tcp"))
		}
		_ = readError(e.dial(p.grant(-time.Hour, "GET /**")))
		e.shutdown()
		if err := ended(); err == nil {
			t.Error("a stream outlived its proxy")
		}
	}
	goleak.VerifyNone(t, before)
}
