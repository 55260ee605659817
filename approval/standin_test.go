package approval

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// standInWorld is a cluster in which dave and erin may stand in for owners of payments.
func standInWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.substitutes("payments-owners", "dave", "erin")
	return w
}

func (w *world) substitutes(group string, names ...string) {
	w.tb.Helper()
	g, err := find[Group](w.a, key(prefixGroup, group), "group", group)
	if err != nil {
		w.tb.Fatal(err)
	}
	g.Substitutes = names
	w.change(Edit{Kind: EditGroupSet, Group: &g}, "abe", "amy")
}

func (w *world) standIn(group, by string, d time.Duration) NameStandIn {
	return NameStandIn{Group: group, By: by, Until: w.now.Add(d).UnixMilli(), Reason: "on holiday"}
}

// TestStandInIsToldOf: the entries say who stands in for whom, until when and why, and which of those who may have ended it; a tick names those that ran out.
func TestStandInIsToldOf(t *testing.T) {
	w := standInWorld(t)
	said := func(kind Kind, words ...string) {
		t.Helper()
		e, err := w.leaf(int(w.leaves()) - 1)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind != string(kind) {
			t.Errorf("the entry is a %s", e.Kind)
		}
		for _, word := range words {
			if !strings.Contains(string(e.Details)+e.Object+e.Actor, word) {
				t.Errorf("%s says %s of %s by %s, without %s", kind, e.Details, e.Object, e.Actor, word)
			}
		}
	}
	w.must(w.apply("bob", w.standIn("payments-owners", "dave", time.Hour)))
	said(KindNameStandIn, `"by":"dave"`, `"for":"bob"`, `"reason":"on holiday"`, `"since":"2026-03-01T09:00:00.000Z"`, `"until":"2026-03-01T10:00:00.000Z"`, "payments-owners", "user/bob")
	w.must(w.apply("abe", EndStandIn{Group: "payments-owners", For: "bob"}))
	said(KindEndStandIn, `"by":"dave"`, `"for":"bob"`, `"ended":"abe"`, "user/abe")
	w.must(w.apply("bob", w.standIn("payments-owners", "dave", time.Hour)))
	w.now = w.now.Add(time.Hour)
	done, ok := w.must(w.apply("", aTick())).Object.(Ticked)
	if !ok || len(done.StandIns) != 1 || done.StandIns[0].By != "dave" || done.StandIns[0].For != "bob" {
		t.Errorf("%+v", done)
	}
	said(KindTick, `"stand_ins":[{`, `"for":"bob"`)
}

// TestStandInIsIdempotent: a call that is made again does not begin another time away.
func TestStandInIsIdempotent(t *testing.T) {
	w := standInWorld(t)
	c := w.command("bob", w.standIn("payments-owners", "dave", time.Hour))
	c.Idem = &Idem{Key: "k", BodyHash: sha256Hex(nil)}
	w.must(w.applyCommand(c))
	w.must(w.apply("dave", EndStandIn{Group: "payments-owners", For: "bob"}))
	again := c
	again.ID = w.id()
	if r := w.must(w.applyCommand(again)); !r.Replayed || Read(w.a).isMember("dave", "payments-owners") {
		t.Errorf("%+v", r)
	}
}

// TestStandInInSlack: a button speaks for whoever's account it is. Who stands in counts there as with a certificate, and not for whom they stand in for.
func TestStandInInSlack(t *testing.T) {
	w := slackWorld(t)
	w.change(Edit{Kind: EditPersonSet, Person: &Person{Name: "dave", IDs: []string{spiffe("dave")}, Owns: []string{}, Slack: inTeam + "/U0DAVE"}}, "abe", "amy")
	w.substitutes("payments-owners", "dave")
	dave := inTeam + "/U0DAVE"
	id := w.ask("erin", "GET /accounts/1")
	w.refused("before", w.apply(slackBridge, w.inSlack(id, Approve, dave)), ErrDenied, "is in none of the groups")
	w.refused("the bridge has somebody stand in", w.apply(slackBridge, w.standIn("payments-owners", "dave", time.Hour)), ErrDenied, "is nobody's")
	w.must(w.apply("alice", w.standIn("payments-owners", "dave", time.Hour)))
	w.refused("who is away", w.apply(slackBridge, w.inSlack(id, Approve, aliceInSlack)), ErrDenied, "dave stands in for alice")
	w.must(w.apply(slackBridge, w.inSlack(id, Approve, dave)))
	if r := w.request(id); r.State != RequestApproved || r.Decisions[0].Person != "dave" {
		t.Errorf("%+v", r)
	}
	own := w.ask("alice", "GET /accounts/2")
	w.refused("whom they stand in for", w.apply(slackBridge, w.inSlack(own, Approve, dave)), ErrDenied, "dave stands in for alice, who asked")
	// What was decided counts no longer once it is over.
	two := w.create("payments", []string{"POST /refunds/1"}, time.Hour)
	two.Subject = spiffe("erin")
	w.must(w.apply("erin", two))
	w.must(w.apply(slackBridge, w.inSlack(two.ID, Approve, dave)))
	w.now = w.now.Add(time.Hour)
	w.must(w.apply("", aTick()))
	w.must(w.apply("bob", w.decide(two.ID, Approve)))
	if r := w.request(two.ID); r.State != RequestPending {
		t.Errorf("%+v", r)
	}
}

// TestAnEpochEndsStandIns: what was ended after the snapshot comes back with it, as who stood in for somebody would.
func TestAnEpochEndsStandIns(t *testing.T) {
	w := standInWorld(t)
	w.must(w.apply("bob", w.standIn("payments-owners", "dave", time.Hour)))
	w.must(w.apply("", w.restored(testLineage)))
	if s := Read(w.a); s.isMember("dave", "payments-owners") || !s.isMember("bob", "payments-owners") {
		t.Error("dave still stands in for bob")
	}
	e, err := w.leaf(int(w.leaves()) - 1)
	if err != nil || !strings.Contains(string(e.Details), `"stand_ins":1`) {
		t.Errorf("the entry says %s, %v", e.Details, err)
	}
}

// TestStandInsAreBounded: a group lists so many who may stand in, and no more.
func TestStandInsAreBounded(t *testing.T) {
	w := newWorld(t)
	g := Group{Name: "security", Members: []string{"carol"}}
	for i := range MaxSubstitutes + 1 {
		g.Substitutes = append(g.Substitutes, fmt.Sprint("p", i))
	}
	_, base := w.revisions()
	w.refused("too many", w.apply("ada", ProposeChange{ID: w.id(), Edit: Edit{Kind: EditGroupSet, Group: &g}, BaseRevision: base}), ErrInvalid, "101 substitutes, at most 100")
}

// TestStandInsAreChecked: every field of what is kept is one that the checker looks at.
func TestStandInsAreChecked(t *testing.T) {
	for what, spoil := range map[string]func(in *StandIn){
		"another group":      func(in *StandIn) { in.Group = "security" },
		"no member":          func(in *StandIn) { in.For = "dave" },
		"another member":     func(in *StandIn) { in.For = "carol" },
		"no substitute":      func(in *StandIn) { in.By = "amy" },
		"another substitute": func(in *StandIn) { in.By = "erin" },
		"no reason":          func(in *StandIn) { in.Reason = "" },
		"from later on":      func(in *StandIn) { in.Since = in.Until - 1 },
		"another end":        func(in *StandIn) { in.Until++ },
		"for ever":           func(in *StandIn) { in.Until = in.Since.Add(MaxStandIn) + 1 },
		"by no command":      func(in *StandIn) { in.Index = 0 },
	} {
		w := standInWorld(t)
		w.must(w.apply("bob", w.standIn("payments-owners", "dave", time.Hour)))
		in, _, err := Read(w.a).StandInFor("bob", "payments-owners")
		if err != nil {
			t.Fatal(err)
		}
		spoil(&in)
		data, err := encoder.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		w.a.Put(standInKey("payments-owners", "bob"), data)
		if err := w.a.check(); !errors.Is(err, ErrInvariant) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, g := range map[string]Group{
		"a substitute who is a member":   {Name: "security", Members: []string{"carol", "dave"}, Substitutes: []string{"carol"}},
		"one twice":                      {Name: "security", Members: []string{"carol", "dave"}, Substitutes: []string{"bob", "bob"}},
		"one who is no person":           {Name: "security", Members: []string{"carol", "dave"}, Substitutes: []string{"mallory"}},
		"one who stands in for an admin": {Name: "admins", Members: []string{"ada", "abe", "amy", "ann"}, Substitutes: []string{"bob"}},
	} {
		w := standInWorld(t)
		data, err := encoder.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		w.a.Put(key(prefixGroup, g.Name), data)
		if err := w.a.check(); !errors.Is(err, ErrInvariant) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestStandInJSON: a group without substitutes reads as it always has.
func TestStandInJSON(t *testing.T) {
	data, err := json.Marshal(Group{Name: "g", Members: []string{"m"}})
	if err != nil || string(data) != `{"name":"g","members":["m"]}` {
		t.Errorf("%s, %v", data, err)
	}
}
