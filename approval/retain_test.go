package approval

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/audit"
)

// forget is a tick that forgets as early as one may.
func forget() Tick { return Tick{RetainMS: MinRetention.Milliseconds()} }

// objectsOf is what the state holds apart from its counters and the audit log's
// hashes.
func objectsOf(m *memory) map[string]string {
	all := maps.Clone(m.all)
	maps.DeleteFunc(all, func(k, _ string) bool {
		return k == keyMeta || strings.HasPrefix(k, prefixAuditHash) || strings.HasPrefix(k, prefixAuditEdge)
	})
	return all
}

// TestForgetting makes one of everything that ends, and waits until nothing is
// left of it but the audit log.
func TestForgetting(t *testing.T) {
	w := newWorld(t)
	before := objectsOf(w.a)

	expires := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(expires, Approve)))
	w.must(w.apply("alice", w.issue(expires)))
	revoked := w.asks("alice", "agent/alice-bot", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(revoked, Approve)))
	w.must(w.apply("agent/alice-bot", w.issue(revoked)))
	w.must(w.apply("bob", RevokeGrant{Grant: revoked, Reason: "enough"}))
	denied := w.asks("erin", "erin", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(denied, Deny)))
	lapsed := w.asks("erin", "erin", "payments", "GET /accounts/**", time.Hour)
	c := w.command("ada", IssueIdentity{
		SPIFFEID: spiffe("service/payments"), Serial: "abc", TBSHash: sha256Hex(nil), Issuer: issuerID("n1", RoleIdentity),
		NotBefore: w.now.UnixMilli(), NotAfter: w.now.Add(time.Hour).UnixMilli(), Key: sha256Hex(nil),
	})
	c.Idem = &Idem{Key: "k", BodyHash: sha256Hex(nil)}
	w.must(w.applyCommand(c))
	change := w.change(Edit{Kind: EditPolicySet, YAML: defaultPolicy + "# again\n"}) // proposed, and left

	w.now = w.now.Add(8 * 24 * time.Hour)
	ended := w.now
	w.must(w.apply("", forget()))
	if got, _, err := Read(w.a).Requests(Filter{}); err != nil || len(got) != 4 {
		t.Fatalf("%d requests, %v", len(got), err)
	}
	for _, id := range []string{expires, revoked, denied, lapsed} {
		if got := w.request(id).State; got == RequestPending {
			t.Errorf("request %s is %s", id, got)
		}
	}
	if issues, err := Read(w.a).Issuances(expires); err != nil || len(issues) != 0 {
		t.Errorf("certificates of a week ago: %+v, %v", issues, err)
	}
	if _, err := Read(w.a).Issue("abc"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an identity's certificate of a week ago: %v", err)
	}

	w.now = ended.Add(MinRetention - 9*24*time.Hour)
	if r := w.must(w.apply("", forget())); r.Changed {
		t.Errorf("forgotten too early: %+v", r.Object)
	}
	w.now = ended.Add(MinRetention)
	if d := Read(w.a).Due(MillisOf(w.now), Retention); d.Now {
		t.Error("due before what the cluster is told to keep")
	}
	done, ok := w.must(w.apply("", forget())).Object.(Ticked)
	want := []string{expires, revoked, denied, lapsed, change}
	slices.Sort(want)
	slices.Sort(done.Forgotten)
	if !ok || !slices.Equal(done.Forgotten, want) || done.More {
		t.Errorf("forgotten: %+v, want %v", done, want)
	}
	if diff := cmp.Diff(before, objectsOf(w.a)); diff != "" {
		t.Errorf("what is left (-before +after):\n%s", diff)
	}
	if leaf, err := w.leaf(int(w.leaves()) - 1); err != nil || !strings.Contains(string(leaf.Details), revoked) {
		t.Errorf("the leaf does not say what was forgotten: %s, %v", leaf.Details, err)
	}
	if d := Read(w.a).Due(MillisOf(w.now), MinRetention); d.Next != 0 {
		t.Errorf("something is due at %s", d.Next)
	}
}

// TestForgettingIsBounded: one tick forgets so much, and says that there is more.
func TestForgettingIsBounded(t *testing.T) {
	w := newWorld(t)
	for range maxDue + 3 {
		ask := w.create("payments", []string{"GET /accounts/**"}, time.Hour)
		ask.Subject = spiffe("alice")
		w.must(w.quick("alice", ask))
		w.must(w.quick("alice", CancelRequest{Request: ask.ID}))
	}
	w.now = w.now.Add(Retention + 2*time.Hour)
	if d := Read(w.a).Due(MillisOf(w.now), Retention); !d.Now {
		t.Error("nothing is due")
	}
	for i, want := range []int{maxDue, 3} {
		done, ok := w.must(w.quick("", aTick())).Object.(Ticked)
		if !ok || len(done.Forgotten) != want || done.More != (i == 0) {
			t.Errorf("tick %d: %d forgotten, more: %v", i, len(done.Forgotten), done.More)
		}
	}
	if err := w.a.check(); err != nil || w.leaves() < 2*audit.Chunk {
		t.Errorf("after %d leaves: %v", w.leaves(), err)
	}
}

// TestRetentionHasBounds: a leader whose configuration is wrong makes the cluster
// forget nothing that matters.
func TestRetentionHasBounds(t *testing.T) {
	w := newWorld(t)
	for _, ms := range []int64{0, -1, MinRetention.Milliseconds() - 1, MaxRetention.Milliseconds() + 1, -1 << 63, 1<<63 - 1} {
		w.refuse(ErrInvalid, "", Tick{RetainMS: ms})
	}
}

// fill sets every field of v to something that is not zero.
func fill(t *testing.T, v reflect.Value, seed *int64) {
	t.Helper()
	*seed++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *seed))
	case reflect.Int, reflect.Int64:
		v.SetInt(1_772_355_600_000 + *seed)
	case reflect.Uint64:
		v.SetUint(uint64(*seed))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i), seed)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), seed)
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(t, field, seed)
		}
	default:
		t.Fatalf("a %s", v.Type())
	}
}

// TestRecordsKeepEverything: each field of a request and a grant comes back as it
// was, also those that the record leaves out since they follow from others. A
// field that is new and is not kept fails here.
func TestRecordsKeepEverything(t *testing.T) {
	var r Request
	var g Grant
	var seed int64
	fill(t, reflect.ValueOf(&r).Elem(), &seed)
	fill(t, reflect.ValueOf(&g).Elem(), &seed)

	// What hangs together.
	var u uid
	u[6], u[8], u[15] = 0x70, 0x80, 9
	hash := func(i int) string { return sha256Hex([]byte{byte(i)}) }
	perms := []string{"GET /accounts/**"}
	r.ID, r.State, r.Requester, r.Subject, r.Service, r.CSRKey = u.String(), RequestApproved, spiffe("alice"), spiffe("bob"), "payments", hash(1)
	for i := range r.Revisions {
		r.Revisions[i].Hash, r.Revisions[i].Permissions, r.Revisions[i].Parent = hash(10+i), perms, ""
		if i > 0 {
			r.Revisions[i].Parent = r.Revisions[i-1].Hash
		}
		r.Decisions[i].Hash, r.Decisions[i].Verdict = hash(10+i), Approve
		g.Votes[i] = Vote{"group", r.Decisions[i].Person, r.Decisions[i].Actor, r.Decisions[i].Hash, r.Decisions[i].At}
	}
	v := r.Revisions[1]
	r.MaxDurationMS = min(r.Revisions[0].MaxDurationMS, v.MaxDurationMS)
	r.CertificateTTL = min(r.Revisions[0].CertificateTTL, v.CertificateTTL)
	g.ID, g.State, g.Requester, g.Subject, g.Service, g.Permissions, g.Hash = r.ID, GrantReturned, r.Requester, r.Subject, r.Service, perms, v.Hash
	r.Extends.Grant, r.Parent = u.String(), u.String()
	g.Parent, g.Delegation = r.Parent, r.Delegation
	for i := range g.Extensions {
		g.Extensions[i].Request = u.String()
	}
	g.CertificateTTL, g.CSRKey, g.CSRBy, g.Requirements, g.Trace = r.CertificateTTL-1, r.CSRKey, r.CSRBy, v.Requirements, r.Trace
	g.Escalated = v.Escalation.Requirements
	name, err := grantID("grants.acme.test", r, perms)
	if err != nil {
		t.Fatal(err)
	}
	g.SPIFFEID, g.Emergency = name, r.Emergency

	for _, start := range []Millis{0, r.Created - 1, r.Created, r.Created + 1} {
		r.Start = start
		record, err := pack(r, &g)
		if err != nil {
			t.Fatal(err)
		}
		data, err := encoder.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		var again storedRequest
		if err := decoder.Unmarshal(data, &again); err != nil {
			t.Fatal(err)
		}
		gotR, err := again.unpack(u)
		if err != nil {
			t.Fatal(err)
		}
		gotG, ok, err := again.unpackGrant(u, "grants.acme.test")
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if diff := cmp.Diff(r, gotR) + cmp.Diff(g, gotG); diff != "" {
			t.Errorf("start %d (-kept +read):\n%s", start, diff)
		}
	}
}

// TestRecordsRefuseWhatTheyCannotKeep: nothing is left out in silence.
func TestRecordsRefuseWhatTheyCannotKeep(t *testing.T) {
	w := busyWorld(t)
	var r Request
	var g Grant
	for _, request := range must(Read(w.a).Requests(Filter{})) {
		if request.State == RequestApproved {
			r, g = request, w.grant(request.ID)
		}
	}
	for name, spoil := range map[string]func(){
		"a hash that is none":          func() { r.Revisions[0].Hash = "abc" },
		"an extension by no request":   func() { g.Extensions = []Extension{{Request: "abc", MS: 1}} },
		"an extension of no grant":     func() { r.Extends = &Extends{Grant: "abc"} },
		"a hash in capitals":           func() { r.CSRKey = strings.Repeat("AB", 32) },
		"a decision on something else": func() { r.Decisions[0].Hash = sha256Hex(nil) },
		"a verdict that is none":       func() { r.Decisions[0].Verdict = "perhaps" },
		"an escalation to nobody":      func() { g.Escalated = []Requirement{{"security", 1}} },
		"a vote that was never given":  func() { g.Votes[0].Person = "eve" },
		"a state that is none":         func() { r.State = "lost" },
		"a grant's state that is none": func() { g.State = "lost" },
		"an end before the beginning":  func() { r.Ended = r.Created - 1 },
	} {
		oldR, oldG := r, g
		r.Revisions, r.Decisions, g.Votes = slices.Clone(r.Revisions), slices.Clone(r.Decisions), slices.Clone(g.Votes)
		spoil()
		if _, err := pack(r, &g); err == nil {
			t.Errorf("%s is kept", name)
		}
		r, g = oldR, oldG
	}
}

func must[T any](v T, _ string, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestForgettingIssuers: with a signer each node has new issuers every few days, for
// ever. A denied one is kept for its key, and the last of a node for the node.
func TestForgettingIssuers(t *testing.T) {
	w := newWorld(t)
	const day = 24 * time.Hour
	install := func(node, keyName string) string {
		life := w.now.Sub(epochStart) + 7*day
		der := issuerBy(testRoot(RoleGrant, 0), RoleGrant, node, keyName, life)
		c := w.command("service/signer", InstallIssuer{Node: node, GrantIssuer: der})
		c.Idem = &Idem{Key: sha256Hex(der), BodyHash: sha256Hex(nil)}
		w.must(w.applyCommand(c))
		return sha256Hex(der)
	}
	weeks := 30
	var all []string
	for range weeks {
		all = append(all, install("n1", "n1 grants"))
		w.now = w.now.Add(3*day + time.Hour)
		w.must(w.apply("", aTick()))
	}
	stolen := install("n2", "stolen")
	w.must(w.apply("ada", DenyIssuer{Issuer: stolen, Reason: "stolen"}))
	issuers, err := Read(w.a).IssuersOf("n1")
	if err != nil || len(issuers) > 12 {
		t.Errorf("n1 has %d issuers after %d renewals, %v", len(issuers), weeks, err)
	}
	w.now = w.now.Add(100 * day)
	done, ok := w.must(w.apply("", aTick())).Object.(Ticked)
	if !ok || !slices.Contains(done.Issuers, all[weeks-2]) || slices.Contains(done.Issuers, stolen) {
		t.Errorf("forgotten: %+v", done.Issuers)
	}
	if _, err := Read(w.a).Issuer(stolen); err != nil {
		t.Errorf("the denied one: %v", err)
	}
	w.refuse(ErrDenied, "ada", InstallIssuer{Node: "n2", GrantIssuer: issuerBy(testRoot(RoleGrant, 0), RoleGrant, "n2", "stolen", w.now.Sub(epochStart)+day)})
	if _, err := Read(w.a).Issuer(all[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("one of months ago: %v", err)
	}
	if err := w.a.check(); err != nil {
		t.Error(err)
	}
}
