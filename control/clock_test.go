package control

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
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
	if err := old.n.clock.check(); err == nil {
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
