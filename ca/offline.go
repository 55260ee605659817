package ca

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/cas/softcas"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The files of the offline folder.
const (
	identityRootName = "identity-root"
	grantsRootName   = "grants-root"
	seedFile         = "seed.json"
	journalFile      = "issued.jsonl"

	// IdentityRootFile and GrantsRootFile are the roots' certificates.
	IdentityRootFile = identityRootName + ".crt"
	GrantsRootFile   = grantsRootName + ".crt"

	// PersonsDir holds an identity folder for each of the first admins.
	PersonsDir = "persons"

	// ManifestFile is the manifest's name in the offline folder.
	ManifestFile = "manifest.json"
)

const (
	organization = "Hallpass"
	// devUnit marks the subject of roots that are made for trying things out.
	devUnit = "DEVELOPMENT ONLY"
)

// offlineSeed is seed.json: what `ca sign-node` needs besides the roots.
type offlineSeed struct {
	TrustDomain      string `json:"trust_domain"`
	GrantTrustDomain string `json:"grant_trust_domain"`
	seed
}

// offline is an opened offline folder.
type offline struct {
	dir                string
	identityTD, grants spiffeid.TrustDomain
	identity, grant    *authority
	seed               seed
}

func openOffline(dir string) (*offline, error) {
	text, err := readFile(filepath.Join(dir, seedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s is not the folder of a certificate authority; `ca init` makes one: %w", dir, err)
	}
	if err != nil {
		return nil, err
	}
	var s offlineSeed
	if err := decodeJSON(text, &s); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, filepath.Join(dir, seedFile), err)
	}
	o := &offline{dir: dir, seed: s.seed}
	if o.identityTD, err = parseTrustDomain(s.TrustDomain); err != nil {
		return nil, wrapPath(seedFile, err)
	}
	if o.grants, err = parseTrustDomain(s.GrantTrustDomain); err != nil {
		return nil, wrapPath(seedFile, err)
	}
	if o.identity, err = loadAuthority(dir, identityRootName, o.identityTD); err != nil {
		return nil, err
	}
	if o.grant, err = loadAuthority(dir, grantsRootName, o.grants); err != nil {
		return nil, err
	}
	return o, nil
}

// loadAuthority reads NAME.crt and NAME.key.
func loadAuthority(dir, name string, td spiffeid.TrustDomain) (*authority, error) {
	cert, err := readCertificate(filepath.Join(dir, name+".crt"))
	if err != nil {
		return nil, err
	}
	if err := checkRoot(cert, td); err != nil {
		return nil, fmt.Errorf("%w: %s.crt: %w", ErrInvalid, name, err)
	}
	key, err := readKey(filepath.Join(dir, name+".key"))
	if err != nil {
		return nil, err
	}
	a, err := newAuthority(cert, key)
	if err != nil {
		return nil, wrapPath(name, err)
	}
	return a, nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := DecodeCertificates(text)
	if err != nil {
		return nil, wrapPath(path, err)
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("%w: %s holds %d certificates where one belongs", ErrInvalid, path, len(certs))
	}
	return certs[0], nil
}

func readKey(path string) (crypto.Signer, error) {
	text, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	key, err := DecodeKey(text)
	if err != nil {
		return nil, wrapPath(path, err)
	}
	return key, nil
}

// journalLine is one line of issued.jsonl: what a root was asked to sign.
type journalLine struct {
	Time   time.Time `json:"time"`
	What   string    `json:"what"`
	Record Record    `json:"record"`
}

// sign signs with a root what its journal holds: the offline counterpart of a
// commit. The line is on disk before the key is used, so that whoever audits
// the folder finds every certificate that the roots ever signed.
func (o *offline) sign(a *authority, template *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	ticket, err := a.prepare(template)
	if err != nil {
		return nil, err
	}
	what := template.Subject.CommonName
	if what == "" && len(template.URIs) == 1 {
		what = template.URIs[0].String()
	}
	if err := o.journal(journalLine{Time: now.UTC(), What: what, Record: ticket.Record()}); err != nil {
		return nil, err
	}
	chain, err := ticket.Sign(ticket.Record())
	if err != nil {
		return nil, err
	}
	return chain[0], nil
}

// signStatement signs text that is no certificate with the identity root.
func (o *offline) signStatement(what string, text []byte, now time.Time) ([]byte, error) {
	hash := tbsHash(sha256.Sum256(text))
	line := journalLine{Time: now.UTC(), What: what, Record: Record{TBSHash: hash.String(), Issuer: o.identity.id}}
	if err := o.journal(line); err != nil {
		return nil, err
	}
	gate := o.identity.cas.gate
	defer gate.commit(hash)()
	return gate.Sign(nil, hash[:], crypto.SHA256)
}

func (o *offline) journal(line journalLine) error {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("ca: journal: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(o.dir, journalFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE, secretMode)
	if err != nil {
		return fmt.Errorf("ca: journal: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("ca: journal: %w", err)
	}
	return nil
}

// InitOptions says what `ca init` makes.
type InitOptions struct {
	TrustDomain      spiffeid.TrustDomain // of identities
	GrantTrustDomain spiffeid.TrustDomain // of grants; zero means "grants." + TrustDomain
	Admins           []string             // names of the first admins, at least MinAdmins
	Seed             *Seed                // nil: no one and nothing besides the admins
	Dev              bool                 // mark the roots as made for trying things out
	Now              time.Time            // zero means the clock's
}

// Init makes the offline folder of a new cluster: the two roots, the first
// admins and their identities, and what `ca sign-node` needs. The folder must
// not exist: an existing root is never replaced. It appears whole or not at all.
func Init(dir string, o InitOptions) (err error) {
	if o.GrantTrustDomain.IsZero() && !o.TrustDomain.IsZero() {
		if o.GrantTrustDomain, err = parseTrustDomain("grants." + o.TrustDomain.Name()); err != nil {
			return err
		}
	}
	if err := checkTrustDomains(o.TrustDomain, o.GrantTrustDomain); err != nil {
		return err
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	s, err := newSeed(o.TrustDomain, o.GrantTrustDomain, o.Admins, o.Seed)
	if err != nil {
		return err
	}
	dir = filepath.Clean(dir)
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%w: %s; roots are never overwritten", ErrExists, dir)
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("ca: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".ca-init-*") // mode 0700
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := fillOffline(tmp, o, s); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}

func fillOffline(dir string, o InitOptions, s seed) error {
	for _, r := range []struct {
		name string
		td   spiffeid.TrustDomain
		what string
	}{
		{identityRootName, o.TrustDomain, "identity root"},
		{grantsRootName, o.GrantTrustDomain, "grants root"},
	} {
		if err := makeRoot(dir, r.name, r.td, r.what, o); err != nil {
			return err
		}
	}
	text, err := encodeJSON(offlineSeed{o.TrustDomain.Name(), o.GrantTrustDomain.Name(), s})
	if err != nil {
		return err
	}
	if err := createFile(filepath.Join(dir, seedFile), text, publicMode); err != nil {
		return err
	}
	off, err := openOffline(dir)
	if err != nil {
		return err
	}
	for _, name := range o.Admins {
		key, err := GenerateKey()
		if err != nil {
			return err
		}
		spec := IdentitySpec{ID: personID(o.TrustDomain, name), PublicKey: key.Public(), Now: o.Now, TTL: MaxIdentityTTL, Skew: offlineBackdate}
		chain, err := off.issue(spec)
		if err != nil {
			return err
		}
		folder := Folder{
			Chain: chain, Key: key,
			IdentityRoots: []*x509.Certificate{off.identity.cert},
			GrantRoots:    []*x509.Certificate{off.grant.cert},
		}
		if err := folder.Write(filepath.Join(dir, PersonsDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// makeRoot makes a root's key and its certificate. The curve is P-256 for the
// roots too: a chain is as strong as its weakest key, the issuers have P-256,
// and every new connection pays for verifying the root's signature.
func makeRoot(dir, name string, td spiffeid.TrustDomain, what string, o InitOptions) error {
	start := o.Now.UTC().Truncate(time.Second)
	v := validity{start.Add(-offlineBackdate), start.Add(rootLife)}
	template := rootProfile(fmt.Sprintf("%s %s", td.Name(), what), td.ID().URL(), v)
	if o.Dev {
		template.Subject.OrganizationalUnit = []string{devUnit}
	}
	soft := &softcas.SoftCAS{}
	resp, err := soft.CreateCertificateAuthority(&apiv1.CreateCertificateAuthorityRequest{
		Name:     name,
		Type:     apiv1.RootCA,
		Template: template,
		Lifetime: v.life(),
	})
	if err != nil {
		return fmt.Errorf("ca: make the %s: %w", what, err)
	}
	key, err := EncodeKey(resp.Signer)
	if err != nil {
		return err
	}
	if err := createFile(filepath.Join(dir, name+".key"), key, secretMode); err != nil {
		return err
	}
	return createFile(filepath.Join(dir, name+".crt"), EncodeCertificates(resp.Certificate), publicMode)
}

func isDev(root *x509.Certificate) bool {
	return slices.Contains(root.Subject.OrganizationalUnit, devUnit)
}

// IssueOffline signs an identity with the offline identity root: for the persons
// of a new cluster, before there is a cluster that could commit it. dir is the
// offline folder, whose journal gets a line first. The returned chain is the
// identity alone: the root signed it, and verifiers have the root.
func IssueOffline(dir string, spec IdentitySpec) ([]*x509.Certificate, error) {
	o, err := openOffline(dir)
	if err != nil {
		return nil, err
	}
	return o.issue(spec)
}

func (o *offline) issue(spec IdentitySpec) ([]*x509.Certificate, error) {
	template, err := spec.template(o.identity.cert, o.identityTD)
	if err != nil {
		return nil, err
	}
	cert, err := o.sign(o.identity, template, spec.Now)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{cert}, nil
}
