package control

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/raftstore"
)

// failpoints lets a test reach into running nodes.
type failpoints struct {
	mu sync.Mutex
	fn func(node, place string) error
}

func (f *failpoints) set(fn func(node, place string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fn = fn
}

func (f *failpoints) at(node, place string) error {
	f.mu.Lock()
	fn := f.fn
	f.mu.Unlock()
	if fn == nil {
		return nil
	}
	return fn(node, place)
}

// newFailingCluster starts a cluster whose nodes stop at failpoints.
func newFailingCluster(t *testing.T) (*cluster, *failpoints) {
	t.Helper()
	f := &failpoints{}
	return newCluster(t, func(cfg *Config) {
		id := cfg.Node.ID
		cfg.failpoint = func(place string) error { return f.at(id, place) }
	}), f
}

// issued counts the committed records of a grant on one node.
func (r *running) issued(t *testing.T, grant string) []approval.Issue {
	t.Helper()
	var out []approval.Issue
	must(t, r.Store().View(func(v raftstore.Reader, _ uint64) (err error) {
		out, err = approval.Read(v).Issuances(grant)
		return err
	}))
	return out
}

// trap makes the first node that comes to a place, other than the one named,
// wait there until released. It returns which node that is, once it has come,
// and how often any came.
func (f *failpoints) trap(place, other string) (caught <-chan string, release func(), visits *atomic.Int32) {
	came, released := make(chan string, 1), make(chan struct{})
	visits = new(atomic.Int32)
	f.set(func(node, at string) error {
		if at != place || node == other || visits.Add(1) > 1 {
			return nil
		}
		came <- node
		<-released
		return context.Canceled
	})
	return came, sync.OnceFunc(func() { close(released) }), visits
}

// TestLeaderDiesBetweenCommitAndSign: the record that the dead leader left is
// never signed by anyone; the next leader commits its own and signs that.
func TestLeaderDiesBetweenCommitAndSign(t *testing.T) {
	t.Parallel()
	c, f := newFailingCluster(t)
	r := c.granted()
	caught, release, _ := f.trap("committed, not signed", "")
	defer release()
	csr, _ := newCSR(t)
	type answer struct {
		cert api.Certificate
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		cert, err := c.as("user/alice").GrantCertificate(t.Context(), r.ID, csr)
		got <- answer{cert, err}
	}()
	old := c.node(<-caught)
	first := old.issued(t, r.ID)
	if len(first) != 1 {
		t.Fatalf("%d records before the crash", len(first))
	}
	// The crash cuts its connections; whatever it would have signed is lost.
	go c.crash(old.ID())
	c.until("another node leads", func() bool { l := c.leading(); return l != nil && l.ID() != old.ID() })
	release()
	a := <-got
	must(t, a.err)
	records := c.leader().issued(t, r.ID)
	if len(records) != 2 || a.cert.Serial == first[0].Serial {
		t.Fatalf("serial %s, the dead leader's %s, %d records", a.cert.Serial, first[0].Serial, len(records))
	}
	for _, i := range records {
		if i.Serial == a.cert.Serial && i.Issuer == first[0].Issuer {
			t.Error("the new certificate is recorded under the dead leader's issuer")
		}
	}
	if _, ok := old.n.minted.get(first[0].Serial); ok {
		t.Error("the dead leader signed")
	}
	c.checkCertificate(t, r, a.cert)
	c.check()
}

// TestNoQuorumNoSignature: a node alone signs nothing, and says when to come
// back.
func TestNoQuorumNoSignature(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	leader := c.leader()
	c.until("a quorum has confirmed the leader's feed", func() bool {
		_, verified, _, _ := leader.n.feed.get()
		return !verified.IsZero()
	})
	for _, n := range c.live() {
		if n.ID() != leader.ID() {
			c.crash(n.ID())
		}
	}
	csr, _ := newCSR(t)
	_, err := c.once(leader, "user/alice").GrantCertificate(t.Context(), r.ID, csr)
	p := wantUnavailable(t, err)
	if p.RetryAfter == 0 || p.Next == "" {
		t.Errorf("no word on what to do: %+v", p)
	}
	leader.n.minted.mu.Lock()
	signed := len(leader.n.minted.order)
	leader.n.minted.mu.Unlock()
	if signed != 0 {
		t.Errorf("%d certificates were signed", signed)
	}
	// What needs no quorum is still served, and says how old it is.
	cl := c.once(leader, "user/alice")
	if _, err := cl.Request(t.Context(), r.ID, api.Stale()); err != nil {
		t.Errorf("stale read: %v", err)
	}
	_, err = cl.Request(t.Context(), r.ID)
	if p := wantUnavailable(t, err); p.Code != api.CodeNoLeader {
		t.Errorf("a linearizable read without a quorum: %v", p)
	}
	var last time.Time
	c.until("the feed's assurance stands still", func() bool {
		time.Sleep(300 * time.Millisecond) // three looks at the quorum
		feed, err := cl.Revocations(t.Context())
		must(t, err)
		still := feed.VerifiedAt.Equal(last)
		last = feed.VerifiedAt
		return still
	})
	c.until("the node says that it is not ready", func() bool { return !leader.Health().Ready })
}

func wantUnavailable(t *testing.T, err error) *api.Problem {
	t.Helper()
	if p, ok := err.(*api.Problem); ok && p.Status == 503 { //nolint:errorlint // the client returns it bare
		return p
	}
	t.Fatalf("got %v, want 503", err)
	return nil
}

// TestAmbiguousCommit: what may or may not be committed is signed only when it
// is found.
func TestAmbiguousCommit(t *testing.T) {
	t.Parallel()
	c, f := newFailingCluster(t)
	r := c.granted()
	csr, _ := newCSR(t)
	alice := c.as("user/alice")

	var hits atomic.Int32
	f.set(func(_, place string) error {
		if place == "after a call's commit" && hits.Add(1) == 1 {
			return raftstore.ErrAmbiguous // it was committed
		}
		return nil
	})
	cert, err := alice.GrantCertificate(t.Context(), r.ID, csr)
	must(t, err)
	node := c.live()[0]
	c.until("a node has the record", func() bool { return len(node.issued(t, r.ID)) == 1 })
	if got := node.issued(t, r.ID); got[0].Serial != cert.Serial {
		t.Errorf("signed %s, committed %s", cert.Serial, got[0].Serial)
	}

	f.set(func(_, place string) error {
		if place == "before the commit" {
			return raftstore.ErrAmbiguous // it was not
		}
		return nil
	})
	c.until("the answer is that the outcome is unknown", func() bool { // no leader, under load, is another answer
		_, err = c.once(c.leader(), "user/alice").GrantCertificate(t.Context(), r.ID, csr)
		return wantUnavailable(t, err).Code == api.CodeAmbiguous
	})
	f.set(nil)
	if got := c.leader().issued(t, r.ID); len(got) != 1 {
		t.Errorf("%d records", len(got))
	}
}

// TestMintAgainUnderOneKey: the same call gets the same certificate, and after
// its leader is gone another one, never two of one serial.
func TestMintAgainUnderOneKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	csr, _ := newCSR(t)
	alice := c.as("user/alice")
	key := api.WithKey("mint-1")
	first, err := alice.GrantCertificate(t.Context(), r.ID, csr, key)
	must(t, err)
	second, err := alice.GrantCertificate(t.Context(), r.ID, csr, key)
	must(t, err)
	if first.Certificate != second.Certificate {
		t.Error("the same call got another certificate")
	}
	other, _ := newCSR(t)
	_, err = alice.GrantCertificate(t.Context(), r.ID, other, key)
	wantProblem(t, err, api.CodeMismatch)

	c.crash(c.leader().ID())
	third, err := alice.GrantCertificate(t.Context(), r.ID, csr, key)
	must(t, err)
	if third.Serial == first.Serial || third.SPIFFEID != first.SPIFFEID {
		t.Errorf("after the leader is gone: %s, before: %s", third.Serial, first.Serial)
	}
	// Revoked means revoked, for repeated calls too.
	_, err = c.as("user/ann").RevokeGrant(t.Context(), r.ID, "stolen laptop")
	must(t, err)
	_, err = alice.GrantCertificate(t.Context(), r.ID, csr, key)
	wantProblem(t, err, api.CodeConflict)
	c.check()
}

// TestForwardOfUnknownOutcome: a follower that loses the leader in the middle of
// a write says so and does not write again; the caller's key finds out.
func TestForwardOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	c, f := newFailingCluster(t)
	answer := make(chan error, 1)
	var (
		leader  string
		key     api.CallOption
		release func()
		commits *atomic.Int32
		caught  <-chan string
		made    = 1
	)
	for n := 0; leader == ""; n++ {
		via := c.follower()
		key = api.WithKey(fmt.Sprintf("unknown-%d", n))
		caught, release, commits = f.trap("after a call's commit", via.ID())
		go func() {
			_, err := c.once(via, "user/alice").CreateRequest(t.Context(), readAccounts(), key)
			answer <- err
		}()
		select {
		case leader = <-caught:
		case err := <-answer:
			if err == nil { // it came to lead meanwhile, and answered by itself
				made++
				continue
			}
			_ = wantUnavailable(t, err) // nobody leads, under load
		}
	}
	defer release()
	go c.crash(leader)
	p := wantUnavailable(t, <-answer)
	if p.Code != api.CodeAmbiguous || !strings.Contains(p.Next, "Idempotency-Key") || p.RetryAfter == 0 {
		t.Errorf("got %+v", p)
	}
	release()
	if n := commits.Load(); n != 1 {
		t.Errorf("%d commits", n)
	}
	r, err := c.as("user/alice").CreateRequest(t.Context(), readAccounts(), key)
	must(t, err)
	list, err := c.as("user/alice").Requests(t.Context(), api.Filter{})
	must(t, err)
	if len(list.Requests) != made || list.Requests[0].ID != r.ID {
		t.Errorf("%d requests, want %d", len(list.Requests), made)
	}
	c.check()
}

func TestCSRsThatAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	good, _ := newCSR(t)
	broken := strings.Replace(good, "MI", "MJ", 1)
	for name, csr := range map[string]string{"text": "hello", "broken": broken, "two": good + good} {
		_, err := c.as("user/alice").GrantCertificate(t.Context(), r.ID, csr)
		if p := theProblem(t, err, api.CodeInvalid); !strings.Contains(p.Detail, "csr") {
			t.Errorf("%s: %s", name, p.Detail)
		}
	}
	// A grant that was asked for with a key is for that key.
	in := readAccounts()
	in.CSR = good
	pinned, err := c.as("user/alice").CreateRequest(t.Context(), in)
	must(t, err)
	if pinned.CSRKey == "" {
		t.Error("the request does not name its key")
	}
	_, err = c.as("user/bob").DecideRequest(t.Context(), pinned.ID, api.DecisionInput{Decision: "approve", Hash: pinned.Hash})
	must(t, err)
	other, _ := newCSR(t)
	_, err = c.as("user/alice").GrantCertificate(t.Context(), pinned.ID, other)
	wantProblem(t, err, api.CodeDenied)
	_, err = c.as("user/alice").GrantCertificate(t.Context(), pinned.ID, good)
	must(t, err)
}

func TestIssueIdentity(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	csr, key := newCSR(t)
	in := api.IdentityInput{
		CSR: csr, SPIFFEID: "spiffe://acme.test/service/payments", DNSNames: []string{"payments.acme.test", "localhost"},
		IPAddresses: []string{"127.0.0.1"}, TTL: api.Duration(time.Hour),
	}
	_, err := c.as("user/alice").IssueIdentity(t.Context(), in)
	wantProblem(t, err, api.CodeDenied)
	cert, err := c.as("user/ann").IssueIdentity(t.Context(), in)
	must(t, err)
	chain, err := ca.DecodeCertificates([]byte(cert.Certificate))
	must(t, err)
	if chain[0].DNSNames[0] != "payments.acme.test" || len(chain[0].IPAddresses) != 1 {
		t.Errorf("names %v %v", chain[0].DNSNames, chain[0].IPAddresses)
	}
	// It is an identity: the control plane knows it.
	who, err := c.client(certificate(chain, key), c.urls()...).WhoAmI(t.Context())
	must(t, err)
	if who.ID != in.SPIFFEID || who.Person != "" || who.Admin {
		t.Errorf("got %+v", who)
	}
	// Not as a person: an admin who could make one would vote as him.
	for _, id := range []string{"spiffe://acme.test/user/bob", "spiffe://acme.test/user/nobody", "spiffe://acme.test/agent/robot", "spiffe://grants.acme.test/service/x", "spiffe://else.test/service/x"} {
		bad := in
		bad.SPIFFEID = id
		if _, err := c.as("user/ann").IssueIdentity(t.Context(), bad); err == nil {
			t.Errorf("%s was issued", id)
		}
	}
	long := in
	long.TTL = api.Duration(31 * 24 * time.Hour)
	_, err = c.as("user/ann").IssueIdentity(t.Context(), long)
	wantProblem(t, err, api.CodeInvalid)
}
