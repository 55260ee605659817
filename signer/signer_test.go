package signer_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/signer"
	"github.com/hallpass/hallpass/testenv"
	"github.com/hallpass/hallpass/trust"
)

// memoryKMS keeps keys in this process. gone makes it answer with an error.
type memoryKMS struct {
	mu    sync.Mutex
	keys  map[string]crypto.Signer
	gone  error
	opens atomic.Int64
}

func (m *memoryKMS) open(string) (ca.KMS, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opens.Add(1)
	return m, m.gone
}

func (m *memoryKMS) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = err
}

func (m *memoryKMS) CreateKey(name string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key, err := ca.GenerateKey()
	m.keys[name] = key
	return name, err
}

func (m *memoryKMS) Signer(name string) (crypto.Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[name] == nil {
		return nil, fmt.Errorf("no key %s", name)
	}
	return m.keys[name], m.gone
}

func (m *memoryKMS) Close() error { return nil }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// life is that of issuers here: due for renewal 21 s after they were signed.
const life = 2 * time.Minute

// bench is a cluster with roots in a KMS, and issuers that are due.
type bench struct {
	*testenv.Env
	t   *testing.T
	kms *memoryKMS
	log *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	m := &memoryKMS{keys: map[string]crypto.Signer{}}
	return &bench{t: t, kms: m, log: new(lockedBuffer), Env: testenv.Start(t, testenv.Options{
		KMS: m.open, Roots: ca.RootKeys{KMS: "memory:1", Identity: "i", Grants: "g"},
		Issuers: ca.SignOptions{Life: life, Now: time.Now().Add(-25 * time.Second)},
	})}
}

func (b *bench) config() signer.Config {
	return signer.Config{Dir: b.Offline(), Open: b.kms.open, Life: life, Every: time.Second, Logger: slog.New(slog.NewTextHandler(b.log, nil))}
}

// run runs a signer until the returned function is called, or the test ends.
func (b *bench) run(cfg signer.Config) (s *signer.Signer, stop func()) {
	b.t.Helper()
	s, err := signer.New(cfg)
	must(b.t, err)
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Run(ctx); err != nil {
			b.t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	b.t.Cleanup(stop)
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Log(b.log.String())
		}
	})
	return s, stop
}

// finding waits for a finding of that status, with these words.
func (b *bench) finding(s *signer.Signer, check, status, words string) {
	b.t.Helper()
	var h signer.Health
	b.Eventually(fmt.Sprintf("%s is %s: %s", check, status, words), func() bool {
		h = s.Health()
		for _, f := range h.Findings {
			if f.Check == check && f.Status == status && strings.Contains(f.Detail, words) {
				return true
			}
		}
		return false
	})
	if !h.Ready && status != "fail" {
		b.t.Errorf("not ready: %+v", h)
	}
}

// installed are the grant issuers of a node that were not in the manifest.
func (b *bench) installed(node string) (out []api.NodeIssuer) {
	b.t.Helper()
	entry, _ := b.Manifest().Node(node)
	list, err := b.Client("service/watcher").NodeIssuers(b.t.Context())
	must(b.t, err)
	for _, i := range list.Issuers {
		if i.Node == node && i.Role == "grant" && i.ID != trust.ID(entry.GrantIssuer) {
			out = append(out, i)
		}
	}
	return out
}

func (b *bench) renewed(node string) {
	b.t.Helper()
	b.Eventually("node "+node+" is renewed", func() bool { return len(b.installed(node)) > 0 })
}

// TestRenewsUnderAWriter renews all nodes while somebody mints without a pause, and
// no call fails.
func TestRenewsUnderAWriter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	minted := 0
	wrote := make(chan struct{})
	client := b.Client("job/writer")
	go func() {
		defer close(wrote)
		for ctx.Err() == nil {
			if err := mint(context.WithoutCancel(ctx), client); err != nil {
				t.Errorf("after %d certificates: %v", minted, err)
				return
			}
			minted++
			time.Sleep(50 * time.Millisecond) // one subject has at most 1000 live grants
		}
	}()
	s, _ := b.run(b.config())
	for _, n := range b.Manifest().Nodes {
		b.renewed(n.ID)
		b.finding(s, "node "+n.ID, "ok", "until")
	}
	b.Eventually("what is minted is signed by a successor", func() bool {
		csr, err := ca.MakeCSR(must1(ca.GenerateKey()), "")
		must(t, err)
		r := b.Request("job/reader", "payments", time.Minute, "GET /accounts/**")
		cert, err := client2(b).GrantCertificate(t.Context(), r.Grant.ID, string(csr))
		must(t, err)
		chain, err := ca.DecodeCertificates([]byte(cert.Certificate))
		must(t, err)
		for _, n := range b.Manifest().Nodes {
			for _, i := range b.installed(n.ID) {
				if i.ID == trust.ID(chain[1]) {
					return true
				}
			}
		}
		return false
	})
	cancel()
	<-wrote
	if minted < 3 {
		t.Errorf("only %d certificates were minted", minted)
	}
	// Once is enough until they are due again.
	time.Sleep(3 * time.Second)
	for _, n := range b.Manifest().Nodes {
		if got := len(b.installed(n.ID)); got != 1 {
			t.Errorf("node %s has %d new issuers", n.ID, got)
		}
	}
	b.finding(s, "kms", "ok", "")
	b.finding(s, "cluster", "ok", "")
	b.inTheLog(s)
}

func client2(b *bench) *api.Client { return b.Client("job/reader") }

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func mint(ctx context.Context, c *api.Client) error {
	r, err := c.CreateRequest(ctx, api.RequestInput{
		Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(time.Minute), Reason: "a test",
	})
	if err != nil {
		return err
	}
	key, err := ca.GenerateKey()
	if err != nil {
		return err
	}
	csr, err := ca.MakeCSR(key, "")
	if err != nil {
		return err
	}
	_, err = c.GrantCertificate(ctx, r.Grant.ID, string(csr))
	return err
}

// inTheLog wants one leaf an installation, by the signer's own name, and an admin
// port that says all is well.
func (b *bench) inTheLog(s *signer.Signer) {
	b.t.Helper()
	entries, err := b.Client("carol").AuditEntries(b.t.Context(), 0, 1000)
	must(b.t, err)
	leaves := 0
	for _, e := range entries.Entries {
		text := string(must1(json.Marshal(e)))
		if strings.Contains(text, "issuer.install") && strings.Contains(text, "spiffe://acme.test/service/signer") {
			leaves++
		}
	}
	if leaves != len(b.Manifest().Nodes) {
		b.t.Errorf("%d leaves", leaves)
	}
	w := httptest.NewRecorder()
	s.Admin(nil).ServeHTTP(w, httptest.NewRequestWithContext(b.t.Context(), "GET", "/readyz", nil))
	if w.Code != 200 || !strings.Contains(w.Body.String(), `"ready": true`) {
		b.t.Errorf("/readyz: %d %s", w.Code, w.Body)
	}
}

// TestDeniedNodeGetsNoSuccessor is a stolen node, denied as its certificates fall
// due: what the thief has ends by itself.
func TestDeniedNodeGetsNoSuccessor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	entry, _ := b.Manifest().Node("n3")
	_, err := b.Client("carol").DenyIssuer(t.Context(), trust.ID(entry.GrantIssuer), "n3 was broken into")
	must(t, err)
	b.Eventually("all nodes know", func() bool {
		for _, n := range b.Nodes() {
			list, err := b.Client("service/watcher").NodeIssuers(t.Context())
			must(t, err)
			if !strings.Contains(fmt.Sprint(list), "true") {
				return false
			}
			_ = n
		}
		return true
	})
	s, stop := b.run(b.config())
	b.renewed("n1")
	b.renewed("n2")
	b.finding(s, "node n3", "warn", "is out of use")
	if got := b.installed("n3"); len(got) != 0 {
		t.Errorf("the stolen node got %d successors", len(got))
	}
	stop()
	if _, err := ca.LoadNodeCertificates(filepath.Join(b.Offline(), ca.RenewedDir, "n3.json")); err == nil {
		t.Error("its successors were signed")
	}
}

// TestNoSayNoSignature: with most nodes out of reach nobody says who is denied.
func TestNoSayNoSignature(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Nodes()[0].Stop()
	b.Nodes()[1].Stop()
	s, _ := b.run(b.config())
	b.finding(s, "cluster", "warn", "1 of 3 nodes said what is denied, and 2 have to")
	time.Sleep(3 * time.Second)
	for _, n := range []string{"n1", "n2", "n3"} {
		if _, err := ca.LoadNodeCertificates(filepath.Join(b.Offline(), ca.RenewedDir, n+".json")); err == nil {
			t.Errorf("the successors of %s were signed", n)
		}
	}
}

// TestKMSGone: the signer warns, stays ready, and goes on when the KMS is back.
func TestKMSGone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.kms.fail(errors.New("the token is not there"))
	s, _ := b.run(b.config())
	b.finding(s, "kms", "warn", "the token is not there")
	b.finding(s, "cluster", "warn", "no identity")
	b.kms.fail(nil)
	b.renewed("n1")
	b.finding(s, "kms", "ok", "")
	b.kms.fail(errors.New("the token was pulled out"))
	b.finding(s, "kms", "warn", "pulled out") // it is looked at although nothing is due
	b.finding(s, "cluster", "ok", "")
}

// TestRefusedPINIsTriedOnce: tokens lock after a few.
func TestRefusedPINIsTriedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.kms.fail(fmt.Errorf("%w: CKR_PIN_INCORRECT", ca.ErrPINRefused))
	before := b.kms.opens.Load()
	s, _ := b.run(b.config())
	b.finding(s, "kms", "warn", "start the signer again")
	time.Sleep(3 * time.Second)
	if tries := b.kms.opens.Load() - before; tries != 1 {
		t.Errorf("tried %d times", tries)
	}
}

// TestClockOff: what is signed an hour ahead lives in no time of the nodes'.
func TestClockOff(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.config()
	// Not so far that its own identity would be none.
	cfg.Now = func() time.Time { return time.Now().Add(-70 * time.Second) }
	s, _ := b.run(cfg)
	b.finding(s, "cluster", "warn", "off the nodes'")
	if got := b.installed("n1"); len(got) != 0 {
		t.Errorf("signed %d", len(got))
	}
}

// TestNewKeysWaitForAnOperator: a node that asks for other keys is reported, and
// goes on with those it has.
func TestNewKeysWaitForAnOperator(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	entry, _ := b.Manifest().Node("n2")
	td := b.Manifest().TrustDomain
	request, err := ca.NewNode(b.Nodes()[1].Keys(), ca.NodeOptions{
		ID: "n2", TrustDomain: td, RaftAddress: entry.RaftAddress, APIAddress: entry.APIAddress,
		DNSNames: entry.APICertificate.DNSNames, IPs: entry.APICertificate.IPAddresses, NewKeys: true,
	})
	must(t, err)
	fingerprint, err := request.Fingerprint()
	must(t, err)
	s, stop := b.run(b.config())
	b.finding(s, "node n2", "warn", fingerprint)
	b.renewed("n2")
	stop()
	last, err := ca.LoadNodeCertificates(filepath.Join(b.Offline(), ca.RenewedDir, "n2.json"))
	must(t, err)
	if request.Asks(last) {
		t.Fatal("signed by its own asking")
	}
	_, err = ca.RenewNodes(b.Offline(), []ca.NodeRequest{request}, ca.SignOptions{Life: life, Open: b.kms.open})
	must(t, err)
	s, _ = b.run(b.config())
	b.finding(s, "node n2", "ok", "until")
	last, err = ca.LoadNodeCertificates(filepath.Join(b.Offline(), ca.RenewedDir, "n2.json"))
	must(t, err)
	if !request.Asks(last) {
		t.Error("what an operator confirmed is not renewed")
	}
}

// TestLeastPrivilege: what the signer's identity opens besides the issuers.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c, ctx := b.Client("service/signer"), t.Context()
	if _, err := c.NodeIssuers(ctx); err != nil {
		t.Error(err)
	}
	entry, _ := b.Manifest().Node("n1")
	csr := string(must1(ca.MakeCSR(must1(ca.GenerateKey()), "")))
	for what, call := range map[string]func() error{
		"the policy":  func() error { _, err := c.Policy(ctx); return err },
		"the cluster": func() error { _, err := c.Cluster(ctx); return err },
		"the log":     func() error { _, err := c.AuditEntries(ctx, 0, 10); return err },
		"denying":     func() error { _, err := c.DenyIssuer(ctx, trust.ID(entry.GrantIssuer), "x"); return err },
		"removing":    func() error { _, err := c.RemoveNode(ctx, "n1", api.RemoveNodeInput{Reason: "x"}); return err },
		"roots":       func() error { _, err := c.SetRoots(ctx, "{}"); return err },
		"an identity": func() error {
			_, err := c.IssueIdentity(ctx, api.IdentityInput{CSR: csr, SPIFFEID: "spiffe://acme.test/service/x"})
			return err
		},
		"asking":          func() error { return mint(ctx, c) },
		"foreign issuers": func() error { return foreign(t, c) },
	} {
		if err := call(); !errors.Is(err, api.ErrDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// foreign installs an issuer that another cluster's root has signed.
func foreign(t *testing.T, c *api.Client) error {
	t.Helper()
	other := newBench(t)
	entry, _ := other.Manifest().Node("n1")
	_, err := c.InstallIssuers(t.Context(), api.InstallInput{Node: "n1", GrantIssuer: string(ca.EncodeCertificates(entry.GrantIssuer))})
	return err
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	open := func(string) (ca.KMS, error) { return nil, ca.ErrNoKMS }
	for name, cfg := range map[string]signer.Config{
		"no folder":     {Open: open},
		"no KMS":        {Dir: "ca"},
		"too short":     {Dir: "ca", Open: open, Life: time.Second},
		"too long":      {Dir: "ca", Open: open, Life: ca.IssuerLife + 1},
		"never looking": {Dir: "ca", Open: open, Every: 2 * time.Hour},
		"too late":      {Dir: "ca", Open: open, Life: 2 * time.Minute, Every: 10 * time.Second},
	} {
		if _, err := signer.New(cfg); !errors.Is(err, signer.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
