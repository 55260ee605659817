package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/grant"
	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// countedIssuer is a node's issuer whose key's signatures are counted.
func countedIssuer(t *testing.T, f *fixture, role Role) (*Issuer, *countingKey) {
	t.Helper()
	entry, name, td := f.manifest.Nodes[0].GrantIssuer, grantIssuerKeyFile, testGrantTD()
	if role == RoleIdentity {
		entry, name, td = f.manifest.Nodes[0].IdentityIssuer, identityIssuerKeyFile, testTD()
	}
	key := &countingKey{Signer: f.issuerKey(0, name)}
	return got(newIssuer(entry, key, role, td))(t), key
}

// Identity and grant issuers sign only what was committed first: with no commit,
// with another commit, or a second time, the key is not even asked.
func TestInvariant01_NothingUnloggedLeaves(t *testing.T) {
	f := newFixture(t, 1)
	pub := got(GenerateKey())(t).Public()
	for _, role := range []Role{RoleGrants, RoleIdentity} {
		t.Run(role.String(), func(t *testing.T) {
			issuer, key := countedIssuer(t, f, role)
			prepare := func() *Ticket {
				t.Helper()
				if role == RoleIdentity {
					return got(issuer.PrepareIdentity(f.identitySpec(pub)))(t)
				}
				return got(issuer.PrepareGrant(f.grantSpec(pub)))(t)
			}
			refused := func(what string, err, want error) {
				t.Helper()
				if !errors.Is(err, want) {
					t.Errorf("%s: error %v, want %v", what, err, want)
				}
				if n := key.signatures.Load(); n != 0 {
					t.Fatalf("%s: the issuer's key signed %d times", what, n)
				}
			}

			for what, change := range map[string]func(*Record){
				"nothing":          func(r *Record) { *r = Record{} },
				"another serial":   func(r *Record) { r.Serial = "40" },
				"no serial":        func(r *Record) { r.Serial = "" },
				"upper case":       func(r *Record) { r.Serial = strings.ToUpper(r.Serial) + "A" },
				"another hash":     func(r *Record) { r.TBSHash = strings.Repeat("0", 64) },
				"another issuer":   func(r *Record) { r.Issuer = strings.Repeat("0", 64) },
				"another key":      func(r *Record) { r.Key = strings.Repeat("0", 64) },
				"an earlier start": func(r *Record) { r.NotBefore = r.NotBefore.Add(-time.Second) },
				"a later end":      func(r *Record) { r.NotAfter = r.NotAfter.Add(time.Nanosecond) },
				"another ticket's": func(r *Record) { *r = prepare().Record() },
			} {
				ticket := prepare()
				record := ticket.Record()
				change(&record)
				chain, err := ticket.Sign(record)
				refused("committed: "+what, err, ErrNotCommitted)
				if chain != nil {
					t.Errorf("committed: %s: a certificate left", what)
				}
				_, err = ticket.Sign(ticket.Record())
				refused("after "+what, err, ErrTicketSpent)
			}
			refusedPastTheTicket(t, issuer, prepare(), refused)

			ticket := prepare()
			record := ticket.Record()
			leaf := got(ticket.Sign(record))(t)[0]
			if n := key.signatures.Load(); n != 1 {
				t.Errorf("the issuer's key signed %d times, not once", n)
			}
			sum := sha256.Sum256(leaf.RawTBSCertificate)
			if hex.EncodeToString(sum[:]) != record.TBSHash || SerialText(leaf.SerialNumber) != record.Serial {
				t.Errorf("signed %x, serial %x; committed %+v", sum, leaf.SerialNumber, record)
			}
			_, err := ticket.Sign(record)
			if !errors.Is(err, ErrTicketSpent) || key.signatures.Load() != 1 {
				t.Errorf("a second signature: %v", err)
			}
		})
	}
}

// refusedPastTheTicket goes for the signature by every other way there is.
func refusedPastTheTicket(t *testing.T, issuer *Issuer, ticket *Ticket, refused func(string, error, error)) {
	t.Helper()
	template := got(x509.ParseCertificate(got(assemble(ticket.tbs, noSignature()))(t)))(t)
	cas := issuer.authority.cas
	request := func(id string) *apiv1.CreateCertificateRequest {
		return &apiv1.CreateCertificateRequest{Template: template, Lifetime: time.Minute, RequestID: id}
	}
	_, err := cas.CreateCertificate(request(""))
	refused("the CAS without a ticket", err, ErrNotCommitted)
	_, err = cas.CreateCertificate(request(ticket.Record().TBSHash))
	refused("the CAS without a commit", err, ErrNotCommitted)
	_, err = cas.RenewCertificate(&apiv1.RenewCertificateRequest{Template: template, Lifetime: time.Minute})
	refused("renewal", err, ErrRefused)
	_, err = cas.RevokeCertificate(&apiv1.RevokeCertificateRequest{})
	refused("revocation", err, ErrRefused)
	_, err = cas.sign(ticket.tbs, ticket.hash)
	refused("the bytes without a commit", err, ErrNotCommitted)
	_, err = x509.CreateCertificate(rand.Reader, template, issuer.Certificate(), template.PublicKey, cas.gate)
	refused("crypto/x509 by itself", err, ErrNotCommitted)
	_, err = cas.gate.Sign(rand.Reader, make([]byte, 48), crypto.SHA384)
	refused("another hash function", err, ErrNotCommitted)

	// A commit opens the key for what was committed and for nothing else.
	done := cas.gate.commit(tbsHash{1})
	_, err = cas.CreateCertificate(request(tbsHash{1}.String()))
	refused("the CAS with another's commit", err, ErrNotCommitted)
	done()
	_, err = cas.gate.Sign(rand.Reader, tbsHash{1}.bytes(), crypto.SHA256)
	refused("a commit taken back", err, ErrNotCommitted)
}

func (h tbsHash) bytes() []byte { return h[:] }

func TestTicketIsOneShot(t *testing.T) {
	f := newFixture(t, 1)
	issuer, key := countedIssuer(t, f, RoleGrants)
	ticket := got(issuer.PrepareGrant(f.grantSpec(got(GenerateKey())(t).Public())))(t)
	const callers = 32
	errs := make(chan error, callers)
	var start, done sync.WaitGroup
	start.Add(1)
	for range callers {
		done.Go(func() {
			start.Wait()
			_, err := ticket.Sign(ticket.Record())
			errs <- err
		})
	}
	start.Done()
	done.Wait()
	close(errs)
	won := 0
	for err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrTicketSpent):
			t.Error(err)
		}
	}
	if won != 1 || key.signatures.Load() != 1 {
		t.Errorf("%d callers won and %d signatures were made, want 1 and 1", won, key.signatures.Load())
	}
	if n := len(issuer.authority.cas.gate.open); n != 0 {
		t.Errorf("%d commits are left open", n)
	}
}

// TestDraftIsWhatIsSigned: what is committed before any key is used is, byte for
// byte, what crypto/x509 has a key sign.
func TestDraftIsWhatIsSigned(t *testing.T) {
	f := newFixture(t, 1)
	issuer := f.node(0).Grants
	ticket := got(issuer.PrepareGrant(f.grantSpec(got(GenerateKey())(t).Public())))(t)
	template := got(x509.ParseCertificate(got(assemble(ticket.tbs, noSignature()))(t)))(t)
	if err := template.CheckSignatureFrom(issuer.Certificate()); err == nil {
		t.Error("the draft verifies")
	}
	stolen := f.issuerKey(0, grantIssuerKeyFile)
	der := got(x509.CreateCertificate(rand.Reader, template, issuer.Certificate(), template.PublicKey, stolen))(t)
	if want := got(x509.ParseCertificate(der))(t); !bytes.Equal(ticket.tbs, want.RawTBSCertificate) {
		t.Errorf("drafted %x\nsigned %x", ticket.tbs, want.RawTBSCertificate)
	}
	leaf := got(ticket.Sign(ticket.Record()))(t)[0]
	if err := leaf.CheckSignatureFrom(issuer.Certificate()); err != nil {
		t.Error(err)
	}
	// A digest, which is all that other signers get, makes no draft.
	d := &drafter{issuer: issuer.Certificate().PublicKey}
	if signature, err := d.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil || signature != nil || d.tbs != nil {
		t.Errorf("a draft's signer signed: %x, %v", signature, err)
	}
}

// strangeKey has one public key and signs with another, as a device does in whose
// slots two keys were mixed up.
type strangeKey struct {
	crypto.Signer
	other crypto.Signer
}

func (k strangeKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.other.Sign(rand, digest, opts)
}

// TestSignatureOfAnotherKey: nothing leaves with a signature that nobody accepts.
func TestSignatureOfAnotherKey(t *testing.T) {
	f := newFixture(t, 1)
	key := strangeKey{f.issuerKey(0, grantIssuerKeyFile), got(GenerateKey())(t)}
	issuer := got(newIssuer(f.manifest.Nodes[0].GrantIssuer, key, RoleGrants, testGrantTD()))(t)
	ticket := got(issuer.PrepareGrant(f.grantSpec(got(GenerateKey())(t).Public())))(t)
	if chain, err := ticket.Sign(ticket.Record()); !errors.Is(err, ErrKey) || chain != nil {
		t.Errorf("%v, %v", chain, err)
	}
}

// TestCASSignsTheCommittedTemplate: what smallstep's code would have signed is
// drafted anew, and signed only if that is what was committed.
func TestCASSignsTheCommittedTemplate(t *testing.T) {
	f := newFixture(t, 1)
	issuer, key := countedIssuer(t, f, RoleGrants)
	cas := issuer.authority.cas
	ticket := got(issuer.PrepareGrant(f.grantSpec(got(GenerateKey())(t).Public())))(t)
	template := got(x509.ParseCertificate(got(assemble(ticket.tbs, noSignature()))(t)))(t)
	defer cas.gate.commit(ticket.hash)()
	bent := *template
	bent.NotAfter = bent.NotAfter.Add(time.Hour)
	for what, c := range map[string]*x509.Certificate{"a longer life": &bent, "no template": nil} {
		_, err := cas.CreateCertificate(&apiv1.CreateCertificateRequest{Template: c, RequestID: ticket.record.TBSHash})
		if err == nil || key.signatures.Load() != 0 {
			t.Errorf("%s: %v, %d signatures", what, err, key.signatures.Load())
		}
	}
	resp := got(cas.CreateCertificate(&apiv1.CreateCertificateRequest{Template: template, RequestID: ticket.record.TBSHash}))(t)
	if !bytes.Equal(resp.Certificate.RawTBSCertificate, ticket.tbs) {
		t.Error("another certificate than the committed one was signed")
	}
}

func TestConcurrentTickets(t *testing.T) {
	f := newFixture(t, 1)
	issuer := f.node(0).Grants
	spec := f.grantSpec(got(GenerateKey())(t).Public())
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		serials = make(map[string]bool)
	)
	for range 50 {
		wg.Go(func() {
			ticket, err := issuer.PrepareGrant(spec)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := ticket.Sign(ticket.Record()); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if serial := ticket.Record().Serial; serials[serial] {
				t.Errorf("serial %s twice", serial)
			} else {
				serials[serial] = true
			}
		})
	}
	wg.Wait()
}

// A record goes through the log and comes back with times in another location.
func TestRecordEqual(t *testing.T) {
	a := Record{Serial: "40", TBSHash: "00", Issuer: "11", Key: "22", NotBefore: testNow(), NotAfter: testNow().Add(time.Hour)}
	b := a
	b.NotBefore = time.UnixMilli(a.NotBefore.UnixMilli()).In(time.FixedZone("", 3600))
	b.NotAfter = time.UnixMilli(a.NotAfter.UnixMilli())
	if !a.Equal(b) {
		t.Errorf("%+v and %+v differ", a, b)
	}
}

func TestPrepareRefuses(t *testing.T) {
	f := newFixture(t, 1)
	node := f.node(0)
	pub := got(GenerateKey())(t).Public()
	grantCases := map[string]func(*GrantSpec){
		"no id":              func(s *GrantSpec) { s.ID = GrantSpec{}.ID },
		"no key":             func(s *GrantSpec) { s.PublicKey = nil },
		"no time":            func(s *GrantSpec) { s.Now = time.Time{} },
		"no expiry":          func(s *GrantSpec) { s.GrantExpiry = time.Time{} },
		"no ttl":             func(s *GrantSpec) { s.TTL = 0 },
		"negative ttl":       func(s *GrantSpec) { s.TTL = -time.Minute },
		"negative skew":      func(s *GrantSpec) { s.Skew = -1 },
		"skew over the most": func(s *GrantSpec) { s.Skew = MaxSkew + 1 },
		"the issuer's key":   func(s *GrantSpec) { s.PublicKey = node.Grants.Certificate().PublicKey },
	}
	for name, change := range grantCases {
		spec := f.grantSpec(pub)
		change(&spec)
		if _, err := node.Grants.PrepareGrant(spec); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrKey) {
			t.Errorf("grant, %s: %v", name, err)
		}
	}
	if _, err := node.Identity.PrepareGrant(f.grantSpec(pub)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a grant from the identity issuer: %v", err)
	}
	identityCases := map[string]func(*IdentitySpec){
		"no id":                 func(s *IdentitySpec) { s.ID = spiffeid.ID{} },
		"a trust domain's id":   func(s *IdentitySpec) { s.ID = testTD().ID() },
		"another domain's id":   func(s *IdentitySpec) { s.ID = spiffeid.RequireFromString("spiffe://other.test/user/eve") },
		"a grants-domain id":    func(s *IdentitySpec) { s.ID = spiffeid.RequireFromString("spiffe://grants.acme.test/v1/payments") },
		"an id too long":        func(s *IdentitySpec) { s.ID = spiffeid.RequireFromSegments(testTD(), strings.Repeat("a", 2048)) },
		"a life too long":       func(s *IdentitySpec) { s.TTL = MaxIdentityTTL + 1 },
		"a wildcard":            func(s *IdentitySpec) { s.DNSNames = []string{"*.acme.test"} },
		"upper case":            func(s *IdentitySpec) { s.DNSNames = []string{"Payments.acme.test"} },
		"a trailing dot":        func(s *IdentitySpec) { s.DNSNames = []string{"payments.acme.test."} },
		"an address as a name":  func(s *IdentitySpec) { s.DNSNames = []string{"127.0.0.1"} },
		"one name twice":        func(s *IdentitySpec) { s.DNSNames = []string{"localhost", "localhost"} },
		"a name not permitted":  func(s *IdentitySpec) { s.DNSNames = []string{"payments.evil.test"} },
		"a suffix by letters":   func(s *IdentitySpec) { s.DNSNames = []string{"notacme.test"} },
		"an IP not permitted":   func(s *IdentitySpec) { s.IPs = ips("10.1.2.3") },
		"the unspecified IP":    func(s *IdentitySpec) { s.IPs = ips("0.0.0.0") },
		"an IPv6 not permitted": func(s *IdentitySpec) { s.IPs = ips("2001:db8::1") },
	}
	for name, change := range identityCases {
		spec := f.identitySpec(pub)
		change(&spec)
		if _, err := node.Identity.PrepareIdentity(spec); !errors.Is(err, ErrInvalid) {
			t.Errorf("identity, %s: %v", name, err)
		}
	}
	if _, err := node.Grants.PrepareIdentity(f.identitySpec(pub)); !errors.Is(err, ErrInvalid) {
		t.Errorf("an identity from the grants issuer: %v", err)
	}
}

// BenchmarkMint is one grant certificate, but for the commit.
func BenchmarkMint(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "offline")
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	check(Init(dir, testInitOptions()))
	keys := b.TempDir()
	request, err := NewNode(keys, testNodeOptions(1))
	check(err)
	m, err := SignNodes(dir, []NodeRequest{request}, SignOptions{Now: testNow()})
	check(err)
	node, err := LoadNode(keys, m)
	check(err)
	key, err := GenerateKey()
	check(err)
	scope, err := grant.ParseScope("payments", []string{"GET,HEAD /accounts/**"})
	check(err)
	id, err := grant.NewID(testGrantTD(), scope, personID(testTD(), "alice"), testGrantID)
	check(err)
	for b.Loop() {
		ticket, err := node.Grants.PrepareGrant(GrantSpec{ID: id, PublicKey: key.Public(), Now: testNow(), TTL: time.Minute, GrantExpiry: testNow().Add(time.Hour)})
		check(err)
		_, err = ticket.Sign(ticket.Record())
		check(err)
	}
}
