package testenv_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/emergency"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/proxy"
	"github.com/hallpass/hallpass/testenv"
)

// custodians are a kit and those who open it.
type custodians struct {
	t    *testing.T
	dir  string
	keys []age.Identity
}

func newCustodians(t *testing.T, env *testenv.Env) *custodians {
	t.Helper()
	c := &custodians{t: t, dir: filepath.Join(t.TempDir(), "kit")}
	o := ca.EmergencyOptions{Name: "hq", Threshold: 2}
	for _, name := range []string{"carol", "dana", "erin"} {
		path := filepath.Join(t.TempDir(), name+".key")
		recipient, err := ca.NewCustodian(path, "")
		check(t, err)
		keys, err := ca.LoadCustodian(path, nil)
		check(t, err)
		c.keys = append(c.keys, keys...)
		o.Custodians = append(o.Custodians, ca.Custodian{Name: name, Recipient: recipient})
	}
	_, err := ca.InitEmergency(env.Offline(), c.dir, o)
	check(t, err)
	return c
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// issue lets alice in at payments.
func (c *custodians) issue() (*tls.Certificate, emergency.Record) {
	c.t.Helper()
	kit, err := ca.OpenKit(c.dir)
	check(c.t, err)
	issuer, err := kit.Unlock(c.keys[:2])
	check(c.t, err)
	key, err := ca.GenerateKey()
	check(c.t, err)
	scope, err := grant.ParseScope("payments", []string{"GET /accounts/**"})
	check(c.t, err)
	chain, record, err := issuer.Issue(ca.EmergencySpec{
		Scope: scope, Subject: spiffeid.RequireFromString("spiffe://" + testenv.TrustDomain + "/user/alice"),
		Reason: "the cluster is gone", PublicKey: key.Public(), Life: 30 * time.Minute, Now: time.Now(),
	})
	check(c.t, err)
	return &tls.Certificate{Certificate: [][]byte{chain[0].Raw, chain[1].Raw}, PrivateKey: key, Leaf: chain[0]}, record
}

// journal is the lines of the kit's journal.
func (c *custodians) journal() (lines []string) {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, ca.EmergencyJournalFile))
	check(c.t, err)
	for line := range strings.Lines(string(text)) {
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	return lines
}

// bring imports lines of a journal that is said to have so many.
func bring(ctx context.Context, c *api.Client, lines []string, of int) error {
	for _, line := range lines {
		if _, err := c.ImportEmergencyRecord(ctx, line, uint64(of)); err != nil {
			return err
		}
	}
	return nil
}

// TestEmergency: every node is dead, custodians let somebody in, at the service that
// says so and at no other; the nodes are back, warn of what nobody has imported, and
// stop once it is; the grant is revoked like any other; the log has all of it.
func TestEmergency(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	kit := newCustodians(t, env)
	upstream := env.HTTPUpstream(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Header.Get("X-Hallpass-Emergency"))
	}))
	opted := env.Proxy("payments", testenv.ProxyOptions{Upstream: upstream, Change: func(s *proxy.Settings) { s.Emergency = "allow" }})
	plain := env.Proxy("payments", testenv.ProxyOptions{Upstream: upstream})
	get := func(p *testenv.Proxy, cert *tls.Certificate) (status int, seen string, err error) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL("/accounts/1"), nil)
		check(t, err)
		resp, err := env.HTTPClient(cert).Do(req)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, resp.Header.Get("X-Seen"), resp.Body.Close()
	}
	refused := func(p *testenv.Proxy, cert *tls.Certificate) func() bool {
		return func() bool {
			_, _, err := get(p, cert)
			return err != nil
		}
	}
	for _, n := range env.Nodes() {
		n.Kill()
	}
	first, record := kit.issue()
	if status, seen, err := get(opted, first); err != nil || status != http.StatusOK || seen != "true" {
		t.Fatalf("at the service that admits emergencies: %d, %q, %v", status, seen, err)
	}
	// HTTP/2 says no more than that it has no connection when the alert comes behind the handshake.
	if status, _, err := get(plain, first); err == nil || !strings.Contains(err.Error(), "tls:") && !strings.Contains(err.Error(), "conn could not be established") {
		t.Fatalf("at the one that does not: %d, %v", status, err)
	}
	for _, n := range env.Nodes() {
		n.Start()
	}
	env.WaitReady()
	for _, n := range env.Nodes() {
		env.Eventually(n.ID+" warns of the emergency", func() bool {
			f := serialsOf(n.Server().Health())
			return f.Status == "warn" && strings.HasPrefix(f.Detail, "1 emergency certificates were used that are not imported") &&
				strings.Contains(f.Detail, record.Serial)
		})
	}

	admin, ctx := env.Client("carol"), t.Context()
	issuer, err := admin.RegisterEmergencyIssuer(ctx, issuerPEM(t, kit))
	check(t, err)
	if issuer.Role != "emergency" || issuer.ID != record.Issuer {
		t.Errorf("the issuer is %+v", issuer)
	}
	if err := bring(ctx, env.Client("alice"), kit.journal(), 1); !errors.Is(err, api.ErrDenied) {
		t.Errorf("imported by one who is no admin: %v", err)
	}
	check(t, bring(ctx, admin, kit.journal(), 1))
	check(t, bring(ctx, admin, kit.journal(), 1))
	for _, n := range env.Nodes() {
		env.Eventually(n.ID+" has it", func() bool { return serialsOf(n.Server().Health()).Status == "ok" })
	}
	id, err := record.GrantID("grants." + testenv.TrustDomain)
	check(t, err)
	g, err := admin.Grant(ctx, id.GrantID())
	check(t, err)
	if g.State != api.GrantActive || g.Emergency == nil || g.Emergency.N != 1 || len(g.Issuances) != 1 {
		t.Errorf("the grant is %+v, %+v", g, g.Emergency)
	}
	// It is not to be had anew, without its mark.
	key, err := ca.GenerateKey()
	check(t, err)
	csr, err := ca.MakeCSR(key, "")
	check(t, err)
	if _, err := env.Client("alice").GrantCertificate(ctx, g.ID, string(csr)); !errors.Is(err, api.ErrDenied) {
		t.Errorf("a node's certificate of it: %v", err)
	}

	// A second one, and what was brought is less than that: cut.
	kit.issue()
	check(t, bring(ctx, admin, kit.journal(), 2))
	if err := bring(ctx, admin, kit.journal()[:1], 1); err == nil || !strings.Contains(err.Error(), "1 records, and 2 were imported") {
		t.Errorf("a journal that was cut: %v", err)
	}
	// And cut and gone on with: another history.
	path := filepath.Join(kit.dir, ca.EmergencyJournalFile)
	check(t, os.WriteFile(path, []byte(kit.journal()[0]+"\n"), 0o600))
	kit.issue()
	if err := bring(ctx, admin, kit.journal(), 2); err == nil || !strings.Contains(err.Error(), "another history") {
		t.Errorf("a journal that was cut and gone on with: %v", err)
	}
	env.Eventually("a finding", func() bool {
		for _, f := range env.Leader().Server().Health().Findings {
			if f.Check == "emergency" {
				return f.Status == "warn" && strings.Contains(f.Detail, record.Issuer)
			}
		}
		return false
	})

	_, err = admin.RevokeGrant(ctx, g.ID, "over")
	check(t, err)
	env.Eventually("the grant is cut", refused(opted, first))

	// One that nobody has imported is revoked by its id, and all of them with the issuer.
	third, _ := kit.issue()
	if _, _, err := get(opted, third); err != nil {
		t.Fatal(err)
	}
	_, err = admin.RevokeEmergencyGrant(ctx, emergencyID(t, third), "not ours")
	check(t, err)
	env.Eventually("the unknown grant is cut", refused(opted, third))
	fourth, _ := kit.issue()
	_, err = admin.DenyIssuer(ctx, record.Issuer, "a share was stolen")
	check(t, err)
	env.Eventually("the issuer is cut off", refused(opted, fourth))
}

func emergencyID(t *testing.T, cert *tls.Certificate) string {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("grants." + testenv.TrustDomain)
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	check(t, err)
	id, err := grant.ParseID(leaf.URIs[0].String(), td)
	check(t, err)
	return id.GrantID()
}

func issuerPEM(t *testing.T, c *custodians) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, ca.EmergencyIssuerFile))
	check(t, err)
	return string(text)
}
