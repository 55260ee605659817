package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWitnessSettings: what cannot be meant is told with its line; what is a path is taken from the
// file's folder.
func TestWitnessSettings(t *testing.T) {
	const rest = "node: n1\ndata_dir: data\nkeys_dir: keys\nmanifest: m.json\nlisten: {api: \"127.0.0.1:1\", raft: \"127.0.0.1:2\"}\n"
	load := func(text string) (serverSettings, error) {
		file := filepath.Join(t.TempDir(), "server.yaml")
		if err := os.WriteFile(file, []byte(rest+text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadServer(file)
		if err == nil {
			err = s.check()
		}
		return s, err
	}
	s, err := load("witness:\n  every: 5s\n  files: [heads, /mnt/heads]\n  webhooks: [\"https://w.test/x\", \"http://127.0.0.1:9/x\"]\n  secret_file: secret\n")
	if err != nil || len(s.Witness.Webhooks) != 2 || !filepath.IsAbs(s.Witness.Files[0]) || s.Witness.Files[1] != "/mnt/heads" || !filepath.IsAbs(s.Witness.SecretFile) {
		t.Errorf("%+v, %v", s.Witness, err)
	}
	if err := os.WriteFile(s.Witness.SecretFile, []byte("whsec_short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Witness.control(); err == nil || !strings.Contains(err.Error(), "witness.secret_file") || strings.Contains(err.Error(), "short") {
		t.Errorf("a bad secret: %v", err)
	}
	for text, want := range map[string]string{
		"witness:\n  webhooks:\n    - http://w.test/x\n":    "server.yaml:8: witness.webhooks[0]: ",
		"witness:\n  webhooks: [\"https://u:p@w.test/\"]\n": "server.yaml:7: witness.webhooks[0]: ",
		"witness:\n  webhooks: [\"https:///x\"]\n":          "server.yaml:7: witness.webhooks[0]: ",
		"witness:\n  webhooks: [\"https://w.test/\"]\n":     "witness.secret_file is missing",
		"witness:\n  every: 10ms\n":                         "server.yaml:7: witness.every: ",
		"witness:\n  file: heads\n":                         "server.yaml:7: witness.file: unknown key; did you mean witness.files?",
		"witness:\n  files: [heads, heads]\n":               "witness.files: ",
		"witness:\n  files: [\"\"]\n":                       "witness.files: ",
	} {
		if _, err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	got := run(t, []string{"HALLPASS_WITNESS_WEBHOOKS=https://w.test/, ftp://w.test/"}, "server")
	if got.status == exitOK || !strings.Contains(got.stderr, "HALLPASS_WITNESS_WEBHOOKS") {
		t.Errorf("by a variable: %+v", got)
	}
}
