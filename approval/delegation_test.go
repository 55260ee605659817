package approval

import (
	"slices"
	"testing"
	"time"
)

const delegablePolicy = `version: 3
rules:
  - name: accounts
    service: payments
    requesters: ["group:engineers"]
    permissions: ["GET /accounts/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    delegate: {to: ["spiffe://acme.test/agent/*"], max_grants: 10, max_duration: 20m}
`

// delegable has alice hold a grant that she may hand on, and returns its id.
func (w *world) delegable() string {
	w.tb.Helper()
	b := w.create("payments", []string{"GET /accounts/**"}, 30*time.Minute)
	b.Subject, b.Delegable = spiffe("alice"), true
	w.must(w.apply("alice", b))
	w.must(w.apply("bob", w.decide(b.ID, Approve)))
	return b.ID
}

func (w *world) childOf(parent, subject string) string {
	w.tb.Helper()
	b := w.create("payments", []string{"GET /accounts/1"}, 10*time.Minute)
	b.Subject, b.Parent = spiffe(subject), parent
	w.must(w.apply("alice", b))
	return b.ID
}

// TestChildrenNameTheirParent: in each audit entry about a child is the grant that it
// was made of, and in that of the parent's end the children that ended with it.
func TestChildrenNameTheirParent(t *testing.T) {
	w := newWorld(t)
	w.change(Edit{Kind: EditPolicySet, YAML: delegablePolicy}, "abe", "amy")
	parent := w.delegable()
	one := w.childOf(parent, "agent/one")
	named := func(what string) {
		t.Helper()
		var d struct {
			Parent string `json:"parent"`
		}
		if w.details(&d); d.Parent != parent {
			t.Errorf("%s: the parent is %q", what, d.Parent)
		}
	}
	named("made")
	w.must(w.apply("agent/one", w.issue(one)))
	named("a certificate")
	w.must(w.apply("agent/one", ReturnGrant{Grant: one}))
	named("returned")
	all := []string{w.childOf(parent, "agent/two"), w.childOf(parent, "agent/three")}
	w.must(w.apply("carol", RevokeGrant{Grant: parent, Reason: "enough"}))
	var d struct {
		Grants []string `json:"grants"`
	}
	w.details(&d)
	slices.Sort(d.Grants)
	if slices.Sort(all); !slices.Equal(d.Grants, all) {
		t.Errorf("with it ended %q, not %q", d.Grants, all)
	}
	for _, id := range all {
		if g := w.grant(id); g.State != GrantRevoked || g.EndReason == "" || g.Parent != parent {
			t.Errorf("%+v", g)
		}
	}
}

// TestEpochEndsChildrenOnce: whichever of parent and child comes first, both end, and
// each is counted once.
func TestEpochEndsChildrenOnce(t *testing.T) {
	w := newWorld(t)
	w.change(Edit{Kind: EditPolicySet, YAML: delegablePolicy}, "abe", "amy")
	parent := w.delegable()
	child := w.childOf(parent, "agent/one")
	began := w.now.Add(time.Hour).UnixMilli()
	w.must(w.apply("", BeginEpoch{Began: began, Lineage: testLineage, Reason: "why"}))
	var d epochDetails
	w.details(&d)
	if d.Grants != 2 || w.grant(parent).State != GrantRevoked || w.grant(child).State != GrantRevoked {
		t.Errorf("%+v, %s and %s", d, w.grant(parent).State, w.grant(child).State)
	}
}

// TestDelegationIsHashed: approvers say yes to what may be handed on, and to how much
// of it.
func TestDelegationIsHashed(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range []Request{
		{},
		{Delegation: &Delegation{To: []string{"a"}, Most: 1, MaxDurationMS: 1}},
		{Delegation: &Delegation{To: []string{"a"}, Most: 2, MaxDurationMS: 1}},
		{Delegation: &Delegation{To: []string{"b"}, Most: 1, MaxDurationMS: 1}},
		{Parent: "a"},
		{Extends: &Extends{Grant: "a", From: 1}},
		{Extends: &Extends{Grant: "a", From: 2}},
	} {
		hash, err := contentHash(r, Revision{})
		if err != nil || seen[hash] {
			t.Errorf("%+v: %s, %v", r, hash, err)
		}
		seen[hash] = true
	}
}
