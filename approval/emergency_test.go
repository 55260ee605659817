package approval

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/emergency"
	"github.com/hallpass/hallpass/grant"
)

// kit is what custodians of a test hold: an emergency issuer and its journal.
type kit struct {
	w     *world
	cert  *x509.Certificate
	key   crypto.Signer
	lines [][]byte
	last  string // hash of the last record
}

// newKit makes an emergency issuer; edit changes its certificate before a root signs
// it.
func newKit(w *world, name string, edit func(*x509.Certificate)) *kit {
	const td = "grants.acme.test"
	key := testKey("emergency " + name)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(3),
		Subject:      pkix.Name{CommonName: emergency.NamePrefix(td) + name, OrganizationalUnit: []string{emergency.Unit}},
		NotBefore:    epochStart.Add(-time.Hour), NotAfter: epochStart.Add(300 * 24 * time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: td}},
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		PermittedDNSDomainsCritical: true, PermittedURIDomains: []string{td}, ExcludedURIDomains: []string{"." + td},
		ExcludedDNSDomains: []string{""}, ExcludedEmailAddresses: []string{""}, ExcludedIPRanges: everywhere(),
		ExtraExtensions: []pkix.Extension{emergency.Mark()},
	}
	if edit != nil {
		edit(c)
	}
	root := testRoot(RoleGrant, 0)
	cert := signed(c, root.cert, key.Public(), root.key)
	return &kit{w: w, cert: cert, key: key, last: emergency.ID(cert)}
}

func everywhere() (all []*net.IPNet) {
	for _, s := range []string{"0.0.0.0/0", "::/0"} {
		_, n, err := net.ParseCIDR(s)
		if err != nil {
			panic(err)
		}
		all = append(all, n)
	}
	return all
}

// next is the record that comes next, not signed yet, of access to payments.
func (k *kit) next(subject string) emergency.Record {
	k.w.seq++
	scope, err := grant.ParseScope("payments", []string{"GET /accounts/**"})
	if err != nil {
		panic(err)
	}
	td := spiffeid.RequireTrustDomainFromString("grants.acme.test")
	id, err := grant.NewID(td, scope, spiffeid.RequireFromString(spiffe(subject)), k.w.id())
	if err != nil {
		panic(err)
	}
	begin := k.w.now.Truncate(time.Second).Add(-time.Minute)
	return emergency.Record{
		Version: 1, N: uint64(len(k.lines)) + 1, Prev: k.last, Issuer: emergency.ID(k.cert), Time: k.w.now.UTC(), SPIFFEID: id.String(),
		Reason: "the cluster is gone", Custodians: []string{"grace", "linus"}, Serial: fmt.Sprintf("%x", 0x4000_0000+k.w.seq),
		TBSHash: sha256Hex(fmt.Appendf(nil, "emergency tbs %d", k.w.seq)), NotBefore: begin, NotAfter: begin.Add(31 * time.Minute),
		Key: sha256Hex([]byte("key")),
	}
}

// line signs a record.
func (k *kit) line(r emergency.Record) []byte {
	s, err := r.Statement()
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(s)
	if r.Signature, err = k.key.Sign(nil, sum[:], crypto.SHA256); err != nil {
		panic(err)
	}
	b, err := r.Encode()
	if err != nil {
		panic(err)
	}
	return b
}

// issues writes the next record, as custodians do, and returns the grant's id.
func (k *kit) issues(subject string) string {
	r := k.next(subject)
	k.lines = append(k.lines, k.line(r))
	var err error
	if k.last, err = r.Hash(); err != nil {
		panic(err)
	}
	id, err := r.GrantID("grants.acme.test")
	if err != nil {
		panic(err)
	}
	return id.GrantID()
}

func (k *kit) register() { k.w.must(k.w.apply("ada", RegisterEmergency{Issuer: k.cert.Raw})) }

func (k *kit) imports(line []byte) Result { return k.w.apply("ada", ImportEmergency{Record: line}) }

// emergencyWorld is a world that speaks version 2 and knows an emergency issuer.
func emergencyWorld(t *testing.T) (*world, *kit) {
	t.Helper()
	w := newWorld(t)
	w.must(w.apply("", RaiseVersion{Version: 2}))
	k := newKit(w, "hq", nil)
	k.register()
	return w, k
}

func (w *world) feed() Feed {
	w.tb.Helper()
	f, err := Read(w.a).Feed()
	if err != nil {
		w.tb.Fatal(err)
	}
	return f
}

func (w *world) lastDetails() string {
	w.tb.Helper()
	e, err := w.leaf(int(w.leaves()) - 1)
	if err != nil {
		w.tb.Fatal(err)
	}
	return e.Kind + " " + e.Object + " " + string(e.Details)
}

// TestEmergencyImport: what custodians signed becomes a grant like any other, that
// can be seen and revoked, with one leaf; and a second time nothing.
func TestEmergencyImport(t *testing.T) {
	w, k := emergencyWorld(t)
	first, second := k.issues("alice"), k.issues("bob")
	w.now = w.now.Add(10 * time.Minute)
	for _, line := range k.lines {
		w.must(k.imports(line))
	}
	if d := w.lastDetails(); !strings.HasPrefix(d, "emergency.import "+second) || !strings.Contains(d, `"custodians":["grace","linus"]`) ||
		!strings.Contains(d, `"issuer":"`+emergency.ID(k.cert)) || !strings.Contains(d, `"record":`) {
		t.Errorf("the leaf is %s", d)
	}
	g := w.grant(first)
	if g.State != GrantActive || g.Emergency == nil || g.Emergency.Place != 1 || g.Emergency.ImportedBy != spiffe("ada") || g.Subject != spiffe("alice") {
		t.Errorf("the grant is %+v, %+v", g, g.Emergency)
	}
	size := w.leaves()
	for _, line := range k.lines {
		if r := w.must(k.imports(line)); r.Changed {
			t.Error("a record was taken in twice")
		}
	}
	if w.leaves() != size {
		t.Error("a second import has leaves")
	}
	if r := w.apply("alice", w.issue(first)); !errors.Is(r.Failure(), ErrDenied) || !strings.Contains(r.Err.Detail, "emergency grant") {
		t.Errorf("a node's certificate of an emergency grant, without its mark: %v", r.Failure())
	}
	w.must(w.apply("ada", RevokeGrant{Grant: first, Reason: "enough"}))
	if f := w.feed(); len(f.Grants) != 1 || f.Grants[0].ID != first {
		t.Errorf("on the feed: %+v", f.Grants)
	}
	w.now = w.now.Add(time.Hour)
	w.must(w.apply("", aTick()))
	if g := w.grant(second); g.State != GrantExpired {
		t.Errorf("the other grant is %s", g.State)
	}
	w.now = w.now.Add(500 * 24 * time.Hour)
	w.must(w.apply("", aTick()))
	if r := w.must(k.imports(k.lines[0])); r.Changed {
		t.Error("what was forgotten came back")
	}
}

// TestEmergencyImportRefuses performs the attacks on a journal.
func TestEmergencyImportRefuses(t *testing.T) {
	w, k := emergencyWorld(t)
	k.issues("alice")
	good := k.lines[0]
	node := &kit{w: w, key: testKey("n1 grants")}
	thief := &kit{w: w, cert: k.cert, key: testKey("thief"), last: k.last}
	change := func(by *kit, edit func(*emergency.Record)) []byte {
		k.lines = k.lines[:0]
		k.last = emergency.ID(k.cert)
		r := k.next("alice")
		edit(&r)
		return by.line(r)
	}
	for _, c := range []struct {
		name string
		line []byte
		want error
	}{
		{"not signed by the issuer", change(thief, func(*emergency.Record) {}), ErrInvalid},
		{"a changed reason", []byte(strings.Replace(string(good), "is gone", "is well", 1)), ErrInvalid},
		{"a second spelling", []byte(strings.Replace(string(good), `"n":1`, `"n": 1`, 1)), ErrInvalid},
		{"one custodian", change(k, func(r *emergency.Record) { r.Custodians = []string{"grace"} }), ErrInvalid},
		{"one custodian twice", change(k, func(r *emergency.Record) { r.Custodians = []string{"grace", "grace"} }), ErrInvalid},
		{"longer than an hour", change(k, func(r *emergency.Record) { r.NotAfter = r.NotBefore.Add(62 * time.Minute) }), ErrInvalid},
		{"another trust domain", change(k, func(r *emergency.Record) { r.SPIFFEID = strings.Replace(r.SPIFFEID, "grants.acme", "acme", 1) }), ErrInvalid},
		{"an id of another time", change(k, func(r *emergency.Record) {
			r.Time, r.NotBefore, r.NotAfter = r.Time.Add(time.Hour), r.NotBefore.Add(time.Hour), r.NotAfter.Add(time.Hour)
		}), ErrInvalid},
		{"record 3 after none", change(k, func(r *emergency.Record) { r.N = 3 }), ErrConflict},
		{"hidden text", change(k, func(r *emergency.Record) { r.Reason = "x\u202ey" }), ErrInvalid},
		{"of a node's issuer, in its own hand", change(node, func(r *emergency.Record) {
			r.Issuer = issuerID("n1", RoleGrant)
			r.Prev = r.Issuer
		}), ErrInvalid},
		{"of nobody", change(k, func(r *emergency.Record) { r.Issuer = strings.Repeat("ab", 32) }), ErrNotFound},
	} {
		if r := k.imports(c.line); !errors.Is(r.Failure(), c.want) {
			t.Errorf("%s: %v, want %v", c.name, r.Failure(), c.want)
		}
	}
	if r := w.apply("alice", ImportEmergency{Record: good}); !errors.Is(r.Failure(), ErrDenied) {
		t.Errorf("by one who is no admin: %v", r.Failure())
	}
	w.must(k.imports(good))
}

// TestEmergencyFork: a journal that was cut and gone on with, or a copy of a kit that
// was used, is another history. It is not taken in, it is written down once, and the
// history that was first goes on.
func TestEmergencyFork(t *testing.T) {
	w, k := emergencyWorld(t)
	k.issues("alice")
	w.must(k.imports(k.lines[0]))
	other := &kit{w: w, cert: k.cert, key: k.key, last: emergency.ID(k.cert)}
	other.issues("erin")
	r := w.must(k.imports(other.lines[0]))
	j, ok := r.Object.(EmergencyJournal)
	if !ok || !r.Changed || j.Forked != 1 || j.Count != 1 {
		t.Fatalf("a fork: %+v", r)
	}
	if d := w.lastDetails(); !strings.Contains(d, `"fork":true`) || !strings.Contains(d, j.Head) {
		t.Errorf("the leaf is %s", d)
	}
	if r := w.must(k.imports(other.lines[0])); r.Changed {
		t.Error("the same fork was written down twice")
	}
	k.issues("alice")
	w.must(k.imports(k.lines[1]))
	other.issues("erin")
	if r := w.must(k.imports(other.lines[1])); r.Object.(EmergencyJournal).Forked != 2 {
		t.Errorf("the second record of the other history: %+v", r)
	}
	if _, err := Read(w.a).Grant(mustGrantID(other.lines[0])); !errors.Is(err, ErrNotFound) {
		t.Errorf("the other history's grant is here: %v", err)
	}
}

func mustGrantID(line []byte) string {
	r, err := emergency.ParseRecord(line)
	if err != nil {
		panic(err)
	}
	id, err := r.GrantID("grants.acme.test")
	if err != nil {
		panic(err)
	}
	return id.GrantID()
}

// TestEmergencyRegister: only what a grants root signed as an emergency issuer is
// one; a node's is none, and an emergency issuer is no node's.
func TestEmergencyRegister(t *testing.T) {
	w := newWorld(t)
	good := newKit(w, "hq", nil)
	early := w.command("ada", RegisterEmergency{Issuer: good.cert.Raw})
	early.V = 1
	if r := w.applyCommand(early); !errors.Is(r.Failure(), ErrInvalid) {
		t.Errorf("in a version that does not have it: %v", r.Failure())
	}
	mark := func(e pkix.Extension) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{e} }
	}
	uncritical, other := emergency.Mark(), emergency.Mark()
	uncritical.Critical = false
	other.Value = []byte{5, 0}
	for name, edit := range map[string]func(*x509.Certificate){
		"no mark":          func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"not critical":     mark(uncritical),
		"another value":    mark(other),
		"a node's name":    func(c *x509.Certificate) { c.Subject.CommonName = "grants.acme.test grants issuer n1" },
		"further issuers":  func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = false, 1 },
		"too long a life":  func(c *x509.Certificate) { c.NotAfter = c.NotBefore.AddDate(2, 0, 0) },
		"any URI":          func(c *x509.Certificate) { c.PermittedURIDomains = nil },
		"hosts, too":       func(c *x509.Certificate) { c.ExcludedDNSDomains = nil },
		"the other domain": func(c *x509.Certificate) { c.PermittedURIDomains = []string{"acme.test"} },
	} {
		if r := w.apply("ada", RegisterEmergency{Issuer: newKit(w, "bad", edit).cert.Raw}); !errors.Is(r.Failure(), ErrInvalid) {
			t.Errorf("%s: %v", name, r.Failure())
		}
	}
	if r := w.apply("ada", RegisterEmergency{Issuer: testIssuer(RoleGrant, "n1", "n1 grants", 90*24*time.Hour)}); !errors.Is(r.Failure(), ErrInvalid) {
		t.Errorf("a node's issuer: %v", r.Failure())
	}
	stranger := newKit(w, "stranger", nil)
	root := testRoot(RoleIdentity, 0)
	byOther := *stranger.cert
	byOther.ExtraExtensions = []pkix.Extension{emergency.Mark()}
	der := signed(&byOther, root.cert, stranger.key.Public(), root.key).Raw
	if r := w.apply("ada", RegisterEmergency{Issuer: der}); !errors.Is(r.Failure(), ErrDenied) {
		t.Errorf("signed by the identities' root: %v", r.Failure())
	}
	if r := w.apply("alice", RegisterEmergency{Issuer: good.cert.Raw}); !errors.Is(r.Failure(), ErrDenied) {
		t.Errorf("by one who is no admin: %v", r.Failure())
	}
	if r := w.apply("ada", InstallIssuer{Node: "n1", GrantIssuer: good.cert.Raw}); !errors.Is(r.Failure(), ErrInvalid) {
		t.Errorf("as a node's: %v", r.Failure())
	}
	named := newKit(w, "n1", func(c *x509.Certificate) { c.Subject.CommonName = "grants.acme.test grants issuer n1" })
	if r := w.apply("ada", InstallIssuer{Node: "n1", GrantIssuer: named.cert.Raw}); !errors.Is(r.Failure(), ErrInvalid) ||
		!strings.Contains(r.Err.Detail, "emergency issuer") {
		t.Errorf("as a node's, by its name: %v", r.Failure())
	}
	good.register()
	if r := w.must(w.apply("ada", RegisterEmergency{Issuer: good.cert.Raw})); r.Changed {
		t.Error("registered twice")
	}
	id := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
	w.must(w.apply("bob", w.decide(id, Approve)))
	i := w.issue(id)
	i.Issuer = emergency.ID(good.cert)
	if r := w.apply("alice", i); !errors.Is(r.Failure(), ErrDenied) {
		t.Errorf("a node records a certificate of the emergency issuer: %v", r.Failure())
	}
}

// TestEmergencyDenied: an emergency issuer is denied like any other, and its journal
// is evidence still; it goes with its root, which no node holds up.
func TestEmergencyDenied(t *testing.T) {
	w, k := emergencyWorld(t)
	k.issues("alice")
	w.must(w.apply("ada", DenyIssuer{Issuer: emergency.ID(k.cert), Reason: "a share was stolen"}))
	if f := w.feed(); len(f.Issuers) != 1 || f.Issuers[0].ID != emergency.ID(k.cert) {
		t.Errorf("on the feed: %+v", f.Issuers)
	}
	w.must(k.imports(k.lines[0]))

	again := newKit(w, "hq", func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(-time.Hour) })
	if r := w.apply("ada", RegisterEmergency{Issuer: again.cert.Raw}); !errors.Is(r.Failure(), ErrDenied) {
		t.Errorf("another certificate of the denied key: %v", r.Failure())
	}
	second := newKit(w, "second", nil)
	second.register()
	both := rootsDocument(RoleGrant, 1, testRoot(RoleGrant, 0), testRoot(RoleGrant, 1))
	w.must(w.apply("ada", SetRoots{Document: both}))
	i, err := Read(w.a).Issuer(emergency.ID(second.cert))
	if err != nil || i.Denied != 0 {
		t.Errorf("the second issuer: %+v, %v", i, err)
	}
}

// TestEmergencyRevokedEarly: a grant is revoked by its id before anybody has brought
// its record, and is revoked when the record comes.
func TestEmergencyRevokedEarly(t *testing.T) {
	w, k := emergencyWorld(t)
	id, late := k.issues("alice"), k.issues("bob")
	if r := w.apply("alice", RevokeEmergency{Grant: id, Reason: "why"}); !errors.Is(r.Failure(), ErrDenied) {
		t.Errorf("by one who is no admin: %v", r.Failure())
	}
	w.must(w.apply("ada", RevokeEmergency{Grant: id, Reason: "not ours"}))
	f := w.feed()
	made, _ := parseUID(id)
	if len(f.Grants) != 1 || f.Grants[0].ID != id || f.Grants[0].Until != made.made().Add(emergency.MaxLife+emergency.Backdate+FeedSkew) {
		t.Fatalf("on the feed: %+v", f.Grants)
	}
	if r := w.must(w.apply("abe", RevokeEmergency{Grant: id, Reason: "not ours"})); r.Changed {
		t.Error("revoked twice")
	}
	w.must(k.imports(k.lines[0]))
	if g := w.grant(id); g.State != GrantRevoked || !strings.Contains(g.EndReason, "not ours") {
		t.Errorf("the grant is %s: %q", g.State, g.EndReason)
	}
	if f := w.feed(); len(f.Grants) != 1 || f.Grants[0].ID != id {
		t.Errorf("on the feed after the import: %+v", f.Grants)
	}
	if r := w.apply("ada", RevokeEmergency{Grant: id, Reason: "why"}); !errors.Is(r.Failure(), ErrConflict) {
		t.Errorf("one that is known: %v", r.Failure())
	}
	w.must(w.apply("ada", RevokeEmergency{Grant: late, Reason: "why"}))
	w.now = w.now.Add(2 * time.Hour)
	w.must(w.apply("", aTick()))
	if f := w.feed(); len(f.Grants) != 0 {
		t.Errorf("on the feed for ever: %+v", f.Grants)
	}
	if r := w.apply("ada", RevokeEmergency{Grant: late, Reason: "why"}); !errors.Is(r.Failure(), ErrExpired) {
		t.Errorf("one that has ended: %v", r.Failure())
	}
	w.must(k.imports(k.lines[1]))
}

// TestEmergencyEndsOnArrival: what would have ended had the cluster known of it ends
// when it comes in.
func TestEmergencyEndsOnArrival(t *testing.T) {
	w, k := emergencyWorld(t)
	blocked, old := k.issues("alice"), k.issues("bob")
	w.must(w.apply("ada", BlockSubject{Subject: spiffe("alice"), Reason: "gone"}))
	w.must(k.imports(k.lines[0]))
	if g := w.grant(blocked); g.State != GrantRevoked || len(w.feed().Grants) != 1 {
		t.Errorf("of a blocked subject: %s, %+v", g.State, w.feed().Grants)
	}
	w.must(w.apply("", w.restored(testLineage)))
	w.must(k.imports(k.lines[1]))
	if g := w.grant(old); g.State != GrantRevoked {
		t.Errorf("older than the epoch: %s", g.State)
	}
	early := k.next("bob")
	early.Time = early.Time.Add(time.Minute)
	if r := k.imports(k.line(early)); !errors.Is(r.Failure(), ErrConflict) {
		t.Errorf("a record of the future: %v", r.Failure())
	}
}
