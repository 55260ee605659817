package trust

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

var (
	// ErrOld is returned when a document is not newer than the one in force.
	ErrOld = errors.New("trust: the roots document is not newer than the one in force")

	// ErrFork is returned, besides ErrOld, when a document has the number of the
	// one in force and says something else: two were signed where one belongs.
	ErrFork = errors.New("trust: two roots documents of one number")

	// ErrUnsigned is returned when no root in force has signed a document.
	ErrUnsigned = errors.New("trust: no root in force has signed the roots document")
)

// Set is the roots of one trust domain that are in force. The zero Set has none.
// A Set is never changed.
type Set struct {
	trustDomain string
	anchors     []*x509.Certificate
	roots       []*x509.Certificate
	newest      Document // zero while only the anchors count
	text        []byte   // of newest
}

// NewSet returns the roots that an operator put down.
func NewSet(trustDomain string, anchors []*x509.Certificate) Set {
	return Set{trustDomain: trustDomain, anchors: anchors, roots: anchors}
}

// TrustDomain is whose roots they are.
func (s Set) TrustDomain() string { return s.trustDomain }

// Roots are the roots in force.
func (s Set) Roots() []*x509.Certificate { return slices.Clone(s.roots) }

// Sequence is the number of the document in force, 0 while only anchors count.
func (s Set) Sequence() uint64 { return s.newest.Sequence }

// Document is the document in force; false while only anchors count.
func (s Set) Document() (Document, bool) { return s.newest, s.newest.Sequence > 0 }

// Denies says whether the document in force takes an issuer out of use.
func (s Set) Denies(issuer string) bool { return slices.Contains(s.newest.Denied, issuer) }

// Has says whether a root is in force.
func (s Set) Has(root *x509.Certificate) bool { return slices.ContainsFunc(s.roots, root.Equal) }

// Next returns the Set with a document in force. The error is ErrOld, ErrFork or
// ErrUnsigned; the Set is unchanged then.
func (s Set) Next(d Document) (Set, error) {
	if err := d.Check(); err != nil {
		return s, err
	}
	if d.TrustDomain != s.trustDomain {
		return s, fmt.Errorf("%w: of %s, not of %s", ErrDocument, d.TrustDomain, s.trustDomain)
	}
	text, err := d.Statement()
	if err != nil {
		return s, err
	}
	if d.Sequence <= s.newest.Sequence {
		// An old document, replayed, would bring a retired root back.
		err := fmt.Errorf("%w: %d, and %d is in force", ErrOld, d.Sequence, s.newest.Sequence)
		if d.Sequence == s.newest.Sequence && !bytes.Equal(text, s.text) {
			err = fmt.Errorf("%w: %w", ErrFork, err)
		}
		return s, err
	}
	if !slices.ContainsFunc(s.roots, d.SignedBy) {
		return s, fmt.Errorf("%w: %d of %s", ErrUnsigned, d.Sequence, d.TrustDomain)
	}
	next := Set{trustDomain: s.trustDomain, anchors: s.anchors, newest: d, text: text}
	for _, root := range slices.Concat(s.anchors, d.Roots) {
		if !slices.Contains(d.Retired, ID(root)) && !next.Has(root) {
			next.roots = append(next.roots, root)
		}
	}
	return next, nil
}

// Follow takes documents in, the lowest number first, as far as they follow from
// the Set: those of other trust domains, old ones and those that no root in force
// has signed are passed over. It says whether the newest of them was: who follows
// is behind then, and should say so.
func (s Set) Follow(documents []Document) (next Set, behind bool) {
	next, _, behind = s.Adopt(documents)
	return next, behind
}

// Adopt is Follow for who keeps the documents that were taken in.
func (s Set) Adopt(documents []Document) (next Set, adopted []Document, behind bool) {
	documents = slices.Clone(documents)
	slices.SortStableFunc(documents, func(a, b Document) int { return cmp.Compare(a.Sequence, b.Sequence) })
	next = s
	var newest uint64
	for _, d := range documents {
		if d.TrustDomain != s.trustDomain {
			continue
		}
		newest = max(newest, d.Sequence)
		if after, err := next.Next(d); err == nil {
			next, adopted = after, append(adopted, d)
		}
	}
	return next, adopted, next.Sequence() < newest
}

// ParseAll reads documents, one a line.
func ParseAll(text []byte) ([]Document, error) {
	var all []Document
	for i, line := range bytes.Split(text, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		d, err := Parse(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		all = append(all, d)
	}
	return all, nil
}

// EncodeAll writes documents, one a line.
func EncodeAll(documents []Document) ([]byte, error) {
	var text []byte
	for _, d := range documents {
		line, err := d.Encode()
		if err != nil {
			return nil, err
		}
		text = append(append(text, line...), '\n')
	}
	return text, nil
}
