package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hallpass/hallpass/proxy/pgwire"
)

// pgALPN is the protocol's name in TLS (IANA: TLS Application-Layer Protocol Negotiation Protocol IDs).
const pgALPN = "postgresql"

// errPlainCancel is returned when a connection was only there to cancel a statement.
var errPlainCancel = errors.New("a cancel request")

// tlsHandshakeRecord is the first byte of TLS. No first packet of Postgres begins with it: it would be 369 MB long.
const tlsHandshakeRecord = 0x16

// pgNegotiate takes a Postgres client up to the first byte of TLS: one that begins with it, as with
// sslnegotiation=direct, or one that asks for it. It reads no byte too many, so that what was sent ahead in the clear
// reaches TLS, where it is none, and is not taken for something that came through it.
func (p *Proxy) pgNegotiate(ctx context.Context, sock *socket) error {
	release := deadlineOf(ctx, sock)
	err := p.pgAsk(ctx, sock)
	if !release() && err == nil || err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (p *Proxy) pgAsk(ctx context.Context, sock *socket) error {
	for asked := false; ; asked = true {
		first := make([]byte, 1)
		if _, err := io.ReadFull(sock, first); err != nil {
			return err
		}
		if first[0] == tlsHandshakeRecord && !asked {
			sock.head = first
			return nil
		}
		f, err := pgwire.ReadFirst(io.MultiReader(bytes.NewReader(first), sock))
		switch {
		case errors.Is(err, pgwire.ErrFirst):
			return &refusal{reasonNotTLS, err}
		case err != nil:
			return err
		}
		switch f.Kind {
		case pgwire.KindTLS:
			sock.askedTLS = true
			_, err := sock.Write([]byte{'S'})
			return err
		case pgwire.KindGSS:
			if asked {
				return refuse(reasonNotTLS, "GSSAPI encryption asked for twice")
			}
			if _, err := sock.Write([]byte{'N'}); err != nil {
				return err
			}
		case pgwire.KindCancel:
			p.pgCancel(ctx, f.Cancel, nil, sock.RemoteAddr().String())
			return errPlainCancel
		case pgwire.KindStartup:
			_, _ = sock.Write(pgPlain().Bytes()) // who is gone needs no answer
			return refuse(reasonNotTLS, "a session without TLS")
		default:
			return refuse(reasonNotTLS, "an unknown beginning")
		}
	}
}

func pgPlain() pgwire.Fatal {
	return pgwire.Fatal{
		Code: pgwire.CodeInvalidAuthorization, Message: "hallpass: connections without TLS are not accepted",
		Hint: "connect with sslmode=verify-full, sslrootcert, and your grant certificate as sslcert and sslkey",
	}
}

// withinTunnel says whether a client speaks within `hallpass connect`, which begins with TLS and names no
// protocol: the program behind it has not asked for TLS yet.
func withinTunnel(client net.Conn) bool {
	t, ok := client.(*tls.Conn)
	if !ok {
		return true // a stream of a carrier
	}
	s, ok := t.NetConn().(*socket)
	return ok && !s.askedTLS && t.ConnectionState().NegotiatedProtocol == ""
}

// deadlineOf makes what waits for c end with ctx, until release is called, which says whether it has not.
func deadlineOf(ctx context.Context, c net.Conn) (release func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.SetDeadline(longAgo()) }) // one that fails is closed already
}

// longAgo is a deadline that has passed.
func longAgo() time.Time { return time.Unix(1, 0) }
