package sim

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// rpcTimeout is how long a node waits for an answer, as raftstore's own transport does at its default timing.
	rpcTimeout = 3 * time.Second

	// A snapshot travels in pieces, between any two of which something may break.
	snapshotPiece = 16 << 10
	snapshotPause = 4 * time.Millisecond
)

var (
	errLost = errors.New("sim: no answer")
	errGone = errors.New("sim: this process has ended")
)

// transport carries raft's messages of one node for one life of its process. Like raft's own it knows a fast path for
// heartbeats; that raftstore does not let raft use it is a thing to be tested.
type transport struct {
	net      *network
	addr     raft.ServerAddress
	requests chan raft.RPC
	ended    chan struct{}
	once     sync.Once

	mu   sync.Mutex
	fast func(raft.RPC) // guarded by mu
}

func newTransport(n *network, id string) *transport {
	return &transport{
		net: n, addr: raft.ServerAddress(id), requests: make(chan raft.RPC), ended: make(chan struct{}),
	}
}

// end makes the node unreachable and mute.
func (t *transport) end() { t.once.Do(func() { close(t.ended) }) }

// Close implements raft.WithClose.
func (t *transport) Close() error {
	t.end()
	return nil
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.requests }

// LocalAddr implements raft.Transport.
func (t *transport) LocalAddr() raft.ServerAddress { return t.addr }

// DecodePeer implements raft.Transport.
func (t *transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// EncodePeer implements raft.Transport.
func (t *transport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// SetHeartbeatHandler implements raft.Transport.
func (t *transport) SetHeartbeatHandler(fn func(raft.RPC)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fast = fn
}

// AppendEntriesPipeline implements raft.Transport.
func (t *transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries implements raft.Transport.
func (t *transport) AppendEntries(_ raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse,
) error {
	return send(t, to, *args, resp, func(a raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
		entries := make([]*raft.Log, len(a.Entries)) // each receiver keeps its own
		for i, e := range a.Entries {
			entries[i] = new(*e)
		}
		a.Entries = entries
		return &a
	})
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest,
	resp *raft.RequestVoteResponse,
) error {
	return send(t, to, *args, resp, nil)
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest,
	resp *raft.RequestPreVoteResponse,
) error {
	return send(t, to, *args, resp, nil)
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest,
	resp *raft.TimeoutNowResponse,
) error {
	return send(t, to, *args, resp, nil)
}

// InstallSnapshot implements raft.Transport. It is a stream, so it arrives once or breaks off.
func (t *transport) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest,
	resp *raft.InstallSnapshotResponse, data io.Reader,
) error {
	l := link{string(t.addr), string(to)}
	f := t.net.fate(l)
	if f.lost || !f.incarnationOK {
		return t.wait(f.patience)
	}
	command := *args
	answer, err := deliver(t, f, l, &command, &piecewise{from: data, net: t.net, link: l}, 4*rpcTimeout)
	if err != nil {
		return err
	}
	return read(answer, resp)
}

// send sends a message and waits for its answer as long as the sender is patient. What copied returns is the receiver's;
// without it that is a plain copy.
func send[A, R any](t *transport, to raft.ServerAddress, args A, resp *R, copied func(A) *A) error {
	if copied == nil {
		copied = func(a A) *A { return &a }
	}
	l := link{string(t.addr), string(to)}
	f := t.net.fate(l)
	if f.undisturbed && f.incarnationOK {
		answer, err := deliver(t, f, l, copied(args), nil, rpcTimeout)
		if err != nil {
			return err
		}
		return read(answer, resp)
	}
	answers := make(chan raft.RPCResponse, 1)
	if !f.lost && f.incarnationOK {
		t.net.flying.Go(func() {
			if a, err := deliver(t, f, l, copied(args), nil, rpcTimeout); err == nil && !f.answerLost {
				answers <- a
			}
		})
		if second := f; f.again > 0 {
			second.there += f.again
			t.net.flying.Go(func() { _, _ = deliver(t, second, l, copied(args), nil, rpcTimeout) }) // nobody waits for its answer
		}
	}
	timer := time.NewTimer(f.patience)
	defer timer.Stop()
	select {
	case a := <-answers:
		return read(a, resp)
	case <-timer.C:
		return errLost
	case <-t.ended:
		return errGone
	}
}

func read[R any](a raft.RPCResponse, resp *R) error {
	if a.Error != nil {
		return a.Error
	}
	r, ok := a.Response.(*R)
	if !ok {
		return fmt.Errorf("sim: the answer is a %T", a.Response)
	}
	*resp = *r
	return nil
}

func (t *transport) wait(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return errLost
	case <-t.ended:
		return errGone
	}
}

// deliver carries one message there and its answer back. What is under way when a link is cut is lost.
func deliver(t *transport, f fate, l link, command any, data io.Reader, limit time.Duration) (raft.RPCResponse, error) {
	time.Sleep(f.there)
	peer := f.incarnation
	if t.net.isCut(l) {
		return raft.RPCResponse{}, t.wait(f.patience)
	}
	answer, err := peer.handle(command, data, limit)
	if err != nil {
		return answer, err
	}
	time.Sleep(f.back)
	if t.net.isCut(link{l.to, l.from}) {
		return answer, t.wait(f.patience)
	}
	select {
	case <-t.ended:
		return answer, errGone
	default:
		return answer, nil
	}
}

// heartbeat tells a heartbeat as raft's network transport does.
func heartbeat(command any) bool {
	a, ok := command.(*raft.AppendEntriesRequest)
	return ok && a.Term != 0 && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 && len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// handle gives a message to raft and waits for its answer.
func (t *transport) handle(command any, data io.Reader, limit time.Duration) (raft.RPCResponse, error) {
	answers := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: command, Reader: data, RespChan: answers}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	t.mu.Lock()
	fast := t.fast
	t.mu.Unlock()
	if fast != nil && heartbeat(command) {
		fast(rpc)
	} else {
		select {
		case t.requests <- rpc:
		case <-t.ended:
			return raft.RPCResponse{}, errLost
		case <-timer.C:
			return raft.RPCResponse{}, errLost
		}
	}
	select {
	case a := <-answers:
		return a, nil
	case <-t.ended:
		return raft.RPCResponse{}, errLost
	case <-timer.C:
		return raft.RPCResponse{}, errLost
	}
}

// piecewise is a snapshot on its way.
type piecewise struct {
	from io.Reader
	net  *network
	link link
	rest int // of the piece under way
}

func (p *piecewise) Read(b []byte) (int, error) {
	if p.rest == 0 {
		time.Sleep(snapshotPause + p.net.latency(p.link))
		p.rest = snapshotPiece
	}
	if p.net.isCut(p.link) {
		return 0, errLost
	}
	n, err := p.from.Read(b[:min(len(b), p.rest)])
	p.rest -= n
	return n, err
}
