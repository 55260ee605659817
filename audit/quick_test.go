package audit

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/hallpass/hallpass/internal/near"
)

// FuzzPlainlyCanonical: what the quick look lets through is what taking it apart would give.
func FuzzPlainlyCanonical(f *testing.F) {
	for _, text := range []string{
		`{}`, `[]`, `null`, `{"a":1,"b":[true,false,null,"x"],"c":{"d":"é"}}`, `{"b":1,"a":1}`, `{"a":1,"a":1}`, `{"a":1,"a":1,"b":2}`,
		`{"a": 1}`, `{"a":01}`, `{"a":-0}`, `{"a":1.0}`, `{"a":1e2}`, `{"a":999999999999999}`, `{"a":9999999999999999}`,
		`{"a":"\u0041"}`, `{"a":"\n"}`, "{\"a\":\"\x01\"}", "{\"a\":\"\xff\"}", `{"a":1}x`, `{"a":1`, `{"a"`, `{"a":}`, `[1,]`, `[,1]`,
		"{\"\uff5e\":1,\"\U0001f600\":2}", "{\"\U0001f600\":1,\"\uff5e\":2}", `{"":1,"a":2}`, `"`, `tru`,
		`{"A":1,"b":2,"c":3}`, `{"A":{"A":"é","d":0,"x":[]}}`,
		strings.Repeat("[", maxDepth+2) + strings.Repeat("]", maxDepth+2),
	} {
		f.Add([]byte(text), uint16(0), byte(' '))
	}
	f.Fuzz(func(t *testing.T, text []byte, at uint16, b byte) {
		for _, text := range near.Of(text, at, b) {
			if !plainlyCanonical(text) {
				continue
			}
			if slow, err := appendCanonical(nil, text); err != nil || string(slow) != string(text) {
				t.Errorf("%q is let through as it is, and is %q, %v", text, slow, err)
			}
		}
	})
}

// Else every entry would be taken apart again, and only the benchmarks would show.
func TestMostEntriesAreSeenAtAGlance(t *testing.T) {
	details, err := json.Marshal(struct {
		Approvals int      `json:"approvals"`
		Names     []string `json:"names"`
		Reason    string   `json:"reason"`
	}{2, []string{"ann", "Zoë"}, "paged: disk full"})
	if err != nil {
		t.Fatal(err)
	}
	if !plainlyCanonical(details) {
		t.Errorf("%s is taken apart", details)
	}
}

// FuzzVerifierKey: a key is read only where x/mod's note reads the same name and id in it, and is written as it was.
func FuzzVerifierKey(f *testing.F) {
	key, err := GenerateKey("acme.test", "n1")
	if err != nil {
		f.Fatal(err)
	}
	cosigner, err := CosignerKey(key.VerifierKey())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key.VerifierKey())
	f.Add(cosigner)
	f.Fuzz(func(t *testing.T, text string) {
		k, err := parseVerifierKey(text)
		if err != nil {
			if !errors.Is(err, ErrKey) {
				t.Error(err)
			}
			return
		}
		if k.String() != text {
			t.Errorf("%q is written as %q", text, k)
		}
		if k.algorithm != algorithmSignature {
			return // of which note knows nothing
		}
		if v, err := note.NewVerifier(text); err != nil || v.Name() != k.name || v.KeyHash() != keyID(k.name, k.algorithm, k.key) {
			t.Errorf("%q is read as %+v, and by note as %v, %v", text, k, v, err)
		}
	})
}
