package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/internal/near"
)

func newKey(t *testing.T, td, node string) *audit.Signer {
	t.Helper()
	key, err := audit.GenerateKey(td, node)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func verifiers(t *testing.T, keys ...*audit.Signer) note.Verifiers {
	t.Helper()
	var texts []string
	for _, k := range keys {
		texts = append(texts, k.VerifierKey())
	}
	v, err := audit.Verifiers(texts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func sign(t *testing.T, c audit.Checkpoint, keys ...*audit.Signer) []byte {
	t.Helper()
	var signers []note.Signer
	for _, k := range keys {
		signers = append(signers, k)
	}
	signed, err := c.Sign(signers...)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestCheckpointRoundTrip(t *testing.T) {
	n1, n2, n3 := newKey(t, "acme.test", "n1"), newKey(t, "acme.test", "n2"), newKey(t, "acme.test", "n3")
	for size := range int64(3) {
		want := newHistory(t, 2).checkpoint(t, size)
		signed := sign(t, want, n1, n2)
		for _, known := range []note.Verifiers{verifiers(t, n1), verifiers(t, n2), verifiers(t, n1, n2, n3)} {
			if got, err := audit.ParseCheckpoint(signed, known); err != nil || got != want {
				t.Errorf("ParseCheckpoint = %+v, %v; want %+v", got, err, want)
			}
		}
		if _, err := audit.ParseCheckpoint(signed, verifiers(t, n3)); !errors.Is(err, audit.ErrCheckpoint) || !strings.Contains(err.Error(), n1.Name()) {
			t.Errorf("without their keys: %v, want ErrCheckpoint naming who signed", err)
		}
		if _, err := audit.ParseCheckpoint(signed, nil); !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("without any key: %v, want ErrCheckpoint", err)
		}
	}
}

// The format read by hand from C2SP signed-note and tlog-checkpoint, so that
// our own reader is not the only one.
func TestCheckpointIsASignedNote(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	c := newHistory(t, 3).checkpoint(t, 3)
	signed := sign(t, c, key)

	text, signature, ok := strings.Cut(string(signed), "\n\n")
	text += "\n"
	if want := "acme.test/hallpass/epoch/1\n3\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"; !ok || text != want {
		t.Fatalf("text = %q, want %q", text, want)
	}
	var name, blob string
	if _, err := fmt.Sscanf(signature, "— %s %s\n", &name, &blob); err != nil {
		t.Fatalf("signature line %q: %v", signature, err)
	}
	raw, err := base64.StdEncoding.DecodeString(blob)
	if err != nil || name != "acme.test/hallpass/node/n1" || len(raw) != 4+ed25519.SignatureSize {
		t.Fatalf("signature by %q of %d bytes, %v", name, len(raw), err)
	}
	parts := strings.SplitN(key.VerifierKey(), "+", 3)
	public, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || public[0] != 1 {
		t.Fatalf("verifier key %q, %v", key.VerifierKey(), err)
	}
	id := sha256.Sum256(append([]byte(name+"\n"), public...))
	if !bytes.Equal(raw[:4], id[:4]) {
		t.Errorf("key id %x, want %x", raw[:4], id[:4])
	}
	if !ed25519.Verify(public[1:], []byte(text), raw[4:]) {
		t.Error("the signature is not over the text")
	}
}

func TestParseCheckpointRefusesOtherTexts(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	known := verifiers(t, key)
	root := newHistory(t, 3).checkpoint(t, 3).Root.String()
	for name, text := range map[string]string{
		"no origin":          "\n3\n" + root + "\n",
		"another origin":     "acme.test/log\n3\n" + root + "\n",
		"epoch nought":       "acme.test/hallpass/epoch/0\n3\n" + root + "\n",
		"a padded epoch":     "acme.test/hallpass/epoch/01\n3\n" + root + "\n",
		"a signed epoch":     "acme.test/hallpass/epoch/+1\n3\n" + root + "\n",
		"two epochs":         "acme.test/hallpass/epoch/1/hallpass/epoch/1\n3\n" + root + "\n",
		"a trailing space":   "acme.test/hallpass/epoch/1 \n3\n" + root + "\n",
		"no trust domain":    "/hallpass/epoch/1\n3\n" + root + "\n",
		"a loud domain":      "ACME.test/hallpass/epoch/1\n3\n" + root + "\n",
		"another's domain":   "evil.test/hallpass/epoch/1\n3\n" + root + "\n",
		"a padded size":      "acme.test/hallpass/epoch/1\n03\n" + root + "\n",
		"a negative size":    "acme.test/hallpass/epoch/1\n-3\n" + root + "\n",
		"a size in hex":      "acme.test/hallpass/epoch/1\n0x3\n" + root + "\n",
		"an endless size":    "acme.test/hallpass/epoch/1\n9223372036854775807\n" + root + "\n",
		"a size beyond that": "acme.test/hallpass/epoch/1\n9223372036854775808\n" + root + "\n",
		"no root":            "acme.test/hallpass/epoch/1\n3\n",
		"half a root":        "acme.test/hallpass/epoch/1\n3\n" + root[:20] + "\n",
		"an empty log's":     "acme.test/hallpass/epoch/1\n0\n" + root + "\n",
		"an extension":       "acme.test/hallpass/epoch/1\n3\n" + root + "\nmore\n",
		"an empty line":      "acme.test/hallpass/epoch/1\n3\n" + root + "\n\n",
	} {
		t.Run(name, func(t *testing.T) {
			signed, err := note.Sign(&note.Note{Text: text}, key)
			if err != nil {
				t.Fatal(err)
			}
			if c, err := audit.ParseCheckpoint(signed, known); !errors.Is(err, audit.ErrCheckpoint) {
				t.Errorf("ParseCheckpoint = %+v, %v; want ErrCheckpoint", c, err)
			}
		})
	}
}

func TestParseCheckpointRefusesEveryFlippedByte(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	known := verifiers(t, key)
	signed := sign(t, newHistory(t, 3).checkpoint(t, 3), key)
	for i := range signed {
		bent := bytes.Clone(signed)
		bent[i] ^= 1
		if _, err := audit.ParseCheckpoint(bent, known); !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("byte %d flipped: %v, want ErrCheckpoint", i, err)
		}
	}
	if _, err := audit.ParseCheckpoint(make([]byte, 1<<20), known); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("a megabyte: %v, want ErrCheckpoint", err)
	}
}

// One auditor, two clusters: a key of one says nothing about the other.
func TestCheckpointOfAnotherClustersKey(t *testing.T) {
	acme, evil := newKey(t, "acme.test", "n1"), newKey(t, "evil.test", "n1")
	c := newHistory(t, 3).checkpoint(t, 3)
	if _, err := c.Sign(evil); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("Sign: %v, want ErrCheckpoint", err)
	}
	text, err := c.Text()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: text}, evil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.ParseCheckpoint(signed, verifiers(t, acme, evil)); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("ParseCheckpoint: %v, want ErrCheckpoint", err)
	}
}

func TestCheckpointSignRefuses(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	good := newHistory(t, 3).checkpoint(t, 3)
	if _, err := good.Sign(); !errors.Is(err, audit.ErrCheckpoint) {
		t.Errorf("no signer: %v, want ErrCheckpoint", err)
	}
	for _, c := range []audit.Checkpoint{
		{},
		{Origin: "acme.test", Size: 3, Root: good.Root},
		{Origin: good.Origin, Size: -1, Root: good.Root},
		{Origin: good.Origin, Size: audit.MaxSize + 1, Root: good.Root},
	} {
		if _, err := c.Sign(key); !errors.Is(err, audit.ErrCheckpoint) {
			t.Errorf("%+v: %v, want ErrCheckpoint", c, err)
		}
	}
}

func TestKeyFile(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	path := filepath.Join(t.TempDir(), "audit.key")
	if err := key.Save(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
	}
	back, err := audit.LoadSigner(path)
	if err != nil {
		t.Fatal(err)
	}
	if back.VerifierKey() != key.VerifierKey() || back.Name() != "acme.test/hallpass/node/n1" {
		t.Errorf("came back as %s", back.VerifierKey())
	}
	c := newHistory(t, 1).checkpoint(t, 1)
	if _, err := audit.ParseCheckpoint(sign(t, c, back), verifiers(t, key)); err != nil {
		t.Errorf("a signature by the loaded key: %v", err)
	}
	if err := key.Save(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("Save over a key: %v, want ErrExist", err)
	}
}

func TestLoadSignerRefuses(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if err := newKey(t, "acme.test", "n1").Save(good); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, path := range map[string]string{
		"that the group may read": write("group", string(text), 0o640),
		"that others may read":    write("others", string(text), 0o604),
		"that others may write":   write("writable", string(text), 0o602),
		"that is empty":           write("empty", "", 0o600),
		"that is cut short":       write("short", string(text[:len(text)-9]), 0o600),
		"with another name":       write("renamed", strings.Replace(string(text), "/n1+", "/n2+", 1), 0o600),
		"with two keys":           write("two", string(text)+string(text), 0o600),
		"that is a folder":        dir,
	} {
		_, err := audit.LoadSigner(path)
		if !errors.Is(err, audit.ErrKey) {
			t.Errorf("a key file %s: %v, want ErrKey", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("a key file %s: the error shows the key", name)
		}
	}
	if _, err := audit.LoadSigner(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v, want ErrNotExist", err)
	}
}

func TestSignerNeverPrintsItsSecret(t *testing.T) {
	key := newKey(t, "acme.test", "n1")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if text := fmt.Sprintf(verb, key); strings.Contains(text, "PRIVATE") || !strings.Contains(text, key.VerifierKey()) {
			t.Errorf("%s prints %s", verb, text)
		}
	}
}

func TestKeyNamesAndVerifiersRefused(t *testing.T) {
	for _, c := range [][2]string{
		{"", "n1"},
		{"acme.test", ""},
		{"acme.test", "n 1"},
		{"acme.test", "a/b"},
		{"acme.test", "N1"},
		{"acme+test", "n1"},
		{"acme.test", "n+1"},
		{"acme.test/x", "n1"},
		{"acme.test", strings.Repeat("n", 256)},
	} {
		if _, err := audit.GenerateKey(c[0], c[1]); !errors.Is(err, audit.ErrKey) {
			t.Errorf("GenerateKey(%q, %q): %v, want ErrKey", c[0], c[1], err)
		}
	}
	vkey := newKey(t, "acme.test", "n1").VerifierKey()
	for name, keys := range map[string][]string{
		"none": nil, "one empty": {""}, "one twice": {vkey, vkey}, "one bent": {vkey[:len(vkey)-4] + "AAA="},
	} {
		if _, err := audit.Verifiers(keys...); !errors.Is(err, audit.ErrKey) {
			t.Errorf("Verifiers(%s): %v, want ErrKey", name, err)
		}
	}
}

// FuzzParseCheckpoint: what is read, of what was really signed, is written the same.
func FuzzParseCheckpoint(f *testing.F) {
	key, err := audit.GenerateKey("acme.test", "n1")
	if err != nil {
		f.Fatal(err)
	}
	known, err := audit.Verifiers(key.VerifierKey())
	if err != nil {
		f.Fatal(err)
	}
	f.Add("acme.test/hallpass/epoch/1\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n", uint16(40), byte('V'))
	f.Add("acme.test/hallpass/epoch/01\n00\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU\n", uint16(40), byte('V'))
	f.Fuzz(func(t *testing.T, text string, at uint16, b byte) {
		for _, text := range near.Of(text, at, b) {
			signed, err := note.Sign(&note.Note{Text: text}, key)
			if err != nil {
				continue
			}
			c, err := audit.ParseCheckpoint(signed, known)
			if err != nil {
				continue
			}
			if again, err := c.Text(); err != nil || again != text {
				t.Fatalf("two spellings of one checkpoint: %q and %q, %v", text, again, err)
			}
		}
	})
}
