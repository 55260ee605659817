package raftstore

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

var (
	errSilenced = errors.New("raftstore: this node was stopped")
	errStalled  = errors.New("raftstore: this node's disk hangs, so it does not lead")
	errNoVote   = errors.New("raftstore: the transport knows no pre-vote")
)

// transport stands between raft and the network and mends there what cannot be mended inside raft:
//
//   - No heartbeat fast path. Raft lets a transport handle heartbeats beside its main goroutine; one that carries a newer
//     term then changes the term under a leader that is about to append, which writes an entry no leader of that term
//     ever had, and the logs diverge for good (raft#695).
//   - No pipelining, which stops replicating to a follower for good after its disk has hung (raft#612), and gains nothing
//     where batches are large (raft#541).
//   - A leader whose disk hangs falls silent, so that another is elected (raft#503).
//   - Acknowledgements are counted from when their request was sent. Raft's VerifyLeader also counts the answer to a
//     request sent before the read arrived, which may have been given before the follower helped to elect another
//     leader: a process that was paused, and finds old answers in its socket buffers, would serve a stale read.
type transport struct {
	raft.Transport
	stalled func() bool   // whether the log hangs
	inbound chan raft.RPC // what relay lets through; nil: everything
	own     chan raft.RPC // what this node asks of itself

	silent atomic.Bool

	mu    sync.Mutex
	clock uint64                     // guarded by mu; counts requests and marks in the order they were made
	acks  map[raft.ServerID]leadsAck // guarded by mu
	ends  map[raft.ServerID]logEnd   // guarded by mu
}

// logEnd is the newest entry that a peer's log is known to share with this leader's.
type logEnd struct{ term, index uint64 }

// leadsAck is the newest request by which a peer has agreed that this node leads in a term.
type leadsAck struct {
	sent uint64 // on transport.clock
	term uint64
	when time.Time // the answer came
}

func newTransport(under raft.Transport, stalled func() bool) *transport {
	return &transport{
		Transport: under, stalled: stalled, own: make(chan raft.RPC),
		acks: make(map[raft.ServerID]leadsAck), ends: make(map[raft.ServerID]logEnd),
	}
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC {
	if t.inbound == nil {
		return t.Transport.Consumer()
	}
	return t.inbound
}

// relay passes on the requests that admits has nothing against, as mend returns them, until ctx ends. inbound MUST have
// been made before raft was. Raft gets a request when it has answered the one before, so that what admits and mend look
// at is what raft finds: of a log that failed in the middle of a request, raft would not expect it.
func (t *transport) relay(ctx context.Context, admits func(request any) error, mend func(raft.RPC) any) {
	for {
		var rpc raft.RPC
		select {
		case rpc = <-t.Transport.Consumer():
		case rpc = <-t.own:
		case <-ctx.Done():
			return
		}
		if err := admits(rpc.Command); err != nil {
			rpc.Respond(nil, err)
			continue
		}
		answers := make(chan raft.RPCResponse, 1)
		select {
		case t.inbound <- raft.RPC{Command: mend(rpc), Reader: rpc.Reader, RespChan: answers}:
		case <-ctx.Done():
			rpc.Respond(nil, errSilenced)
			return
		}
		select {
		case a := <-answers:
			rpc.Respond(answerTo(rpc.Command, a.Response), a.Error)
		case <-ctx.Done():
			rpc.Respond(nil, errSilenced)
			return
		}
	}
}

// SetHeartbeatHandler does nothing, so that heartbeats go through raft's main goroutine like all else.
func (t *transport) SetHeartbeatHandler(func(raft.RPC)) {}

// AppendEntriesPipeline refuses; raft then sends one request at a time.
func (t *transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries sends entries or a heartbeat, and notes that the peer took them from its leader.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest,
	resp *raft.AppendEntriesResponse,
) error {
	if t.silent.Load() {
		return errSilenced
	}
	if t.stalled() {
		return errStalled
	}
	sent := t.mark()
	if err := t.Transport.AppendEntries(id, target, args, resp); err != nil {
		return err
	}
	if resp.Term == args.Term {
		t.acknowledged(id, leadsAck{sent: sent, term: args.Term, when: time.Now()})
	}
	if resp.Success {
		t.agreed(id, logEnd{args.Term, args.PrevLogEntry + uint64(len(args.Entries))})
	}
	return nil
}

func (t *transport) acknowledged(id raft.ServerID, ack leadsAck) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.acks[id]; ack.term > old.term || ack.term == old.term && ack.sent > old.sent {
		t.acks[id] = ack
	}
}

// agreed notes how far a peer's log is this leader's. Within a term that only grows.
func (t *transport) agreed(id raft.ServerID, end logEnd) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.ends[id]; end.term > old.term || end.term == old.term && end.index > old.index {
		t.ends[id] = end
	}
}

// match is the index up to which the peer's log is known to be this leader's; 0 when nothing is known.
func (t *transport) match(id string, term uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if end := t.ends[raft.ServerID(id)]; end.term == term {
		return end.index
	}
	return 0
}

// mark returns a point in time between requests.
func (t *transport) mark() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	return t.clock
}

// confirmed counts the voters that have agreed, to a request sent after mark, that this node leads in term. Raft's
// VerifyLeader counts the nonvoters' answers too.
func (t *transport) confirmed(mark, term uint64, voters map[string]bool) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for id, ack := range t.acks {
		if voters[string(id)] && ack.term == term && ack.sent > mark {
			n++
		}
	}
	return n
}

// contact is how long ago the peer last agreed that this node leads; -1 when it never did.
func (t *transport) contact(id string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	ack, ok := t.acks[raft.ServerID(id)]
	if !ok {
		return -1
	}
	return time.Since(ack.when)
}

// votes asks a node for the vote of a term long past, which none gives, to hear whether it votes at all: one that joins
// does not, though its log may be all there and still waits to be applied. Given a vote that it does not use, it counts
// for the quorum and against it, and where the others are just enough without it, no leader is ever elected again.
func (t *transport) votes(self, id string) error {
	local := raft.ServerID(self)
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: t.EncodePeer(local, t.LocalAddr())}
	return t.RequestPreVote(raft.ServerID(id), raft.ServerAddress(id), &raft.RequestPreVoteRequest{RPCHeader: header}, &raft.RequestPreVoteResponse{})
}

func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest,
	resp *raft.RequestVoteResponse,
) error {
	if t.silent.Load() {
		return errSilenced
	}
	return t.Transport.RequestVote(id, target, args, resp)
}

func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest,
	resp *raft.RequestPreVoteResponse,
) error {
	if t.silent.Load() {
		return errSilenced
	}
	under, ok := t.Transport.(raft.WithPreVote)
	if !ok {
		return errNoVote
	}
	return under.RequestPreVote(id, target, args, resp)
}

func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest,
	resp *raft.InstallSnapshotResponse, data io.Reader,
) error {
	if t.silent.Load() {
		return errSilenced
	}
	return t.Transport.InstallSnapshot(id, target, args, resp, data)
}

func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest,
	resp *raft.TimeoutNowResponse,
) error {
	if t.silent.Load() {
		return errSilenced
	}
	return t.Transport.TimeoutNow(id, target, args, resp)
}

// silence refuses all further requests of this node, as if it were gone.
func (t *transport) silence() { t.silent.Store(true) }

func (t *transport) Close() error {
	if under, ok := t.Transport.(raft.WithClose); ok {
		return under.Close()
	}
	return nil
}
