package ca

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/hallpass/hallpass/emergency"
)

// sealing is the group that an emergency key's secret is shared over. It is not
// P-256, on which the library is not constant in time.
func sealing() group.Group { return group.Ristretto255 }

// shareJSON is what a custodian's share decrypts to.
type shareJSON struct {
	Issuer string `json:"issuer"` // id: shares of two kits are not taken for one another
	ID     []byte `json:"id"`
	Value  []byte `json:"value"`
}

// seal encrypts an issuer's key so that Threshold custodians open it together: a
// random scalar is shared among them (Shamir, with Feldman's commitments, by which
// a share that is wrong is told from the others), each share is encrypted to its
// custodian, and the key is encrypted with what follows from the scalar.
func (k *kitJSON) seal(key *ecdsa.PrivateKey, cert *x509.Certificate, custodians []Custodian) error {
	secret := sealing().RandomNonZeroScalar(rand.Reader)
	// The library counts how many learn nothing: one less than open it.
	split := secretsharing.New(rand.Reader, uint(k.Threshold-1), secret)
	for _, c := range split.CommitSecret() {
		b, err := c.MarshalBinaryCompress()
		if err != nil {
			return fmt.Errorf("ca: seal: %w", err)
		}
		k.Commitments = append(k.Commitments, hex.EncodeToString(b))
	}
	for i, share := range split.Share(uint(len(custodians))) {
		text, err := encryptShare(share, emergency.ID(cert), custodians[i])
		if err != nil {
			return err
		}
		k.Custodians = append(k.Custodians, custodianJSON{custodians[i].Name, custodians[i].Recipient, text})
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("ca: seal: %w", err)
	}
	sealer, err := sealer(secret, cert)
	if err != nil {
		return err
	}
	// The nonce is random, and the key that it is used with is used once.
	k.SealedKey = sealer.Seal(nil, nil, der, []byte(emergency.ID(cert))) //nolint:gosec // an AEAD of cipher.NewGCMWithRandomNonce takes none
	return nil
}

func encryptShare(share secretsharing.Share, issuer string, to Custodian) (string, error) {
	id, err1 := share.ID.MarshalBinary()
	value, err2 := share.Value.MarshalBinary()
	plain, err3 := json.Marshal(shareJSON{issuer, id, value})
	recipient, err4 := parseRecipient(to)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return "", fmt.Errorf("ca: seal: %w", err)
	}
	var buf bytes.Buffer
	armored := armor.NewWriter(&buf)
	w, err := age.Encrypt(armored, recipient)
	if err != nil {
		return "", fmt.Errorf("ca: seal: %w", err)
	}
	_, err = w.Write(plain)
	if err := errors.Join(err, w.Close(), armored.Close()); err != nil {
		return "", fmt.Errorf("ca: seal: %w", err)
	}
	return buf.String(), nil
}

// sealer is AES-256-GCM under a key that follows from the secret and the issuer.
func sealer(secret group.Scalar, cert *x509.Certificate) (cipher.AEAD, error) {
	raw, err := secret.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("ca: seal: %w", err)
	}
	key, err := hkdf.Key(sha256.New, raw, []byte(emergency.ID(cert)), "hallpass emergency issuer key v1", 32)
	if err != nil {
		return nil, fmt.Errorf("ca: seal: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("ca: seal: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// ErrCustodians is returned when too few custodians are there, or a share is not
// what it should be.
var ErrCustodians = errors.New("ca: the custodians' keys do not open this kit")

// open returns the issuer's key and whose keys opened it, sorted.
func (k kitJSON) open(cert *x509.Certificate, keys []age.Identity) (crypto.Signer, []string, error) {
	commitments, err := k.commitments()
	if err != nil {
		return nil, nil, err
	}
	var names []string
	var shares []secretsharing.Share
	for _, c := range k.Custodians {
		share, mine, err := c.share(cert, keys)
		switch {
		case err != nil:
			return nil, nil, err
		case !mine:
			continue
		case !secretsharing.Verify(uint(k.Threshold-1), share, commitments):
			// Without this a wrong share opens nothing, and nobody could say whose it is.
			return nil, nil, fmt.Errorf("%w: the share of %s is not one of this kit's secret", ErrCustodians, c.Name)
		case slices.ContainsFunc(shares, func(s secretsharing.Share) bool { return s.ID.IsEqual(share.ID) }):
			return nil, nil, fmt.Errorf("%w: %s has the share of another custodian", ErrCustodians, c.Name)
		}
		names, shares = append(names, c.Name), append(shares, share)
	}
	if len(shares) < k.Threshold {
		return nil, nil, fmt.Errorf("%w: it takes %d of %d together (%s), and there are keys of %s", ErrCustodians,
			k.Threshold, len(k.Custodians), strings.Join(k.names(), ", "), orNobody(names))
	}
	secret, err := secretsharing.Recover(uint(k.Threshold-1), shares)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCustodians, err)
	}
	sealer, err := sealer(secret, cert)
	if err != nil {
		return nil, nil, err
	}
	der, err := sealer.Open(nil, nil, k.SealedKey, []byte(emergency.ID(cert)))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the sealed key is damaged, or of another issuer", ErrCustodians)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("%w: a %T does not sign", ErrKey, key)
	}
	slices.Sort(names)
	return signer, names, nil
}

func orNobody(names []string) string {
	if len(names) == 0 {
		return "none of them"
	}
	return strings.Join(names, " and ") + " only"
}

func (k kitJSON) names() (names []string) {
	for _, c := range k.Custodians {
		names = append(names, c.Name)
	}
	return names
}

func (k kitJSON) commitments() (all secretsharing.SecretCommitment, err error) {
	if len(k.Commitments) != k.Threshold {
		return nil, fmt.Errorf("%w: %d commitments for a threshold of %d", ErrInvalid, len(k.Commitments), k.Threshold)
	}
	for _, text := range k.Commitments {
		b, err := hex.DecodeString(text)
		e := sealing().NewElement()
		if err = errors.Join(err, e.UnmarshalBinary(b)); err != nil {
			return nil, fmt.Errorf("%w: a commitment: %w", ErrInvalid, err)
		}
		all = append(all, e)
	}
	return all, nil
}

// share decrypts a custodian's share, if one of the keys is theirs.
func (c custodianJSON) share(cert *x509.Certificate, keys []age.Identity) (share secretsharing.Share, mine bool, err error) {
	if len(keys) == 0 {
		return share, false, nil
	}
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(c.Share)), keys...)
	if _, none := errors.AsType[*age.NoIdentityMatchError](err); none {
		return share, false, nil
	}
	bad := func(err error) (secretsharing.Share, bool, error) {
		return share, false, fmt.Errorf("%w: the share of %s: %w", ErrCustodians, c.Name, err)
	}
	if err != nil {
		return bad(err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return bad(err)
	}
	var s shareJSON
	if err := decodeJSON(plain, &s); err != nil {
		return bad(err)
	}
	if s.Issuer != emergency.ID(cert) {
		return bad(errors.New("it is of another kit"))
	}
	share.ID, share.Value = sealing().NewScalar(), sealing().NewScalar()
	if err := errors.Join(share.ID.UnmarshalBinary(s.ID), share.Value.UnmarshalBinary(s.Value)); err != nil {
		return bad(err)
	}
	return share, true, nil
}
