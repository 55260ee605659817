package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestThreeNodesAgree(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set color red")
	index, before := c.propose("set color blue")
	if before != "red" {
		t.Errorf("result = %q, want the value before, %q", before, "red")
	}
	c.agree(index)
	for _, s := range c.nodes {
		if got := get(t, s, "color"); got != "blue" {
			t.Errorf("%s reads %q, want blue", s.cfg.ID, got)
		}
	}
}

func TestFollowerSendsElsewhere(t *testing.T) {
	c := newCluster(t, nil)
	eventually(t, "followers that know their leader", func() error {
		leader := c.leader()
		for _, s := range c.followers() {
			if id, ok := s.Leader(); !ok || id != leader.cfg.ID {
				return fmt.Errorf("Leader() of %s = %q, %v", s.cfg.ID, id, ok)
			}
			if _, _, err := s.Propose(t.Context(), []byte("set a b")); !errors.Is(err, ErrNotLeader) {
				return fmt.Errorf("Propose on a follower = %w, want ErrNotLeader", err)
			}
			if err := s.Linearize(t.Context()); !errors.Is(err, ErrNotLeader) {
				return fmt.Errorf("Linearize on a follower = %w, want ErrNotLeader", err)
			}
		}
		return nil
	})
}

func TestRefusedBeforeTheLog(t *testing.T) {
	c := newCluster(t, func(_ string, cfg *Config) { cfg.MaxCommand = 64 })
	leader := c.leader()
	if _, _, err := leader.Propose(t.Context(), make([]byte, 65)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("65 bytes: %v, want ErrTooLarge", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := leader.Propose(gone, []byte("set a b"))
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrAmbiguous) {
		t.Errorf("a context that ended before: %v, want only context.Canceled", err)
	}
	c.stop(leader.cfg.ID)
	if _, _, err := leader.Propose(t.Context(), []byte("set a b")); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
	if err := leader.Linearize(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Linearize after Close: %v, want ErrClosed", err)
	}
	if err := leader.View(func(Reader, uint64) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("View after Close: %v, want ErrClosed", err)
	}
	if _, err := leader.Wait(t.Context(), 1<<40); !errors.Is(err, ErrClosed) {
		t.Errorf("Wait after Close: %v, want ErrClosed", err)
	}
}

// A node serves its peers over the pinned connections and knows which of them is asking.
func TestHTTPBetweenPeers(t *testing.T) {
	c := newCluster(t, nil)
	type peerKey struct{}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, conn.(interface{ PeerID() string }).PeerID())
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, "hello %s", r.Context().Value(peerKey{})) // the reader notices
		}),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(c.nodes["n2"].PeerListener()) }()
	for _, from := range []string{"n1", "n3"} {
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.nodes[from].DialPeer(ctx, "n2")
		}}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://n2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if got, want := string(body), "hello "+from; got != want {
			t.Errorf("%s gets %q, want %q", from, got, want)
		}
		transport.CloseIdleConnections()
	}
	c.stop("n2")
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve ends with %v once the node is closed, want net.ErrClosed", err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}

// Every command that was acknowledged before, between and after two leaders were killed is there in the end, on all.
func TestKilledLeadersLoseNothing(t *testing.T) {
	c := newCluster(t, nil)
	want := map[string]string{}
	put := func(n int) {
		for i := range 20 {
			k, v := fmt.Sprintf("k%d-%d", n, i), fmt.Sprint(i)
			c.propose("set %s %s", k, v)
			want[k] = v
		}
	}
	put(0)
	for round := 1; round <= 2; round++ {
		victim := c.leader().cfg.ID
		c.kill(victim)
		put(round)
		c.start(victim)
	}
	index, _ := c.propose("set last one")
	want["last"] = "one"
	for _, s := range c.nodes {
		await(t, s, index)
		got := map[string]string{}
		err := s.View(func(r Reader, _ uint64) error {
			r.Scan(nil, nil, func(k, v []byte) bool {
				got[string(k)] = string(v)
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.cfg.ID, diff)
		}
	}
}

func TestCloseHandsOver(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	old := c.leader()
	term := old.Status().Term
	c.stop(old.cfg.ID)
	leader := c.leader()
	if got := leader.Status().Term; got != term+1 {
		t.Logf("term went from %d to %d: the hand-over did not succeed at once", term, got)
	}
	c.propose("set a 2")
	if got := get(t, c.leader(), "a"); got != "2" {
		t.Errorf("a = %q, want 2", got)
	}
}

func TestTransferLeadership(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	eventually(t, "transfer", func() error {
		s := c.leader()
		if err := s.TransferLeadership(); err != nil {
			return err
		}
		if s.passed.Load() == 0 {
			t.Error("nobody watches whether the transfer ends")
		}
		return nil
	})
	c.propose("set a 2")
	err := c.followers()[0].TransferLeadership()
	if !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrNoQuorum) {
		t.Errorf("on a follower: %v, want ErrNotLeader", err)
	}
}

// Each leadership begins with all that was committed before it, and ends before the same node's next.
func TestLead(t *testing.T) {
	c := newCluster(t, nil)
	type event struct {
		node  string
		leads bool
		saw   string
	}
	events := make(chan event, 1000)
	c.propose("set a 1")
	for id, s := range c.nodes {
		s.Lead(func(ctx context.Context) {
			events <- event{id, true, get(t, s, "a")}
			<-ctx.Done()
			events <- event{id, false, ""}
		})
	}
	leading := map[string]bool{}
	await := func(what string, found func(event) bool) event {
		t.Helper()
		for deadline := time.After(patience); ; {
			select {
			case e := <-events:
				if leading[e.node] == e.leads {
					t.Errorf("%+v twice in a row", e)
				}
				if e.leads && e.saw != "1" {
					t.Errorf("%s began to lead without what was committed before", e.node)
				}
				leading[e.node] = e.leads
				if found(e) {
					return e
				}
			case <-deadline:
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	victim := await("a leader", func(e event) bool { return e.leads }).node
	c.kill(victim)
	if leading[victim] {
		await("the end of it", func(e event) bool { return e.node == victim && !e.leads })
	}
	for id := range c.nodes {
		if leading[id] {
			return
		}
	}
	await("another leader", func(e event) bool { return e.node != victim && e.leads })
}

func TestNoQuorum(t *testing.T) {
	c := newCluster(t, nil)
	c.propose("set a 1")
	leader := c.leader()
	for _, s := range c.followers() {
		c.kill(s.cfg.ID)
	}
	eventually(t, "the leader notices", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, _, err := leader.Propose(ctx, []byte("set a 2"))
		if err == nil {
			t.Fatal("committed without a quorum")
		}
		if !errors.Is(err, ErrNoQuorum) {
			return err // ErrAmbiguous as long as it believes that it leads
		}
		return nil
	})
	if err := leader.Linearize(t.Context()); !errors.Is(err, ErrNoQuorum) {
		t.Errorf("Linearize without a quorum = %v, want ErrNoQuorum", err)
	}
}

func TestWait(t *testing.T) {
	c := newCluster(t, nil)
	index, _ := c.propose("set a 1")
	s := c.leader()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Wait(ctx, index+1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait for what does not come = %v, want its context's error", err)
	}
	woken := make(chan uint64, 1)
	go func() {
		got, err := s.Wait(t.Context(), index)
		if err != nil {
			t.Error(err)
		}
		woken <- got
	}()
	after, _ := c.propose("set a 2")
	select {
	case got := <-woken:
		if got <= index || got > after {
			t.Errorf("Wait(%d) = %d, committed at %d", index, got, after)
		}
	case <-time.After(patience):
		t.Fatal("Wait slept through a commit")
	}
}

func TestStatus(t *testing.T) {
	c := newCluster(t, nil)
	index, _ := c.propose("set a 1")
	for _, s := range c.nodes {
		await(t, s, index)
	}
	eventually(t, "status of the leader", func() error {
		st := c.leader().Status()
		ok := st.State == "leader" && st.Leader == st.ID && st.Applied >= index && st.Commit >= index && st.LastLog >= index &&
			st.Term > 0 && len(st.Peers) == 3 && st.LastContact == 0 && !st.DiskStalled
		for _, p := range st.Peers {
			ok = ok && p.Self == (p.ID == st.ID) && p.Address != "" && (p.Self || p.LastContact >= 0)
		}
		if !ok {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	eventually(t, "status of a follower", func() error {
		leader := c.leader().cfg.ID
		st := c.followers()[0].Status()
		if st.State != "follower" || st.Leader != leader || st.LastContact < 0 || st.Applied < index {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

func TestConfigRefused(t *testing.T) {
	good := func() (*cluster, Config) {
		c := &cluster{t: t}
		other := newTestKeys(t, 3)
		for i, k := range other {
			c.members = append(c.members, Member{
				ID: fmt.Sprintf("n%d", i+1), Address: fmt.Sprintf("127.0.0.1:%d", 7001+i), Key: k.public,
			})
		}
		return c, Config{
			ID: "n1", Dir: t.TempDir(), Key: other[0].private, Members: c.members, Machine: kv{},
			Listener: listen(t, "127.0.0.1:0"),
		}
	}
	tests := map[string]struct {
		spoil func(*Config)
		want  string
	}{
		"no directory":       {func(c *Config) { c.Dir = "" }, "no Dir"},
		"no machine":         {func(c *Config) { c.Machine = nil }, "no Machine"},
		"no members":         {func(c *Config) { c.Members = nil }, "0 members"},
		"one ID twice":       {func(c *Config) { c.Members[1].ID = "n1" }, "listed twice"},
		"one key twice":      {func(c *Config) { c.Members[2].Key = c.Members[1].Key }, "one key"},
		"one address twice":  {func(c *Config) { c.Members[2].Address = c.Members[1].Address }, "one address"},
		"bad ID":             {func(c *Config) { c.Members[1].ID = "N 2" }, "member ID"},
		"no port":            {func(c *Config) { c.Members[1].Address = "127.0.0.1" }, "address"},
		"short key":          {func(c *Config) { c.Members[1].Key = c.Members[1].Key[:31] }, "31 bytes"},
		"stranger":           {func(c *Config) { c.ID = "n4" }, "not among the members"},
		"another's key":      {func(c *Config) { c.Members[0].Key, c.Members[1].Key = c.Members[1].Key, c.Members[0].Key }, "not the one"},
		"lease > heartbeat":  {func(c *Config) { c.Timing.Lease = time.Second }, "LeaderLeaseTimeout"},
		"stall below lease":  {func(c *Config) { c.Timing.DiskStall = time.Millisecond }, "DiskStall"},
		"unknown log":        {func(c *Config) { c.LogFormat = "tape" }, "bolt or wal"},
		"negative MaxComand": {func(c *Config) { c.MaxCommand = -1 }, "MaxCommand"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, cfg := good()
			tt.spoil(&cfg)
			s, err := Open(cfg)
			if err == nil {
				t.Fatal(errors.Join(errors.New("opened"), s.Close()))
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}
}
