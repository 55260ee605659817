package approval

import (
	"errors"
	"testing"
	"time"
)

// TestVersions has an old and a new machine apply one log. Until all have agreed
// on the new version they come to the same, byte for byte; from then on the new
// one accepts it, and the old one has no place among them.
func TestVersions(t *testing.T) {
	before, after := &Machine{}, &Machine{Speaks: Next}
	a, b := newMemory(), newMemory()
	w := &world{tb: t, a: a, b: b, now: epochStart, node: "n1"}
	both := func(c Command) (x, y Result) {
		t.Helper()
		data, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		w.index++
		return before.Apply(a, w.index, data), after.Apply(b, w.index, data)
	}
	same := func(what string, c Command, want error) {
		t.Helper()
		x, y := both(c)
		if !sameResult(x, y) || a.fingerprint() != b.fingerprint() {
			t.Errorf("%s: %+v and %+v", what, x, y)
		}
		if !errors.Is(x.Failure(), want) {
			t.Errorf("%s: %v, want %v", what, x.Failure(), want)
		}
	}
	block := func(v int) Command {
		c := w.command("ada", BlockSubject{Subject: spiffe("agent/x"), Reason: "why"})
		c.V = v
		return c
	}
	begin := w.command("", firstCommand())
	begin.V = 1
	same("bootstrap", begin, nil)
	early := w.command("", BeginEpoch{Began: w.now.Add(time.Hour).UnixMilli(), Lineage: testLineage, Reason: "why"})
	same("an epoch before version 2", early, ErrInvalid)
	early.V = 1
	same("an epoch in version 1", early, ErrInvalid)
	stranger := w.command("", signManifest(testManifest(2, "n1", "n2", "n3", "n4"), testRoot(RoleIdentity, 0)))
	stranger.V, stranger.Node = 1, "n4"
	same("a node that introduces itself before version 2", stranger, ErrDenied)
	first := w.command("", RaiseVersion{Version: 2})
	first.V = 1
	same("version 2", first, nil)
	conditional := w.command("ada", ProposeChange{ID: w.id(), Edit: Edit{Kind: EditPolicySet, YAML: "version: 2\nrules: []\n"}, BaseRevision: 1})
	conditional.V = 2
	same("a policy of the second form before version 3", conditional, ErrInvalid)
	answered := w.command("alice", CreateRequest{ID: w.id(), Answers: []Answer{{Rule: "x", Holds: true}}})
	answered.V = 2
	same("answers before version 3", answered, ErrInvalid)
	anchors := w.command("", AnchorAccess{Heads: []AnchoredHead{anchorHead("payments", 1)}})
	anchors.V = 2
	same("an anchor in version 2", anchors, ErrInvalid)
	second := w.command("", RaiseVersion{Version: 3})
	second.V = 2
	same("version 3", second, nil)
	anchors.V, anchors.ID = 3, w.id()
	same("an anchor", anchors, nil)
	glass := w.command("ada", ProposeChange{ID: w.id(), Edit: Edit{Kind: EditPolicySet, YAML: "version: 3\nrules: []\n"}, BaseRevision: 1})
	glass.V = 3
	same("a policy of the third form before version 4", glass, ErrInvalid)
	broken := w.command("alice", CreateRequest{ID: w.id(), BreakGlass: true})
	broken.V = 3
	same("a broken glass before version 4", broken, ErrInvalid)
	bundled := w.command("alice", CreateRequest{ID: w.id(), Bundles: []string{"read"}})
	bundled.V = 3
	same("a bundle before version 4", bundled, ErrInvalid)
	reviewed := w.command("alice", CloseReview{Request: w.id(), Finding: "why"})
	reviewed.V = 3
	same("a review before version 4", reviewed, ErrInvalid)
	slack := w.command("alice", DecideRequest{Request: w.id(), Hash: "x", Verdict: Approve, Slack: bobInSlack})
	slack.V = 3
	same("a decision in Slack before version 4", slack, ErrInvalid)
	account := w.command("ada", ProposeChange{ID: w.id(), Edit: Edit{Kind: EditPersonSet, Person: &Person{Name: "bob", IDs: []string{spiffe("bob")}, Slack: bobInSlack}}, BaseRevision: 1})
	account.V = 3
	same("a Slack account before version 4", account, ErrInvalid)
	escalated := w.command("", EscalateRequest{Request: w.id()})
	escalated.V = 3
	same("an escalation before version 4", escalated, ErrInvalid)
	turns := w.command("ada", ProposeChange{ID: w.id(), Edit: Edit{Kind: EditGroupSet, Group: &Group{Name: "leads", OnCall: &OnCall{Resolver: true, Otherwise: OtherwiseNobody}}}, BaseRevision: 1})
	turns.V = 3
	same("who takes turns before version 4", turns, ErrInvalid)
	duty := w.command("", SetDuty{Group: "leads"})
	duty.V = 3
	same("a hand-over before version 4", duty, ErrInvalid)
	listed := w.command("ada", ProposeChange{ID: w.id(), Edit: Edit{Kind: EditGroupSet, Group: &Group{Name: "security", Members: []string{"carol"}, Substitutes: []string{"bob"}}}, BaseRevision: 1})
	listed.V = 3
	same("substitutes before version 4", listed, ErrInvalid)
	away := w.command("carol", NameStandIn{Group: "security", By: "bob", Until: w.now.Add(time.Hour).UnixMilli(), Reason: "away"})
	away.V = 3
	same("one who stands in before version 4", away, ErrInvalid)
	back := w.command("carol", EndStandIn{Group: "security", For: "carol"})
	back.V = 3
	same("the end of it before version 4", back, ErrInvalid)
	settle := w.command("", SettleOutbox{Target: "chat", Position: 1})
	settle.V = 3
	same("a settlement in version 3", settle, ErrInvalid)
	third := w.command("", RaiseVersion{Version: 4})
	third.V = 3
	same("version 4", third, nil)
	same("a settlement", w.command("", SettleOutbox{Target: "chat", Position: 1}), nil)
	same("the version of old", w.command("ada", BlockSubject{Subject: spiffe("agent/y"), Reason: "why"}), nil)
	same("one that is not agreed on", block(Next), ErrInvalid)
	bad := w.command("", RaiseVersion{Version: Next})
	bad.V = Next
	same("raised by itself", bad, ErrInvalid)

	raise := w.command("", RaiseVersion{Version: Next})
	if x, y := both(raise); !errors.Is(x.Failure(), ErrInvalid) || y.Err != nil {
		t.Fatalf("raise: %v and %v", x.Err, y.Err)
	}
	if v, err := Read(b).Version(); v != Next || err != nil {
		t.Errorf("version %d, %v", v, err)
	}
	for _, v := range []int{Next, Version} {
		if r := after.Apply(b, w.index+1, mustEncode(t, block(v))); r.Err != nil {
			t.Errorf("version %d once it is agreed on: %v", v, r.Err)
		}
	}
	if r := before.Apply(b, w.index+1, mustEncode(t, block(Next))); !errors.Is(r.Failure(), ErrInvalid) {
		t.Errorf("the old machine: %+v", r)
	}
	if err := b.check(); err != nil {
		t.Error(err)
	}
}

// TestVersion3RevokesAsBefore: what a version means never changes. Who approved a grant and has left
// the group since may revoke it from version 4 on; a node of before refuses that, and in one cluster
// with it their states would part.
func TestVersion3RevokesAsBefore(t *testing.T) {
	for _, v := range []int{3, 4} {
		w := &world{tb: t, a: newMemory(), b: newMemory(), now: epochStart, node: "n1", v: v}
		w.must(w.apply("", firstCommand()))
		b := w.create("payments", []string{"GET /accounts/1"}, time.Hour)
		b.Subject = spiffe("alice")
		w.must(w.apply("alice", b))
		w.must(w.apply("bob", w.decide(b.ID, Approve)))
		w.change(Edit{Kind: EditGroupSet, Group: &Group{Name: "payments-owners", Members: []string{"carol", "alice", "ada"}}}, "abe", "amy")
		err := w.apply("bob", RevokeGrant{Grant: b.ID, Reason: "not mine any more"}).Failure()
		if v < 4 && !errors.Is(err, ErrDenied) || v >= 4 && err != nil {
			t.Errorf("version %d: %v", v, err)
		}
	}
}

func mustEncode(t *testing.T, c Command) []byte {
	t.Helper()
	data, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}
