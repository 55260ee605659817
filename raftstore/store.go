package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Store is one node. All methods are safe for concurrent use.
type Store struct {
	cfg         settings
	logger      *slog.Logger
	raft        *raft.Raft
	log         *watchedLog
	snaps       snapshots
	state       *state
	records     *records
	applied     *watermark
	checkpoints *checkpoints
	trans       *transport
	roster      *roster
	place       *place
	mux         *mux          // nil with Config.Transport
	split       *splitStreams // nil without Config.Streams

	gate      *leaderGate
	leaders   *bell // of raft's word on who leads
	reads     readRounds
	proposals proposals
	caught    atomic.Uint64 // the newest term in which a barrier showed that all earlier entries are applied here
	passing   atomic.Bool   // leadership is being handed over: nothing is proposed or confirmed
	passed    atomic.Int64  // when the last hand-over began, in ns after origin; 0 when there was none
	origin    time.Time

	settingMembers sync.Mutex    // so that the rosters kept are in order
	changing       chan struct{} // holds the one change of the membership that is under way

	ctx    context.Context // ends when the node stops
	cancel context.CancelFunc
	duties sync.WaitGroup // goroutines of the store, all of which end with ctx
	ops    sync.WaitGroup // calls into raft that wait for an answer

	mu      sync.Mutex
	started bool          // guarded by mu
	closing bool          // guarded by mu
	failure error         // guarded by mu; why the node halted
	halted  chan struct{} // closed when failure is set
	stopped chan struct{} // closed when stop is through
	stopErr error         // written before stopped is closed
}

// Open starts a node, and makes the cluster's first membership when Dir holds no state. It owns cfg.Listener
// and cfg.LogStore also when it fails.
func Open(cfg Config) (*Store, error) {
	set, err := cfg.settings()
	if err != nil {
		err = fmt.Errorf("raftstore: config: %w", err)
		if cfg.LogStore != nil {
			err = errors.Join(err, cfg.LogStore.Close())
		}
		return nil, errors.Join(err, discard(cfg))
	}
	s := &Store{
		cfg: set, logger: set.Logger, applied: newWatermark(), checkpoints: &checkpoints{}, gate: newLeaderGate(), leaders: newBell(), origin: time.Now(),
		roster: newRoster(set), changing: make(chan struct{}, 1),
		halted: make(chan struct{}), stopped: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("raftstore: open %s: %w", set.Dir, err), s.release(false), discard(cfg))
	}
	s.mu.Lock()
	s.started = true
	err = s.failure
	s.mu.Unlock()
	if err != nil { // it halted before anyone could be told
		return nil, errors.Join(err, s.Abort())
	}
	s.duties.Go(s.watchLeadership)
	if s.mux != nil {
		s.duties.Go(s.watchStreams)
	}
	s.duties.Go(s.settle)
	s.duties.Go(s.backfill)
	if from := s.listenFor(streamRecords); from != nil {
		s.duties.Go(func() { s.serveRecords(from) })
		s.duties.Go(s.compareStates)
	}
	return s, nil
}

// discard closes what a failed Open was given and did not come to use.
func discard(cfg Config) error {
	if cfg.Listener == nil {
		return nil
	}
	if err := cfg.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := takeHistory(s.cfg.Dir); err != nil {
		return err
	}
	store := s.cfg.LogStore
	if store == nil {
		var err error
		if store, err = openLog(s.cfg.Dir, s.cfg.LogFormat); err != nil {
			return err
		}
	}
	s.log = newWatchedLog(store, s.cfg.Timing.DiskStall, s.halt)
	if err := s.checkOwner(); err != nil {
		return err
	}
	if err := s.loadRoster(); err != nil {
		return err
	}
	conf := s.cfg.raftConfig()
	files, err := raft.NewFileSnapshotStoreWithLogger(s.cfg.Dir, snapshotsKept, conf.Logger)
	if err != nil {
		return err
	}
	s.snaps = snapshots{files, filepath.Join(s.cfg.Dir, snapshotsDir)}
	if s.records, err = openRecords(filepath.Join(s.cfg.Dir, recordsDir), s.logger); err != nil {
		return err
	}
	if err := s.openState(conf); err != nil {
		return err
	}
	if s.place, err = s.findPlace(); err != nil {
		return err
	}
	under, err := s.network(conf)
	if err != nil {
		return err
	}
	s.trans = newTransport(under, s.log.stalled)
	return s.startRaft(conf)
}

// network is what raft talks over: TLS between pinned keys, or what a simulation brings.
func (s *Store) network(conf *raft.Config) (raft.Transport, error) {
	if s.cfg.Transport != nil {
		if s.cfg.Streams != nil {
			s.split = newSplitStreams(s.cfg.Streams, s.cfg.ID)
		}
		return s.cfg.Transport, nil
	}
	m, err := newMux(s.cfg, s.roster, s.place)
	if err != nil {
		return nil, err
	}
	s.mux = m
	network := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                  raftStreams{m.queues[streamRaft], m},
		MaxPool:                 3,
		MaxRPCsInFlight:         1, // see transport: no pipelining
		Timeout:                 s.cfg.Timing.rpcTimeout(),
		Logger:                  conf.Logger,
		MsgpackUseNewTimeFormat: true,
	})
	network.TimeoutScale = 8 << 10 // bytes of a snapshot for which the receiver gets one Timeout
	return network, nil
}

func (s *Store) startRaft(conf *raft.Config) error {
	if s.place.foundsAtOnce() {
		if err := s.cfg.canFound(); err != nil {
			return err
		}
		if err := raft.BootstrapCluster(conf, s.log, s.log, s.snaps, s.trans, s.cfg.raftMembers()); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
		s.place.become(settled)
	}
	s.trans.inbound = make(chan raft.RPC)
	machine := &fsm{
		machine: s.cfg.Machine, state: s.state, records: s.records, applied: s.applied, halt: s.halt, logger: s.logger,
		checks: s.checkpoints, every: s.cfg.StateCheck,
	}
	var err error
	s.raft, err = raft.NewRaft(conf, machine, s.log, s.log, s.snaps, s.trans)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	seen := make(chan raft.Observation, 1) // full, it says all there is to say
	s.raft.RegisterObserver(raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	s.duties.Go(func() { s.watchLeaders(seen) })
	s.duties.Go(func() { s.trans.relay(s.ctx, s.admits, s.bridge) })
	return s.checkMembership()
}

// admits says which of raft's messages this node takes.
func (s *Store) admits(request any) error {
	if s.log.failed.Load() {
		return errWriteFailed
	}
	return s.place.admits(request)
}

// ownerKey is where the log store keeps which node it belongs to.
const ownerKey = "hallpass.node"

// checkOwner refuses a directory copied from another node: with its votes and log, this node would vote twice.
func (s *Store) checkOwner() error {
	owner, err := s.stable(ownerKey)
	if err != nil {
		return err
	}
	if len(owner) == 0 {
		if err := s.checkLogLost(); err != nil {
			return err
		}
		return s.log.Set([]byte(ownerKey), []byte(s.cfg.ID))
	}
	if string(owner) != s.cfg.ID {
		return fmt.Errorf("%w: this is node %q and the directory is %q's: give each node its own", ErrWrongNode, s.cfg.ID, owner)
	}
	return nil
}

// checkLogLost refuses an empty log beside a snapshot: what the node voted for, and what it acknowledged after the
// snapshot, went with the log that made it. Taken for settled, it would vote again in a term in which it has voted.
func (s *Store) checkLogLost() error {
	dir := filepath.Join(s.cfg.Dir, snapshotsDir)
	kept, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(kept) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return lostLog(filepath.Join(s.cfg.Dir, s.cfg.LogFormat.file()), "there are snapshots in "+dir)
}

// openState opens the state file when it was closed in order, or else an empty one for raft to fill from snapshot and
// log.
func (s *Store) openState(conf *raft.Config) error {
	r := recovery{dir: s.cfg.Dir, log: s.log, snaps: s.snaps, logger: s.logger, format: s.cfg.LogFormat}
	st, kept, err := r.open(filepath.Join(s.cfg.Dir, stateFile))
	if err != nil {
		return err
	}
	s.state = st
	conf.NoSnapshotRestoreOnStart = kept
	if kept {
		at, c, err := st.content()
		if err != nil {
			return err
		}
		s.applied.set(at.index)
		s.records.expect(c.records, false)
	}
	return nil
}

// enter begins a call into raft; the caller MUST call s.ops.Done when raft has answered.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failure != nil:
		return fmt.Errorf("%w: %w", ErrHalted, s.failure)
	case s.closing:
		return ErrClosed
	}
	s.ops.Add(1)
	return nil
}

// DialPeer opens an application stream to another member.
func (s *Store) DialPeer(ctx context.Context, id string) (net.Conn, error) {
	return s.dialStream(ctx, id, streamApp)
}

func (s *Store) dialStream(ctx context.Context, id string, kind streamKind) (net.Conn, error) {
	switch {
	case s.mux != nil:
		return s.mux.dial(ctx, id, kind)
	case s.split != nil:
		return s.split.dial(ctx, id, kind)
	}
	return nil, errors.New("raftstore: no application streams with Config.Transport alone")
}

// PeerListener accepts the other members' application streams; each is a *PeerConn. Closing it ends what DialPeer opens
// to this node and nothing else. It is nil with Config.Transport alone.
func (s *Store) PeerListener() net.Listener { return s.listenFor(streamApp) }

func (s *Store) listenFor(kind streamKind) net.Listener {
	switch {
	case s.mux != nil:
		return s.mux.queues[kind]
	case s.split != nil:
		return s.split.queues[kind]
	}
	return nil
}
