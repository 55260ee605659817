package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
)

const pemPrivateKey = "PRIVATE KEY"

// CheckPublicKey says whether a public key may be certified: ECDSA on P-256 or
// P-384, and nothing else.
//
// Grant certificates are shown to verifiers we do not ship (Envoy, nginx,
// ghostunnel, PostgreSQL), and those two curves are what all of them accept as
// they come; BoringSSL, for one, refuses Ed25519 in TLS unless told otherwise.
// RSA is refused at every size: verifying is cheap but signing is the slowest
// thing a handshake can ask for, and refusing it leaves no size to argue about.
func CheckPublicKey(pub crypto.PublicKey) error {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return fmt.Errorf("%w: ECDSA keys are certified on P-256 and P-384 only", ErrKey)
		}
		// A point off the curve leaks whatever is computed with it, and nobody
		// can hold its private key.
		if _, err := key.ECDH(); err != nil {
			return fmt.Errorf("%w: %w", ErrKey, err)
		}
		return nil
	case *rsa.PublicKey:
		return fmt.Errorf("%w: RSA keys are not certified; make an ECDSA key on P-256", ErrKey)
	case ed25519.PublicKey:
		return fmt.Errorf("%w: Ed25519 keys are not certified; make an ECDSA key on P-256", ErrKey)
	default:
		return fmt.Errorf("%w: a %T is not certified; make an ECDSA key on P-256", ErrKey, pub)
	}
}

// Fingerprint returns the lower-case hex SHA-256 of a public key's
// SubjectPublicKeyInfo: how records and requests name a key.
func Fingerprint(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrKey, err)
	}
	return hexSHA256(der), nil
}

// GenerateKey makes the key of a certificate: ECDSA on P-256.
func GenerateKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("ca: make a key: %w", err)
	}
	return key, nil
}

// EncodeKey writes a private key as PKCS #8 PEM.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der}), nil
}

// DecodeKey reads one private key from PKCS #8 PEM, as EncodeKey writes it.
func DecodeKey(text []byte) (crypto.Signer, error) {
	der, err := onePEM(text, pemPrivateKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: a %T does not sign", ErrKey, parsed)
	}
	return key, nil
}

// samePublicKey reports whether two public keys are one. Every public key type
// of the standard library has Equal.
func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
