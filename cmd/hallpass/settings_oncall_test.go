package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOnCallSettings: what cannot be meant is told with its line; a secret that others can read is none.
func TestOnCallSettings(t *testing.T) {
	const one = "on_call:\n  resolvers:\n    - group: leads\n      url: https://w.test/x\n      secret_files: [key]\n"
	s, err := loadNotify(t, one+"      every: 30s\n")
	if err != nil {
		t.Fatal(err)
	}
	file := s.OnCall.Resolvers[0].SecretFiles[0]
	if !filepath.IsAbs(file) {
		t.Errorf("%q", file)
	}
	if err := os.WriteFile(file, []byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OnCall.control(); err == nil || !strings.Contains(err.Error(), "chmod 600") || strings.Contains(err.Error(), "MfKQ") {
		t.Errorf("others can read it: %v", err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := s.OnCall.control()
	if err != nil || len(all) != 1 || all[0].Group() != "leads" || all[0].Every().String() != "30s" || all[0].Host() != "https://w.test" {
		t.Errorf("%+v, %v", all, err)
	}
	for text, want := range map[string]string{
		"on_call:\n  resolvers:\n    - group: Leads!\n      url: https://w.test/\n      secret_files: [key]\n": "server.yaml:8: on_call.resolvers[0].group: ",
		"on_call:\n  resolvers:\n    - group: leads\n      url: http://w.test/\n      secret_files: [key]\n":   "server.yaml:9: on_call.resolvers[0].url: ",
		"on_call:\n  resolvers:\n    - group: leads\n      url: https://w.test/\n":                             "server.yaml:8: on_call.resolvers[0].secret_files: ",
		one + "      every: 1s\n": "server.yaml:11: on_call.resolvers[0].every: ",
		one + "      uri: x\n":    "server.yaml:11: on_call.resolvers[0].uri: unknown key",
		one + "    - group: leads\n      url: https://w.test/\n      secret_files: [key]\n": "server.yaml:11: on_call.resolvers[1].group: ",
	} {
		if _, err := loadNotify(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n%v, want %q", text, err, want)
		}
	}
}
