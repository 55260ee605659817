package ca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.step.sm/crypto/x509util"
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
	dir                    string
	identityTD, grants     spiffeid.TrustDomain
	identities, grantRoots roots    // all that there were
	documents              []string // roots documents, a line each
	seed                   seed

	open        OpenKMS
	opened      map[string]KMS        // by URI
	authorities map[string]*authority // those with their key in a KMS, by id
}

// openOffline reads an offline folder. Keys in a KMS are looked for when they have
// to sign; close lets go of them.
func openOffline(dir string, open OpenKMS) (*offline, error) {
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
	o := &offline{dir: dir, seed: s.seed, open: open}
	if o.identityTD, err = parseTrustDomain(s.TrustDomain); err != nil {
		return nil, wrapPath(seedFile, err)
	}
	if o.grants, err = parseTrustDomain(s.GrantTrustDomain); err != nil {
		return nil, wrapPath(seedFile, err)
	}
	documents, err := loadDocuments(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range documents {
		line, err := d.Encode()
		if err != nil {
			return nil, err
		}
		o.documents = append(o.documents, string(line))
	}
	if o.identities, err = loadRoots(dir, identityRootName, o.identityTD, documents); err != nil {
		return nil, err
	}
	if o.grantRoots, err = loadRoots(dir, grantsRootName, o.grants, documents); err != nil {
		return nil, err
	}
	return o, nil
}

// loadAuthority reads NAME.key, that of a root.
func loadAuthority(dir, name string, cert *x509.Certificate) (*authority, error) {
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

// InitOptions says what `ca init` makes.
type InitOptions struct {
	TrustDomain      spiffeid.TrustDomain // of identities
	GrantTrustDomain spiffeid.TrustDomain // of grants; zero means "grants." + TrustDomain
	Admins           []string             // names of the first admins, at least MinAdmins
	Seed             *Seed                // nil: no one and nothing besides the admins
	Dev              bool                 // mark the roots as made for trying things out
	Open             OpenKMS              // for keys in a KMS
	Keys             RootKeys             // where the roots' keys are
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
	if err := o.Keys.check(true, true); err != nil {
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
		return o.Keys.leftInKMS(err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}

func fillOffline(dir string, o InitOptions, s seed) error {
	fresh := &offline{dir: dir, open: o.Open}
	defer fresh.close()
	for _, r := range []struct {
		name string
		td   spiffeid.TrustDomain
		what string
	}{
		{identityRootName, o.TrustDomain, "identity root"},
		{grantsRootName, o.GrantTrustDomain, "grants root"},
	} {
		if err := fresh.makeRoot(r.name, fmt.Sprintf("%s %s", r.td.Name(), r.what), r.td, rootOptions{o.Now, o.Dev, r.name, o.Keys}); err != nil {
			return err
		}
	}
	fresh.close()
	text, err := encodeJSON(offlineSeed{o.TrustDomain.Name(), o.GrantTrustDomain.Name(), s})
	if err != nil {
		return err
	}
	if err := createFile(filepath.Join(dir, seedFile), text, publicMode); err != nil {
		return err
	}
	off, err := openOffline(dir, o.Open)
	if err != nil {
		return err
	}
	defer off.close()
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
			IdentityRoots: off.identities.set.Roots(),
			GrantRoots:    off.grantRoots.set.Roots(),
		}
		if err := folder.Write(filepath.Join(dir, PersonsDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// rootOptions say what is special about a root.
type rootOptions struct {
	now  time.Time
	dev  bool
	root string // which of the two it is, for the name of its key
	keys RootKeys
}

// makeRoot makes a root's key and its certificate. The curve is P-256 for the
// roots too: a chain is as strong as its weakest key, the issuers have P-256,
// and every new connection pays for verifying the root's signature.
func (o *offline) makeRoot(file, subject string, td spiffeid.TrustDomain, opts rootOptions) error {
	start := opts.now.UTC().Truncate(time.Second)
	template := rootProfile(subject, td.ID().URL(), validity{start.Add(-offlineBackdate), start.Add(rootLife)})
	if opts.dev {
		template.Subject.OrganizationalUnit = []string{devUnit}
	}
	key, keep, err := o.rootKey(file, opts)
	if err != nil {
		return fmt.Errorf("the key of the %s: %w", subject, err)
	}
	cert, err := x509util.CreateCertificate(template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("ca: make the %s: %w", subject, err)
	}
	if err := keep(); err != nil {
		return err
	}
	if err := createFile(filepath.Join(o.dir, file+".crt"), EncodeCertificates(cert), publicMode); err != nil {
		return err
	}
	h, err := loadHeld(o.dir, file, cert)
	if opts.root == grantsRootName {
		o.grantRoots.held = append(o.grantRoots.held, h)
	} else {
		o.identities.held = append(o.identities.held, h)
	}
	return err
}

// rootKey makes a new root's key; keep writes down in the folder what is to be
// known of it there: the key, or where it is.
func (o *offline) rootKey(file string, opts rootOptions) (key crypto.Signer, keep func() error, err error) {
	if opts.keys.KMS != "" {
		where, key, err := o.newKey(opts.keys, opts.root)
		return key, func() error { return where.write(o.dir, file) }, err
	}
	if key, err = GenerateKey(); err != nil {
		return nil, nil, err
	}
	text, err := EncodeKey(key)
	return key, func() error { return createFile(filepath.Join(o.dir, file+".key"), text, secretMode) }, err
}

func isDev(root *x509.Certificate) bool {
	return slices.Contains(root.Subject.OrganizationalUnit, devUnit)
}

// IssueOffline signs an identity with the offline identity root: for the persons
// of a new cluster, before there is a cluster that could commit it. dir is the
// offline folder, whose journal gets a line first. The returned chain is the
// identity alone: the root signed it, and verifiers have the root.
func IssueOffline(dir string, spec IdentitySpec) ([]*x509.Certificate, error) {
	return IssueWithKMS(dir, spec, nil)
}

// IssueWithKMS is IssueOffline for a folder whose roots may have their keys in a
// KMS.
func IssueWithKMS(dir string, spec IdentitySpec, open OpenKMS) ([]*x509.Certificate, error) {
	o, err := openOffline(dir, open)
	if err != nil {
		return nil, err
	}
	defer o.close()
	return o.issue(spec)
}

func (o *offline) issue(spec IdentitySpec) ([]*x509.Certificate, error) {
	root, err := o.signing(o.identities)
	if err != nil {
		return nil, err
	}
	template, err := spec.template(root.cert, o.identityTD)
	if err != nil {
		return nil, err
	}
	cert, err := o.sign(root, template, spec.Now)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{cert}, nil
}
