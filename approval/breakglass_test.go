package approval

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/policy"
)

const glassPolicy = `version: 3
rules:
  - name: queue
    service: payments
    requesters: ["group:engineers"]
    permissions: ["* /queue/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    break_glass: {groups: [engineers], max_duration: 10m, review: [security], review_within: 24h}
`

// breaks breaks the glass and returns the request's id.
func (w *world) breaks(actor string) string {
	w.tb.Helper()
	b := w.create("payments", []string{"POST /queue/restart"}, 10*time.Minute)
	b.Subject, b.BreakGlass = spiffe(actor), true
	w.must(w.apply(actor, b))
	return b.ID
}

// TestBrokenGlassIsNotForgotten: a review that is open outlasts everything of its
// request, however long that ended ago; closed, it is forgotten in its time.
func TestBrokenGlassIsNotForgotten(t *testing.T) {
	w := newWorld(t)
	w.change(Edit{Kind: EditPolicySet, YAML: glassPolicy}, "abe", "amy")
	id := w.breaks("alice")
	other := w.breaks("erin")
	w.now = w.now.Add(time.Hour)
	w.must(w.apply("", aTick()))
	w.must(w.apply("dave", CloseReview{Request: other, Finding: "as it said"}))
	w.now = w.now.Add(Retention + time.Hour)
	w.must(w.apply("", aTick()))
	if _, err := Read(w.a).Request(other); err == nil {
		t.Error("a closed review is kept for ever")
	}
	if open, _, err := Read(w.a).Reviews(Filter{}); err != nil || len(open) != 1 || open[0].ID != id {
		t.Fatalf("open: %+v, %v", open, err)
	}
	w.must(w.apply("dave", CloseReview{Request: id, Finding: "late"}))
	w.now = w.now.Add(Retention - time.Hour)
	w.apply("", aTick())
	w.request(id)
	w.now = w.now.Add(time.Hour)
	w.must(w.apply("", aTick()))
	if r, err := Read(w.a).Request(id); err == nil {
		t.Errorf("kept: %+v", r)
	}
}

// TestBrokenGlassIsInTheAuditLog: what was done without, who is to review it, and
// what they found.
func TestBrokenGlassIsInTheAuditLog(t *testing.T) {
	w := newWorld(t)
	w.change(Edit{Kind: EditPolicySet, YAML: glassPolicy}, "abe", "amy")
	id := w.breaks("alice")
	var made struct {
		BreakGlass *glassDetails `json:"break_glass"`
		Grant      *grantDetails `json:"grant"`
	}
	w.details(&made)
	if b := made.BreakGlass; b == nil || made.Grant == nil || strings.Join(b.Review, " ") != "security" || b.Due != MillisOf(w.now.Add(24*time.Hour)) ||
		strings.Join(b.Waived, ", ") != "1 of payments-owners" {
		t.Errorf("%+v", made)
	}
	if g := w.grant(id); !g.BreakGlass || len(g.Votes) != 0 {
		t.Errorf("%+v", g)
	}
	w.now = w.now.Add(time.Hour)
	w.must(w.apply("dave", CloseReview{Request: id, Finding: "as it said"}))
	var closed glassDetails
	w.details(&closed)
	if closed.Finding != "as it said" || closed.Person != "dave" || !closed.Closed || closed.Hash != w.request(id).Hash() {
		t.Errorf("%+v", closed)
	}
}

// details reads those of the newest audit leaf.
func (w *world) details(into any) {
	w.tb.Helper()
	e, err := w.leaf(int(w.leaves() - 1))
	if err != nil {
		w.tb.Fatal(err)
	}
	if err := json.Unmarshal(e.Details, into); err != nil {
		w.tb.Fatal(err)
	}
}

// TestTooManyOpenReviews: who breaks glass after glass is stopped before the first
// review is overdue.
func TestTooManyOpenReviews(t *testing.T) {
	w := newWorld(t)
	w.change(Edit{Kind: EditPolicySet, YAML: glassPolicy}, "abe", "amy")
	for range policy.DefaultMaxOpen {
		w.breaks("alice")
	}
	b := w.create("payments", []string{"POST /queue/restart"}, 10*time.Minute)
	b.Subject, b.BreakGlass = spiffe("alice"), true
	w.refuse(ErrLimit, "alice", b)
	w.refuse(ErrLimit, "alice", b)
	w.breaks("erin")
}

// TestBrokenGlassHasAHashOfItsOwn: what is asked for with and without approval is
// not the same.
func TestBrokenGlassHasAHashOfItsOwn(t *testing.T) {
	r := Request{Requester: "a", Subject: "a", Service: "s"}
	usual, err := contentHash(r, Revision{})
	if err != nil {
		t.Fatal(err)
	}
	r.Review = &Review{}
	if broken, err := contentHash(r, Revision{}); err != nil || broken == usual {
		t.Errorf("%s and %s, %v", usual, broken, err)
	}
}
