package control

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/notify"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

// Config describes one control node. The listeners are the node's from New on.
type Config struct {
	Node     *ca.Node    // the node's keys and issuers
	Manifest ca.Manifest // the same on every node
	DataDir  string      // of the replicated state; made when missing
	LogStore string      // how the log is kept there: bolt or wal; "" is bolt

	API   net.Listener // plain TCP; TLS is put on it
	Raft  net.Listener // plain TCP; TLS is put on it
	Admin net.Listener // loopback or a Unix socket; nil: none

	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now

	// Skew is how far certificates are backdated for verifiers whose clocks are
	// behind: zero means 10 s, at most approval.MaxBackdate.
	Skew time.Duration
	// StrictSVID gives grant certificates both extended key usages.
	StrictSVID bool
	// Retention is how long requests, decisions, grants and changes are kept
	// after they ended: zero means approval.Retention. That of the node that
	// leads counts, so it should be the same on every node.
	Retention time.Duration

	Timing     raftstore.Timing        // zero: the recommended one; the same on every node
	Tracer     trace.TracerProvider    // nil: none
	Meter      metric.MeterProvider    // nil: none
	Metrics    http.Handler            // served at /metrics of Admin; nil: none
	Limits     Limits                  // zero: the recommended ones
	Cleanup    Cleanup                 // zero: members are removed by admins only
	Witness    Witness                 // zero: none
	Notify     Notify                  // zero: nobody is told
	Resolvers  []*notify.Resolver      // of groups whose members take turns as one says, one each; the same on every node
	OpenConfig func(*raftstore.Config) // nil, or a last word on the store's configuration, for simulations

	// speaks makes the node one of another release: see approval.Machine.
	speaks int

	// failpoint is called at named places, and its error ends what is under way
	// there: tests of what a crash leaves behind.
	failpoint func(place string) error
}

const defaultSkew = 10 * time.Second

// Limits bound what callers may hold. Zero fields mean the value named.
type Limits struct {
	Header    time.Duration // to shake hands and send a request's header: 5 s
	Idle      time.Duration // between requests: 2 min
	Propose   time.Duration // for a command to commit: 5 s
	Heartbeat time.Duration // between heartbeats of a silent stream: 5 s
	Tick      time.Duration // between looks at what is due, and quorum checks: 1 s

	Connections          int // to the API: 8192
	Handshakes           int // connections on which no request has come yet: 1024
	HandshakesPerAddress int // the same, of one IPv4 address or IPv6 /64: 256
	ConnectionsPerCaller int // of one SPIFFE ID: 1024
	CallsPerCaller       int // of one SPIFFE ID under way at once, streams among them: 2048

	// Of one person, or of one SPIFFE ID that is nobody's. Decisions and what
	// takes access away are counted beside other writes, by the same numbers.
	ReadsPerSecond  int // 200, five seconds' worth at once
	WritesPerSecond int // 50, five seconds' worth at once
	WritesPerCaller int // under way at once: 64
	Writes          int // of all callers under way at once: 1024
}

// maxHeader is how long a request's header may be.
const maxHeader = 16 << 10

func (l Limits) filled() Limits {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&l.Header, 5 * time.Second},
		{&l.Idle, 2 * time.Minute},
		{&l.Propose, 5 * time.Second},
		{&l.Heartbeat, 5 * time.Second},
		{&l.Tick, time.Second},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	for _, f := range []struct {
		field *int
		value int
	}{
		{&l.Connections, 8192},
		{&l.Handshakes, 1024},
		{&l.HandshakesPerAddress, 256},
		{&l.ConnectionsPerCaller, 1024},
		{&l.CallsPerCaller, 2048},
		{&l.ReadsPerSecond, 200},
		{&l.WritesPerSecond, 50},
		{&l.WritesPerCaller, 64},
		{&l.Writes, 1024},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return l
}

// settings is a Config that was checked.
type settings struct {
	dataDir     string
	node        *ca.Node
	manifest    ca.Manifest
	trustDomain spiffeid.TrustDomain
	grantDomain spiffeid.TrustDomain
	log         *slog.Logger
	now         func() time.Time
	skew        time.Duration
	strictSVID  bool
	retention   time.Duration
	tracer      trace.TracerProvider
	meter       metric.MeterProvider
	limits      Limits
	cleanup     Cleanup
	resolvers   []*notify.Resolver
	failpoint   func(place string) error

	witnessEvery time.Duration

	// profiles says whether the admin listener serves pprof: on a Unix socket,
	// which has an owner, and on no port, which any user of the machine and any
	// page in a browser there reaches.
	profiles bool
}

func (c Config) settings() (settings, error) {
	var errs []error
	require := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	require(c.Node != nil, "no Node")
	require(c.DataDir != "", "no DataDir")
	require(c.API != nil, "no API listener")
	require(c.Raft != nil, "no Raft listener")
	require(c.Logger != nil, "no Logger")
	require(c.Skew >= 0 && c.Skew <= approval.MaxBackdate, fmt.Sprintf("Skew is not within 0 and %s", approval.MaxBackdate))
	require(CheckRetention(c.Retention) == nil, "Retention is out of bounds")
	require(len(c.Witness.Webhooks) == 0 || len(c.Witness.Secret) > 0, "Witness has webhooks and no Secret")
	require(c.Witness.Every >= 0, "Witness.Every is negative")
	// An admin port that others reach would tell them when the cluster is weak.
	require(c.Admin == nil || local(c.Admin.Addr()), "Admin listens on something other than loopback or a socket")
	if err := errors.Join(errs...); err != nil {
		return settings{}, fmt.Errorf("control: %w", err)
	}
	if err := c.Manifest.Validate(); err != nil {
		return settings{}, fmt.Errorf("control: %w", err)
	}
	if _, ok := c.Manifest.Node(c.Node.ID); !ok {
		return settings{}, fmt.Errorf("control: node %q is not in the manifest", c.Node.ID)
	}
	s := settings{
		dataDir: c.DataDir,
		node:    c.Node, manifest: c.Manifest,
		trustDomain: c.Manifest.TrustDomain, grantDomain: c.Manifest.GrantTrustDomain,
		log: c.Logger.With(slog.String("node", c.Node.ID)), now: c.Now,
		skew: c.Skew, strictSVID: c.StrictSVID, retention: cmp.Or(c.Retention, approval.Retention),
		tracer: c.Tracer, meter: c.Meter, limits: c.Limits.filled(), resolvers: c.Resolvers, failpoint: c.failpoint,
		profiles: c.Admin != nil && c.Admin.Addr().Network() == "unix",
	}
	var err error
	if s.cleanup, err = c.Cleanup.checked(); err != nil {
		return settings{}, fmt.Errorf("control: Cleanup: %w", err)
	}
	if s.witnessEvery = c.Witness.Every; s.witnessEvery == 0 {
		s.witnessEvery = time.Minute
	}
	if s.failpoint == nil {
		s.failpoint = func(string) error { return nil }
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.skew == 0 {
		s.skew = defaultSkew
	}
	if s.tracer == nil {
		s.tracer = tracenoop.NewTracerProvider()
	}
	if s.meter == nil {
		s.meter = metricnoop.NewMeterProvider()
	}
	return s, nil
}

// CheckRetention refuses what Config.Retention may not be.
func CheckRetention(d time.Duration) error {
	const day = 24 * time.Hour
	if d != 0 && (d < approval.MinRetention || d > approval.MaxRetention) {
		return fmt.Errorf("what has ended is kept for %d to %d days, not for %d", approval.MinRetention/day, approval.MaxRetention/day, d/day)
	}
	return nil
}

// local reports whether only this machine can reach addr.
func local(addr net.Addr) bool {
	if addr.Network() == "unix" {
		return true
	}
	ap, err := netip.ParseAddrPort(addr.String())
	return err == nil && ap.Addr().IsLoopback()
}

// CheckLogStore refuses what is no Config.LogStore.
func CheckLogStore(name string) error { return raftstore.LogFormat(name).Valid() }

// storeConfig is the replicated store's part of a Config.
func (c Config) storeConfig(machine *machine, log *slog.Logger) raftstore.Config {
	rc := raftstore.Config{
		Cluster: c.Manifest.Cluster, ID: c.Node.ID, Dir: c.DataDir, Listener: c.Raft, Key: c.Node.TransportKey,
		Machine: machine, Logger: log, Timing: c.Timing,
		LogFormat: raftstore.LogFormat(c.LogStore),
		Members:   membersOf(c.Manifest), MembersRevision: approval.RosterRevision(c.Manifest.Sequence),
	}
	if c.OpenConfig != nil {
		c.OpenConfig(&rc)
	}
	return rc
}

// machine hosts the approval state machine on the replicated log.
type machine struct{ approval.Machine }

// Apply implements raftstore.Machine. What a command came to is an
// approval.Result.
func (m *machine) Apply(tx raftstore.Tx, index uint64, data []byte) any {
	if err := m.checkVersion(tx); err != nil {
		panic(err) // which halts the node; a result would be one that no other node comes to
	}
	return m.Machine.Apply(tx, index, data)
}

// CheckRecords implements raftstore.Machine: the records are the audit log's
// entries.
func (m *machine) CheckRecords(r raftstore.Reader, first uint64, records [][]byte) error {
	return approval.CheckRecords(r, first, records)
}

// What raftstore checks together is what the audit log's hashes are kept by.
var _ [audit.Chunk]struct{} = [raftstore.RecordChunk]struct{}{}
