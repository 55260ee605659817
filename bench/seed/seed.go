package seed

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

// batchMost is how many commands are applied in one transaction: as many as raft
// hands over at most.
const batchMost = 512

// Done is what a cluster has been given.
type Done struct {
	Grants, Live, Requests, Pending, Entries int
	Commands                                 int
	Took                                     time.Duration // of applying them
	SnapshotTook                             time.Duration
	StateHash                                string
}

// Cluster makes the data directories of a cluster's first members: of those in the
// manifest, each in the folder that dirs has for it. With a progress it is told of
// how many entries there are, every now and then.
func Cluster(ctx context.Context, p Plan, m ca.Manifest, dirs map[string]string, format raftstore.LogFormat, progress func(Done)) (Done, error) {
	w, err := newWriter(p, m, dirs, format, progress)
	if err != nil {
		return Done{}, err
	}
	if err := w.run(ctx); err != nil {
		return w.done, errors.Join(err, w.store.Close())
	}
	return w.done, w.close()
}

// applier is approval's machine as the store hosts it.
type applier struct{ approval.Machine }

// Apply implements raftstore.Machine.
func (a *applier) Apply(tx raftstore.Tx, index uint64, data []byte) any {
	return a.Machine.Apply(tx, index, data)
}

// CheckRecords implements raftstore.Machine.
func (a *applier) CheckRecords(r raftstore.Reader, first uint64, records [][]byte) error {
	return approval.CheckRecords(r, first, records)
}

// writer applies a history.
type writer struct {
	plan     Plan
	manifest ca.Manifest
	configs  []raftstore.Config
	machine  *applier
	store    *raftstore.Seeder
	history  *history
	progress func(Done)

	commands [][]byte
	about    []*session // by command; nil for none
	policy   uint64
	people   uint64
	done     Done
	begin    time.Time
	snapped  bool
}

func newWriter(p Plan, m ca.Manifest, dirs map[string]string, format raftstore.LogFormat, progress func(Done)) (*writer, error) {
	w := &writer{plan: p, manifest: m, machine: &applier{}, progress: progress, begin: time.Now()}
	var members []raftstore.Member
	var nodes []string
	issuers := make(map[string]string)
	for _, n := range m.Nodes {
		members = append(members, raftstore.Member{ID: n.ID, Address: n.RaftAddress, Key: n.Key})
		nodes = append(nodes, n.ID)
		sum := sha256.Sum256(n.GrantIssuer.Raw)
		issuers[n.ID] = hex.EncodeToString(sum[:])
	}
	for _, n := range m.Nodes {
		w.configs = append(w.configs, raftstore.Config{
			Cluster: m.Cluster, ID: n.ID, Dir: dirs[n.ID], Machine: w.machine, Members: members, LogFormat: format,
			MembersRevision: approval.RosterRevision(m.Sequence), Logger: slog.New(slog.DiscardHandler),
		})
	}
	w.history = newHistory(p, nodes, issuers)
	var err error
	w.store, err = raftstore.NewSeeder(w.configs[0])
	return w, err
}

func (w *writer) run(ctx context.Context) error {
	if err := w.bootstrap(ctx); err != nil {
		return err
	}
	for told := time.Now(); ; {
		e, ok, waits := w.history.next()
		if !ok && !waits {
			break
		}
		if waits {
			if err := w.flush(ctx); err != nil {
				return err
			}
			continue
		}
		if err := w.add(e); err != nil {
			return err
		}
		if len(w.commands) < batchMost {
			continue
		}
		if err := w.flush(ctx); err != nil {
			return err
		}
		if w.progress != nil && time.Since(told) > 10*time.Second {
			told = time.Now()
			w.done.Took = time.Since(w.begin)
			w.progress(w.done)
		}
	}
	return w.flush(ctx)
}

// bootstrap is the first command, as the node that leads first makes it.
func (w *writer) bootstrap(ctx context.Context) error {
	m := w.manifest
	body := approval.Bootstrap{
		Cluster: m.Cluster, TrustDomain: m.TrustDomain.Name(), GrantTrustDomain: m.GrantTrustDomain.Name(),
		Policy: m.Policy, Manifest: m.Sequence, IdentityRoots: raw(m.IdentityRoots), GrantRoots: raw(m.GrantRoots),
	}
	for _, d := range m.RootDocuments {
		body.RootDocuments = append(body.RootDocuments, []byte(d))
	}
	for _, p := range m.Persons {
		body.Persons = append(body.Persons, approval.Person{Name: p.Name, IDs: p.IDs, Owns: p.Owns})
	}
	for _, g := range m.Groups {
		body.Groups = append(body.Groups, approval.Group{Name: g.Name, Members: g.Members})
	}
	for _, e := range m.Nodes {
		body.Nodes = append(body.Nodes, approval.BootstrapNode{
			ID: e.ID, Key: ed25519.PublicKey(e.Key), AuditKey: e.AuditKey, RaftAddress: e.RaftAddress, APIAddress: e.APIAddress,
			IdentityIssuer: e.IdentityIssuer.Raw, GrantIssuer: e.GrantIssuer.Raw,
		})
	}
	at := w.history.begin
	if err := w.propose(approval.Command{
		V: approval.Version, ID: w.history.id(at), Now: at.UnixMilli(), Node: m.Nodes[0].ID, Body: body,
	}, nil); err != nil {
		return err
	}
	if err := w.flush(ctx); err != nil {
		return err
	}
	return w.store.View(func(r raftstore.Reader) error {
		c, err := approval.Read(r).Cluster()
		w.policy, w.people = c.PolicyRevision, c.DirectoryRevision
		return err
	})
}

func raw(all []*x509.Certificate) (der [][]byte) {
	for _, c := range all {
		der = append(der, c.Raw)
	}
	return der
}

// add puts what an event has somebody propose into the batch.
func (w *writer) add(e event) error {
	c, s := w.history.command(e, func() (uint64, uint64) { return w.policy, w.people })
	if c.Body == nil {
		return nil
	}
	return w.propose(c, s)
}

func (w *writer) propose(c approval.Command, s *session) error {
	data, err := c.Encode()
	if err != nil {
		return err
	}
	w.commands, w.about = append(w.commands, data), append(w.about, s)
	return nil
}

// flush applies the batch.
func (w *writer) flush(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	results, err := w.store.Apply(w.commands)
	if err != nil {
		return err
	}
	for i, result := range results {
		r, _ := result.(approval.Result) // it is nothing else
		if err := w.take(r, w.about[i]); err != nil {
			return fmt.Errorf("command %d of the history: %w", w.done.Commands+i, err)
		}
	}
	w.done.Commands += len(w.commands)
	w.commands, w.about = nil, w.about[:0] // the store keeps the end of the log
	w.history.batch++
	w.history.entries = w.done.Entries
	if !w.snapped && w.done.Entries >= w.plan.Entries-snapshotBefore {
		return w.snapshot()
	}
	return nil
}

// snapshotBefore is how many entries a node has had since its last snapshot: from
// none to 65,536, as it comes.
const snapshotBefore = 32 << 10

func (w *writer) snapshot() error {
	begin := time.Now()
	w.snapped = true
	err := w.store.Snapshot()
	w.done.SnapshotTook = time.Since(begin)
	return err
}

// take counts what a command came to. A history has nothing refused.
func (w *writer) take(r approval.Result, s *session) error {
	if r.Err != nil {
		return r.Err
	}
	if r.Changed {
		w.done.Entries++
	}
	switch o := r.Object.(type) {
	case approval.Request:
		w.took(o, s)
	case approval.Grant:
		w.done.Live-- // returned or revoked
	case approval.Ticked:
		w.done.Live -= len(o.Grants)
		w.done.Pending -= len(o.Requests)
	}
	return nil
}

func (w *writer) took(r approval.Request, s *session) {
	s.hash = r.Hash()
	if r.Ended == 0 && len(r.Decisions) == 0 {
		w.done.Requests++
		w.done.Pending++
	}
	if r.Ended != 0 {
		w.done.Pending--
	}
	if r.State == approval.RequestApproved {
		w.done.Grants++
		w.done.Live++
	}
}

func (w *writer) close() error {
	w.done.Took = time.Since(w.begin)
	if !w.snapped {
		if err := w.snapshot(); err != nil {
			return errors.Join(err, w.store.Close())
		}
	}
	hash, err := w.store.StateHash()
	w.done.StateHash = hex.EncodeToString(hash[:])
	if err := errors.Join(err, w.store.Close()); err != nil {
		return err
	}
	for _, cfg := range w.configs[1:] {
		if err := w.store.Replicate(cfg); err != nil {
			return err
		}
	}
	return nil
}
