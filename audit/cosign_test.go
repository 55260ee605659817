package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallpass/hallpass/audit"
)

var cosignedAt = time.Unix(1679315147, 999)

func cosigner(t *testing.T, key *audit.Signer) *audit.Cosigner {
	t.Helper()
	c, err := audit.NewCosigner(key, key.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func cosign(t *testing.T, key *audit.Signer, c audit.Checkpoint) string {
	t.Helper()
	line, err := cosigner(t, key).Cosign(c, cosignedAt)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func cosignerKey(t *testing.T, key *audit.Signer) string {
	t.Helper()
	text, err := audit.CosignerKey(key.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The format read by hand from C2SP tlog-cosignature and signed-note.
func TestCosignatureIsAsSpecified(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	c := newHistory(t, 3).checkpoint(t, 3)
	var name, blob string
	if _, err := fmt.Sscanf(cosign(t, key, c), "— %s %s\n", &name, &blob); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(blob)
	if err != nil || name != key.Name() || len(raw) != 4+8+64 {
		t.Fatalf("cosignature by %q of %d bytes, %v", name, len(raw), err)
	}
	public, err := base64.StdEncoding.DecodeString(strings.SplitN(cosignerKey(t, key), "+", 3)[2])
	if err != nil || len(public) != 33 || public[0] != 4 {
		t.Fatalf("cosigner key %q, %v", cosignerKey(t, key), err)
	}
	id := sha256.Sum256(append([]byte(name+"\n"), public...))
	if !bytes.Equal(raw[:4], id[:4]) {
		t.Errorf("key id %x, want %x", raw[:4], id[:4])
	}
	if at := binary.BigEndian.Uint64(raw[4:]); at != 1679315147 {
		t.Errorf("timestamp %d", at)
	}
	message := "cosignature/v1\ntime 1679315147\nacme.test/hallpass/epoch/1\n3\n" + c.Root.String() + "\n"
	if !ed25519.Verify(public[1:], []byte(message), raw[12:]) {
		t.Error("the signature is not over the message")
	}
}

func TestCosigned(t *testing.T) {
	n1, n2, n3 := newKey(t, "acme.test", "n1"), newKey(t, "acme.test", "n2"), newKey(t, "acme.test", "n3")
	h := newHistory(t, 5)
	c := h.checkpoint(t, 5)
	known := verifiers(t, n1, n2, n3)
	signed := sign(t, c, n1)
	full, err := audit.AddCosignatures(signed, known, cosign(t, n1, c), cosign(t, n2, c))
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.Verify(h.lines(), full, known)
	if err != nil || !slices.Equal(r.Cosigners, []string{n1.Name(), n2.Name()}) || !slices.Equal(r.Signers, r.Cosigners) {
		t.Fatalf("%+v, %v", r, err)
	}
	for k, ok := range map[int]bool{0: true, 1: true, 2: true, 3: false} {
		if err := r.Require(k); (err == nil) != ok || err != nil && !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("Require(%d) = %v", k, err)
		}
	}
	// Who knows one cosigner only believes that one.
	for name, keys := range map[string][]string{"its key": {n2.VerifierKey()}, "its cosigner key": {cosignerKey(t, n2)}} {
		v, err := audit.Verifiers(keys...)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := audit.Verify(h.lines(), full, v); err != nil || !slices.Equal(r.Cosigners, []string{n2.Name()}) {
			t.Errorf("with %s: %+v, %v", name, r, err)
		}
	}
	if v, err := audit.Verifiers(n1.VerifierKey(), cosignerKey(t, n1)); err != nil {
		t.Errorf("both keys of a node: %v", err)
	} else if _, err := audit.ParseCheckpoint(full, v); err != nil {
		t.Errorf("by both keys of a node: %v", err)
	}
}

// TestCosignaturesThatDoNotCount: what is no cosignature of another node over
// this very head adds nothing to k.
func TestCosignaturesThatDoNotCount(t *testing.T) {
	n1, n2, stranger := newKey(t, "acme.test", "n1"), newKey(t, "acme.test", "n2"), newKey(t, "acme.test", "n2")
	h := newHistory(t, 5)
	c := h.checkpoint(t, 5)
	known := verifiers(t, n1, n2)
	other := c
	other.Root[0] ^= 1
	plain := string(sign(t, c, n2))
	plain = plain[strings.Index(plain, "\n\n")+2:]
	otherEpoch := c
	otherEpoch.Origin = audit.Origin("acme.test", 2)
	late := cosign(t, n2, c)
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(late[strings.LastIndex(late, " "):]))
	if err != nil {
		t.Fatal(err)
	}
	raw[11]++ // a second later than was signed
	late = late[:strings.LastIndex(late, " ")+1] + base64.StdEncoding.EncodeToString(raw) + "\n"
	for name, lines := range map[string][]string{
		"another root":         {cosign(t, n2, other)},
		"another size":         {cosign(t, n2, h.checkpoint(t, 4))},
		"another epoch":        {cosign(t, n2, otherEpoch)},
		"another's key":        {cosign(t, stranger, c)},
		"a signature":          {plain},
		"one twice":            {cosign(t, n2, c), cosign(t, n2, c)},
		"two in one":           {cosign(t, n2, c) + cosign(t, n2, c)},
		"and what nobody made": {cosign(t, n2, c) + late},
		"another time":         {late},
		"no signature line":    {"hello\n"},
	} {
		if out, err := audit.AddCosignatures(sign(t, c, n1), known, lines...); !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("%s is added: %v\n%s", name, err, out)
		}
		// However it came there, it does not count.
		forged := append(sign(t, c, n1), strings.Join(lines, "")...)
		r, err := audit.Verify(h.lines(), forged, known)
		if err == nil && r.Require(1) == nil {
			t.Errorf("%s counts: %+v", name, r)
		}
	}
	if _, err := cosigner(t, n1).Cosign(audit.Checkpoint{Origin: audit.Origin("globex.test", 1), Size: c.Size, Root: c.Root}, cosignedAt); err == nil {
		t.Error("another cluster's head is cosigned")
	}
	if _, err := cosigner(t, n1).Cosign(c, time.Unix(-1, 0)); err == nil {
		t.Error("cosigned before time began")
	}
	for name, key := range map[string]string{"another's": n2.VerifierKey(), "a cosigner's": cosignerKey(t, n1), "none": ""} {
		if _, err := audit.NewCosigner(n1, key); !errors.Is(err, audit.ErrKey) {
			t.Errorf("a cosigner of %s key: %v", name, err)
		}
	}
}

// TestOneKeyTwoNames: a cosignature does not say whose it is, so a key that a
// manifest gives to two nodes would count as two.
func TestOneKeyTwoNames(t *testing.T) {
	n1 := newKey(t, "acme.test", "n1")
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(n1.VerifierKey(), "+", 3)[2])
	if err != nil {
		t.Fatal(err)
	}
	twin, err := note.NewEd25519VerifierKey("acme.test/hallpass/node/n2", raw[1:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verifiers(n1.VerifierKey(), twin); !errors.Is(err, audit.ErrKey) {
		t.Errorf("one key under two names: %v", err)
	}
}

func TestCosignerKeyRefused(t *testing.T) {
	key := newKey(t, "acme.test", "n1").VerifierKey()
	parts := strings.SplitN(key, "+", 3) // name, id and base64, which may hold a + of its own
	for name, text := range map[string]string{
		"empty":           "",
		"no key":          "acme.test/hallpass/node/n1",
		"another id":      strings.Replace(key, "+", "+0", 1),
		"another type":    parts[0] + "+" + parts[1] + "+B" + parts[2][1:],
		"a longer key":    key + "AAAA",
		"spare bits":      key[:len(key)-2] + "!=",
		"a space in it":   " " + key,
		"a line after it": key + "\n",
	} {
		if got, err := audit.CosignerKey(text); !errors.Is(err, audit.ErrKey) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func (h *history) lines() *bytes.Reader {
	return bytes.NewReader(append(bytes.Join(h.bodies, []byte("\n")), '\n'))
}
