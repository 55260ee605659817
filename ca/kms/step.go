//go:build kms

package kms

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"

	"go.step.sm/crypto/kms"
	"go.step.sm/crypto/kms/apiv1"
	_ "go.step.sm/crypto/kms/awskms"   // awskms:
	_ "go.step.sm/crypto/kms/azurekms" // azurekms:
	_ "go.step.sm/crypto/kms/cloudkms" // cloudkms:
	_ "go.step.sm/crypto/kms/pkcs11"   // pkcs11:, with cgo
	_ "go.step.sm/crypto/kms/tpmkms"   // tpmkms:

	"github.com/hallpass/hallpass/ca"
)

// Built says whether this binary opens KMS.
const Built = true

// Open opens the KMS that a URI names. The URI of a key in it may be of another
// kind than that of the KMS: see each package of go.step.sm/crypto/kms.
func Open(uri string) (ca.KMS, error) {
	a, err := resolve(uri)
	if err != nil {
		return nil, err
	}
	typ, err := apiv1.TypeOf(a.uri)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrURI, Redact(uri), err)
	}
	if typ == apiv1.SoftKMS || typ == apiv1.DefaultKMS {
		return nil, fmt.Errorf("%w: %s: its keys are files; a root's key is either in a KMS or in the folder itself", ErrURI, Redact(uri))
	}
	k, err := kms.New(context.Background(), apiv1.Options{URI: a.uri, Pin: a.pin})
	if err != nil {
		return nil, a.said("open "+Redact(uri), err)
	}
	return opened{k, a}, nil
}

// said is an error of a library as it may be read by others.
func (a address) said(what string, err error) error {
	err = fmt.Errorf("kms: %s: %w", what, masked{err, a.pin})
	if strings.Contains(err.Error(), "CKR_PIN_") {
		return fmt.Errorf("%w; tokens lock after a few: %w", ca.ErrPINRefused, err)
	}
	return err
}

// opened is a KMS of go.step.sm/crypto.
type opened struct {
	kms apiv1.KeyManager
	at  address
}

func (o opened) CreateKey(name string) (string, error) {
	if err := Check(name); err != nil {
		return "", err
	}
	// Not every KMS refuses a name that is taken: some make a further version of the
	// key, or another key, under it.
	if _, err := o.kms.GetPublicKey(&apiv1.GetPublicKeyRequest{Name: name}); err == nil {
		return "", fmt.Errorf("%w: a key %s in the KMS", ca.ErrExists, Redact(name))
	}
	made, err := o.kms.CreateKey(&apiv1.CreateKeyRequest{Name: name, SignatureAlgorithm: apiv1.ECDSAWithSHA256})
	if errors.Is(err, apiv1.AlreadyExistsError{}) {
		return "", fmt.Errorf("%w: a key %s in the KMS", ca.ErrExists, Redact(name))
	}
	if err != nil {
		return "", o.at.said("make the key "+Redact(name), err)
	}
	if made.CreateSignerRequest.SigningKey != "" {
		return made.CreateSignerRequest.SigningKey, nil
	}
	return made.Name, nil
}

func (o opened) Signer(name string) (crypto.Signer, error) {
	if err := Check(name); err != nil {
		return nil, err
	}
	key, err := o.kms.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: name})
	if err != nil {
		return nil, o.at.said("the key "+Redact(name), err)
	}
	return key, nil
}

func (o opened) Close() error { return o.kms.Close() }
