package approval

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// refuse applies a command that must be refused as sentinel says.
func (w *world) refuse(sentinel error, actor string, body Body) {
	w.tb.Helper()
	if r := w.apply(actor, body); !errors.Is(r.Failure(), sentinel) {
		w.tb.Errorf("%s by %s: %v, want %v", body.kind(), actor, r.Failure(), sentinel)
	}
}

// asks opens a request of one permission and returns its id.
func (w *world) asks(actor, subject, service, perm string, d time.Duration) string {
	w.tb.Helper()
	b := w.create(service, []string{perm}, d)
	b.Subject = spiffe(subject)
	w.must(w.apply(actor, b))
	return b.ID
}

// change proposes an edit by ada and has others approve it.
func (w *world) change(e Edit, approvers ...string) string {
	w.tb.Helper()
	policyRevision, base := w.revisions()
	if e.Kind == EditPolicySet {
		base = policyRevision
	}
	b := ProposeChange{ID: w.id(), Edit: e, BaseRevision: base}
	w.must(w.apply("ada", b))
	for _, name := range approvers {
		w.must(w.apply(name, w.decideChange(b.ID, Approve)))
	}
	return b.ID
}

func (w *world) decideChange(id string, v Verdict) DecideChange {
	w.tb.Helper()
	c, err := Read(w.a).Change(id)
	if err != nil {
		w.tb.Fatal(err)
	}
	return DecideChange{Change: id, Hash: c.Hash, Verdict: v}
}

func TestInvariant05_OnePersonOneVote(t *testing.T) {
	w := newWorld(t)
	w.change(Edit{Kind: EditPersonSet, Person: &Person{Name: "bob", IDs: []string{spiffe("bob"), spiffe("device/bob-phone")}, Owns: []string{spiffe("agent/bob-bot")}}}, "abe", "amy")

	// Two approvals of the owners are needed; alice, who asks, is an owner.
	id := w.asks("alice", "alice", "ledger", "grpc bank.Ledger/*", time.Hour)
	w.refuse(ErrDenied, "alice", w.decide(id, Approve))
	w.refuse(ErrDenied, "device/alice-phone", w.decide(id, Approve))
	w.refuse(ErrDenied, "abe", w.decide(id, Approve)) // an admin, and no owner
	w.must(w.apply("bob", w.decide(id, Approve)))
	w.refuse(ErrConflict, "bob", w.decide(id, Approve))
	w.refuse(ErrConflict, "device/bob-phone", w.decide(id, Approve))
	if got := w.request(id).State; got != RequestPending {
		t.Fatalf("%s with one person's votes", got)
	}
	w.must(w.apply("carol", w.decide(id, Approve)))
	if got := w.request(id).State; got != RequestApproved {
		t.Fatalf("%s with two persons' votes", got)
	}

	// The subject's owner does not count either, nor the owner of who asks.
	id = w.asks("erin", "agent/bob-bot", "payments", "GET /accounts/**", time.Hour)
	w.refuse(ErrDenied, "bob", w.decide(id, Approve))
	id = w.asks("agent/bob-bot", "agent/bob-bot", "ledger", "grpc bank.Ledger/*", time.Hour)
	w.refuse(ErrDenied, "bob", w.decide(id, Approve))

	// One owner and one of security; carol is both, and one person.
	id = w.asks("erin", "erin", "payments", "POST /refunds/*", time.Minute)
	w.must(w.apply("carol", w.decide(id, Approve)))
	if got := w.request(id).State; got != RequestPending {
		t.Fatalf("%s: one person in two groups was counted twice", got)
	}
	w.must(w.apply("dave", w.decide(id, Approve)))
	if got := len(w.grant(id).Votes); got != 2 {
		t.Fatalf("%d votes", got)
	}
}

func TestInvariant06_NoOneMakesAnApproverAlone(t *testing.T) {
	mallory := Edit{Kind: EditGroupSet, Group: &Group{Name: "payments-owners", Members: []string{"ada"}}}
	w := newWorld(t)
	id := w.change(mallory)
	w.refuse(ErrDenied, "ada", w.decideChange(id, Approve)) // its author
	w.refuse(ErrDenied, "bob", w.decideChange(id, Approve)) // no admin
	w.must(w.apply("abe", w.decideChange(id, Approve)))
	w.refuse(ErrConflict, "abe", w.decideChange(id, Approve))
	if c, err := Read(w.a).Change(id); err != nil || c.State != ChangePending {
		t.Fatalf("%s after one admin's approval, %v", c.State, err)
	}
	for _, e := range []Edit{
		{Kind: EditPolicySet, YAML: strings.ReplaceAll(defaultPolicy, "payments-owners", "engineers")},
		{Kind: EditPersonSet, Person: &Person{Name: "ada", IDs: []string{spiffe("ada"), spiffe("device/ada")}}},
		{Kind: EditPersonDelete, Name: "dave"},
	} {
		before, beforeDirectory := w.revisions()
		w.change(e, "amy")
		if after, directory := w.revisions(); after != before || directory != beforeDirectory {
			t.Fatalf("%s was applied on one admin's approval", e.Kind)
		}
	}
	w.must(w.apply("amy", w.decideChange(id, Approve)))
	if c, err := Read(w.a).Change(id); err != nil || c.State != ChangeApplied {
		t.Fatalf("%s after two admins' approval, %v", c.State, err)
	}
	// An identity that one admin has issued is never a person's.
	w.refuse(ErrDenied, "ada", IssueIdentity{SPIFFEID: spiffe("bob")})
	w.refuse(ErrInvalid, "ada", ProposeChange{
		ID: w.id(), BaseRevision: 2,
		Edit: Edit{Kind: EditPersonSet, Person: &Person{Name: "bob", IDs: []string{spiffe("service/mine")}}},
	})
}

func TestInvariant07_WhatWasApprovedIsWhatWasShown(t *testing.T) {
	w := newWorld(t)
	id := w.asks("alice", "alice", "ledger", "grpc bank.Ledger/*", time.Hour)
	shown := w.decide(id, Approve)
	narrowed := w.decide(id, Approve)
	narrowed.Permissions, narrowed.Duration = []string{"grpc bank.Ledger/Read"}, (30 * time.Minute).Milliseconds()
	w.must(w.apply("bob", narrowed))

	w.refuse(ErrStale, "carol", shown)
	other := w.decide(id, Approve)
	other.Hash = strings.Repeat("0", 64)
	w.refuse(ErrStale, "carol", other)
	wider := w.decide(id, Approve)
	wider.Permissions = []string{"grpc bank.Ledger/*"}
	w.refuse(ErrDenied, "carol", wider)
	longer := w.decide(id, Approve)
	longer.Duration = time.Hour.Milliseconds()
	w.refuse(ErrDenied, "carol", longer)

	w.must(w.apply("carol", w.decide(id, Approve)))
	g := w.grant(id)
	if g.Hash != w.request(id).Hash() || g.Permissions[0] != "grpc bank.Ledger/Read" || g.Expiry != g.NotBefore+Millis(30*time.Minute/time.Millisecond) {
		t.Fatalf("granted %q until %s", g.Permissions, g.Expiry)
	}
}

// TestContentHashNamesEverything changes each thing that a request says, one at
// a time.
func TestContentHashNamesEverything(t *testing.T) {
	base := func() (Request, Revision) {
		return Request{Requester: "a", Subject: "b", Service: "c", Reason: "d", Start: 1, CSRKey: "e", PolicyRevision: 2},
			Revision{Permissions: []string{"f", "g"}, DurationMS: 3, Requirements: []Requirement{{"h", 1}}, Parent: "i"}
	}
	seen := map[string]int{}
	for i, edit := range []func(r *Request, v *Revision){
		func(*Request, *Revision) {},
		func(r *Request, _ *Revision) { r.Requester = "x" },
		func(r *Request, _ *Revision) { r.Subject = "x" },
		func(r *Request, _ *Revision) { r.Service = "x" },
		func(r *Request, _ *Revision) { r.Reason = "x" },
		func(r *Request, _ *Revision) { r.Start = 9 },
		func(r *Request, _ *Revision) { r.CSRKey = "x" },
		func(r *Request, _ *Revision) { r.PolicyRevision = 9 },
		func(_ *Request, v *Revision) { v.Permissions = []string{"f"} },
		func(_ *Request, v *Revision) { v.Permissions = []string{"fg"} },
		func(_ *Request, v *Revision) { v.DurationMS = 9 },
		func(_ *Request, v *Revision) { v.Requirements[0].Group = "x" },
		func(_ *Request, v *Revision) { v.Requirements[0].Approvals = 9 },
		func(_ *Request, v *Revision) { v.Requirements = nil },
		func(_ *Request, v *Revision) { v.Parent = "x" },
	} {
		r, v := base()
		edit(&r, &v)
		hash, err := contentHash(r, v)
		if err != nil {
			t.Fatal(err)
		}
		if j, ok := seen[hash]; ok {
			t.Errorf("contents %d and %d have one hash", i, j)
		}
		seen[hash] = i
	}
	// Pinned: a node of another version must compute the same.
	r, v := base()
	if hash, err := contentHash(r, v); err != nil || hash != "fb603bac4fb082320aebbc1ad146956f5fd8a5a20d92dbb574c3f814a2711535" {
		t.Errorf("hash %s, %v", hash, err)
	}
}

func TestInvariant11_EveryChangeHasOneAuditLeaf(t *testing.T) {
	w := newWorld(t) // its apply compares the leaves with what changed, each time
	id := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
	w.refuse(ErrDenied, "alice", w.decide(id, Approve))
	w.must(w.apply("bob", w.decide(id, Approve)))
	issue := w.issue(id)
	w.must(w.apply("alice", issue))
	w.must(w.apply("ada", BlockSubject{Subject: spiffe("alice"), Reason: "stolen"}))
	w.must(w.apply("ada", BlockSubject{Subject: spiffe("alice"), Reason: "stolen"}))
	w.now = w.now.Add(time.Hour)
	w.must(w.apply("", aTick()))
	w.must(w.apply("", aTick()))

	want := []string{"bootstrap", "request.create", "request.decide", "grant.issue", "subject.block", "tick"}
	if got := w.leaves(); got != int64(len(want)) {
		t.Fatalf("%d leaves, want %d", got, len(want))
	}
	for i, kind := range want {
		e, err := w.leaf(i)
		if err != nil || e.Kind != kind || e.Node != "n1" {
			t.Errorf("leaf %d: %+v, %v; want %s", i, e, err, kind)
		}
	}
	e, err := w.leaf(3)
	if err != nil || e.Actor != spiffe("alice") || e.Object != id || !strings.Contains(string(e.Details), issue.TBSHash) {
		t.Errorf("the leaf of the certificate: %+v, %v", e, err)
	}
	if e, err = w.leaf(4); err != nil || !strings.Contains(string(e.Details), id) {
		t.Errorf("the leaf of the block does not name the grant that it ended: %s, %v", e.Details, err)
	}
}

func TestInvariant12_SpentOnceCutForGood(t *testing.T) {
	w := newWorld(t)
	id := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
	vote := w.decide(id, Approve)
	w.must(w.apply("bob", vote))
	w.refuse(ErrConflict, "bob", vote) // spent
	first := w.issue(id)
	w.must(w.apply("alice", first))
	w.refuse(ErrConflict, "alice", first) // its serial is spent

	w.must(w.apply("bob", RevokeGrant{Grant: id, Reason: "wrong account"}))
	w.refuse(ErrConflict, "alice", w.issue(id))
	w.node = "n2"
	w.refuse(ErrConflict, "alice", w.issue(id))
	feed, err := Read(w.a).Feed()
	if err != nil || len(feed.Grants) != 1 || feed.Grants[0].ID != id || feed.Grants[0].Until <= Millis(first.NotAfter) {
		t.Fatalf("the feed: %+v, %v", feed, err)
	}
	w.refuse(ErrConflict, "bob", vote)

	// A log replayed into an empty state comes to the same, spent things and all.
	again := newMemory()
	for i, data := range w.log {
		Apply(again, uint64(i+1), data)
	}
	if again.fingerprint() != w.a.fingerprint() {
		t.Fatal("the log replayed is another state")
	}

	// A blocked subject's grants stay dead when the block is lifted.
	id = w.asks("erin", "erin", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(id, Approve)))
	w.must(w.apply("ada", BlockSubject{Subject: spiffe("erin"), Reason: "stolen"}))
	w.change(Edit{Kind: EditSubjectUnblock, Subject: spiffe("erin")}, "abe", "amy")
	w.refuse(ErrConflict, "erin", w.issue(id))

	// A denied issuer stays denied.
	id = w.asks("erin", "erin", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(id, Approve)))
	w.must(w.apply("ada", DenyIssuer{Issuer: issuerID("n1", RoleGrant), Reason: "stolen node"}))
	w.refuse(ErrDenied, "erin", w.issue(id))
}

func TestInvariant13_AuthorityIsCheckedWhereItIsApplied(t *testing.T) {
	w := newWorld(t)
	// Commands as a handler that checked nothing would send them.
	notAllowed := w.create("payments", []string{"DELETE /accounts/**"}, time.Hour)
	notAllowed.Subject = spiffe("alice")
	w.refuse(ErrDenied, "alice", notAllowed)
	tooLong := w.create("payments", []string{"GET /accounts/**"}, 2*time.Hour)
	tooLong.Subject = spiffe("alice")
	w.refuse(ErrDenied, "alice", tooLong)
	noEngineer := w.create("payments", []string{"GET /accounts/**"}, time.Hour)
	noEngineer.Subject = spiffe("carol")
	w.refuse(ErrDenied, "carol", noEngineer)
	old := w.create("payments", []string{"GET /accounts/**"}, time.Hour)
	old.Subject = spiffe("alice")
	old.PolicyRevision = 0
	w.refuse(ErrStaleRevision, "alice", old)

	id := w.asks("alice", "alice", "payments", "GET /accounts/**", 10*time.Minute)
	w.refuse(ErrDenied, "dave", w.decide(id, Approve))          // in another group
	w.refuse(ErrDenied, "service/batch", w.decide(id, Approve)) // no person
	stale := w.decide(id, Approve)
	w.change(Edit{Kind: EditGroupSet, Group: &Group{Name: "payments-owners", Members: []string{"carol"}}}, "abe", "amy")
	w.refuse(ErrStaleRevision, "carol", stale)
	w.refuse(ErrDenied, "bob", w.decide(id, Approve)) // has left it
	w.must(w.apply("carol", w.decide(id, Approve)))

	w.refuse(ErrDenied, "carol", w.issue(id)) // not hers
	foreign := w.issue(id)
	foreign.Issuer = issuerID("n1", RoleIdentity)
	w.refuse(ErrDenied, "alice", foreign)
	late := w.issue(id)
	late.NotAfter = w.now.Add(11 * time.Minute).UnixMilli()
	w.refuse(ErrDenied, "alice", late)
	w.refuse(ErrDenied, "dave", RevokeGrant{Grant: id, Reason: "mine"})
	w.refuse(ErrDenied, "bob", BlockSubject{Subject: spiffe("alice"), Reason: "mine"})
	w.refuse(ErrDenied, "bob", DenyIssuer{Issuer: issuerID("n1", RoleGrant), Reason: "mine"})
	w.refuse(ErrDenied, "bob", aTick())
	w.refuse(ErrDenied, "", RevokeGrant{Grant: id, Reason: "mine"})
	w.refuse(ErrConflict, "", firstCommand())
	w.now = w.now.Add(10 * time.Minute)
	w.refuse(ErrExpired, "alice", w.issue(id))
}
