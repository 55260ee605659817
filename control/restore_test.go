package control

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

// stopped is a node as one who restores or recovers it has it.
func (c *cluster) stopped(id string) Offline {
	c.t.Helper()
	c.halt(id)
	return c.unstarted(id)
}

func (c *cluster) unstarted(id string) Offline {
	c.t.Helper()
	var node *ca.Node
	for _, n := range c.offline.nodes {
		if n.ID == id {
			node = n
		}
	}
	return Offline{
		Node: node, Manifest: c.manifest, DataDir: c.dataDir(id), Skew: 100 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(c.logs, nil)),
	}
}

func (c *cluster) dataDir(id string) string { return filepath.Join(c.dir, "data", id) }

// moveAway takes a stopped node's data away, and says where to.
func (c *cluster) moveAway(id string) string {
	c.t.Helper()
	to := filepath.Join(c.t.TempDir(), id)
	must(c.t, os.Rename(c.dataDir(id), to))
	return to
}

// rejoin starts a node with nothing, and makes it a voter.
func (c *cluster) rejoin(id string) {
	c.t.Helper()
	c.start(id)
	_, err := c.as("user/ann").JoinNode(c.t.Context(), id)
	must(c.t, err)
	_, err = c.as("user/ann").PromoteNode(c.t.Context(), id)
	must(c.t, err)
}

// TestInvariant12_ARestoredSnapshotRevivesNothing: of a snapshot a cluster comes back, one node first. What was
// granted, asked for or remembered before is not to be had; what is new is.
func TestInvariant12_ARestoredSnapshotRevivesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(cfg *Config) { cfg.Skew = 100 * time.Millisecond })
	live, revoked := c.granted(), c.granted()
	csr, _ := newCSR(t)
	_, err := c.as("user/alice").GrantCertificate(t.Context(), live.ID, csr)
	must(t, err)
	keyed := readAccounts()
	keyed.Reason = "made once"
	_, err = c.as("user/alice").CreateRequest(t.Context(), keyed, api.WithKey("once"))
	must(t, err)
	path, saved := c.save(c.as("user/ann"), true)
	// What comes now is lost.
	_, err = c.as("user/alice").RevokeGrant(t.Context(), revoked.ID, "stolen")
	must(t, err)
	after := c.granted()
	before, err := c.as("user/bob").AuditCheckpoint(t.Context())
	must(t, err)

	var was []string
	for _, id := range []string{"n1", "n2", "n3"} {
		c.halt(id)
		was = append(was, c.moveAway(id))
	}
	snapshot, err := os.Open(path)
	must(t, err)
	defer func() { must(t, snapshot.Close()) }()
	o := c.unstarted("n2")
	done, err := Restore(o, snapshot, RestoreOptions{SHA256: strings.ToUpper(saved.SHA256), AuditRoot: saved.AuditRoot, Reason: "a fire"})
	must(t, err)
	if done.Snapshot.SHA256 != saved.SHA256 || done.Snapshot.Index != saved.Index || done.Epoch != 2 || done.Introduced || done.EntriesMissing != 0 ||
		strings.Join(done.Others, " ") != "n1 n3" || done.Lineage == saved.Lineage || time.Until(done.Begins) > time.Second {
		t.Errorf("restored %+v", done)
	}
	c.start("n2")
	alice := c.client(c.identity(t, "spiffe://acme.test/user/alice"), c.urls()...)
	for name, id := range map[string]string{"live": live.ID, "revoked after the snapshot": revoked.ID, "made after it": after.ID} {
		if _, err := alice.GrantCertificate(t.Context(), id, csr); err == nil {
			t.Errorf("a certificate for the grant that was %s", name)
		}
	}
	if r, err := alice.CreateRequest(t.Context(), keyed, api.WithKey("once")); err != nil || r.ID < epochID(done.Begins) {
		t.Errorf("a call of before was answered with %s, %v", r.ID, err)
	}
	c.granted()
	for _, id := range []string{"n1", "n3"} {
		c.rejoin(id)
	}
	c.awaitReady()
	if line := c.leaves()[saved.AuditSize]; !strings.Contains(line, string(approval.KindBeginEpoch)) {
		t.Errorf("after the snapshot's comes %s", line)
	}
	head, err := c.as("user/bob").AuditCheckpoint(t.Context())
	must(t, err)
	if !strings.HasPrefix(head.Checkpoint, "acme.test/hallpass/epoch/2\n") || before.Size <= saved.AuditSize {
		t.Errorf("%q after %q of %d entries, %d of which were saved", head.Checkpoint, before.Checkpoint, before.Size, saved.AuditSize)
	}
	feed, err := c.as("user/bob").Revocations(t.Context())
	if err != nil || feed.Epoch != 2 || feed.EpochBegan == nil || after.ID >= epochID(*feed.EpochBegan) {
		t.Errorf("the feed says %+v, %v", feed, err)
	}
	c.check()
	c.checkAudit(t)

	// A node with what it had before stays outside.
	c.halt("n3")
	must(t, os.RemoveAll(c.dataDir("n3")))
	must(t, os.Rename(was[2], c.dataDir("n3")))
	c.start("n3")
	c.until("the others refuse it", func() bool { return strings.Contains(c.logs.String(), "another epoch of this cluster") })
	c.granted()
	if c.node("n3").Store().IsLeader() || c.node("n3").Health().Ready {
		t.Error("it takes part")
	}
}

// TestInvariant12_NothingBeforeTheEpoch: a restored node that cannot begin its epoch
// answers nobody. What it has is of the time of the snapshot: revoked grants live in it.
func TestInvariant12_NothingBeforeTheEpoch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	for _, id := range []string{"n1", "n2", "n3"} {
		c.halt(id)
	}
	o := c.unstarted("n1")
	_, err := Recover(o, RecoverOptions{Lost: []string{"n2", "n3"}, Reason: "a fire"})
	must(t, err)
	held := make(chan struct{})
	c.cfg = func(cfg *Config) {
		cfg.failpoint = func(place string) error {
			select {
			case <-held:
				return nil
			default:
				return errors.New("not yet")
			}
		}
	}
	n1 := c.start("n1")
	c.until("n1 leads", func() bool { return n1.Store().IsLeader() })
	alice := c.once(n1, "user/alice")
	for what, call := range map[string]func() error{
		"a grant":       func() error { _, err := alice.Grant(t.Context(), r.ID); return err },
		"the feed":      func() error { _, err := alice.Revocations(t.Context()); return err },
		"a stale read":  func() error { _, err := alice.Cluster(t.Context(), api.Stale()); return err },
		"a new request": func() error { _, err := alice.CreateRequest(t.Context(), readAccounts()); return err },
	} {
		if p := theProblem(t, call(), api.CodeUnavailable); !strings.Contains(p.Detail, "epoch has not begun") {
			t.Errorf("%s: %v", what, p)
		}
	}
	if h := n1.Health(); h.Ready {
		t.Errorf("it is ready: %+v", h)
	}
	close(held)
	c.until("it answers", func() bool { _, err := alice.Grant(t.Context(), r.ID); return err == nil })
	g, err := alice.Grant(t.Context(), r.ID)
	if err != nil || g.State != "revoked" || !n1.Health().Ready {
		t.Errorf("%+v, %v, %+v", g, err, n1.Health())
	}
}

// restoreFails wants a refusal that leaves the directory empty.
func restoreFails(t *testing.T, what string, o Offline, file []byte, opts RestoreOptions, words string) {
	t.Helper()
	_, err := Restore(o, bytes.NewReader(file), opts)
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v, want %q", what, err, words)
	}
	if left, _ := os.ReadDir(o.DataDir); len(left) > 0 {
		t.Errorf("%s: left behind %v", what, left)
	}
}

// TestRestoreRefuses: a file that is not what the operator kept the sum of, another
// cluster's, a node without a place in it, a clock that is off.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	path, saved := c.save(c.as("user/ann"), true)
	file, err := os.ReadFile(path)
	must(t, err)
	bare, _ := c.save(c.as("user/ann"), false)
	without, err := os.ReadFile(bare)
	must(t, err)
	o := c.stopped("n1")
	was := c.moveAway("n1")
	must(t, os.Mkdir(o.DataDir, 0o700))

	restoreFails(t, "another file", o, file, RestoreOptions{SHA256: strings.Repeat("0", 64)}, "is not the file that you kept the sum of")
	restoreFails(t, "another log", o, file, RestoreOptions{AuditRoot: "AAAA"}, "the root of the audit log in the snapshot is "+saved.AuditRoot)
	restoreFails(t, "damage", o, file[:len(file)-1], RestoreOptions{}, "cut short")
	restoreFails(t, "bad words", o, file, RestoreOptions{Reason: "a\u202eb"}, "U+202E")
	restoreFails(t, "too many words", o, file, RestoreOptions{Reason: strings.Repeat("x", approval.MaxReason)}, "at most")
	restoreFails(t, "no entries", o, without, RestoreOptions{}, "say where they are")
	restoreFails(t, "entries twice", o, file, RestoreOptions{Entries: was}, "leave "+was+" out")
	restoreFails(t, "entries from nowhere", o, without, RestoreOptions{Entries: t.TempDir()}, "missing")
	restoreFails(t, "a day that never comes", o, file, RestoreOptions{LostUntil: time.Now().Add(48 * time.Hour)}, "until then nobody would get anything")
	slow := o
	slow.Now = func() time.Time { return time.Now().Add(-2 * time.Hour) }
	restoreFails(t, "a clock that is behind", slow, file, RestoreOptions{}, "set the clock")

	theirs := newOffline(t, 1)
	other := o
	other.Node, other.Manifest = theirs.nodes[0], theirs.manifest
	restoreFails(t, "another cluster's", other, file, RestoreOptions{}, "and the manifest of "+theirs.manifest.Cluster)

	if _, err := Restore(o, bytes.NewReader(without), RestoreOptions{Entries: was}); err != nil {
		t.Errorf("with the entries of another node: %v", err)
	}
	must(t, os.RemoveAll(o.DataDir))
	done, err := Restore(o, bytes.NewReader(without), RestoreOptions{WithoutEntries: true})
	if err != nil || done.EntriesMissing != done.Snapshot.AuditSize || done.EntriesMissing == 0 {
		t.Errorf("without entries: %+v, %v", done, err)
	}
	if _, err := Restore(o, bytes.NewReader(file), RestoreOptions{}); !errors.Is(err, raftstore.ErrNotEmpty) {
		t.Errorf("over what is there: %v", err)
	}
}

// TestRestoreOfALaterRelease: what commands led to that this release does not know, it
// does not go on from.
func TestRestoreOfALaterRelease(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(cfg *Config) { cfg.speaks = approval.Next })
	c.until("the cluster speaks the next version", func() bool { return c.leader().n.version.Load() == approval.Next })
	c.granted()
	path, saved := c.save(c.as("user/ann"), true)
	file, err := os.ReadFile(path)
	must(t, err)
	o := c.stopped("n1")
	c.moveAway("n1")
	if saved.Commands != approval.Next {
		t.Fatalf("%+v", saved)
	}
	restoreFails(t, "a later release's", o, file, RestoreOptions{}, "install the one that the other nodes run")
}

// TestRestoreOfAnEarlierRelease: a cluster comes back from a snapshot that the release
// before this one took. The epoch begins in that release's commands, and only then
// is the next version agreed on.
func TestRestoreOfAnEarlierRelease(t *testing.T) {
	t.Parallel()
	const earlier = approval.Version - 1
	var upgraded atomic.Bool
	c := newCluster(t, func(cfg *Config) {
		if cfg.Skew = 100 * time.Millisecond; !upgraded.Load() {
			cfg.speaks = earlier
		}
	})
	r := c.granted()
	path, saved := c.save(c.as("user/ann"), true)
	if saved.Commands != earlier {
		t.Fatalf("%+v", saved)
	}
	for _, id := range []string{"n1", "n2", "n3"} {
		c.halt(id)
		c.moveAway(id)
	}
	snapshot, err := os.Open(path)
	must(t, err)
	defer func() { must(t, snapshot.Close()) }()
	_, err = Restore(c.unstarted("n2"), snapshot, RestoreOptions{Reason: "a fire"})
	must(t, err)
	upgraded.Store(true)
	c.start("n2")
	alice := c.client(c.identity(t, "spiffe://acme.test/user/alice"), c.urls()...)
	csr, _ := newCSR(t)
	if _, err := alice.GrantCertificate(t.Context(), r.ID, csr); err == nil {
		t.Error("a certificate for a grant of before")
	}
	c.granted()
	for _, id := range []string{"n1", "n3"} {
		c.rejoin(id)
	}
	c.until("the cluster speaks this release's version", func() bool { return c.leader().n.version.Load() == approval.Version })
	c.granted()
	c.check()
}

// TestRecoverACluster: one node of three goes on with all that it has.
func TestRecoverACluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(cfg *Config) { cfg.Skew = 100 * time.Millisecond })
	live, revoked := c.granted(), c.granted()
	_, err := c.as("user/alice").RevokeGrant(t.Context(), revoked.ID, "stolen")
	must(t, err)
	last := c.leading().Store().Index()
	c.until("n1 has it all", func() bool { return c.node("n1").Store().Index() >= last })
	leaves := len(c.leaves())
	o := c.unstarted("n1")
	opts := RecoverOptions{Lost: []string{"n3", "n2"}, Reason: "a fire"}
	if _, err := Recover(o, opts); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("while it runs: %v", err)
	}
	for _, id := range []string{"n2", "n3", "n1"} {
		c.halt(id)
	}
	if _, err := Recover(o, RecoverOptions{Lost: opts.Lost}); !errors.Is(err, ErrRefused) {
		t.Errorf("without a reason: %v", err)
	}
	survey, err := o.Survey()
	if err != nil || survey.Node != "n1" || survey.Index < last || strings.Join(survey.Voters, " ") != "n1 n2 n3" {
		t.Errorf("%+v, %v", survey, err)
	}
	done, err := Recover(o, opts)
	must(t, err)
	if done.Index != survey.Index || done.Epoch != 2 || done.EntriesMissing != 0 || int(done.Entries) < leaves || strings.Join(done.Others, " ") != "n2 n3" {
		t.Errorf("%+v", done)
	}
	c.start("n1")
	alice := c.client(c.identity(t, "spiffe://acme.test/user/alice"), c.urls()...)
	csr, _ := newCSR(t)
	for _, r := range []api.Request{live, revoked} {
		if _, err := alice.GrantCertificate(t.Context(), r.ID, csr); err == nil {
			t.Errorf("a certificate for a grant of before: %s", r.ID)
		}
	}
	c.granted()
	if line := c.leaves()[done.Entries]; !strings.Contains(line, string(approval.KindBeginEpoch)) {
		t.Errorf("after what there was comes %s", line)
	}
	c.moveAway("n2")
	c.rejoin("n2")
	if _, err := c.as("user/ann").RemoveNode(t.Context(), "n3", api.RemoveNodeInput{Reason: "burned"}); err != nil {
		t.Errorf("the node that is gone: %v", err)
	}
	c.check()
	c.checkAudit(t)
}

// TestRestoreOnANewMachine: all nodes are gone, with their keys. A node that the
// snapshot does not know comes back with it, since a root says that it is one; one of
// an old name with new keys does not.
func TestRestoreOnANewMachine(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(cfg *Config) { cfg.Skew = 100 * time.Millisecond })
	c.granted()
	path, _ := c.save(c.as("user/ann"), true)
	for _, id := range []string{"n1", "n2", "n3"} {
		c.halt(id)
	}
	file, err := os.ReadFile(path)
	must(t, err)
	o := c.unstarted("n1")
	c.moveAway("n1")
	for i, e := range o.Manifest.Nodes { // as if it had been signed with new keys
		if e.ID == "n1" {
			o.Manifest.Nodes = append([]ca.NodeEntry(nil), o.Manifest.Nodes...)
			o.Manifest.Nodes[i].Key = o.Manifest.Nodes[(i+1)%3].Key
		}
	}
	restoreFails(t, "an old name with new keys", o, file, RestoreOptions{}, "does not exchange a node's keys")

	old := c.unstarted("n2").Manifest
	c.sign("n4")
	c.people = map[string]*api.Client{} // who know of n4
	n4, _ := c.manifest.Node("n4")
	o = c.unstarted("n4")
	stale := o
	stale.Manifest.Sequence = old.Sequence
	restoreFails(t, "an old manifest", stale, file, RestoreOptions{}, "sign-node --add")
	lacking := o
	lacking.Manifest.Nodes = []ca.NodeEntry{n4}
	restoreFails(t, "a manifest without the old nodes", lacking, file, RestoreOptions{}, "lacks node n1")

	done, err := Restore(o, bytes.NewReader(file), RestoreOptions{})
	must(t, err)
	if !done.Introduced || strings.Join(done.Others, " ") != "n1 n2 n3" {
		t.Errorf("%+v", done)
	}
	c.start("n4")
	c.granted()
	for _, gone := range []string{"n1", "n2", "n3"} {
		_, err := c.as("user/ann").RemoveNode(t.Context(), gone, api.RemoveNodeInput{Reason: "burned"})
		must(t, err)
	}
	c.granted()
	cl, err := c.as("user/ann").Cluster(t.Context())
	if err != nil || cl.Epoch != 2 || len(cl.Nodes) != 1 || cl.Nodes[0].ID != "n4" {
		t.Errorf("%+v, %v", cl, err)
	}
	c.check()
	c.checkAudit(t)
}
