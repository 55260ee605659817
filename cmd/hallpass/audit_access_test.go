package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

// issues makes entries 3 and 6 those of certificates of the grant.
func issues(e *audit.Entry) {
	if e.Index == 3 || e.Index == 6 {
		e.Kind, e.Object = "grant.issue", provable
		e.Details = json.RawMessage(fmt.Sprintf(`{"issuer":"15","serial":"5e%d"}`, e.Index))
	}
}

// record is a line of an access log.
func record(issuer, serial, grant, when string) string {
	return fmt.Sprintf(`{"time":%q,"kind":"request","event":"end","service":"payments","subject":"spiffe://acme.test/user/alice","grant":%q,"issuer":%q,"serial":%q,"decision":"allow"}`+"\n",
		when, grant, issuer, serial)
}

// TestAuditCheckAccess: certificates that were committed are found wherever in the log they are;
// one of a stolen issuer is not, whatever it borrows from one that was.
func TestAuditCheckAccess(t *testing.T) {
	const (
		at    = "2023-11-14T22:13:21.000Z"
		later = "2023-11-20T00:00:00.000Z" // the log ends days before: it has to be read as a whole
		other = "018bcfe4-7da0-7f26-a3d8-3e7dc7f78186"
	)
	f := newFake(t)
	key := f.serveLog(t, 8, issues)
	dir := t.TempDir()
	export := filepath.Join(dir, "export")
	if got := f.as(t, f.identity, "audit", "export", "--out", export); got.status != exitOK {
		t.Fatal(got)
	}
	good := record("15", "5e3", provable, at) + record("15", "5e6", provable, at) + record("15", "5e6", provable, at)
	identity := `{"time":"` + at + `","kind":"handshake","issuer":"77","serial":"88","decision":"refuse"}` + "\n"
	for name, c := range map[string]struct {
		log   string
		never []string // serials
		warns string
	}{
		"all committed":         {good, nil, ""},
		"committed days before": {record("15", "5e3", provable, later), nil, ""},
		"no grant":              {good + identity, nil, ""},
		"nothing":               {"", nil, ""},
		"a torn line":           {good + `{"time":"2023-11-14T22:13:2` + "\n", nil, "1 lines are no access records"},
		"a made-up serial":      {good + record("15", "bad", provable, at), []string{"bad"}, ""},
		"another issuer":        {record("16", "5e3", provable, at), []string{"5e3"}, ""},
		"another grant":         {record("15", "5e3", other, at), []string{"5e3"}, ""},
		"two, one of them late": {record("15", "b1", provable, at) + good + record("15", "b2", provable, later), []string{"b1", "b2"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "access.jsonl")
			if err := os.WriteFile(file, []byte(c.log), 0o600); err != nil {
				t.Fatal(err)
			}
			want := exitOK
			if len(c.never) > 0 {
				want = exitError
			}
			for where, got := range map[string]ran{
				"live":   f.as(t, f.identity, "audit", "check-access", file, "-o", "json"),
				"export": run(t, nil, "audit", "check-access", file, "--export", export, "--key", key, "-o", "json"),
			} {
				var out checkedAccess
				if err := json.Unmarshal([]byte(got.stdout), &out); err != nil || got.status != want {
					t.Fatalf("%s: %+v, %v; want status %d", where, got, err, want)
				}
				var never []string
				for _, at := range out.NeverCommitted {
					never = append(never, at.Serial)
				}
				if strings.Join(never, " ") != strings.Join(c.never, " ") {
					t.Errorf("%s: never committed: %v, want %v", where, never, c.never)
				}
				if !strings.Contains(got.stderr, c.warns) || c.warns == "" && want == exitOK && got.stderr != "" {
					t.Errorf("%s: it warns %q, want %q", where, got.stderr, c.warns)
				}
			}
		})
	}
	file := filepath.Join(dir, "access.jsonl")
	if err := os.WriteFile(file, []byte(good+record("15", "bad", provable, at)), 0o600); err != nil {
		t.Fatal(err)
	}
	got := f.as(t, f.identity, "audit", "check-access", file, file)
	if got.status != exitError || !strings.Contains(got.stdout, "never committed  1\n") || !strings.Contains(got.stderr, "1 of 3 certificates were never committed") {
		t.Errorf("for people: %+v", got)
	}
	if got := run(t, nil, "audit", "check-access"); got.status != exitUsage {
		t.Errorf("no file: %+v", got)
	}
	none := filepath.Join(dir, "manifest.json")
	if err := os.WriteFile(none, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := f.as(t, f.identity, "audit", "check-access", none); got.status != exitError || got.stdout != "" || !strings.Contains(got.stderr, "no access record in "+none) {
		t.Errorf("no access log: %+v", got)
	}
	// An export that is not the cluster's clears nobody.
	if got := run(t, nil, "audit", "check-access", file, "--export", export, "--key", otherKey(t)); got.status != exitError || strings.Contains(got.stdout, "certificates") {
		t.Errorf("an export by another key: %+v", got)
	}
	entries := filepath.Join(export, entriesFile)
	text, err := os.ReadFile(entries)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(entries, []byte(strings.Replace(string(text), "5e6", "bad", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, nil, "audit", "check-access", file, "--export", export, "--key", key); got.status != exitError || !strings.Contains(got.stderr, "tampered") {
		t.Errorf("an export that was changed: %+v", got)
	}
}

// TestEntriesInTheirPlaces: a node that gives the same entry again and again, so that
// another is never looked at, is found out.
func TestEntriesInTheirPlaces(t *testing.T) {
	f := newFake(t)
	body, _, err := audit.AppendEntry(hashes{}, 0, audit.Entry{
		Time: time.UnixMilli(1700000000000).UTC(), Kind: "request.create", Actor: "spiffe://acme.test/user/alice", Node: "n1",
		Object: provable, CommandID: "01a20afa-e731-7f26-a3d8-3e7dc7f78185", Details: json.RawMessage(`{}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.answer("GET /v1/audit/entries", http.StatusOK, api.AuditEntries{Entries: []json.RawMessage{body}, Size: 3})
	text, _ := logOf(t, "0123456789abcdef0123456789abcdef", nil, use(provable, "GET /accounts/**", "GET", "/accounts/1"))
	for command, log := range map[string]string{"check-access": record("15", "5e3", provable, "2023-11-14T22:13:21.000Z"), "access": text} {
		file := filepath.Join(t.TempDir(), "access.jsonl")
		if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		got := f.as(t, f.identity, "audit", command, file)
		if got.status != exitError || !strings.Contains(got.stderr, "entry 1: entry 0 stands in its place") {
			t.Errorf("%s: %+v", command, got)
		}
	}
}

// However a log comes in pieces, its lines are those that it has.
func TestEachLine(t *testing.T) {
	const text = "one\n\ntwo\nthree"
	for size := 1; size <= len(text); size++ {
		var got []string
		lines := &eachLine{fn: func(line []byte) error { got = append(got, string(line)); return nil }}
		for rest := text; rest != ""; rest = rest[min(size, len(rest)):] {
			piece := rest[:min(size, len(rest))]
			if n, err := lines.Write([]byte(piece)); n != len(piece) || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
		if err := lines.end(); err != nil || strings.Join(got, "|") != "one||two|three" {
			t.Errorf("in pieces of %d: %q, %v", size, got, err)
		}
	}
}
