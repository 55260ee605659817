package approval

import (
	"errors"
	"strings"
	"testing"
	"time"
)

const testLineage = "00112233445566778899aabbccddeeff"

// restored begins an epoch a minute from now.
func (w *world) restored(lineage string) BeginEpoch {
	return BeginEpoch{Began: w.now.Add(time.Minute).UnixMilli(), Lineage: lineage, Reason: "restored a snapshot"}
}

// TestInvariant12_AnEpochRevivesNothing: with the snapshot that a cluster goes on
// from, what was spent or ended after it comes back as it was before. Nothing of it
// is to be had any more.
func TestInvariant12_AnEpochRevivesNothing(t *testing.T) {
	w := newWorld(t)
	live := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(live, Approve)))
	w.must(w.apply("alice", w.issue(live)))
	unused := w.asks("alice", "agent/alice-bot", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(unused, Approve)))
	pending := w.asks("erin", "erin", "payments", "GET /accounts/**", time.Hour)
	approve := w.decide(pending, Approve)
	again := w.create("payments", []string{"HEAD /accounts/**"}, time.Hour)
	again.Subject = spiffe("erin")
	create := w.command("erin", again)
	create.Idem = &Idem{Key: "k", BodyHash: sha256Hex(nil)}
	w.must(w.applyCommand(create))
	change := w.change(Edit{Kind: EditPolicySet, YAML: defaultPolicy + "# again\n"}, "abe")
	feed, err := Read(w.a).Feed()
	if err != nil {
		t.Fatal(err)
	}

	epoch := w.restored(testLineage)
	w.must(w.apply("", epoch))
	after, err := Read(w.a).Feed()
	if err != nil || after.Epoch != 2 || int64(after.Began) != epoch.Began || after.Revision <= feed.Revision {
		t.Errorf("the feed is of epoch %d since %s, revision %d (before %d): %v", after.Epoch, after.Began, after.Revision, feed.Revision, err)
	}
	if len(after.Grants) != 1 || after.Grants[0].ID != live {
		t.Errorf("on the feed: %+v, want the grant that had a certificate", after.Grants)
	}
	for _, id := range []string{live, unused} {
		if g := w.grant(id); g.State != GrantRevoked || !strings.Contains(g.EndReason, "epoch 2 began: restored a snapshot") {
			t.Errorf("grant %s is %s: %q", id, g.State, g.EndReason)
		}
		if r := w.apply(w.grant(id).Subject, w.issue(id)); !errors.Is(r.Failure(), ErrConflict) {
			t.Errorf("a certificate of grant %s: %v", id, r.Failure())
		}
	}
	if r := w.apply("bob", approve); !errors.Is(r.Failure(), ErrExpired) && !errors.Is(r.Failure(), ErrConflict) {
		t.Errorf("an approval of a request of before: %v", r.Failure())
	}
	if r := w.apply("amy", w.decideChange(change, Approve)); r.Err == nil {
		t.Error("a change of before was approved")
	}
	if r := w.applyCommand(create); r.Replayed || !errors.Is(r.Failure(), ErrStale) && !errors.Is(r.Failure(), ErrConflict) {
		t.Errorf("the call of before: %+v", r)
	}
	leaf, err := w.leaf(int(w.leaves()) - 1)
	const counts = `"changes":1,"epoch":2,"grants":2,`
	if err != nil || leaf.Kind != string(KindBeginEpoch) || leaf.Object != "acme" ||
		!strings.Contains(string(leaf.Details), counts) || !strings.Contains(string(leaf.Details), `"requests":2,"results":1`) {
		t.Errorf("the leaf says %s of %s: %s, %v", leaf.Kind, leaf.Object, leaf.Details, err)
	}
	// A proxy would refuse a grant with an id of before.
	early := w.create("payments", []string{"GET /accounts/**"}, time.Hour)
	early.Subject = spiffe("alice")
	if r := w.apply("alice", early); !errors.Is(r.Failure(), ErrStale) {
		t.Errorf("a request whose id is older than the epoch: %v", r.Failure())
	}
	w.now = time.UnixMilli(epoch.Began)
	w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
}

// TestEpochs: one epoch a lineage, later than all before it, and by the cluster.
func TestEpochs(t *testing.T) {
	w := newWorld(t)
	good := w.restored(testLineage)
	for name, bad := range map[string]BeginEpoch{
		"now":            {Began: w.now.UnixMilli(), Lineage: testLineage, Reason: "why"},
		"never":          {Began: maxNow + 1, Lineage: testLineage, Reason: "why"},
		"no lineage":     {Began: good.Began, Reason: "why"},
		"odd lineage":    {Began: good.Began, Lineage: testLineage[1:], Reason: "why"},
		"upper case":     {Began: good.Began, Lineage: strings.ToUpper(testLineage), Reason: "why"},
		"a long lineage": {Began: good.Began, Lineage: strings.Repeat(testLineage, 3), Reason: "why"},
		"no reason":      {Began: good.Began, Lineage: testLineage},
	} {
		if r := w.apply("", bad); !errors.Is(r.Failure(), ErrInvalid) {
			t.Errorf("%s: %v", name, r.Failure())
		}
	}
	if r := w.apply("ada", good); !errors.Is(r.Failure(), ErrDenied) {
		t.Errorf("by an admin: %v", r.Failure())
	}
	w.must(w.apply("", good))
	if r := w.must(w.apply("", w.restored(testLineage))); r.Changed {
		t.Error("one lineage began two epochs")
	}
	w.now = w.now.Add(2 * time.Minute)
	w.must(w.apply("", w.restored(testLineage[2:])))
	if c, err := Read(w.a).Cluster(); err != nil || c.Epoch != 3 || c.Lineage != testLineage[2:] {
		t.Errorf("epoch %d of %s, %v", c.Epoch, c.Lineage, err)
	}
}
