package ca

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
)

// The files of an identity folder, as the CLI and the proxy read it.
const (
	FolderChain          = "cert.pem"            // the certificate and its issuers
	FolderKey            = "key.pem"             // mode 0600
	FolderIdentityBundle = "identity-bundle.pem" // roots of the identity domain
	FolderGrantsBundle   = "grants-bundle.pem"   // roots of the grants domain
)

// Folder is an identity on disk: a certificate chain with its key, and the roots
// that its holder trusts. The two bundles are two files and never one list: in a
// shared pool a grant's root would vouch for identities.
type Folder struct {
	Chain         []*x509.Certificate // leaf first
	Key           crypto.Signer
	IdentityRoots []*x509.Certificate
	GrantRoots    []*x509.Certificate
}

// Write writes the folder, making dir with mode 0700 if need be. Each file is
// replaced whole; the key is written before the certificate.
func (f Folder) Write(dir string) error {
	if len(f.Chain) == 0 || !samePublicKey(f.Chain[0].PublicKey, f.Key.Public()) {
		return fmt.Errorf("%w: the key does not belong to the certificate", ErrKey)
	}
	key, err := EncodeKey(f.Key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	if err := writeFile(filepath.Join(dir, FolderKey), key, secretMode); err != nil {
		return err
	}
	for name, certs := range map[string][]*x509.Certificate{
		FolderChain:          f.Chain,
		FolderIdentityBundle: f.IdentityRoots,
		FolderGrantsBundle:   f.GrantRoots,
	} {
		if err := writeFile(filepath.Join(dir, name), EncodeCertificates(certs...), publicMode); err != nil {
			return err
		}
	}
	return nil
}
