package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrKey is returned when a key cannot be used: malformed, or in a file that
// others may read.
var ErrKey = errors.New("audit: key refused")

const maxKeyFile = 4096

// KeyName returns the name of a node's audit key, as it stands in signatures
// and verifier keys: "acme.test/hallpass/node/n1".
func KeyName(trustDomain, node string) (string, error) {
	if !validWord(trustDomain) {
		return "", fmt.Errorf("%w: trust domain %q", ErrKey, trustDomain)
	}
	if !validWord(node) {
		return "", fmt.Errorf("%w: node id %q is not of a-z, 0-9, \".\", \"-\" and \"_\"", ErrKey, node)
	}
	return trustDomain + nodeInfix + node, nil
}

// Signer is a node's Ed25519 key for checkpoints. It is a [note.Signer]. Its
// private part leaves it only by [Signer.Save].
type Signer struct {
	note.Signer
	secret string
	public string
}

// GenerateKey makes a new key for a node.
func GenerateKey(trustDomain, node string) (*Signer, error) {
	name, err := KeyName(trustDomain, node)
	if err != nil {
		return nil, err
	}
	secret, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return nil, fmt.Errorf("generate audit key: %w", err)
	}
	return parseSigner(secret)
}

func parseSigner(secret string) (*Signer, error) {
	s, err := note.NewSigner(secret)
	if err != nil {
		// The cause could repeat parts of the secret: not wrapped.
		return nil, fmt.Errorf("%w: not a note signer key", ErrKey)
	}
	// PRIVATE+KEY+name+hash+base64, and base64 may hold "+" too.
	parts := strings.SplitN(secret, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, fmt.Errorf("%w: not a note signer key", ErrKey)
	}
	pub := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	public, err := note.NewEd25519VerifierKey(s.Name(), pub)
	if err != nil {
		return nil, fmt.Errorf("%w: not a note signer key", ErrKey)
	}
	return &Signer{Signer: s, secret: secret, public: public}, nil
}

// VerifierKey returns the public key in note's text form, for manifests and
// auditors: "acme.test/hallpass/node/n1+5a3c…+AX0m…".
func (s *Signer) VerifierKey() string { return s.public }

// String returns the public key: printing a Signer never shows its secret.
func (s *Signer) String() string { return s.public }

// GoString returns the public key too.
func (s *Signer) GoString() string { return s.public }

// Save writes the private key to a new file that only its owner may read. It
// never overwrites: a lost audit key means a gap that every auditor sees.
func (s *Signer) Save(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("save audit key: %w", err)
	}
	_, err = f.WriteString(s.secret + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("save audit key: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}

// LoadSigner reads the file that [Signer.Save] wrote. It refuses one that its
// group or others may access: whoever reads it can sign a second history.
func LoadSigner(path string) (*Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load audit key: %w", err)
	}
	defer func() { _ = f.Close() }() // read only: nothing to lose
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("load audit key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrKey, path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, others may access it; chmod 600 it", ErrKey, path, mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("load audit key: %w", err)
	}
	s, err := parseSigner(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Verifiers returns the verifiers of the given verifier keys, in note's text
// form: of the signatures of a node's key and of its cosignatures, or of a cosigner
// key's cosignatures alone. No key, or one twice, is refused.
func Verifiers(verifierKeys ...string) (note.Verifiers, error) {
	if len(verifierKeys) == 0 {
		return nil, fmt.Errorf("%w: no verifier key", ErrKey)
	}
	list := make([]note.Verifier, 0, 2*len(verifierKeys))
	seen := make(map[string]bool, len(verifierKeys))
	cosigners := make(map[string]bool, len(verifierKeys))
	owners := make(map[string]string, len(verifierKeys))
	for _, text := range verifierKeys {
		k, err := parseVerifierKey(text)
		if err != nil {
			return nil, err
		}
		if seen[text] {
			return nil, fmt.Errorf("%w: verifier key %q is given twice", ErrKey, text)
		}
		seen[text] = true
		// A cosignature does not say whose it is: one key under two names would
		// make two nodes out of one.
		if name, ok := owners[string(k.key)]; ok && name != k.name {
			return nil, fmt.Errorf("%w: %s and %s have the same key", ErrKey, name, k.name)
		}
		owners[string(k.key)] = k.name
		if k.algorithm == algorithmSignature {
			v, err := note.NewVerifier(text)
			if err != nil {
				return nil, fmt.Errorf("%w: verifier key %q: %w", ErrKey, text, err)
			}
			list = append(list, v)
		}
		if cosigner := newCosignVerifier(k); !cosigners[k.name+string(k.key)] {
			cosigners[k.name+string(k.key)] = true
			list = append(list, cosigner)
		}
	}
	return note.VerifierList(list...), nil
}
