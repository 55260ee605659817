package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/ca"
)

// saying runs a command line that reads lines from standard input.
func saying(t *testing.T, stdin string, args ...string) ran {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, environ: func() []string { return nil }, now: time.Now}
	status := a.run(t.Context(), args)
	return ran{status, out.String(), errs.String()}
}

// TestEmergencyCommands goes through the ceremony as it is typed, offline.
func TestEmergencyCommands(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ok := func(r ran) string {
		t.Helper()
		if r.status != exitOK {
			t.Fatalf("status %d: %s", r.status, r.stderr)
		}
		return r.stdout
	}
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	if err := ca.Init(in("ca"), ca.InitOptions{TrustDomain: td, Admins: []string{"ada", "grace", "linus"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	init := []string{"ca", "emergency", "init", "--dir", in("ca"), "--out", in("kit"), "--threshold", "2"}
	for _, name := range []string{"grace", "linus", "edsger"} {
		args, stdin := []string{"emergency", "keygen", "--out", in(name), "-o", "json"}, ""
		if name == "linus" {
			args, stdin = append(args, "--passphrase"), "correct horse\n"
		}
		var made struct {
			Key string `json:"public_key"`
		}
		if err := json.Unmarshal([]byte(ok(saying(t, stdin, args...))), &made); err != nil {
			t.Fatal(err)
		}
		init = append(init, "--custodian", name+"="+made.Key)
	}
	if r := run(t, nil, "emergency", "keygen", "--out", in("grace")); r.status != exitError || !strings.Contains(r.stderr, "never overwritten") {
		t.Errorf("over a key: %+v", r)
	}
	ok(run(t, nil, init...))
	if r := run(t, nil, append(init[:7:7], "--threshold", "1")...); r.status != exitUsage {
		t.Errorf("one opens it: %+v", r)
	}

	issue := []string{
		"emergency", "issue", "payments", "--kit", in("kit"), "--allow", "GET /admin/**",
		"--subject", "spiffe://acme.test/user/ada", "--reason", "lost", "--out", in("in"),
	}
	with := func(more ...string) []string { return append(slices.Clip(issue), more...) }
	if r := run(t, nil, with("--for", "30m", "--key", in("grace"))...); r.status != exitDenied || !strings.Contains(r.stderr, "it takes 2 of 3 together") {
		t.Errorf("one alone: %+v", r)
	}
	if r := run(t, nil, with("--for", "90m", "--key", in("grace"), "--key", in("edsger"))...); r.status != exitUsage || !strings.Contains(r.stderr, "1h") {
		t.Errorf("longer than the cap: %+v", r)
	}
	if printed := ok(saying(t, "correct horse\n", with("--for", "30m", "--key", in("grace"), "--key", in("linus"))...)); !strings.Contains(printed, "grace, linus") {
		t.Errorf("it says %s", printed)
	}
	if printed := ok(run(t, nil, "cert", "inspect", filepath.Join(in("in"), "cert.pem"))); !strings.Contains(printed, "made in an EMERGENCY") ||
		!strings.Contains(printed, "EMERGENCY issuer") {
		t.Errorf("inspected: %s", printed)
	}
	if printed := ok(run(t, nil, "emergency", "show", in("kit"))); !strings.Contains(printed, "grace+linus") {
		t.Errorf("the journal: %s", printed)
	}
	path := filepath.Join(in("kit"), ca.EmergencyJournalFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte(`"lost"`), []byte(`"well"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, "emergency", "show", in("kit")); r.status != exitError || !strings.Contains(r.stderr, "line 1: bad emergency journal: record 1 is not signed by its issuer") {
		t.Errorf("a changed journal: %+v", r)
	}
}

// TestCheckAccessOfEmergencies: what custodians signed is told apart from what was
// forged, before and after the import.
func TestCheckAccessOfEmergencies(t *testing.T) {
	record := func(serial, more string) string {
		return `{"time":"2026-11-30T12:00:00.000Z","kind":"request","service":"payments","subject":"spiffe://acme.test/user/ada",` +
			`"grant":"01a22b9f-b74a-76d9-a728-da5af5462e49","issuer":"aa","serial":"` + serial + `"` + more + "}\n"
	}
	log := filepath.Join(t.TempDir(), "access.jsonl")
	if err := os.WriteFile(log, []byte(record("01", `,"emergency":true`)+record("02", `,"emergency":true`)+record("03", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs, output: "table", now: time.Now, environ: func() []string { return nil }}
	seen, err := a.readAccess([]string{log})
	if err != nil {
		t.Fatal(err)
	}
	entry := auditEntry(t, "emergency.import", "01a22b9f-b74a-76d9-a728-da5af5462e49", `{"issuer":"aa","serial":"01"}`)
	if err := seen.committed(entry); err != nil {
		t.Fatal(err)
	}
	err = a.sayAccess(seen)
	if err == nil || !strings.Contains(err.Error(), "1 of 3 certificates were never committed") {
		t.Errorf("it says %v", err)
	}
	for _, want := range []string{"emergency        2, of which 1 are not imported", "never committed  1"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not print %q:\n%s", want, out.String())
		}
	}
	delete(seen.missing, accessed{Issuer: "aa", Serial: "03", Grant: "01a22b9f-b74a-76d9-a728-da5af5462e49"})
	if err := a.sayAccess(seen); err == nil || !strings.Contains(err.Error(), "1 emergency certificates are not imported") {
		t.Errorf("without a forged one it says %v", err)
	}
}

func auditEntry(t *testing.T, kind, object, details string) audit.Entry {
	t.Helper()
	return audit.Entry{Kind: kind, Object: object, Details: json.RawMessage(details)}
}
