package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/notify"
	"github.com/hallpass/hallpass/raftstore"
)

// shutdownGrace is how long calls may go on once a node is told to stop.
const shutdownGrace = 3 * time.Second

// Server is one control node.
type Server struct {
	n     *node
	admin net.Listener
	api   *apiListener
	cfg   Config

	closing sync.Once
	closed  error
}

// node is what all parts of a control node share.
type node struct {
	settings
	store    *raftstore.Store
	verifier verifier
	custody  *custody
	handler  *api.Handler
	spans    trace.Tracer
	metrics  *instruments
	forward  *forwarder
	links    *callLinks
	feed     *feedWatch
	clock    *clockWatch
	heads    *checkpoints
	cosigner *cosigner

	uncommitted *uncommitted
	anchors     *anchors
	witnesses   []*witness
	notifier    *notify.Notifier

	minted   mintCache
	callers  callerCache
	refusals rationed
	pacer    *pacer
	epoch    atomic.Pointer[NewEpoch] // that is to begin; nil: none

	// stopping ends when the node is told to stop: streams and blocking reads
	// end with it, other calls are let finish.
	stopping context.Context
	stop     context.CancelFunc
	memory   approval.Memory // of what calls read
	compiled conditions      // of the policy in force

	machine *machine
	saving  atomic.Bool  // a snapshot is being taken
	version atomic.Int32 // of commands, that the cluster has agreed on; 0: not known yet
}

// New checks cfg and opens the node's replicated state. The node takes part in
// the cluster from here on; Run makes it answer. When New fails it has closed
// the listeners.
func New(cfg Config) (*Server, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, errors.Join(err, closeAll(cfg.API, cfg.Raft, cfg.Admin))
	}
	return s, nil
}

// closeAll closes what is there and open.
func closeAll(listeners ...net.Listener) (err error) {
	for _, l := range listeners {
		if l == nil {
			continue
		}
		if cerr := l.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	return err
}

func open(cfg Config) (*Server, error) {
	set, err := cfg.settings()
	if err != nil {
		return nil, err
	}
	n := &node{
		settings: set,
		spans:    set.tracer.Tracer("github.com/hallpass/hallpass/control"),
		feed:     newFeedWatch(),
		pacer:    newPacer(set.limits),
		heads:    newCheckpoints(),
		clock:    newClockWatch(),
		machine:  &machine{approval.Machine{Speaks: cfg.speaks}},
	}
	if n.custody, err = newCustody(set.node, set.manifest); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	n.verifier = verifier{trusted: n.custody.get, trustDomain: set.trustDomain, grantDomain: set.grantDomain, now: set.now}
	if n.handler, err = api.NewHandler(api.Config{
		Backend: backend{n}, Logger: n.log, Heartbeat: set.limits.Heartbeat, Elsewhere: n.elsewhere,
	}); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if n.notifier, err = n.newNotifier(cfg.Notify); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if n.store, err = raftstore.Open(cfg.storeConfig(n.machine, n.log)); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	word, err := readNewEpoch(cfg.DataDir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("control: %w", err), n.store.Close())
	}
	n.epoch.Store(word)
	n.stopping, n.stop = context.WithCancel(context.Background())
	n.forward, n.links = newForwarder(n.store), newCallLinks(n.store.DialPeer)
	n.witnesses = n.newWitnesses(cfg.Witness)
	n.uncommitted = openUncommitted(cfg.DataDir)
	n.anchors = newAnchors()
	self, _ := set.manifest.Node(set.node.ID)
	n.cosigner = openCosigner(cfg.DataDir, set.node.AuditSigner, self.AuditKey)
	if n.metrics, err = newInstruments(set.meter, n.store); err != nil {
		return nil, errors.Join(fmt.Errorf("control: %w", err), n.store.Close())
	}
	if err := n.checkCluster(); err != nil {
		return nil, errors.Join(err, n.store.Close())
	}
	return &Server{n: n, admin: cfg.Admin, api: newAPIListener(cfg.API, n.limits, n.droppedConn), cfg: cfg}, nil
}

// checkCluster refuses to serve the state of another cluster.
func (n *node) checkCluster() error {
	return n.store.View(func(r raftstore.Reader, _ uint64) error {
		if err := n.machine.checkVersion(r); err != nil {
			return fmt.Errorf("control: %w", err)
		}
		c, err := approval.Read(r).Cluster()
		switch {
		case errors.Is(err, approval.ErrNotFound):
			return nil // not bootstrapped yet
		case err != nil:
			return fmt.Errorf("control: %w", err)
		case c.ID != n.manifest.Cluster:
			return fmt.Errorf("control: the data directory holds cluster %s, the manifest is of %s", c.ID, n.manifest.Cluster)
		}
		return n.learn(context.Background(), approval.Read(r))
	})
}

// ID is the node's name in the cluster.
func (s *Server) ID() string { return s.n.node.ID }

// Store is the node's replicated state, for status and for tests of faults.
func (s *Server) Store() *raftstore.Store { return s.n.store }

// Run serves until ctx ends or the node halts, then closes the node. It returns
// nil when ctx ended it.
func (s *Server) Run(ctx context.Context) error {
	n := s.n
	running, stop := context.WithCancel(ctx)
	defer stop()
	serving, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var group sync.WaitGroup
	failed := make(chan error, 4)
	serve := func(name string, fn func() error) {
		group.Go(func() {
			if err := fn(); err != nil && !errors.Is(err, http.ErrServerClosed) && running.Err() == nil {
				failed <- fmt.Errorf("control: %s: %w", name, err)
			}
		})
	}
	public, peers, admin := n.publicServer(serving), n.peerServer(serving), n.adminServer(serving, s.cfg.Metrics)
	streams := newPeerStreams(serving, n)
	secure := tls.NewListener(s.api, n.apiTLS()) //nolint:contextcheck // each handshake brings its own
	serve("api", func() error { return public.Serve(secure) })
	serve("peers", func() error { return peers.Serve(streams) })
	if s.admin != nil {
		serve("admin", func() error { return admin.Serve(s.admin) })
	}
	group.Go(func() { s.api.cutExpired(running, n.over, n.log) })
	group.Go(func() { n.watchFeed(running) })
	group.Go(func() { n.watchCustody(running) })
	group.Go(func() { n.watchRoster(running) })
	group.Go(func() { n.followVerified(running) })
	group.Go(func() { n.watchClock(running) })
	group.Go(func() { n.watchUncommitted(running) })
	group.Go(func() { n.commitAnchors(running) })
	n.store.Lead(func(ctx context.Context) { n.lead(ctx) })
	n.log.LogAttrs(ctx, slog.LevelInfo, "control node serving", slog.String("api", s.api.Addr().String()))

	var err error
	select {
	case <-ctx.Done():
		n.handOver(ctx)
	case err = <-failed:
	case <-n.store.Done():
		err = fmt.Errorf("control: node halted: %w", n.store.Err())
	}
	stop()
	n.stop()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	shut := shutdown(grace, public)
	streams.shutdown(grace)
	shut = errors.Join(shut, shutdown(grace, peers), shutdown(grace, admin))
	err = errors.Join(err, shut, s.Close())
	group.Wait()
	streams.group.Wait()
	return err
}

// handOver has another node lead before this one stops answering, so that what
// comes in meanwhile is passed on and none of it is lost.
func (n *node) handOver(ctx context.Context) {
	if !n.store.IsLeader() || len(n.store.Membership()) == 1 {
		return
	}
	if err := n.store.TransferLeadership(); err != nil {
		n.log.LogAttrs(ctx, slog.LevelWarn, "stopping without handing leadership over", slog.String("error", err.Error()))
	}
}

func shutdown(ctx context.Context, s *http.Server) error {
	if err := s.Shutdown(ctx); err != nil {
		return s.Close()
	}
	return nil
}

// Close stops a node at once. Run closes the node by itself.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.n.stop()
		err := errors.Join(s.n.store.Close(), s.n.metrics.close(), closeAll(s.api, s.admin))
		s.n.links.close()
		s.n.forward.close()
		s.closed = err
	})
	return s.closed
}

// publicServer serves callers.
func (n *node) publicServer(serving context.Context) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:           n.observed(http.HandlerFunc(n.servePublic)),
		ReadHeaderTimeout: n.limits.Header, // of the handshake, too
		IdleTimeout:       n.limits.Idle,
		MaxHeaderBytes:    maxHeader,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		ErrorLog:          log.New(handshakeLog{n}, "", 0),
		ConnState:         connState,
		BaseContext:       func(net.Listener) context.Context { return serving },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if tc, ok := c.(*tls.Conn); ok {
				return context.WithValue(ctx, connKey, tc.NetConn())
			}
			return ctx
		},
	}
}

// servePublic answers a call on the API's listener.
func (n *node) servePublic(w http.ResponseWriter, r *http.Request) {
	conn, ok := r.Context().Value(connKey).(*apiConn)
	if !ok {
		n.handler.Problem(w, r, errors.New("connection is not of the API listener"))
		return
	}
	who := conn.getCaller()
	if who == nil || !n.now().Before(who.notAfter) {
		n.handler.Refuse(w, r, api.NewProblem(api.CodeUnauthorized, "the identity of this connection has expired", "renew it and connect again"))
		return
	}
	end, refused, never := conn.guard.begin(conn, who)
	if refused != nil {
		if never {
			w.Header().Set("Connection", "close")
		}
		n.metrics.refused(r.Context(), refused.Code)
		n.handler.Refuse(w, r, refused)
		return
	}
	defer end()
	if err := n.checkEpoch(); err != nil {
		n.handler.Problem(w, r, err)
		return
	}
	done, refused := n.paced(r, who)
	if refused != nil {
		n.handler.Refuse(w, r, refused)
		return
	}
	defer done()
	// A caller that does not read its answer would hold it in memory. Streams
	// set a deadline an event instead.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(api.MaxWait + 30*time.Second))
	n.handler.ServeHTTP(w, r.WithContext(api.WithCaller(r.Context(), who.api())))
}
