package control

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"slices"
	"testing"

	"github.com/hallpass/hallpass/internal/near"
)

// FuzzChain: a chain that one node hands on to another has one spelling, and what is read of it
// is all of it.
func FuzzChain(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	one, err := x509.CreateCertificate(bytes.NewReader(nil), template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	for _, der := range [][]byte{{}, one, slices.Concat(one, one)} {
		f.Add(base64.StdEncoding.EncodeToString(der), uint16(0), byte('A'))
	}
	f.Fuzz(func(t *testing.T, header string, at uint16, b byte) {
		for _, header := range near.Of(header, at, b) {
			chain, err := parseChain(header)
			if err != nil {
				continue
			}
			var der []byte
			for _, c := range chain {
				der = slices.Concat(der, c.Raw)
			}
			if again := base64.StdEncoding.EncodeToString(der); again != header {
				t.Fatalf("%q was read as %d certificates, which are %q", header, len(chain), again)
			}
		}
	})
}
