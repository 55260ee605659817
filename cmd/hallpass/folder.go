package main

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hallpass/hallpass/ca"
)

// folder is a directory in the layout that every tool of ours reads and curl can use: cert.pem
// (the chain), key.pem, identity-bundle.pem and grants-bundle.pem.
type folder string

func (f folder) file(name string) string { return filepath.Join(string(f), name) }

// key returns the folder's private key, and makes folder and key where there are none. A key is
// never overwritten: certificates for it may be in use.
func (f folder) key() (crypto.Signer, error) {
	if err := f.own(); err != nil {
		return nil, err
	}
	text, err := f.readKey()
	if errors.Is(err, fs.ErrNotExist) {
		return f.newKey()
	}
	if err != nil {
		return nil, err
	}
	key, err := ca.DecodeKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.file(ca.FolderKey), err)
	}
	return key, nil
}

// own makes the folder where there is none, and refuses one in which everybody may make files:
// in /tmp somebody could have put a key of theirs, for us to have certified.
func (f folder) own() error {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	info, err := os.Stat(string(f))
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("%s has mode %04o: everybody may put a key there; choose another --out, or chmod o-w it", string(f), info.Mode().Perm())
	}
	return nil
}

// readKey reads a key that its owner alone may read. The open file is looked at, not the path: the
// path may be swapped in between.
func (f folder) readKey() (text []byte, err error) {
	file, err := os.Open(f.file(ca.FolderKey))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", f.file(ca.FolderKey))
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %04o: others may have copied it; make a new one in another --out, or chmod 600 it if you are sure that nobody did",
			f.file(ca.FolderKey), info.Mode().Perm())
	}
	return io.ReadAll(io.LimitReader(file, maxInspect))
}

func (f folder) newKey() (crypto.Signer, error) {
	key, err := ca.GenerateKey()
	if err != nil {
		return nil, err
	}
	text, err := ca.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(f.file(ca.FolderKey), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(text)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return nil, err
	}
	return key, nil
}

// csr returns a PEM certificate request for the folder's key. It carries the key and nothing
// else: what a certificate says is the cluster's to decide.
func (f folder) csr() (string, error) {
	key, err := f.key()
	if err != nil {
		return "", err
	}
	text, err := ca.MakeCSR(key, "")
	return string(text), err
}

// claim refuses a folder that holds a certificate of another name, so that a wrong --out cannot
// turn an identity into a grant.
func (f folder) claim(spiffeID string) error {
	cert, err := readCertificate(f.file(ca.FolderChain))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if have := spiffeOf(cert); have != spiffeID {
		return fmt.Errorf("%s is the folder of %s: choose another --out", string(f), have)
	}
	return nil
}

// write puts a public file in place in one step, so that a reader sees the old or the new one.
func (f folder) write(name, content string) error {
	tmp, err := os.CreateTemp(string(f), "."+name+"-")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(content)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), f.file(name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
