package control

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

func TestMedianOfClocks(t *testing.T) {
	for _, tt := range []struct {
		offsets []time.Duration
		want    time.Duration
	}{
		{[]time.Duration{3}, 3},
		{[]time.Duration{0, time.Hour}, 0},
		{[]time.Duration{-time.Hour, 1}, 1},
		{[]time.Duration{-time.Hour, -time.Hour}, -time.Hour},
		{[]time.Duration{time.Hour, 2, 1}, 2},
		{[]time.Duration{time.Hour, 2 * time.Hour, 0, 1}, 1},
	} {
		var all []reading
		for _, o := range tt.offsets {
			all = append(all, reading{offset: o})
		}
		if got, ok := median(all); !ok || got.offset != tt.want {
			t.Errorf("median of %v is %v, want %v", tt.offsets, got.offset, tt.want)
		}
	}
	if _, ok := median(nil); ok {
		t.Error("nothing has a median")
	}
}

// TestClockThatIsOff: a leader whose clock jumps hands over and writes nothing;
// the grants of the cluster do not end by it.
func TestClockThatIsOff(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	ahead := map[string]time.Duration{}
	jump := func(node string, d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		ahead[node] = d
	}
	c := newCluster(t, func(cfg *Config) {
		id := cfg.Node.ID
		cfg.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(ahead[id])
		}
	})
	r := c.granted()
	old := c.leader()
	jump(old.ID(), -20*time.Minute) // behind: identities are valid for longer
	c.until("another node leads", func() bool { l := c.leading(); return l != nil && l.ID() != old.ID() })
	c.until("the node says why", func() bool {
		for _, f := range old.Health().Findings {
			if f.Check == "clock" && f.Status == statusFail && strings.Contains(f.Detail, "20m") {
				return !old.Health().Ready
			}
		}
		return false
	})
	if err := old.n.clock.check(old.n.now()); err == nil {
		t.Error("it would propose")
	}
	for _, n := range c.live() {
		if n.ID() != old.ID() {
			c.until("node "+n.ID()+" takes itself for right", func() bool { return n.Health().Ready })
		}
	}
	got, err := c.as("user/alice").Grant(t.Context(), r.ID)
	must(t, err)
	if got.State != api.GrantActive {
		t.Errorf("the grant is %s", got.State)
	}
	jump(old.ID(), 0)
	c.until("the node is ready again", func() bool { return old.Health().Ready })
}

// TestClockWatch: a time is used while the others are known to agree with the
// clock, and while it goes on as it did when they were last asked.
func TestClockWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead := time.Duration(0)
		n := &node{settings: settings{now: func() time.Time { return time.Now().Add(ahead) }}, clock: newClockWatch()}
		try := func(what string, want bool) {
			t.Helper()
			if err := n.clock.check(n.now()); (err == nil) != want {
				t.Errorf("%s: %v", what, err)
			}
		}
		wanted := func(want bool) {
			t.Helper()
			select {
			case <-n.clock.jumped:
				if !want {
					t.Error("a comparison is wanted")
				}
			default:
				if want {
					t.Error("no comparison is wanted")
				}
			}
		}
		try("never compared", false)
		n.clock.set(0, false, n.instant())
		try("compared", true)
		time.Sleep(time.Hour)
		try("an hour later", true)
		wanted(false)
		for _, d := range []time.Duration{time.Hour, -time.Hour, 2 * maxJump, -2 * maxJump} {
			ahead = d
			try("after a jump of "+d.String(), false)
			wanted(true)
		}
		ahead = maxJump / 2
		try("slewed", true)
		ahead = 5 * time.Second
		n.clock.set(-5*time.Second, false, n.instant())
		try("set by 5 s, and the others can live with it", true)
		n.clock.set(-time.Hour, true, n.instant())
		try("off", false)
		wanted(false)
		n.clock.set(0, false, instant{})
		ahead = time.Hour
		try("with nobody to compare with", true)
	})
}

// TestClockJumpsBetweenComparisons: nothing is written, shown, minted or vouched
// for by a clock that was set a moment ago.
func TestClockJumpsBetweenComparisons(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	ahead := map[string]time.Duration{}
	c := newCluster(t, func(cfg *Config) {
		id := cfg.Node.ID
		cfg.Limits.Tick = 2 * time.Second // the nodes compare every 4 s
		cfg.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(ahead[id])
		}
	})
	r := c.granted()
	for _, jump := range []time.Duration{40 * time.Minute, -45 * time.Second} { // identities begin a minute early
		old := c.leader()
		before := mustState(t, old).LastNow
		mu.Lock()
		ahead[old.ID()] = jump
		mu.Unlock()
		if err := old.n.clock.check(old.n.now()); err == nil {
			t.Errorf("after a jump by %s it would propose", jump)
		}
		if _, err := old.n.verify(t.Context()); err == nil {
			t.Errorf("after a jump by %s it vouches for the feed", jump)
		}
		got, err := c.as("user/alice").Grant(t.Context(), r.ID)
		must(t, err)
		if got.State != api.GrantActive {
			t.Errorf("after a jump by %s the grant is %s", jump, got.State)
		}
		csr, _ := newCSR(t)
		cert, err := c.as("user/alice").GrantCertificate(t.Context(), r.ID, csr)
		must(t, err)
		if life := time.Until(cert.NotAfter); life < 4*time.Minute || life > 6*time.Minute {
			t.Errorf("after a jump by %s a certificate lives for %s", jump, life)
		}
		if after := mustState(t, c.leader()).LastNow; after.Time().Sub(before.Time()) > 10*time.Minute {
			t.Errorf("after a jump by %s the time in the state went from %s to %s", jump, before, after)
		}
		mu.Lock()
		ahead[old.ID()] = 0
		mu.Unlock()
		c.until("the node is ready again", func() bool { return old.Health().Ready })
	}
}

// TestClockOfALoneVoter: the one voter that there is has no quorum to ask, and asks
// those without a vote. When none of them answers, a clock that was right and was set
// since is not taken for the cluster's.
func TestClockOfALoneVoter(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	lone := ""
	var mu sync.Mutex // owns lone
	c := newCluster(t, func(cfg *Config) {
		id := cfg.Node.ID
		cfg.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			if id != lone {
				return time.Now()
			}
			return time.Now().Add(time.Duration(ahead.Load()))
		}
	})
	c.granted()
	leader := c.leader()
	mu.Lock()
	lone = leader.ID()
	mu.Unlock()
	var others []string
	for _, n := range c.live() {
		if n.ID() == lone {
			continue
		}
		others = append(others, n.ID())
		c.until(n.ID()+" is no member", func() bool {
			err := leader.Store().Remove(t.Context(), n.ID())
			return err == nil || leader.Store().Membership()[n.ID()] == raftstore.RoleNone
		})
	}
	c.until("one of them is one without a vote", func() bool {
		err := leader.Store().AddNonvoter(t.Context(), others[0])
		return err == nil || leader.Store().Membership()[others[0]] == raftstore.RoleNonvoter
	})
	if m := leader.Store().Membership(); len(m) != 2 || m[lone] != raftstore.RoleVoter {
		t.Fatalf("the members are %v", m)
	}
	right := func() bool {
		leader.n.compareClocks(t.Context())
		return leader.n.clock.check(leader.n.now()) == nil
	}
	c.until("its clock is known to be right", right)
	before := mustState(t, leader).LastNow
	ahead.Store(int64(time.Hour))
	if right() {
		t.Error("an hour ahead of the one that it can ask, it would propose")
	}
	c.halt(others[0])
	if right() {
		t.Error("with nobody who answers it would propose by a clock that was set")
	}
	if after := mustState(t, leader).LastNow; after.Time().Sub(before.Time()) > 10*time.Minute {
		t.Errorf("the time in the state went from %s to %s", before, after)
	}
	ahead.Store(0)
	c.start(others[0])
	c.until("its clock is right again", right)

	// Started anew with nobody who answers, it has its own clock to go by, and not one that is set then.
	c.halt(others[0])
	c.halt(lone)
	c.start(lone)
	leader = c.node(lone)
	c.until("it goes by its own clock", right)
	ahead.Store(int64(time.Hour))
	if right() {
		t.Error("started anew and alone, it would propose by a clock that was set since")
	}
	ahead.Store(0)
	c.until("its clock is as it was", right)
	c.start(others[0])
}

func mustState(t *testing.T, r *running) (out approval.Cluster) {
	t.Helper()
	must(t, r.Store().View(func(v raftstore.Reader, _ uint64) (err error) {
		out, err = approval.Read(v).Cluster()
		return err
	}))
	return out
}
