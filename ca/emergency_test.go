package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/emergency"
	"github.com/hallpass/hallpass/grant"
)

// ceremony is an emergency kit with three custodians, of whom two act together.
type ceremony struct {
	*fixture

	dir  string
	keys map[string][]age.Identity
}

func newCeremony(t *testing.T) *ceremony {
	t.Helper()
	c := &ceremony{fixture: newFixture(t, 1), dir: filepath.Join(t.TempDir(), "kit"), keys: map[string][]age.Identity{}}
	o := EmergencyOptions{Name: "hq", Threshold: 2, Now: testNow()}
	for _, name := range []string{"ada", "grace", "linus"} {
		path := filepath.Join(t.TempDir(), name+".key")
		o.Custodians = append(o.Custodians, Custodian{name, got(NewCustodian(path, ""))(t)})
		c.keys[name] = got(LoadCustodian(path, nil))(t)
	}
	got(InitEmergency(c.offline, c.dir, o))(t)
	return c
}

func (c *ceremony) kit() *Kit { c.t.Helper(); return got(OpenKit(c.dir))(c.t) }

// unlock opens the kit with the keys of these custodians.
func (c *ceremony) unlock(names ...string) (*EmergencyIssuer, error) {
	var keys []age.Identity
	for _, name := range names {
		keys = append(keys, c.keys[name]...)
	}
	return c.kit().Unlock(keys)
}

func (c *ceremony) spec() EmergencySpec {
	return EmergencySpec{
		Scope:   got(grant.ParseScope("payments", []string{"GET /admin/**"}))(c.t),
		Subject: spiffeid.RequireFromString("spiffe://acme.test/user/alice"), Reason: "the cluster is gone",
		PublicKey: got(GenerateKey())(c.t).Public(), Life: 30 * time.Minute, Now: testNow().Add(time.Minute),
	}
}

// TestEmergencyCeremony: two custodians together make a grant certificate, which is in
// the journal, and which a verifier takes that knows the mark and no other does.
func TestEmergencyCeremony(t *testing.T) {
	c := newCeremony(t)
	must(t, emergency.CheckIssuer(c.kit().Issuer, "grants.acme.test"))
	e := got(c.unlock("linus", "ada"))(t)
	chain, record, err := e.Issue(c.spec())
	must(t, err)
	leaf := chain[0]
	tbs := sha256.Sum256(leaf.RawTBSCertificate)
	if record.N != 1 || record.TBSHash != hex.EncodeToString(tbs[:]) || record.Serial != SerialText(leaf.SerialNumber) ||
		strings.Join(record.Custodians, "+") != "ada+linus" || record.SPIFFEID != leaf.URIs[0].String() {
		t.Errorf("the record is %+v", record)
	}
	if want := c.spec().Now.Add(30 * time.Minute); !leaf.NotAfter.Equal(want) {
		t.Errorf("it ends at %s, want %s", leaf.NotAfter, want)
	}
	now := c.spec().Now
	known := []*x509.Certificate{leaf, emergency.Understood(chain[1])}
	if err := goVerify(known, c.manifest.GrantRoots, x509.ExtKeyUsageClientAuth, now); err != nil {
		t.Errorf("a verifier that knows the mark: %v", err)
	}
	if goVerify(chain, c.manifest.GrantRoots, x509.ExtKeyUsageClientAuth, now) == nil {
		t.Error("crypto/x509 takes it without knowing the mark")
	}
	if opensslVerify(t, chain, c.manifest.GrantRoots, "any", now) == nil {
		t.Error("openssl takes it without knowing the mark")
	}
	// A node's issuer goes on as it was.
	ticket, err := c.node(0).Grants.PrepareGrant(c.grantSpec(got(GenerateKey())(t).Public()))
	normal := signed(t, ticket, err)
	if emergency.Marked(normal[1]) || emergency.CheckIssuer(normal[1], "grants.acme.test") == nil {
		t.Error("a node's issuer passes for an emergency issuer")
	}
	if _, record, err = e.Issue(c.spec()); err != nil || record.N != 2 {
		t.Errorf("the second: record %d, %v", record.N, err)
	}
	if all, err := c.kit().Journal(); err != nil || len(all) != 2 {
		t.Errorf("%d records in the journal: %v", len(all), err)
	}
	issued := string(got(os.ReadFile(filepath.Join(c.offline, journalFile)))(t))
	if !strings.Contains(issued, "emergency grants issuer hq") {
		t.Error("the roots' own journal does not have the issuer")
	}
}

// TestEmergencyCustodiansTogether: one alone opens nothing, also with a key that is
// there twice, with the share of another, or with a kit that says that one is enough.
func TestEmergencyCustodiansTogether(t *testing.T) {
	c := newCeremony(t)
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrCustodians) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := c.unlock("ada")
	refused("one", err)
	if !strings.Contains(err.Error(), "it takes 2 of 3 together (ada, grace, linus), and there are keys of ada only") {
		t.Errorf("the refusal says %v", err)
	}
	_, err = c.unlock("ada", "ada")
	refused("one, twice", err)
	_, err = c.unlock()
	refused("nobody", err)
	stranger := got(age.GenerateX25519Identity())(t)
	_, err = c.kit().Unlock(append(c.keys["ada"], stranger))
	refused("one and a stranger", err)

	k := c.kit()
	k.sealed.Custodians[1].Share = k.sealed.Custodians[0].Share
	_, err = k.Unlock(append(c.keys["ada"], c.keys["grace"]...))
	refused("a share in two places", err)
	other := newCeremony(t)
	_, err = other.kit().Unlock(append(c.keys["ada"], c.keys["grace"]...))
	refused("keys of another kit", err)

	for name, edit := range map[string]func(*kitJSON){
		"one is enough":    func(k *kitJSON) { k.Threshold, k.Commitments = 1, k.Commitments[:1] },
		"another issuer":   func(k *kitJSON) { k.Issuer = other.kit().sealed.Issuer },
		"a node's issuer":  func(k *kitJSON) { k.Issuer = string(EncodeCertificates(c.manifest.Nodes[0].GrantIssuer)) },
		"other roots":      func(k *kitJSON) { k.GrantRoots = k.IdentityRoots },
		"another version":  func(k *kitJSON) { k.Version = 2 },
		"an edited key":    func(k *kitJSON) { k.SealedKey[20] ^= 1 },
		"other promises":   func(k *kitJSON) { k.Commitments = other.kit().sealed.Commitments },
		"a promise less":   func(k *kitJSON) { k.Commitments = k.Commitments[:1] },
		"a third may help": func(k *kitJSON) { k.Threshold, k.Commitments = 3, append(k.Commitments, k.Commitments[0]) },
	} {
		edited := c.kit().sealed
		edited.SealedKey = bytes.Clone(edited.SealedKey)
		edit(&edited)
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, KitFile), got(json.Marshal(edited))(t), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, EmergencyJournalFile), nil, 0o600))
		kit, err := OpenKit(dir)
		if err == nil {
			_, err = kit.Unlock(append(c.keys["ada"], c.keys["grace"]...))
		}
		if err == nil {
			t.Errorf("%s: it opens", name)
		}
	}
}

// TestEmergencyShareThatIsWrong is told by the name of whose it is.
func TestEmergencyShareThatIsWrong(t *testing.T) {
	c := newCeremony(t)
	other := newCeremony(t)
	k := c.kit()
	// The same issuer, so that only the share is wrong: grace's of another sharing.
	sealed := other.kit().sealed
	plain, mine, err := sealed.Custodians[1].share(other.kit().Issuer, other.keys["grace"])
	if err != nil || !mine {
		t.Fatal(err)
	}
	k.sealed.Custodians[1].Share = got(encryptShare(plain, emergency.ID(k.Issuer), Custodian{"grace", k.sealed.Custodians[1].Recipient}))(t)
	_, err = k.Unlock(append(c.keys["ada"], c.keys["grace"]...))
	if !errors.Is(err, ErrCustodians) || !strings.Contains(err.Error(), "the share of grace") {
		t.Errorf("it says %v", err)
	}
}

// TestEmergencyRefuses what an emergency issuer does not make.
func TestEmergencyRefuses(t *testing.T) {
	c := newCeremony(t)
	e := got(c.unlock("ada", "grace"))(t)
	for name, edit := range map[string]func(*EmergencySpec){
		"longer than the cap":   func(s *EmergencySpec) { s.Life = emergency.MaxLife + time.Second },
		"no time":               func(s *EmergencySpec) { s.Life = 0 },
		"no reason":             func(s *EmergencySpec) { s.Reason = " " },
		"a reason that hides":   func(s *EmergencySpec) { s.Reason = "x\u202ey" },
		"a grant as its holder": func(s *EmergencySpec) { s.Subject = spiffeid.RequireFromString("spiffe://grants.acme.test/user/alice") },
		"no scope":              func(s *EmergencySpec) { s.Scope = grant.Scope{} },
		"after the issuer":      func(s *EmergencySpec) { s.Now = s.Now.Add(366 * 24 * time.Hour) },
		"before the issuer":     func(s *EmergencySpec) { s.Now = s.Now.Add(-time.Hour) },
		"the issuer's own key":  func(s *EmergencySpec) { s.PublicKey = c.kit().Issuer.PublicKey },
	} {
		spec := c.spec()
		edit(&spec)
		if _, _, err := e.Issue(spec); err == nil {
			t.Errorf("%s: it was made", name)
		}
	}
	if _, err := e.issuer.PrepareIdentity(IdentitySpec{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an identity: %v", err)
	}
	if all, err := c.kit().Journal(); err != nil || len(all) != 0 {
		t.Errorf("%d records of what was refused: %v", len(all), err)
	}
	// Near its end the issuer makes none that outlives it.
	spec := c.spec()
	spec.Now = c.kit().Issuer.NotAfter.Add(-10 * time.Minute)
	chain, _, err := e.Issue(spec)
	if err != nil || chain[0].NotAfter.After(chain[1].NotAfter) {
		t.Errorf("near the end: %v", err)
	}
	spec.Now = spec.Now.Add(-time.Hour)
	if _, _, err := e.Issue(spec); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "clock") {
		t.Errorf("with a clock that went back: %v", err)
	}
}

// TestEmergencyCommitBeforeSign: nothing is signed that the journal does not have, on
// disk, when the machine stops in between, and when the journal cannot be written.
func TestEmergencyCommitBeforeSign(t *testing.T) {
	c := newCeremony(t)
	e := got(c.unlock("ada", "grace"))(t)
	stopped := errors.New("stopped")
	e.failpoint = func(string) error {
		all := got(c.kit().Journal())(t)
		if len(all) != 1 || all[0].Reason != "the cluster is gone" {
			t.Errorf("before the signature the journal has %+v", all)
		}
		return stopped
	}
	if chain, _, err := e.Issue(c.spec()); !errors.Is(err, stopped) || chain != nil {
		t.Errorf("after a stop: %v", err)
	}
	e.failpoint = func(string) error { return nil }
	path := filepath.Join(c.dir, EmergencyJournalFile)
	text := got(os.ReadFile(path))(t)

	// Half of a line, of a machine that stopped: nothing was signed for it.
	must(t, os.WriteFile(path, append(bytes.Clone(text), text[:40]...), 0o600))
	if _, err := c.kit().Journal(); !errors.Is(err, emergency.ErrJournal) {
		t.Errorf("half of a line: %v", err)
	}
	if _, record, err := e.Issue(c.spec()); err != nil || record.N != 2 {
		t.Errorf("after half of a line: record %d, %v", record.N, err)
	}
	if all, err := c.kit().Journal(); err != nil || len(all) != 2 {
		t.Errorf("%d records: %v", len(all), err)
	}
	text = got(os.ReadFile(path))(t)

	must(t, os.Remove(path))
	if chain, _, err := e.Issue(c.spec()); err == nil || chain != nil {
		t.Error("without a journal it signs")
	}
	must(t, os.Mkdir(path, 0o700))
	if chain, _, err := e.Issue(c.spec()); err == nil || chain != nil {
		t.Error("with a journal that cannot be written it signs")
	}
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, bytes.Replace(text, []byte("is gone"), []byte("is well"), 1), 0o600))
	if chain, _, err := e.Issue(c.spec()); !errors.Is(err, emergency.ErrJournal) || chain != nil {
		t.Errorf("after a changed journal: %v", err)
	}
}

// TestEmergencyAtOnce: two who issue at the same time make one history.
func TestEmergencyAtOnce(t *testing.T) {
	c := newCeremony(t)
	var group sync.WaitGroup
	for range 8 {
		e := got(c.unlock("ada", "grace"))(t)
		spec := c.spec()
		group.Go(func() {
			if _, _, err := e.Issue(spec); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if all, err := c.kit().Journal(); err != nil || len(all) != 8 {
		t.Errorf("%d records: %v", len(all), err)
	}
}

// TestEmergencyInitRefuses kits that fewer than two would open, and never overwrites.
func TestEmergencyInitRefuses(t *testing.T) {
	c := newCeremony(t)
	key := func() string { return got(age.GenerateX25519Identity())(t).Recipient().String() }
	one, two := Custodian{"ada", key()}, Custodian{"grace", key()}
	for name, o := range map[string]EmergencyOptions{
		"one opens it":      {Name: "x", Custodians: []Custodian{one, two}, Threshold: 1},
		"more than are":     {Name: "x", Custodians: []Custodian{one, two}, Threshold: 3},
		"one name twice":    {Name: "x", Custodians: []Custodian{one, {"ada", key()}}, Threshold: 2},
		"one key twice":     {Name: "x", Custodians: []Custodian{one, {"grace", one.Recipient}}, Threshold: 2},
		"no key":            {Name: "x", Custodians: []Custodian{one, {"grace", "age1x"}}, Threshold: 2},
		"two keys in one":   {Name: "x", Custodians: []Custodian{one, {"grace", key() + "\n" + key()}}, Threshold: 2},
		"no name":           {Custodians: []Custodian{one, two}, Threshold: 2},
		"too long a life":   {Name: "x", Custodians: []Custodian{one, two}, Threshold: 2, Life: 2 * EmergencyLife},
		"a custodian's way": {Name: "x", Custodians: []Custodian{one, {"../x", key()}}, Threshold: 2},
	} {
		o.Now = testNow()
		out := filepath.Join(t.TempDir(), "kit")
		if _, err := InitEmergency(c.offline, out, o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: there is a kit", name)
		}
	}
	o := EmergencyOptions{Name: "x", Custodians: []Custodian{one, two}, Threshold: 2, Now: testNow()}
	if _, err := InitEmergency(c.offline, c.dir, o); !errors.Is(err, ErrExists) {
		t.Errorf("over another kit: %v", err)
	}
	path := filepath.Join(t.TempDir(), "key")
	got(NewCustodian(path, ""))(t)
	if _, err := NewCustodian(path, ""); !errors.Is(err, ErrExists) {
		t.Errorf("over another key: %v", err)
	}
	must(t, os.Chmod(path, 0o644))
	if _, err := LoadCustodian(path, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a key that others may read: %v", err)
	}
}

// TestCustodianPassphrase: a key file with a passphrase opens with that alone.
func TestCustodianPassphrase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	plain := filepath.Join(t.TempDir(), "plain")
	recipient := got(NewCustodian(plain, ""))(t)
	// With less work than a real one takes.
	sealed := got(withPassphrase(got(os.ReadFile(plain))(t), "correct horse", 10))(t)
	must(t, os.WriteFile(path, sealed, 0o600))
	if text := got(os.ReadFile(path))(t); bytes.Contains(text, []byte("AGE-SECRET")) || bytes.Contains(text, []byte(recipient)) {
		t.Error("the file is not encrypted")
	}
	ask := func(answer string) func(string) (string, error) {
		return func(string) (string, error) { return answer, nil }
	}
	if _, err := LoadCustodian(path, ask("wrong horse")); !errors.Is(err, ErrKey) {
		t.Errorf("with another passphrase: %v", err)
	}
	keys := got(LoadCustodian(path, ask("correct horse")))(t)
	hybrid, ok := keys[0].(*age.HybridIdentity)
	if !ok || hybrid.Recipient().String() != recipient {
		t.Errorf("another key came out: %T", keys[0])
	}
}

// TestEmergencyKitHasNoSecret: neither the issuer's key nor a share is in the kit for
// who has it alone.
func TestEmergencyKitHasNoSecret(t *testing.T) {
	c := newCeremony(t)
	e := got(c.unlock("ada", "grace"))(t)
	raw := got(x509.MarshalPKCS8PrivateKey(e.issuer.authority.cas.gate.key))(t)
	files := got(filepath.Glob(filepath.Join(c.dir, "*")))(t)
	for _, file := range files {
		text := got(os.ReadFile(file))(t)
		if bytes.Contains(text, raw) || bytes.Contains(text, []byte("PRIVATE KEY")) || bytes.Contains(text, []byte("AGE-SECRET")) {
			t.Errorf("%s has a secret", file)
		}
		info := got(os.Stat(file))(t)
		if filepath.Base(file) != EmergencyIssuerFile && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", file, info.Mode().Perm())
		}
	}
}
