package approval

import (
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

const livesPolicy = `version: 3
rules:
  - name: accounts
    service: payments
    requesters: ["group:engineers", "spiffe://acme.test/agent/*"]
    subjects: ["spiffe://acme.test/agent/*"]
    permissions: ["GET,POST /accounts/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    max_extended: 3h
    delegate: {to: ["spiffe://acme.test/agent/*", "spiffe://acme.test/user/*"], max_grants: 3, max_duration: 30m}
    break_glass: {groups: [engineers], max_duration: 20m, review: [security], review_within: 1h}
`

// TestRandomLives lets grants be asked for, broken out, extended, handed on, ended and
// reviewed in any order. After each command all invariants are checked
// (world.applyBytes does); nothing that was given without an approval lives beyond
// what it goes by.
func TestRandomLives(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt)
		w.change(Edit{Kind: EditPolicySet, YAML: livesPolicy}, "abe", "amy")
		ids := []string{w.delegable()}
		ids = append(ids, w.childOf(ids[0], "agent/one"))
		what := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(rt, label) }
		who := func() string {
			return what("who", "alice", "erin", "bob", "carol", "dave", "agent/one", "agent/bob-bot", "ada")
		}
		some := func() string { return rapid.SampledFrom(ids).Draw(rt, "which") }
		ask := func(actor string, b CreateRequest) {
			b.ID = w.id()
			if r := w.apply(actor, b); r.Err == nil {
				ids = append(ids, b.ID)
			}
		}
		for range rapid.IntRange(10, 50).Draw(rt, "steps") {
			actor := who()
			perms := []string{what("what", "GET /accounts/**", "GET /accounts/1", "POST /accounts/1")}
			b := w.create("payments", perms, rapid.SampledFrom([]time.Duration{time.Minute, 20 * time.Minute, time.Hour}).Draw(rt, "for"))
			b.Subject = spiffe(actor)
			switch what("step", "ask", "ask", "approve", "approve", "approve", "break", "review", "extend", "extend", "delegate", "delegate", "issue", "revoke", "return", "block", "wait", "tick") {
			case "ask":
				b.Delegable = rapid.Bool().Draw(rt, "delegable")
				ask(actor, b)
			case "break":
				b.BreakGlass = true
				ask(actor, b)
			case "extend", "delegate":
				id := some()
				g, err := Read(w.a).Grant(id)
				if err != nil {
					continue
				}
				if what("how", "extend", "delegate") == "extend" {
					b.Extends, b.Permissions, b.Subject = id, g.Permissions, g.Subject
					ask(actor, b)
					continue
				}
				b.Parent, b.Subject = id, spiffe(what("to", "agent/one", "agent/two", "agent/bob-bot", "alice"))
				ask(what("by", g.Subject, g.Subject, actor), b)
			case "approve":
				id := some()
				if _, err := Read(w.a).Request(id); err == nil {
					w.apply(actor, w.decide(id, Approve))
				}
			case "review":
				w.apply(actor, CloseReview{Request: some(), Finding: "as it said"})
			case "issue":
				id := some()
				if g, err := Read(w.a).Grant(id); err == nil {
					w.apply(g.Subject, w.issue(id))
				}
			case "revoke":
				w.apply(what("by", "ada", actor), RevokeGrant{Grant: some(), Reason: "enough"})
			case "return":
				w.apply(actor, ReturnGrant{Grant: some()})
			case "block":
				if rapid.IntRange(0, 5).Draw(rt, "block") == 0 {
					w.apply("ada", BlockSubject{Subject: spiffe(actor), Reason: "stolen"})
				}
			case "wait":
				w.now = w.now.Add(rapid.SampledFrom([]time.Duration{time.Minute, 25 * time.Minute, 2 * time.Hour, MinRetention + 2*time.Hour}).Draw(rt, "time"))
			case "tick":
				w.apply("", Tick{RetainMS: MinRetention.Milliseconds()})
			}
			lived(rt, w, ids)
		}
	})
}

// lived checks of each grant, apart from what CheckInvariants knows of records, that it
// stands on something.
func lived(t *rapid.T, w *world, ids []string) {
	now := MillisOf(w.now)
	for _, id := range ids {
		g, err := Read(w.a).Grant(id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		life := g.Expiry.Time().Sub(g.NotBefore.Time())
		switch {
		case g.BreakGlass && life > 20*time.Minute:
			t.Fatalf("a broken glass of %s", life)
		case g.Parent != "" && life > 30*time.Minute, life > 3*time.Hour, len(g.Extensions) == 0 && life > time.Hour:
			t.Fatalf("grant %+v lives %s", g, life)
		case !g.BreakGlass && g.Parent == "" && len(g.Votes) != 1:
			t.Fatalf("nobody approved %+v", g)
		}
		if g.Parent == "" || g.StateAt(now) != GrantActive {
			continue
		}
		if p := w.grant(g.Parent); p.StateAt(now) != GrantActive || p.StandsOn(Read(w.a).PersonName(mustID(t, g.Subject))) {
			t.Fatalf("%+v lives under %+v", g, p)
		}
	}
}

func mustID(t *rapid.T, text string) spiffeid.ID {
	id, err := parseID("the subject", text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
