//nolint:staticcheck // net/http's own ClientConn does not tell what may be sent again from what may have been acted on
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/hallpass/hallpass/grant"
)

var (
	// errNoStreams is returned when the proxy at the other end speaks HTTP/1 alone.
	errNoStreams = errors.New("the proxy speaks no HTTP/2")
	errNotServed = errors.New("the connector is not served")
	// errNotTaken is returned when a proxy has refused a renewed certificate.
	errNotTaken = errors.New("the proxy did not take the renewed certificate")
)

// lane is what is held of one grant: where its certificates come from, the one of
// now, and the HTTP/1 connections that were made with it.
type lane struct {
	c        *Connector
	source   CertSource
	scope    grant.Scope    // zero: whatever comes is sent, and the proxy decides
	matcher  *grant.Matcher // of scope
	identity bool           // it is no grant's, but who the user is

	mu   sync.Mutex // owns what follows
	cred *credential
	h1   *http1
}

// link is one HTTP/2 connection to the proxy. If the proxy takes renewals in band,
// its keeper presents each renewed certificate, and what it carries goes on.
type link struct {
	lane *lane
	tls  *tls.Conn
	cc   *http2.ClientConn

	carrier bool // the proxy takes streams
	inBand  bool // and renewals: it is a grant's

	proven  atomic.Pointer[credential]
	retired atomic.Bool // nothing new goes out here
}

// links are a connector's HTTP/2 connections: one a grant while that has room.
type links struct {
	c  *Connector
	h2 *http2.Transport

	plain  atomic.Bool // the proxy spoke no HTTP/2 when it was last dialled
	noALPN atomic.Bool // and, before a service of bytes, refuses whoever offers it

	mu      sync.Mutex // owns what follows
	all     []*link
	dialing map[*lane]*dialing
	users   int
	ctx     context.Context // of the keepers; nil while nobody serves
	stop    context.CancelFunc
	keepers sync.WaitGroup
}

// dialing is one dial, and whoever waits for it.
type dialing struct {
	done chan struct{} // closed when err is written
	err  error
}

func newLinks(c *Connector) *links {
	ls := &links{c: c, dialing: make(map[*lane]*dialing)}
	ls.h2 = &http2.Transport{ConnPool: ls, DisableCompression: true, IdleConnTimeout: 60 * time.Second}
	return ls
}

// enter has links kept until leave is called as often.
func (ls *links) enter() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.users++; ls.users == 1 {
		ls.ctx, ls.stop = context.WithCancel(context.Background())
		// A proxy that falls silent, as one does when a laptop changes its network,
		// is found out; the connection would hold up requests for a quarter of an hour.
		ls.h2.ReadIdleTimeout, ls.h2.PingTimeout = ls.c.silence, ls.c.silence/2
	}
}

// leave waits, the last time, until every link has ended.
func (ls *links) leave() {
	ls.mu.Lock()
	ls.users--
	last := ls.users == 0
	if last {
		ls.stop()
		ls.ctx = nil
	}
	ls.mu.Unlock()
	if last {
		ls.keepers.Wait()
	}
}

type laneKey struct{}

// roundTrip sends a request with a lane's certificate of now.
func (ls *links) roundTrip(r *http.Request, ln *lane) (*http.Response, error) {
	return ls.h2.RoundTrip(r.WithContext(context.WithValue(r.Context(), laneKey{}, ln)))
}

// GetClientConn is http2.ClientConnPool's.
func (ls *links) GetClientConn(r *http.Request, _ string) (*http2.ClientConn, error) {
	ln, ok := r.Context().Value(laneKey{}).(*lane)
	if !ok {
		return nil, errNotServed
	}
	l, raw, err := ls.get(r.Context(), ln)
	if err != nil {
		return nil, err
	}
	if raw != nil {
		return nil, errors.Join(errNoStreams, ignoreClosed(raw.Close()))
	}
	return l.cc, nil
}

// MarkDead is http2.ClientConnPool's.
func (ls *links) MarkDead(cc *http2.ClientConn) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		if l.cc == cc {
			l.retired.Store(true)
		}
	}
}

// pick is a link with room for what goes out with cred, on which a stream is now
// reserved; nil when there is none. One that takes renewals has or gets the
// certificate of now; another has to have it.
func (ls *links) pick(ln *lane, cred *credential) *link {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		has := l.proven.Load()
		fits := l.lane == ln && (has == cred || l.inBand && has.grant == cred.grant) && wall(ls.c.now).Before(has.notAfter)
		if fits && !l.retired.Load() && l.hasRoom() && l.cc.ReserveNewRequest() {
			return l
		}
	}
	return nil
}

// hasRoom says whether a stream more leaves one for a renewal: behind streams that
// last it would wait until all of them end with the certificate.
func (l *link) hasRoom() bool {
	s := l.cc.State()
	return !l.inBand || s.StreamsActive+s.StreamsReserved+s.StreamsPending+1 < int(s.MaxConcurrentStreams)
}

// get is a link on which a stream is reserved, dialled if there is none; or, for a
// service of bytes whose proxy carries no streams, a connection of its own. Who
// comes while a link is dialled waits for it.
func (ls *links) get(ctx context.Context, ln *lane) (*link, *tls.Conn, error) {
	for {
		cred, err := ln.credential(ctx)
		if err != nil {
			return nil, nil, err
		}
		if l := ls.pick(ln, cred); l != nil {
			return l, nil, nil
		}
		if ls.plain.Load() {
			return ls.dial(ctx, ln, cred)
		}
		ls.mu.Lock()
		d := ls.dialing[ln]
		if d == nil {
			d = &dialing{done: make(chan struct{})}
			ls.dialing[ln] = d
			ls.mu.Unlock()
			return ls.dialFor(ctx, ln, cred, d)
		}
		ls.mu.Unlock()
		select {
		case <-d.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		if d.err != nil && !errors.Is(d.err, context.Canceled) { // that was the other's own
			return nil, nil, d.err
		}
	}
}

func (ls *links) dialFor(ctx context.Context, ln *lane, cred *credential, d *dialing) (*link, *tls.Conn, error) {
	l, raw, err := ls.dial(ctx, ln, cred)
	ls.mu.Lock()
	delete(ls.dialing, ln)
	ls.mu.Unlock()
	d.err = err
	close(d.done)
	return l, raw, err
}

// dial opens a connection to the proxy and makes it a link if it can be one.
func (ls *links) dial(ctx context.Context, ln *lane, cred *credential) (*link, *tls.Conn, error) {
	t, err := ls.c.dialWith(ctx, cred, ls.protocols())
	if err != nil && ls.c.tcp && strings.Contains(err.Error(), "no application protocol") {
		// Another's proxy, which knows its protocols and ours is none of them.
		ls.noALPN.Store(true)
		t, err = ls.c.dialWith(ctx, cred, nil)
	}
	if err != nil {
		return nil, nil, err
	}
	protocol := t.ConnectionState().NegotiatedProtocol
	if protocol != carrierALPN && protocol != "h2" {
		ls.plain.Store(true)
		return nil, t, nil
	}
	ls.plain.Store(false)
	cc, err := ls.h2.NewClientConn(t)
	if err != nil {
		return nil, nil, errors.Join(err, ignoreClosed(t.Close()))
	}
	l := &link{lane: ln, tls: t, cc: cc, carrier: protocol == carrierALPN, inBand: protocol == carrierALPN && !ln.identity}
	l.proven.Store(cred)
	if !cc.ReserveNewRequest() {
		return nil, nil, errors.Join(errors.New("the proxy takes no requests"), ignoreClosed(t.Close()))
	}
	if !ls.keep(l) { //nolint:contextcheck // it lives as long as the links, not as the request
		return nil, nil, errors.Join(errNotServed, ignoreClosed(t.Close()))
	}
	return l, nil, nil
}

func (ls *links) protocols() []string {
	switch {
	case ls.noALPN.Load():
		return nil
	case ls.c.tcp:
		return []string{carrierALPN}
	default:
		return []string{carrierALPN, "h2", "http/1.1"}
	}
}

// keep enters a link among those that are used, and has it kept until it ends.
func (ls *links) keep(l *link) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.ctx == nil {
		return false
	}
	ctx := ls.ctx
	ls.all = append(ls.all, l)
	ls.keepers.Go(func() {
		ls.attend(ctx, l)
		ls.mu.Lock()
		defer ls.mu.Unlock()
		for i := range ls.all {
			if ls.all[i] == l {
				ls.all = append(ls.all[:i:i], ls.all[i+1:]...)
				return
			}
		}
	})
	return true
}

// run runs f until ctx ends, which it does with the links; it says whether there are any.
func (ls *links) run(f func(ctx context.Context)) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.ctx == nil {
		return false
	}
	ctx := ls.ctx
	ls.keepers.Go(func() { f(ctx) })
	return true
}

// attend renews a link until it ends. One that cannot be renewed carries on what it
// carries, for as long as its certificate lasts, and nothing new.
func (ls *links) attend(ctx context.Context, l *link) {
	defer func() { _ = l.cc.Close() }() // with whatever is left, when ctx has ended
	for !l.retired.Load() {
		left := l.proven.Load().notAfter.Sub(wall(ls.c.now))
		if !pause(ctx, min(max(left/8, 20*time.Millisecond), ls.c.look)) || l.cc.State().Closed {
			return
		}
		cred, err := l.lane.credential(ctx)
		if err != nil || cred == l.proven.Load() {
			continue // whoever dials next is told the error
		}
		switch err := l.renew(ctx, cred); {
		case err == nil:
			l.proven.Store(cred)
		case errors.Is(err, errNotTaken):
			l.retired.Store(true)
			ls.c.log.Warn("what is carried ends with the certificate it has", slog.Any("error", err))
		default:
			ls.c.log.Debug("renewal", slog.Any("error", err))
			pause(ctx, ls.c.look)
		}
	}
	_ = l.cc.Shutdown(ctx) // waits for what it carries
}

// pause waits, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// renew proves a renewed certificate on the link.
func (l *link) renew(ctx context.Context, cred *credential) error {
	if !l.inBand {
		l.retired.Store(true) // the next request goes out with the new one, on a link of its own
		return nil
	}
	if cred.grant != l.proven.Load().grant {
		return fmt.Errorf("%w: it is of another grant", errNotTaken)
	}
	state := l.tls.ConnectionState()
	msg, err := makeRenewal(state.ExportKeyingMaterial, cred.cert)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotTaken, err)
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	r := connectTo(ctx, renewTarget, http.NoBody)
	r.Header.Set(renewalHeader, renewalText().EncodeToString(msg))
	res, err := l.cc.RoundTrip(r)
	if err != nil {
		return err // of the link, which may have ended
	}
	defer func() { _ = res.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)) // only for the log
	switch res.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return fmt.Errorf("not yet: %s", res.Status)
	default:
		return fmt.Errorf("%w: %s %.200q", errNotTaken, res.Status, text)
	}
}

// connectTo is a request for one of a carrier's own targets.
func connectTo(ctx context.Context, target string, body io.ReadCloser) *http.Request {
	r := &http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: target}, Host: target, Header: http.Header{}, Body: body}
	if body != http.NoBody {
		r.ContentLength = -1
	}
	return r.WithContext(ctx)
}

// open opens a stream on a link, on which one is reserved. It ends with ctx.
func (l *link) open(ctx context.Context) (*clientStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	out, in := io.Pipe()
	res, err := l.cc.RoundTrip(connectTo(ctx, streamTarget, out))
	if err != nil {
		cancel()
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10)) // only for the log
		_ = res.Body.Close()
		cancel()
		return nil, fmt.Errorf("the proxy opened no stream: %s %.200q", res.Status, text)
	}
	return &clientStream{
		addresses: addresses{l.tls.LocalAddr(), l.tls.RemoteAddr()}, in: in, body: res.Body,
		pieces: pieces{from: res.Body}, cancel: cancel,
	}, nil
}

var _ http2.ClientConnPool = (*links)(nil)
