package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	pemCSR = "CERTIFICATE REQUEST"
	// pemOldCSR is what some tools still write.
	pemOldCSR = "NEW CERTIFICATE REQUEST"

	// maxCSR is far above any honest request; a P-384 one has under 1 KiB.
	maxCSR = 16 << 10
)

// ParseCSR returns the public key of one PEM certificate signing request. The
// request must be signed by that key, with a hash that still holds, and the key
// must pass CheckPublicKey. Nothing else in the request is looked at: its
// subject, names and extensions never reach a certificate. Every error wraps
// ErrCSR.
func ParseCSR(text []byte) (crypto.PublicKey, error) {
	csr, err := parseCSR(text)
	if err != nil {
		return nil, err
	}
	if err := CheckPublicKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	return csr.PublicKey, nil
}

// parseCSR reads a request and checks that its key signed it.
func parseCSR(text []byte) (*x509.CertificateRequest, error) {
	if len(text) > maxCSR {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrCSR, len(text), maxCSR)
	}
	der, err := onePEM(text, pemCSR, pemOldCSR)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	switch csr.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519:
	default:
		// crypto/x509 still takes SHA-1 in requests: whoever can make a collision
		// could show a proof that somebody else's key signed.
		if err := CheckPublicKey(csr.PublicKey); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCSR, err)
		}
		return nil, fmt.Errorf("%w: signed with %v; use ECDSA with SHA-256", ErrCSR, csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: not signed by the key in it: %w", ErrCSR, err)
	}
	return csr, nil
}

// MakeCSR makes a PEM certificate signing request for a key. The name is only a
// label for whoever reads the request; ParseCSR does not look at it.
func MakeCSR(key crypto.Signer, name string) ([]byte, error) {
	if key == nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, errors.New("no key"))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCSR, Bytes: der}), nil
}
