package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

// sign makes keys for a node in a new folder, and a manifest with it.
func (c *cluster) sign(id string) {
	c.t.Helper()
	dir := filepath.Join(c.t.TempDir(), id)
	ls := [2]net.Listener{listen(c.t), listen(c.t)}
	c.listen[id] = ls
	r, err := ca.NewNode(dir, ca.NodeOptions{
		ID: id, TrustDomain: c.manifest.TrustDomain, APIAddress: ls[0].Addr().String(), RaftAddress: ls[1].Addr().String(),
	})
	must(c.t, err)
	c.manifest, err = ca.SignNodes(c.dir, []ca.NodeRequest{r}, ca.SignOptions{Add: true})
	must(c.t, err)
	node, err := ca.LoadNode(dir, c.manifest)
	must(c.t, err)
	var rest []*ca.Node
	for _, n := range c.offline.nodes {
		if n.ID != id {
			rest = append(rest, n)
		}
	}
	c.offline.nodes = append(rest, node)
}

func (c *cluster) manifestText() string {
	c.t.Helper()
	text, err := c.manifest.Encode()
	must(c.t, err)
	return string(text)
}

// leaves are the kinds of the audit log with actor and object.
func (c *cluster) leaves() []string {
	c.t.Helper()
	entries, err := c.as("user/ann").AuditEntries(c.t.Context(), 0, 1000)
	must(c.t, err)
	var all []string
	for _, text := range entries.Entries {
		var e struct{ Kind, Actor, Object string }
		must(c.t, json.Unmarshal(text, &e))
		all = append(all, strings.TrimSpace(e.Kind+" "+strings.TrimPrefix(e.Actor, "spiffe://acme.test/user/")+" "+e.Object))
	}
	return all
}

// TestReplaceNode: a node that was lost is replaced by a new one that the root
// signed for, without a restart of the others; the lost one's issuers are denied.
func TestReplaceNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	ann := c.as("user/ann")
	before := c.granted()
	lost := c.follower().ID()
	c.crash(lost)

	c.sign("n4")
	_, err := ann.JoinNode(ctx, "n4")
	wantProblem(t, err, api.CodeNotFound)
	_, err = c.as("user/bob").AdoptManifest(ctx, c.manifestText())
	wantProblem(t, err, api.CodeDenied)
	cl, err := ann.AdoptManifest(ctx, c.manifestText())
	must(t, err)
	if cl.Manifest != 2 || len(cl.Nodes) != 4 {
		t.Errorf("adopted: manifest %d with %d nodes", cl.Manifest, len(cl.Nodes))
	}
	_, err = c.once(c.leader(), "user/ann").JoinNode(ctx, "n4")
	wantProblem(t, err, api.CodeUnavailable) // it does not run

	c.start("n4")
	_, err = c.as("user/bob").JoinNode(ctx, "n4")
	wantProblem(t, err, api.CodeDenied)
	n, err := ann.JoinNode(ctx, "n4")
	must(t, err)
	if n.Role != "nonvoter" {
		t.Errorf("joined as %q", n.Role)
	}
	n, err = ann.PromoteNode(ctx, "n4")
	must(t, err)
	if n.Role != "voter" {
		t.Errorf("promoted to %q", n.Role)
	}
	_, err = ann.RemoveNode(ctx, lost, api.RemoveNodeInput{Reason: "its disk is gone"})
	must(t, err)
	cl, err = ann.Cluster(ctx)
	must(t, err)
	for _, i := range cl.Issuers {
		if (i.Denied != nil) != (i.Node == lost) {
			t.Errorf("issuer of %s: denied %v", i.Node, i.Denied)
		}
	}
	c.until("the lost node's two issuers are on the feed of each node", func() bool {
		for _, r := range c.live() {
			if feed, err := c.once(r, "user/ann").Revocations(ctx); err != nil || len(feed.Issuers) != 2 {
				return false
			}
		}
		return true
	})
	for _, n := range cl.Nodes {
		if n.ID == lost || n.Role != "voter" {
			t.Errorf("node %s is %s", n.ID, n.Role)
		}
	}
	want := []string{"manifest.adopt ann " + cl.ID, "node.join ann n4", "node.promote ann n4", "node.remove ann " + lost}
	leaves := c.leaves()
	if got := leaves[len(leaves)-len(want):]; strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("the log says %q, want %q", got, want)
	}
	c.awaitReady()
	// The new node counts as the old one did: another may go, and it mints.
	for _, r := range c.live() {
		if r.ID() != "n4" && !r.Store().IsLeader() {
			c.crash(r.ID())
			break
		}
	}
	got, err := c.as("user/alice").Request(ctx, before.ID)
	must(t, err)
	if got.State != api.RequestApproved {
		t.Errorf("the request of before is %s", got.State)
	}
	c.granted()
	c.check()
	c.checkAudit(t)
}

// TestReplaceUnderOldName: a new machine takes a lost node's name, with keys of
// its own.
func TestReplaceUnderOldName(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	ann := c.as("user/ann")
	lost := c.follower().ID()
	c.halt(lost)
	must(t, os.RemoveAll(filepath.Join(c.dir, "data", lost)))
	c.sign(lost)
	_, err := ann.AdoptManifest(ctx, c.manifestText())
	if p := theProblem(t, err, api.CodeConflict); !strings.Contains(p.Next, "cluster remove "+lost) {
		t.Errorf("next: %q", p.Next)
	}
	_, err = ann.RemoveNode(ctx, lost, api.RemoveNodeInput{Reason: "sold", Retired: true})
	must(t, err)
	_, err = ann.AdoptManifest(ctx, c.manifestText())
	must(t, err)
	c.start(lost)
	_, err = ann.JoinNode(ctx, lost)
	must(t, err)
	_, err = ann.PromoteNode(ctx, lost)
	must(t, err)
	_, err = ann.HandOver(ctx, lost)
	must(t, err)
	c.until("the new one leads", func() bool { return c.leader().ID() == lost })
	c.granted()
	r := c.granted()
	csr, _ := newCSR(t)
	_, err = c.as("user/alice").GrantCertificate(ctx, r.ID, csr)
	must(t, err)
	c.awaitReady()
	c.check()
}

// TestRemoveLeader: the node that leads hands over first, and the call that wanted
// it gone is answered by the next leader.
func TestRemoveLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	old := c.leader().ID()
	gone := api.RemoveNodeInput{Reason: "moves to another rack", Retired: true}
	_, err := c.as("user/ann").RemoveNode(t.Context(), old, gone, api.WithKey("once"))
	must(t, err)
	again, err := c.as("user/ann").RemoveNode(t.Context(), old, gone, api.WithKey("once"))
	if err != nil || again.ID != old {
		t.Errorf("the same call again: %+v, %v", again, err)
	}
	_, err = c.as("user/ann").RemoveNode(t.Context(), old, gone)
	wantProblem(t, err, api.CodeNotFound)
	if now := c.leader().ID(); now == old {
		t.Errorf("%s still leads", now)
	}
	c.granted()
	if got := c.leader().Store().Membership(); len(got) != 2 || got[old] != raftstore.RoleNone {
		t.Errorf("members %v", got)
	}
	// Two are left, and neither can be spared: what is left would be no quorum
	// once one of them fails to answer.
	other := c.follower().ID()
	if other == old {
		for _, r := range c.live() {
			if r.ID() != old && !r.Store().IsLeader() {
				other = r.ID()
			}
		}
	}
	c.halt(old)
	_, err = c.as("user/ann").RemoveNode(t.Context(), other, api.RemoveNodeInput{Reason: "x"})
	must(t, err) // it answers, so that one remains, which is a quorum of one
	_, err = c.as("user/ann").RemoveNode(t.Context(), c.leader().ID(), api.RemoveNodeInput{Reason: "x"})
	wantProblem(t, err, api.CodeConflict)
}

// TestRemovedHalfWay: a leader that dies between the leaf and the change of the
// membership leaves a voter that nobody talks to; the next one takes it out.
func TestRemovedHalfWay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	leader := c.leader()
	gone := c.follower().ID()
	call := api.Call{Caller: api.Caller{ID: spiffeid.RequireFromString("spiffe://acme.test/user/ann"), NotAfter: time.Now().Add(time.Hour)}}
	_, err := leader.n.propose(t.Context(), call, approval.RemoveNode{Node: gone, Reason: "lost"})
	must(t, err)
	c.until("it is no member", func() bool {
		l := c.leading()
		return l != nil && l.Store().Membership()[gone] == raftstore.RoleNone
	})
	c.granted()
}

// TestJoinWithOtherSettings: a node that would vote by other rules is not let in,
// and the admin is told why.
func TestJoinWithOtherSettings(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ann := c.as("user/ann")
	c.sign("n4")
	_, err := ann.AdoptManifest(t.Context(), c.manifestText())
	must(t, err)
	c.cfg = func(cfg *Config) { cfg.Timing.Lease = 299 * time.Millisecond }
	c.start("n4")
	_, err = ann.JoinNode(t.Context(), "n4")
	if p := theProblem(t, err, api.CodeConflict); !strings.Contains(p.Detail, "lease time-out is") {
		t.Errorf("detail: %q", p.Detail)
	}
	if f := finding(c.node("n4").Health(), "member"); f.Status == statusOK {
		t.Errorf("a node that is not in: %+v", f)
	}
}

// TestManifestByFile: nodes that were started with a newer manifest have the
// cluster take it, without anyone who could call the API.
func TestManifestByFile(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.sign("n4")
	must(t, c.listen["n4"][0].Close())
	must(t, c.listen["n4"][1].Close())
	for i := range 3 {
		id := fmt.Sprintf("n%d", i+1)
		c.halt(id)
		c.start(id)
	}
	c.awaitReady()
	c.until("the manifest is taken", func() bool {
		cl, err := c.as("user/ann").Cluster(t.Context())
		return err == nil && cl.Manifest == 2 && len(cl.Nodes) == 4
	})
	leaves := c.leaves()
	if last := leaves[len(leaves)-1]; !strings.HasPrefix(last, "manifest.adopt  ") {
		t.Errorf("the log says %q", last)
	}
	c.check()
}

// TestRollingRestart: while each node in turn is told to stop and started again,
// writers at all of them see no failure.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var (
		group  sync.WaitGroup
		writes atomic.Int64
		round  atomic.Int64

		acknowledged sync.Map // reasons of requests
	)
	for i := range 4 {
		who := []string{"user/alice", "user/erin"}[i%2]
		writer := c.client(c.identity(t, "spiffe://acme.test/"+who), c.urls()...)
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				in := readAccounts()
				in.Reason = fmt.Sprintf("writer %d, write %d", i, n)
				acknowledged.Store(in.Reason, true)
				r, err := writer.CreateRequest(context.WithoutCancel(ctx), in)
				if err == nil {
					_, err = writer.CancelRequest(context.WithoutCancel(ctx), r.ID)
				}
				if err != nil {
					t.Errorf("writer %d in round %d: %v", i, round.Load(), err)
					return
				}
				writes.Add(2)
			}
		})
	}
	for i := range 2 {
		for _, m := range c.manifest.Nodes {
			round.Add(1)
			seen := writes.Load()
			c.until("writes go on", func() bool { return writes.Load() > seen+8 || t.Failed() })
			c.halt(m.ID)
			seen = writes.Load()
			c.until("writes go on without "+m.ID, func() bool { return writes.Load() > seen+8 || t.Failed() })
			c.start(m.ID)
			c.awaitReady()
		}
		t.Logf("round %d: %d writes", i, writes.Load())
	}
	stop()
	group.Wait()
	// Each is there, and a call that was made again is there once.
	must(t, c.leader().n.local(func(s approval.State) error {
		cursor, seen := "", map[string]int{}
		for {
			page, next, err := s.Requests(approval.Filter{Cursor: cursor})
			if err != nil {
				return err
			}
			for _, r := range page {
				if seen[r.Reason]++; seen[r.Reason] > 1 {
					t.Errorf("%q is there twice", r.Reason)
				}
				acknowledged.Delete(r.Reason)
			}
			if cursor = next; cursor == "" {
				return nil
			}
		}
	}))
	acknowledged.Range(func(reason, _ any) bool {
		t.Errorf("%q was acknowledged and is not there", reason)
		return true
	})
	c.check()
	c.checkAudit(t)
}

// TestUpgrade: a cluster of one release is upgraded node by node to the next
// while it is written to. Only when the last one knows the new version of commands
// is it spoken, and then no older node gets in or goes on.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	var upgraded sync.Map
	c := newCluster(t, func(cfg *Config) {
		if _, ok := upgraded.Load(cfg.Node.ID); ok {
			cfg.speaks = approval.Next
		}
	})
	version := func() int {
		cl, err := c.as("user/ann").Cluster(t.Context())
		must(t, err)
		return cl.Commands
	}
	for i, m := range c.manifest.Nodes {
		c.granted()
		if v := version(); v != approval.Version {
			t.Errorf("with %d of 3 upgraded, version %d is spoken", i, v)
		}
		c.halt(m.ID)
		upgraded.Store(m.ID, true)
		c.start(m.ID)
		c.awaitReady()
	}
	c.until("the new version is spoken", func() bool { return version() == approval.Next })
	c.granted()
	hashes := map[string]bool{}
	c.until("all nodes have one state", func() bool {
		clear(hashes)
		at := map[uint64]bool{}
		for _, r := range c.live() {
			index, sum, err := r.Store().StateHash()
			must(t, err)
			hashes[fmt.Sprintf("%x", sum)], at[index] = true, true
		}
		return len(at) == 1
	})
	if len(hashes) != 1 {
		t.Errorf("%d states of one log", len(hashes))
	}

	// An older one does not start on such a state, nor does it get in.
	old := c.follower().ID()
	c.halt(old)
	upgraded.Delete(old)
	if err := c.startFails(old); !errors.Is(err, errOld) {
		t.Errorf("an older release on that state: %v", err)
	}
	c.sign("n4")
	_, err := c.as("user/ann").AdoptManifest(t.Context(), c.manifestText())
	must(t, err)
	c.start("n4")
	_, err = c.as("user/ann").JoinNode(t.Context(), "n4")
	if p := theProblem(t, err, api.CodeConflict); !strings.Contains(p.Detail, fmt.Sprintf("knows version %d", approval.Version)) {
		t.Errorf("an older node that joins: %q", p.Detail)
	}
	c.check()
}

func finding(h Health, check string) Finding {
	for _, f := range h.Findings {
		if f.Check == check {
			return f
		}
	}
	return Finding{}
}

// TestSilenceBeginsWithMembership: one that joins, or joins again, has not been silent for as long as its leader leads.
func TestSilenceBeginsWithMembership(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	now, m := begin.Add(time.Hour), met{}
	peer := func(id string, role raftstore.Role, contact time.Duration) raftstore.PeerStatus {
		return raftstore.PeerStatus{ID: id, Role: role, LastContact: contact}
	}
	m.note([]raftstore.PeerStatus{
		peer("heard", raftstore.RoleVoter, 0), peer("dead", raftstore.RoleVoter, -1),
		peer("died", raftstore.RoleNonvoter, 0), peer("back", raftstore.RoleVoter, 0),
	}, begin)
	m.note([]raftstore.PeerStatus{peer("heard", raftstore.RoleVoter, 0), peer("dead", raftstore.RoleVoter, -1), peer("died", raftstore.RoleNonvoter, 0), peer("back", raftstore.RoleNone, -1)}, begin.Add(time.Minute))
	for _, tt := range []struct {
		peer raftstore.PeerStatus
		want time.Duration
	}{
		{peer("heard", raftstore.RoleVoter, time.Second), time.Second},
		{peer("dead", raftstore.RoleVoter, -1), time.Hour},
		{peer("died", raftstore.RoleNonvoter, 50*time.Minute), 50 * time.Minute},
		{peer("back", raftstore.RoleNonvoter, 59*time.Minute), 0},
		{peer("new", raftstore.RoleNonvoter, -1), 0},
		{peer("heard", raftstore.RoleVoter, 2*time.Hour), time.Hour}, // by this leader, in an earlier term
	} {
		m.note([]raftstore.PeerStatus{tt.peer, peer("heard", raftstore.RoleVoter, 0), peer("dead", raftstore.RoleVoter, -1), peer("died", raftstore.RoleNonvoter, 0)}, now)
		if got := m.silent(tt.peer, now); got != tt.want {
			t.Errorf("%s: silent for %s, want %s", tt.peer.ID, got, tt.want)
		}
	}
}

// TestCleanup: a member that nobody hears is removed, as far as enough are left,
// and no further.
func TestCleanup(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(cfg *Config) { // longer than a busy machine keeps a member silent
		cfg.Cleanup = Cleanup{After: 8 * time.Second}
	})
	ctx := t.Context()
	ann := c.as("user/ann")
	for _, id := range []string{"n4", "n5"} {
		c.sign(id)
		_, err := ann.AdoptManifest(ctx, c.manifestText())
		must(t, err)
		c.start(id)
		_, err = ann.JoinNode(ctx, id)
		must(t, err)
		if id == "n4" {
			_, err = ann.PromoteNode(ctx, id)
			must(t, err)
		}
	}
	voters := func() map[string]raftstore.Role { return c.leader().Store().Membership() }
	others := func() (ids []string) {
		for _, r := range c.live() {
			if !r.Store().IsLeader() && r.ID() != "n5" {
				ids = append(ids, r.ID())
			}
		}
		return ids
	}
	first := others()[0]
	c.crash(first)
	c.until("the voter is gone, of four", func() bool { return voters()[first] == raftstore.RoleNone })
	leaves := c.leaves()
	if last := leaves[len(leaves)-1]; last != "node.remove  "+first {
		t.Errorf("the log says %q", last)
	}
	second := others()[0]
	c.crash(second)
	c.crash("n5")
	c.until("the nonvoter is gone", func() bool { return voters()["n5"] == raftstore.RoleNone })
	time.Sleep(2 * time.Second) // longer than it takes to remove what is due
	if voters()[second] != raftstore.RoleVoter {
		t.Errorf("the third voter was removed: %v", voters())
	}
	c.granted()
	for name, bad := range map[string]Cleanup{"negative": {After: -1}, "two": {After: time.Hour, MinVoters: 2}} {
		if _, err := bad.checked(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	c.check()
}
