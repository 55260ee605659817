package raftstore

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// A connection that has not proven its key by then is closed.
	handshakeTimeout = 5 * time.Second

	// Handshakes at once, so that strangers cost a bounded amount of memory. The oldest makes room: a flood of silent
	// connections would otherwise keep the members out, whose handshakes take milliseconds.
	handshakeSlots  = 64
	peerStreams     = 64 // per peer and kind; the oldest makes room, as after a crash its other end is gone
	acceptBacklog   = 16
	refusalLogEvery = time.Second
)

// PeerConn is an application stream to or from another member.
type PeerConn struct {
	*tls.Conn
	peer string
	kind streamKind
	mux  *mux
}

// PeerID names the member at the other end.
func (c *PeerConn) PeerID() string { return c.peer }

// Close closes the stream.
func (c *PeerConn) Close() error {
	c.mux.forget(c)
	return c.Conn.Close()
}

// mux carries raft's and the application's streams over one listener.
type mux struct {
	id       string
	pins     *pins
	roster   *roster
	cluster  [sha256.Size]byte
	timing   Timing
	own      ownLog
	listener net.Listener
	logger   *slog.Logger
	queues   map[streamKind]*streamQueue
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup // the accept loop and its handshakes
	ended    chan string    // peers of whose raft streams to here one has ended

	mu        sync.Mutex
	closed    bool                     // guarded by mu
	streams   map[*PeerConn]struct{}   // guarded by mu; both directions
	arrived   map[peerKind][]*PeerConn // guarded by mu; inbound, oldest first
	greeting  []net.Conn               // guarded by mu; handshakes under way, oldest first
	refusedAt time.Time                // guarded by mu
	refused   int                      // guarded by mu; since refusedAt, not logged
}

type peerKind struct {
	peer string
	kind streamKind
}

// ownLog is what a node tells of its log.
type ownLog interface {
	standing() standing
	lineage() lineage
	founding() [sha256.Size]byte
}

func newMux(s settings, known *roster, own ownLog) (*mux, error) {
	p, err := newPins(s.Key, known)
	if err != nil {
		return nil, err
	}
	m := &mux{
		id: s.ID, pins: p, roster: known, cluster: clusterHash(s.Cluster), timing: s.Timing, own: own,
		listener: s.Listener, logger: s.Logger,
		streams: make(map[*PeerConn]struct{}), arrived: make(map[peerKind][]*PeerConn), ended: make(chan string, maxMembers),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.queues = map[streamKind]*streamQueue{streamRaft: newStreamQueue(s.ID), streamApp: newStreamQueue(s.ID), streamRecords: newStreamQueue(s.ID)}
	m.running.Go(m.accept)
	return m, nil
}

// accept ends when close has closed the listener.
func (m *mux) accept() {
	delay := time.Millisecond
	for {
		conn, err := m.listener.Accept()
		if err != nil {
			if m.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			m.logger.Error("accept", "error", err)
			select {
			case <-time.After(delay):
			case <-m.ctx.Done():
				return
			}
			delay = min(2*delay, time.Second)
			continue
		}
		delay = time.Millisecond
		m.expect(conn)
		m.running.Go(func() { m.admit(conn) })
	}
}

// expect makes room for a handshake; the end of another's connection ends that one.
func (m *mux) expect(conn net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.greeting) >= handshakeSlots {
		_ = m.greeting[0].Close()
		m.greeting = m.greeting[1:]
	}
	m.greeting = append(m.greeting, conn)
}

func (m *mux) greeted(conn net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.greeting, conn); i >= 0 {
		m.greeting = slices.Delete(m.greeting, i, i+1)
	}
}

// admit lets one inbound connection in, or closes it.
func (m *mux) admit(conn net.Conn) {
	stream, err := m.greet(conn)
	m.greeted(conn)
	if err != nil {
		m.refuse(conn, err)
		return
	}
	queue, ok := m.queues[stream.kind]
	if !ok { // a hello, which has been answered
		_ = stream.Close()
		return
	}
	patience := time.NewTimer(handshakeTimeout) // with nobody accepting, streams must not pile up
	defer patience.Stop()
	select {
	case queue.streams <- stream:
		return
	case <-queue.done:
	case <-patience.C:
	case <-m.ctx.Done():
	}
	_ = stream.Close()
}

// greet proves the other end's key and reads what the stream carries.
func (m *mux) greet(conn net.Conn) (*PeerConn, error) {
	ctx, cancel := context.WithTimeout(m.ctx, handshakeTimeout)
	defer cancel()
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	secure := tls.Server(conn, m.pins.server())
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	peer, err := m.pins.peer(secure.ConnectionState())
	if err != nil {
		return nil, err
	}
	head := make([]byte, prefaceSize)
	if _, err := io.ReadFull(secure, head); err != nil {
		return nil, fmt.Errorf("read preface of %q: %w", peer, err)
	}
	theirs := decodePreface(head)
	answer := reply{kind: theirs.kind, standing: m.own.standing(), lineage: m.own.lineage(), founding: m.own.founding()}
	if err := m.preface(theirs.kind).refuses(theirs); err != nil {
		answer.kind, answer.reason = refusedKind, err.Error()
		_, _ = secure.Write(answer.encode()) // its loss
		return nil, fmt.Errorf("peer %q: %w", peer, err)
	}
	stream, err := m.remember(&PeerConn{Conn: secure, peer: peer, kind: theirs.kind, mux: m}, true)
	if err != nil {
		return nil, err
	}
	_, err = secure.Write(answer.encode())
	if err := errors.Join(err, conn.SetDeadline(time.Time{})); err != nil {
		m.forget(stream)
		return nil, err
	}
	return stream, nil
}

func (m *mux) preface(kind streamKind) preface {
	return preface{kind: kind, cluster: m.cluster, lineage: m.own.lineage(), timing: m.timing}
}

// refuse closes a connection and says so, at most once a second: a flood of strangers must not fill the disk with logs.
func (m *mux) refuse(conn net.Conn, err error) {
	_ = conn.Close()
	if unlogged, ok := m.countRefusal(); ok {
		m.logger.Warn("refused a connection", "remote", conn.RemoteAddr().String(), "error", err, "unlogged", unlogged)
	}
}

func (m *mux) countRefusal() (unlogged int, log bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, false
	}
	if time.Since(m.refusedAt) < refusalLogEvery {
		m.refused++
		return 0, false
	}
	unlogged, m.refused = m.refused, 0
	m.refusedAt = time.Now()
	return unlogged, true
}

// dial opens a stream to another node, proving both keys.
func (m *mux) dial(ctx context.Context, id string, kind streamKind) (*PeerConn, error) {
	stream, _, err := m.call(ctx, id, kind)
	return stream, err
}

// hello asks another node how it stands; an error says that it cannot be reached or will not have this one.
func (m *mux) hello(ctx context.Context, id string) (reply, error) {
	stream, answer, err := m.call(ctx, id, streamHello)
	if err != nil {
		return reply{}, err
	}
	_ = stream.Close() // it said what it had to
	return answer, nil
}

func (m *mux) call(ctx context.Context, id string, kind streamKind) (*PeerConn, reply, error) {
	member, ok := m.roster.get(id)
	if !ok || id == m.id {
		return nil, reply{}, fmt.Errorf("raftstore: dial %q: not another member", id)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", member.Address)
	if err != nil {
		return nil, reply{}, fmt.Errorf("raftstore: dial %q: %w", id, err)
	}
	stream, answer, err := m.open(ctx, conn, id, kind)
	if err != nil {
		return nil, reply{}, errors.Join(fmt.Errorf("raftstore: dial %q: %w", id, err), conn.Close())
	}
	return stream, answer, nil
}

func (m *mux) open(ctx context.Context, conn net.Conn, id string, kind streamKind) (*PeerConn, reply, error) {
	// A cancelled or late dial ends at once, wherever it is.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	secure := tls.Client(conn, m.pins.client(id))
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, reply{}, err
	}
	if _, err := secure.Write(m.preface(kind).encode()); err != nil {
		return nil, reply{}, err
	}
	answer, err := readReply(secure)
	switch {
	case err != nil:
		return nil, reply{}, err
	case answer.kind == refusedKind:
		return nil, reply{}, fmt.Errorf("%w: %s", ErrRefused, answer.reason)
	case answer.kind != kind:
		return nil, reply{}, errors.New("it answers with another stream kind")
	case !stop():
		return nil, reply{}, context.Cause(ctx)
	}
	stream, err := m.remember(&PeerConn{Conn: secure, peer: id, kind: kind, mux: m}, false)
	return stream, answer, err
}

// remember keeps the stream so that close can end it.
func (m *mux) remember(c *PeerConn, inbound bool) (*PeerConn, error) {
	m.mu.Lock()
	var evicted *PeerConn
	defer func() {
		m.mu.Unlock()
		if evicted != nil {
			_ = evicted.Close()
		}
	}()
	if m.closed {
		return nil, ErrClosed
	}
	if inbound {
		key := peerKind{c.peer, c.kind}
		if q := m.arrived[key]; len(q) >= peerStreams {
			evicted = q[0]
		}
		m.arrived[key] = append(m.arrived[key], c)
	}
	m.streams[c] = struct{}{}
	return c, nil
}

func (m *mux) forget(c *PeerConn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.streams, c)
	key := peerKind{c.peer, c.kind}
	if i := slices.Index(m.arrived[key], c); i >= 0 {
		m.arrived[key] = slices.Delete(m.arrived[key], i, i+1)
		if c.kind == streamRaft {
			select {
			case m.ended <- c.peer:
			default: // of one that is told of already, as a rule
			}
		}
	}
}

// drop ends the streams of nodes that are no longer who they were.
func (m *mux) drop(ids []string) {
	m.mu.Lock()
	var gone []*PeerConn
	for c := range m.streams {
		if slices.Contains(ids, c.peer) {
			gone = append(gone, c)
		}
	}
	m.mu.Unlock()
	for _, c := range gone {
		_ = c.NetConn().Close() // no close_notify: it could block on a peer that does not read
		m.forget(c)
	}
}

// close ends every stream and waits for the accept loop.
func (m *mux) close() error {
	m.mu.Lock()
	m.closed = true
	streams := make([]*PeerConn, 0, len(m.streams))
	for c := range m.streams {
		streams = append(streams, c)
	}
	for _, conn := range m.greeting {
		_ = conn.Close()
	}
	m.mu.Unlock()
	m.cancel()
	err := m.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	for _, q := range m.queues {
		_ = q.Close()
	}
	for _, c := range streams {
		_ = c.NetConn().Close() // no close_notify: it could block on a peer that does not read
		m.forget(c)
	}
	m.running.Wait()
	return err
}

// streamQueue is a net.Listener of admitted streams of one kind.
type streamQueue struct {
	addr    nodeAddr
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func newStreamQueue(id string) *streamQueue {
	return &streamQueue{addr: nodeAddr(id), streams: make(chan net.Conn, acceptBacklog), done: make(chan struct{})}
}

func (q *streamQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.streams:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *streamQueue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *streamQueue) Addr() net.Addr { return q.addr }

// nodeAddr is a node's ID as an address: raft's membership names nodes, and the mux knows where they live.
type nodeAddr string

func (nodeAddr) Network() string  { return "hallpass" }
func (a nodeAddr) String() string { return string(a) }

// raftStreams is raft's view of the mux.
type raftStreams struct {
	*streamQueue
	mux *mux
}

func (s raftStreams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.mux.ctx, timeout)
	defer cancel()
	return s.mux.dial(ctx, string(address), streamRaft)
}
