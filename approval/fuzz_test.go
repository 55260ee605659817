package approval

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// busyWorld is a cluster with something of everything in it.
func busyWorld(tb failer) *world {
	tb.Helper()
	w := newWorld(tb)
	w.asks("alice", "alice", "ledger", "grpc bank.Ledger/*", time.Hour)
	id := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(id, Approve)))
	w.must(w.apply("alice", w.issue(id)))
	revoked := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(revoked, Approve)))
	w.must(w.apply("alice", w.issue(revoked)))
	w.must(w.apply("bob", RevokeGrant{Grant: revoked, Reason: "enough"}))
	w.must(w.apply("ada", BlockSubject{Subject: spiffe("agent/bob-bot"), Reason: "stolen"}))
	w.must(w.apply("ada", DenyIssuer{Issuer: issuerID("n3", RoleGrant), Reason: "stolen"}))
	w.change(Edit{Kind: EditGroupSet, Group: &Group{Name: "security", Members: []string{"carol", "dave", "erin"}}}, "abe")
	return w
}

// FuzzApply applies any bytes to a busy cluster. What is a command at all has no
// other spelling, and world.applyBytes checks that both replicas agree, a refusal
// writes nothing, a change has one leaf, and all invariants hold. Seeds are a command of each kind, and those of a real log.
func FuzzApply(f *testing.F) {
	w := busyWorld(f)
	for _, c := range oneOfEach() {
		data, err := c.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, data := range w.log {
		f.Add(data)
	}
	for _, c := range fittingCommands(w) {
		data, err := c.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeCommand(data)
		if err != nil {
			before := w.a.writes
			if r := Apply(w.a, w.index+1, data); r.Err == nil || r.Err.Code != CodeInvalid || w.a.writes != before {
				t.Fatalf("undecodable, and %+v", r)
			}
			return
		}
		if again, err := c.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x is a command, which is written %x, %v", data, again, err)
		}
		on := &world{tb: t, a: w.a.clone(), b: w.b.clone(), index: w.index, now: w.now, node: "n1"}
		on.applyBytes(data)
		empty := &world{tb: t, a: newMemory(), b: newMemory(), now: w.now, node: "n1"}
		empty.applyBytes(data)
	})
}

// fittingCommands would all be accepted by w.
func fittingCommands(w *world) []Command {
	r, _, err := Read(w.a).Requests(Filter{State: string(RequestPending)})
	if err != nil || len(r) != 1 {
		w.tb.Fatalf("%d pending requests, %v", len(r), err)
	}
	g, _, err := Read(w.a).Grants(Filter{State: string(GrantActive), Subject: spiffe("alice")})
	if err != nil || len(g) != 1 {
		w.tb.Fatalf("%d active grants, %v", len(g), err)
	}
	c, _, err := Read(w.a).Changes(Filter{})
	if err != nil || len(c) != 1 {
		w.tb.Fatalf("%d changes, %v", len(c), err)
	}
	narrow := w.decide(r[0].ID, Approve)
	narrow.Permissions, narrow.Duration = []string{"grpc bank.Ledger/Read"}, 60_000
	create := w.create("payments", []string{"GET /accounts/**"}, time.Minute)
	create.Subject = spiffe("alice")
	late := w.command("", aTick())
	late.Now += (2 * time.Hour).Milliseconds()
	return []Command{
		w.command("alice", create), w.command("bob", narrow), w.command("carol", w.decide(r[0].ID, Deny)),
		w.command("alice", CancelRequest{Request: r[0].ID}), w.command("alice", w.issue(g[0].ID)),
		w.command("alice", ReturnGrant{Grant: g[0].ID}), w.command("ada", RevokeGrant{Grant: g[0].ID, Reason: "x"}),
		w.command("amy", w.decideChange(c[0].ID, Approve)), w.command("ada", CancelChange{Change: c[0].ID}),
		w.command("ada", BlockSubject{Subject: spiffe("alice"), Reason: "x"}),
		w.command("ada", DenyIssuer{Issuer: issuerID("n1", RoleGrant), Reason: "x"}),
		w.command("node/n1", InstallIssuer{
			Node: "n1", GrantIssuer: testIssuer(RoleGrant, "n1", "next", 1000*time.Hour),
			APICertificate: apiCertificate(testRoot(RoleIdentity, 0), spiffe("node/n1"), "api", 1000*time.Hour),
		}),
		w.command("ada", SetRoots{Document: rootsDocument(RoleGrant, 1, testRoot(RoleGrant, 0), testRoot(RoleGrant, 1))}),
		w.command("ada", IssueIdentity{
			Serial: "abc", TBSHash: sha256Hex(nil), Issuer: issuerID("n1", RoleIdentity), SPIFFEID: spiffe("service/x"),
			NotBefore: w.now.UnixMilli(), NotAfter: w.now.Add(time.Hour).UnixMilli(), Key: sha256Hex(nil),
		}),
		w.command("ada", ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditPolicySet, YAML: defaultPolicy}}),
		w.command("ada", ProposeChange{ID: w.id(), BaseRevision: 1, Edit: Edit{Kind: EditPersonDelete, Name: "dave"}}),
		w.command("ada", ProposeChange{ID: w.id(), Edit: Edit{Kind: EditSubjectUnblock, Subject: spiffe("agent/bob-bot")}}),
		late,
		w.command("", SettleOutbox{Target: "chat", Position: 1}),
	}
}

// TestFittingCommands keeps the seeds worth their name.
func TestFittingCommands(t *testing.T) {
	t.Parallel()
	w := busyWorld(t)
	kinds := map[Kind]bool{}
	for _, c := range fittingCommands(w) {
		on := &world{tb: t, a: w.a.clone(), b: w.b.clone(), index: w.index, now: w.now, node: "n1"}
		if r := on.applyCommand(c); r.Err != nil || !r.Changed {
			t.Errorf("%s: %+v", c.Body.kind(), r)
		}
		kinds[c.Body.kind()] = true
	}
	if len(kinds) != 16 {
		t.Errorf("%d kinds", len(kinds))
	}
}

// TestMutatedCommands breaks commands that fit, a few bytes at a time.
func TestMutatedCommands(t *testing.T) {
	t.Parallel()
	w := busyWorld(t)
	commands := fittingCommands(w)
	rapid.Check(t, func(rt *rapid.T) {
		data, err := rapid.SampledFrom(commands).Draw(rt, "command").Encode()
		if err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 4).Draw(rt, "changes") {
			at := rapid.IntRange(0, len(data)-1).Draw(rt, "at")
			switch rapid.IntRange(0, 2).Draw(rt, "how") {
			case 0:
				data[at] = rapid.Byte().Draw(rt, "byte")
			case 1:
				data[at] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
			case 2:
				data = append(data[:at:at], data[min(len(data), at+1):]...)
			}
		}
		on := &world{tb: rt, a: w.a.clone(), b: w.b.clone(), index: w.index, now: w.now, node: "n1"}
		on.applyBytes(data)
	})
}
