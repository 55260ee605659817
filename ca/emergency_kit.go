package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/emergency"
	"github.com/hallpass/hallpass/grant"
)

// NewCustodian makes a custodian's key in a new file, mode 0600, and returns the
// public key. With a passphrase the file is encrypted: whoever takes it still has
// to know that.
func NewCustodian(path, passphrase string) (recipient string, err error) {
	// Hybrid keys: what is encrypted to them lies about for years.
	key, err := age.GenerateHybridIdentity()
	if err != nil {
		return "", fmt.Errorf("ca: make a custodian's key: %w", err)
	}
	recipient = key.Recipient().String()
	text := []byte("# public key: " + recipient + "\n" + key.String() + "\n")
	if passphrase != "" {
		if text, err = withPassphrase(text, passphrase, passphraseWork); err != nil {
			return "", err
		}
	}
	err = createFile(path, text, secretMode)
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%w: %s; keys are never overwritten", ErrExists, path)
	}
	return recipient, err
}

// passphraseWork is scrypt's work factor, a second or so: age's own default.
const passphraseWork = 18

func withPassphrase(text []byte, passphrase string, work int) ([]byte, error) {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("ca: encrypt a custodian's key: %w", err)
	}
	r.SetWorkFactor(work)
	var buf bytes.Buffer
	armored := armor.NewWriter(&buf)
	w, err := age.Encrypt(armored, r)
	if err != nil {
		return nil, fmt.Errorf("ca: encrypt a custodian's key: %w", err)
	}
	_, err = w.Write(text)
	if err := errors.Join(err, w.Close(), armored.Close()); err != nil {
		return nil, fmt.Errorf("ca: encrypt a custodian's key: %w", err)
	}
	return buf.Bytes(), nil
}

// LoadCustodian reads a custodian's key, as NewCustodian or age-keygen wrote it.
// ask is called for the passphrase of a file that has one.
func LoadCustodian(path string, ask func(path string) (string, error)) ([]age.Identity, error) {
	text, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(text, []byte(armor.Header)) || bytes.HasPrefix(text, []byte("age-encryption.org/v1\n")) {
		passphrase, err := ask(path)
		if err != nil {
			return nil, err
		}
		if text, err = openPassphrase(text, passphrase); err != nil {
			return nil, wrapPath(path, err)
		}
	}
	keys, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %s is no custodian's key: %w", ErrKey, path, err)
	}
	return keys, nil
}

func openPassphrase(text []byte, passphrase string) ([]byte, error) {
	id, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	// A file that asks for more work than ours would keep everybody waiting.
	id.SetMaxWorkFactor(20)
	var in io.Reader = bytes.NewReader(text)
	if bytes.HasPrefix(text, []byte(armor.Header)) {
		in = armor.NewReader(in)
	}
	r, err := age.Decrypt(in, id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return buf.Bytes(), nil
}

// Kit is an emergency kit: an issuer that its custodians have to open, and what it
// has signed.
type Kit struct {
	Issuer        *x509.Certificate
	IdentityRoots []*x509.Certificate
	GrantRoots    []*x509.Certificate
	Custodians    []string // who there are
	Threshold     int      // how many of them act together

	dir                  string
	identityTD, grantsTD spiffeid.TrustDomain
	sealed               kitJSON
}

// OpenKit reads a kit. It refuses one whose issuer is not within the limits of an
// emergency issuer, or not signed by the kit's own roots.
func OpenKit(dir string) (*Kit, error) {
	path := filepath.Join(dir, KitFile)
	text, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no emergency kit; `ca emergency init` makes one: %w", dir, err)
	}
	if err != nil {
		return nil, err
	}
	k := &Kit{dir: dir}
	if err := decodeJSON(text, &k.sealed); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	if err := k.read(); err != nil {
		return nil, wrapPath(path, err)
	}
	return k, nil
}

func (k *Kit) read() (err error) {
	s := k.sealed
	if s.Version != kitVersion || s.Threshold < emergency.MinCustodians || len(s.Custodians) < s.Threshold {
		return fmt.Errorf("%w: version %d, %d of %d custodians", ErrInvalid, s.Version, s.Threshold, len(s.Custodians))
	}
	k.Threshold, k.Custodians = s.Threshold, s.names()
	if k.identityTD, err = parseTrustDomain(s.TrustDomain); err != nil {
		return err
	}
	if k.grantsTD, err = parseTrustDomain(s.GrantTrustDomain); err != nil {
		return err
	}
	issuer, err1 := DecodeCertificates([]byte(s.Issuer))
	identity, err2 := DecodeCertificates([]byte(s.IdentityRoots))
	grants, err3 := DecodeCertificates([]byte(s.GrantRoots))
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	k.Issuer, k.IdentityRoots, k.GrantRoots = issuer[0], identity, grants
	if err := emergency.CheckIssuer(k.Issuer, k.grantsTD.Name()); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, root := range grants {
		if k.Issuer.CheckSignatureFrom(root) == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: the issuer is signed by none of the kit's roots", ErrInvalid)
}

// Journal reads and checks what the kit has signed.
func (k *Kit) Journal() ([]emergency.Record, error) {
	text, err := k.journal()
	if err != nil {
		return nil, err
	}
	records, err := emergency.ParseJournal(text, k.Issuer, k.grantsTD.Name())
	if err != nil {
		return nil, wrapPath(filepath.Join(k.dir, EmergencyJournalFile), err)
	}
	return records, nil
}

func (k *Kit) journal() ([]byte, error) {
	text, err := readFile(filepath.Join(k.dir, EmergencyJournalFile))
	if errors.Is(err, fs.ErrNotExist) {
		// A new one would be another history, which no cluster takes in.
		return nil, fmt.Errorf("%w: the kit's journal is missing; bring it back, or use another kit: %w", ErrInvalid, err)
	}
	return text, err
}

// EmergencySpec asks for an emergency grant's certificate.
type EmergencySpec struct {
	Scope     grant.Scope
	Subject   spiffeid.ID // an identity: who is let in
	Reason    string
	PublicKey crypto.PublicKey
	Life      time.Duration // at most emergency.MaxLife
	Now       time.Time
}

// EmergencyIssuer is a kit that its custodians have opened. It is for one
// goroutine.
type EmergencyIssuer struct {
	kit        *Kit
	issuer     *Issuer
	custodians []string

	failpoint func(at string) error // in tests: stop there
}

// Unlock opens the kit with the keys of its custodians, of whom Threshold have to
// be there. The error wraps ErrCustodians when they are not.
func (k *Kit) Unlock(keys []age.Identity) (*EmergencyIssuer, error) {
	key, names, err := k.sealed.open(k.Issuer, keys)
	if err != nil {
		return nil, err
	}
	a, err := newAuthority(k.Issuer, key)
	if err != nil {
		return nil, err
	}
	return &EmergencyIssuer{
		kit: k, custodians: names, issuer: &Issuer{authority: a, role: RoleGrants, td: k.grantsTD},
		failpoint: func(string) error { return nil },
	}, nil
}

// Issue makes a grant certificate: it is prepared, linted, written to the kit's
// journal and synced, read back, and only then signed, in this order and no other.
// The returned chain has the issuer.
func (e *EmergencyIssuer) Issue(spec EmergencySpec) ([]*x509.Certificate, emergency.Record, error) {
	none := emergency.Record{}
	id, err := e.checked(spec)
	if err != nil {
		return nil, none, err
	}
	ticket, err := e.issuer.PrepareGrant(GrantSpec{
		ID: id, PublicKey: spec.PublicKey, Now: spec.Now, TTL: spec.Life,
		GrantExpiry: spec.Now.Add(spec.Life), Skew: emergency.Backdate,
	})
	if err != nil {
		return nil, none, err
	}
	record, err := e.commit(spec, id, ticket.Record())
	if err != nil {
		return nil, none, err
	}
	if err := e.failpoint("committed, not signed"); err != nil {
		return nil, none, err
	}
	chain, err := ticket.Sign(Record{
		Serial: record.Serial, TBSHash: record.TBSHash, Issuer: record.Issuer,
		NotBefore: record.NotBefore, NotAfter: record.NotAfter, Key: record.Key,
	})
	return chain, record, err
}

// checked refuses what no emergency grant may say, and names the grant.
func (e *EmergencyIssuer) checked(spec EmergencySpec) (grant.ID, error) {
	if spec.Life < time.Minute || spec.Life > emergency.MaxLife || spec.Life%time.Second != 0 {
		return grant.ID{}, fmt.Errorf("%w: an emergency grant lives from 1m to %s, in whole seconds, not %s", ErrInvalid, emergency.MaxLife, spec.Life)
	}
	if err := emergency.CheckReason(spec.Reason); err != nil {
		return grant.ID{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if spec.Subject.MemberOf(e.kit.grantsTD) {
		return grant.ID{}, fmt.Errorf("%w: %s is a grant, and a grant is not an identity", ErrInvalid, spec.Subject)
	}
	u, err := newUUID(spec.Now)
	if err != nil {
		return grant.ID{}, err
	}
	id, err := grant.NewID(e.kit.grantsTD, spec.Scope, spec.Subject, u)
	if err != nil {
		return grant.ID{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return id, nil
}

// newUUID is a UUIDv7 of this moment, whose time the grant's end follows from.
func newUUID(now time.Time) (string, error) {
	u, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("ca: grant id: %w", err)
	}
	ms := uint64(now.UnixMilli())
	for i := range 6 {
		u[i] = byte(ms >> (40 - 8*i))
	}
	return u.String(), nil
}

// commit writes the record of a certificate to the journal and returns it as it
// was read back from there.
func (e *EmergencyIssuer) commit(spec EmergencySpec, id grant.ID, r Record) (record emergency.Record, err error) {
	path := filepath.Join(e.kit.dir, EmergencyJournalFile)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return record, fmt.Errorf("%w: the kit's journal cannot be written: %w", ErrInvalid, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Two who issue at a time would both follow from one record: two histories.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return record, fmt.Errorf("ca: lock %s: %w", path, err)
	}
	n, last, err := e.kit.head(f, spec.Now)
	if err != nil {
		return record, err
	}
	record = emergency.Record{
		Version: 1, N: n + 1, Prev: last, Issuer: r.Issuer, Time: spec.Now.UTC().Truncate(time.Millisecond),
		SPIFFEID: id.String(), Reason: spec.Reason, Custodians: slices.Clone(e.custodians),
		Serial: r.Serial, TBSHash: r.TBSHash, NotBefore: r.NotBefore, NotAfter: r.NotAfter, Key: r.Key,
	}
	line, err := e.sign(&record)
	if err != nil {
		return record, err
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Sync()); err != nil {
		return record, fmt.Errorf("ca: journal: %w", err)
	}
	all, err := e.kit.Journal()
	if err != nil {
		return record, err
	}
	if len(all) == 0 {
		return record, fmt.Errorf("%w: the journal is empty after it was written", ErrNotCommitted)
	}
	return all[len(all)-1], nil
}

// sign signs a record, and checks that whoever takes it in will.
func (e *EmergencyIssuer) sign(r *emergency.Record) ([]byte, error) {
	statement, err := r.Statement()
	if err != nil {
		return nil, err
	}
	gate, hash := e.issuer.authority.cas.gate, hashOf(statement)
	defer gate.commit(hash)()
	if r.Signature, err = gate.Sign(nil, hash[:], crypto.SHA256); err != nil {
		return nil, err
	}
	line, err := r.Encode()
	if err != nil {
		return nil, err
	}
	again, err := emergency.ParseRecord(line)
	if err == nil {
		err = again.Verify(e.kit.Issuer)
	}
	if err == nil {
		_, err = again.Check(e.kit.Issuer, e.kit.grantsTD.Name())
	}
	return line, err
}

// head is the place and the hash of the journal's last record. A line that a crash
// has cut off is taken away: nothing was signed for it. The caller has the lock.
func (k *Kit) head(f *os.File, now time.Time) (n uint64, hash string, err error) {
	text, err := k.journal()
	if err != nil {
		return 0, "", err
	}
	if whole := text[:bytes.LastIndexByte(text, '\n')+1]; len(whole) < len(text) {
		if err := errors.Join(f.Truncate(int64(len(whole))), f.Sync()); err != nil {
			return 0, "", fmt.Errorf("ca: journal: %w", err)
		}
		text = whole
	}
	all, err := emergency.ParseJournal(text, k.Issuer, k.grantsTD.Name())
	if err != nil {
		return 0, "", wrapPath(filepath.Join(k.dir, EmergencyJournalFile), err)
	}
	if len(all) == 0 {
		return 0, emergency.ID(k.Issuer), nil
	}
	last := all[len(all)-1]
	if now.Before(last.Time) {
		return 0, "", fmt.Errorf("%w: the journal's last record is of %s, and this machine's clock says %s: set it", ErrInvalid,
			last.Time.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	hash, err = last.Hash()
	return last.N, hash, err
}
