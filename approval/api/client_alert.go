package api

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// refused reports whether the server ended the handshake with an alert.
func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// mayHideAlert reports whether err may stand where a server's alert should: in
// TLS 1.3 a client's certificate is looked at only after the client believes the
// handshake over, so the alert meets a client that is writing its request.
func mayHideAlert(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) ||
		strings.Contains(err.Error(), "client conn could not be established") // HTTP/2's words; it exports none
}

// alertWait bounds how long a server is listened to for its alert.
const alertWait = 500 * time.Millisecond

// alert shakes hands with the server once more, without HTTP/2, and returns the
// alert that err may have swallowed: a person whose identity is refused must not
// be told that a connection failed.
func (c *Client) alert(ctx context.Context, server string, err error) error {
	if !mayHideAlert(err) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, alertWait)
	defer cancel()
	conf := c.tls.Clone()
	conf.NextProtos = nil
	host := strings.TrimPrefix(server, "https://")
	raw, err := c.dial(ctx, "tcp", host)
	if err != nil {
		return nil
	}
	defer func() { _ = raw.Close() }()
	if conf.ServerName == "" {
		if conf.ServerName, _, err = net.SplitHostPort(host); err != nil {
			return nil
		}
	}
	_ = raw.SetDeadline(time.Now().Add(alertWait)) // a connection without deadlines would be closed by ctx
	conn := tls.Client(raw, conf)
	if err = conn.HandshakeContext(ctx); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if err != nil && refused(err) {
		return err
	}
	return nil
}
