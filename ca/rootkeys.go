package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// KMS holds keys of roots that never leave it: a PKCS#11 token, a key service of
// a cloud. Names are its own, and so is what stands between them and others.
type KMS interface {
	// CreateKey MUST make a key that signs, ECDSA on P-256, and return the name
	// that Signer knows it by. It MUST leave a key alone that is there already,
	// and then return an error that wraps ErrExists.
	CreateKey(name string) (string, error)
	// Signer MUST return the key of exactly that name.
	Signer(name string) (crypto.Signer, error)
	Close() error
}

// OpenKMS opens the KMS that a URI names. Errors MUST NOT repeat a secret.
type OpenKMS func(uri string) (KMS, error)

var (
	// ErrNoKMS is returned when a root's key is in a KMS, and whoever calls brought
	// no way to open one.
	ErrNoKMS = errors.New("ca: no KMS can be opened here")

	// ErrPINRefused is returned when a KMS was opened with a PIN that it does not
	// take. It MUST NOT be tried again by itself: tokens count, and lock.
	ErrPINRefused = errors.New("ca: the KMS refused its PIN")

	// ErrKeyOnDisk is returned when a root's key lies in the folder, where only a KMS
	// may have it.
	ErrKeyOnDisk = errors.New("ca: the root's key is on the disk")
)

// RootKeys says where the keys of new roots are made. The zero RootKeys is in the
// folder.
type RootKeys struct {
	KMS      string // URI of the KMS; "" for the folder
	Identity string // name in it of the key of the identities' root
	Grants   string // likewise of the grants' root
	Existing bool   // the keys are there: take them, and make none
}

func (k RootKeys) name(root string) string {
	if root == grantsRootName {
		return k.Grants
	}
	return k.Identity
}

// check wants the names of the keys that are to be made.
func (k RootKeys) check(identity, grants bool) error {
	named := (!identity || k.Identity != "") && (!grants || k.Grants != "")
	switch {
	case k.KMS == "" && (k.Identity != "" || k.Grants != "" || k.Existing):
		return fmt.Errorf("%w: keys are named, and no KMS that they are in", ErrInvalid)
	case k.KMS != "" && !named:
		return fmt.Errorf("%w: a root's key in a KMS has a name there, and none is given", ErrInvalid)
	case k.KMS != "" && identity && grants && k.Identity == k.Grants:
		// One key under both roots would let a grant issuer's chain end in the
		// identity domain.
		return fmt.Errorf("%w: the two roots have two keys, and both are named %s", ErrInvalid, k.Identity)
	}
	return nil
}

// kmsKey is NAME.kms: where the key of a root is that is not in NAME.key.
type kmsKey struct {
	KMS string `json:"kms"`
	Key string `json:"key"`
}

func (k kmsKey) write(dir, name string) error {
	text, err := encodeJSON(k)
	if err != nil {
		return err
	}
	return createFile(filepath.Join(dir, name+".kms"), text, secretMode)
}

// readKMSKey reads NAME.kms. One that others may write is refused: a PKCS#11 URI
// names a library that is loaded into this process.
func readKMSKey(dir, name string) (*kmsKey, error) {
	path := filepath.Join(dir, name+".kms")
	text, err := readChecked(path, publicMode)
	if err != nil {
		return nil, err
	}
	k := new(kmsKey)
	if err := decodeJSON(text, k); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	if k.KMS == "" || k.Key == "" {
		return nil, fmt.Errorf("%w: %s: \"kms\" or \"key\" is missing", ErrInvalid, path)
	}
	if _, err := os.Lstat(filepath.Join(dir, name+".key")); err == nil {
		// Which of two keys signs must not depend on who put a file there.
		return nil, fmt.Errorf("%w: %s.key and %s.kms: a root has one key", ErrInvalid, name, name)
	}
	return k, nil
}

// kmsOf opens a KMS, once for as long as the folder is open.
func (o *offline) kmsOf(uri string) (KMS, error) {
	if k := o.opened[uri]; k != nil {
		return k, nil
	}
	if o.open == nil {
		return nil, ErrNoKMS
	}
	k, err := o.open(uri)
	if err != nil {
		return nil, err
	}
	if o.opened == nil {
		o.opened = make(map[string]KMS)
	}
	o.opened[uri] = k
	return k, nil
}

// close lets go of what KMS were opened. What they signed is signed.
func (o *offline) close() {
	for _, k := range o.opened {
		_ = k.Close()
	}
	o.opened = nil
}

// authority is a root with its key, from wherever that is.
func (o *offline) authority(h heldRoot) (*authority, error) {
	id := hexSHA256(h.cert.Raw)
	switch known := o.authorities[id]; {
	case h.authority != nil:
		return h.authority, nil
	case known != nil:
		return known, nil
	case h.kms == nil:
		return nil, fmt.Errorf("%w: that of %q", ErrRootKey, h.cert.Subject.CommonName)
	}
	k, err := o.kmsOf(h.kms.KMS)
	if err != nil {
		return nil, fmt.Errorf("the key of %q is in a KMS: %w", h.cert.Subject.CommonName, err)
	}
	key, err := k.Signer(h.kms.Key)
	if err != nil {
		return nil, fmt.Errorf("the key of %q: %w", h.cert.Subject.CommonName, err)
	}
	a, err := newAuthority(h.cert, key)
	if err != nil {
		return nil, err
	}
	if o.authorities == nil {
		o.authorities = make(map[string]*authority)
	}
	o.authorities[id] = a
	return a, nil
}

// signing is the newest root of r that is in force.
func (o *offline) signing(r roots) (*authority, error) {
	inForce := r.set.Roots()
	newest := inForce[len(inForce)-1]
	for _, h := range r.held {
		if h.cert.Equal(newest) {
			return o.authority(h)
		}
	}
	return nil, fmt.Errorf("%w: that of %q", ErrRootKey, newest.Subject.CommonName)
}

// life is how long issuers live unless somebody says otherwise.
func (o *offline) life() time.Duration {
	if o.grantRoots.inKMS() && o.identities.inKMS() {
		return KMSIssuerLife
	}
	return IssuerLife
}

// newKey makes, or finds, the key of a new root in a KMS.
func (o *offline) newKey(keys RootKeys, root string) (*kmsKey, crypto.Signer, error) {
	k, err := o.kmsOf(keys.KMS)
	if err != nil {
		return nil, nil, err
	}
	name := keys.name(root)
	if !keys.Existing {
		made, err := k.CreateKey(name)
		if errors.Is(err, ErrExists) {
			// It may be another cluster's root: whoever has that one's folder would
			// be this cluster's certificate authority too.
			return nil, nil, fmt.Errorf("%w; name another, or say that the keys that are there are to be taken", err)
		}
		if err != nil {
			return nil, nil, err
		}
		name = made
	}
	key, err := k.Signer(name)
	if err != nil {
		return nil, nil, err
	}
	if pub, ok := key.Public().(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		return nil, nil, fmt.Errorf("%w: %s: a root's key is ECDSA on P-256, and this is a %T", ErrKey, name, key.Public())
	}
	for _, h := range slices.Concat(o.identities.held, o.grantRoots.held) {
		if samePublicKey(key.Public(), h.cert.PublicKey) {
			return nil, nil, fmt.Errorf("%w: %s is the key of %q: each root has its own", ErrKey, name, h.cert.Subject.CommonName)
		}
	}
	return &kmsKey{KMS: keys.KMS, Key: name}, key, nil
}

// leftInKMS says what became of keys when the command that made them failed.
func (k RootKeys) leftInKMS(err error) error {
	if err == nil || k.KMS == "" || k.Existing || errors.Is(err, ErrExists) {
		return err
	}
	return fmt.Errorf("%w; keys that it made are still in the KMS: delete them, or take them the next time", err)
}

// inKMS reports whether the newest root in force has its key in a KMS.
func (r roots) inKMS() bool {
	newest := r.set.Roots()
	return slices.ContainsFunc(r.held, func(h heldRoot) bool {
		return h.kms != nil && h.cert.Equal(newest[len(newest)-1])
	})
}

// loadHeld reads one root and where its key is; the key may be elsewhere.
func loadHeld(dir, file string, cert *x509.Certificate) (heldRoot, error) {
	h := heldRoot{cert: cert}
	var err error
	if h.kms, err = readKMSKey(dir, file); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return h, err
	}
	h.authority, err = loadAuthority(dir, file, cert)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	return h, err
}
