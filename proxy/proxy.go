package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy is the data plane of one service.
type Proxy struct {
	cfg     *config
	log     *slog.Logger
	keeper  *keeper
	rev     *revocations
	access  *accessLog
	live    *live
	up      *upstream
	tele    *telemetry
	answers *answers

	conns    atomic.Uint64 // numbers connections
	open     atomic.Int64  // sockets, those in their handshake included
	shaking  greetings     // handshakes under way
	active   atomic.Int64  // requests under way
	serving  atomic.Bool
	stopping atomic.Bool
}

// ErrServing is returned when Serve is called twice.
var ErrServing = errors.New("proxy: already served")

// New checks the configuration and loads certificates, bundles and what is known
// to be revoked. Anything broken, empty or expired is an error: a proxy that
// could only refuse everybody, or could not refuse whom it should, does not start.
func New(c Config) (*Proxy, error) {
	cfg, err := newConfig(c)
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, log: cfg.log, live: newLive(cfg.now), up: newUpstream(cfg)}
	if p.keeper, err = newKeeper(cfg); err != nil {
		return nil, err
	}
	if p.rev, err = openRevocations(cfg); err != nil {
		return nil, err
	}
	p.rev.onChange = p.cutDenied
	if p.answers, err = newAnswers(); err != nil {
		return nil, err
	}
	if p.tele, err = newTelemetry(cfg); err != nil {
		return nil, err
	}
	if err := p.observe(cfg); err != nil {
		return nil, err
	}
	if p.access, err = openAccessLog(cfg, os.Stdout); err != nil {
		return nil, err
	}
	return p, nil
}

// Close releases what New opened, for a Proxy that was never served.
func (p *Proxy) Close() error {
	if p.serving.Load() {
		return nil // Serve does it
	}
	return p.access.close()
}

// Run listens where the settings say, serves there and on the admin address, and
// returns when ctx has ended and connections are drained.
func (p *Proxy) Run(ctx context.Context) error {
	if p.cfg.listen == "" {
		return fmt.Errorf("%w: listen: is missing", ErrSettings) // "" would be every interface, and some port
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", p.cfg.listen)
	if err != nil {
		return err
	}
	if p.cfg.admin == "" {
		return p.Serve(ctx, ln)
	}
	adminLn, err := ListenLocal(ctx, p.cfg.admin)
	if err != nil {
		return errors.Join(fmt.Errorf("admin: %w", err), ln.Close())
	}
	admin := &http.Server{Handler: p.Admin(), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := admin.Serve(adminLn); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("admin listener ended", slog.Any("error", err))
		}
	})
	err = p.Serve(ctx, ln)
	err = errors.Join(err, admin.Close())
	wg.Wait()
	return err
}

// Serve admits connections from ln until ctx ends; then it closes ln, lets
// requests finish for as long as the settings say, and cuts what is left. It
// returns once every connection and loop has ended.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener) error {
	if !p.serving.CompareAndSwap(false, true) {
		return errors.Join(ErrServing, ln.Close())
	}
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	var loops, handshakes sync.WaitGroup
	defer func() {
		stop()
		loops.Wait()
		p.up.close()
		if err := p.access.close(); err != nil {
			p.log.Error("access log", slog.Any("error", err))
		}
	}()
	loops.Go(func() { p.live.run(inner) })
	loops.Go(func() { p.watchFiles(inner) })
	loops.Go(func() { p.watchStaleness(inner) })
	f := &follower{servers: p.cfg.servers, rev: p.rev, keeper: p.keeper, nodeTD: p.cfg.identityTD, now: p.cfg.now, log: p.log}
	loops.Go(func() { f.run(inner) })

	web := p.newWeb(inner, ln.Addr())
	loops.Go(func() { web.run(p.log) })
	unhook := context.AfterFunc(ctx, func() { _ = ln.Close() }) // ends Accept
	defer unhook()
	err := p.accept(inner, ln, web, &handshakes)
	if ctx.Err() != nil {
		err = nil
	}
	p.stopping.Store(true)
	p.drain(inner, web)
	stop()
	handshakes.Wait()
	return errors.Join(err, ignoreClosed(ln.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// accept takes connections until the listener ends.
func (p *Proxy) accept(ctx context.Context, ln net.Listener, web *web, handshakes *sync.WaitGroup) error {
	wait := 5 * time.Millisecond
	for {
		raw, err := ln.Accept()
		var te interface{ Temporary() bool }
		switch {
		case err == nil:
			wait = 5 * time.Millisecond
			handshakes.Go(func() { p.welcome(ctx, raw, web) })
		case errors.As(err, &te) && te.Temporary(): // out of file descriptors, or a peer that left at once
			p.log.Warn("accept", slog.Any("error", err))
			time.Sleep(wait)
			wait = min(2*wait, time.Second)
		default:
			return err
		}
	}
}

// drain lets what is under way finish.
func (p *Proxy) drain(ctx context.Context, web *web) {
	p.log.Info("draining", slog.Int("connections", p.live.len()), slog.Duration("at_most", p.cfg.shutdown))
	p.live.drainAll() //nolint:contextcheck // each connection has its own
	ctx, cancel := context.WithTimeout(ctx, p.cfg.shutdown)
	defer cancel()
	if err := web.http1.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		p.log.Warn("http server shutdown", slog.Any("error", err))
	}
	tick := time.NewTicker(20 * time.Millisecond) // HTTP/2, tunnels and tcp, of which http1 knows nothing
	defer tick.Stop()
	for p.live.len() > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	p.live.shutdown()
	// What was cut still has its record to write.
	for end := time.Now().Add(5 * time.Second); p.active.Load() > 0 && time.Now().Before(end); {
		<-tick.C
	}
}

// Reload looks at certificates and bundles now and opens the access log anew, as
// SIGHUP asks. What is broken stays as it was and is in the error.
func (p *Proxy) Reload() error {
	return errors.Join(p.reload(), p.access.reopen(true))
}

func (p *Proxy) reload() error {
	shrunk, err := p.keeper.reload()
	if shrunk {
		// A root that is taken out was taken out for a reason: who stands on it goes.
		m, now := p.keeper.cur.Load(), wall(p.cfg.now)
		n := p.live.cutWhere(reasonRootRemoved, func(c *conn) bool {
			_, err := examine(c.adm.chain, m, p.cfg, now)
			return err != nil
		})
		p.log.Warn("a root was removed from a bundle", slog.Int("connections_cut", n))
	}
	return err
}

// watchFiles looks at certificates, bundles and the access log every second.
func (p *Proxy) watchFiles(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = p.reload() // the keeper has logged it
			if err := p.access.reopen(false); err != nil {
				p.log.Error("access log cannot be opened", slog.Any("error", err))
			}
		}
	}
}

// watchStaleness cuts everybody at the moment when news of revocations has
// become too old for this service. Who comes later is answered, and refused.
func (p *Proxy) watchStaleness(ctx context.Context) {
	if p.cfg.staleness <= 0 {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	was := p.rev.stale()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			is := p.rev.stale()
			if is && !was {
				n := p.live.cutWhere(reasonStale, func(*conn) bool { return true })
				p.log.Error("news of revocations is too old; admitting nobody", slog.Int("connections_cut", n))
			}
			was = is
		}
	}
}

// cutDenied ends the live connections that a new list denies.
func (p *Proxy) cutDenied(d *denials) {
	ids := make([]string, 0, len(d.grants))
	for id := range d.grants {
		ids = append(ids, id)
	}
	p.live.cutGrants(reasonRevoked, ids)
	if len(d.issuers) > 0 {
		p.live.cutWhere(reasonIssuerDenied, func(c *conn) bool { return d.denies(c.adm) != "" })
	}
}

// denied says why a connection's grant is denied by now, or "". While the list
// stays the same, the answer of last time is good.
func (p *Proxy) denied(c *conn) string {
	d := p.rev.cur.Load()
	if c.checked.Load() == d {
		return ""
	}
	if why := d.denies(c.adm); why != "" {
		return why
	}
	c.checked.Store(d)
	return ""
}

var _ io.Closer = (*Proxy)(nil)
