package approval

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// quick applies a command to one replica and checks nothing else: for states too
// large to look at after each step.
func (w *world) quick(actor string, body Body) Result {
	w.tb.Helper()
	data, err := w.command(actor, body).Encode()
	if err != nil {
		w.tb.Fatal(err)
	}
	w.index++
	return Apply(w.a, w.index, data)
}

func (w *world) check() {
	w.tb.Helper()
	if err := CheckInvariants(w.a); err != nil {
		w.tb.Fatal(err)
	}
}

// TestWorkDoesNotGrowWithTheState counts what commands and queries read in a
// small cluster and in one with many requests, grants and certificates.
func TestWorkDoesNotGrowWithTheState(t *testing.T) {
	t.Parallel()
	measure := func(crowd int) map[string]int {
		w := busyWorld(t)
		for i := range crowd {
			b := w.create("status", []string{"GET /**"}, time.Duration(1+i%40)*time.Minute)
			b.Subject = spiffe("erin")
			w.must(w.quick("erin", b))
			w.must(w.quick("erin", w.issue(b.ID)))
			if i%2 == 0 {
				w.must(w.quick("erin", ReturnGrant{Grant: b.ID}))
			}
		}
		w.check()
		reads := map[string]int{}
		for i, c := range fittingCommands(w) {
			data, err := c.Encode()
			if err != nil {
				t.Fatal(err)
			}
			on := w.a.clone()
			if r := Apply(on, w.index+1, data); r.Err != nil {
				t.Fatalf("%s: %v", c.Body.kind(), r.Err)
			}
			reads[fmt.Sprintf("%d %s", i, c.Body.kind())] = on.reads
		}
		for name, query := range map[string]func(s State) error{
			"due":       func(s State) error { s.Due(1, Retention); return nil },
			"pending":   func(s State) error { _, _, err := s.Requests(Filter{State: "pending"}); return err },
			"by person": func(s State) error { _, _, err := s.Grants(Filter{Subject: spiffe("alice")}); return err },
			"one page":  func(s State) error { _, _, err := s.Grants(Filter{Limit: 1}); return err },
		} {
			w.a.reads = 0
			if err := query(Read(w.a)); err != nil {
				t.Fatal(err)
			}
			reads[name] = w.a.reads
		}
		return reads
	}
	small, large := measure(0), measure(150)
	for name, n := range large {
		// A tick ends up to maxDue things: it alone grows, up to a bound.
		if strings.HasSuffix(name, "tick") {
			if n > 40*maxDue {
				t.Errorf("%s: %d reads", name, n)
			}
			continue
		}
		if n > small[name]+20 {
			t.Errorf("%s: %d reads in a small state, %d in a large one", name, small[name], n)
		}
	}
}

func TestTickIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range maxDue + 10 {
		b := w.create("status", []string{"GET /**"}, time.Minute)
		b.Subject = spiffe("erin")
		w.must(w.quick("erin", b))
	}
	w.now = w.now.Add(time.Hour)
	first := w.quick("", aTick())
	if done := first.Object.(Ticked); len(done.Grants) != maxDue || !done.More {
		t.Fatalf("%d grants, more %v", len(done.Grants), done.More)
	}
	w.check()
	second := w.quick("", aTick())
	if done := second.Object.(Ticked); len(done.Grants) != 10 || done.More {
		t.Fatalf("%d grants, more %v", len(done.Grants), done.More)
	}
	w.check()
}

func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var last string
	for range MaxPendingRequests {
		b := w.create("payments", []string{"GET /accounts/**"}, time.Minute)
		b.Subject, last = spiffe("alice"), b.ID
		w.must(w.quick("alice", b))
	}
	b := w.create("payments", []string{"GET /accounts/**"}, time.Minute)
	b.Subject = spiffe("alice")
	if r := w.quick("alice", b); !errors.Is(r.Failure(), ErrLimit) {
		t.Fatalf("one request too many: %v", r.Err)
	}
	w.must(w.quick("alice", CancelRequest{Request: last}))
	w.must(w.quick("alice", b))
	// Those that have run out do not count, tick or no tick.
	w.now = w.now.Add(RequestLife)
	b = w.create("payments", []string{"GET /accounts/**"}, time.Minute)
	b.Subject = spiffe("alice")
	w.must(w.quick("alice", b))

	for i := range MaxPendingChanges {
		e := Edit{Kind: EditGroupSet, Group: &Group{Name: fmt.Sprintf("x%d", i), Members: []string{}}}
		w.must(w.quick("bob", ProposeChange{ID: w.id(), BaseRevision: 1, Edit: e}))
	}
	r := w.quick("bob", ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditGroupSet, Group: &Group{Name: "x"}}})
	if !errors.Is(r.Failure(), ErrLimit) {
		t.Fatalf("one change too many: %v", r.Err)
	}

	for range MaxLiveGrants {
		b := w.create("status", []string{"GET /**"}, time.Minute)
		b.Subject = spiffe("erin")
		w.must(w.quick("erin", b))
	}
	b = w.create("status", []string{"GET /**"}, time.Minute)
	b.Subject = spiffe("erin")
	if r := w.quick("erin", b); !errors.Is(r.Failure(), ErrLimit) {
		t.Fatalf("one grant too many: %v", r.Err)
	}
	w.must(w.quick("ada", BlockSubject{Subject: b.Subject, Reason: "all of them"}))
	w.check()
}

// TestHostileTexts puts into every text of a command what might reach out of its
// place, or show as something else.
func TestHostileTexts(t *testing.T) {
	t.Parallel()
	w := busyWorld(t)
	id, _, err := Read(w.a).Requests(Filter{State: "pending"})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"", "\x00", "x\x00y", "\x1b[31mred", "a\u202eb", "a\u2066b", "\x7f", "\u0085", "\ufffd", "\r\n", "a\u200bb", "a\U000e0041b", "a\ufeffb", "a\u2028b", "a\xffb", strings.Repeat("x\n", 40), "../../etc", "/", strings.Repeat("x", 10_000),
		"spiffe://acme.test", "spiffe://acme.test/", "spiffe://ACME.test/user/bob", "spiffe://acme.test/user/bob/", "spiffe://acme.test//user",
		"spiffe://acme.test/user/b%6fb", "spiffe://acme.test/user/\x00", "spiffe://acme.test/user/bob?x", "https://acme.test/user/bob",
	} {
		create := w.create("status", []string{"GET /**"}, time.Minute)
		create.Subject = spiffe("alice")
		with := func(change func(b *CreateRequest)) CreateRequest {
			b := create
			change(&b)
			return b
		}
		bodies := []Body{
			with(func(b *CreateRequest) { b.ID = text }), with(func(b *CreateRequest) { b.Subject = "spiffe://" + text }),
			with(func(b *CreateRequest) { b.Service = text }), with(func(b *CreateRequest) { b.Permissions = []string{text} }),
			CancelRequest{Request: text},
			RevokeGrant{Grant: text, Reason: "x"},
			ReturnGrant{Grant: text},
			CancelChange{Change: text},
			DenyIssuer{Issuer: text, Reason: "x"},
			DecideRequest{Request: id[0].ID, Hash: text, Verdict: Approve},
			DecideRequest{Request: id[0].ID, Hash: id[0].Hash(), Verdict: Verdict(text)},
			ProposeChange{ID: text, BaseRevision: 1, Edit: Edit{Kind: EditGroupDelete, Name: "x"}},
			ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditKind(text)}},
			ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditGroupDelete, Name: text}},
			ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditPersonDelete, Name: text}},
			ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditPolicySet, YAML: text}},
			ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditGroupSet, Group: &Group{Name: text + "G", Members: []string{}}}},
			ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditPersonSet, Person: &Person{Name: "x", IDs: []string{text}}}},
		}
		if text != create.Reason && (strings.TrimSpace(text) == "" || len(text) > 1000 || strings.ContainsAny(text, "\x00\x1b\x7f\r\u202e\u2066\u0085\ufffd\u200b\U000e0041\ufeff\u2028\n")) {
			bodies = append(bodies, with(func(b *CreateRequest) { b.Reason = text }), BlockSubject{Subject: spiffe("alice"), Reason: text})
		}
		for _, b := range bodies {
			if r := w.apply("ada", b); r.Err == nil {
				t.Errorf("%s with %.20q: accepted", b.kind(), text)
			}
		}
		for _, c := range []Command{
			{ID: text, Now: 1, Node: "n1", Body: aTick()},
			{ID: w.id(), Now: 1, Node: text, Body: aTick()},
			{ID: w.id(), Now: 1, Node: "n1", Actor: text, Body: create},
			{ID: w.id(), Now: 1, Node: "n1", Actor: spiffe("alice"), Trace: text + "-", Body: create},
			{ID: w.id(), Now: 1, Node: "n1", Actor: spiffe("alice"), Idem: &Idem{BodyHash: sha256Hex(nil)}, Body: create},
			{ID: w.id(), Now: 1, Node: "n1", Actor: spiffe("alice"), Idem: &Idem{Key: "k", BodyHash: text}, Body: create},
		} {
			if r := w.applyCommand(c); r.Err == nil {
				t.Errorf("envelope with %.20q: accepted: %+v", text, c)
			}
		}
	}
}

// TestCommandTimes refuses clocks that no clock shows.
func TestCommandTimes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, now := range []int64{0, -1, -1 << 63, 1<<63 - 1, maxNow + 1} {
		c := w.command("ada", BlockSubject{Subject: spiffe("x"), Reason: "x"})
		c.Now = now
		if r := w.applyCommand(c); !errors.Is(r.Failure(), ErrInvalid) {
			t.Errorf("time %d: %v", now, r.Err)
		}
	}
	for _, extreme := range []int64{-1 << 63, -1, 1, 1<<63 - 1} {
		b := w.create("status", []string{"GET /**"}, time.Minute)
		b.Subject = spiffe("alice")
		b.Start = extreme
		w.refuse(ErrInvalid, "alice", b)
		b.Start, b.Duration = 0, extreme
		w.refuse(ErrInvalid, "alice", b)
	}
	id := w.asks("alice", "alice", "status", "GET /**", time.Minute)
	for _, extreme := range []int64{-1 << 63, -1, 0, 1<<63 - 1} {
		issue := w.issue(id)
		issue.NotAfter = extreme
		if r := w.apply("alice", issue); r.Err == nil {
			t.Errorf("a certificate until %d", extreme)
		}
		issue = w.issue(id)
		issue.NotBefore = extreme
		if r := w.apply("alice", issue); r.Err == nil {
			t.Errorf("a certificate from %d", extreme)
		}
	}
}
