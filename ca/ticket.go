package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"sync/atomic"
	"time"
)

// Record is what is committed before a certificate is signed. All hashes are
// SHA-256 in lower-case hex; the times are whole seconds in UTC, as they stand
// in the certificate.
type Record struct {
	Serial    string    `json:"serial"`   // of the certificate, see SerialText
	TBSHash   string    `json:"tbs_hash"` // of its TBSCertificate
	Issuer    string    `json:"issuer"`   // Issuer.ID: the hash of the issuer's certificate
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Key       string    `json:"key"` // Fingerprint of the certified public key
}

// Equal reports whether two records say the same. Times are compared as
// instants: a record that came back from the log carries no location.
func (r Record) Equal(o Record) bool {
	return r.Serial == o.Serial && r.TBSHash == o.TBSHash && r.Issuer == o.Issuer && r.Key == o.Key &&
		r.NotBefore.Equal(o.NotBefore) && r.NotAfter.Equal(o.NotAfter)
}

// authority is a certificate and its gated key: what roots and node issuers
// have in common.
type authority struct {
	cert *x509.Certificate
	id   string // hex SHA-256 of cert.Raw
	cas  *gatedCAS

	linter linter
}

// newAuthority pairs a certificate with its key.
func newAuthority(cert *x509.Certificate, key crypto.Signer) (*authority, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		// On P-256 the digest that the key signs is the SHA-256 that was
		// committed; on anything else the gate could not tell.
		return nil, fmt.Errorf("%w: an issuer's key must be ECDSA on P-256", ErrKey)
	}
	if !samePublicKey(cert.PublicKey, key.Public()) {
		return nil, fmt.Errorf("%w: the private key does not belong to the certificate of %q", ErrKey, cert.Subject.CommonName)
	}
	return &authority{cert: cert, id: hexSHA256(cert.Raw), cas: newGatedCAS(cert, key), linter: newLinter()}, nil
}

// prepare builds the exact TBSCertificate that Sign will sign.
func (a *authority) prepare(template *x509.Certificate) (*Ticket, error) {
	if samePublicKey(template.PublicKey, a.cert.PublicKey) {
		return nil, fmt.Errorf("%w: the issuer's own key is not certified again", ErrKey)
	}
	key, err := Fingerprint(template.PublicKey)
	if err != nil {
		return nil, err
	}
	tbs, err := draft(template, a.cert)
	if err != nil {
		return nil, err
	}
	unsigned, err := assemble(tbs, noSignature())
	if err != nil {
		return nil, fmt.Errorf("ca: prepare: %w", err)
	}
	if err := a.linter.check(unsigned); err != nil {
		return nil, err
	}
	hash := hashOf(tbs)
	return &Ticket{
		authority: a,
		tbs:       tbs,
		hash:      hash,
		record: Record{
			Serial:    SerialText(template.SerialNumber),
			TBSHash:   hash.String(),
			Issuer:    a.id,
			NotBefore: template.NotBefore,
			NotAfter:  template.NotAfter,
			Key:       key,
		},
	}, nil
}

// Ticket is one certificate, complete but for its signature. Commit its Record,
// then Sign; or drop it.
type Ticket struct {
	authority *authority
	tbs       []byte
	hash      tbsHash
	record    Record
	spent     atomic.Bool
}

// Record returns what to commit before Sign.
func (t *Ticket) Record() Record { return t.record }

// Sign signs the certificate and returns it with its issuer. committed is the
// record as it was read back from where it was committed. It must equal the
// ticket's; otherwise nothing is signed and the error wraps ErrNotCommitted.
//
// A ticket is good for one call, also when that call fails: of concurrent calls
// one proceeds and the others get ErrTicketSpent.
func (t *Ticket) Sign(committed Record) ([]*x509.Certificate, error) {
	if !t.spent.CompareAndSwap(false, true) {
		return nil, ErrTicketSpent
	}
	// A record that differs means that what was approved and logged is not what
	// would leave: a wrong commit was read back, or someone swapped the ticket.
	if !committed.Equal(t.record) {
		return nil, fmt.Errorf("%w: the committed record of serial %q is not that of serial %q", ErrNotCommitted, committed.Serial, t.record.Serial)
	}
	defer t.authority.cas.gate.commit(t.hash)()

	cert, err := t.authority.cas.sign(t.tbs, t.hash)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{cert, t.authority.cert}, nil
}

func hashOf(tbs []byte) tbsHash { return sha256.Sum256(tbs) }

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
