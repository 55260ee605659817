package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
)

// Proxy is the data plane of one service, under one configuration.
type Proxy struct {
	*core
	cfg *config
	up  *upstream
}

// core is what stays when the configuration of a service changes.
type core struct {
	log     *slog.Logger
	keeper  *keeper
	rev     *revocations
	access  *accessLog
	ownsLog bool // and closes it
	live    *live
	tele    *telemetry
	answers *answers
	shown   *shown
	meters  meters
	newest  atomic.Pointer[Proxy] // the configuration in force
	pg      postgres              // what the sessions of a postgres service share

	conns    atomic.Uint64 // numbers connections
	open     atomic.Int64  // sockets, those in their handshake included
	shaking  greetings     // handshakes under way
	active   atomic.Int64  // requests under way
	serving  atomic.Bool
	stopping atomic.Bool

	anchors *anchorer // set by start

	noFeed, noRoots, noAnchor trouble

	gauges metric.Registration // nil: nothing is measured

	renewEvery time.Duration // at least, between two renewals on one connection
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
	access, err := openAccessLog(cfg, os.Stdout)
	if err != nil {
		return nil, err
	}
	p, err := newProxy(cfg, access)
	if err != nil {
		return nil, errors.Join(err, access.close())
	}
	p.ownsLog = true
	return p, nil
}

// newProxy makes a proxy that writes its records to access.
func newProxy(cfg *config, access *accessLog) (*Proxy, error) {
	p := &Proxy{cfg: cfg, up: newUpstream(cfg), core: &core{
		log: cfg.log, live: newLive(cfg.now), shown: newShown(), access: access, renewEvery: time.Second,
	}}
	p.newest.Store(p)
	var err error
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
	if err := cfg.pg.readable(); err != nil {
		return nil, err
	}
	if p.tele, err = newTelemetry(cfg); err != nil {
		return nil, err
	}
	return p, p.observe(cfg)
}

// Close releases what New opened, for a Proxy that was never served.
func (p *Proxy) Close() error {
	if p.serving.Load() || !p.ownsLog {
		return nil // Serve does it, or who opened it
	}
	return p.access.close()
}

// Serve admits connections from ln until ctx ends; then it closes ln, lets
// requests finish for as long as the settings say, and cuts what is left. It
// returns once every connection and loop has ended.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener) error {
	run, err := p.start(ctx, ln.Addr())
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	unhook := context.AfterFunc(ctx, func() { _ = ln.Close() }) // ends Accept
	defer unhook()
	err = accept(ln, p.log, run.take)
	if ctx.Err() != nil {
		err = nil
	}
	run.end() //nolint:contextcheck // ends have time of their own
	return errors.Join(err, ignoreClosed(ln.Close()))
}

// running is a proxy whose loops run, and that takes connections.
type running struct {
	p     *Proxy
	ctx   context.Context // ends when everything must have ended
	stop  context.CancelFunc
	web   *web
	loops sync.WaitGroup

	mu         sync.Mutex // owns what follows
	ended      bool
	handshakes sync.WaitGroup
}

// start has the loops run until end is called, whatever becomes of ctx.
func (p *Proxy) start(ctx context.Context, addr net.Addr) (*running, error) {
	if !p.serving.CompareAndSwap(false, true) {
		return nil, ErrServing
	}
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{p: p, ctx: inner, stop: stop}
	r.loops.Go(func() { p.live.run(inner) })
	r.loops.Go(func() { p.watchFiles(inner) })
	r.loops.Go(func() { p.watchStaleness(inner) })
	r.loops.Go(func() { p.watchObserving(inner) })
	roots := &rootsFollower{servers: p.cfg.servers, keeper: p.keeper, reload: p.reload, log: p.log, news: make(chan struct{}, 1), trouble: &p.noRoots}
	r.loops.Go(func() { roots.run(inner) })
	f := &follower{
		servers: p.cfg.servers, rev: p.rev, keeper: p.keeper, nodeTD: p.cfg.identityTD, now: p.cfg.now, log: p.log,
		heard: roots.heard, trouble: &p.noFeed,
	}
	r.loops.Go(func() { f.run(inner) })
	for _, server := range p.cfg.servers {
		rep := &reporter{server: server, shown: p.shown, tls: f.tlsConfig, log: p.log, every: reportEvery, lost: func(n uint64) {
			p.tele.unreported.Add(inner, int64(n))
		}}
		r.loops.Go(func() { rep.run(inner) })
	}
	p.anchors = &anchorer{
		self: p.cfg.self.String(), servers: p.cfg.servers, access: p.access, tls: f.tlsConfig, log: p.log, now: p.cfg.now,
		inForce: func() openness { return p.newest.Load().cfg.open }, every: anchorEvery, trouble: &p.noAnchor,
	}
	r.loops.Go(func() { p.anchors.run(inner) })
	r.web = p.newWeb(inner, addr)
	r.web.fronts = &r.handshakes
	r.loops.Go(func() { r.web.run(p.log) })
	return r, nil
}

// take begins with a connection, or closes it when the proxy has ended.
func (r *running) take(raw net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		_ = raw.Close() // nothing can be done about it
		return
	}
	r.handshakes.Go(func() { r.p.newest.Load().welcome(r.ctx, raw, r.web) })
}

// end lets what is under way finish, cuts what takes too long, and returns once
// every connection and loop has ended.
func (r *running) end() {
	p := r.p
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	p.stopping.Store(true)
	p.newest.Load().drain(r.ctx, r.web)
	r.stop()
	r.handshakes.Wait()
	r.loops.Wait()
	p.newest.Load().up.close()
	p.unobserve()
	if !p.ownsLog {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), anchorAtEnd)
	p.anchors.last(ctx)
	cancel()
	if err := p.access.close(); err != nil {
		p.log.Error("access log", slog.Any("error", err))
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// accept gives take connections until the listener ends.
func accept(ln net.Listener, log *slog.Logger, take func(net.Conn)) error {
	wait := 5 * time.Millisecond
	for {
		raw, err := ln.Accept()
		var te interface{ Temporary() bool }
		switch {
		case err == nil:
			wait = 5 * time.Millisecond
			take(raw)
		case errors.As(err, &te) && te.Temporary(): // out of file descriptors, or a peer that left at once
			log.Warn("accept", slog.Any("error", err))
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
	err := p.reload()
	if p.ownsLog {
		err = errors.Join(err, p.access.reopen(true))
	}
	return err
}

func (p *Proxy) reload() error {
	shrunk, err := p.keeper.reload()
	if shrunk {
		// A root that is taken out was taken out for a reason: who stands on it goes.
		m, now := p.keeper.cur.Load(), wall(p.cfg.now)
		n := p.live.cutWhere(reasonIssuerDenied, func(c *conn) bool { return m.denies(c.proven().issuers) })
		n += p.live.cutWhere(reasonRootRemoved, func(c *conn) bool {
			_, err := examine(c.proven().chain, m, p.newest.Load().cfg, now)
			return err != nil
		})
		p.log.Warn("the roots changed", slog.Int("connections_cut", n), slog.Uint64("documents", m.documents()))
	}
	return err
}

// watchFiles looks at certificates, bundles and the access log every second, and
// gives back what is not needed: connections to the upstream, memory.
func (p *Proxy) watchFiles(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var c calm
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if c.look(p.conns.Load()) {
				giveBack()
			}
			_ = p.reload() // the keeper has logged it
			p.newest.Load().up.sweep()
			if !p.ownsLog {
				continue
			}
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
				inForce := p.newest.Load()
				n := p.live.cutWhere(reasonStale, func(c *conn) bool { return inForce.stale(c.proven()) })
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
	p.live.cutRevoked(ids)
	if !d.began.IsZero() {
		p.live.cutWhere(reasonEpochEnded, func(c *conn) bool { return d.denies(c.proven()) == reasonEpochEnded })
	}
	if len(d.issuers) > 0 {
		p.live.cutWhere(reasonIssuerDenied, func(c *conn) bool { return d.denies(c.proven()) != "" })
	}
}

// denied says why a connection's grant is denied by now, or "". While the list
// stays the same, the answer of last time is good.
func (p *Proxy) denied(c *conn) string {
	d, a := p.rev.cur.Load(), c.proven()
	if a.checked.Load() == d {
		return ""
	}
	if why := d.denies(a); why != "" {
		return why
	}
	a.checked.Store(d)
	return ""
}

var _ io.Closer = (*Proxy)(nil)
