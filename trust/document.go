package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// What a document may hold. MaxDocument bounds its length in bytes; it fits into
// one call of the API.
const (
	MaxDocument = 48 << 10
	MaxRoots    = 8
	MaxRetired  = 64
	MaxDenied   = 256
)

// ErrDocument is returned when a text is not a document.
var ErrDocument = errors.New("trust: bad roots document")

// Document says which roots a trust domain has, from its number on.
type Document struct {
	TrustDomain string              // "acme.test"
	Sequence    uint64              // 1, 2, …
	Issued      time.Time           // whole seconds, UTC; for people, nothing goes by it
	Roots       []*x509.Certificate // in force, the oldest first
	Retired     []string            // ids of roots that are not in force any more, ascending
	Denied      []string            // ids of issuers that are out of use, ascending
	Signatures  []Signature         // by any number of roots
}

// Signature is one root's, over Statement: ECDSA with SHA-256, ASN.1.
type Signature struct {
	Root  string `json:"root"`
	Value []byte `json:"value"`
}

// ID names a certificate: the lower-case hex SHA-256 of its DER.
func ID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// documentJSON is a document as it is written: one line.
type documentJSON struct {
	TrustDomain string      `json:"trust_domain"`
	Sequence    uint64      `json:"sequence"`
	Issued      time.Time   `json:"issued"`
	Roots       [][]byte    `json:"roots"` // DER
	Retired     []string    `json:"retired"`
	Denied      []string    `json:"denied"`
	Signatures  []Signature `json:"signatures"`
}

// Encode returns the document's one spelling: a line of JSON, without its end.
func (d Document) Encode() ([]byte, error) {
	w := documentJSON{
		TrustDomain: d.TrustDomain, Sequence: d.Sequence, Issued: d.Issued.UTC(), Roots: [][]byte{},
		Retired: list(d.Retired), Denied: list(d.Denied), Signatures: list(d.Signatures),
	}
	for _, root := range d.Roots {
		w.Roots = append(w.Roots, root.Raw)
	}
	text, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	return text, nil
}

func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// Statement returns what roots sign: a line that no certificate and no other
// statement of ours starts with, and the document without its signatures.
func (d Document) Statement() ([]byte, error) {
	d.Signatures = nil
	body, err := d.Encode()
	if err != nil {
		return nil, err
	}
	return append([]byte("hallpass roots v1\n"), body...), nil
}

// Parse reads one document. Its signatures are looked at by Set.Next: whose they
// must be depends on who follows.
func Parse(line []byte) (Document, error) {
	if len(line) > MaxDocument {
		return Document{}, fmt.Errorf("%w: %d bytes, at most %d", ErrDocument, len(line), MaxDocument)
	}
	var w documentJSON
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return Document{}, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Document{}, fmt.Errorf("%w: something follows it", ErrDocument)
	}
	d := Document{
		TrustDomain: w.TrustDomain, Sequence: w.Sequence, Issued: w.Issued,
		Retired: w.Retired, Denied: w.Denied, Signatures: w.Signatures,
	}
	for i, der := range w.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return Document{}, fmt.Errorf("%w: roots[%d]: %w", ErrDocument, i, err)
		}
		d.Roots = append(d.Roots, root)
	}
	if err := d.Check(); err != nil {
		return Document{}, err
	}
	again, err := d.Encode()
	if err != nil {
		return Document{}, err
	}
	if !bytes.Equal(again, line) {
		// A member twice is read one way here and another way elsewhere.
		return Document{}, fmt.Errorf("%w: not in the form that it was written in", ErrDocument)
	}
	return d, nil
}

// Check says whether a document makes sense by itself.
func (d Document) Check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrDocument}, args...)...)
	}
	switch {
	case d.TrustDomain == "":
		return fail("trust_domain: empty")
	case d.Sequence == 0:
		return fail("sequence: 0")
	case d.Issued.IsZero() || d.Issued.Nanosecond() != 0:
		return fail("issued: %s is not in whole seconds", d.Issued)
	case len(d.Roots) == 0:
		return fail("roots: empty, which would admit nobody")
	case len(d.Roots) > MaxRoots || len(d.Retired) > MaxRetired || len(d.Denied) > MaxDenied || len(d.Signatures) > MaxRoots+MaxRetired:
		return fail("too many roots, retired roots, denied issuers or signatures")
	}
	for i, root := range d.Roots {
		if err := CheckRoot(root, d.TrustDomain); err != nil {
			return fail("roots[%d]: %w", i, err)
		}
		if slices.ContainsFunc(d.Roots[:i], root.Equal) || slices.Contains(d.Retired, ID(root)) {
			return fail("roots[%d]: is there twice, or retired", i)
		}
	}
	for _, l := range []struct {
		name string
		ids  []string
	}{{"retired", d.Retired}, {"denied", d.Denied}} {
		for i, id := range l.ids {
			if !isID(id) || i > 0 && l.ids[i-1] >= id {
				return fail("%s[%d]: not the hash of a certificate, or not in ascending order", l.name, i)
			}
		}
	}
	for i, s := range d.Signatures {
		if !isID(s.Root) || slices.ContainsFunc(d.Signatures[:i], func(o Signature) bool { return o.Root == s.Root }) {
			return fail("signatures[%d].root: not the hash of a certificate, or there twice", i)
		}
	}
	return nil
}

// CheckRoot checks a self-signed root of a trust domain whose key signs
// documents.
func CheckRoot(root *x509.Certificate, trustDomain string) error {
	key, ok := root.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || key.Curve != elliptic.P256():
		return errors.New("its key is not ECDSA on P-256")
	case !root.IsCA || !root.BasicConstraintsValid || root.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("not a certificate authority")
	case root.CheckSignatureFrom(root) != nil:
		return errors.New("not signed by itself")
	case len(root.URIs) != 1 || root.URIs[0].String() != "spiffe://"+trustDomain:
		return fmt.Errorf("not a root of %s", trustDomain)
	}
	return nil
}

func isID(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == sha256.Size && hex.EncodeToString(raw) == s
}

// SignedBy says whether root has signed the document.
func (d Document) SignedBy(root *x509.Certificate) bool {
	key, ok := root.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return false
	}
	statement, err := d.Statement()
	if err != nil {
		return false
	}
	digest, id := sha256.Sum256(statement), ID(root)
	return slices.ContainsFunc(d.Signatures, func(s Signature) bool {
		return s.Root == id && ecdsa.VerifyASN1(key, digest[:], s.Value)
	})
}
