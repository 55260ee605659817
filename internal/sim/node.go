package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/raftstore"
)

// node is one control node through all its lives.
type node struct {
	id    string
	dir   string
	disk  *disk
	run   *run
	chair chan struct{} // holds one token; whoever starts or stops the node takes it
	usual time.Duration // how far its clock is off when nothing is wrong with it
	joins bool          // its disk was wiped: it waits to be let in; owned by who has the chair

	mu     sync.Mutex
	offset time.Duration // guarded by mu; of its clock
	life   *life         // guarded by mu; nil while it is down
}

// life is one process.
type life struct {
	server *control.Server
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // what Run returned; read after ended
}

func newNode(r *run, id string) *node {
	n := &node{id: id, dir: r.dir + "/" + id, run: r, chair: make(chan struct{}, 1)}
	n.disk = newDisk(r.seed, id, func(landed bool) {
		if landed {
			r.counts.landed.Add(1)
		} else {
			r.counts.torn.Add(1)
		}
	})
	n.chair <- struct{}{}
	return n
}

// now is what the node's clock shows. It carries no monotonic reading: the wall clock alone is what goes wrong.
func (n *node) now() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Round(0).Add(n.offset)
}

// checkClock refuses while the clock is off.
func (n *node) checkClock() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.offset.Abs() > slack {
		return fmt.Errorf("sim: the clock of %s is off by %s", n.id, n.offset)
	}
	return nil
}

func (n *node) setClock(offset time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.offset = offset
}

// server is the running control node, nil while it is down.
func (n *node) server() *control.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life == nil {
		return nil
	}
	return n.life.server
}

func (n *node) store() *raftstore.Store {
	if s := n.server(); s != nil {
		return s.Store()
	}
	return nil
}

// start begins a life on what earlier ones left. Its caller has the chair.
func (n *node) start() error {
	r := n.run
	keys, err := ca.LoadNode(r.world.keys(n.id), r.world.manifest)
	if err != nil {
		return err
	}
	server, err := control.New(control.Config{
		Node: keys, Manifest: r.world.manifest, DataDir: n.dir, Now: n.now,
		API: r.net.listen(n.id, apiAddress(n.id)), Raft: r.net.listen(n.id, address("unused "+n.id)),
		Logger: slog.New(nodeLog{r.history, n.id}), Timing: r.timing,
		// A few identities stand for many callers.
		Limits: control.Limits{ReadsPerSecond: 1e6, WritesPerSecond: 1e6, WritesPerCaller: 1e6, Writes: 1e6},
		OpenConfig: func(c *raftstore.Config) {
			c.Transport, c.LogStore = r.net.join(n.id), n.disk.open()
			c.Streams = streams{r.net.listen(n.id, peerAddress(n.id)), n.id}
			c.SnapshotThreshold, c.TrailingLogs, c.StateCheck, c.Join = snapshotThreshold, trailingLogs, stateCheck, n.joins
		},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{server: server, cancel: cancel, ended: make(chan struct{})}
	n.mu.Lock()
	n.life = l
	n.mu.Unlock()
	go func() { // ends when cancel is called or the node halts
		defer close(l.ended)
		l.err = server.Run(ctx)
	}()
	return nil
}

func (n *node) take() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.life
	n.life = nil
	return l
}

// kill ends a life as SIGKILL does. Its caller has the chair.
func (n *node) kill() {
	l := n.take()
	if l == nil {
		return
	}
	n.judge(l)
	n.disk.crash()
	n.run.net.vanish(n.id)
	_ = l.server.Store().Abort() // of what it cannot do in order any more
	l.cancel()
	<-l.ended
}

// judge looks at why a node has halted, if it has. A full disk is a reason.
func (n *node) judge(l *life) {
	if err := l.server.Store().Err(); err != nil && !errors.Is(err, errFull) {
		n.run.history.violation(n.id, "it halted: %v", err)
	}
}

// stop ends a life as SIGTERM does. Its caller has the chair.
func (n *node) stop() error {
	l := n.take()
	if l == nil {
		return nil
	}
	n.judge(l)
	l.cancel()
	<-l.ended
	n.disk.crash()
	n.run.net.vanish(n.id)
	return l.err
}
