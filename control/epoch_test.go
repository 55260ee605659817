package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

const someLineage = "00112233445566778899aabbccddeeff"

// TestInvariant12_ARestoreRevivesNothing: nodes that come back with word of a new
// epoch begin it before they do anything else. A grant of before gets no further
// certificate, its id is older than what the feed tells the proxies, and nothing new
// is made that could be taken for one of before.
func TestInvariant12_ARestoreRevivesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	old := c.granted()
	csr, _ := newCSR(t)
	_, err := c.as("user/alice").GrantCertificate(t.Context(), old.ID, csr)
	must(t, err)
	pending, err := c.as("user/alice").CreateRequest(t.Context(), readAccounts())
	must(t, err)
	before, err := c.as("user/bob").AuditCheckpoint(t.Context())
	must(t, err)

	var ids []string
	for _, r := range c.live() {
		ids = append(ids, r.ID())
	}
	word := NewEpoch{Began: EpochBegins(time.Now(), time.Now(), 5*time.Second), Lineage: someLineage, Reason: "restored a snapshot"}
	for _, id := range ids {
		dir := c.node(id).dir
		c.halt(id)
		must(t, WriteNewEpoch(dir, word))
	}
	for _, id := range ids {
		c.start(id)
	}
	// As the very first call, through whatever node.
	alice := c.client(c.identity(t, "spiffe://acme.test/user/alice"), c.urls()...)
	if _, err := alice.GrantCertificate(t.Context(), old.ID, csr); err == nil {
		t.Error("a grant of before has a certificate of the new epoch")
	} else {
		wantProblem(t, err, api.CodeConflict)
	}
	var made api.Request
	tooEarly, asked := 0, time.Now()
	c.until("the epoch has begun, and something new is made", func() bool {
		var err error
		if made, err = c.once(c.leader(), "user/alice").CreateRequest(t.Context(), readAccounts()); err == nil {
			return true
		}
		if p := wantUnavailable(t, err); strings.Contains(p.Detail, "makes nothing new before") {
			tooEarly++
		}
		return false
	})
	if now := time.Now(); now.Before(word.Began) || tooEarly == 0 && asked.Before(word.Began) {
		t.Errorf("made at %s, asked from %s, the epoch began at %s; refused %d times", now, asked, word.Began, tooEarly)
	}
	if from := epochID(word.Began); old.ID >= from || pending.ID >= from || made.ID < from {
		t.Errorf("ids %s and %s of before, %s of after %s", old.ID, pending.ID, made.ID, word.Began)
	}
	bob := c.as("user/bob")
	if _, err := bob.DecideRequest(t.Context(), pending.ID, api.DecisionInput{Decision: "approve", Hash: pending.Hash}); err == nil {
		t.Error("a request of before was approved")
	}
	c.until("each node's feed says so", func() bool {
		for _, r := range c.live() {
			feed, err := c.once(r, "user/bob").Revocations(t.Context())
			if err != nil || feed.Epoch != 2 || feed.EpochBegan == nil || !feed.EpochBegan.Equal(word.Began) {
				return false
			}
		}
		return true
	})
	after, err := bob.AuditCheckpoint(t.Context())
	must(t, err)
	if !strings.HasPrefix(before.Checkpoint, "acme.test/hallpass/epoch/1\n") || !strings.HasPrefix(after.Checkpoint, "acme.test/hallpass/epoch/2\n") {
		t.Errorf("checkpoints %q and %q", before.Checkpoint, after.Checkpoint)
	}
	if cl, err := c.as("user/ann").Cluster(t.Context()); err != nil || cl.Epoch != 2 || cl.EpochBegan == nil {
		t.Errorf("the cluster says %+v, %v", cl, err)
	}
	if n := c.kinds(approval.KindBeginEpoch); n != 1 {
		t.Errorf("%d epochs were begun", n)
	}
	if _, err := os.Stat(filepath.Join(c.leader().dir, epochFile)); !os.IsNotExist(err) {
		t.Errorf("the word is still there: %v", err)
	}
	c.check()
	c.checkAudit(t)
}

// epochID is the smallest UUIDv7 of a moment.
func epochID(at time.Time) string {
	const digits = "0123456789abcdef"
	ms, id := at.UnixMilli(), []byte("00000000-0000-7000-8000-000000000000")
	for i, at := range []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12} {
		id[at] = digits[ms>>(4*(11-i))&15]
	}
	return string(id)
}

// kinds counts the audit log's entries of a kind.
func (c *cluster) kinds(kind approval.Kind) (n int) {
	for _, leaf := range c.leaves() {
		if strings.HasPrefix(leaf, string(kind)+" ") {
			n++
		}
	}
	return n
}

// TestBrokenWordOfAnEpoch: a node that cannot read what a restore left does not go
// on as if nothing had been restored.
func TestBrokenWordOfAnEpoch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	id := c.follower().ID()
	path := filepath.Join(c.node(id).dir, epochFile)
	c.halt(id)
	for name, text := range map[string]string{
		"empty": "", "half": `{"began":"2026-0`, "nothing in it": "{}", "more": `{"began":"2026-01-02T03:04:05Z","lineage":"00","reason":"x","x":1}`,
	} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if err := c.startFails(id); !strings.Contains(err.Error(), "restore, or recover, again") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
