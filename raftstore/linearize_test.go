package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/raft"
)

// deposed sets up the moment in which a stale read could happen: n1 leads, has been cut off, still believes that it leads
// since its lease is long, and another node has acknowledged a newer value of the key "x".
func deposed(t *testing.T) (c *simCluster, old, leader *Store) {
	t.Helper()
	long := Timing{Heartbeat: 20 * time.Second, Election: 20 * time.Second, Lease: 20 * time.Second, DiskStall: time.Hour}
	c = newSimCluster(t, map[string]Timing{"n1": long})
	first := c.leaderAmong(0, "n2", "n3")
	simPropose(t, first, "set x old")
	if err := first.raft.LeadershipTransferToServer("n1", "n1").Error(); err != nil {
		t.Fatal(err)
	}
	old = c.leaderAmong(0, "n1")
	simLinearize(t, old)
	c.net.isolate("n1")
	leader = c.leaderAmong(old.raft.CurrentTerm(), "n2", "n3")
	simPropose(t, leader, "set x new")
	if old.raft.State() != raft.Leader {
		t.Fatal("the old leader knows already")
	}
	return c, old, leader
}

func simPropose(t *testing.T, s *Store, command string) {
	t.Helper()
	for range 100 {
		if _, _, err := s.Propose(t.Context(), []byte(command)); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s does not take %q", s.cfg.ID, command)
}

func simLinearize(t *testing.T, s *Store) {
	t.Helper()
	for range 100 {
		if err := s.Linearize(t.Context()); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s cannot confirm that it leads", s.cfg.ID)
}

func TestStaleReadIsNotLinearized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, old, leader := deposed(t)
		defer c.close()
		if got := get(t, old, "x"); got != "old" {
			t.Fatalf("the deposed leader reads %q: there is no stale read to refuse", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := old.Linearize(ctx); err == nil {
			t.Error("a deposed leader confirmed a stale read")
		}
		simLinearize(t, leader)
		if got := get(t, leader, "x"); got != "new" {
			t.Errorf("the leader reads %q, want new", got)
		}
		c.net.heal()
		for range 100 {
			if !old.IsLeader() {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err := old.Linearize(t.Context()); !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrNoQuorum) {
			t.Errorf("once healed: %v, want ErrNotLeader, or ErrNoQuorum before it has heard of the leader", err)
		}
	})
}

// Raft's own VerifyLeader takes an answer for proof that was given before the question was asked. Here n2 and n3 answer
// n1's heartbeats and the answers are held up on the way, as they are when n1 is paused with its sockets full; then n1 is
// cut off and replaced, a newer value is acknowledged, a read arrives at n1, and only now the old answers do.
func TestOldAnswersConfirmNothing(t *testing.T) {
	for name, read := range map[string]func(*Store) error{
		"VerifyLeader": func(s *Store) error { return s.raft.VerifyLeader().Error() },
		"Linearize":    func(s *Store) error { return s.Linearize(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				long := Timing{Heartbeat: 20 * time.Second, Election: 20 * time.Second, Lease: 20 * time.Second, DiskStall: time.Hour}
				c := newSimCluster(t, map[string]Timing{"n1": long})
				defer c.close()
				first := c.leaderAmong(0, "n2", "n3")
				simPropose(t, first, "set x old")
				if err := first.raft.LeadershipTransferToServer("n1", "n1").Error(); err != nil {
					t.Fatal(err)
				}
				old := c.leaderAmong(0, "n1")
				simLinearize(t, old)

				release := make(chan struct{})
				c.net.change(func() {
					c.net.answers[simLink{"n2", "n1"}] = release
					c.net.answers[simLink{"n3", "n1"}] = release
				})
				time.Sleep(50 * time.Millisecond) // n1 has requests under way to both, answered and not come back
				c.net.isolate("n1")
				leader := c.leaderAmong(old.raft.CurrentTerm(), "n2", "n3")
				simPropose(t, leader, "set x new")

				result := make(chan error, 1)
				go func() { result <- read(old) }()
				time.Sleep(10 * time.Millisecond)
				close(release)
				err := <-result
				stale := get(t, old, "x") == "old"
				switch {
				case name == "VerifyLeader" && (err != nil || !stale):
					t.Errorf("VerifyLeader = %v, stale %v: it seems mended, so that the count of acknowledgements can go", err, stale)
				case name == "Linearize" && err == nil && stale:
					t.Error("Linearize confirmed a stale read")
				}
			})
		})
	}
}

// A new leader has entries that its predecessor acknowledged, and does not know yet that they are committed. Here only its
// heartbeats get through, so that its peers confirm that it leads while it cannot commit anything of its own term.
func TestNewLeaderKnowsNothingYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		old := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, old, "set x old")
		time.Sleep(time.Second)
		known := old.raft.CommitIndex()
		c.net.change(func() {
			c.net.only = func(m simMessage) bool { // followers get the next entry and not that it is committed
				a, ok := m.command.(*raft.AppendEntriesRequest)
				return !ok || a.LeaderCommitIndex <= known
			}
		})
		if _, _, err := old.Propose(t.Context(), []byte("set x new")); err != nil {
			t.Fatal(err)
		}
		c.net.change(func() {
			c.net.only = func(m simMessage) bool {
				_, ok := m.command.(*raft.AppendEntriesRequest)
				return !ok || m.heartbeat()
			}
		})
		term := old.raft.CurrentTerm()
		c.net.isolate(old.cfg.ID)
		leader := c.leaderAmong(term, "n1", "n2", "n3")
		if got := get(t, leader, "x"); got != "old" {
			t.Fatalf("the new leader reads %q before it committed anything: the schedule shows nothing", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := leader.Linearize(ctx); err == nil {
			t.Error("a new leader confirmed a read before it knew what its predecessor acknowledged")
		}
		c.net.heal()
		last := c.leaderAmong(0, "n1", "n2", "n3")
		simLinearize(t, last)
		if got := get(t, last, "x"); got != "new" {
			t.Errorf("x = %q, want new: an acknowledged write is lost", got)
		}
	})
}

// A read whose leadership ends and begins anew while it waits is refused, and those after it are not held up.
func TestReadAcrossLeaderships(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		s := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, s, "set x 1")
		term := s.raft.CurrentTerm()
		result := make(chan error, 1)
		c.net.isolate(s.cfg.ID)
		go func() { result <- s.Linearize(t.Context()) }()
		next := c.leaderAmong(term, "n1", "n2", "n3")
		c.net.heal()
		simLinearize(t, next)
		if err := next.raft.LeadershipTransferToServer(raft.ServerID(s.cfg.ID), raft.ServerAddress(s.cfg.ID)).Error(); err != nil {
			t.Fatal(err)
		}
		c.leaderAmong(next.raft.CurrentTerm()-1, s.cfg.ID)
		if err := <-result; err == nil {
			t.Error("a read was confirmed across two leaderships")
		}
		simLinearize(t, s)
	})
}

// register is one key of the kv machine.
func register() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			in := input.(operation)
			if in.put {
				return true, in.value
			}
			return output == state, state
		},
		Equal:             func(a, b any) bool { return a == b },
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v = %v", input, output) },
	}
}

const never = int64(1) << 60 // when a put in doubt returns: it may take effect at any time after its call

type operation struct {
	put   bool
	value string
}

// history is what clients saw, per key.
type history struct {
	clock atomic.Int64 // orders what happened, more finely than the bubble's clock

	mu  sync.Mutex
	ops map[string][]porcupine.Operation // guarded by mu
}

func (h *history) add(key string, op porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops[key] = append(h.ops[key], op)
}

// HALLPASS_SIM_SEEDS says how many runs TestLinearizable makes.
func TestLinearizable(t *testing.T) {
	seeds := uint64(5)
	if text := os.Getenv("HALLPASS_SIM_SEEDS"); text != "" {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		seeds = n
	}
	var gets, puts, doubtful int
	for seed := range seeds {
		h := simulate(t, seed, (*Store).Linearize)
		for key, ops := range h.ops {
			for _, op := range ops {
				switch {
				case op.Return == never:
					doubtful++
				case op.Input.(operation).put:
					puts++
				default:
					gets++
				}
			}
			if got := porcupine.CheckOperationsTimeout(register(), ops, 20*time.Second); got != porcupine.Ok {
				t.Errorf("seed %d: the history of %q is %s (%d operations)", seed, key, got, len(ops))
			}
		}
	}
	t.Logf("%d runs: %d gets, %d puts, %d puts in doubt", seeds, gets, puts, doubtful)
	if runs := int(seeds); gets < 100*runs || puts < 100*runs || doubtful < runs {
		t.Error("too little happened to say anything")
	}
}

// Without Linearize the same clients under the same faults read stale values, and the checker sees it: it is not blind.
func TestStaleReadsAreSeen(t *testing.T) {
	for seed := range uint64(20) {
		h := simulate(t, seed, func(*Store, context.Context) error { return nil })
		for _, ops := range h.ops {
			if porcupine.CheckOperationsTimeout(register(), ops, 20*time.Second) == porcupine.Illegal {
				return
			}
		}
	}
	t.Error("no stale read in any run: the faults are too weak to test anything")
}

// simulate runs clients against a cluster whose network and nodes fail, and returns what they saw. Afterwards it checks
// that all nodes have come to the same state.
func simulate(t *testing.T, seed uint64, linearize func(*Store, context.Context) error) *history {
	t.Helper()
	h := &history{ops: map[string][]porcupine.Operation{}}
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{c: newSimCluster(t, nil), h: h, linearize: linearize}
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		var clients sync.WaitGroup
		for i := range 4 {
			clients.Go(func() { s.client(ctx, i, rand.New(rand.NewPCG(seed, uint64(i)))) })
		}
		s.faults(ctx, rand.New(rand.NewPCG(seed, 99)))
		clients.Wait()
		cancel()
		s.converge(t, seed)
		s.c.close()
	})
	return h
}

type simulation struct {
	c         *simCluster
	h         *history
	linearize func(*Store, context.Context) error

	mu sync.Mutex // guards c.nodes while nodes come and go
}

func (s *simulation) node(r *rand.Rand) *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 10 {
		if n := s.c.nodes[pick(r, s.c.members).ID]; n != nil && (n.IsLeader() || r.IntN(4) == 0) {
			return n
		}
	}
	return nil
}

func (s *simulation) client(ctx context.Context, id int, r *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(time.Duration(1+r.IntN(30)) * time.Millisecond)
		node := s.node(r)
		if node == nil {
			continue
		}
		key := pick(r, []string{"x", "y"})
		opCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		op := porcupine.Operation{ClientId: id, Call: s.h.clock.Add(1)}
		known, happened := false, true
		if r.IntN(2) == 0 {
			value := fmt.Sprintf("%d-%d", id, n)
			_, _, err := node.Propose(opCtx, []byte("set "+key+" "+value))
			op.Input = operation{put: true, value: value}
			known, happened = err == nil, err == nil || errors.Is(err, ErrAmbiguous)
		} else {
			value, err := s.read(opCtx, node, key)
			op.Input, op.Output = operation{}, value
			known, happened = err == nil, err == nil
		}
		cancel()
		op.Return = s.h.clock.Add(1)
		if !known {
			op.Return = never
			op.ClientId = 1000 + id*100000 + n
		}
		if happened {
			s.h.add(key, op)
		}
	}
}

func (s *simulation) read(ctx context.Context, node *Store, key string) (value string, err error) {
	if err := s.linearize(node, ctx); err != nil {
		return "", err
	}
	err = node.View(func(r Reader, _ uint64) error {
		value = string(r.Get([]byte(key)))
		return nil
	})
	return value, err
}

// faults breaks one thing after another until ctx ends, and then mends all.
func (s *simulation) faults(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		time.Sleep(time.Duration(100+r.IntN(900)) * time.Millisecond)
		id := pick(r, s.c.members).ID
		if leader := s.node(r); leader != nil && r.IntN(2) == 0 {
			id = leader.cfg.ID
		}
		switch r.IntN(7) {
		case 0:
			s.c.net.isolate(id)
		case 1: // one direction of one link
			a, b := raft.ServerAddress(id), raft.ServerAddress(pick(r, s.c.members).ID)
			s.c.net.change(func() { s.c.net.cut[simLink{a, b}] = true })
		case 2: // answers come late
			a, b := raft.ServerAddress(id), raft.ServerAddress(pick(r, s.c.members).ID)
			s.c.net.change(func() { s.c.net.slow[simLink{a, b}] = time.Duration(r.IntN(500)) * time.Millisecond })
		case 3:
			s.restart(id)
		case 4:
			s.mu.Lock()
			node := s.c.nodes[id]
			s.mu.Unlock()
			_ = node.TransferLeadership() // most often it is not the leader's
		case 5: // from which others then restore, and which it restarts from
			s.mu.Lock()
			node := s.c.nodes[id]
			s.mu.Unlock()
			_ = node.Snapshot() // refused at times, as after a change of leader
		default:
			s.c.net.heal()
		}
	}
	s.c.net.heal()
}

// restart kills the node and starts it again, with its log and without its state.
func (s *simulation) restart(id string) {
	s.mu.Lock()
	node := s.c.nodes[id]
	delete(s.c.nodes, id)
	s.mu.Unlock()
	if err := node.Abort(); err != nil {
		s.c.t.Errorf("abort %s: %v", id, err)
	}
	time.Sleep(100 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c.start(id)
}

// converge waits until all nodes stand at one index, and compares their states.
func (s *simulation) converge(t *testing.T, seed uint64) {
	t.Helper()
	leader := s.c.leaderAmong(0, "n1", "n2", "n3")
	for range 100 {
		if index, _, err := leader.Propose(t.Context(), []byte("set end 1")); err == nil {
			s.compare(t, seed, index)
			return
		}
		time.Sleep(100 * time.Millisecond)
		leader = s.c.leaderAmong(0, "n1", "n2", "n3")
	}
	t.Fatalf("seed %d: the mended cluster commits nothing", seed)
}

func (s *simulation) compare(t *testing.T, seed, index uint64) {
	t.Helper()
	states := map[string][]string{}
	for id, node := range s.c.nodes {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := node.Wait(ctx, index-1)
		cancel()
		if err != nil {
			t.Fatalf("seed %d: %s does not catch up: %v", seed, id, err)
		}
		at, sum, err := node.StateHash()
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("%d %x", at, sum[:8])
		states[key] = append(states[key], id)
	}
	if len(states) != 1 {
		t.Errorf("seed %d: the nodes have different states: %v", seed, states)
	}
}
