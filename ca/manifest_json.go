package ca

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// manifestJSON is the manifest's file: PEM in strings, keys in base64.
type manifestJSON struct {
	Cluster          string     `json:"cluster"`
	Sequence         uint64     `json:"sequence"`
	TrustDomain      string     `json:"trust_domain"`
	GrantTrustDomain string     `json:"grant_trust_domain"`
	Dev              bool       `json:"dev,omitempty"`
	IdentityRoots    string     `json:"identity_roots"`
	GrantRoots       string     `json:"grant_roots"`
	RootDocuments    []string   `json:"roots_documents,omitempty"`
	Nodes            []nodeJSON `json:"nodes"`
	Persons          []Person   `json:"persons"`
	Groups           []Group    `json:"groups"`
	Policy           string     `json:"policy"`
	Signature        string     `json:"signature"`
}

type nodeJSON struct {
	ID             string `json:"id"`
	RaftAddress    string `json:"raft_address"`
	APIAddress     string `json:"api_address"`
	Key            string `json:"key"`
	AuditKey       string `json:"audit_key"`
	IdentityIssuer string `json:"identity_issuer"`
	GrantIssuer    string `json:"grant_issuer"`
	APICertificate string `json:"api_certificate"`
}

// Encode returns the manifest's file: the one spelling that ParseManifest takes.
func (m Manifest) Encode() ([]byte, error) {
	w := manifestJSON{
		Cluster:          m.Cluster,
		Sequence:         m.Sequence,
		TrustDomain:      m.TrustDomain.Name(),
		GrantTrustDomain: m.GrantTrustDomain.Name(),
		Dev:              m.Dev,
		IdentityRoots:    string(EncodeCertificates(m.IdentityRoots...)),
		GrantRoots:       string(EncodeCertificates(m.GrantRoots...)),
		RootDocuments:    m.RootDocuments,
		Persons:          m.Persons,
		Groups:           m.Groups,
		Policy:           m.Policy,
		Signature:        base64.StdEncoding.EncodeToString(m.Signature),
	}
	for i, n := range m.Nodes {
		if n.IdentityIssuer == nil || n.GrantIssuer == nil || n.APICertificate == nil {
			return nil, fmt.Errorf("%w: nodes[%d] lacks a certificate", ErrManifest, i)
		}
		w.Nodes = append(w.Nodes, nodeJSON{
			ID:             n.ID,
			RaftAddress:    n.RaftAddress,
			APIAddress:     n.APIAddress,
			Key:            base64.StdEncoding.EncodeToString(n.Key),
			AuditKey:       n.AuditKey,
			IdentityIssuer: string(EncodeCertificates(n.IdentityIssuer)),
			GrantIssuer:    string(EncodeCertificates(n.GrantIssuer)),
			APICertificate: string(EncodeCertificates(n.APICertificate)),
		})
	}
	return encodeJSON(w)
}

// ParseManifest reads a manifest's file. It checks that every field is sound,
// that the certificates are what their place says and chain to the roots, and
// that the identity root signed the whole. Errors wrap ErrManifest and name the
// field.
func ParseManifest(text []byte) (Manifest, error) {
	var w manifestJSON
	if err := decodeJSON(text, &w); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	m, err := w.parse()
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if err := m.Validate(); err != nil {
		return Manifest{}, err
	}
	// A key twice, or in another case, is read one way here and another way by
	// the next tool.
	again, err := m.Encode()
	if err != nil {
		return Manifest{}, err
	}
	if !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSpace(text)) {
		return Manifest{}, fmt.Errorf("%w: not in the form that it was written in (a repeated key, another order or other white space)", ErrManifest)
	}
	return m, nil
}

func (w manifestJSON) parse() (Manifest, error) {
	m := Manifest{
		Cluster:  w.Cluster,
		Sequence: w.Sequence,
		Dev:      w.Dev,
		Persons:  w.Persons,
		Groups:   w.Groups,
		Policy:   w.Policy,

		RootDocuments: w.RootDocuments,
	}
	var err error
	if m.TrustDomain, err = parseTrustDomain(w.TrustDomain); err != nil {
		return Manifest{}, fmt.Errorf("trust_domain: %w", err)
	}
	if m.GrantTrustDomain, err = parseTrustDomain(w.GrantTrustDomain); err != nil {
		return Manifest{}, fmt.Errorf("grant_trust_domain: %w", err)
	}
	if m.IdentityRoots, err = DecodeCertificates([]byte(w.IdentityRoots)); err != nil {
		return Manifest{}, fmt.Errorf("identity_roots: %w", err)
	}
	if m.GrantRoots, err = DecodeCertificates([]byte(w.GrantRoots)); err != nil {
		return Manifest{}, fmt.Errorf("grant_roots: %w", err)
	}
	if m.Signature, err = decodeBase64(w.Signature); err != nil {
		return Manifest{}, fmt.Errorf("signature: %w", err)
	}
	for i, n := range w.Nodes {
		entry, err := n.parse()
		if err != nil {
			return Manifest{}, fmt.Errorf("nodes[%d].%w", i, err)
		}
		m.Nodes = append(m.Nodes, entry)
	}
	return m, nil
}

func (w nodeJSON) parse() (NodeEntry, error) {
	n := NodeEntry{
		ID:          w.ID,
		RaftAddress: w.RaftAddress,
		APIAddress:  w.APIAddress,
		AuditKey:    w.AuditKey,
	}
	key, err := decodeBase64(w.Key)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return NodeEntry{}, errors.New("key: not the base64 of an Ed25519 public key")
	}
	n.Key = key
	for _, f := range []struct {
		name string
		text string
		into **x509.Certificate
	}{
		{"identity_issuer", w.IdentityIssuer, &n.IdentityIssuer},
		{"grant_issuer", w.GrantIssuer, &n.GrantIssuer},
		{"api_certificate", w.APICertificate, &n.APICertificate},
	} {
		certs, err := DecodeCertificates([]byte(f.text))
		if err != nil {
			return NodeEntry{}, fmt.Errorf("%s: %w", f.name, err)
		}
		if len(certs) != 1 {
			return NodeEntry{}, fmt.Errorf("%s: %d certificates where one belongs", f.name, len(certs))
		}
		*f.into = certs[0]
	}
	return n, nil
}

// parseTrustDomain takes a trust domain's name and none of the other spellings
// that spiffeid would read.
func parseTrustDomain(name string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil || td.Name() != name {
		return spiffeid.TrustDomain{}, fmt.Errorf("%w: %q is not the name of a trust domain", ErrInvalid, name)
	}
	return td, nil
}

func decodeBase64(text string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, errors.New("not base64")
	}
	return b, nil
}

func encodeJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("ca: encode: %w", err)
	}
	return buf.Bytes(), nil
}

// decodeJSON reads one JSON object that has no unknown keys.
func decodeJSON(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if wrongType, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fmt.Errorf("%s: a JSON %s where a %s belongs", wrongType.Field, wrongType.Value, wrongType.Type)
		}
		return fmt.Errorf("not the JSON it should be: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

func wrapPath(path string, err error) error { return fmt.Errorf("%s: %w", path, err) }
