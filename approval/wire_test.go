package approval

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/wire.golden anew")

// oneOfEach has a command of every kind, with every field set.
func oneOfEach() []Command {
	const id = "019ca8a0-3e80-7000-8000-00000000000"
	hash := strings.Repeat("ab", 32)
	person := Person{Name: "bob", IDs: []string{"spiffe://acme.test/user/bob"}, Owns: []string{"spiffe://acme.test/agent/x"}}
	inSlack := person
	inSlack.Slack = "T024BE7LH/U024BE7LH"
	group := Group{Name: "security", Members: []string{"bob", "carol"}}
	turns := Group{Name: "leads", Members: group.Members, OnCall: &OnCall{Order: group.Members, From: 1772355600000, EveryMS: 3600000, AtOnce: 1}}
	asked := Group{Name: "leads", Members: group.Members, OnCall: &OnCall{Resolver: true, Otherwise: OtherwiseMembers}}
	stoodIn := Group{Name: "security", Members: []string{"bob", "carol"}, Substitutes: []string{"dave"}}
	bodies := []Body{
		Bootstrap{
			Cluster: "acme", TrustDomain: "acme.test", GrantTrustDomain: "grants.acme.test",
			Nodes: []BootstrapNode{{
				ID: "n1", Key: []byte{1}, AuditKey: "k", RaftAddress: "r", APIAddress: "a",
				IdentityIssuer: []byte{2}, GrantIssuer: []byte{3},
			}},
			Persons: []Person{person}, Groups: []Group{group}, Policy: "version: 1\n",
			IdentityRoots: [][]byte{{4}}, GrantRoots: [][]byte{{5}}, RootDocuments: [][]byte{{7}}, Manifest: 7,
		},
		CreateRequest{
			ID: id + "1", Subject: "spiffe://acme.test/agent/x", Service: "payments", Permissions: []string{"GET /accounts/**"},
			Reason: "why", Start: 1772355600000, Duration: 1800000, CSRKey: hash, PolicyRevision: 3, DirectoryRevision: 4,
		},
		DecideRequest{
			Request: id + "1", Hash: hash, Verdict: Approve, Comment: "yes", Permissions: []string{"GET /accounts/*"},
			Duration: 600000, PolicyRevision: 3, DirectoryRevision: 4,
		},
		CreateRequest{
			ID: id + "1", Subject: "spiffe://acme.test/agent/x", Service: "payments", Permissions: []string{"GET /accounts/**"},
			Reason: "why", Duration: 1800000, PolicyRevision: 3, DirectoryRevision: 4, Answers: []Answer{{"office-hours", true}, {"writes", false}},
		},
		DecideRequest{
			Request: id + "1", Hash: hash, Verdict: Approve, Permissions: []string{"GET /accounts/*"}, Duration: 600000,
			PolicyRevision: 3, DirectoryRevision: 4, Answers: []Answer{{"office-hours", true}}, Narrowed: []Answer{{"office-hours", false}},
		},
		CancelRequest{Request: id + "1"},
		aTick(),
		IssueGrant{
			Grant: id + "1", Serial: "c0ffee", TBSHash: hash, Issuer: hash, NotBefore: 1772355590000, NotAfter: 1772355900000,
			Key: hash, CSRBy: "spiffe://acme.test/agent/x",
		},
		RevokeGrant{Grant: id + "1", Reason: "why"},
		ReturnGrant{Grant: id + "1"},
		IssueIdentity{
			Serial: "c0ffee", TBSHash: hash, Issuer: hash, SPIFFEID: "spiffe://acme.test/service/payments",
			NotBefore: 1772355590000, NotAfter: 1772355900000, Key: hash,
		},
		BlockSubject{Subject: "spiffe://acme.test/agent/x", Reason: "why"},
		DenyIssuer{Issuer: hash, Reason: "why"},
		InstallIssuer{Node: "n1", IdentityIssuer: []byte{2}, GrantIssuer: []byte{3}, APICertificate: []byte{6}},
		SetRoots{Document: []byte("{}")},
		AdoptManifest{Statement: []byte("s"), Signature: []byte{7}},
		JoinNode{Node: "n4"},
		PromoteNode{Node: "n4"},
		RemoveNode{Node: "n4", Reason: "why", Retired: true},
		HandOver{Node: "n2"},
		RaiseVersion{Version: 2},
		BeginEpoch{Began: 1772355600000, Lineage: "00112233445566778899aabbccddeeff", Reason: "why"},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditPolicySet, YAML: "version: 1\n"}, BaseRevision: 3},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditGroupSet, Group: &group}, BaseRevision: 4},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditGroupDelete, Name: "security"}, BaseRevision: 4},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditPersonSet, Person: &person}, BaseRevision: 4},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditPersonDelete, Name: "bob"}, BaseRevision: 4},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditSubjectUnblock, Subject: "spiffe://acme.test/agent/x"}, BaseRevision: 4},
		DecideChange{Change: id + "2", Hash: hash, Verdict: Deny, Comment: "no"},
		CancelChange{Change: id + "2"},
		RegisterEmergency{Issuer: []byte{8}},
		ImportEmergency{Record: []byte("{}")},
		RevokeEmergency{Grant: id + "1", Reason: "why"},
		AnchorAccess{
			Heads: []AnchoredHead{{By: "spiffe://acme.test/service/payments", Log: hash[:32], Size: 7, Root: hash, Sent: 1772355600000}},
			Settings: []ProxySettings{{
				By: "spiffe://acme.test/service/payments", Log: hash[:32], SHA256: hash, Mode: "observe", Until: 1772355600000,
				Open: []string{"allow GET /healthz"}, Sent: 1772355600000,
			}},
		},
		CreateRequest{
			ID: id + "1", Subject: "spiffe://acme.test/user/bob", Service: "payments", Permissions: []string{"GET /accounts/**"},
			Reason: "why", Duration: 600000, PolicyRevision: 3, DirectoryRevision: 4, BreakGlass: true,
		},
		CloseReview{Request: id + "1", Finding: "all was well"},
		CreateRequest{
			ID: id + "3", Subject: "spiffe://acme.test/user/bob", Service: "payments", Permissions: []string{"GET /accounts/**"},
			Reason: "why", Duration: 600000, PolicyRevision: 3, DirectoryRevision: 4, Extends: id + "1",
		},
		CreateRequest{
			ID: id + "4", Subject: "spiffe://acme.test/user/bob", Service: "payments", Permissions: []string{"GET /accounts/**"},
			Reason: "why", Duration: 600000, PolicyRevision: 3, DirectoryRevision: 4, Delegable: true,
		},
		CreateRequest{
			ID: id + "5", Subject: "spiffe://acme.test/agent/x", Service: "payments", Permissions: []string{"GET /accounts/1"},
			Reason: "why", Duration: 60000, PolicyRevision: 3, DirectoryRevision: 4, Parent: id + "4",
		},
		SettleOutbox{
			Target: "chat", Base: 7, Position: 44, Paused: "410 Gone",
			Deliveries: []Settlement{{Entry: 41, Outcome: OutcomeSent}, {Entry: 42, Outcome: OutcomeDead, Tries: 9, Cause: "500"}, {Entry: 43, Outcome: OutcomeOpen, Tries: 1, Cause: "no route"}},
		},
		ReplayOutbox{Target: "chat", Entries: []uint64{42}},
		ForgetOutbox{Target: "chat"},
		CreateRequest{
			ID: id + "1", Subject: "spiffe://acme.test/user/bob", Service: "payments", Permissions: []string{"GET /accounts/**"},
			Reason: "why", Duration: 600000, PolicyRevision: 3, DirectoryRevision: 4, Bundles: []string{"look", "read"},
		},
		DecideRequest{Request: id + "1", Hash: hash, Verdict: Approve, Permissions: []string{}, PolicyRevision: 3, DirectoryRevision: 4, Slack: "T024BE7LH/U024BE7LH"},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditPersonSet, Person: &inSlack}, BaseRevision: 4},
		EscalateRequest{Request: id + "1"},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditGroupSet, Group: &turns}, BaseRevision: 4},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditGroupSet, Group: &asked}, BaseRevision: 4},
		SetDuty{Group: "leads"},
		SetDuty{Group: "leads", Persons: []string{"bob"}, Until: 1772355600000},
		ProposeChange{ID: id + "2", Edit: Edit{Kind: EditGroupSet, Group: &stoodIn}, BaseRevision: 4},
		NameStandIn{Group: "security", By: "dave", Until: 1772355600000, Reason: "on holiday"},
		EndStandIn{Group: "security", For: "bob"},
	}
	commands := make([]Command, len(bodies))
	for i, b := range bodies {
		commands[i] = Command{
			V: first(b), ID: id + "9", Kind: b.kind(), Now: 1772355600000, Node: "n1", Actor: "spiffe://acme.test/user/bob",
			Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Idem: &Idem{Key: "k", BodyHash: hash}, Body: b,
		}
	}
	return commands
}

// first is the version of commands that brought a body.
func first(b Body) int {
	if needs(b) > 1 {
		return needs(b)
	}
	switch b.(type) {
	case BeginEpoch, RegisterEmergency, ImportEmergency, RevokeEmergency:
		return 2
	case AnchorAccess:
		return 3
	case NameStandIn, EndStandIn:
		return 4
	case CloseReview, SettleOutbox, ReplayOutbox, ForgetOutbox, EscalateRequest, SetDuty:
		return 4
	}
	return 1
}

// TestWireGolden pins the encoding: a log written by one version is read by all
// later ones, on every node to the same bytes.
func TestWireGolden(t *testing.T) {
	var got strings.Builder
	kinds := map[Kind]bool{}
	for _, c := range oneOfEach() {
		data, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		kinds[c.Kind] = true
		fmt.Fprintf(&got, "%s %s\n", c.Kind, hex.EncodeToString(data))
		back, err := DecodeCommand(data)
		if err != nil {
			t.Fatalf("%s: %v", c.Kind, err)
		}
		if diff := cmp.Diff(c, back); diff != "" {
			t.Errorf("%s comes back different (-sent +read):\n%s", c.Kind, diff)
		}
	}
	if len(kinds) != 35 {
		t.Errorf("%d kinds", len(kinds))
	}
	file := filepath.Join("testdata", "wire.golden")
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("the encoding has changed (-was +is):\n%s", diff)
	}
}

// TestWireRefuses tries other spellings of commands, and fields that are not
// theirs.
func TestWireRefuses(t *testing.T) {
	good := Command{ID: "019ca8a0-3e80-7000-8000-000000000009", Now: 1, Node: "n1", Body: CancelRequest{Request: "x"}}
	data, err := good.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeCommand(data); err != nil {
		t.Fatal(err)
	}
	raw := func(v any) []byte {
		b, err := cbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	fields := func(change func(m map[int]any)) []byte {
		var m map[int]any
		if err := cbor.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := encoder.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, bad := range map[string][]byte{
		"nothing":             {},
		"null":                {0xf6},
		"a byte more":         append(bytes.Clone(data), 0),
		"a byte less":         data[:len(data)-1],
		"another version":     fields(func(m map[int]any) { m[1] = Next }),
		"unknown kind":        fields(func(m map[int]any) { m[3] = "request.grant" }),
		"another kind":        fields(func(m map[int]any) { m[3] = "request.create" }),
		"unknown field":       fields(func(m map[int]any) { m[10] = 1 }),
		"missing field":       fields(func(m map[int]any) { delete(m, 7) }),
		"no body":             fields(func(m map[int]any) { m[9] = nil }),
		"unknown body field":  fields(func(m map[int]any) { m[9] = map[int]any{1: "x", 2: "y"} }),
		"missing body field":  fields(func(m map[int]any) { m[9] = map[int]any{} }),
		"body of a name":      fields(func(m map[int]any) { m[9] = map[string]any{"request": "x"} }),
		"float for a number":  fields(func(m map[int]any) { m[4] = 1.0 }),
		"bytes for a text":    fields(func(m map[int]any) { m[5] = []byte("n1") }),
		"wide number":         bytes.Replace(data, []byte{0x01, Version}, []byte{0x01, 0x18, Version}, 1),
		"invalid UTF-8":       fields(func(m map[int]any) { m[5] = "n\xff" }),
		"tagged":              append([]byte{0xd9, 0xd9, 0xf7}, data...),
		"indefinite length":   append(append([]byte{0xbf}, data[1:]...), 0xff),
		"field twice":         append(append([]byte{data[0] + 1}, data[1:]...), raw(9)...),
		"too long":            bytes.Repeat([]byte{0}, MaxCommandBytes+1),
		"a deep nest":         bytes.Repeat([]byte{0x81}, 10_000),
		"a huge array's head": {0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		if c, err := DecodeCommand(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	for name, c := range map[string]Command{
		"no body":    {ID: good.ID},
		"other kind": {ID: good.ID, Kind: KindTick, Body: CancelRequest{}},
		"other V":    {V: Next + 1, ID: good.ID, Body: aTick()},
	} {
		if _, err := c.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

// TestAnswersNeedTheirVersion: a node that knows version 2 alone reads no answers,
// and to this one a command of version 2 has none either.
func TestAnswersNeedTheirVersion(t *testing.T) {
	for _, b := range []Body{
		CreateRequest{Answers: []Answer{{Rule: "a"}}}, DecideRequest{Answers: []Answer{{Rule: "a"}}}, DecideRequest{Narrowed: []Answer{{Rule: "a"}}},
	} {
		for v, want := range map[int]error{1: ErrInvalid, 2: ErrInvalid, 3: nil} {
			data, err := Command{V: v, ID: "x", Body: b}.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeCommand(data); !errors.Is(err, want) {
				t.Errorf("version %d of %+v: %v", v, b, err)
			}
		}
	}
}

func TestResultRoundTrip(t *testing.T) {
	for _, r := range []Result{
		{Index: 7, Err: &Error{Code: CodeDenied, Detail: "no", Next: "ask"}},
		{Index: 8, Object: Request{ID: "x", Decisions: []Decision{}, Revisions: []Revision{}, Rules: []string{}}, Changed: true},
		{Index: 9, Object: Grant{ID: "x", Permissions: []string{"tcp"}, Requirements: []Requirement{}, Votes: []Vote{{Group: "g", Person: "p"}}}, Replayed: true},
		{Index: 10, Object: Change{ID: "x", Edit: Edit{Kind: EditGroupSet, Group: &Group{Name: "g", Members: []string{"m"}}}, Decisions: []Decision{}}},
		{Index: 11, Object: Issue{Serial: "a1", NotAfter: 5}},
		{Index: 12, Object: Block{Subject: "s", At: 3}},
		{Index: 13, Object: Issuer{ID: "i", DER: []byte{1}}},
		{Index: 14, Object: Cluster{ID: "c", Epoch: 1, Nodes: []Node{}, Issuers: []Issuer{}}},
		{Index: 15, Object: Ticked{Grants: []string{"g"}, More: true}},
		{Index: 16, Object: EmergencyJournal{Issuer: "i", Count: 2, Head: "h", Forked: 1, ForkHash: "f", Index: 3}},
		{Index: 17, Object: EmergencyRevocation{Grant: "g", Reason: "r", By: "b", At: 1, Until: 2}},
		{Index: 19, Object: Request{
			ID: "x", Decisions: []Decision{}, Revisions: []Revision{}, Rules: []string{},
			Bundles: []string{"read"}, Review: &Review{Groups: []string{"g"}, Due: 1, Findings: []Finding{{Person: "p", Actor: "a", Text: "t", At: 2}}, Closed: 3},
		}},
		{Index: 18, Object: Anchored{Logs: []AccessLog{{Log: "l", Size: 1}}, Alarms: []LogAlarm{{Log: "l", Why: LogForked}}}},
		{Index: 20, Object: StandIn{Group: "g", For: "f", By: "b", Reason: "r", Since: 1, Until: 2, Index: 3}},
		{Index: 21, Object: Ticked{StandIns: []StandIn{{Group: "g", For: "f", By: "b", Reason: "r", Since: 1, Until: 2, Index: 3}}}},
		{Index: 19, Object: Target{Name: "t", Revision: 2, Position: 9, Open: []OpenDelivery{{Entry: 3, Since: 4, Tries: 5, Cause: "c"}}, Paused: 6, Cause: "p", Sent: 7, Dead: 8, Dropped: 9}},
	} {
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeResult(data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, back); diff != "" {
			t.Errorf("comes back different (-sent +read):\n%s", diff)
		}
		if (r.Failure() == nil) != (r.Err == nil) {
			t.Errorf("failure %v of %v", r.Failure(), r.Err)
		}
	}
	for _, bad := range [][]byte{nil, {0xf6, 0}, {0xa1, 0x03, 0x61, 'x'}} {
		if r, err := DecodeResult(bad); err == nil {
			t.Errorf("%x: %+v", bad, r)
		}
	}
}

func TestErrorsIs(t *testing.T) {
	for code, sentinel := range map[Code]error{
		CodeNotFound: ErrNotFound, CodeDenied: ErrDenied, CodeConflict: ErrConflict, CodeStale: ErrStale,
		CodeStaleRevision: ErrStaleRevision, CodeInvalid: ErrInvalid, CodeExpired: ErrExpired, CodeLimit: ErrLimit,
		CodeIdempotencyMismatch: ErrIdempotencyMismatch, CodeInternal: ErrInternal,
	} {
		err := fmt.Errorf("wrapped: %w", &Error{Code: code, Detail: "x"})
		if !errors.Is(err, sentinel) {
			t.Errorf("%s is not %v", code, sentinel)
		}
		if code != CodeDenied && errors.Is(err, ErrDenied) {
			t.Errorf("%s is a denial", code)
		}
	}
	if !errors.Is(&Error{Code: CodeStaleRevision}, ErrStale) || errors.Is(&Error{Code: CodeStale}, ErrStaleRevision) {
		t.Error("a stale revision is stale, not the other way round")
	}
}
