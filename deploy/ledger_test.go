//go:build compose

package deploy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// patience is how long a write is repeated, under its one Idempotency-Key. A quorum is back well
// before: also when everything is stopped and started again.
const patience = 2 * time.Minute

// acknowledged is what the cluster has said yes to, of one request. A field is set once the
// answer is there.
type acknowledged struct {
	id, reason string
	hash       string          // bob approved this
	serial     string          // of the certificate handed out
	tbs        string          // hex SHA-256 of its to-be-signed bytes
	cert       tls.Certificate // it and its key
	revoked    bool
	kept       bool // the round is over and did not revoke it
}

// ledger asks, approves, mints and revokes without pause while things break, and keeps what was
// acknowledged.
type ledger struct {
	stop    chan struct{}
	writers sync.WaitGroup

	mu   sync.Mutex
	all  []*acknowledged // what it points at is complete up to what was answered; by mu
	done int             // rounds that ended; by mu
	err  error           // of the writers that gave up; by mu
}

// writer asks as one person.
type writer struct {
	name         string
	asker, owner *api.Client
	ledger       *ledger
}

// openLedger starts a writer for each of the example's engineers.
func openLedger(t *testing.T, c *cluster) *ledger {
	t.Helper()
	l := &ledger{stop: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); l.writers.Wait() })
	for _, name := range []string{"alice", "erin"} {
		w := &writer{name: name, asker: c.client(t, name, nodes()...), owner: c.client(t, "bob", nodes()...), ledger: l}
		l.writers.Go(func() {
			if err := w.work(ctx); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.err = errors.Join(l.err, fmt.Errorf("writer %s: %w", name, err))
			}
		})
	}
	return l
}

// client calls the API as a person, at the given nodes.
func (c *cluster) client(t *testing.T, who string, at ...string) *api.Client {
	t.Helper()
	servers := make([]string, 0, len(at))
	for _, n := range at {
		servers = append(servers, c.url(n))
	}
	client, err := api.NewClient(api.ClientConfig{
		Servers: servers, Identity: filepath.Join(c.people, who), Timeout: 5 * time.Second, RetryFor: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// work goes on until the ledger is closed. No round is left half done, unless a call fails for
// good.
func (w *writer) work(ctx context.Context) error {
	for n := 0; ; n++ {
		if err := w.round(ctx, n); err != nil {
			return fmt.Errorf("round %d: %w", n, err)
		}
		select {
		case <-w.ledger.stop:
			return nil
		case <-time.After(50 * time.Millisecond): // enough rounds to hit every fault, few enough to read back
		}
	}
}

func (w *writer) round(ctx context.Context, n int) error {
	a := &acknowledged{reason: fmt.Sprintf("%s's round %d", w.name, n)}
	r, err := w.asker.CreateRequest(ctx, api.RequestInput{
		Service: "payments", Permissions: []string{"GET /accounts/**"}, Reason: a.reason, Duration: api.Duration(30 * time.Minute),
	})
	if err != nil {
		return err
	}
	w.ledger.change(func(l *ledger) { a.id = r.ID; l.all = append(l.all, a) })

	if _, err := w.owner.DecideRequest(ctx, a.id, api.DecisionInput{Decision: "approve", Hash: r.Hash, Comment: a.reason}); err != nil {
		return err
	}
	w.ledger.change(func(*ledger) { a.hash = r.Hash })

	cert, answer, err := mint(ctx, w.asker, a.id)
	if err != nil {
		return err
	}
	tbs := sha256.Sum256(cert.Leaf.RawTBSCertificate)
	w.ledger.change(func(*ledger) { a.serial, a.tbs, a.cert = answer.Serial, hex.EncodeToString(tbs[:]), cert })

	if n%3 == 0 {
		if _, err := w.owner.RevokeGrant(ctx, a.id, a.reason); err != nil {
			return err
		}
		w.ledger.change(func(*ledger) { a.revoked = true })
	}
	w.ledger.change(func(l *ledger) { l.done++; a.kept = !a.revoked })
	return nil
}

// mint makes a key and fetches a certificate for it.
func mint(ctx context.Context, asker *api.Client, id string) (cert tls.Certificate, answer api.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, answer, err
	}
	csr, err := ca.MakeCSR(key, "")
	if err != nil {
		return cert, answer, err
	}
	if answer, err = asker.GrantCertificate(ctx, id, string(csr)); err != nil {
		return cert, answer, err
	}
	cert, err = certificate([]byte(answer.Certificate), key)
	if err == nil && cert.Leaf.SerialNumber.Text(16) != answer.Serial {
		err = fmt.Errorf("the answer says serial %s, the certificate %x", answer.Serial, cert.Leaf.SerialNumber)
	}
	return cert, answer, err
}

func (l *ledger) change(f func(l *ledger)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

// grows waits until both writers have got through whole rounds that began after now.
func (l *ledger) grows(t *testing.T) {
	t.Helper()
	want := 0
	l.change(func(l *ledger) { want = l.done + 8 })
	within(t, patience, "the writers go on", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.done < want && l.err == nil {
			return fmt.Errorf("%d rounds done, want %d", l.done, want)
		}
		return nil
	})
	l.healthy(t)
}

// healthy fails the test when a writer has given up.
func (l *ledger) healthy(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		t.Fatal(l.err)
	}
}

// close lets the writers end their rounds and gives what was acknowledged.
func (l *ledger) close(t *testing.T) []*acknowledged {
	t.Helper()
	close(l.stop)
	ended := make(chan struct{})
	go func() { l.writers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatalf("the writers have not ended after %s", patience)
	}
	l.healthy(t)
	return l.all
}

// newest gives the last certificate that was handed out and not revoked, and the last one whose
// revocation was acknowledged.
func (l *ledger) newest(t *testing.T) (live, revoked tls.Certificate) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range slices.Backward(l.all) {
		switch {
		case a.revoked && revoked.Leaf == nil:
			revoked = a.cert
		case a.kept && live.Leaf == nil:
			live = a.cert
		}
	}
	if live.Leaf == nil || revoked.Leaf == nil {
		t.Fatal("the ledger holds no live certificate, or no revoked one")
	}
	return live, revoked
}
