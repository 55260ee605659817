package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newP384(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return got(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
}

func TestParseCSR(t *testing.T) {
	p256 := got(GenerateKey())(t)
	p384 := newP384(t)
	for _, key := range []crypto.Signer{p256, p384} {
		pub := got(ParseCSR(got(MakeCSR(key, "me"))(t)))(t)
		if !samePublicKey(pub, key.Public()) {
			t.Error("another key came out")
		}
	}
	old := bytes.ReplaceAll(got(MakeCSR(p256, "me"))(t), []byte(pemCSR), []byte(pemOldCSR))
	if _, err := ParseCSR(append([]byte("\n"), old...)); err != nil {
		t.Errorf("the old PEM type: %v", err)
	}
}

func TestParseCSRRefuses(t *testing.T) {
	p256 := got(GenerateKey())(t)
	good := got(MakeCSR(p256, "me"))(t)
	der := func(text []byte) []byte { b, _ := pem.Decode(text); return b.Bytes }
	asPEM := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	broken := bytes.Clone(der(good))
	broken[len(broken)-1] ^= 1
	// The request of one key with another key in it: no proof of possession.
	swapped := bytes.Replace(der(good), ecdhBytes(t, p256), ecdhBytes(t, got(GenerateKey())(t)), 1)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	for name, c := range map[string]struct {
		text []byte
		says string
	}{
		"empty":                  {nil, "not a PEM"},
		"not PEM":                {[]byte("hello"), "not a PEM"},
		"text before":            {append([]byte("hello\n"), good...), "not a PEM"},
		"broken PEM":             {good[:len(good)/2], "broken PEM"},
		"a certificate":          {asPEM("CERTIFICATE", der(good)), "CERTIFICATE"},
		"two requests":           {append(bytes.Clone(good), good...), "more than one"},
		"not DER":                {asPEM(pemCSR, []byte("hello")), ""},
		"something behind":       {asPEM(pemCSR, append(der(good), 0)), ""},
		"a broken signature":     {asPEM(pemCSR, broken), "not signed by the key in it"},
		"another key's":          {asPEM(pemCSR, swapped), "not signed by the key in it"},
		"too long":               {append(bytes.Clone(good), make([]byte, maxCSR)...), "bytes"},
		"RSA 1024":               {rsaCSR(t, "1024"), "RSA"},
		"RSA 2048":               {rsaCSR(t, "2048"), "RSA"},
		"Ed25519":                {got(MakeCSR(edKey, "me"))(t), "Ed25519"},
		"P-224":                  {curveCSR(t, elliptic.P224()), "P-256"},
		"P-521":                  {curveCSR(t, elliptic.P521()), "P-256"},
		"signed with SHA-1":      {opensslCSR(t, "-sha1"), "SHA1"},
		"a key off the curve":    {asPEM(pemCSR, bytes.Replace(der(good), ecdhBytes(t, p256)[1:], make([]byte, 64), 1)), ""},
		"a certificate's key":    {asPEM("PRIVATE KEY", der(good)), "PRIVATE KEY"},
		"a request with headers": {pem.EncodeToMemory(&pem.Block{Type: pemCSR, Bytes: broken, Headers: map[string]string{"a": "b"}}), ""},
	} {
		_, err := ParseCSR(c.text)
		if !errors.Is(err, ErrCSR) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one that says %q", name, err, c.says)
		}
	}
}

// Whatever a request asks for besides its key is not in the certificate.
func TestCSRGivesItsKeyAndNothingElse(t *testing.T) {
	f := newFixture(t, 1)
	key := got(GenerateKey())(t)
	basic := got(asn1.Marshal(struct{ CA bool }{true}))(t)
	der := got(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: "root", Organization: []string{"admins"}},
		DNSNames:        []string{"evil.test"},
		EmailAddresses:  []string{"eve@evil.test"},
		IPAddresses:     ips("10.0.0.1"),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: basic}, {Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}},
	}, key))(t)
	pub := got(ParseCSR(pem.EncodeToMemory(&pem.Block{Type: pemCSR, Bytes: der})))(t)
	plain := got(ParseCSR(got(MakeCSR(key, ""))(t)))(t)
	ticket, err := f.node(0).Grants.PrepareGrant(f.grantSpec(pub))
	leaf := signed(t, ticket, err)[0]
	other, err := f.node(0).Grants.PrepareGrant(f.grantSpec(plain))
	plainLeaf := signed(t, other, err)[0]
	if leaf.IsCA || leaf.Subject.String() != "" || len(leaf.DNSNames)+len(leaf.EmailAddresses)+len(leaf.IPAddresses) > 0 {
		t.Errorf("the request's names are in the certificate: %v %v", leaf.Subject, leaf.DNSNames)
	}
	if len(leaf.Extensions) != len(plainLeaf.Extensions) || len(leaf.RawTBSCertificate) != len(plainLeaf.RawTBSCertificate) {
		t.Error("the certificate differs from one for a plain request")
	}
}

// Requests as other tools make them.
func TestOpenSSLRequests(t *testing.T) {
	for _, args := range [][]string{{"-sha256"}, {"-sha384"}, {"-sha512"}} {
		if _, err := ParseCSR(opensslCSR(t, args...)); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	dir := t.TempDir()
	key, out := filepath.Join(dir, "key"), filepath.Join(dir, "csr")
	got(openssl(t, "ecparam", "-name", "secp256k1", "-genkey", "-noout", "-out", key))(t)
	got(openssl(t, "req", "-new", "-key", key, "-subj", "/CN=me", "-out", out))(t)
	if _, err := ParseCSR(got(os.ReadFile(out))(t)); !errors.Is(err, ErrCSR) {
		t.Errorf("secp256k1: %v", err)
	}
	got(openssl(t, "ecparam", "-name", "prime256v1", "-param_enc", "explicit", "-genkey", "-noout", "-out", key))(t)
	got(openssl(t, "req", "-new", "-key", key, "-subj", "/CN=me", "-out", out))(t)
	if _, err := ParseCSR(got(os.ReadFile(out))(t)); !errors.Is(err, ErrCSR) {
		t.Errorf("explicit curve parameters: %v", err)
	}
}

// FuzzParseCSR: a key is taken only if we certify such keys and a second reading
// finds the request signed with it; all else is ErrCSR.
func FuzzParseCSR(f *testing.F) {
	key, err := GenerateKey()
	if err != nil {
		f.Fatal(err)
	}
	good, err := MakeCSR(key, "me")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		pub, err := ParseCSR(text)
		if err != nil {
			if !errors.Is(err, ErrCSR) {
				t.Error(err)
			}
			return
		}
		must(t, CheckPublicKey(pub))
		block, _ := pem.Decode(text)
		if block == nil {
			t.Fatal("not PEM, and read")
		}
		csr := got(x509.ParseCertificateRequest(block.Bytes))(t)
		must(t, csr.CheckSignature())
		if key, ok := pub.(*ecdsa.PublicKey); !ok || !key.Equal(csr.PublicKey) {
			t.Error("another key than the request's")
		}
	})
}

func ecdhBytes(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	return got(key.PublicKey.ECDH())(t).Bytes()
}

func curveCSR(t *testing.T, curve elliptic.Curve) []byte {
	t.Helper()
	return got(MakeCSR(got(ecdsa.GenerateKey(curve, rand.Reader))(t), "me"))(t)
}

func rsaCSR(t *testing.T, bits string) []byte {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	got(openssl(t, "genrsa", "-out", key, bits))(t)
	return reqCSR(t, key)
}

func opensslCSR(t *testing.T, args ...string) []byte {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	got(openssl(t, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key))(t)
	return reqCSR(t, key, args...)
}

func reqCSR(t *testing.T, key string, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "csr")
	got(openssl(t, append([]string{"req", "-new", "-key", key, "-subj", "/CN=me", "-out", out}, args...)...))(t)
	return got(os.ReadFile(out))(t)
}

func TestCheckPublicKey(t *testing.T) {
	p256 := got(GenerateKey())(t)
	must(t, CheckPublicKey(p256.Public()))
	must(t, CheckPublicKey(newP384(t).Public()))
	for name, pub := range map[string]crypto.PublicKey{
		"nothing":            nil,
		"no curve":           &ecdsa.PublicKey{},
		"the point 0,0":      &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int), Y: new(big.Int)},   //nolint:staticcheck // as a mistake would make it
		"off the curve":      &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}, //nolint:staticcheck // as a mistake would make it
		"P-521":              got(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t).Public(),
		"a private key":      p256,
		"a key by its value": p256.PublicKey,
	} {
		if err := CheckPublicKey(pub); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
