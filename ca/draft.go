package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"

	"go.step.sm/crypto/x509util"
)

// errNotSigned ends every call of a drafter.
var errNotSigned = errors.New("ca: a draft is not signed")

// drafter stands where crypto/x509 wants the issuer's key, and takes down what
// it is given to sign. Until a certificate's record is committed there is nothing
// that anyone could sign with, not even with a key that nobody trusts.
type drafter struct {
	issuer crypto.PublicKey
	tbs    []byte
}

var _ crypto.MessageSigner = (*drafter)(nil)

// Public implements crypto.Signer: the issuer's public key, which says by what
// algorithm the certificate is signed.
func (d *drafter) Public() crypto.PublicKey { return d.issuer }

// Sign implements crypto.Signer. A digest is of no use here.
func (d *drafter) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errNotSigned
}

// SignMessage implements crypto.MessageSigner: msg is the TBSCertificate.
func (d *drafter) SignMessage(_ io.Reader, msg []byte, _ crypto.SignerOpts) ([]byte, error) {
	d.tbs = bytes.Clone(msg)
	return nil, errNotSigned
}

// draft returns the TBSCertificate that crypto/x509 makes of a template under an
// issuer.
func draft(template, issuer *x509.Certificate) ([]byte, error) {
	t := *template
	if t.SubjectKeyId == nil {
		var err error
		if t.SubjectKeyId, err = x509util.GenerateSubjectKeyID(t.PublicKey); err != nil {
			return nil, fmt.Errorf("ca: prepare: %w", err)
		}
	}
	d := &drafter{issuer: issuer.PublicKey}
	if _, err := x509.CreateCertificate(rand.Reader, &t, issuer, t.PublicKey, d); d.tbs == nil {
		return nil, fmt.Errorf("ca: prepare: %w", err)
	}
	return d.tbs, nil
}

// assemble puts a signature of ECDSA with SHA-256 to a TBSCertificate (RFC 5280,
// section 4.1).
func assemble(tbs, signature []byte) ([]byte, error) {
	return asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		TBS:       asn1.RawValue{FullBytes: tbs},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		Signature: asn1.BitString{Bytes: signature, BitLength: len(signature) * 8},
	})
}

// noSignature fills the place of a signature where only the rest is read: an
// Ecdsa-Sig-Value (RFC 3279, section 2.2.3) of two ones, which no key made.
func noSignature() []byte { return []byte{0x30, 6, 2, 1, 1, 2, 1, 1} }
