package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// rawCodec sends bytes as they are: no generated code is needed.
type rawCodec struct{}

func (rawCodec) Name() string { return "raw" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("marshal %T", v)
	}
	return *b, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("unmarshal %T", v)
	}
	*b = append([]byte(nil), data...)
	return nil
}

// echoGRPC answers every message with itself, and ends with a trailer.
func echoGRPC(t testing.TB) string {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(s.Context())
		s.SetTrailer(metadata.Pairs("x-subject", strings.Join(md.Get("x-hallpass-subject"), "|")))
		for {
			var m []byte
			if err := s.RecvMsg(&m); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if string(m) == "fail" {
				return status.Error(codes.FailedPrecondition, "as asked")
			}
			if err := s.SendMsg(&m); err != nil {
				return err
			}
		}
	}))
	go func() { _ = srv.Serve(ln) }() // ends with Stop
	t.Cleanup(srv.Stop)
	return "h2c://" + ln.Addr().String()
}

func (e *env) grpcConn(cert tls.Certificate) *grpc.ClientConn {
	e.t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+e.addr, grpc.WithTransportCredentials(credentials.NewTLS(e.tlsConfig(cert))),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// TestGRPC: unary and bidirectional calls with a real client and server; status,
// messages and trailers come through.
func TestGRPC(t *testing.T) {
	e := start(t, options{upstream: echoGRPC(t)})
	cc := e.grpcConn(e.pki.grant(time.Hour, "grpc bank.Ledger/*"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	var trailer metadata.MD
	in, out := []byte("hello"), []byte(nil)
	if err := cc.Invoke(ctx, "/bank.Ledger/Get", &in, &out, grpc.Trailer(&trailer)); err != nil || string(out) != "hello" {
		t.Fatalf("%q, %v", out, err)
	}
	if got := trailer.Get("x-subject"); len(got) != 1 || got[0] != alice {
		t.Errorf("trailer %v", trailer)
	}
	in = []byte("fail")
	if err := cc.Invoke(ctx, "/bank.Ledger/Get", &in, &out); status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "as asked" {
		t.Errorf("%v", err)
	}
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/bank.Ledger/Watch")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		m := fmt.Appendf(nil, "%d", i)
		if err := stream.SendMsg(&m); err != nil {
			t.Fatal(err)
		}
		var got []byte
		if err := stream.RecvMsg(&got); err != nil || string(got) != string(m) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var rest []byte
	if err := stream.RecvMsg(&rest); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
	r := e.record("the stream", func(r logLine) bool { return r.Path == "/bank.Ledger/Watch" })
	if r.Protocol != "grpc" || r.Permission != "grpc bank.Ledger/*" || r.Status != 200 || r.BytesIn == 0 || r.BytesOut == 0 {
		t.Errorf("record %+v", r)
	}
}

// TestGRPCNeedsItsOwnPermission: http permissions, however wide, open no gRPC
// call, nor the other way round; a refusal is PERMISSION_DENIED and says what to ask for.
func TestGRPCNeedsItsOwnPermission(t *testing.T) {
	e := start(t, options{upstream: echoGRPC(t)})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for name, cert := range map[string]tls.Certificate{
		"http":          e.pki.grant(time.Hour, "* /**"),
		"other method":  e.pki.grant(time.Hour, "grpc bank.Ledger/Get"),
		"other service": e.pki.grant(time.Hour, "grpc bank.Ledger2/*"),
		"identity":      e.pki.identity(alice),
	} {
		in, out := []byte("x"), []byte(nil)
		err := e.grpcConn(cert).Invoke(ctx, "/bank.Ledger/Transfer", &in, &out)
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "hallpass request create payments --allow 'grpc bank.Ledger/Transfer' --for 30m --reason '…'") {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := e.client(e.pki.grant(time.Hour, "grpc bank.Ledger/*"), true)
	if a := e.must(c, "POST", "/bank.Ledger/Get"); a.status != 403 {
		t.Errorf("plain HTTP with a grpc permission: %d", a.status)
	}
	for _, kind := range []string{"application/grpc", "APPLICATION/GRPC", "application/grpc+proto", "application/grpc-web-text", "application/grpc;x=y"} {
		a := e.must(e.client(e.pki.grant(time.Hour, "* /**"), true), "POST", "/bank.Ledger/Get", "Content-Type", kind)
		if a.status != 200 || a.header.Get("Grpc-Status") != "7" || a.body != "" {
			t.Errorf("%s: %d %v", kind, a.status, a.header)
		}
	}
}

// TestGRPCUpstreamDown is UNAVAILABLE.
func TestGRPCUpstreamDown(t *testing.T) {
	e := start(t, options{upstream: "h2c://127.0.0.1:1"})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	in, out := []byte("x"), []byte(nil)
	err := e.grpcConn(e.pki.grant(time.Hour, "grpc a.B/*")).Invoke(ctx, "/a.B/C", &in, &out)
	if status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}
