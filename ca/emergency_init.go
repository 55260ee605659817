package ca

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/hallpass/hallpass/emergency"
)

// The files of an emergency kit.
const (
	// KitFile says what the kit is. Nothing in it is secret to who has fewer
	// custodians' keys than it takes.
	KitFile = "kit.json"
	// EmergencyJournalFile is what the issuer has signed.
	EmergencyJournalFile = "journal.jsonl"
	// EmergencyIssuerFile is the issuer's certificate, for the cluster.
	EmergencyIssuerFile = "issuer.crt"
)

const (
	// EmergencyLife is how long an emergency issuer lives unless it is said
	// otherwise.
	EmergencyLife = 365 * 24 * time.Hour

	maxCustodians = 32
	kitVersion    = 1
)

// Custodian is one of those who hold an emergency issuer together.
type Custodian struct {
	Name      string
	Recipient string // public key, as age-keygen and NewCustodian print it
}

// EmergencyOptions says what InitEmergency makes.
type EmergencyOptions struct {
	Name       string        // of the issuer: one kit, one issuer, one journal
	Custodians []Custodian   // who get a share each
	Threshold  int           // how many of them act together, at least 2
	Life       time.Duration // zero means EmergencyLife
	Open       OpenKMS       // for a grants root in a KMS
	Now        time.Time     // zero means the clock's
}

// kitJSON is kit.json.
type kitJSON struct {
	Version          int             `json:"v"`
	TrustDomain      string          `json:"trust_domain"`
	GrantTrustDomain string          `json:"grant_trust_domain"`
	Issuer           string          `json:"issuer"`         // PEM
	IdentityRoots    string          `json:"identity_roots"` // PEM; for those who are let in
	GrantRoots       string          `json:"grant_roots"`    // PEM
	Threshold        int             `json:"threshold"`
	Custodians       []custodianJSON `json:"custodians"`
	Commitments      []string        `json:"commitments"` // to the secret's polynomial; hex
	SealedKey        []byte          `json:"sealed_key"`
}

type custodianJSON struct {
	Name      string `json:"name"`
	Recipient string `json:"recipient"`
	Share     string `json:"share"` // encrypted to the recipient; armored age
}

// InitEmergency makes an emergency issuer and its kit in the folder out, which must
// not exist. dir is the offline folder, whose grants root signs the issuer. The
// issuer's key is in the kit, encrypted: to open it takes Threshold custodians
// together, each with their own key.
func InitEmergency(dir, out string, o EmergencyOptions) (_ *x509.Certificate, err error) {
	if o, err = o.checked(); err != nil {
		return nil, err
	}
	out = filepath.Clean(out)
	if _, err := os.Lstat(out); err == nil {
		return nil, fmt.Errorf("%w: %s; kits are never overwritten", ErrExists, out)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("ca: %w", err)
	}
	off, err := openOffline(dir, o.Open)
	if err != nil {
		return nil, err
	}
	defer off.close()
	signer, err := off.signing(off.grantRoots)
	if err != nil {
		return nil, err
	}
	key, err := GenerateKey()
	if err != nil {
		return nil, err
	}
	root := signer.cert
	v, err := clamp(root, o.Now, o.Life, offlineBackdate, root.NotAfter)
	if err != nil {
		return nil, err
	}
	cert, err := off.sign(signer, emergencyProfile(off.grants.Name(), o.Name, off.grants.ID().URL(), key.Public(), v), o.Now)
	if err != nil {
		return nil, err
	}
	if err := emergency.CheckIssuer(cert, off.grants.Name()); err != nil {
		return nil, err
	}
	kit := kitJSON{
		Version: kitVersion, TrustDomain: off.identityTD.Name(), GrantTrustDomain: off.grants.Name(), Threshold: o.Threshold,
		Issuer:        string(EncodeCertificates(cert)),
		IdentityRoots: string(EncodeCertificates(off.identities.set.Roots()...)),
		GrantRoots:    string(EncodeCertificates(off.grantRoots.set.Roots()...)),
	}
	if err := kit.seal(key, cert, o.Custodians); err != nil {
		return nil, err
	}
	return cert, kit.write(out, cert)
}

func (k kitJSON) write(out string, cert *x509.Certificate) (err error) {
	tmp, err := os.MkdirTemp(filepath.Dir(out), ".emergency-*") // mode 0700
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	text, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return fmt.Errorf("ca: emergency kit: %w", err)
	}
	err = errors.Join(
		createFile(filepath.Join(tmp, KitFile), append(text, '\n'), secretMode),
		createFile(filepath.Join(tmp, EmergencyIssuerFile), EncodeCertificates(cert), publicMode),
		// Empty, and there: a kit without it has lost what it had signed.
		createFile(filepath.Join(tmp, EmergencyJournalFile), nil, secretMode),
	)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, out); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	return syncDir(filepath.Dir(out))
}

func (o EmergencyOptions) checked() (EmergencyOptions, error) {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.Life == 0 {
		o.Life = EmergencyLife
	}
	switch n := len(o.Custodians); {
	case !validName(o.Name):
		return o, fmt.Errorf("%w: the issuer's name %q is not one of a-z, 0-9, \".\", \"-\" and \"_\"", ErrInvalid, o.Name)
	case o.Life < 0 || o.Life > EmergencyLife:
		return o, fmt.Errorf("%w: an emergency issuer lives at most %s, not %s", ErrInvalid, EmergencyLife, o.Life)
	case o.Threshold < emergency.MinCustodians:
		// One alone could let in whom they like.
		return o, fmt.Errorf("%w: at least %d custodians act together, not %d", ErrInvalid, emergency.MinCustodians, o.Threshold)
	case n < o.Threshold || n > maxCustodians:
		return o, fmt.Errorf("%w: %d custodians, of whom %d act together; name at most %d", ErrInvalid, n, o.Threshold, maxCustodians)
	}
	var names, keys []string
	for _, c := range o.Custodians {
		if !emergency.ValidCustodian(c.Name) {
			return o, fmt.Errorf("%w: the custodian's name %q is not one of a-z, 0-9, \".\", \"-\" and \"_\"", ErrInvalid, c.Name)
		}
		if _, err := parseRecipient(c); err != nil {
			return o, err
		}
		if slices.Contains(names, c.Name) || slices.Contains(keys, c.Recipient) {
			// One key under two names would be two custodians in one person.
			return o, fmt.Errorf("%w: the custodian %s, or that key, twice", ErrInvalid, c.Name)
		}
		names, keys = append(names, c.Name), append(keys, c.Recipient)
	}
	return o, nil
}

func parseRecipient(c Custodian) (age.Recipient, error) {
	all, err := age.ParseRecipients(strings.NewReader(c.Recipient))
	if err == nil && (len(all) != 1 || strings.ContainsAny(c.Recipient, " \t\r\n#")) {
		err = errors.New("not one public key")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the key of custodian %s is no age recipient such as age1…: %w", ErrInvalid, c.Name, err)
	}
	return all[0], nil
}
