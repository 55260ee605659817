package kms

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRedact: what a message says of a URI has no secret in it, however it is
// spelt.
func TestRedact(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"pkcs11:token=a;object=b?pin-value=1234":      "pkcs11:token=a;object=b?pin-value=…",
		"pkcs11:pin-value=1234;token=a":               "pkcs11:pin-value=…;token=a",
		"pkcs11:token=a?pin-source=/x&pin-value=1234": "pkcs11:token=a?pin-source=/x&pin-value=…",
		"pkcs11:token=a?%70in-value=1234":             "pkcs11:token=a?%70in-value=…",
		"pkcs11:token=a?PIN-Value=1234":               "pkcs11:token=a?PIN-Value=…",
		"azurekms:client-id=a;client-secret=1234":     "azurekms:client-id=a;client-secret=…",
		"yubikey:management-key=1234":                 "yubikey:management-key=…",
		"1234":                                        "…",
		"cloudkms:projects/p/cryptoKeys/k":            "cloudkms:projects/p/cryptoKeys/k",
	} {
		if got := Redact(uri); got != want {
			t.Errorf("Redact(%q) = %q, want %q", uri, got, want)
		}
	}
}

// TestSecretsAreRefused: others read command lines and folders.
func TestSecretsAreRefused(t *testing.T) {
	t.Parallel()
	for _, uri := range []string{
		"pkcs11:token=a?pin-value=1234", "pkcs11:token=a;pin-value=1234", "pkcs11:token=a&pin-value=1234", "pkcs11:token=a?%70in-value=1234",
		"azurekms:name=k;client-secret=1234", "yubikey:slot-id=9a?pin-value=1234", "pkcs11:token=a?pin-prompt=1234", "",
		"pkcs11", "pkcs11:", ":token=1234", "pkcs11:token=a\n1234", "pkcs11:token=a\x001234", "pkcs11:token=a#1234",
	} {
		err := Check(uri)
		if !errors.Is(err, ErrURI) || strings.Contains(err.Error(), "1234") {
			t.Errorf("%q: %v", uri, err)
		}
		if _, err := Open(uri); err == nil || strings.Contains(err.Error(), "1234") {
			t.Errorf("open %q: %v", uri, err)
		}
	}
	for _, uri := range []string{"pkcs11:token=a?pin-source=/run/pin", "awskms:region=us-east-1", "cloudkms:projects/p", "tpmkms:name=k"} {
		if err := Check(uri); err != nil {
			t.Error(err)
		}
	}
}

// TestPIN reads PINs from where they may be, and takes no empty one for one that it
// cannot read: tokens count.
func TestPIN(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good", " 12 34\n", 0o600)
	t.Setenv("HSM_PIN", "5678")
	t.Setenv("HSM_NONE", " ")
	for uri, want := range map[string]address{
		"pkcs11:token=a?pin-source=" + good:         {"pkcs11:token=a", "12 34"},
		"pkcs11:token=a?pin-source=file:" + good:    {"pkcs11:token=a", "12 34"},
		"pkcs11:token=a?pin-source=file://" + good:  {"pkcs11:token=a", "12 34"},
		"pkcs11:pin-source=" + good + ";token=a":    {"pkcs11:token=a", "12 34"},
		"pkcs11:token=a?pin-source=env:HSM_PIN&x=y": {"pkcs11:token=a&x=y", "5678"},
		"awskms:region=r":                           {"awskms:region=r", ""},
	} {
		if got, err := resolve(uri); err != nil || got != want {
			t.Errorf("%s: %+v, %v", uri, got, err)
		}
	}
	for what, from := range map[string]string{
		"read by others": file("wide", "1234", 0o640), "empty": file("empty", "\n", 0o600), "missing": filepath.Join(dir, "missing"), "a folder": dir,
		"relative": "pin", "a relative URI": "file:pin", "an empty variable": "env:HSM_NONE", "no variable": "env:HSM_MISSING", "a program": "|cat /etc/passwd",
	} {
		if _, err := resolve("pkcs11:token=a?pin-source=" + from); !errors.Is(err, ErrPIN) || strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, uri := range []string{"pkcs11:token=a?pin-source=", "pkcs11:token=a?pin-source=" + good + "&pin-source=env:HSM_PIN", "pkcs11:token=a?pin-source=%zz"} {
		if _, err := resolve(uri); !errors.Is(err, ErrURI) {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// TestMasked: libraries put into their errors what they were given.
func TestMasked(t *testing.T) {
	t.Parallel()
	inner := errors.New("login with 1234 failed")
	err := masked{inner, "1234"}
	if strings.Contains(err.Error(), "1234") || !errors.Is(err, inner) {
		t.Error(err)
	}
}
