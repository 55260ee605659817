package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// aCarriedOne opens something that would last for ever at a connector's local end.
// Each call of talk is one exchange over it, with an error once it is broken off.
type aCarriedOne func(e *env, addr string) (talk func() error)

// carriedHTTP downloads.
func carriedHTTP(h2 bool) aCarriedOne {
	return func(e *env, addr string) func() error {
		tr := &http.Transport{Protocols: new(http.Protocols)}
		tr.Protocols.SetHTTP1(!h2)
		tr.Protocols.SetUnencryptedHTTP2(h2)
		req, err := http.NewRequestWithContext(e.t.Context(), http.MethodGet, "http://"+addr+"/drip", http.NoBody)
		if err != nil {
			e.t.Fatal(err)
		}
		res, err := tr.RoundTrip(req)
		if err != nil {
			e.t.Fatal(err)
		}
		e.t.Cleanup(func() { _ = res.Body.Close() })
		if res.StatusCode != http.StatusOK || (res.ProtoMajor == 2) != h2 {
			e.t.Fatalf("%s %s", res.Proto, res.Status)
		}
		return func() error {
			_, err := io.CopyN(io.Discard, res.Body, 8)
			if errors.Is(err, io.EOF) {
				err = errWhole
			}
			return err
		}
	}
}

func carriedStream(e *env, addr string) grpc.ClientStream {
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = cc.Close() })
	s, err := cc.NewStream(e.t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/a.B/Watch")
	if err != nil {
		e.t.Fatal(err)
	}
	return s
}

func carriedGRPC(e *env, addr string) func() error {
	s := carriedStream(e, addr)
	return func() error {
		m := []byte("x")
		_ = s.SendMsg(&m) // io.EOF when it has ended: RecvMsg says how
		return s.RecvMsg(&m)
	}
}

func carriedWebSocket(e *env, addr string) func() error {
	ctx := e.t.Context()
	c, _, err := websocket.Dial(ctx, "ws://"+addr+"/ws", nil) //nolint:bodyclose // the connection is the body's
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = c.CloseNow() })
	return func() error {
		_ = c.Write(ctx, websocket.MessageText, []byte("x")) // Read says how it has ended
		_, got, err := c.Read(ctx)
		switch {
		case err == nil && string(got) != "x":
			return fmt.Errorf("%q came back", got)
		case websocket.CloseStatus(err) != -1:
			return errWhole
		case err != nil:
			return fmt.Errorf("no closing frame: %v", err) //nolint:errorlint // that of a socket's end is no good end here
		}
		return nil
	}
}

func carriedTCP(e *env, addr string) func() error {
	c := dialLocal(e.t, addr)
	return func() error {
		if err := c.SetDeadline(time.Now().Add(2 * patience)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
}

func carriedPostgres(e *env, addr string) func() error {
	c, refused := e.openOn(dialLocal(e.t, addr), "user", "readonly", "database", "orders")
	if refused != nil {
		e.t.Fatalf("%+v", refused)
	}
	return c.talk
}
