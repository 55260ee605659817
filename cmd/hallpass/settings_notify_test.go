package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/notify"
)

const restOfServer = "node: n1\ndata_dir: data\nkeys_dir: keys\nmanifest: m.json\nlisten: {api: \"127.0.0.1:1\", raft: \"127.0.0.1:2\"}\n"

func loadNotify(t *testing.T, text string) (serverSettings, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(file, []byte(restOfServer+text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := loadServer(file)
	if err == nil {
		err = s.check()
	}
	return s, err
}

// TestNotifySettings: what cannot be meant is told with its line; what is a path is taken
// from the file's folder; a secret that others can read is none, and is in no error.
func TestNotifySettings(t *testing.T) {
	const hook = "notify:\n  console: http://127.0.0.1:8700\n  targets:\n    - name: siem\n      kind: webhook\n      url: https://w.test/x\n      secret_files: [new, old]\n"
	s, err := loadNotify(t, hook+"      events: [\"request.*\"]\n      timeout: 5s\n      give_up_after: 1h\n")
	if err != nil {
		t.Fatal(err)
	}
	files := s.Notify.Targets[0].SecretFiles
	if !filepath.IsAbs(files[0]) || !filepath.IsAbs(files[1]) {
		t.Errorf("%q", files)
	}
	secret := "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write(files[0], secret+"\n", 0o600)
	for what, c := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"others can read it": {secret, 0o644},
		"it is no secret":    {"whsec_short", 0o600},
		"it is empty":        {"\n", 0o600},
	} {
		write(files[1], c.text, c.mode)
		if _, err := s.Notify.control(); err == nil || !strings.Contains(err.Error(), files[1]) || strings.Contains(err.Error(), "MfKQ") || strings.Contains(err.Error(), "_short") {
			t.Errorf("%s: %v", what, err)
		}
	}
	write(files[1], secret, 0o600)
	out, err := s.Notify.control()
	if err != nil || len(out.Targets) != 1 || out.Targets[0].Name() != "siem" || out.Targets[0].Kind() != notify.KindWebhook || out.Console == "" {
		t.Errorf("%+v, %v", out, err)
	}
	for text, want := range map[string]string{
		"notify:\n  targets:\n    - name: Siem\n      kind: webhook\n":                             "server.yaml:8: notify.targets[0].name: ",
		"notify:\n  targets:\n    - name: siem\n      kind: carrier\n":                             "server.yaml:9: notify.targets[0].kind: ",
		"notify:\n  targets:\n    - name: siem\n      kind: webhook\n      url: http://w.test/\n":  "server.yaml:10: notify.targets[0].url: ",
		"notify:\n  targets:\n    - name: siem\n      kind: webhook\n      url: https://w.test/\n": "server.yaml:8: notify.targets[0].secret_files: ",
		"notify:\n  targets:\n    - name: siem\n      kind: webhook\n      uri: x\n":               "server.yaml:10: notify.targets[0].uri: unknown key; did you mean notify.targets[0].url?",
		"notify:\n  targets:\n    - name: siem\n      kind: webhook\n      timeout: 0s\n":          "server.yaml:10: notify.targets[0].timeout: ",
		"notify:\n  console: 127.0.0.1:8700\n":                                                     "server.yaml:7: notify.console: ",
		hook + "      to: [a@acme.test]\n":                                                         "server.yaml:13: notify.targets[0].to: is nothing that a target of kind webhook takes",

		"notify:\n  targets:\n    - name: post\n      kind: mail\n      server: mail.test:587\n      from: a@acme.test\n      to: [b@acme.test]\n      tls: none\n": "server.yaml:13: notify.targets[0].tls: ",
		"notify:\n  targets:\n    - name: post\n      kind: mail\n      server: mail.test:587\n      from: a@acme.test\n":                                           "server.yaml:8: notify.targets[0].to: ",
		"notify:\n  targets:\n    - name: chat\n      kind: slack\n      token_file: t\n      channel: general\n":                                                   "server.yaml:11: notify.targets[0].channel: ",
		"notify:\n  targets:\n    - name: chat\n      kind: slack\n      channel: C1\n":                                                                             "server.yaml:8: notify.targets[0].token_file: ",
		"notify:\n  targets:\n    - name: chat\n      kind: teams\n      url_file: u\n      url: https://teams.test/\n":                                             "notify.targets[0].url: is nothing that a target of kind teams takes",
		"notify:\n  targets:\n    - name: page\n      kind: pagerduty\n      key_file: k\n      channel: C1\n":                                                      "server.yaml:11: notify.targets[0].channel: is nothing that a target of kind pagerduty takes",

		hook + "      timeout: 2h\n":               "server.yaml:13: notify.targets[0].timeout: ",
		hook + "      give_up_after: 1000h\n":      "server.yaml:13: notify.targets[0].give_up_after: ",
		hook + "      events: [request.created]\n": "server.yaml:13: notify.targets[0].events: ",
		hook + "    - name: siem\n      kind: webhook\n      url: https://w.test/\n      secret_files: [x]\n": "server.yaml:13: notify.targets[1].name: ",
	} {
		if _, err := loadNotify(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n%v, want %q", text, err, want)
		}
	}
}
