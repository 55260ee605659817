package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrCheckpoint is returned when a checkpoint is malformed or no known key
// signed it.
var ErrCheckpoint = errors.New("audit: checkpoint refused")

const (
	epochInfix    = "/hallpass/epoch/"
	nodeInfix     = "/hallpass/node/"
	maxCheckpoint = 64 << 10
)

// Checkpoint is a head of the log, as in C2SP tlog-checkpoint.
type Checkpoint struct {
	// Origin names the log: "acme.test/hallpass/epoch/1", as [Origin] writes it.
	Origin string
	// Size is the number of entries.
	Size int64
	// Root is the tree hash over them.
	Root tlog.Hash
}

// Origin returns the origin line of a cluster's log in an epoch (from 1). The
// epoch counts restores, so that the histories before and after one can never
// be taken for each other.
func Origin(trustDomain string, epoch uint64) string {
	return trustDomain + epochInfix + strconv.FormatUint(epoch, 10)
}

// ParseOrigin takes an origin line apart. Errors wrap [ErrCheckpoint].
func ParseOrigin(origin string) (trustDomain string, epoch uint64, err error) {
	trustDomain, digits, ok := strings.Cut(origin, epochInfix)
	epoch, numErr := strconv.ParseUint(digits, 10, 64)
	if !ok || numErr != nil || epoch == 0 || !validWord(trustDomain) || Origin(trustDomain, epoch) != origin {
		return "", 0, fmt.Errorf("%w: origin %q is not TRUST-DOMAIN%sN", ErrCheckpoint, origin, epochInfix)
	}
	return trustDomain, epoch, nil
}

// validWord reports whether s is 1 to 255 of a-z, 0-9, ".", "-" and "_", which
// is what a SPIFFE trust domain's name may be.
func validWord(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// Text returns the three lines that are signed. Errors wrap [ErrCheckpoint].
func (c Checkpoint) Text() (string, error) {
	if _, _, err := ParseOrigin(c.Origin); err != nil {
		return "", err
	}
	if c.Size < 0 || c.Size > MaxSize {
		return "", fmt.Errorf("%w: size %d is out of range", ErrCheckpoint, c.Size)
	}
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Root), nil
}

// Sign returns the checkpoint as a signed note. It needs at least one signer,
// each of a key of the origin's trust domain.
func (c Checkpoint) Sign(signers ...note.Signer) ([]byte, error) {
	text, err := c.Text()
	if err != nil {
		return nil, err
	}
	if len(signers) == 0 {
		return nil, fmt.Errorf("%w: no signer", ErrCheckpoint)
	}
	for _, s := range signers {
		if !c.ownKey(s.Name()) {
			return nil, fmt.Errorf("%w: key %q is not of the log %q", ErrCheckpoint, s.Name(), c.Origin)
		}
	}
	signed, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return signed, nil
}

// ownKey reports whether a key of that name may sign this log's heads. An
// auditor who knows the keys of two clusters must not let one of them vouch
// for the other's history.
func (c Checkpoint) ownKey(name string) bool {
	td, _, err := ParseOrigin(c.Origin)
	return err == nil && strings.HasPrefix(name, td+nodeInfix)
}

// ParseCheckpoint reads a signed checkpoint. At least one of its signatures
// must be by one of the verifiers, and none by a known key may be false.
// Errors wrap [ErrCheckpoint].
func ParseCheckpoint(signed []byte, verifiers note.Verifiers) (Checkpoint, error) {
	c, err := openCheckpoint(signed, verifiers)
	return c.Checkpoint, err
}

// ReadCheckpoint reads a signed checkpoint without looking at who signed it: what
// it says is to be compared with something that is known. Errors wrap
// [ErrCheckpoint].
func ReadCheckpoint(signed []byte) (Checkpoint, error) {
	text, signatures, ok := strings.Cut(string(signed), "\n\n")
	if !ok || len(signed) > maxCheckpoint || !strings.HasPrefix(signatures, signatureLineMark) {
		return Checkpoint{}, fmt.Errorf("%w: not a signed note", ErrCheckpoint)
	}
	return parseCheckpointText(text + "\n")
}

// opened is a checkpoint whose signatures were looked at.
type opened struct {
	Checkpoint
	signers   []string // names of the keys whose signatures or cosignatures were verified
	cosigners []string // names of those whose cosignatures were
	unknown   []string // NAME+HASH of keys that were not given
}

// report says what was verified of the head alone.
func (o opened) report() (Report, error) {
	td, epoch, err := ParseOrigin(o.Origin)
	return Report{TrustDomain: td, Epoch: epoch, Checkpoint: o.Checkpoint, Signers: o.signers, Cosigners: o.cosigners}, err
}

func openCheckpoint(signed []byte, verifiers note.Verifiers) (opened, error) {
	if len(signed) > maxCheckpoint {
		return opened{}, fmt.Errorf("%w: %d bytes, at most %d", ErrCheckpoint, len(signed), maxCheckpoint)
	}
	n, err := note.Open(signed, verifiers)
	if unverified, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		return opened{}, fmt.Errorf("%w: signed by none of the given keys, but by %s", ErrCheckpoint, strings.Join(keysOf(unverified.Note.UnverifiedSigs), ", "))
	}
	if err != nil {
		return opened{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	// note.Open passes over a second signature by a key without a look at it: bytes
	// that nothing vouches for would travel with what was verified.
	lines := strings.Count(strings.TrimPrefix(string(signed), n.Text+"\n"), "\n")
	if lines != len(n.Sigs)+len(n.UnverifiedSigs) {
		return opened{}, fmt.Errorf("%w: a key signed it twice", ErrCheckpoint)
	}
	c, err := parseCheckpointText(n.Text)
	if err != nil {
		return opened{}, err
	}
	o := opened{Checkpoint: c, unknown: keysOf(n.UnverifiedSigs)}
	for _, s := range n.Sigs {
		// note.Open ignores the spare bits of the last base64 digit.
		raw, err := base64.StdEncoding.Strict().DecodeString(s.Base64)
		if err != nil {
			return opened{}, fmt.Errorf("%w: signature by %s is not in canonical form", ErrCheckpoint, s.Name)
		}
		if !c.ownKey(s.Name) {
			continue
		}
		if !slices.Contains(o.signers, s.Name) {
			o.signers = append(o.signers, s.Name)
		}
		// A node that cosigns twice, by whatever keys, counts once.
		if len(raw) == keyIDSize+cosignatureSize && !slices.Contains(o.cosigners, s.Name) {
			o.cosigners = append(o.cosigners, s.Name)
		}
	}
	if len(o.signers) == 0 {
		return opened{}, fmt.Errorf("%w: %q is signed by no key of its own trust domain", ErrCheckpoint, c.Origin)
	}
	return o, nil
}

// keysOf names the keys of signatures as verifier keys begin.
func keysOf(signatures []note.Signature) (keys []string) {
	for _, s := range signatures {
		keys = append(keys, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
	}
	return keys
}

func parseCheckpointText(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, fmt.Errorf("%w: not exactly origin, size and root", ErrCheckpoint)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: size %q", ErrCheckpoint, lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: root %q", ErrCheckpoint, lines[2])
	}
	c := Checkpoint{Origin: lines[0], Size: size, Root: root}
	again, err := c.Text()
	if err != nil {
		return Checkpoint{}, err
	}
	if again != text {
		return Checkpoint{}, fmt.Errorf("%w: not in canonical form", ErrCheckpoint)
	}
	if size == 0 && root != emptyRoot() {
		return Checkpoint{}, fmt.Errorf("%w: an empty log with a root", ErrCheckpoint)
	}
	return c, nil
}

// emptyRoot is the tree hash of no entries, RFC 6962 §2.1.
func emptyRoot() tlog.Hash {
	root, _ := tlog.TreeHash(0, nil) // reads nothing at size 0
	return root
}
