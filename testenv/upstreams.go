package testenv

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// HTTPUpstream serves h over plain HTTP/1.1 and returns its URL.
func (e *Env) HTTPUpstream(h http.Handler) string {
	e.t.Helper()
	l := e.listen("127.0.0.1:0")
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	e.serve(func() error { return server.Serve(l) }, func() { _ = server.Close() })
	return "http://" + l.Addr().String()
}

// WebSocketUpstream echoes every message and returns its URL.
func (e *Env) WebSocketUpstream() string {
	return e.HTTPUpstream(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for {
			kind, message, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if err := c.Write(r.Context(), kind, message); err != nil {
				return
			}
		}
	}))
}

// TCPUpstream echoes every byte and returns its URL.
func (e *Env) TCPUpstream() string {
	e.t.Helper()
	l := e.listen("127.0.0.1:0")
	e.serve(func() error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.Copy(c, c) // ends with either side
			}()
		}
	}, func() { _ = l.Close() })
	return "tcp://" + l.Addr().String()
}

// EchoMethod is the full name of the method of GRPCUpstream: each message that
// comes in goes out again, both ways streaming.
const EchoMethod = "/hallpass.test.Echo/Stream"

// GRPCUpstream serves EchoMethod over cleartext HTTP/2 and returns its URL.
// Messages are raw bytes: use RawCodec in clients.
func (e *Env) GRPCUpstream() string {
	e.t.Helper()
	l := e.listen("127.0.0.1:0")
	server := grpc.NewServer(grpc.ForceServerCodecV2(RawCodec()))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "hallpass.test.Echo",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Stream", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, s grpc.ServerStream) error {
				for {
					var message []byte
					if err := s.RecvMsg(&message); errors.Is(err, io.EOF) {
						return nil
					} else if err != nil {
						return err
					}
					if err := s.SendMsg(&message); err != nil {
						return err
					}
				}
			},
		}},
	}, nil)
	e.serve(func() error { return server.Serve(l) }, server.Stop)
	return "h2c://" + l.Addr().String()
}

// serve runs a server until the test ends.
func (e *Env) serve(run func() error, stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			e.log.WarnContext(context.Background(), "upstream ended", "error", err.Error())
		}
	}()
	e.t.Cleanup(func() { stop(); <-done })
}

// RawCodec carries *[]byte messages as they are, so that no generated code is
// needed.
func RawCodec() encoding.CodecV2 { return rawCodec{} }
