package ledger

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// repeatEvery is how often a call is made a second time after it was answered, under its key: the
// answer has to be the same, also from a node that has been started since.
const repeatEvery = 5

type writer struct {
	Writer
	ask    api.RequestInput
	pause  time.Duration
	ledger *Ledger
	calls  int
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
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(w.pause):
		}
	}
}

// round asks once, and goes on with it in one of the ways there are: half of what is asked is
// granted for good.
func (w *writer) round(ctx context.Context, n int) error {
	e := &Entry{Reason: fmt.Sprintf("%s's round %d", w.Name, n), Voter: w.Voter}
	ask := w.ask
	ask.Reason = e.Reason
	r, err := twice(w, func(key api.CallOption) (api.Request, error) { return w.Asker.CreateRequest(ctx, ask, key) },
		func(a, b api.Request) bool { return a.ID == b.ID && a.Hash == b.Hash })
	if err != nil {
		return err
	}
	w.note(func() { e.ID = r.ID; w.ledger.all = append(w.ledger.all, e) })
	switch n % 6 {
	case 0, 3:
		w.note(func() { e.Revoking = true })
		err = w.inOrder(ctx, e, r.Hash, w.approve, w.mint, w.revoke)
	case 1:
		err = w.inOrder(ctx, e, r.Hash, w.approve, w.mint, w.mint)
	case 2:
		err = w.inOrder(ctx, e, r.Hash, w.deny)
	case 4:
		err = w.inOrder(ctx, e, r.Hash, w.approve, w.mint)
	case 5:
		err = w.inOrder(ctx, e, r.Hash, w.cancel)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.ID, err)
	}
	w.note(func() { e.Over = true; w.ledger.done++ })
	return nil
}

// twice makes a call, and some a second time under the same key.
func twice[T any](w *writer, call func(key api.CallOption) (T, error), same func(a, b T) bool) (T, error) {
	id, err := uuid.NewV7()
	if err != nil {
		var none T
		return none, err
	}
	key := api.WithKey(id.String())
	began := time.Now()
	first, err := call(key)
	w.note(func() { w.ledger.slow = max(w.ledger.slow, time.Since(began)) })
	if w.calls++; err != nil || w.calls%repeatEvery != 0 {
		return first, err
	}
	again, err := call(key)
	if err == nil && !same(first, again) {
		err = fmt.Errorf("a repeated call was answered %+v, and before %+v", again, first)
	}
	return again, err
}

type step func(ctx context.Context, e *Entry, hash string) error

func (w *writer) inOrder(ctx context.Context, e *Entry, hash string, steps ...step) error {
	for _, s := range steps {
		if err := s(ctx, e, hash); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) note(f func()) { w.ledger.change(f) }

func (w *writer) approve(ctx context.Context, e *Entry, hash string) error {
	return w.decide(ctx, e, hash, "approve")
}

func (w *writer) deny(ctx context.Context, e *Entry, hash string) error {
	return w.decide(ctx, e, hash, "deny")
}

func (w *writer) decide(ctx context.Context, e *Entry, hash, decision string) error {
	in := api.DecisionInput{Decision: decision, Hash: hash, Comment: e.Reason}
	_, err := twice(w, func(key api.CallOption) (api.Request, error) { return w.Owner.DecideRequest(ctx, e.ID, in, key) },
		func(a, b api.Request) bool { return a.State == b.State && len(a.Decisions) == len(b.Decisions) })
	if err != nil {
		return fmt.Errorf("%s: %w", decision, err)
	}
	w.note(func() { e.Decision, e.Hash = decision, hash })
	return nil
}

func (w *writer) cancel(ctx context.Context, e *Entry, _ string) error {
	_, err := twice(w, func(key api.CallOption) (api.Request, error) { return w.Asker.CancelRequest(ctx, e.ID, key) },
		func(a, b api.Request) bool { return a.State == b.State })
	if err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	w.note(func() { e.Cancelled = true })
	return nil
}

func (w *writer) revoke(ctx context.Context, e *Entry, _ string) error {
	_, err := twice(w, func(key api.CallOption) (api.Grant, error) { return w.Owner.RevokeGrant(ctx, e.ID, e.Reason, key) },
		func(a, b api.Grant) bool { return a.State == b.State })
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	w.note(func() { e.Revoked = true })
	return nil
}

// mint fetches a certificate. A repeated call may be answered with another one, of the same key.
func (w *writer) mint(ctx context.Context, e *Entry, _ string) error {
	key, csr, err := newKey()
	if err != nil {
		return err
	}
	_, err = twice(w, func(once api.CallOption) (tls.Certificate, error) {
		cert, err := fetch(ctx, w.Asker, e.ID, key, csr, once)
		if err == nil {
			w.note(func() { e.Certificates = append(e.Certificates, cert) })
		}
		return cert, err
	}, func(a, b tls.Certificate) bool { return a.Leaf.URIs[0].String() == b.Leaf.URIs[0].String() })
	if err != nil {
		return fmt.Errorf("mint: %w", err)
	}
	return nil
}

func newKey() (crypto.Signer, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	csr, err := ca.MakeCSR(key, "")
	return key, string(csr), err
}

// fetch gets a certificate for a key and reads it.
func fetch(ctx context.Context, asker *api.Client, id string, key crypto.Signer, csr string, opts ...api.CallOption) (cert tls.Certificate, err error) {
	answer, err := asker.GrantCertificate(ctx, id, csr, opts...)
	if err != nil {
		return cert, err
	}
	for block, rest := pem.Decode([]byte(answer.Certificate)); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	if len(cert.Certificate) == 0 {
		return cert, errors.New("the answer holds no certificate")
	}
	cert.PrivateKey = key
	if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		return cert, err
	}
	if serial(cert) != answer.Serial || len(cert.Leaf.URIs) != 1 {
		err = fmt.Errorf("the answer says serial %s, the certificate %s for %v", answer.Serial, serial(cert), cert.Leaf.URIs)
	}
	return cert, err
}

func serial(cert tls.Certificate) string { return cert.Leaf.SerialNumber.Text(16) }

// tbsHash is the hash of what was signed, as the log has it.
func tbsHash(cert tls.Certificate) string {
	sum := sha256.Sum256(cert.Leaf.RawTBSCertificate)
	return hex.EncodeToString(sum[:])
}
