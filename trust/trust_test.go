package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/internal/near"
)

const domain = "acme.test"

// root is a root certificate with its key.
type root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newRoot(t testing.TB, td string) root {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: td + " root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: td}},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root{cert, key}
}

// document makes a document of the roots in force, signed by signers.
func document(t testing.TB, sequence uint64, roots, retired, signers []root) Document {
	t.Helper()
	d := Document{TrustDomain: domain, Sequence: sequence, Issued: time.Unix(1_772_355_600, 0).UTC()}
	for _, r := range roots {
		d.Roots = append(d.Roots, r.cert)
	}
	for _, r := range retired {
		d.Retired = append(d.Retired, ID(r.cert))
	}
	slices.Sort(d.Retired)
	return sign(t, d, signers...)
}

func sign(t testing.TB, d Document, signers ...root) Document {
	t.Helper()
	statement, err := d.Statement()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(statement)
	for _, r := range signers {
		value, err := ecdsa.SignASN1(rand.Reader, r.key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		d.Signatures = append(slices.Clone(d.Signatures), Signature{Root: ID(r.cert), Value: value})
	}
	return d
}

func certs(roots ...root) []*x509.Certificate {
	var all []*x509.Certificate
	for _, r := range roots {
		all = append(all, r.cert)
	}
	return all
}

func wantRoots(t *testing.T, s Set, want ...root) {
	t.Helper()
	if got := s.Roots(); !slices.EqualFunc(got, certs(want...), func(a, b *x509.Certificate) bool { return a.Equal(b) }) {
		t.Errorf("%d roots in force at %d, want %d others", len(got), s.Sequence(), len(want))
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	a, b := newRoot(t, domain), newRoot(t, domain)
	overlap := document(t, 1, []root{a, b}, nil, []root{a, b})
	retired := document(t, 2, []root{b}, []root{a}, []root{b})

	s := NewSet(domain, certs(a))
	s, behind := s.Follow([]Document{retired, overlap}) // in whichever order they come
	if behind || s.Sequence() != 2 {
		t.Fatalf("at %d, behind %v", s.Sequence(), behind)
	}
	wantRoots(t, s, b)

	// Whoever pins the successor already, by its own file, arrives as well.
	fresh, behind := NewSet(domain, certs(b)).Follow([]Document{overlap, retired})
	if behind {
		t.Error("a follower that began with the successor is behind")
	}
	wantRoots(t, fresh, b)

	// One that missed the overlap pins a root that did not sign the newest.
	late, behind := NewSet(domain, certs(a)).Follow([]Document{retired})
	if !behind || late.Sequence() != 0 {
		t.Errorf("took document %d that none of its roots signed", late.Sequence())
	}
}

// TestReplayedDocument is the attack of whoever stole a root that was retired
// for it: the old document, in which that root still counts.
func TestReplayedDocument(t *testing.T) {
	t.Parallel()
	stolen, b := newRoot(t, domain), newRoot(t, domain)
	overlap := document(t, 1, []root{stolen, b}, nil, []root{stolen, b})
	s, _ := NewSet(domain, certs(stolen)).Follow([]Document{overlap, document(t, 2, []root{b}, []root{stolen}, []root{b})})
	for name, d := range map[string]Document{
		"as it was":         overlap,
		"under its number":  document(t, 2, []root{stolen, b}, nil, []root{stolen}),
		"under the next":    document(t, 3, []root{stolen}, nil, []root{stolen}),
		"with the other's":  {},
		"of another domain": document(t, 9, []root{newRoot(t, domain)}, nil, []root{stolen}),
	} {
		if name == "with the other's" {
			// The signature of the document in force, put under another text.
			d = document(t, 3, []root{stolen}, nil, nil)
			d.Signatures, _ = signaturesOf(s)
		}
		next, err := s.Next(d)
		if err == nil {
			t.Errorf("%s: taken", name)
		}
		wantRoots(t, next, b)
	}
	if _, err := s.Next(overlap); !errors.Is(err, ErrOld) {
		t.Errorf("the old document: %v", err)
	}
	if _, err := s.Next(document(t, 2, []root{b, newRoot(t, domain)}, []root{stolen}, []root{b})); !errors.Is(err, ErrFork) {
		t.Errorf("another document of the same number: %v", err)
	}
}

func signaturesOf(s Set) ([]Signature, bool) {
	d, ok := s.Document()
	return d.Signatures, ok
}

func TestOtherRootsAreLeftAlone(t *testing.T) {
	t.Parallel()
	a, b, elsewhere := newRoot(t, domain), newRoot(t, domain), newRoot(t, domain)
	s := NewSet(domain, certs(a, elsewhere))
	s, _ = s.Follow([]Document{document(t, 1, []root{a, b}, nil, []root{a}), document(t, 2, []root{b}, []root{a}, []root{a})})
	wantRoots(t, s, elsewhere, b)
}

func TestOneSpelling(t *testing.T) {
	t.Parallel()
	a := newRoot(t, domain)
	d := document(t, 1, []root{a}, nil, []root{a})
	d.Denied = []string{strings.Repeat("ab", 32)}
	line, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(line)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := back.Encode(); err != nil || !bytes.Equal(again, line) {
		t.Errorf("comes back as %s (%v)", again, err)
	}
	for name, bad := range map[string]string{
		"white space":      strings.Replace(string(line), ":1,", ": 1,", 1),
		"twice":            strings.Replace(string(line), `"sequence":1`, `"sequence":2,"sequence":1`, 1),
		"another case":     strings.Replace(string(line), `"sequence"`, `"Sequence"`, 1),
		"unknown":          strings.Replace(string(line), `"sequence"`, `"x":1,"sequence"`, 1),
		"something after":  string(line) + "{}",
		"no number":        strings.Replace(string(line), `"sequence":1`, `"sequence":0`, 1),
		"no roots":         strings.Replace(string(line), `"roots":[`, `"roots":[],"r":[`, 1),
		"another domain":   strings.Replace(string(line), `"acme.test"`, `"acme.test.evil"`, 1),
		"upper-case id":    strings.Replace(string(line), "abab", "ABAB", 1),
		"half a second":    strings.Replace(string(line), "00Z", "00.5Z", 1),
		"empty":            "",
		"too long":         string(line) + strings.Repeat(" ", MaxDocument),
		"a root of others": documentOf(t, newRoot(t, "other.test")),
	} {
		if bad == string(line) {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := Parse([]byte(bad)); !errors.Is(err, ErrDocument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func documentOf(t *testing.T, r root) string {
	t.Helper()
	line, err := Document{TrustDomain: domain, Sequence: 1, Issued: time.Unix(1, 0), Roots: certs(r)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(line)
}

func TestEmptyAdmitsNobody(t *testing.T) {
	t.Parallel()
	a := newRoot(t, domain)
	d := document(t, 1, nil, []root{a}, []root{a})
	if s, err := NewSet(domain, certs(a)).Next(d); !errors.Is(err, ErrDocument) || !s.Has(a.cert) {
		t.Errorf("a document without roots: %v", err)
	}
	if _, err := NewSet(domain, nil).Next(document(t, 1, []root{a}, nil, []root{a})); !errors.Is(err, ErrUnsigned) {
		t.Errorf("without anchors a document signs itself: %v", err)
	}
}

// FuzzParse: what is read is written the same.
func FuzzParse(f *testing.F) {
	a := newRoot(f, domain)
	line, err := document(f, 1, []root{a}, nil, []root{a}).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line, uint16(0), byte('x'))
	f.Fuzz(func(t *testing.T, text []byte, at uint16, b byte) {
		for _, text := range near.Of(text, at, b) {
			d, err := Parse(text)
			if err != nil {
				continue
			}
			if again, err := d.Encode(); err != nil || !bytes.Equal(again, text) {
				t.Errorf("%q is written %q", text, again)
			}
		}
	})
}
