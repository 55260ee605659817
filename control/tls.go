package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/trust"
)

// errRefused is in what a handshake ends with when the certificate shown is not
// an identity that may call the API.
var errRefused = errors.New("identity refused")

// caller is whose certificate opened a connection, with the proof that a
// follower hands on to the leader.
type caller struct {
	id       spiffeid.ID
	notAfter time.Time
	chain    []*x509.Certificate
	checked  atomic.Uint64 // revision of trusted under which chain last held
	der      atomic.Pointer[[]byte]
}

// raw is the chain in DER, one certificate after the other.
func (c *caller) raw() []byte {
	if b := c.der.Load(); b != nil {
		return *b
	}
	var b []byte
	for _, cert := range c.chain {
		b = append(b, cert.Raw...)
	}
	c.der.Store(&b)
	return b
}

func (c *caller) api() api.Caller { return api.Caller{ID: c.id, NotAfter: c.notAfter} }

// verifier decides whose certificate chain is an identity.
type verifier struct {
	trusted     func() *trusted
	trustDomain spiffeid.TrustDomain
	grantDomain spiffeid.TrustDomain
	now         func() time.Time
}

// verify returns the caller whose identity the chain proves.
func (v verifier) verify(chain []*x509.Certificate) (*caller, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: no certificate", errRefused)
	}
	// A grant certificate opens its scope at its service and nothing else. Were
	// it an identity here, whoever holds a stolen one could approve, renew and
	// revoke in its subject's name.
	t := v.trusted()
	id, err := ca.VerifyIdentity(chain, t.roots, v.trustDomain, v.now())
	if err != nil {
		if v.isGrant(chain[0]) {
			return nil, fmt.Errorf("%w: a grant certificate is not an identity: %w", errRefused, err)
		}
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	if t.denies(chain) {
		return nil, fmt.Errorf("%w: %s is signed by an issuer that was denied", errRefused, id)
	}
	notAfter := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(notAfter) {
			notAfter = c.NotAfter
		}
	}
	who := &caller{id: id, notAfter: notAfter, chain: chain}
	who.checked.Store(t.revision)
	return who, nil
}

// denies reports whether an issuer in a chain is out of use. The thief of a
// node's key would otherwise be any person here until that issuer ends.
func (t *trusted) denies(chain []*x509.Certificate) bool {
	return len(t.denied) > 0 && slices.ContainsFunc(chain[1:], func(c *x509.Certificate) bool { return t.denied[trust.ID(c)] })
}

func (v verifier) isGrant(leaf *x509.Certificate) bool {
	for _, u := range leaf.URIs {
		if u.Host == v.grantDomain.Name() {
			return true
		}
	}
	return false
}

// over reports whether a caller's certificate has ended, or counts no more: its
// root was retired, or its issuer denied.
func (n *node) over(who *caller) bool {
	if revision := n.custody.get().revision; who.checked.Load() != revision {
		if _, err := n.verifier.verify(who.chain); err != nil {
			return true
		}
		who.checked.Store(revision)
	}
	return !n.now().Before(who.notAfter)
}

// cutExpired closes connections at the end of their certificate, until ctx
// ends. It compares wall clocks: a timer would stand still while the machine is
// suspended, and the connection would live on by as much.
func (l *apiListener) cutExpired(ctx context.Context, over func(*caller) bool, log *slog.Logger) {
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, c := range l.expired(over) {
			log.LogAttrs(ctx, slog.LevelInfo, "connection cut at the end of its certificate",
				slog.String("caller", c.getCaller().id.String()), slog.String("remote", c.RemoteAddr().String()))
			_ = c.Close() // it is of no use any more
		}
	}
}

// apiTLS is the TLS of the API: this node's own certificate, and identities of
// the cluster's trust domain.
func (n *node) apiTLS() *tls.Config {
	base := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{n.custody.get().api},
		ClientAuth:   tls.RequireAnyClientCert, // possession here, the chain in VerifyConnection
		// A resumed session would skip nothing here, but a ticket taken to
		// another node, or used after the roots changed, must not count.
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
	}
	conf := base.Clone()
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		conn, ok := hello.Conn.(*apiConn)
		if !ok {
			return nil, errors.New("connection is not of the API listener")
		}
		c := base.Clone()
		c.Certificates = []tls.Certificate{n.custody.get().api}
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			who, err := n.verifier.verify(cs.PeerCertificates)
			if err != nil {
				n.handshakeRefused(hello.Context(), conn, cs.PeerCertificates, err)
				return err
			}
			conn.setCaller(who)
			return nil
		}
		return c, nil
	}
	return conf
}

// handshakeRefused says in the log who was turned away, and why.
func (n *node) handshakeRefused(ctx context.Context, conn net.Conn, chain []*x509.Certificate, err error) {
	reason, shown := "untrusted", ""
	if len(chain) > 0 {
		if len(chain[0].URIs) == 1 {
			shown = chain[0].URIs[0].String()
		}
		switch now := n.now(); {
		case n.verifier.isGrant(chain[0]):
			reason = "grant_certificate"
		case now.After(chain[0].NotAfter):
			reason = "expired"
		case now.Before(chain[0].NotBefore):
			reason = "not_yet_valid"
		}
	}
	n.metrics.handshakeFailed(ctx, reason)
	more, ok := n.refusals.allow(time.Now())
	if !ok {
		return
	}
	n.log.LogAttrs(ctx, slog.LevelWarn, "handshake refused",
		slog.String("reason", reason), slog.String("remote", conn.RemoteAddr().String()),
		slog.String("shown", clip(shown, 256)), slog.String("error", clip(err.Error(), 512)), slog.Int("unlogged", more))
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// handshakeLog turns net/http's own lines about failed handshakes into log
// lines and counts.
type handshakeLog struct{ n *node }

// Write implements io.Writer for http.Server.ErrorLog.
func (h handshakeLog) Write(p []byte) (int, error) {
	ctx := context.Background()
	line := string(bytes.TrimSpace(p))
	if bytes.Contains(p, []byte("TLS handshake error")) {
		if bytes.Contains(p, []byte(errRefused.Error())) {
			return len(p), nil // said already, with its reason
		}
		h.n.metrics.handshakeFailed(ctx, "tls")
	}
	h.n.log.LogAttrs(ctx, slog.LevelDebug, "http server", slog.String("message", clip(line, 512)))
	return len(p), nil
}

// callerFrom returns the caller of an API connection.
func callerFrom(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey).(*caller); ok {
		return c
	}
	if conn, ok := ctx.Value(connKey).(*apiConn); ok {
		return conn.getCaller()
	}
	return nil
}

type contextKey int

const (
	connKey   contextKey = iota // *apiConn
	callerKey                   // *caller, of a forwarded call
	viaKey                      // string, the node that verified a forwarded call
	handedKey                   // *handedChain, of a call on a stream of calls
)
