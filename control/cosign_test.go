package control

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallpass/hallpass/audit"
)

// auditors is what an auditor of the cluster knows: the nodes' public keys.
func (c *cluster) auditors() note.Verifiers {
	c.t.Helper()
	var keys []string
	for _, e := range c.manifest.Nodes {
		keys = append(keys, e.AuditKey)
	}
	v, err := audit.Verifiers(keys...)
	must(c.t, err)
	return v
}

// cosignedBy asks for the log's head until k nodes have cosigned it, and says who.
func (c *cluster) cosignedBy(k int) (head audit.Checkpoint, signed []byte, who []string) {
	c.t.Helper()
	c.until("enough nodes have cosigned", func() bool {
		cp, err := c.as("user/bob").AuditCheckpoint(c.t.Context())
		must(c.t, err)
		signed = []byte(cp.Checkpoint)
		head, who = c.cosigners(signed)
		return len(who) >= k
	})
	return head, signed, who
}

func (c *cluster) cosigners(signed []byte) (audit.Checkpoint, []string) {
	c.t.Helper()
	head, err := audit.ParseCheckpoint(signed, c.auditors())
	must(c.t, err)
	r, _, err := audit.Growth{Older: signed, Newer: signed, Verifiers: c.auditors()}.Verify()
	must(c.t, err)
	return head, r.Cosigners
}

// TestCosignedCheckpoint: each node that has the log's head cosigns it, and one
// that is away does not keep the others from it.
func TestCosignedCheckpoint(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	first, _, who := c.cosignedBy(3)
	if len(who) != 3 || first.Size == 0 {
		t.Errorf("%+v is cosigned by %v", first, who)
	}
	gone := c.follower().ID()
	c.crash(gone)
	c.granted()
	next, _, who := c.cosignedBy(2)
	if next.Size <= first.Size || slices.ContainsFunc(who, func(name string) bool { return strings.HasSuffix(name, "/"+gone) }) {
		t.Errorf("%+v is cosigned by %v, and %s is gone", next, who, gone)
	}
	c.start(gone)
	if _, _, who := c.cosignedBy(3); len(who) != 3 {
		t.Errorf("cosigned by %v", who)
	}
	for _, r := range c.live() {
		if f := finding(r.Health(), "cosigning"); f.Status != statusOK {
			t.Errorf("%s: %+v", r.ID(), f)
		}
	}
	c.check()
}

// TestHangingUpKeepsNobodyFromCosigning: a caller that asks for the head and goes
// away at once, again and again, leaves no head that others are then given.
func TestHangingUpKeepsNobodyFromCosigning(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	c.cosignedBy(3)
	c.granted()
	n := c.leader().n
	head, err := n.ownHead(t.Context(), -1)
	must(t, err)
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	for range 10 { // either of the turn and the end may be seen first
		if _, _, err := n.publish(gone, head); err == nil {
			t.Fatal("published for nobody")
		}
	}
	if _, signed, ok := n.heads.enough(head); ok {
		t.Errorf("others are given\n%s", signed)
	}
	c.cosignedBy(3)
}

// shows is what a node answers when another, or who stole its keys, asks it to
// cosign a head.
func (c *cluster) shows(t *testing.T, as, at *running, head audit.Checkpoint, signer note.Signer) (int, cosigned) {
	t.Helper()
	signed, err := head.Sign(signer)
	must(t, err)
	return c.showsText(t, as, at, string(signed))
}

func (c *cluster) showsText(t *testing.T, as, at *running, text string) (status int, answer cosigned) {
	t.Helper()
	status, body := c.told(t, as, at, http.Header{}, http.MethodPost, pathCosign, text)
	must(t, json.Unmarshal([]byte(body), &answer))
	return status, answer
}

// TestForkedHeadIsNotCosigned: a leader that shows another tree than the one that
// it replicated, whole or in part, gets no other node's cosignature, and both the
// node that was asked and its log say so.
func TestForkedHeadIsNotCosigned(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	head, _, _ := c.cosignedBy(3)
	leader, other := c.leader(), c.follower()
	signer := leader.n.node.AuditSigner

	forked := head
	forked.Root[7] ^= 1
	status, answer := c.shows(t, leader, other, forked, signer)
	if status != http.StatusConflict || answer.Line != "" || !strings.Contains(answer.Refused, "another root") {
		t.Errorf("another root: %d %+v", status, answer)
	}
	if f := finding(other.Health(), "cosigning"); f.Status != statusWarn || !strings.Contains(f.Detail, leader.ID()+" signed another history") {
		t.Errorf("the node that was asked says %+v", f)
	}
	if said := c.logs.String(); !strings.Contains(said, "asked to cosign another history") || !strings.Contains(said, forked.Root.String()) {
		t.Error("its log does not hold the evidence")
	}

	for name, change := range map[string]func(*audit.Checkpoint){
		"entries that nobody has": func(c *audit.Checkpoint) { c.Size += 1000 },
		"another epoch":           func(c *audit.Checkpoint) { c.Origin = audit.Origin("acme.test", 2) },
		"fewer entries":           func(c *audit.Checkpoint) { c.Size, c.Root = 1, rootAt(t, leader, 1) },
	} {
		bad := head
		change(&bad)
		if status, answer := c.shows(t, leader, other, bad, signer); status == http.StatusOK || answer.Line != "" {
			t.Errorf("%s: %d %+v", name, status, answer)
		}
	}
	// Only what the node that asks has signed: it is the evidence.
	if status, answer := c.shows(t, leader, other, head, other.n.node.AuditSigner); status != http.StatusBadRequest || answer.Line != "" {
		t.Errorf("signed by another: %d %+v", status, answer)
	}
	for _, text := range []string{"", "hello", strings.Repeat("x", 2*maxCosign)} {
		if status, answer := c.showsText(t, leader, other, text); status != http.StatusBadRequest || answer.Line != "" {
			t.Errorf("%.10q: %d %+v", text, status, answer)
		}
	}
	c.check()
}

func rootAt(t *testing.T, r *running, size int64) (root [32]byte) {
	t.Helper()
	head, err := r.n.ownHead(t.Context(), size)
	must(t, err)
	return head.Root
}

// TestHeadsOfEverySize: a node knows the head that it had at every size, also
// where the tree's inside is gone from its state.
func TestHeadsOfEverySize(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	alice := c.as("user/alice")
	for c.leader().Store().Status().Records < audit.Chunk+20 {
		r, err := alice.CreateRequest(t.Context(), readAccounts())
		must(t, err)
		_, err = alice.CancelRequest(t.Context(), r.ID)
		must(t, err)
	}
	r := c.leader()
	var all audit.Memory
	size := int64(0)
	must(t, r.n.bodies(t.Context(), 0, audit.Chunk+20, func(_ uint64, body []byte) bool {
		var err error
		size, err = audit.Append(&all, size, body)
		must(t, err)
		return true
	}))
	for at := range size + 1 {
		want, err := audit.Root(&all, at)
		must(t, err)
		if got, err := r.n.ownHead(t.Context(), at); err != nil || got.Root != want || got.Size != at {
			t.Fatalf("the head at %d entries: %+v, %v", at, got, err)
		}
	}
}

// TestCosignerRemembers: what a node cosigned it goes by after a restart. Put back
// by a thief, its file makes it cosign a smaller head of its own tree, and still no
// other tree; one that is not as the node left it makes it cosign nothing.
func TestCosignerRemembers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.granted()
	old, _, _ := c.cosignedBy(3)
	id := c.follower().ID()
	path := filepath.Join(c.dir, "data", id, cosignedFile)
	kept, err := os.ReadFile(path)
	must(t, err)
	if head, err := audit.ParseCheckpoint(kept, c.auditors()); err != nil || head.Size > old.Size {
		t.Fatalf("%s has %+v, %v", path, head, err)
	}
	older, err := audit.ParseCheckpoint(kept, c.auditors())
	must(t, err)
	c.granted()
	newer, _, _ := c.cosignedBy(3)

	again := func() (n *running) {
		t.Helper()
		c.halt(id)
		n = c.start(id)
		c.awaitReady()
		return n
	}
	asks := func(at *running, head audit.Checkpoint) (status int, answer cosigned) {
		t.Helper()
		var by *running
		for _, r := range c.live() {
			if r.ID() != id {
				by = r
			}
		}
		c.until("the node answers", func() bool {
			status, answer = c.shows(t, by, at, head, by.n.node.AuditSigner)
			return status != http.StatusServiceUnavailable
		})
		return status, answer
	}
	if status, answer := asks(again(), older); status != http.StatusConflict || !strings.Contains(answer.Refused, "a larger one") {
		t.Errorf("a smaller one after a restart: %d %+v", status, answer)
	}

	c.halt(id)
	must(t, os.WriteFile(path, kept, 0o600))
	rolledBack := again()
	if status, answer := asks(rolledBack, older); status != http.StatusOK {
		t.Errorf("its file put back: %d %+v", status, answer)
	}
	forked := newer
	forked.Root[0] ^= 1
	if status, answer := asks(rolledBack, forked); status != http.StatusConflict || answer.Line != "" {
		t.Errorf("its file put back, another tree: %d %+v", status, answer)
	}

	c.halt(id)
	must(t, os.WriteFile(path, []byte(strings.Replace(string(kept), "\n", "x\n", 1)), 0o600))
	broken := again()
	if f := finding(broken.Health(), "cosigning"); f.Status != statusWarn || !strings.Contains(f.Detail, cosignedFile) {
		t.Errorf("its file changed: %+v", f)
	}
	c.granted()
	if _, _, who := c.cosignedBy(2); slices.ContainsFunc(who, func(name string) bool { return strings.HasSuffix(name, "/"+id) }) {
		t.Errorf("its file changed: cosigned by %v", who)
	}
}
