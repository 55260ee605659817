package ca

import (
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// keyFiles are the keys that a node has had for one use: NAME.key and, made
// later, NAME.XXXXXXXX.key. None is ever replaced, so that a certificate finds its
// key as long as it lives, whatever was signed since.
type keyFiles struct{ dir, name string } // name is "NAME.key"

// first reads the first of them, which it makes when there is none.
func (f keyFiles) first() (crypto.Signer, error) {
	if err := keepOrMake(f.dir, f.name, newKeyText); err != nil {
		return nil, err
	}
	return f.read(f.name)
}

// add makes a further one.
func (f keyFiles) add() (crypto.Signer, error) {
	if _, err := f.read(f.name); errors.Is(err, fs.ErrNotExist) {
		return f.first()
	}
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	text, err := newKeyText()
	if err != nil {
		return nil, err
	}
	name := strings.TrimSuffix(f.name, "key") + hex.EncodeToString(b) + ".key"
	if err := createFile(filepath.Join(f.dir, name), text, secretMode); err != nil {
		return nil, err
	}
	return f.read(name)
}

// of finds the private key of a public one.
func (f keyFiles) of(pub crypto.PublicKey) (crypto.Signer, error) {
	later, err := filepath.Glob(filepath.Join(f.dir, strings.TrimSuffix(f.name, "key")+"*.key"))
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	slices.Sort(later)
	var missing error
	for _, path := range append([]string{filepath.Join(f.dir, f.name)}, later...) {
		key, err := f.read(filepath.Base(path))
		if errors.Is(err, fs.ErrNotExist) {
			missing = err
			continue
		}
		if err != nil {
			return nil, err
		}
		if samePublicKey(pub, key.Public()) {
			return key, nil
		}
	}
	if missing != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, missing)
	}
	return nil, fmt.Errorf("%w: %s in %s does not belong to the certificate", ErrKey, f.name, f.dir)
}

func (f keyFiles) read(name string) (crypto.Signer, error) {
	key, err := readKey(filepath.Join(f.dir, name))
	if err != nil {
		return nil, err
	}
	if err := CheckPublicKey(key.Public()); err != nil {
		return nil, wrapPath(name, err)
	}
	return key, nil
}

func newKeyText() ([]byte, error) {
	key, err := GenerateKey()
	if err != nil {
		return nil, err
	}
	return EncodeKey(key)
}
