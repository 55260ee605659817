package main

import (
	"bytes"
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
	"github.com/hallpass/hallpass/proxy/records"
)

// headAt is a log's head when it had so many lines.
func headAt(text, id string, size int) records.Head {
	var tree records.Tree
	for line := range strings.Lines(text) {
		if tree.Size() < int64(size) {
			tree.Append([]byte(strings.TrimSuffix(line, "\n")))
		}
	}
	return tree.Head(id)
}

// anchoring makes the first entries those that anchor heads, one each.
func anchoring(heads ...records.Head) func(e *audit.Entry) {
	return func(e *audit.Entry) {
		if e.Index >= uint64(len(heads)) {
			return
		}
		h := heads[e.Index]
		e.Kind, e.Object, e.Actor = kindAnchor, "", ""
		e.Details = json.RawMessage(fmt.Sprintf(`{"heads":[{"by":"spiffe://acme.test/service/payments","log":%q,"size":%d,"root":%q,"sent":1}]}`, h.Log, h.Size, h.Root))
	}
}

// TestAuditAccessAnchored: a log is held against what was anchored of it, by an export
// that is verified first; whatever was changed is found out, and where.
func TestAuditAccessAnchored(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	var lines []string
	for i := range 6 {
		lines = append(lines, use(provable, "GET /accounts/**", "GET", fmt.Sprintf("/accounts/%d", i)))
	}
	text, end := logOf(t, id, nil, lines...)
	f := newFake(t)
	f.answer("GET /v1/grants/{id}", http.StatusOK, api.Grant{ID: provable, Service: "payments", Permissions: []string{"GET /accounts/**"}})
	key := f.serveLog(t, 8, anchoring(headAt(text, id, 1), headAt(text, "f"+id[1:], 3), headAt(text, id, 4), end))
	export := filepath.Join(t.TempDir(), "export")
	if got := f.as(t, f.identity, "audit", "export", "--out", export); got.status != exitOK {
		t.Fatal(got)
	}
	without := func(n int) string { return strings.Replace(text, lines[n], "", 1) }
	for name, tt := range map[string]struct {
		text, want string
		flags      []string
		status     int
	}{
		"as it was":               {text: text, want: "anchored at entry 3"},
		"with newer lines":        {text: text + use(provable, "GET /accounts/**", "GET", "/accounts/9"), want: "first 7 anchored at entry 3"},
		"an edited line":          {text: strings.Replace(text, "/accounts/4", "/accounts/7", 1), want: "its first 4 are as anchored at entry 2", status: exitError},
		"an edited early line":    {text: strings.Replace(text, "/accounts/0", "/accounts/7", 1), want: "its first 4 lines are not what was anchored at entry 2", status: exitError},
		"a line taken out":        {text: without(1), want: "changed since", status: exitError},
		"a line put in":           {text: strings.Replace(text, lines[2], lines[2]+lines[2], 1), want: "changed since", status: exitError},
		"cut short":               {text: without(5), want: "has 6 lines, and 7 were anchored at entry 3: it was cut short, or copied before", status: exitError},
		"an early copy":           {text: without(5), want: "first 4 anchored at entry 2; 1 MORE", flags: []string{"--incomplete"}},
		"an early copy, edited":   {text: strings.Replace(without(5), "/accounts/1", "/accounts/7", 1), want: "changed since", flags: []string{"--incomplete"}, status: exitError},
		"another name":            {text: strings.Replace(text, id, "1"+id[1:], 1), want: "is NOT anchored", status: exitError},
		"another name, as wanted": {text: strings.Replace(text, id, "1"+id[1:], 1), want: "NOT anchored", flags: []string{"--allow-unanchored"}},
		"no name":                 {text: text[strings.Index(text, "\n")+1:], want: "6 lines are of no log", status: exitError},
	} {
		file := filepath.Join(t.TempDir(), "access.jsonl")
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"audit", "access", file}, tt.flags...)
		for where, got := range map[string]ran{
			"live": f.as(t, f.identity, args...), "export": run(t, nil, append(args, "--export", export, "--key", key)...),
		} {
			if got.status != tt.status || !strings.Contains(got.stdout+got.stderr, tt.want) {
				t.Errorf("%s, %s: %+v", name, where, got)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "access.jsonl")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	piped := &app{stdin: strings.NewReader(text), stdout: &stdout, stderr: &stderr, environ: func() []string { return nil }, now: time.Now}
	status := piped.run(t.Context(), []string{"audit", "access", "--export", export, "--key", key, "-o", "json", "-"})
	var out usedAccess
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil || status != exitOK || len(out.Logs) != 1 {
		t.Fatalf("%d, %v: %s%s", status, err, &stdout, &stderr)
	}
	if l := out.Logs[0]; l.Anchored != 7 || l.Size != 7 || l.Entry == nil || *l.Entry != 3 || l.By != "spiffe://acme.test/service/payments" {
		t.Errorf("%+v", l)
	}
	entries := filepath.Join(export, entriesFile)
	data, err := os.ReadFile(entries)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(entries, []byte(strings.Replace(string(data), end.Root, strings.Repeat("0", 64), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, nil, "audit", "access", "--export", export, "--key", key, file); got.status != exitError || !strings.Contains(got.stderr, "tampered") {
		t.Errorf("an export that was tampered with: %+v", got)
	}
}
