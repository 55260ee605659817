package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	feedPatience   = 15 * time.Second // without news, before another node is asked; nodes beat every 5 s
	feedImpatience = 7 * time.Second  // the least of it, where max_staleness is short
	feedDial       = 5 * time.Second
	feedBackoffMin = 100 * time.Millisecond
	feedBackoffMax = 5 * time.Second
	feedMaxEvent   = 64 << 20
)

// follower keeps revocations fed from the control nodes, one after the other.
// The proxy serves as well without any of them: nothing waits for it.
type follower struct {
	servers []*url.URL
	rev     *revocations
	keeper  *keeper
	nodeTD  spiffeid.TrustDomain
	now     func() time.Time
	log     *slog.Logger
	heard   func(documents uint64) // of roots documents that the node knows; nil: nobody asks
	trouble *trouble
}

// trouble is why the control nodes could not be followed when they were last
// asked, for who looks at the proxy; "" while they can.
type trouble struct{ text atomic.Pointer[string] }

func (t *trouble) set(text string) { t.text.Store(&text) }

func (t *trouble) get() string {
	if s := t.text.Load(); s != nil {
		return *s
	}
	return ""
}

// explain says what an error with a control node means where TLS says it in two
// words. A proxy that is refused is deaf until somebody renews its certificate.
func explain(err error) error {
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" { // crypto/tls exports no better sign of an alert
		return fmt.Errorf("the node refuses this service's certificate: it has ended, or its issuer or root is out of use; renew it: %w", err)
	}
	return err
}

// run follows one node until it fails, then the next, until ctx ends.
func (f *follower) run(ctx context.Context) {
	backoff := feedBackoffMin
	failed := 0 // nodes in a row
	for i := 0; ctx.Err() == nil && len(f.servers) > 0; i++ {
		server := f.servers[i%len(f.servers)]
		heard, err := f.follow(ctx, server, func() {
			if failed > 0 {
				f.log.Info("revocation feed is back", slog.String("server", server.Host))
			}
			failed = 0
			f.trouble.set("")
		})
		if ctx.Err() != nil {
			return
		}
		if heard {
			backoff = feedBackoffMin
		}
		err = explain(err)
		f.trouble.set(server.Host + ": " + err.Error())
		failed++
		// A second time once each node has been asked: that the one which was
		// followed went away says nothing of why no other is followed.
		if failed == 1 || failed == len(f.servers)+1 {
			f.log.Warn("revocation feed lost; certificates alone decide meanwhile",
				slog.String("server", server.Host), slog.Int("failed", failed), slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff/2 + rand.N(backoff)): //nolint:gosec // jitter between peers, no secret
		}
		// Every node has had its turn before the wait grows.
		if (i+1)%len(f.servers) == 0 {
			backoff = min(backoff*2, feedBackoffMax)
		}
	}
}

// follow reads one node's feed until it ends, says nothing new for too long or
// turns out not to be a node. It says whether anything was heard.
func (f *follower) follow(ctx context.Context, server *url.URL, news func()) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(f.patience(), func() { cancel(errors.New("no news for too long")) })
	defer watchdog.Stop()

	transport := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: feedDial}).DialContext,
		TLSClientConfig: f.tlsConfig(),
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.String(), http.NoBody)
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "text/event-stream")
	res, err := transport.RoundTrip(req)
	if err != nil {
		return false, errors.Join(err, context.Cause(ctx))
	}
	defer func() { _ = res.Body.Close() }() // the stream is given up anyway
	if res.StatusCode != http.StatusOK {
		return false, fmt.Errorf("the node answered %s", res.Status)
	}
	if kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err != nil || kind != "text/event-stream" {
		return false, fmt.Errorf("the node sent %q, no event stream", res.Header.Get("Content-Type"))
	}
	var behind error // the last that was said of a list older than the one known
	err = readEvents(res.Body, func(name string, data []byte) error {
		err := f.event(name, data)
		switch {
		case err == nil:
			heard, behind = true, nil
			watchdog.Reset(f.patience())
			news()
			return nil
		case errors.Is(err, errBehind):
			if name == "feed" {
				behind = err
			}
			return nil // a follower that lags catches up, or the watchdog moves on
		default:
			return err
		}
	})
	return heard, errors.Join(behind, err, context.Cause(ctx))
}

// patience leaves time to ask another node before the news is too old.
func (f *follower) patience() time.Duration {
	if f.rev.maxStale <= 0 {
		return feedPatience
	}
	return min(feedPatience, max(feedImpatience, f.rev.maxStale/2))
}

func (f *follower) event(name string, data []byte) error {
	switch name {
	case "feed":
		var doc feedDoc
		if err := json.Unmarshal(data, &doc); err != nil {
			return fmt.Errorf("feed event: %w", err)
		}
		f.tell(doc.Roots)
		return f.rev.apply(doc)
	case "heartbeat":
		var h heartbeat
		if err := json.Unmarshal(data, &h); err != nil {
			return fmt.Errorf("heartbeat event: %w", err)
		}
		f.tell(h.Roots)
		return f.rev.beat(h)
	default:
		return errBehind // an event of a later version is no news
	}
}

func (f *follower) tell(documents uint64) {
	if f.heard != nil {
		f.heard(documents)
	}
}

// readEvents reads server-sent events until the stream ends, which is an error.
func readEvents(r io.Reader, each func(name string, data []byte) error) error {
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, 4096), feedMaxEvent)
	var name string
	var data bytes.Buffer
	for scan.Scan() {
		if len(scan.Bytes()) == 0 { // a blank line ends an event
			if data.Len() > 0 {
				if err := each(name, data.Bytes()); err != nil {
					return err
				}
			}
			name = ""
			data.Reset()
			continue
		}
		field, value, _ := strings.Cut(scan.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			name = value
		case "data":
			if data.Len()+len(value) > feedMaxEvent {
				return errors.New("an event is too long")
			}
			data.WriteString(value)
			data.WriteByte('\n')
		}
	}
	if err := scan.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// tlsConfig shows the service's own SVID and takes only a node of the identity
// trust domain for an answer. The checks sit in VerifyConnection, which runs on
// resumed sessions too, and there are none of those anyway.
func (f *follower) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &f.keeper.cur.Load().cert, nil
		},
		InsecureSkipVerify:     true, //nolint:gosec // the name in the certificate is a SPIFFE ID, checked below
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := verifyServer(cs.PeerCertificates, f.keeper, f.now)
			if err != nil {
				return err
			}
			if !id.MemberOf(f.nodeTD) || !strings.HasPrefix(id.Path(), "/node/") {
				return fmt.Errorf("%s is no control node of %s", id, f.nodeTD)
			}
			return nil
		},
	}
}

// verifyServer verifies a server's chain against the identity bundle only.
func verifyServer(chain []*x509.Certificate, k *keeper, now func() time.Time) (spiffeid.ID, error) {
	id, _, err := x509svid.Verify(chain, k.cur.Load().identity, x509svid.WithTime(wall(now)))
	if err != nil {
		return spiffeid.ID{}, err
	}
	if !slices.Contains(chain[0].ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return spiffeid.ID{}, errors.New("the server's extended key usage has no serverAuth")
	}
	return id, nil
}
