package approval

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/grant"
)

// epochStart is when the worlds of these tests begin.
var epochStart = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

const defaultPolicy = `version: 1
rules:
  - name: payments-read
    service: payments
    requesters: ["group:engineers", "spiffe://acme.test/service/batch"]
    subjects: ["spiffe://acme.test/agent/*"]
    permissions: ["GET,HEAD /accounts/**"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
  - name: payments-refund
    service: payments
    requesters: ["group:engineers"]
    permissions: ["POST /refunds/*"]
    require: [{group: payments-owners, approvals: 1}, {group: security, approvals: 1}]
    max_duration: 30m
    certificate_ttl: 2m
  - name: ledger
    service: ledger
    requesters: ["group:engineers", "spiffe://acme.test/agent/*"]
    permissions: ["grpc bank.Ledger/*"]
    require: [{group: payments-owners, approvals: 2}]
    max_duration: 8h
  - name: status-page
    service: status
    requesters: ["group:engineers", "group:admins"]
    permissions: ["GET /**"]
    auto: true
    max_duration: 1h
  - name: vault-never
    service: vault
    requesters: ["group:engineers"]
    permissions: ["* /**"]
    deny: "the vault is opened by hand"
`

// failer is what testing.TB and rapid.T have in common here.
type failer interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// world is one cluster's state, twice, and the commands that led there.
type world struct {
	tb      failer
	a, b    *memory // two replicas, of which a remembers the policy it read
	machine Machine
	index   uint64
	now     time.Time
	seq     uint64 // of ids made
	node    string
	log     [][]byte
	v       int // of commands; 0: the newest
}

func spiffe(name string) string {
	switch {
	case strings.HasPrefix(name, "spiffe://"), name == "":
		return name
	case strings.Contains(name, "/"):
		return "spiffe://acme.test/" + name
	}
	return "spiffe://acme.test/user/" + name
}

// newWorld returns a bootstrapped cluster with the default persons and policy.
func newWorld(tb failer) *world {
	tb.Helper()
	w := &world{tb: tb, a: newMemory(), b: newMemory(), now: epochStart, node: "n1"}
	w.must(w.apply("", firstCommand()))
	return w
}

func firstCommand() Bootstrap {
	person := func(name string, owns ...string) Person {
		p := Person{Name: name, IDs: []string{spiffe(name)}, Owns: owns}
		return p
	}
	alice := person("alice", spiffe("agent/alice-bot"))
	alice.IDs = append(alice.IDs, spiffe("device/alice-phone"))
	b := Bootstrap{
		Cluster: "acme", TrustDomain: "acme.test", GrantTrustDomain: "grants.acme.test",
		Persons: []Person{
			alice, person("bob", spiffe("agent/bob-bot")), person("carol"), person("dave"), person("erin"),
			person("ada"), person("abe"), person("amy"), person("ann"),
		},
		Groups: []Group{
			{Name: "admins", Members: []string{"ada", "abe", "amy", "ann"}},
			{Name: "engineers", Members: []string{"alice", "bob", "erin", "ada"}},
			{Name: "payments-owners", Members: []string{"bob", "carol", "alice", "ada"}},
			{Name: "security", Members: []string{"carol", "dave"}},
		},
		Policy: defaultPolicy,
	}
	for i := range 3 {
		id := fmt.Sprintf("n%d", i+1)
		key := ed25519.NewKeyFromSeed([]byte(strings.Repeat(id, 16)))
		vkey, err := note.NewEd25519VerifierKey("acme.test/hallpass/node/"+id, key.Public().(ed25519.PublicKey))
		if err != nil {
			panic(err)
		}
		b.Nodes = append(b.Nodes, BootstrapNode{
			ID: id, Key: key.Public().(ed25519.PublicKey), AuditKey: vkey,
			RaftAddress: "127.0.0.1:71" + id[1:], APIAddress: "127.0.0.1:81" + id[1:],
			IdentityIssuer: testIssuer(RoleIdentity, id, id+" identity", 90*24*time.Hour),
			GrantIssuer:    testIssuer(RoleGrant, id, id+" grants", issuerLife(i)),
		})
	}
	b.Manifest = 1
	b.IdentityRoots = [][]byte{testRoot(RoleIdentity, 0).cert.Raw}
	b.GrantRoots = [][]byte{testRoot(RoleGrant, 0).cert.Raw}
	return b
}

// issuerLife makes the third node's grant issuer end soon.
func issuerLife(i int) time.Duration {
	if i == 2 {
		return 20 * time.Minute
	}
	return 90 * 24 * time.Hour
}

// issuerID returns the id of a node's issuer in the test cluster.
func issuerID(node string, role Role) string {
	for _, n := range firstCommand().Nodes {
		if n.ID == node && role == RoleIdentity {
			return sha256Hex(n.IdentityIssuer)
		} else if n.ID == node {
			return sha256Hex(n.GrantIssuer)
		}
	}
	return sha256Hex([]byte(node))
}

// id makes the next UUIDv7.
func (w *world) id() string {
	w.seq++
	var u uid
	binary.BigEndian.PutUint64(u[:8], uint64(w.now.UnixMilli())<<16)
	u[6], u[8] = 0x70, 0x80
	binary.BigEndian.PutUint32(u[12:], uint32(w.seq))
	return u.String()
}

func (w *world) command(actor string, body Body) Command {
	return Command{V: w.v, ID: w.id(), Now: w.now.UnixMilli(), Node: w.node, Actor: spiffe(actor), Body: body}
}

func (w *world) apply(actor string, body Body) Result { return w.applyCommand(w.command(actor, body)) }

func (w *world) applyCommand(c Command) Result {
	w.tb.Helper()
	data, err := c.Encode()
	if err != nil {
		w.tb.Fatalf("encode %s: %v", c.Kind, err)
	}
	return w.applyBytes(data)
}

// applyBytes applies to both replicas and checks what holds for all commands.
func (w *world) applyBytes(data []byte) Result {
	w.tb.Helper()
	w.index++
	w.log = append(w.log, data)
	size := w.leaves()
	w.a.writes, w.b.writes = 0, 0
	result := w.machine.Apply(w.a, w.index, data)
	if again := Apply(w.b, w.index, data); !sameResult(result, again) {
		w.tb.Fatalf("two replicas: %+v and %+v", result, again)
	}
	if errors.Is(result.Failure(), ErrInternal) {
		w.tb.Fatalf("internal error: %+v", result)
	}
	if !result.Changed {
		if w.a.writes+w.b.writes != 0 {
			w.tb.Fatalf("a command that changed nothing wrote something: %+v", result)
		}
		return result
	}
	if w.a.fingerprint() != w.b.fingerprint() {
		w.tb.Fatal("two replicas, two states")
	}
	if got := w.leaves(); result.Err != nil || got != size+1 {
		w.tb.Fatalf("%d audit leaves after a change, there were %d: %+v", got, size, result)
	}
	w.kept(result)
	if err := w.a.check(); err != nil {
		w.tb.Fatalf("after command %d:\n%v", w.index, err)
	}
	return result
}

// kept compares what a command came to with what is kept of it.
func (w *world) kept(result Result) {
	w.tb.Helper()
	again := result
	switch o := result.Object.(type) {
	case Request:
		again.Object = w.request(o.ID)
	case Grant:
		again.Object = w.grant(o.ID)
	}
	if !sameResult(result, again) {
		w.tb.Fatalf("the result is %+v and kept is %+v", result.Object, again.Object)
	}
}

// leaf is one audit entry.
func (w *world) leaf(index int) (audit.Entry, error) {
	body, err := w.a.body(int64(index))
	if err != nil {
		return audit.Entry{}, err
	}
	return audit.ParseEntry(body)
}

func (w *world) leaves() int64 {
	n, err := Read(w.a).AuditSize()
	if err != nil {
		w.tb.Fatal(err)
	}
	return n
}

func sameResult(a, b Result) bool {
	x, err := a.Encode()
	if err != nil {
		return false
	}
	y, err := b.Encode()
	return err == nil && string(x) == string(y)
}

func (w *world) must(r Result) Result {
	w.tb.Helper()
	if r.Err != nil {
		w.tb.Fatalf("refused: %v", r.Err)
	}
	return r
}

// create is a request by actor, for itself unless a subject is named.
func (w *world) create(service string, perms []string, d time.Duration) CreateRequest {
	w.tb.Helper()
	scope, err := grant.ParseScope(service, perms)
	if err != nil {
		w.tb.Fatalf("scope: %v", err)
	}
	policyRevision, directoryRevision := w.revisions()
	return CreateRequest{
		ID: w.id(), Service: service, Permissions: scope.Texts(), Reason: "ticket 42",
		Duration: d.Milliseconds(), PolicyRevision: policyRevision, DirectoryRevision: directoryRevision,
	}
}

func (w *world) revisions() (policyRevision, directoryRevision uint64) {
	m, err := Read(w.a).meta()
	if err != nil {
		w.tb.Fatal(err)
	}
	return m.PolicyRevision, m.DirectoryRevision
}

func (w *world) request(id string) Request {
	w.tb.Helper()
	r, err := Read(w.a).Request(id)
	if err != nil {
		w.tb.Fatal(err)
	}
	return r
}

func (w *world) grant(id string) Grant {
	w.tb.Helper()
	g, err := Read(w.a).Grant(id)
	if err != nil {
		w.tb.Fatal(err)
	}
	return g
}

// decide is a decision on a request as it stands.
func (w *world) decide(id string, v Verdict) DecideRequest {
	w.tb.Helper()
	policyRevision, directoryRevision := w.revisions()
	return DecideRequest{
		Request: id, Hash: w.request(id).Hash(), Verdict: v,
		PolicyRevision: policyRevision, DirectoryRevision: directoryRevision,
	}
}

// issue is the record of a certificate of a grant, as long as it may be.
func (w *world) issue(id string) IssueGrant {
	w.tb.Helper()
	g := w.grant(id)
	w.seq++
	now := w.now.UnixMilli()
	return IssueGrant{
		Grant: id, Serial: fmt.Sprintf("%x", 0x1000_0000+w.seq), TBSHash: sha256Hex(fmt.Appendf(nil, "tbs %d", w.seq)),
		Issuer: issuerID("n1", RoleGrant), NotBefore: now - 10_000,
		NotAfter: min(now+g.CertificateTTL, int64(g.Expiry)), Key: sha256Hex([]byte("key")), CSRBy: g.Subject,
	}
}

// aTick forgets nothing for as long as a cluster does by default.
func aTick() Tick { return Tick{RetainMS: Retention.Milliseconds()} }
