package approval

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

const (
	inTeam      = "T024BE7LH"
	slackBridge = "bridge/slack"

	bobInSlack   = inTeam + "/U0BOB"
	carolInSlack = inTeam + "/U0CAROL"
	aliceInSlack = inTeam + "/U0ALICE"
)

const slackPolicy = `version: 3
channels:
  slack: {team: T024BE7LH, bridge: spiffe://acme.test/bridge/slack}
rules:
  - name: read
    service: payments
    requesters: ["group:engineers", "spiffe://acme.test/bridge/*"]
    permissions: ["GET /**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
    channels: [slack]
  - name: refund
    service: payments
    requesters: ["group:engineers"]
    permissions: ["POST /refunds/*"]
    require: [{group: payments-owners, approvals: 2}]
    max_duration: 1h
    channels: [slack]
  - name: vip
    service: payments
    requesters: ["group:engineers"]
    permissions: ["GET /vip/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
`

// slackWorld is a cluster in which bob, carol and alice have accounts.
func slackWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.change(Edit{Kind: EditPolicySet, YAML: slackPolicy}, "abe", "amy")
	for name, account := range map[string]string{"bob": bobInSlack, "carol": carolInSlack, "alice": aliceInSlack} {
		w.change(Edit{Kind: EditPersonSet, Person: &Person{Name: name, IDs: []string{spiffe(name)}, Owns: []string{}, Slack: account}}, "abe", "amy")
	}
	return w
}

func (w *world) inSlack(id string, v Verdict, account string) DecideRequest {
	d := w.decide(id, v)
	d.Slack = account
	return d
}

func (w *world) ask(actor string, permission string) string {
	w.tb.Helper()
	b := w.create("payments", []string{permission}, time.Hour)
	b.Subject = spiffe(actor)
	w.must(w.apply(actor, b))
	return b.ID
}

func (w *world) refused(what string, r Result, want error, words string) {
	w.tb.Helper()
	if err := r.Failure(); !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
		w.tb.Errorf("%s: %v, want %v with %q", what, err, want, words)
	}
}

// TestSlackDecides: a button approves and denies what was shown, and the audit log says
// that nobody's certificate was seen.
func TestSlackDecides(t *testing.T) {
	w := slackWorld(t)
	id := w.ask("alice", "GET /accounts/1")
	w.must(w.apply(slackBridge, w.inSlack(id, Approve, bobInSlack)))
	if d := w.request(id).Decisions[0]; w.request(id).State != RequestApproved || d.Person != "bob" || d.Slack != bobInSlack || d.Actor != spiffe(slackBridge) {
		t.Errorf("%+v", w.request(id))
	}
	e, err := w.leaf(int(w.leaves()) - 1)
	if err != nil {
		t.Fatal(err)
	}
	var said struct {
		Person        string `json:"person"`
		Slack         string `json:"slack"`
		NoCertificate bool   `json:"no_certificate"`
	}
	if err := json.Unmarshal(e.Details, &said); err != nil || e.Actor != spiffe(slackBridge) || said.Person != "bob" || said.Slack != bobInSlack || !said.NoCertificate {
		t.Errorf("the entry says %s, %v", e.Details, err)
	}
	id = w.ask("alice", "GET /accounts/2")
	w.must(w.apply(slackBridge, w.inSlack(id, Deny, carolInSlack)))
	if r := w.request(id); r.State != RequestDenied || r.Decisions[0].Slack != carolInSlack {
		t.Errorf("%+v", r)
	}
}

// TestSlackAttacks: whoever has the bridge, a signing secret, an account or a workspace
// gets no further than a person with an account may.
func TestSlackAttacks(t *testing.T) {
	w := slackWorld(t)
	id := w.ask("alice", "GET /accounts/1")
	other := w.ask("erin", "GET /accounts/2")
	approve := w.inSlack(id, Approve, bobInSlack)
	for what, actor := range map[string]string{"a person": "carol", "the person": "bob", "an admin": "ada", "a node": "node/n1", "a service": "service/slack", "another bridge": "bridge/slack2"} {
		w.refused(what+" in Slack's name", w.apply(actor, approve), ErrDenied, "is not who brings in")
	}
	w.refused("the bridge as itself", w.apply(slackBridge, w.decide(id, Approve)), ErrDenied, "is nobody's")
	w.refused("the requester", w.apply(slackBridge, w.inSlack(id, Approve, aliceInSlack)), ErrDenied, "may not decide on it")
	w.refused("a stranger", w.apply(slackBridge, w.inSlack(id, Approve, inTeam+"/U0EVE")), ErrDenied, "is nobody's")
	w.refused("another workspace", w.apply(slackBridge, w.inSlack(id, Approve, "T0EVIL/U0BOB")), ErrDenied, "is not that of the policy")
	for _, account := range []string{"U0BOB", "T024BE7LH/", "T024BE7LH/U0BOB/x", "T024BE7LH/u0bob", "/U0BOB", "T024BE7LH/U0BOB\x00"} {
		w.refused("account "+account, w.apply(slackBridge, w.inSlack(id, Approve, account)), ErrInvalid, "no Slack account")
	}
	shown := approve
	shown.Hash = w.request(other).Hash()
	w.refused("another request's hash", w.apply(slackBridge, shown), ErrStale, "changed since")
	for what, change := range map[string]func(*DecideRequest){
		"narrower": func(b *DecideRequest) { b.Permissions = []string{"GET /accounts/1"} },
		"shorter":  func(b *DecideRequest) { b.Duration = 60_000 },
		"words":    func(b *DecideRequest) { b.Comment = "as discussed" },
	} {
		b := approve
		change(&b)
		w.refused(what, w.apply(slackBridge, b), ErrInvalid, "a button in Slack decides on what was shown")
	}
	vip := w.ask("alice", "GET /vip/1")
	for _, v := range []Verdict{Approve, Deny} {
		w.refused("a rule without the channel", w.apply(slackBridge, w.inSlack(vip, v, bobInSlack)), ErrDenied, "with certificates alone")
	}
	own := w.ask(slackBridge, "GET /accounts/3")
	w.refused("what the bridge asks for", w.apply(slackBridge, w.inSlack(own, Approve, bobInSlack)), ErrDenied, "has a part in request")

	w.must(w.apply("ada", BlockSubject{Subject: spiffe("bob"), Reason: "gone"}))
	w.refused("who is blocked", w.apply(slackBridge, approve), ErrDenied, "is blocked")
	w.change(Edit{Kind: EditPersonDelete, Name: "carol"}, "abe", "amy")
	w.refused("who is removed", w.apply(slackBridge, w.inSlack(id, Deny, carolInSlack)), ErrDenied, "is nobody's")
	w.must(w.apply("ada", BlockSubject{Subject: spiffe(slackBridge), Reason: "stolen"}))
	w.refused("a blocked bridge", w.apply(slackBridge, w.inSlack(other, Deny, aliceInSlack)), ErrDenied, "is blocked")
}

// TestSlackIsOneApproval: one signing secret is never as good as two persons; what is
// proven takes the place of what is not.
func TestSlackIsOneApproval(t *testing.T) {
	w := slackWorld(t)
	id := w.ask("alice", "POST /refunds/1")
	w.must(w.apply(slackBridge, w.inSlack(id, Approve, bobInSlack)))
	w.refused("twice", w.apply(slackBridge, w.inSlack(id, Approve, bobInSlack)), ErrConflict, "has approved")
	w.refused("a second one", w.apply(slackBridge, w.inSlack(id, Approve, carolInSlack)), ErrDenied, "one approval at the most")
	w.must(w.apply("bob", w.decide(id, Approve)))
	if r := w.request(id); r.State != RequestPending || len(r.Decisions) != 1 || r.Decisions[0].Slack != "" {
		t.Fatalf("%+v", r)
	}
	w.must(w.apply(slackBridge, w.inSlack(id, Approve, carolInSlack)))
	if g := w.grant(id); len(g.Votes) != 2 {
		t.Errorf("%+v", g)
	}
	id = w.ask("alice", "POST /refunds/2")
	w.must(w.apply(slackBridge, w.inSlack(id, Approve, bobInSlack)))
	w.must(w.apply(slackBridge, w.inSlack(id, Deny, carolInSlack)))
	if r := w.request(id); r.State != RequestDenied {
		t.Errorf("%+v", r)
	}
}

// TestSlackVoteStands: an approval of an account that was taken away, or of a channel
// that was closed, counts no longer.
func TestSlackVoteStands(t *testing.T) {
	for what, change := range map[string]Edit{
		"the account went": {Kind: EditPersonSet, Person: &Person{Name: "bob", IDs: []string{spiffe("bob")}, Owns: []string{}}},
		"another's account": {Kind: EditPersonSet, Person: &Person{
			Name: "bob", IDs: []string{spiffe("bob")}, Owns: []string{}, Slack: inTeam + "/U0ROB",
		}},
		"another workspace":  {Kind: EditPolicySet, YAML: strings.ReplaceAll(slackPolicy, inTeam, "T0OTHER")},
		"another bridge":     {Kind: EditPolicySet, YAML: strings.ReplaceAll(slackPolicy, "bridge/slack", "bridge/other")},
		"the channel closed": {Kind: EditPolicySet, YAML: strings.ReplaceAll(slackPolicy, "    channels: [slack]\n", "")},
	} {
		w := slackWorld(t)
		id := w.ask("alice", "POST /refunds/1")
		w.must(w.apply(slackBridge, w.inSlack(id, Approve, bobInSlack)))
		if _, counts := Read(w.a).Standing(w.request(id)); !counts[0] {
			t.Fatal("it never counted")
		}
		w.change(change, "abe", "amy")
		if _, counts := Read(w.a).Standing(w.request(id)); counts[0] {
			t.Errorf("%s: it still counts", what)
		}
		w.must(w.apply("carol", w.decide(id, Approve)))
		if r := w.request(id); r.State != RequestPending {
			t.Errorf("%s: %s", what, r.State)
		}
	}
}

// TestSlackDirectory: an account is one person's, and the bridge is nobody's, and no
// identity that one admin alone has issued.
func TestSlackDirectory(t *testing.T) {
	w := slackWorld(t)
	propose := func(e Edit) Result {
		t.Helper()
		policyRevision, base := w.revisions()
		if e.Kind == EditPolicySet {
			base = policyRevision
		}
		return w.apply("ada", ProposeChange{ID: w.id(), Edit: e, BaseRevision: base})
	}
	person := func(name, slack string, ids ...string) Edit {
		return Edit{Kind: EditPersonSet, Person: &Person{Name: name, IDs: ids, Owns: []string{}, Slack: slack}}
	}
	w.refused("another's account", propose(person("dave", bobInSlack, spiffe("dave"))), ErrConflict, "is the Slack account of person")
	w.refused("no account", propose(person("dave", "@dave", spiffe("dave"))), ErrInvalid, "want TEAM/USER")
	w.refused("a person who is the bridge", propose(person("dave", "", spiffe("dave"), spiffe(slackBridge))), ErrInvalid, "bring in what is decided")
	bridge := func(id string) Edit {
		return Edit{Kind: EditPolicySet, YAML: strings.ReplaceAll(slackPolicy, "bridge: spiffe://acme.test/bridge/slack", "bridge: "+id)}
	}
	w.refused("a service", propose(bridge("spiffe://acme.test/service/slack")), ErrInvalid, "one admin alone")
	w.refused("a node", propose(bridge("spiffe://acme.test/node/n1")), ErrInvalid, "one admin alone")
	w.refused("a person", propose(bridge("spiffe://acme.test/user/dave")), ErrInvalid, `is person "dave"`)
	w.refused("a grant", propose(bridge("spiffe://grants.acme.test/x")), ErrInvalid, "a grant is not an identity")
	issue := IssueIdentity{
		Serial: "c0ffee", TBSHash: sha256Hex(nil), Issuer: issuerID("n1", RoleIdentity), SPIFFEID: spiffe(slackBridge),
		NotBefore: w.now.UnixMilli(), NotAfter: w.now.Add(time.Hour).UnixMilli(), Key: sha256Hex(nil),
	}
	w.refused("an admin who has it issued", w.apply("ada", issue), ErrDenied, "is not a service or node")
	w.change(person("bob", "", spiffe("bob")), "abe", "amy")
	w.change(person("dave", bobInSlack, spiffe("dave")), "abe", "amy")
}

// TestSlackVoteOfARuleThatCame: two admins add a rule that asks as much as the one before, and takes nothing from
// Slack. What was approved there counts no longer, also of what was asked for earlier.
func TestSlackVoteOfARuleThatCame(t *testing.T) {
	w := slackWorld(t)
	id := w.ask("alice", "POST /refunds/1")
	w.must(w.apply(slackBridge, w.inSlack(id, Approve, bobInSlack)))
	w.change(Edit{Kind: EditPolicySet, YAML: slackPolicy + `  - name: refund-in-person
    service: payments
    requesters: ["group:engineers"]
    permissions: ["POST /refunds/*"]
    require: [{group: payments-owners, approvals: 2}]
    max_duration: 1h
`}, "abe", "amy")
	w.must(w.apply("carol", w.decide(id, Approve)))
	if r := w.request(id); r.State != RequestPending || len(r.Rules) != 2 {
		t.Fatalf("%s by the rules %s", r.State, r.Rules)
	}
	w.must(w.apply("bob", w.decide(id, Approve)))
	if r := w.request(id); r.State != RequestApproved {
		t.Errorf("with both certificates: %s", r.State)
	}
}

// TestSlackVoteOfABlockedBridge: a thief has approved what was open, and the bridge is blocked. Who approves
// afterwards is not the second of two.
func TestSlackVoteOfABlockedBridge(t *testing.T) {
	w := slackWorld(t)
	id := w.ask("alice", "POST /refunds/1")
	w.must(w.apply(slackBridge, w.inSlack(id, Approve, bobInSlack)))
	w.must(w.apply("ada", BlockSubject{Subject: spiffe(slackBridge), Reason: "stolen"}))
	w.must(w.apply("carol", w.decide(id, Approve)))
	if r := w.request(id); r.State != RequestPending {
		t.Errorf("%s", r.State)
	}
}

// TestSlackExtensionOfItsOwn: the bridge has asked for a grant, in another's name, and brings in nothing of what
// would have it go on.
func TestSlackExtensionOfItsOwn(t *testing.T) {
	w := slackWorld(t)
	w.change(Edit{Kind: EditPolicySet, YAML: strings.Replace(slackPolicy, `    requesters: ["group:engineers", "spiffe://acme.test/bridge/*"]
`, `    requesters: ["group:engineers", "spiffe://acme.test/bridge/*", "spiffe://acme.test/batch/*"]
    subjects: ["spiffe://acme.test/batch/*"]
    max_extended: 4h
`, 1)}, "abe", "amy")
	b := w.create("payments", []string{"GET /a"}, 10*time.Minute)
	b.Subject = spiffe("batch/x")
	w.must(w.apply(slackBridge, b))
	w.must(w.apply("carol", w.decide(b.ID, Approve)))
	e := w.create("payments", []string{"GET /a"}, 10*time.Minute)
	e.Subject, e.Extends = spiffe("batch/x"), b.ID
	w.must(w.apply("batch/x", e))
	w.refused("an extension of its own", w.apply(slackBridge, w.inSlack(e.ID, Approve, bobInSlack)), ErrDenied, "has a part in request")
}
