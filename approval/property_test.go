package approval

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestRandomHistories applies random commands of all kinds, sensible and not,
// to two replicas. After each one all invariants are checked (world.applyBytes
// does), and what the small model of model_test.go says of it must be so.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{t: rt, w: newWorld(rt), m: newModel()}
		if rapid.Bool().Draw(rt, "substitutes") {
			h.w.substitutes("payments-owners", "dave", "erin")
			h.w.substitutes("security", "bob", "erin")
		}
		for range rapid.IntRange(10, 40).Draw(rt, "steps") {
			h.step()
		}
		again := newMemory()
		for i, data := range h.w.log {
			Apply(again, uint64(i+1), data)
		}
		if again.fingerprint() != h.w.a.fingerprint() {
			rt.Fatal("the log replayed into an empty store is another state")
		}
	})
}

// history is one random history.
type history struct {
	t        *rapid.T
	w        *world
	m        *model
	requests []string
	changes  []string
	serials  []string
	sent     []Command // with an idempotency key
}

func pick[T any](h *history, label string, from ...T) T {
	return rapid.SampledFrom(from).Draw(h.t, label)
}

// likely is true most of the time.
func (h *history) likely(label string) bool { return rapid.IntRange(0, 9).Draw(h.t, label) > 0 }

func (h *history) who() string {
	return pick(h, "who", "alice", "erin", "bob", "carol", "dave", "ada", "abe", "amy", "ann",
		"device/alice-phone", "agent/alice-bot", "agent/bob-bot", "service/batch", "nobody")
}

func (h *history) step() {
	switch pick(h, "step", "request", "request", "decide", "decide", "decide", "decide", "issue", "issue", "issue", "issue", "revoke", "return",
		"cancel", "stand in", "stand in", "propose", "decide change", "decide change", "decide change", "block", "deny issuer", "identity", "wait", "tick", "again") {
	case "request":
		h.request()
	case "decide":
		h.decide()
	case "issue":
		h.issue()
	case "revoke":
		if id, ok := h.some(h.requests); ok {
			h.do(h.who(), RevokeGrant{Grant: id, Reason: "enough"})
		}
	case "return":
		if id, ok := h.some(h.requests); ok {
			h.do(h.who(), ReturnGrant{Grant: id})
		}
	case "cancel":
		if id, ok := h.some(h.requests); ok {
			h.do(h.who(), CancelRequest{Request: id})
		}
		if id, ok := h.some(h.changes); ok {
			h.do(h.who(), CancelChange{Change: id})
		}
	case "stand in":
		h.standIn()
	case "propose":
		h.propose()
	case "decide change":
		h.decideChange()
	case "block":
		h.do(h.admin(), BlockSubject{Subject: spiffe(h.who()), Reason: "stolen"})
	case "deny issuer":
		if !h.likely("spare the issuers") {
			h.do(h.admin(), DenyIssuer{Issuer: issuerID(pick(h, "node", "n1", "n2", "n9"), RoleGrant), Reason: "stolen"})
		}
	case "identity":
		h.identity()
	case "wait":
		h.w.now = h.w.now.Add(pick(h, "time", time.Minute, 10*time.Minute, time.Hour, 25*time.Hour, 8*24*time.Hour, MinRetention, -time.Hour))
	case "tick":
		h.do("", Tick{RetainMS: pick(h, "retention", Retention, MinRetention).Milliseconds()})
	case "again":
		h.again()
	}
}

// admin is an admin most of the time.
func (h *history) admin() string {
	if h.likely("an admin") {
		return pick(h, "admin", "ada", "abe", "amy", "ann")
	}
	return h.who()
}

func (h *history) some(ids []string) (string, bool) {
	if len(ids) == 0 {
		return "", false
	}
	return ids[rapid.IntRange(max(0, len(ids)-5), len(ids)-1).Draw(h.t, "which")], true
}

func (h *history) do(actor string, body Body) Result {
	c := h.w.command(actor, body)
	c.Node = pick(h, "via", "n1", "n2", "n3")
	if rapid.IntRange(0, 4).Draw(h.t, "key") == 0 {
		c.Idem = &Idem{Key: fmt.Sprint(rapid.IntRange(0, 5).Draw(h.t, "idem")), BodyHash: sha256Hex(fmt.Append(nil, body))}
		h.sent = append(h.sent, c)
	}
	r := h.w.applyCommand(c)
	h.note(c, r)
	return r
}

// again sends an earlier command as a client does that heard no answer, or as
// someone who has got hold of its key.
func (h *history) again() {
	if len(h.sent) == 0 {
		return
	}
	c := rapid.SampledFrom(h.sent).Draw(h.t, "again")
	c.ID, c.Now = h.w.id(), h.w.now.UnixMilli()
	if c.Actor != "" && rapid.Bool().Draw(h.t, "another caller") {
		c.Actor = spiffe(h.who())
	}
	h.note(c, h.w.applyCommand(c))
}

// note tells the model what was accepted.
func (h *history) note(c Command, r Result) {
	if !r.Changed {
		return
	}
	switch b := c.Body.(type) {
	case CreateRequest:
		h.m.granted(h.w, b.ID)
	case DecideRequest:
		h.m.granted(h.w, b.Request)
	case RevokeGrant:
		h.m.live[b.Grant].ended = true
	case ReturnGrant:
		h.m.live[b.Grant].ended = true
	case BlockSubject:
		h.m.block(b.Subject)
	case IssueGrant:
		h.m.issued(h.t, b, h.now())
	case DecideChange:
		if change := r.Object.(Change); change.State == ChangeApplied && change.Edit.Kind == EditSubjectUnblock {
			delete(h.m.blocked, change.Edit.Subject)
		}
	}
}

func (h *history) now() Millis {
	m, err := Read(h.w.a).meta()
	if err != nil {
		h.t.Fatal(err)
	}
	return max(MillisOf(h.w.now), m.LastNow)
}

func (h *history) request() {
	actor := h.who()
	type ask struct {
		service string
		perms   []string
	}
	a := pick(h, "ask",
		ask{"payments", []string{"GET /accounts/**"}}, ask{"payments", []string{"POST /refunds/*"}},
		ask{"payments", []string{"GET,HEAD /accounts/**", "POST /refunds/*"}}, ask{"ledger", []string{"grpc bank.Ledger/*"}},
		ask{"ledger", []string{"grpc bank.Ledger/*"}}, ask{"status", []string{"GET /**"}}, ask{"vault", []string{"GET /x"}})
	b := h.w.create(a.service, a.perms, pick(h, "for", 10*time.Minute, 30*time.Minute, 2*time.Hour))
	b.Subject = spiffe(actor)
	if !h.likely("for oneself") {
		b.Subject = spiffe(h.who())
	}
	if rapid.IntRange(0, 4).Draw(h.t, "later") == 0 {
		b.Start = h.w.now.Add(pick(h, "start", 20*time.Minute, 3*time.Hour)).UnixMilli()
	}
	if rapid.IntRange(0, 4).Draw(h.t, "pinned") == 0 {
		b.CSRKey = sha256Hex([]byte("key"))
	}
	if r := h.do(actor, b); r.Changed {
		h.requests = append(h.requests, b.ID)
	}
}

func (h *history) decide() {
	id, ok := h.some(h.requests)
	if !ok {
		return
	}
	actor := pick(h, "approver", "bob", "carol", "dave", "alice", "ada", "erin", "device/alice-phone", "agent/bob-bot", "abe")
	b := h.w.decide(id, pick(h, "verdict", Approve, Approve, Approve, Approve, Deny))
	before := h.w.request(id)
	if !h.likely("what was shown") {
		b.Hash = before.Revisions[0].Hash
	}
	if b.Verdict == Approve && rapid.IntRange(0, 3).Draw(h.t, "narrow") == 0 {
		b.Duration = pick(h, "shorter", int64(0), 300_000, 600_000, 10_000_000)
		perms := before.Current().Permissions
		b.Permissions = [][]string{nil, perms[:1], {"GET /accounts/x"}, {"grpc bank.Ledger/Read"}}[rapid.IntRange(0, 3).Draw(h.t, "only")]
	}
	may := mayVote(h.w, before, spiffe(actor), b.Verdict)
	r := h.do(actor, b)
	if r.Err == nil && !may {
		h.t.Fatalf("%s decided on %+v", actor, before)
	}
	if r.Err != nil {
		if may && r.Err.Code == CodeDenied && !strings.Contains(r.Err.Detail, "widen") && !strings.Contains(r.Err.Detail, "narrowed so") {
			h.t.Fatalf("%s may decide on %+v: %v", actor, before, r.Err)
		}
		return
	}
	after := h.w.request(id)
	if want := satisfied(h.w, after); b.Verdict == Approve && (after.State == RequestApproved) != want {
		h.t.Fatalf("%s, the model says approved=%v: %+v", after.State, want, after)
	}
}

func (h *history) issue() {
	id, ok := h.some(h.requests)
	if !ok || h.w.request(id).State != RequestApproved {
		return
	}
	b := h.w.issue(id)
	actor := b.CSRBy
	if !h.likely("its subject") {
		actor = spiffe(h.who())
	}
	if !h.likely("in time") {
		b.NotAfter += pick(h, "more", int64(1), 60_000, 3_600_000)
	}
	if !h.likely("new serial") && len(h.serials) > 0 {
		b.Serial = rapid.SampledFrom(h.serials).Draw(h.t, "serial")
	}
	b.Issuer = issuerID(pick(h, "issuer", "n1", "n2", "n3", "n9"), RoleGrant)
	if r := h.do(actor, b); r.Changed {
		h.serials = append(h.serials, b.Serial)
	}
}

func (h *history) identity() {
	h.w.seq++
	h.do(h.admin(), IssueIdentity{
		Serial: fmt.Sprintf("%x", 0x3000_0000+h.w.seq), TBSHash: sha256Hex(fmt.Append(nil, h.w.seq)), Key: sha256Hex(nil),
		Issuer: issuerID("n1", RoleIdentity), SPIFFEID: spiffe(pick(h, "identity", "service/payments", "node/n4", "bob", "agent/alice-bot")),
		NotBefore: h.w.now.UnixMilli(), NotAfter: h.w.now.Add(pick(h, "ttl", time.Hour, 800*time.Hour)).UnixMilli(),
	})
}

func (h *history) propose() {
	names := []string{"alice", "bob", "carol", "dave", "ada", "abe", "amy", "ann"}
	members := rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 6, rapid.ID[string]).Draw(h.t, "members")
	person := Person{Name: pick(h, "person", names...), Owns: []string{}}
	person.IDs = []string{spiffe(person.Name)}
	if rapid.Bool().Draw(h.t, "another ID") {
		person.IDs = append(person.IDs, spiffe(pick(h, "ID", "device/alice-phone", "device/"+person.Name, "agent/alice-bot")))
	}
	if rapid.Bool().Draw(h.t, "owner") {
		person.Owns = append(person.Owns, spiffe(pick(h, "owned", "agent/bob-bot", "agent/alice-bot", "erin")))
	}
	group := Group{Name: pick(h, "group", "admins", "engineers", "payments-owners", "payments-owners", "security", "new"), Members: members}
	for _, name := range names {
		if !slices.Contains(members, name) && rapid.IntRange(0, 3).Draw(h.t, "substitute") == 0 {
			group.Substitutes = append(group.Substitutes, name)
		}
	}
	if group.Name == AdminGroup && h.likely("no substitutes") {
		group.Substitutes = nil
	}
	e := pick(h, "edit",
		Edit{Kind: EditGroupSet, Group: &group},
		Edit{Kind: EditPersonSet, Person: &person},
		Edit{Kind: EditPersonDelete, Name: person.Name},
		Edit{Kind: EditGroupDelete, Name: pick(h, "gone", "new", "security")},
		Edit{Kind: EditPolicySet, YAML: strings.ReplaceAll(defaultPolicy, "approvals: 1", fmt.Sprintf("approvals: %d", rapid.IntRange(1, 2).Draw(h.t, "approvals")))},
		Edit{Kind: EditSubjectUnblock, Subject: spiffe(h.who())})
	policyRevision, base := h.w.revisions()
	if e.Kind == EditPolicySet {
		base = policyRevision
	}
	b := ProposeChange{ID: h.w.id(), Edit: e, BaseRevision: base}
	if r := h.do(h.admin(), b); r.Changed {
		h.changes = append(h.changes, b.ID)
	}
}

func (h *history) decideChange() {
	id, ok := h.some(h.changes)
	if !ok {
		return
	}
	actor := h.admin()
	before, err := Read(h.w.a).Change(id)
	if err != nil {
		h.t.Fatal(err)
	}
	may := mayVoteChange(h.w, before, spiffe(actor))
	admins := groupOf(h.w, AdminGroup)
	r := h.do(actor, h.w.decideChange(id, pick(h, "verdict", Approve, Approve, Approve, Approve, Approve, Deny)))
	if r.Err == nil && !may {
		h.t.Fatalf("%s decided on %+v", actor, before)
	}
	c, ok := r.Object.(Change)
	if !ok || !r.Changed || c.State != ChangeApplied {
		return
	}
	var approved []string
	for _, d := range c.Decisions {
		if slices.Contains(admins, d.Person) && d.Person != c.AuthorPerson && d.Verdict == Approve {
			approved = append(approved, d.Person)
		}
	}
	slices.Sort(approved)
	if len(slices.Compact(approved)) < 2 {
		h.t.Fatalf("applied on the approvals of %q: %+v", approved, c)
	}
}

// standIn has somebody stand in, or ends that. Whoever counts afterwards was let in by two admins: a member, or one of the group's substitutes.
func (h *history) standIn() {
	group := pick(h, "group", AdminGroup, "engineers", "payments-owners", "payments-owners", "payments-owners", "security", "new")
	if rapid.IntRange(0, 3).Draw(h.t, "end") == 0 {
		h.do(h.who(), EndStandIn{Group: group, For: pick(h, "for", "alice", "bob", "carol", "dave", "ada")})
		return
	}
	until := h.w.now.Add(pick(h, "away", time.Hour, 24*time.Hour, MaxStandIn, MaxStandIn+time.Second, -time.Minute)).UnixMilli()
	b := NameStandIn{Group: group, By: pick(h, "by", "alice", "bob", "dave", "dave", "erin", "erin"), Until: until, Reason: "away"}
	actor := h.who()
	if members := groupMembers(h.w, group); len(members) > 0 && h.likely("a member") {
		actor = pick(h, "member", members...)
	}
	if r := h.do(actor, b); r.Changed {
		persons := personsOf(h.w, spiffe(actor), false)
		if len(persons) != 1 || !slices.Contains(groupMembers(h.w, group), persons[0]) || slices.Contains(groupMembers(h.w, group), b.By) || group == AdminGroup {
			h.t.Fatalf("%s has %s stand in in %s", actor, b.By, group)
		}
	}
}
