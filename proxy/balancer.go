package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/pires/go-proxyproto"
)

// Behind a balancer of layer 4 every client has the balancer's address. PROXY
// protocol v2 tells the true one in front of the stream. Whoever may say it may
// say any address, into records, limits by source and x-forwarded-for: it is
// read from the balancers that the settings list, who must say it, and from
// nobody else, to whom it is bytes that are no TLS.

// proxyHeaderMost bounds the part of a header behind its first 16 bytes:
// addresses, and values that nothing here looks at.
const proxyHeaderMost = 2048

var errProxyHeader = errors.New("no PROXY protocol v2 header")

// readBalancers reads listen_proxy_protocol and upstream_proxy_protocol.
func (c *config) readBalancers(s *Settings) error {
	var errs []error
	for i, text := range s.ListenProxyProtocol.Trusted {
		key := "listen_proxy_protocol.trusted[" + strconv.Itoa(i) + "]"
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil || prefix != prefix.Masked() || prefix.Addr().Is4In6():
			errs = append(errs, s.mistake(key, "%q is no network such as 10.0.7.0/24 or fd00:7::/64", text))
		case prefix.Bits() == 0:
			errs = append(errs, s.mistake(key, "%q trusts every client to say where it comes from; list the balancers", text))
		}
		c.balancers = append(c.balancers, prefix)
	}
	if _, named := s.lines["listen_proxy_protocol"]; named && len(c.balancers) == 0 {
		errs = append(errs, s.mistake("listen_proxy_protocol.trusted", "is empty; list the balancers' networks"))
	}
	switch {
	case s.UpstreamProxyProtocol == "":
	case s.UpstreamProxyProtocol != "v2":
		errs = append(errs, s.mistake("upstream_proxy_protocol", "%q is not v2", s.UpstreamProxyProtocol))
	case s.Protocol == "" || s.Protocol == "http":
		// Connections to it are shared: a header would give one client's requests another's address.
		errs = append(errs, s.mistake("upstream_proxy_protocol", "is not for http, whose upstream reads x-forwarded-for"))
	}
	c.announce = s.UpstreamProxyProtocol == "v2"
	return errors.Join(errs...)
}

// introduce reads who a connection comes from, where a balancer has to say it.
func (c *config) introduce(raw net.Conn) (net.Conn, error) {
	if _, told := raw.(*replay); told || !c.fromBalancer(raw.RemoteAddr()) {
		return raw, nil // replay: before it was found out whose the connection is
	}
	if err := raw.SetReadDeadline(time.Now().Add(c.limits.handshakeTime)); err != nil {
		return raw, err
	}
	h, err := readProxyHeader(raw)
	switch {
	case errors.Is(err, errProxyHeader):
		return raw, refuse(reasonProxyHeader, "%s", err.Error())
	case err != nil:
		return raw, err
	}
	if err := raw.SetReadDeadline(time.Time{}); err != nil {
		return raw, err
	}
	if h.Command.IsLocal() {
		return raw, nil // the balancer's own, as its health checks are
	}
	return &introduced{Conn: raw, peer: h.SourceAddr, local: h.DestinationAddr}, nil
}

func (c *config) fromBalancer(addr net.Addr) bool {
	if len(c.balancers) == 0 {
		return false
	}
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return false
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	for _, prefix := range c.balancers {
		if prefix.Contains(ip) {
			return true
		}
	}
	return false
}

// readProxyHeader reads exactly one header of version 2 and not a byte more, so
// that what follows is TLS's. Only LOCAL, and PROXY of TCP over IP, pass: there is
// no client's address in the others.
func readProxyHeader(r io.Reader) (*proxyproto.Header, error) {
	buf := make([]byte, 16, 64)
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return nil, err
	}
	// Whoever says something else is not kept waiting for 16 bytes of it.
	if buf[0] != proxyproto.SIGV2[0] {
		return nil, errProxyHeader
	}
	if _, err := io.ReadFull(r, buf[1:]); err != nil {
		return nil, err
	}
	more := int(binary.BigEndian.Uint16(buf[14:]))
	if !bytes.Equal(buf[:12], proxyproto.SIGV2) || more > proxyHeaderMost {
		return nil, errProxyHeader
	}
	buf = append(buf, make([]byte, more)...)
	if _, err := io.ReadFull(r, buf[16:]); err != nil {
		return nil, err
	}
	h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(buf)))
	if err != nil {
		return nil, errors.Join(errProxyHeader, err)
	}
	if h.Command.IsLocal() {
		return h, nil
	}
	if _, ok := h.SourceAddr.(*net.TCPAddr); !ok {
		return nil, errProxyHeader
	}
	return h, nil
}

// introduced is a connection whose client a balancer has named.
type introduced struct {
	net.Conn
	peer, local net.Addr
}

// RemoteAddr is the client's address.
func (c *introduced) RemoteAddr() net.Addr { return c.peer }

// LocalAddr is where the client dialed.
func (c *introduced) LocalAddr() net.Addr { return c.local }

// CloseWrite ends our side.
func (c *introduced) CloseWrite() error {
	if hc, ok := c.Conn.(halfCloser); ok {
		return hc.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetLinger is net.TCPConn's.
func (c *introduced) SetLinger(sec int) error {
	if tcp, ok := c.Conn.(interface{ SetLinger(sec int) error }); ok {
		return tcp.SetLinger(sec)
	}
	return nil
}

// dialFor opens a connection to the upstream that carries one client's bytes,
// and where the settings ask for it says first whose.
func (p *Proxy) dialFor(ctx context.Context, c *conn) (net.Conn, error) {
	upstream, err := p.up.dial(ctx)
	if err != nil || !p.cfg.announce {
		return upstream, err
	}
	// It is the first thing in an empty socket's buffer: it does not wait.
	h := proxyproto.HeaderProxyFromAddrs(2, c.raw.RemoteAddr(), c.raw.LocalAddr())
	if _, err := h.WriteTo(upstream); err != nil {
		return nil, errors.Join(err, upstream.Close())
	}
	return upstream, nil
}
