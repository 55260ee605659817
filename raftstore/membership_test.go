package raftstore

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// invite makes a new node known to all that run, with a new key and an empty directory, and opens it.
func (c *cluster) invite(id string) *Store {
	c.t.Helper()
	l := c.list(id)
	c.spread()
	return c.open(id, l)
}

// list puts a new node on the list that the next spread gives to all.
func (c *cluster) list(id string) net.Listener {
	c.t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	l := listen(c.t, "127.0.0.1:0")
	c.forget(id)
	c.keys[id] = key
	c.dirs[id] = filepath.Join(c.t.TempDir(), id)
	c.members = append(c.members, Member{ID: id, Address: l.Addr().String(), Key: pub})
	return l
}

// forget takes a node off the list that the next spread gives to all.
func (c *cluster) forget(id string) {
	var rest []Member
	for _, m := range c.members {
		if m.ID != id {
			rest = append(rest, m)
		}
	}
	c.members = rest
}

func (c *cluster) spread() {
	c.t.Helper()
	c.revision++
	for id, s := range c.nodes {
		if err := s.SetMembers(c.revision, c.members); err != nil {
			c.t.Fatalf("%s: %v", id, err)
		}
	}
}

// onLeader does something that only a leader does, until it is done or refused.
func (c *cluster) onLeader(what string, fn func(ctx context.Context, s *Store) error) error {
	c.t.Helper()
	var refused error
	eventually(c.t, what, func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
		defer cancel()
		err := fn(ctx, c.leader())
		if errors.Is(err, ErrMembership) {
			refused = err
			return nil
		}
		return err
	})
	return refused
}

// must does something that may be done. A node that a busy machine held up for a moment counts as lost, and the change is
// refused until it has answered.
func (c *cluster) must(what string, fn func(ctx context.Context, s *Store) error) {
	c.t.Helper()
	eventually(c.t, what, func() error { return c.onLeader(what, fn) })
}

func (c *cluster) join(id string) {
	c.t.Helper()
	c.must("add "+id, func(ctx context.Context, s *Store) error { return s.AddNonvoter(ctx, id) })
	c.must("promote "+id, func(ctx context.Context, s *Store) error { return s.Promote(ctx, id) })
}

func (c *cluster) roles() string {
	c.t.Helper()
	var text []string
	for _, p := range c.leader().Status().Peers {
		text = append(text, p.ID+":"+string(p.Role))
	}
	return strings.Join(text, " ")
}

// A lost node is replaced by a new one, which is sent everything, and then counts for the quorum as the lost one did.
func TestReplaceANode(t *testing.T) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.TrailingLogs = 10 })
	for i := range 60 {
		c.propose("set k%d %d", i, i)
	}
	lost := c.followers()[0].cfg.ID
	c.kill(lost)
	for _, s := range c.nodes {
		eventually(t, "snapshot", s.Snapshot)
	}
	c.invite("n4")
	c.join("n4")
	if got := c.roles(); !strings.Contains(got, "n4:voter") {
		t.Errorf("members %s, want n4 to vote", got)
	}
	c.must("remove", func(ctx context.Context, s *Store) error { return s.Remove(ctx, lost) })
	c.forget(lost)
	c.spread()
	index, _ := c.propose("set after 1")
	c.agree(index)
	if got := get(t, c.nodes["n4"], "k7"); got != "7" {
		t.Errorf("n4 reads k7 = %q, want 7", got)
	}
	// The quorum is two of three again: one of the old nodes can go.
	victim := c.leader().cfg.ID
	if victim == "n4" {
		victim = c.followers()[0].cfg.ID
	}
	c.kill(victim)
	index, _ = c.propose("set after 2")
	c.agree(index)
}

// The replacement may bear the old name, with a new key and an empty directory.
func TestReplaceANodeUnderItsName(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	lost := c.followers()[0].cfg.ID
	c.kill(lost)
	c.must("remove", func(ctx context.Context, s *Store) error { return s.Remove(ctx, lost) })
	c.invite(lost)
	c.join(lost)
	index, _ := c.propose("set a 2")
	c.agree(index)
}

// slow is a kv that applies nothing before it may.
type slow struct {
	kv
	may <-chan struct{}
}

func (m slow) Apply(tx Tx, index uint64, data []byte) any {
	<-m.may
	return m.kv.Apply(tx, index, data)
}

// A node that has the log, and is still applying it, casts no vote yet, so it is given none. Beside one that is dead it
// would be the one too many: the three that are left of four vote only together, and a leader that hesitates for a moment
// is the last.
func TestNoVoteIsGivenBeforeItIsCast(t *testing.T) {
	may := make(chan struct{})
	c := newCluster(t, func(id string, cfg *Config) {
		if id == "n4" {
			cfg.Machine = slow{may: may}
		}
	})
	defer func() {
		if may != nil {
			close(may)
		}
	}()
	c.propose("set a 1")
	c.kill(c.followers()[0].cfg.ID)
	c.invite("n4")
	c.must("add", func(ctx context.Context, s *Store) error { return s.AddNonvoter(ctx, "n4") })
	eventually(t, "n4 has the log", func() error {
		if leader := c.leader(); leader.match("n4") < leader.raft.LastIndex() {
			return fmt.Errorf("up to %d of %d", leader.match("n4"), leader.raft.LastIndex())
		}
		return nil
	})
	err := c.onLeader("promote", func(ctx context.Context, s *Store) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return s.Promote(ctx, "n4")
	})
	if err == nil || !strings.Contains(err.Error(), "casts no vote") {
		t.Fatalf("promoted before it votes: %v", err)
	}
	close(may)
	may = nil
	c.must("promote", func(ctx context.Context, s *Store) error { return s.Promote(ctx, "n4") })
	// All three that are left have to vote, n4 among them.
	restarted := c.leader().cfg.ID
	c.kill(restarted)
	c.start(restarted)
	index, _ := c.propose("set a 2")
	c.agree(index)
}

// A node keeps the newest list of nodes it was given, so that it finds the new ones after a restart with an old config.
func TestRosterOutlivesARestart(t *testing.T) {
	c := newCluster(t, nil)
	old := c.members
	c.propose("set a 1")
	c.invite("n4")
	c.join("n4")
	id := c.followers()[0].cfg.ID
	if id == "n4" {
		id = c.followers()[1].cfg.ID
	}
	c.stop(id)
	now, revision := c.members, c.revision
	c.members, c.revision = old, 0
	s := c.start(id)
	c.members, c.revision = now, revision
	if _, ok := s.roster.get("n4"); !ok {
		t.Error("it has forgotten n4")
	}
	if err := s.SetMembers(c.revision, old); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.roster.get("n4"); !ok {
		t.Error("a list that is no newer replaced it")
	}
	index, _ := c.propose("set a 2")
	c.agree(index)
}

// A forgotten node is not talked to, and cannot disturb those that forgot it.
func TestForgottenNodeIsCutOff(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	gone := c.followers()[0]
	id := gone.cfg.ID
	c.must("remove", func(ctx context.Context, s *Store) error { return s.Remove(ctx, id) })
	delete(c.nodes, id)
	defer func() {
		if err := gone.Close(); err != nil {
			t.Error(err)
		}
	}()
	c.forget(id)
	c.spread()
	index, _ := c.propose("set a 2")
	c.agree(index)
	term := c.leader().Status().Term
	conn, err := gone.DialPeer(t.Context(), c.leader().cfg.ID)
	if err == nil {
		_ = conn.Close()
		t.Error("a forgotten node was let in")
	}
	eventually(t, "it knows no leader", func() error {
		if leader, ok := gone.Leader(); ok {
			return fmt.Errorf("it takes %q for the leader", leader)
		}
		return nil
	})
	c.propose("set a 3")
	if now := c.leader().Status().Term; now != term {
		t.Errorf("the term went from %d to %d", term, now)
	}
}

func TestUnsafeChangesAreRefused(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	add := func(id string) func(context.Context, *Store) error {
		return func(ctx context.Context, s *Store) error { return s.AddNonvoter(ctx, id) }
	}
	promote := func(id string) func(context.Context, *Store) error {
		return func(ctx context.Context, s *Store) error {
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			return s.Promote(ctx, id)
		}
	}
	refused := func(what, want string, fn func(ctx context.Context, s *Store) error) {
		t.Helper()
		if err := c.onLeader(what, fn); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a refusal that says %q", what, err, want)
		}
	}
	refused("a node that nobody knows", "no node", add("n9"))
	refused("a member", "already", add("n1"))
	refused("promote a voter", "only a nonvoter", promote("n1"))
	refused("promote a stranger", "only a nonvoter", promote("n9"))
	refused("remove a stranger", "no member", func(ctx context.Context, s *Store) error { return s.Remove(ctx, "n9") })
	refused("remove the leader", "leads", func(ctx context.Context, s *Store) error { return s.Remove(ctx, s.cfg.ID) })
	refused("hand over to a stranger", "does not vote", func(_ context.Context, s *Store) error { return s.TransferLeadershipTo("n9") })
	refused("hand over to itself", "leads already", func(_ context.Context, s *Store) error { return s.TransferLeadershipTo(s.cfg.ID) })

	c.invite("n4")
	c.stop("n4")
	refused("a node that is down", "n4", add("n4"))
	c.start("n4")
	c.must("add", add("n4"))
	refused("a node twice", "already", add("n4"))
	refused("hand over to a nonvoter", "does not vote", func(_ context.Context, s *Store) error { return s.TransferLeadershipTo("n4") })
	c.stop("n4")
	eventually(t, "the leader misses n4", func() error {
		if c.leader().reachable("n4") {
			return errors.New("it does not")
		}
		return nil
	})
	refused("a node that lags", "caught up", promote("n4"))

	dead := c.followers()[0].cfg.ID
	c.kill(dead)
	eventually(t, "the leader misses a voter", func() error {
		if c.leader().reachable(dead) {
			return errors.New("it does not")
		}
		return nil
	})
	refused("hand over to a dead node", "not been heard", func(_ context.Context, s *Store) error { return s.TransferLeadershipTo(dead) })
	alive := c.followers()[0].cfg.ID
	refused("remove the last that lives", "a quorum is 2", func(ctx context.Context, s *Store) error { return s.Remove(ctx, alive) })
	if got := len(voters(c.leader().configuration())); got != 3 {
		t.Errorf("%d voters after nothing but refusals, want 3", got)
	}
	if err := c.nodes[alive].Remove(t.Context(), dead); !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrNoQuorum) {
		t.Errorf("on a follower: %v, want ErrNotLeader", err)
	}
}

func TestTransferLeadershipTo(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	for range 2 {
		for _, m := range c.members {
			if c.leader().cfg.ID == m.ID {
				continue
			}
			c.must("hand over", func(_ context.Context, s *Store) error { return s.TransferLeadershipTo(m.ID) })
			if got := c.leader().cfg.ID; got != m.ID {
				t.Errorf("%s leads, and leadership was handed to %s", got, m.ID)
			}
		}
	}
}

// A node that lost its disk is sent everything anew and makes no new cluster, also when it is back before anybody noticed.
func TestLostDisk(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	id := c.followers()[0].cfg.ID
	c.kill(id)
	if err := os.RemoveAll(c.dirs[id]); err != nil {
		t.Fatal(err)
	}
	s := c.start(id)
	index, _ := c.propose("set b 2")
	await(t, s, index)
	if got := get(t, s, "a") + get(t, s, "b"); got != "12" {
		t.Errorf("a and b = %q, want 12", got)
	}
	eventually(t, "it takes part", func() error {
		if why := s.Status().Waiting; why != "" {
			return errors.New(why)
		}
		return nil
	})
	other := c.followers()[0].cfg.ID
	if other == id {
		other = c.followers()[1].cfg.ID
	}
	c.stop(other)
	c.propose("set c 3") // its vote counts
}

// Two of three that lost their disks do not make a cluster without what the third knows.
func TestLostDisksMakeNoCluster(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	keeper := c.leader().cfg.ID
	for id := range c.nodes {
		c.kill(id)
		if id != keeper {
			if err := os.RemoveAll(c.dirs[id]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for id := range c.dirs {
		if id != keeper {
			c.start(id)
		}
	}
	for id, s := range c.nodes {
		eventually(t, id+" says what it waits for", func() error {
			if why := s.Status().Waiting; !strings.Contains(why, keeper) {
				return fmt.Errorf("it says %q", why)
			}
			return nil
		})
		if last := s.raft.LastIndex(); last != 0 {
			t.Errorf("%s has a log of %d entries", id, last)
		}
	}
	c.start(keeper)
	for id, s := range c.nodes {
		if id == keeper {
			continue
		}
		eventually(t, id+" has found where it belongs", func() error {
			if s.place.now() != joining {
				return errors.New(s.Status().Waiting)
			}
			return nil
		})
		if last := s.raft.LastIndex(); last != 0 {
			t.Errorf("%s has a log of %d entries", id, last)
		}
	}
}

// Nodes that were given different first members make no cluster, and neither does an even number.
func TestFirstMembersMustAgree(t *testing.T) {
	c := &cluster{t: t, keys: map[string]ed25519.PrivateKey{}, dirs: map[string]string{}, nodes: map[string]*Store{}}
	_ = t.TempDir() // is cleaned up after the nodes, then
	t.Cleanup(func() {
		for id, s := range c.nodes {
			if err := s.Close(); err != nil {
				t.Errorf("close %s: %v", id, err)
			}
		}
	})
	l1, l2 := c.list("n1"), c.list("n2")
	c.open("n1", l1)
	c.open("n2", l2)
	for id, s := range c.nodes {
		eventually(t, id+" refuses", func() error {
			if why := s.Status().Waiting; !strings.Contains(why, "odd number") {
				return errors.New(why)
			}
			return nil
		})
	}
	c.open("n3", c.list("n3")) // and n1 and n2 have been started with two
	eventually(t, "n3 refuses", func() error {
		if why := c.nodes["n3"].Status().Waiting; !strings.Contains(why, "not the pinned one") && !strings.Contains(why, "not let in") {
			return errors.New(why)
		}
		return nil
	})
	c.stop("n1")
	c.stop("n2")
	c.start("n1")
	c.start("n2")
	c.propose("set a 1")
}

// A node whose log is of another history is not talked to: entries of one index and term would be taken for the same.
func TestAnotherLineageIsRefused(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	id := c.followers()[0].cfg.ID
	c.stop(id)
	store, err := openLog(c.dirs[id], LogBolt)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Set([]byte(lineageKey), make([]byte, 15)), store.Set([]byte(lineageKey), []byte("another history!")), store.Close()); err != nil {
		t.Fatal(err)
	}
	c.start(id)
	conn, err := c.leader().DialPeer(t.Context(), id)
	if err == nil {
		_ = conn.Close()
	}
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "another epoch") {
		t.Errorf("a node of another history: %v, want a refusal that says so", err)
	}
	c.propose("set a 2")
}

// Raft's VerifyLeader counts nonvoters. A leader that reaches nobody but them has been replaced, perhaps, and must not
// confirm a read.
func TestNonvotersConfirmNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		leader := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, leader, "set x 1")
		c.simJoin(leader, "n4")
		c.simJoin(leader, "n5")
		simLinearize(t, leader)
		for _, voter := range []string{"n1", "n2", "n3"} {
			if voter != leader.cfg.ID {
				c.net.isolate(voter)
			}
		}
		if err := leader.raft.VerifyLeader().Error(); err != nil {
			t.Errorf("VerifyLeader = %v: it seems mended, so that the voters need not be counted apart", err)
		}
		if err := leader.Linearize(t.Context()); err == nil {
			t.Error("nonvoters confirmed a read")
		}
	})
}

// simJoin starts a node that all others know of and makes it a nonvoter.
func (c *simCluster) simJoin(leader *Store, id string) {
	c.t.Helper()
	c.members = append(c.members, Member{ID: id})
	c.disks[id] = simDisk{raft.NewInmemStore()}
	for _, s := range c.nodes {
		if err := s.SetMembers(uint64(len(c.members)), c.members); err != nil {
			c.t.Fatal(err)
		}
	}
	c.joins = true
	c.start(id)
	if err := leader.AddNonvoter(c.t.Context(), id); err != nil {
		c.t.Fatal(err)
	}
	for range 1000 {
		if c.nodes[id].place.now() == settled {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("%s does not catch up", id)
}

// A node that lost its disk gives no vote before it has caught up. Here n3 helps to commit x and loses its disk; then the
// only other node that has x is cut off. With n3's vote n2 would be elected, and x be gone.
func TestNoVoteBeforeCaughtUp(t *testing.T) {
	for name, guarded := range map[string]bool{"guarded": true, "as raft would": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newSimCluster(t, nil)
				defer c.close()
				n1 := c.leaderAmong(0, "n1", "n2", "n3")
				ids := map[string]bool{"n1": true, "n2": true, "n3": true}
				delete(ids, n1.cfg.ID)
				var behind, wiped string
				for id := range ids {
					behind, wiped = wiped, id
				}
				simPropose(t, n1, "set a 1")
				c.net.isolate(behind)
				simPropose(t, n1, "set x 1")
				if err := c.nodes[wiped].Abort(); err != nil {
					t.Fatal(err)
				}
				c.net.heal()
				c.net.isolate(n1.cfg.ID)
				c.disks[wiped] = simDisk{raft.NewInmemStore()}
				if err := os.RemoveAll(filepath.Join(c.dir, wiped)); err != nil {
					t.Fatal(err)
				}
				c.joins = guarded
				c.start(wiped)
				lost := false
				for range 1000 {
					s := c.nodes[behind]
					lost = lost || s.raft.State() == raft.Leader
					time.Sleep(10 * time.Millisecond)
				}
				if lost == guarded {
					t.Errorf("elected a node that lacks what was acknowledged: %v", lost)
				}
				if !guarded {
					return
				}
				c.net.heal()
				simPropose(t, c.leaderAmong(0, "n1", "n2", "n3"), "set b 2")
				if got := get(t, c.leaderAmong(0, "n1", "n2", "n3"), "x"); got != "1" {
					t.Errorf("x = %q, want 1", got)
				}
			})
		})
	}
}

// A read that is under way while a member is removed is answered: raft would wait for ever for the one that it asked and
// talks to no more.
func TestReadWhileAMemberIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, nil)
		defer c.close()
		leader := c.leaderAmong(0, "n1", "n2", "n3")
		simPropose(t, leader, "set x 1")
		var others []string
		for _, m := range c.members {
			if m.ID != leader.cfg.ID {
				others = append(others, m.ID)
			}
		}
		if err := leader.Remove(t.Context(), others[0]); err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		defer close(release)
		c.net.change(func() {
			c.net.answers[simLink{raft.ServerAddress(others[1]), raft.ServerAddress(leader.cfg.ID)}] = release
		})
		stuck := leader.raft.VerifyLeader()
		read := make(chan error, 1)
		go func() { read <- leader.Linearize(context.Background()) }()
		time.Sleep(10 * time.Millisecond)
		if err := leader.Remove(t.Context(), others[1]); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-read:
			if err != nil {
				t.Errorf("the only member cannot read: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the read hangs")
		}
		answered := make(chan error, 1)
		go func() { answered <- stuck.Error() }()
		select {
		case err := <-answered:
			t.Errorf("VerifyLeader = %v: it seems mended, so that it need not be given up", err)
		case <-time.After(10 * time.Second):
		}
	})
}
