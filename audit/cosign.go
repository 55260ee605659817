package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// C2SP tlog-cosignature, the Ed25519 type. A node cosigns with the key that it
// signs checkpoints with: the message of a cosignature begins with a line that no
// origin can be, so that neither signature does for the other.
const (
	algorithmSignature   = 0x01
	algorithmCosignature = 0x04

	cosignatureLine   = "cosignature/v1"
	keyIDSize         = 4
	timestampSize     = 8
	cosignatureSize   = timestampSize + ed25519.SignatureSize
	signatureLineMark = "— "
)

// Cosigner cosigns with a node's key.
type Cosigner struct {
	signer note.Signer
	check  cosignVerifier
}

// NewCosigner pairs the signer of a node's checkpoints with its verifier key.
func NewCosigner(signer note.Signer, verifierKey string) (*Cosigner, error) {
	k, err := parseVerifierKey(verifierKey)
	if err != nil {
		return nil, err
	}
	if k.name != signer.Name() || k.algorithm != algorithmSignature || keyID(k.name, k.algorithm, k.key) != signer.KeyHash() {
		return nil, fmt.Errorf("%w: %q is not the verifier key of %s", ErrKey, verifierKey, signer.Name())
	}
	return &Cosigner{signer: signer, check: newCosignVerifier(k)}, nil
}

// Cosign states that, at the time given, c is the largest head that the signer has
// seen of its log, consistent with all that it had seen before. The caller MUST
// have made sure of that. It returns the signature's line, to be put behind those
// of the signed checkpoint.
func (s *Cosigner) Cosign(c Checkpoint, at time.Time) (string, error) {
	text, err := c.Text()
	if err != nil {
		return "", err
	}
	if !c.ownKey(s.check.name) {
		return "", fmt.Errorf("%w: key %q is not of the log %q", ErrCheckpoint, s.check.name, c.Origin)
	}
	if at.Unix() < 0 {
		return "", fmt.Errorf("%w: cosigned before 1970", ErrCheckpoint)
	}
	timestamp := binary.BigEndian.AppendUint64(nil, uint64(at.Unix()))
	signature, err := s.signer.Sign(cosignedMessage(uint64(at.Unix()), []byte(text)))
	if err != nil {
		return "", fmt.Errorf("cosign: %w", err)
	}
	signature = append(timestamp, signature...)
	if !s.check.Verify([]byte(text), signature) {
		return "", fmt.Errorf("%w: the signer of %s does not sign with its key", ErrKey, s.check.name)
	}
	raw := append(binary.BigEndian.AppendUint32(nil, s.check.id), signature...)
	return signatureLineMark + s.check.name + " " + base64.StdEncoding.EncodeToString(raw) + "\n", nil
}

func cosignedMessage(timestamp uint64, text []byte) []byte {
	return append([]byte(cosignatureLine+"\ntime "+strconv.FormatUint(timestamp, 10)+"\n"), text...)
}

func cosignerID(name string, public ed25519.PublicKey) uint32 {
	return keyID(name, algorithmCosignature, public)
}

func keyID(name string, algorithm byte, public ed25519.PublicKey) uint32 {
	sum := sha256.Sum256(slices.Concat([]byte(name), []byte{'\n', algorithm}, public))
	return binary.BigEndian.Uint32(sum[:])
}

// AddCosignatures puts cosignatures, each a line that [Cosigner.Cosign] returned,
// behind the signatures of a signed checkpoint. Each MUST be by one of the
// verifiers, over that very checkpoint, and no key may cosign twice. Errors wrap
// [ErrCheckpoint].
func AddCosignatures(signed []byte, verifiers note.Verifiers, lines ...string) ([]byte, error) {
	head, err := openCheckpoint(signed, verifiers)
	if err != nil {
		return nil, err
	}
	out := append(bytes.Clone(signed), strings.Join(lines, "")...)
	all, err := openCheckpoint(out, verifiers)
	if err != nil {
		return nil, err
	}
	if len(all.unknown) != len(head.unknown) || len(all.cosigners) != len(head.cosigners)+len(lines) {
		return nil, fmt.Errorf("%w: not one cosignature each, of the keys given", ErrCheckpoint)
	}
	return out, nil
}

// publicKey is a verifier key taken apart.
type publicKey struct {
	name      string
	algorithm byte
	key       ed25519.PublicKey
}

func parseVerifierKey(text string) (publicKey, error) {
	refused := fmt.Errorf("%w: verifier key %q: not NAME+ID+KEY of an Ed25519 key", ErrKey, text)
	name, rest, ok1 := strings.Cut(text, "+")
	id, encoded, ok2 := strings.Cut(rest, "+")
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok1 || !ok2 || err != nil || len(raw) != 1+ed25519.PublicKeySize || name == "" || strings.ContainsAny(name, " \t\r\n") {
		return publicKey{}, refused
	}
	k := publicKey{name: name, algorithm: raw[0], key: raw[1:]}
	if k.algorithm != algorithmSignature && k.algorithm != algorithmCosignature || k.String() != text || len(id) != 2*keyIDSize {
		return publicKey{}, refused
	}
	return k, nil
}

// String returns the key as it was read.
func (k publicKey) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, keyID(k.name, k.algorithm, k.key), base64.StdEncoding.EncodeToString(append([]byte{k.algorithm}, k.key...)))
}

// CosignerKey returns the verifier key of a node's cosignatures, in the text form
// of C2SP signed-note, for programs that want one for each type of signature: to
// [Verifiers] the node's own key is enough.
func CosignerKey(verifierKey string) (string, error) {
	k, err := parseVerifierKey(verifierKey)
	if err != nil {
		return "", err
	}
	k.algorithm = algorithmCosignature
	return k.String(), nil
}

// cosignVerifier is a [note.Verifier] of cosignatures.
type cosignVerifier struct {
	name string
	id   uint32
	key  ed25519.PublicKey
}

func newCosignVerifier(k publicKey) cosignVerifier {
	return cosignVerifier{name: k.name, id: cosignerID(k.name, k.key), key: k.key}
}

// Name implements [note.Verifier].
func (v cosignVerifier) Name() string { return v.name }

// KeyHash implements [note.Verifier].
func (v cosignVerifier) KeyHash() uint32 { return v.id }

// Verify implements [note.Verifier].
func (v cosignVerifier) Verify(text, signature []byte) bool {
	if len(signature) != cosignatureSize {
		return false
	}
	timestamp := binary.BigEndian.Uint64(signature)
	return timestamp <= math.MaxInt64 && ed25519.Verify(v.key, cosignedMessage(timestamp, text), signature[timestampSize:])
}

// Require checks that at least k different nodes cosigned the head. Errors wrap
// [ErrCheckpoint].
func (r Report) Require(k int) error {
	if len(r.Cosigners) >= k {
		return nil
	}
	who := "no node"
	if len(r.Cosigners) > 0 {
		who = strings.Join(r.Cosigners, ", ")
	}
	return fmt.Errorf("%w: %d nodes must have cosigned it, and %s did: nothing shows that the others have the same log", ErrCheckpoint, k, who)
}
