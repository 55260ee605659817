package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/grant"
)

// carrying is the span of one request or TCP connection at the client's end.
// With nothing traced it is nil, and its methods do nothing.
type carrying struct {
	span trace.Span
	once sync.Once
}

// carryingHTTP starts a request's span, under that of whoever asked, and has the
// request tell the proxy of it.
func (c *Connector) carryingHTTP(r *http.Request) (*http.Request, *carrying) {
	if c.tracer == nil {
		return r, nil
	}
	method, name := spanMethod(r.Method)
	ctx, span := c.tracer.Start(r.Context(), name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(method...),
		trace.WithAttributes(
			attribute.String("url.full", "https://"+c.host+pathOf(targetOf(r))),
			attribute.String("hallpass.service", c.service),
		), trace.WithAttributes(c.peer...))
	out := r.WithContext(ctx) // and not Clone: trailers are filled in while the body is read
	out.Header = r.Header.Clone()
	inject(ctx, out.Header)
	return out, &carrying{span: span}
}

// carryingTCP starts a connection's span. Nothing in a stream of bytes can tell
// the proxy of it: the grant's id and this end's port do.
func (c *Connector) carryingTCP(ctx context.Context) (context.Context, *carrying) {
	if c.tracer == nil {
		return ctx, nil
	}
	ctx, span := c.tracer.Start(ctx, "tcp", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("network.transport", "tcp"),
		attribute.String("hallpass.service", c.service),
	), trace.WithAttributes(c.peer...))
	return ctx, &carrying{span: span}
}

// under notes the grant that the traffic goes out with.
func (s *carrying) under(cred *credential) {
	if s != nil && cred.grant != (grant.ID{}) {
		s.span.SetAttributes(
			attribute.String("hallpass.grant.id", cred.grant.GrantID()),
			attribute.String("hallpass.subject", cred.grant.Subject().String()),
		)
	}
}

// from notes the socket, by which the proxy's span of a connection is found.
func (s *carrying) from(conn net.Conn) {
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok && s != nil {
		s.span.SetAttributes(attribute.String("network.local.address", a.IP.String()), attribute.Int("network.local.port", a.Port))
	}
}

// answered notes the head of an answer. The span ends with its body.
func (s *carrying) answered(res *http.Response) {
	if s == nil {
		return
	}
	s.span.SetAttributes(
		attribute.Int("http.response.status_code", res.StatusCode),
		attribute.String("network.protocol.version", httpVersion(res.ProtoMajor)),
	)
	if res.StatusCode >= http.StatusBadRequest {
		s.span.SetAttributes(attribute.String("error.type", strconv.Itoa(res.StatusCode)))
		s.span.SetStatus(codes.Error, "")
	}
	if tunnel, ok := res.Body.(io.ReadWriteCloser); ok && res.StatusCode == http.StatusSwitchingProtocols {
		res.Body = &carriedTunnel{tunnel, s}
		return
	}
	res.Body = &carriedBody{res.Body, s, res.ContentLength}
}

// failed ends the span of what was not carried.
func (s *carrying) failed(err error) {
	kind, detail := connectTrouble(err)
	s.endBadly(kind, detail)
}

// broke ends the span of what was not carried to its end.
func (s *carrying) broke(err error) {
	if errors.Is(err, errForeignPage) {
		s.endBadly("foreign_origin", errForeignPage.Error())
		return
	}
	s.endBadly("broke_off", "the connection broke off")
}

func (s *carrying) endBadly(kind, detail string) {
	if s == nil {
		return
	}
	s.once.Do(func() {
		s.span.SetAttributes(attribute.String("error.type", kind))
		s.span.SetStatus(codes.Error, detail)
		s.span.End()
	})
}

func (s *carrying) end() {
	if s != nil {
		s.once.Do(func() { s.span.End() })
	}
}

// carried ends a connection's span.
func (s *carrying) carried(in, out *atomic.Int64, err error) {
	if s == nil {
		return
	}
	s.span.SetAttributes(attribute.Int64("hallpass.bytes_in", in.Load()), attribute.Int64("hallpass.bytes_out", out.Load()))
	if err != nil {
		s.broke(err)
		return
	}
	s.end()
}

// carriedBody ends its span when it has been read or given up.
type carriedBody struct {
	io.ReadCloser
	carrying *carrying
	left     int64 // of the length that was announced; negative when none was
}

func (b *carriedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
	}
	switch {
	// A client that has the last byte may be gone before the end is read.
	case errors.Is(err, io.EOF), b.left == 0:
		b.carrying.end()
	case err == nil:
	default:
		b.carrying.broke(err)
	}
	return n, err
}

func (b *carriedBody) Close() error {
	b.carrying.end()
	return b.ReadCloser.Close()
}

// carriedTunnel is what follows a switch of protocols.
type carriedTunnel struct {
	io.ReadWriteCloser
	carrying *carrying
}

func (b *carriedTunnel) CloseWrite() error {
	if hc, ok := b.ReadWriteCloser.(halfCloser); ok {
		return hc.CloseWrite()
	}
	return http.ErrNotSupported
}

func (b *carriedTunnel) Close() error {
	b.carrying.end()
	return b.ReadWriteCloser.Close()
}

// inject tells whoever gets h of ctx's span, and of no other: a tracestate that
// came beside a broken traceparent is nobody's.
func inject(ctx context.Context, h http.Header) {
	if trace.SpanContextFromContext(ctx).IsValid() {
		delete(h, "Tracestate")
		propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(h))
	}
}

// spanMethod is a request's method for a span and its name. The name must be one
// of few, and a method may be any word that a client makes up.
func spanMethod(method string) ([]attribute.KeyValue, string) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodConnect, http.MethodTrace:
		return []attribute.KeyValue{attribute.String("http.request.method", method)}, method
	default:
		return []attribute.KeyValue{attribute.String("http.request.method", "_OTHER"), attribute.String("http.request.method_original", method)}, "HTTP"
	}
}

func httpVersion(major int) string {
	if major == 2 {
		return "2"
	}
	return "1.1"
}

// targetOf is the target as it goes out.
func targetOf(r *http.Request) string {
	if r.URL.Opaque != "" {
		return r.URL.Opaque
	}
	return r.URL.RequestURI()
}

// peerAttributes says where a proxy is.
func peerAttributes(address string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil
	}
	attrs := []attribute.KeyValue{attribute.String("server.address", strings.Trim(host, "[]"))}
	if n, err := strconv.Atoi(port); err == nil {
		attrs = append(attrs, attribute.Int("server.port", n))
	}
	return attrs
}
