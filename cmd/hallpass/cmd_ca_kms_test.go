//go:build !kms

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlainBinaryNamesTheOther: whoever types a KMS at the plain binary is told which
// one opens it; a PIN that was typed is not said again.
func TestPlainBinaryNamesTheOther(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	init := func(more ...string) ran {
		return run(t, nil, append([]string{"ca", "init", "--dir", dir, "--trust-domain", "acme.test", "--admin", "ada,grace,linus"}, more...)...)
	}
	keys := []string{"--identity-root-key", "pkcs11:id=01;object=a", "--grants-root-key", "pkcs11:id=02;object=b"}
	for name, c := range map[string]struct {
		got    ran
		status int
		says   string
	}{
		"a KMS":           {init(append(keys, "--kms", "pkcs11:token=a?pin-source=/run/pin")...), exitError, "use hallpass-kms (make build-kms)"},
		"a PIN":           {init(append(keys, "--kms", "pkcs11:token=a?pin-value=4711")...), exitUsage, "pin-value=…"},
		"a PIN of a key":  {init("--kms", "pkcs11:token=a", "--identity-root-key", "pkcs11:id=01?pin-value=4711"), exitUsage, "--identity-root-key"},
		"keys of nothing": {init(keys...), exitUsage, "--kms URI says which"},
		"no keys of what": {init("--existing-keys"), exitUsage, "--kms URI says which"},
		"a rotation":      {run(t, nil, append([]string{"ca", "rotate", "--dir", dir, "--kms", "pkcs11:token=a"}, keys...)...), exitError, "use hallpass-kms"},
		"a signer":        {run(t, nil, "signer", "--ca-dir", dir), exitError, "use hallpass-kms"},
	} {
		if c.got.status != c.status || !strings.Contains(c.got.stderr, c.says) || strings.Contains(c.got.stderr, "4711") {
			t.Errorf("%s: status %d, %s", name, c.got.status, c.got.stderr)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a folder was made")
	}
}

func TestSignerSettings(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"ca_dir: ca\n":                              "",
		"ca_dir: ca\nlife: 24h\nevery: 10m\n":       "",
		"life: 24h\n":                               "ca_dir is missing",
		"ca_dir: ca\nlife: 1m\n":                    "want 2m0s to 2160h0m0s",
		"ca_dir: ca\nlife: 1h\nevery: 10m\n":        "a twentieth of the life",
		"ca_dir: ca\nlive: 24h\n":                   "did you mean life?",
		"ca_dir: ca\nlisten: {admin: 0.0.0.0:99}\n": "is not loopback",
	} {
		file := filepath.Join(t.TempDir(), "signer.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := run(t, nil, "config", "validate", file)
		if (got.status == exitOK) != (says == "") || !strings.Contains(got.stderr, says) {
			t.Errorf("%q: status %d, %s", text, got.status, got.stderr)
		}
	}
}
