package ca

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/note"
)

// proven is the text of a request's proof: it names every other field.
func (r NodeRequest) proven() (string, error) {
	r.Proof = ""
	text, err := encodeJSON(r)
	if err != nil {
		return "", err
	}
	return "hallpass node request\n" + r.ID + "\n" + hexSHA256(text) + "\n", nil
}

// provenKeys are the public keys of a request whose proofs hold.
type provenKeys struct {
	transport             ed25519.PublicKey
	identity, grants, api crypto.PublicKey
}

// check validates a request and every proof in it.
func (r NodeRequest) check(td spiffeid.TrustDomain) (provenKeys, error) {
	if r.TrustDomain != td.Name() {
		return provenKeys{}, fmt.Errorf("%w: trust_domain: %q, but these roots are of %q", ErrInvalid, r.TrustDomain, td.Name())
	}
	o, err := NodeOptions{ID: r.ID, TrustDomain: td, RaftAddress: r.RaftAddress, APIAddress: r.APIAddress, DNSNames: r.DNSNames, IPs: r.IPs}.checked()
	if err != nil {
		return provenKeys{}, err
	}
	if len(o.DNSNames) != len(r.DNSNames) || len(o.IPs) != len(r.IPs) {
		return provenKeys{}, fmt.Errorf("%w: api_address: its host is not among dns_names and ips", ErrInvalid)
	}
	var k provenKeys
	for _, c := range []struct {
		field, csr, role string
		into             *crypto.PublicKey
	}{
		{"identity_issuer", r.IdentityIssuer, forIdentityIssuer, &k.identity},
		{"grant_issuer", r.GrantIssuer, forGrantIssuer, &k.grants},
		{"api", r.API, forAPI, &k.api},
	} {
		csr, err := r.csr(c.csr, c.role)
		if err != nil {
			return provenKeys{}, fmt.Errorf("%s: %w", c.field, err)
		}
		if err := CheckPublicKey(csr.PublicKey); err != nil {
			return provenKeys{}, fmt.Errorf("%s: %w: %w", c.field, ErrCSR, err)
		}
		*c.into = csr.PublicKey
	}
	csr, err := r.csr(r.Transport, forTransport)
	if err != nil {
		return provenKeys{}, fmt.Errorf("transport: %w", err)
	}
	transport, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return provenKeys{}, fmt.Errorf("transport: %w: not an Ed25519 key", ErrCSR)
	}
	k.transport = transport
	if samePublicKey(k.identity, k.grants) || samePublicKey(k.identity, k.api) || samePublicKey(k.grants, k.api) {
		return provenKeys{}, fmt.Errorf("%w: one key in two places: an issuer's key has one use", ErrInvalid)
	}
	return k, r.checkProof(td)
}

// csr reads one of the request's CSRs and checks that it is for this use.
func (r NodeRequest) csr(text, role string) (*x509.CertificateRequest, error) {
	csr, err := parseCSR([]byte(text))
	if err != nil {
		return nil, err
	}
	if want := csrName(r.ID, role); csr.Subject.CommonName != want {
		return nil, fmt.Errorf("%w: it is for %q, not for %q", ErrCSR, csr.Subject.CommonName, want)
	}
	return csr, nil
}

func (r NodeRequest) checkProof(td spiffeid.TrustDomain) error {
	if err := checkAuditKey(r.AuditKey, td, r.ID); err != nil {
		return fmt.Errorf("%w: audit_key: %w", ErrInvalid, err)
	}
	v, err := note.NewVerifier(r.AuditKey)
	if err != nil {
		return fmt.Errorf("%w: audit_key: %w", ErrInvalid, err)
	}
	want, err := r.proven()
	if err != nil {
		return err
	}
	n, err := note.Open([]byte(r.Proof), note.VerifierList(v))
	if err != nil {
		return fmt.Errorf("%w: proof: %w", ErrInvalid, err)
	}
	if n.Text != want {
		return fmt.Errorf("%w: proof: the request was changed after the node made it", ErrInvalid)
	}
	return nil
}

// same reports whether two requests ask for the same: all but the signatures,
// which differ every time.
func (r NodeRequest) same(o NodeRequest) bool {
	td, err := parseTrustDomain(r.TrustDomain)
	if err != nil {
		return false
	}
	mine, err := r.check(td)
	if err != nil {
		return false
	}
	theirs, err := o.check(td)
	if err != nil {
		return false
	}
	return reflect.DeepEqual(mine, theirs) &&
		r.ID == o.ID && r.RaftAddress == o.RaftAddress && r.APIAddress == o.APIAddress && r.AuditKey == o.AuditKey &&
		slices.Equal(r.DNSNames, o.DNSNames) && slices.EqualFunc(r.IPs, o.IPs, net.IP.Equal)
}

// LoadNodeRequest reads the file that NewNode wrote.
func LoadNodeRequest(path string) (NodeRequest, error) {
	text, err := readFile(path)
	if err != nil {
		return NodeRequest{}, err
	}
	r, err := ParseNodeRequest(text)
	if err != nil {
		return NodeRequest{}, wrapPath(path, err)
	}
	return r, nil
}

// ParseNodeRequest reads a request. Its proofs are checked where it is signed.
func ParseNodeRequest(text []byte) (NodeRequest, error) {
	var r NodeRequest
	if err := decodeJSON(text, &r); err != nil {
		return NodeRequest{}, fmt.Errorf("%w: node request: %w", ErrInvalid, err)
	}
	return r, nil
}

// parseAuditKey reads a note signer key and returns its verifier key as well.
func parseAuditKey(secret string) (note.Signer, string, error) {
	signer, err := note.NewSigner(secret)
	if err != nil {
		// The cause could repeat parts of the secret.
		return nil, "", fmt.Errorf("%w: not a note signer key", ErrKey)
	}
	// PRIVATE+KEY+name+hash+base64, and base64 may hold "+" too.
	parts := strings.SplitN(secret, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, "", fmt.Errorf("%w: not a note signer key", ErrKey)
	}
	public, ok := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return nil, "", fmt.Errorf("%w: not a note signer key", ErrKey)
	}
	vkey, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return nil, "", fmt.Errorf("%w: not a note signer key", ErrKey)
	}
	return signer, vkey, nil
}

// Asks reports whether a request is for the keys of these certificates. Its proofs
// are not looked at.
func (r NodeRequest) Asks(c NodeCertificates) bool {
	for _, pair := range []struct {
		csr  string
		cert *x509.Certificate
	}{{r.IdentityIssuer, c.IdentityIssuer}, {r.GrantIssuer, c.GrantIssuer}, {r.API, c.APICertificate}} {
		pub, err := ParseCSR([]byte(pair.csr))
		if err != nil || !samePublicKey(pub, pair.cert.PublicKey) {
			return false
		}
	}
	return true
}
