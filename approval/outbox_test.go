package approval

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func (w *world) settle(b SettleOutbox) Target {
	w.tb.Helper()
	out, ok := w.must(w.apply("", b)).Object.(Target)
	if !ok {
		w.tb.Fatal("no Target")
	}
	return out
}

// sent are settlements of entries that were delivered.
func settled(o Outcome, entries ...uint64) (all []Settlement) {
	for _, e := range entries {
		s := Settlement{Entry: e, Outcome: o}
		if o != OutcomeSent {
			s.Tries, s.Cause = 3, "500 Internal Server Error"
		}
		all = append(all, s)
	}
	return all
}

// outboxWorld has a target at the end of a log that goes on for a while.
func outboxWorld(t *testing.T) (w *world, at uint64) {
	t.Helper()
	w = newWorld(t)
	at = uint64(w.leaves())
	w.settle(SettleOutbox{Target: "chat", Position: at})
	for i := range 8 {
		w.must(w.apply("ada", BlockSubject{Subject: spiffe(fmt.Sprintf("agent/x%d", i)), Reason: "why"}))
	}
	return w, at + 1 // the settlement is an entry, too
}

// TestOutboxSettles: what is open stays until it is delivered or dead, whatever the
// position is; dead letters keep their cause; a leaf says what was settled.
func TestOutboxSettles(t *testing.T) {
	w, at := outboxWorld(t)
	out := w.settle(SettleOutbox{Target: "chat", Base: 1, Position: at + 4, Deliveries: []Settlement{
		{Entry: at, Outcome: OutcomeSent},
		{Entry: at + 1, Outcome: OutcomeOpen, Tries: 1, Cause: "no route"},
		{Entry: at + 3, Outcome: OutcomeOpen},
	}})
	since := MillisOf(w.now)
	want := Target{Name: "chat", Revision: 2, Position: at + 4, Sent: 1, Open: []OpenDelivery{{Entry: at + 1, Since: since, Tries: 1, Cause: "no route"}, {Entry: at + 3, Since: since}}}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	out = w.settle(SettleOutbox{Target: "chat", Base: 2, Position: at + 4, Deliveries: []Settlement{
		{Entry: at + 1, Outcome: OutcomeDead, Tries: 9, Cause: "500"}, {Entry: at + 3, Outcome: OutcomeSent},
	}})
	if len(out.Open) != 0 || out.Sent != 2 || out.Dead != 1 {
		t.Errorf("%+v", out)
	}
	dead, err := Read(w.a).DeadLetters("chat")
	if diff := cmp.Diff([]DeadLetter{{Target: "chat", Entry: at + 1, Since: since, Tries: 9, Cause: "500", At: MillisOf(w.now)}}, dead); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if d := w.lastDetails(); !strings.Contains(d, `"outcome":"dead"`) || !strings.Contains(d, `"outcome":"sent"`) {
		t.Error(d)
	}
	out, ok := w.must(w.apply("ada", ReplayOutbox{Target: "chat", Entries: []uint64{at + 1}})).Object.(Target)
	if !ok || out.Dead != 0 || len(out.Open) != 1 || out.Open[0].Tries != 0 || out.Revision != 4 {
		t.Errorf("%+v", out)
	}
	w.must(w.apply("ada", ForgetOutbox{Target: "chat"}))
	if all, err := Read(w.a).Targets(); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestOutboxOfADeposedLeader: what a leader says that does not know what its successor
// has written is refused: it would have settled deliveries sent again, and dead ones
// come back.
func TestOutboxOfADeposedLeader(t *testing.T) {
	w, at := outboxWorld(t)
	w.settle(SettleOutbox{Target: "chat", Base: 1, Position: at + 2, Deliveries: settled(OutcomeSent, at, at+1)})
	for _, base := range []uint64{0, 1, 3} {
		r := w.apply("", SettleOutbox{Target: "chat", Base: base, Position: at + 2, Deliveries: settled(OutcomeOpen, at)})
		if !errors.Is(r.Failure(), ErrConflict) {
			t.Errorf("from revision %d: %v", base, r.Failure())
		}
	}
}

// TestOutboxRefuses what contradicts itself or the log.
func TestOutboxRefuses(t *testing.T) {
	w, at := outboxWorld(t)
	w.settle(SettleOutbox{Target: "chat", Base: 1, Position: at + 3, Deliveries: settled(OutcomeOpen, at+1)})
	size := uint64(w.leaves())
	many := make([]uint64, MaxSettlements+1)
	for i := range many {
		many[i] = uint64(i)
	}
	for name, b := range map[string]SettleOutbox{
		"a position that goes back":    {Position: at + 2},
		"a position beyond the log":    {Position: size + 1},
		"an entry that is settled":     {Position: at + 4, Deliveries: settled(OutcomeSent, at)},
		"an entry twice":               {Position: at + 4, Deliveries: settled(OutcomeSent, at+1, at+1)},
		"entries out of order":         {Position: at + 5, Deliveries: settled(OutcomeSent, at+4, at+3)},
		"an entry beyond the position": {Position: at + 4, Deliveries: settled(OutcomeSent, at+4)},
		"an outcome of no kind":        {Position: at + 4, Deliveries: settled("lost", at+1)},
		"too many":                     {Position: at + 4, Deliveries: settled(OutcomeSent, many...)},
		"a cause of two lines":         {Position: at + 4, Deliveries: []Settlement{{Entry: at + 1, Outcome: OutcomeDead, Cause: "a\nb"}}},
		"a cause that hides":           {Position: at + 4, Deliveries: []Settlement{{Entry: at + 1, Outcome: OutcomeDead, Cause: "a\x1b[2K"}}},
		"a long cause":                 {Position: at + 4, Deliveries: []Settlement{{Entry: at + 1, Outcome: OutcomeDead, Cause: strings.Repeat("a", MaxCause+1)}}},
		"too many tries":               {Position: at + 4, Deliveries: []Settlement{{Entry: at + 1, Outcome: OutcomeOpen, Tries: maxTries + 1}}},
	} {
		b.Target, b.Base = "chat", 2
		if r := w.apply("", b); !errors.Is(r.Failure(), ErrInvalid) {
			t.Errorf("%s: %v", name, r.Failure())
		}
	}
	for _, name := range []string{"", "Chat", "a b", "a\x00b", strings.Repeat("a", 64)} {
		if r := w.apply("", SettleOutbox{Target: name, Position: 1}); !errors.Is(r.Failure(), ErrInvalid) {
			t.Errorf("target %q: %v", name, r.Failure())
		}
	}
	for name, r := range map[string]Result{
		"a person settles":            w.apply("ada", SettleOutbox{Target: "chat", Base: 2, Position: at + 4}),
		"one who is no admin replays": w.apply("bob", ReplayOutbox{Target: "chat"}),
		"one who is no admin forgets": w.apply("bob", ForgetOutbox{Target: "chat"}),
	} {
		if !errors.Is(r.Failure(), ErrDenied) {
			t.Errorf("%s: %v", name, r.Failure())
		}
	}
	for name, r := range map[string]Result{
		"of no target":      w.apply("ada", ReplayOutbox{Target: "mail"}),
		"no dead letter":    w.apply("ada", ReplayOutbox{Target: "chat", Entries: []uint64{at + 1}}),
		"forget: no target": w.apply("ada", ForgetOutbox{Target: "mail"}),
	} {
		if !errors.Is(r.Failure(), ErrNotFound) {
			t.Errorf("%s: %v", name, r.Failure())
		}
	}
}

// TestOutboxPauses: a receiver that wants no more is sent nothing until an admin says so.
func TestOutboxPauses(t *testing.T) {
	w, at := outboxWorld(t)
	out := w.settle(SettleOutbox{Target: "chat", Base: 1, Position: at + 1, Paused: "410 Gone", Deliveries: settled(OutcomeDead, at)})
	if out.Paused != MillisOf(w.now) || out.Cause != "410 Gone" {
		t.Errorf("%+v", out)
	}
	out, ok := w.must(w.apply("ada", ReplayOutbox{Target: "chat"})).Object.(Target)
	if !ok || out.Paused != 0 || out.Cause != "" || out.Position != at+1 {
		t.Errorf("%+v", out)
	}
	if r := w.must(w.apply("ada", ReplayOutbox{Target: "chat"})); r.Changed {
		t.Error("nothing to go on with, and a leaf of it")
	}
}

// TestOutboxIsBounded: a receiver that is down for good fills its own place and no other.
func TestOutboxIsBounded(t *testing.T) {
	w := newWorld(t)
	at := uint64(w.leaves())
	for range MaxOpenDeliveries + MaxDeadLetters + 8 {
		w.must(w.quick("", AnchorAccess{Heads: []AnchoredHead{anchorHead("payments", int64(w.index))}}))
	}
	end := at + MaxOpenDeliveries + MaxDeadLetters + 8
	entries := func(from, n uint64) (all []uint64) {
		for i := range n {
			all = append(all, from+i)
		}
		return all
	}
	w.must(w.quick("", SettleOutbox{Target: "chat", Position: at}))
	full := w.quick("", SettleOutbox{Target: "chat", Base: 1, Position: end, Deliveries: settled(OutcomeOpen, entries(at, MaxOpenDeliveries+1)...)})
	if !errors.Is(full.Failure(), ErrLimit) {
		t.Errorf("%d open: %v", MaxOpenDeliveries+1, full.Failure())
	}
	w.must(w.quick("", SettleOutbox{Target: "chat", Base: 1, Position: at + MaxDeadLetters + 2, Deliveries: settled(OutcomeDead, entries(at, MaxDeadLetters+2)...)}))
	out, known, err := Read(w.a).Target("chat")
	if err != nil || !known || out.Dead != MaxDeadLetters || out.Dropped != 2 {
		t.Errorf("%+v, %v, %v", out, known, err)
	}
	dead, err := Read(w.a).DeadLetters("")
	if err != nil || len(dead) != MaxDeadLetters || dead[0].Entry != at+2 {
		t.Errorf("%d dead letters, %v", len(dead), err)
	}
	w.must(w.quick("", SettleOutbox{Target: "chat", Base: 2, Position: end, Deliveries: settled(OutcomeOpen, entries(at+MaxDeadLetters+2, MaxOpenDeliveries)...)}))
	again := w.quick("ada", ReplayOutbox{Target: "chat", Entries: []uint64{at + 2}})
	if !errors.Is(again.Failure(), ErrLimit) {
		t.Errorf("a replay beyond what may be open: %v", again.Failure())
	}
	for i := 1; i < MaxTargets; i++ {
		w.must(w.quick("", SettleOutbox{Target: fmt.Sprintf("t%d", i), Position: at}))
	}
	if r := w.quick("", SettleOutbox{Target: "one-more", Position: at}); !errors.Is(r.Failure(), ErrLimit) {
		t.Errorf("a target more: %v", r.Failure())
	}
	w.check()
}

// TestEveryKindNotifiesOrNot: a new kind of command is told to targets unless somebody
// has decided otherwise; what is told of the outbox itself would never end.
func TestEveryKindNotifiesOrNot(t *testing.T) {
	silent, known := map[Kind]bool{}, map[Kind]bool{}
	for _, k := range Kinds() {
		known[k] = true
	}
	for _, c := range oneOfEach() {
		if !known[c.Kind] {
			t.Errorf("%s is not among Kinds: no target could be told of it", c.Kind)
		}
		if !c.Kind.Notifies() {
			silent[c.Kind] = true
		}
	}
	if diff := cmp.Diff(map[Kind]bool{KindSettleOutbox: true, KindAnchorAccess: true}, silent); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
