package proxy

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
)

// stalls measures how late this machine runs timers, so that a test about a
// second can tell the proxy's delay from the machine's.
type stalls struct {
	mu    sync.Mutex // owns worst
	worst time.Duration
}

func (s *stalls) watch(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		time.Sleep(5 * time.Millisecond)
		late := time.Since(began) - 5*time.Millisecond
		s.mu.Lock()
		s.worst = max(s.worst, late)
		s.mu.Unlock()
	}
}

func (s *stalls) most() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.worst
}

// aLiveOne opens something that would last for ever and returns when it is broken off.
type aLiveOne func(e *env, cert tls.Certificate) (broken func() error)

// drip answers with one byte every 20 ms, and swallows what is uploaded.
func drip(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		_, _ = io.Copy(io.Discard, r.Body)
		return
	}
	for {
		if _, err := io.WriteString(w, "."); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// dripBody uploads for ever.
type dripBody struct{ ctx context.Context }

func (d dripBody) Read(p []byte) (int, error) {
	select {
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return copy(p, "data"), nil
	}
}

func download(h2 bool) aLiveOne {
	return func(e *env, cert tls.Certificate) func() error {
		req, err := http.NewRequestWithContext(e.t.Context(), http.MethodGet, "https://"+e.addr+"/drip", http.NoBody)
		if err != nil {
			e.t.Fatal(err)
		}
		res, err := e.client(cert, h2).Do(req) //nolint:bodyclose // closed when the stream is broken
		if err != nil {
			e.t.Fatal(err)
		}
		return func() error {
			defer func() { _ = res.Body.Close() }()
			_, err := io.Copy(io.Discard, res.Body)
			if err == nil {
				err = errWhole
			}
			return err
		}
	}
}

var errWhole = io.ErrNoProgress // a cut answer that looked like a whole one

func upload(h2 bool) aLiveOne {
	return func(e *env, cert tls.Certificate) func() error {
		req, err := http.NewRequestWithContext(e.t.Context(), http.MethodPut, "https://"+e.addr+"/drip", dripBody{e.t.Context()})
		if err != nil {
			e.t.Fatal(err)
		}
		c := e.client(cert, h2)
		return func() error {
			res, err := c.Do(req)
			if err == nil {
				_ = res.Body.Close()
				return errWhole
			}
			return err
		}
	}
}

func idle(protocol string) aLiveOne {
	return func(e *env, cert tls.Certificate) func() error {
		c := e.dial(cert, protocol)
		return func() error {
			_, err := io.Copy(io.Discard, c)
			if err == nil {
				err = io.EOF
			}
			return err
		}
	}
}

func liveWebSocket(e *env, cert tls.Certificate) func() error {
	c, _, err := e.websocket(e.t.Context(), cert, "/ws") //nolint:bodyclose // the connection is the body's
	if err != nil {
		e.t.Fatal(err)
	}
	return func() error {
		defer func() { _ = c.CloseNow() }()
		for {
			if err := c.Write(e.t.Context(), websocket.MessageText, []byte("x")); err != nil {
				return err
			}
			if _, _, err := c.Read(e.t.Context()); err != nil {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func liveGRPC(e *env, cert tls.Certificate) func() error {
	s, err := e.grpcConn(cert).NewStream(e.t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/a.B/Watch")
	if err != nil {
		e.t.Fatal(err)
	}
	return func() error {
		for {
			m := []byte("x")
			if err := s.SendMsg(&m); err != nil {
				return s.RecvMsg(&m)
			}
			if err := s.RecvMsg(&m); err != nil {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func liveTCP(e *env, cert tls.Certificate) func() error {
	c := e.dial(cert)
	return func() error {
		for {
			if _, err := io.WriteString(c, "x"); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
				return err
			}
			if _, err := c.Read(make([]byte, 1)); err != nil && !os.IsTimeout(err) {
				return err
			}
		}
	}
}

func livePostgres(e *env, cert tls.Certificate) func() error {
	c, refused := e.open(cert, "user", "readonly", "database", "orders")
	if refused != nil {
		e.t.Fatalf("%+v", refused)
	}
	return func() error { return talkUntilBroken(c.talk) }
}

// talkUntilBroken has one exchange after the other, and says how that ended.
func talkUntilBroken(talk func() error) error {
	for {
		if err := talk(); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// everyProtocol is all that can be under way when a certificate expires.
func everyProtocol(t *testing.T) map[string]struct {
	open     aLiveOne
	upstream string
	perm     string
	edit     func(*Settings)
} {
	web, ws, rpc := upstreamServer(t, drip), wsUpstream(t), echoGRPC(t)
	tcp, _ := tcpUpstream(t)
	type row = struct {
		open     aLiveOne
		upstream string
		perm     string
		edit     func(*Settings)
	}
	return map[string]row{
		"http1 download": {download(false), web, "GET /**", nil},
		"http1 upload":   {upload(false), web, "PUT /**", nil},
		"http1 idle":     {idle("http/1.1"), web, "GET /**", nil},
		"http2 download": {download(true), web, "GET /**", nil},
		"http2 upload":   {upload(true), web, "PUT /**", nil},
		"http2 idle":     {idle("h2"), web, "GET /**", nil},
		"websocket":      {liveWebSocket, ws, "GET /ws", nil},
		"grpc":           {liveGRPC, rpc, "grpc a.B/*", nil},
		"tcp":            {liveTCP, tcp, "tcp", tcpService},
	}
}
