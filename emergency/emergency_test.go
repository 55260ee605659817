package emergency

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/internal/near"
)

const td = "grants.acme.test"

// book is an issuer's key and journal.
type book struct {
	tb   testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	text []byte
	n    uint64
	last string
}

func newBook(tb testing.TB) *book {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: NamePrefix(td) + "hq"}, NotBefore: start, NotAfter: start.AddDate(0, 6, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign, ExtraExtensions: []pkix.Extension{Mark()},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &book{tb: tb, key: key, cert: cert, last: ID(cert)}
}

// add signs a record for a moment and appends it.
func (b *book) add(edit func(*Record)) {
	b.tb.Helper()
	at := time.Date(2026, 3, 2, 9, int(b.n), 0, 0, time.UTC)
	ms := at.UnixMilli()
	u := []byte("00000000-0000-7000-8000-000000000000")
	text := hex.EncodeToString([]byte{byte(ms >> 40), byte(ms >> 32), byte(ms >> 24), byte(ms >> 16), byte(ms >> 8), byte(ms)})
	copy(u, text[:8])
	copy(u[9:], text[8:])
	scope, err := grant.ParseScope("payments", []string{"GET /admin/**"})
	if err != nil {
		b.tb.Fatal(err)
	}
	id, err := grant.NewID(spiffeid.RequireTrustDomainFromString(td), scope, spiffeid.RequireFromString("spiffe://acme.test/user/ada"), string(u))
	if err != nil {
		b.tb.Fatal(err)
	}
	hash := strings.Repeat("ab", 32)
	r := Record{
		Version: 1, N: b.n + 1, Prev: b.last, Issuer: ID(b.cert), Time: at, SPIFFEID: id.String(), Reason: "lost",
		Custodians: []string{"grace", "linus"}, Serial: "c0ffee", TBSHash: hash, Key: hash,
		NotBefore: at.Add(-Backdate), NotAfter: at.Add(30 * time.Minute),
	}
	if edit != nil {
		edit(&r)
	}
	s, err := r.Statement()
	if err != nil {
		b.tb.Fatal(err)
	}
	sum := sha256.Sum256(s)
	if r.Signature, err = ecdsa.SignASN1(rand.Reader, b.key, sum[:]); err != nil {
		b.tb.Fatal(err)
	}
	line, err := r.Encode()
	if err != nil {
		b.tb.Fatal(err)
	}
	b.text = append(append(b.text, line...), '\n')
	b.n++
	if b.last, err = r.Hash(); err != nil {
		b.tb.Fatal(err)
	}
}

// TestJournal reads what was written, and refuses what was done to it since.
func TestJournal(t *testing.T) {
	b := newBook(t)
	for range 3 {
		b.add(nil)
	}
	all, err := ParseJournal(b.text, b.cert, td)
	if err != nil || len(all) != 3 || all[2].N != 3 {
		t.Fatalf("%d records: %v", len(all), err)
	}
	if none, err := ParseJournal(nil, b.cert, td); err != nil || len(none) != 0 {
		t.Errorf("an empty one: %v, %v", none, err)
	}
	lines := bytes.SplitAfter(b.text, []byte("\n"))[:3]
	join := func(at ...int) (out []byte) {
		for _, i := range at {
			out = append(out, lines[i]...)
		}
		return out
	}
	for name, text := range map[string][]byte{
		"the first taken out":  join(1, 2),
		"one taken out":        join(0, 2),
		"in another order":     join(0, 2, 1),
		"one twice":            join(0, 1, 1, 2),
		"an edited reason":     bytes.Replace(b.text, []byte(`"lost"`), []byte(`"gone"`), 1),
		"an edited custodian":  bytes.Replace(b.text, []byte(`"grace"`), []byte(`"frank"`), 1),
		"the last line torn":   b.text[:len(b.text)-1],
		"an empty line":        append(bytes.Clone(b.text), '\n'),
		"a second spelling":    bytes.Replace(b.text, []byte(`{"v":1,`), []byte(`{"v": 1,`), 1),
		"a member more":        bytes.Replace(b.text, []byte(`{"v":1,`), []byte(`{"v":1,"x":1,`), 1),
		"a record and a word":  bytes.Replace(b.text, []byte("}\n"), []byte("}0\n"), 1),
		"a carriage return":    bytes.ReplaceAll(b.text, []byte("\n"), []byte("\r\n")),
		"another local time":   bytes.Replace(b.text, []byte(`:00Z","spiffe`), []byte(`:00+00:00","spiffe`), 1),
		"no signature":         append(bytes.Split(b.text, []byte(`,"signature"`))[0], '}', '\n'),
		"a line of a megabyte": append(bytes.Repeat([]byte("x"), 1<<20), '\n'),
	} {
		if got, err := ParseJournal(text, b.cert, td); !errors.Is(err, ErrJournal) {
			t.Errorf("%s: %d records, %v", name, len(got), err)
		}
	}
	// Cut at its end it is a journal still: only who knows of the rest can tell.
	if got, err := ParseJournal(join(0, 1), b.cert, td); err != nil || len(got) != 2 {
		t.Errorf("cut at its end: %d, %v", len(got), err)
	}
	if _, err := ParseJournal(b.text, newBook(t).cert, td); !errors.Is(err, ErrJournal) {
		t.Errorf("as another issuer's: %v", err)
	}
	if _, err := ParseJournal(b.text, b.cert, "acme.test"); !errors.Is(err, ErrJournal) {
		t.Errorf("of another trust domain: %v", err)
	}
}

// TestOtherSignatureIsNoFork: an ECDSA signature has a second spelling that anybody can
// write. With it the record is the same, and the next one follows it all the same.
func TestOtherSignatureIsNoFork(t *testing.T) {
	b := newBook(t)
	b.add(nil)
	r, err := ParseRecord(bytes.TrimSuffix(b.text, []byte("\n")))
	if err != nil {
		t.Fatal(err)
	}
	before, _ := r.Hash()
	r.Signature = append(bytes.Clone(r.Signature), 0)
	if after, _ := r.Hash(); after != before {
		t.Error("the signature is part of the hash")
	}
}

// TestRecordLimits: what is signed and cannot have been an emergency issuer's to make.
func TestRecordLimits(t *testing.T) {
	for name, edit := range map[string]func(*Record){
		"over an hour": func(r *Record) { r.NotAfter = r.NotBefore.Add(MaxLife + Backdate + time.Second) },
		"backwards":    func(r *Record) { r.NotAfter = r.NotBefore },
		"an id of another time": func(r *Record) {
			r.Time, r.NotBefore, r.NotAfter = r.Time.Add(time.Hour), r.NotBefore.Add(time.Hour), r.NotAfter.Add(time.Hour)
		},
		"made after it ended":   func(r *Record) { r.Time = r.NotAfter },
		"after the issuer":      func(r *Record) { r.NotAfter = r.NotAfter.AddDate(1, 0, 0) },
		"a grant as its holder": func(r *Record) { r.SPIFFEID = strings.Replace(r.SPIFFEID, "/acme.test/", "/grants.acme.test/", 1) },
		"one custodian":         func(r *Record) { r.Custodians = r.Custodians[:1] },
		"none":                  func(r *Record) { r.Custodians = nil },
		"out of order":          func(r *Record) { r.Custodians = []string{"linus", "grace"} },
		"a serial with a zero":  func(r *Record) { r.Serial = "0" + r.Serial },
		"a negative serial":     func(r *Record) { r.Serial = "-1" },
		"a short hash":          func(r *Record) { r.TBSHash = r.TBSHash[:62] },
		"capitals":              func(r *Record) { r.Key = strings.ToUpper(r.Key) },
		"half a second":         func(r *Record) { r.NotBefore = r.NotBefore.Add(time.Second / 2) },
		"a fine time":           func(r *Record) { r.Time = r.Time.Add(time.Microsecond) },
		"no reason":             func(r *Record) { r.Reason = "\n" },
		"text that hides":       func(r *Record) { r.Reason = "a\u202eb" },
		"a wall of lines":       func(r *Record) { r.Reason = "a" + strings.Repeat("\n", maxLines) },
		"place 0":               func(r *Record) { r.N = 0 },
		"version 2":             func(r *Record) { r.Version = 2 },
	} {
		b := newBook(t)
		b.add(edit)
		if _, err := ParseJournal(b.text, b.cert, td); !errors.Is(err, ErrJournal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUntil: no certificate that CheckLeaf takes lives past what the id says.
func TestUntil(t *testing.T) {
	const id = "01993a2b-0000-7000-8000-000000000001"
	end, err := Until(id)
	if err != nil {
		t.Fatal(err)
	}
	made, err := made(id)
	if err != nil {
		t.Fatal(err)
	}
	taken := 0
	for late := -5 * time.Minute; late <= 5*time.Minute; late += 10 * time.Second {
		for life := time.Duration(0); life < 2*time.Hour; life += time.Minute {
			begin := made.Add(late)
			if CheckLeaf(id, begin, begin.Add(life)) != nil {
				continue
			}
			taken++
			if begin.Add(life).After(end) {
				t.Fatalf("one from %s for %s ends after %s", begin, life, end)
			}
		}
	}
	if taken == 0 {
		t.Error("nothing is taken")
	}
	for _, bad := range []string{"", "x", strings.ToUpper(id), strings.Replace(id, "-7", "-4", 1)} {
		if _, err := Until(bad); !errors.Is(err, ErrLimits) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzParseRecord: what is read is written the same, and nothing panics.
func FuzzParseRecord(f *testing.F) {
	b := newBook(f)
	b.add(nil)
	f.Add(bytes.TrimSuffix(b.text, []byte("\n")), uint16(0), byte('x'))
	f.Add([]byte("{}"), uint16(0), byte('x'))
	f.Fuzz(func(t *testing.T, line []byte, at uint16, by byte) {
		for _, line := range near.Of(line, at, by) {
			r, err := ParseRecord(line)
			if err != nil {
				continue
			}
			again, err := r.Encode()
			if err != nil || !bytes.Equal(again, line) {
				t.Errorf("read %q, written %q, %v", line, again, err)
			}
			_ = r.Verify(b.cert)
			if _, err := r.Check(b.cert, td); err == nil && !r.NotBefore.Before(r.NotAfter) {
				t.Errorf("it lives from %s to %s", r.NotBefore, r.NotAfter)
			}
		}
	})
}
