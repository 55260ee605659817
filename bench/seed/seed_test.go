package seed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/internal/loopback"
	"github.com/hallpass/hallpass/raftstore"
)

// company is the seed file as ca.Init takes it.
func company(t testing.TB) *ca.Seed {
	t.Helper()
	var in struct {
		Persons []struct {
			Name string   `yaml:"name"`
			IDs  []string `yaml:"ids"`
			Owns []string `yaml:"owns"`
		} `yaml:"persons"`
		Groups []struct {
			Name    string   `yaml:"name"`
			Members []string `yaml:"members"`
		} `yaml:"groups"`
		Policy string `yaml:"policy"`
	}
	if err := yaml.Unmarshal([]byte(Company(Extra{})), &in); err != nil {
		t.Fatal(err)
	}
	out := &ca.Seed{Policy: in.Policy}
	for _, p := range in.Persons {
		out.Persons = append(out.Persons, ca.Person(p))
	}
	for _, g := range in.Groups {
		out.Groups = append(out.Groups, ca.Group(g))
	}
	return out
}

// place is a cluster that was signed and never started.
type place struct {
	dir      string
	manifest ca.Manifest
	nodes    map[string]*ca.Node
}

func newPlace(t testing.TB) *place {
	t.Helper()
	p := &place{dir: t.TempDir(), nodes: make(map[string]*ca.Node)}
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	roots := filepath.Join(p.dir, "ca")
	must(t, ca.Init(roots, ca.InitOptions{TrustDomain: td, Admins: []string{"root1", "root2", "root3"}, Seed: company(t)}))
	var requests []ca.NodeRequest
	for i, id := range []string{"n1", "n2", "n3"} {
		kept, err := loopback.Reserve()
		must(t, err)
		t.Cleanup(func() { must(t, kept.Release()) })
		r, err := ca.NewNode(p.keys(id), ca.NodeOptions{ID: id, TrustDomain: td, APIAddress: fmt.Sprintf("127.0.0.1:%d", i+1), RaftAddress: kept.Address()})
		must(t, err)
		requests = append(requests, r)
	}
	var err error
	p.manifest, err = ca.SignNodes(roots, requests, ca.SignOptions{})
	must(t, err)
	for _, n := range p.manifest.Nodes {
		p.nodes[n.ID], err = ca.LoadNode(p.keys(n.ID), p.manifest)
		must(t, err)
	}
	return p
}

func (p *place) keys(id string) string { return filepath.Join(p.dir, id+"-keys") }

func (p *place) dirs() map[string]string {
	dirs := make(map[string]string)
	for _, n := range p.manifest.Nodes {
		dirs[n.ID] = filepath.Join(p.dir, n.ID)
	}
	return dirs
}

// start opens a node's store as a node does.
func (p *place) start(t testing.TB, id string, format raftstore.LogFormat) *raftstore.Store {
	t.Helper()
	cfg := raftstore.Config{
		Cluster: p.manifest.Cluster, ID: id, Dir: p.dirs()[id], Machine: &applier{}, LogFormat: format,
		// Patient, for a machine that is busy with other things.
		Timing: raftstore.Timing{Heartbeat: 2 * time.Second, Election: 2 * time.Second, Lease: time.Second},
		Key:    p.nodes[id].TransportKey, MembersRevision: approval.RosterRevision(p.manifest.Sequence),
	}
	for _, n := range p.manifest.Nodes {
		cfg.Members = append(cfg.Members, raftstore.Member{ID: n.ID, Address: n.RaftAddress, Key: n.Key})
		if n.ID != id {
			continue
		}
		var err error
		cfg.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", n.RaftAddress)
		must(t, err)
	}
	s, err := raftstore.Open(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// smallPlan is a history that a test has time for. Its log is short enough to be
// kept whole.
func smallPlan() Plan {
	return Plan{Grants: 600, Entries: 6000, Days: 5, End: time.Now().Add(-time.Minute).Truncate(time.Second), Seed: 7}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSeedIsWhatReplayMakes: the state that was seeded is the one that a node comes to which has nothing but the log,
// and the one of a node that has the snapshot and what came after it. All three make a cluster that goes on.
func TestSeedIsWhatReplayMakes(t *testing.T) {
	for _, format := range []raftstore.LogFormat{raftstore.LogBolt, raftstore.LogWAL} {
		t.Run(string(format), func(t *testing.T) {
			p := newPlace(t)
			plan := smallPlan()
			plan.Grants, plan.Entries = plan.Grants/4, plan.Entries/4 // it is replayed twice
			done, err := Cluster(t.Context(), plan, p.manifest, p.dirs(), format, nil)
			must(t, err)
			t.Logf("%+v", done)
			dirs := p.dirs()
			for _, name := range []string{"n2/state.clean", "n2/state.db", "n3/state.clean", "n3/state.db", "n3/snapshots", "n3/records"} {
				must(t, os.RemoveAll(filepath.Join(p.dir, filepath.FromSlash(name))))
			}
			stores := make(map[string]*raftstore.Store)
			for id := range dirs {
				stores[id] = p.start(t, id, format)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			at := stores["n1"].Index()
			for id, s := range stores {
				for s.Index() < at {
					if ctx.Err() != nil {
						t.Fatalf("%s is at %d of %d", id, s.Index(), at)
					}
					time.Sleep(20 * time.Millisecond)
				}
				hash, entries := stateOf(t, s)
				if hash != done.StateHash || entries != int64(done.Entries) {
					t.Errorf("%s has another state, %s with %d entries; seeded was %s with %d", id, hash, entries, done.StateHash, done.Entries)
				}
			}
			proposeTick(ctx, t, stores)
		})
	}
}

// proposeTick has the cluster that was started commit something.
func proposeTick(ctx context.Context, t *testing.T, stores map[string]*raftstore.Store) {
	t.Helper()
	data, err := approval.Command{
		V: approval.Version, ID: uuid([16]byte{6: 0x70, 8: 0x80}), Now: time.Now().Add(time.Hour).UnixMilli(), Node: "n1",
		Body: approval.Tick{RetainMS: approval.Retention.Milliseconds()},
	}.Encode()
	must(t, err)
	for ctx.Err() == nil {
		for _, s := range stores {
			if !s.IsLeader() {
				continue
			}
			if _, _, err = s.Propose(ctx, data); err == nil {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the cluster takes no command: %v", err)
}

// stateOf is the hash that nodes compare, of what a View shows.
func stateOf(t *testing.T, s *raftstore.Store) (hash string, entries int64) {
	t.Helper()
	must(t, s.View(func(r raftstore.Reader, _ uint64) (err error) {
		var sum [4]uint64
		r.Scan(nil, nil, func(k, v []byte) bool {
			h := sha256.Sum256(append(append(binary.BigEndian.AppendUint64(nil, uint64(len(k))), k...), v...))
			carry := uint64(0)
			for i := 3; i >= 0; i-- {
				sum[i], carry = bits.Add64(sum[i], binary.BigEndian.Uint64(h[8*i:]), carry)
			}
			return true
		})
		entries, err = approval.Read(r).AuditSize()
		b := binary.BigEndian.AppendUint64([]byte("hallpass state v1\x00"), uint64(entries))
		for _, w := range sum {
			b = binary.BigEndian.AppendUint64(b, w)
		}
		full := sha256.Sum256(b)
		hash = hex.EncodeToString(full[:])
		return err
	}))
	return hash, entries
}

// TestSeededLogVerifies: an auditor with nothing but a public key finds the seeded audit log whole, everything that must
// hold of the state holds, and the history has what a history has.
func TestSeededLogVerifies(t *testing.T) {
	p := newPlace(t)
	done, err := Cluster(t.Context(), smallPlan(), p.manifest, p.dirs(), raftstore.LogBolt, nil)
	must(t, err)
	s := p.start(t, "n1", raftstore.LogBolt) // alone, and so only to look at
	var c audit.Checkpoint
	kinds := make(map[string]int)
	must(t, s.View(func(r raftstore.Reader, _ uint64) error {
		if err := approval.CheckInvariants(r); err != nil {
			return err
		}
		root, err := audit.Root(approval.Read(r), int64(done.Entries))
		c = audit.Checkpoint{Origin: audit.Origin("acme.test", 1), Size: int64(done.Entries), Root: root}
		return err
	}))
	signed, err := c.Sign(p.nodes["n1"].AuditSigner)
	must(t, err)
	verifiers, err := audit.Verifiers(p.manifest.Nodes[0].AuditKey)
	must(t, err)
	var export bytes.Buffer
	must(t, s.ReadRecords(t.Context(), 0, func(_ uint64, record []byte) bool {
		export.Write(append(bytes.Clone(record), '\n'))
		entry, err := audit.ParseEntry(record)
		must(t, err)
		kinds[entry.Kind]++
		return true
	}))
	if _, err := audit.Verify(bytes.NewReader(export.Bytes()), signed, verifiers); err != nil {
		t.Error(err)
	}
	tampered := bytes.Clone(export.Bytes())
	tampered[len(tampered)/2] ^= 1
	if _, err := audit.Verify(bytes.NewReader(tampered), signed, verifiers); err == nil {
		t.Error("a log with one bit changed verifies too")
	}
	t.Log(done, kinds)
	for _, kind := range []approval.Kind{
		approval.KindCreateRequest, approval.KindDecideRequest, approval.KindCancelRequest, approval.KindIssueGrant,
		approval.KindRevokeGrant, approval.KindReturnGrant, approval.KindTick,
	} {
		if kinds[string(kind)] < 5 {
			t.Errorf("%d entries are of %s", kinds[string(kind)], kind)
		}
	}
	plan := smallPlan()
	for what, got := range map[string][2]int{"grants": {done.Grants, plan.Grants}, "entries": {done.Entries, plan.Entries}} {
		if off := float64(got[0]) / float64(got[1]); off < 0.8 || off > 1.2 {
			t.Errorf("%d %s, and %d were planned", got[0], what, got[1])
		}
	}
	if done.Live == 0 || done.Pending == 0 {
		t.Errorf("nothing is alive or pending: %+v", done)
	}
}

// TestSeedNeedsRoom: a folder that holds something is left alone.
func TestSeedNeedsRoom(t *testing.T) {
	p := newPlace(t)
	must(t, os.MkdirAll(p.dirs()["n1"], 0o700))
	must(t, os.WriteFile(filepath.Join(p.dirs()["n1"], "raft.db"), []byte("votes"), 0o600))
	if _, err := Cluster(t.Context(), smallPlan(), p.manifest, p.dirs(), raftstore.LogBolt, nil); err == nil {
		t.Error("seeded over what was there")
	}
	text, err := os.ReadFile(filepath.Join(p.dirs()["n1"], "raft.db"))
	if err != nil || string(text) != "votes" {
		t.Errorf("what was there is now %q, %v", text, err)
	}
}

func ExampleCompany() {
	fmt.Println(len(Company(Extra{})) < 512<<10)
	// Output: true
}

// BenchmarkSeed is a few days at the density of a million grants in 400 days.
func BenchmarkSeed(b *testing.B) {
	for b.Loop() {
		p := newPlace(b)
		plan := Plan{Grants: 10_000, Entries: 100_000, Days: 4, End: time.Now(), Seed: 7}
		done, err := Cluster(b.Context(), plan, p.manifest, p.dirs(), raftstore.LogBolt, nil)
		must(b, err)
		b.ReportMetric(done.Took.Seconds()/float64(done.Entries)*1e6, "µs/entry")
		b.ReportMetric(float64(done.Commands), "commands")
	}
}
