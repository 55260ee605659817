package emergency

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

const (
	// MinCustodians is how many act together at the least.
	MinCustodians = 2
	// MaxRecordBytes is how long a record's line is at the most.
	MaxRecordBytes = 16 << 10
	// MaxRecords is how many a journal has at the most. Make another kit then.
	MaxRecords = 1000
	// MaxReason is how long a reason is at the most, in bytes.
	MaxReason = 1024

	maxLines   = 40   // of a reason
	maxSubject = 1024 // bytes of its SPIFFE ID

	recordVersion = 1
	// label keeps a record's signature apart from that of a certificate, whose
	// to-be-signed bytes never begin like this.
	label = "hallpass emergency journal v1\n"
)

// ErrJournal is returned when a journal, or a record of one, is not what custodians
// have written.
var ErrJournal = errors.New("bad emergency journal")

// Record is one certificate of an emergency issuer: it is on disk before the
// certificate is signed. Hashes are SHA-256 in lower-case hex.
type Record struct {
	Version    int       `json:"v"`
	N          uint64    `json:"n"`          // its place, from 1
	Prev       string    `json:"prev"`       // Hash of the one before; of the first, the issuer's id
	Issuer     string    `json:"issuer"`     // hash of the issuer's certificate
	Time       time.Time `json:"time"`       // when it was made, in whole milliseconds
	SPIFFEID   string    `json:"spiffe_id"`  // the grant: its scope, its subject and its id
	Reason     string    `json:"reason"`     // in the custodians' words
	Custodians []string  `json:"custodians"` // who acted, sorted
	Serial     string    `json:"serial"`     // lower-case hex
	TBSHash    string    `json:"tbs_hash"`
	NotBefore  time.Time `json:"not_before"` // whole seconds, as in the certificate
	NotAfter   time.Time `json:"not_after"`
	Key        string    `json:"key"` // hash of the certified public key
	Signature  []byte    `json:"signature,omitempty"`
}

// Encode returns the record's line, without the newline.
func (r Record) Encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJournal, err)
	}
	return b, nil
}

// Statement returns what the issuer's key signs, by its SHA-256.
func (r Record) Statement() ([]byte, error) {
	r.Signature = nil
	b, err := r.Encode()
	return append([]byte(label), b...), err
}

// Hash returns the lower-case hex SHA-256 of the statement. The signature is not in
// it: an ECDSA signature has a second spelling that anybody can write.
func (r Record) Hash() (string, error) {
	s, err := r.Statement()
	sum := sha256.Sum256(s)
	return hex.EncodeToString(sum[:]), err
}

// GrantID reads the grant in the trust domain td.
func (r Record) GrantID(td string) (grant.ID, error) {
	domain, err := spiffeid.TrustDomainFromString(td)
	if err != nil {
		return grant.ID{}, fmt.Errorf("%w: %w", ErrJournal, err)
	}
	id, err := grant.ParseID(r.SPIFFEID, domain)
	if err != nil {
		return grant.ID{}, fmt.Errorf("%w: record %d: %w", ErrJournal, r.N, err)
	}
	return id, nil
}

// ParseRecord reads a line: in the one spelling that Encode writes, or not at all.
// Whether it is signed is for Verify.
func ParseRecord(line []byte) (Record, error) {
	if len(line) > MaxRecordBytes {
		return Record{}, fmt.Errorf("%w: a record of %d bytes, at most %d", ErrJournal, len(line), MaxRecordBytes)
	}
	var r Record
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("%w: not a record: %w", ErrJournal, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Record{}, fmt.Errorf("%w: more than a record", ErrJournal)
	}
	again, err := r.Encode()
	if err != nil {
		return Record{}, err
	}
	if !bytes.Equal(again, line) {
		return Record{}, fmt.Errorf("%w: record %d has a second spelling", ErrJournal, r.N)
	}
	return r, r.check()
}

// check refuses what no custodians can have written.
func (r Record) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: record %d: %s", ErrJournal, r.N, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Version != recordVersion:
		return bad("version %d, this release knows %d", r.Version, recordVersion)
	case r.N == 0 || r.N > MaxRecords:
		return bad("places are 1 to %d", MaxRecords)
	case !isHash(r.Prev) || !isHash(r.Issuer) || !isHash(r.TBSHash) || !isHash(r.Key):
		return bad("a hash that is none")
	case !isSerial(r.Serial):
		return bad("the serial %q", r.Serial)
	case !whole(r.Time, time.Millisecond) || !whole(r.NotBefore, time.Second) || !whole(r.NotAfter, time.Second):
		return bad("a time that is not in UTC or too fine")
	case CheckReason(r.Reason) != nil:
		return bad("%s", CheckReason(r.Reason))
	case len(r.Custodians) < MinCustodians:
		// One alone must not be able to say that there were two.
		return bad("%d custodians, at least %d act together", len(r.Custodians), MinCustodians)
	case !slices.IsSorted(r.Custodians) || len(slices.Compact(slices.Clone(r.Custodians))) != len(r.Custodians):
		return bad("custodians %s are not in order, or one is there twice", strings.Join(r.Custodians, " "))
	case slices.ContainsFunc(r.Custodians, func(name string) bool { return !ValidCustodian(name) }):
		return bad("custodians %q", r.Custodians)
	}
	return nil
}

// CheckReason refuses words that do not show as what they are.
func CheckReason(text string) error {
	switch {
	case strings.TrimSpace(text) == "" || len(text) > MaxReason:
		return fmt.Errorf("a reason has 1 to %d bytes", MaxReason)
	case strings.Count(text, "\n") >= maxLines:
		return fmt.Errorf("a reason has at most %d lines", maxLines)
	case !utf8.ValidString(text) || strings.ContainsFunc(text, grant.HiddenInText):
		return errors.New("the reason holds characters that do not show, or change how what is around them shows")
	}
	return nil
}

// ValidCustodian matches the names of custodians: 1 to 63 of a-z, 0-9, ".", "-"
// and "_".
func ValidCustodian(name string) bool {
	return name != "" && len(name) <= 63 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

func whole(t time.Time, unit time.Duration) bool {
	return t.Location() == time.UTC && t.Unix() > 0 && t.Truncate(unit).Equal(t)
}

func isSerial(s string) bool {
	n, ok := new(big.Int).SetString(s, 16)
	return ok && len(s) <= 40 && n.Sign() > 0 && n.Text(16) == s
}

// Verify refuses a record that the issuer's key has not signed.
func (r Record) Verify(issuer *x509.Certificate) error {
	key, ok := issuer.PublicKey.(*ecdsa.PublicKey)
	if !ok || ID(issuer) != r.Issuer {
		return fmt.Errorf("%w: record %d is of issuer %s", ErrJournal, r.N, r.Issuer)
	}
	s, err := r.Statement()
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(s); !ecdsa.VerifyASN1(key, sum[:], r.Signature) {
		return fmt.Errorf("%w: record %d is not signed by its issuer: it was changed, or made up", ErrJournal, r.N)
	}
	return nil
}

// ID is how an issuer is named: the lower-case hex SHA-256 of its certificate.
func ID(issuer *x509.Certificate) string {
	sum := sha256.Sum256(issuer.Raw)
	return hex.EncodeToString(sum[:])
}

// Follows refuses a record that does not come right after place n, whose record
// has this hash; 0 and the issuer's id before the first.
func (r Record) Follows(n uint64, hash string) error {
	switch {
	case r.N != n+1:
		return fmt.Errorf("%w: record %d stands where record %d belongs: some are missing, or in another order", ErrJournal, r.N, n+1)
	case r.Prev != hash:
		return fmt.Errorf("%w: record %d does not follow from record %d: the journal has another history", ErrJournal, r.N, n)
	}
	return nil
}

// Check refuses a record whose certificate is beyond what the issuer may make, or
// of another trust domain of grants than td.
func (r Record) Check(issuer *x509.Certificate, td string) (grant.ID, error) {
	id, err := r.GrantID(td)
	if err != nil {
		return grant.ID{}, err
	}
	if subject := id.Subject(); len(subject.String()) > maxSubject || subject.TrustDomain().Name() == td {
		return grant.ID{}, fmt.Errorf("%w: record %d: the subject %s is a grant, or too long", ErrJournal, r.N, subject)
	}
	if err := CheckLeaf(id.GrantID(), r.NotBefore, r.NotAfter); err != nil {
		return grant.ID{}, fmt.Errorf("%w: record %d: %w", ErrJournal, r.N, err)
	}
	if r.NotAfter.After(issuer.NotAfter) || r.NotBefore.Before(issuer.NotBefore) {
		return grant.ID{}, fmt.Errorf("%w: record %d: %w: it outlives its issuer", ErrJournal, r.N, ErrLimits)
	}
	if r.Time.Before(r.NotBefore) || !r.Time.Before(r.NotAfter) {
		return grant.ID{}, fmt.Errorf("%w: record %d is of %s, and its certificate is not of then", ErrJournal, r.N, r.Time.Format(time.RFC3339))
	}
	return id, nil
}

// ParseJournal reads a whole journal of an issuer, and checks every record of it.
func ParseJournal(text []byte, issuer *x509.Certificate, td string) ([]Record, error) {
	var all []Record
	last := ID(issuer)
	for line := range bytes.Lines(text) {
		body, whole := bytes.CutSuffix(line, []byte("\n"))
		if !whole {
			return nil, fmt.Errorf("%w: line %d is cut off", ErrJournal, len(all)+1)
		}
		r, err := ParseRecord(body)
		if err == nil {
			err = r.Follows(uint64(len(all)), last)
		}
		if err == nil {
			err = r.Verify(issuer)
		}
		if err == nil {
			_, err = r.Check(issuer, td)
		}
		if err == nil {
			last, err = r.Hash()
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(all)+1, err)
		}
		all = append(all, r)
	}
	return all, nil
}
