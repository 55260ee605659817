package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Fleet is the proxies of one configuration file, in one process: one a service,
// each with a certificate, a feed and files of its own, behind listeners that
// they may share. They write one access log.
//
//	listener ─┬─ one service ──────────────────────────► its Proxy
//	          └─ several ─► the name in the ClientHello ─► its Proxy, or alert
//
// Which service a connection is for is decided before its handshake, by its
// address and that name; everything after is that Proxy's, which admits no grant
// but its own. So a name that was guessed opens nothing.
type Fleet struct {
	config Config // as it was at the start
	log    *slog.Logger
	access *accessLog
	load   func() (Settings, error)

	shaking greetings // those whose name is not read yet
	began   atomic.Bool

	mu       sync.Mutex // owns what follows; held through a whole change
	members  map[string]*member
	ports    map[string]*port
	leaving  map[string]chan struct{} // services that were taken out and drain
	file     []byte                   // the configuration file at the last look
	refused  string                   // why it was not taken, as it was logged
	listen   listenFunc
	given    map[string]net.Listener // and not used yet
	ready    func()
	set      []Settings // in force, one a service
	ended    bool
	confined *reach          // nil: the process is not confined
	ctx      context.Context // of what runs; set once, before anything does
	wg       sync.WaitGroup
}

// listenFunc opens the listener of an address.
type listenFunc func(ctx context.Context, address string) (net.Listener, error)

// member is one service.
type member struct {
	px     *Proxy
	run    *running // nil until the fleet runs
	listen string
}

// FleetConfig is what a Fleet is made of.
type FleetConfig struct {
	Config
	// Load reads the settings again, as SIGHUP and a changed file ask; nil: they
	// stay as they are.
	Load func() (Settings, error)
	// Listeners are open already, by the address that the settings have for each:
	// those that the process was started with. An address that comes later is opened.
	Listeners map[string]net.Listener
	// Ready is called once, when everything listens; it may be nil.
	Ready func()
}

// NewFleet checks the configuration and loads what each service needs. Anything
// broken, empty or expired is an error, as with New.
func NewFleet(c FleetConfig) (*Fleet, error) {
	cfgs, err := newConfigs(c.Config)
	if err != nil {
		return nil, err
	}
	for _, cfg := range cfgs {
		if cfg.listen == "" {
			return nil, fmt.Errorf("%w: listen: is missing", ErrSettings) // "" would be every interface, and some port
		}
	}
	f := &Fleet{
		config: c.Config, log: cfgs[0].log, load: c.Load, set: c.Settings.split(),
		members: map[string]*member{}, ports: map[string]*port{}, leaving: map[string]chan struct{}{}, listen: listenTCP,
		given: maps.Clone(c.Listeners), ready: c.Ready,
	}
	if path := c.Settings.file; path != "" {
		if f.file, err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	if f.access, err = openAccessLog(cfgs[0], os.Stdout); err != nil {
		return nil, err
	}
	for _, cfg := range cfgs {
		px, err := newProxy(cfg, f.access)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		f.members[cfg.service] = &member{px: px, listen: cfg.listen}
	}
	return f, nil
}

func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // Landlock holds no others
	return lc.Listen(ctx, "tcp", address)
}

// Close releases what NewFleet opened, for a Fleet that never ran.
func (f *Fleet) Close() error {
	if f.began.Load() {
		return nil // Run does it
	}
	for _, m := range f.members {
		m.px.unobserve()
	}
	for _, ln := range f.given {
		_ = ln.Close() // it was never served
	}
	return f.access.close()
}

// Run listens and serves until ctx ends and every connection is drained.
func (f *Fleet) Run(ctx context.Context) (err error) {
	if !f.began.CompareAndSwap(false, true) {
		return ErrServing
	}
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		stop()
		f.wg.Wait()
		if cerr := f.access.close(); cerr != nil {
			f.log.Error("access log", slog.Any("error", cerr))
		}
	}()
	if err := f.open(inner); err != nil {
		return errors.Join(err, f.end()) //nolint:contextcheck // ends have time of their own
	}
	failed := make(chan error, 1)
	closeAdmin, err := f.serveAdmin(inner, failed)
	if err != nil {
		return errors.Join(err, f.end()) //nolint:contextcheck // ends have time of their own
	}
	f.wg.Go(func() { f.watch(inner) })
	if f.ready != nil {
		f.ready()
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	return errors.Join(err, f.end(), closeAdmin()) //nolint:contextcheck // ends have time of their own
}

// open starts every service and listener.
func (f *Fleet) open(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctx = ctx
	for _, m := range f.members {
		ln, err := f.portOf(m.listen)
		if err != nil {
			return err
		}
		if m.run, err = m.px.start(ctx, ln.ln.Addr()); err != nil {
			return err
		}
	}
	f.route()
	for _, p := range f.ports {
		f.serve(p)
	}
	return nil
}

// portOf is the listener of an address, opened if nobody has it yet. The caller holds mu.
func (f *Fleet) portOf(address string) (*port, error) {
	if p := f.ports[address]; p != nil {
		return p, nil
	}
	ln := f.given[address]
	delete(f.given, address)
	if ln == nil {
		var err error
		if ln, err = f.listen(f.ctx, address); err != nil {
			return nil, err
		}
	}
	p := &port{ln: ln}
	p.routes.Store(&routes{})
	f.ports[address] = p
	return p, nil
}

// serve accepts connections of a port until it closes. The caller holds mu.
func (f *Fleet) serve(p *port) {
	p.serving = true
	f.wg.Go(func() {
		if err := accept(p.ln, f.log, func(raw net.Conn) { f.welcome(p, raw) }); !errors.Is(err, net.ErrClosed) {
			f.log.Error("a listener ended", slog.String("address", p.ln.Addr().String()), slog.Any("error", err))
		}
	})
}

// route tells each port whose connections it takes. The caller holds mu.
func (f *Fleet) route() {
	for address, p := range f.ports {
		r := &routes{byName: map[string]*running{}}
		for _, name := range slices.Sorted(maps.Keys(f.members)) {
			m := f.members[name]
			if m.listen != address || m.run == nil {
				continue
			}
			r.all = append(r.all, m.run)
			for host := range m.px.newest.Load().cfg.hosts {
				r.byName[host] = m.run
			}
		}
		p.routes.Store(r)
	}
}

// end stops listening and ends every service, all at once.
func (f *Fleet) end() error {
	f.mu.Lock()
	f.ended = true
	var errs []error
	for _, p := range f.ports {
		errs = append(errs, ignoreClosed(p.ln.Close()))
	}
	members, leaving := maps.Clone(f.members), maps.Clone(f.leaving)
	f.mu.Unlock() // who asks for our health while we drain gets an answer
	for f.shaking.makeRoom() {
	}
	var wg sync.WaitGroup
	for _, m := range members {
		if m.run == nil {
			m.px.unobserve()
			continue
		}
		wg.Go(m.run.end)
	}
	wg.Wait()
	for _, gone := range leaving {
		<-gone
	}
	ctx, cancel := context.WithTimeout(context.Background(), anchorAtEnd)
	defer cancel()
	for _, m := range members {
		if m.run != nil {
			m.px.anchors.last(ctx) // of the one that does
		}
	}
	return errors.Join(errs...)
}

// port is a listener, and the services behind it.
type port struct {
	ln      net.Listener
	serving bool
	routes  atomic.Pointer[routes]
}

type routes struct {
	all    []*running
	byName map[string]*running // lower-case host names
}

// welcome finds out whose a connection is.
func (f *Fleet) welcome(p *port, raw net.Conn) {
	r := p.routes.Load()
	switch len(r.all) {
	case 0:
		_ = raw.Close() // nothing can be done about it
	case 1:
		r.all[0].take(raw)
	default:
		f.wg.Go(func() { f.byName(r, raw) })
	}
}

// byName reads the name in the ClientHello and hands the connection over with
// every byte that was read of it.
func (f *Fleet) byName(r *routes, raw net.Conn) {
	first := r.all[0].p.newest.Load()
	limits := first.cfg.limits
	shaking := f.shaking.begin(raw, limits.handshakes)
	defer f.shaking.end(shaking)
	if !f.access.admits() {
		f.access.skip()
		_ = raw.Close() // nothing can be done about it
		return
	}
	var name string
	var hello []byte
	raw, err := first.cfg.introduce(raw)
	if err == nil {
		name, hello, err = readHello(f.ctx, raw, limits.handshakeTime)
	}
	to := r.byName[name]
	switch {
	case shaking.dropped.Load():
		err = refuse(reasonLimit, "too many handshakes")
	case err == nil && to == nil:
		err = refuse(reasonUnknownName, "no service goes by %q here", name)
	}
	if err != nil {
		f.turnedAway(first, raw, hello, err)
		return
	}
	to.take(&replay{Conn: raw, rest: hello})
}

// turnedAway answers who asked for nobody, and records it under no service.
func (f *Fleet) turnedAway(first *Proxy, raw net.Conn, hello []byte, err error) {
	reason := reasonOf(err)
	first.tele.reason(f.ctx, first.tele.refused, reason)
	if reason == reasonUnknownName {
		// A server without a certificate says unrecognized_name (RFC 6066 §3).
		t := tls.Server(&replay{Conn: raw, rest: hello}, &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true})
		_ = t.HandshakeContext(f.ctx) // it fails, and that is the point
		farewell(raw)
	}
	_ = raw.Close() // nothing can be done about it
	_ = f.access.write(&record{
		time: first.cfg.now(), kind: kindHandshake, event: "end", decision: decisionRefuse, reason: reason, peer: raw.RemoteAddr().String(),
	}) // a failure denies the next
}

// reasonUnknownName is of a handshake for a name that no service has.
const reasonUnknownName = "unknown_name"

// errHello ends the reading of a ClientHello.
var errHello = errors.New("read enough")

// readHello reads the first message of a handshake and returns the name in it, and
// what was read.
func readHello(ctx context.Context, raw net.Conn, patience time.Duration) (string, []byte, error) {
	if err := raw.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", nil, err
	}
	tape := &recorder{Conn: raw}
	name, heard := "", false
	err := tls.Server(tape, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, heard = string(bytes.ToLower([]byte(h.ServerName))), true
			return nil, errHello
		},
		MinVersion: tls.VersionTLS13,
	}).HandshakeContext(ctx)
	if !heard {
		return "", tape.read, err
	}
	return name, tape.read, raw.SetReadDeadline(time.Time{})
}

// recorder keeps what is read and sends nothing: the alert that ends the reading
// of a ClientHello is not meant for the client.
type recorder struct {
	net.Conn
	read []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.read = append(r.read, p[:n]...)
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }

// replay is a connection whose first bytes have been read already.
type replay struct {
	net.Conn
	rest []byte
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.rest) > 0 {
		n := copy(p, r.rest)
		if r.rest = r.rest[n:]; len(r.rest) == 0 {
			r.rest = nil
		}
		return n, nil
	}
	return r.Conn.Read(p)
}

// SetLinger is net.TCPConn's.
func (r *replay) SetLinger(sec int) error {
	if tcp, ok := r.Conn.(interface{ SetLinger(sec int) error }); ok {
		return tcp.SetLinger(sec)
	}
	return nil
}

// CloseWrite is net.TCPConn's.
func (r *replay) CloseWrite() error {
	if hc, ok := r.Conn.(halfCloser); ok {
		return hc.CloseWrite()
	}
	return nil
}

// serveAdmin serves health and metrics, if the settings say where.
func (f *Fleet) serveAdmin(ctx context.Context, failed chan<- error) (func() error, error) {
	address := f.config.Settings.Admin
	if address == "" {
		return func() error { return nil }, nil
	}
	f.mu.Lock()
	ln := f.given[address]
	delete(f.given, address)
	f.mu.Unlock()
	if ln == nil {
		var err error
		if ln, err = ListenLocal(ctx, address); err != nil {
			return nil, fmt.Errorf("admin: %w", err)
		}
	}
	admin := &http.Server{Handler: f.Admin(), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	f.wg.Go(func() {
		if err := admin.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("admin: %w", err)
		}
	})
	return admin.Close, nil
}

// fleetReadiness is what /readyz tells of several services.
type fleetReadiness struct {
	Ready    bool                 `json:"ready"`
	Refused  string               `json:"configuration_refused,omitempty"`
	Services map[string]readiness `json:"services"`
}

// Admin serves /healthz, /readyz and /metrics, as a Proxy's. Of several services
// /readyz tells each, and is ready when all are.
func (f *Fleet) Admin() http.Handler {
	return adminMux(f.config.Metrics, func() (bool, any) {
		f.mu.Lock()
		members, refused := maps.Clone(f.members), f.refused
		f.mu.Unlock()
		out := fleetReadiness{Ready: true, Refused: refused, Services: map[string]readiness{}}
		for name, m := range members {
			r := m.px.newest.Load().readiness()
			out.Ready = out.Ready && r.Ready
			if out.Services[name] = r; len(members) == 1 {
				r.Refused = refused
				return r.Ready, r
			}
		}
		return out.Ready, out
	})
}

func adminMux(metrics http.Handler, ready func() (bool, any)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n")) // who asked may be gone
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ok, state := ready()
		w.Header().Set("Content-Type", "application/json")
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(state) // as above
	})
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	return mux
}
