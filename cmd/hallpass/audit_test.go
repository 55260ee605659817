package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

// hashes is an audit.HashStore in memory.
type hashes map[int64]tlog.Hash

func (h hashes) GetHash(index int64) (tlog.Hash, bool) { v, ok := h[index]; return v, ok }
func (h hashes) PutHash(index int64, v tlog.Hash)      { h[index] = v }

// serveLog makes the fake serve a signed log of n entries, and returns the key that checks it.
func (f *fake) serveLog(t *testing.T, n int) (verifierKey string) {
	t.Helper()
	signer, err := audit.GenerateKey("acme.test", "n1")
	if err != nil {
		t.Fatal(err)
	}
	store, size := hashes{}, int64(0)
	var bodies []json.RawMessage
	for i := range n {
		e := audit.Entry{
			Index: uint64(i), Time: time.UnixMilli(1700000000000 + int64(i)).UTC(), Kind: "request.create",
			Actor: "spiffe://acme.test/user/alice", Node: "n1", Object: "object-" + strconv.Itoa(i),
			CommandID: "01a20afa-e731-7f26-a3d8-3e7dc7f78185", Details: json.RawMessage(`{"reason":"<b>&"}`),
		}
		var body []byte
		if body, size, err = audit.AppendEntry(store, size, e); err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	root, err := audit.Root(store, size)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := audit.Checkpoint{Origin: audit.Origin("acme.test", 1), Size: size, Root: root}.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	f.answer("GET /v1/audit/checkpoint", http.StatusOK, api.AuditCheckpoint{Checkpoint: string(signed), Size: uint64(size)})
	f.answer("GET /v1/cluster", http.StatusOK, api.Cluster{Nodes: []api.Node{{ID: "n1", AuditKey: signer.VerifierKey()}}})
	f.mux.HandleFunc("GET /v1/audit/entries", func(w http.ResponseWriter, r *http.Request) {
		from, err := strconv.Atoi(r.URL.Query().Get("from"))
		if err != nil {
			t.Error(err)
		}
		// Three at a time, so that the client has to page; byte for byte, as the real one does.
		run := bodies[min(from, n):min(from+3, n)]
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(api.AuditEntries{Entries: run, Size: uint64(n)}); err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(out.Bytes()) // the client tells when it did not get it
	})
	return signer.VerifierKey()
}

func TestAuditExportAndVerify(t *testing.T) {
	f := newFake(t)
	key := f.serveLog(t, 8)
	dir := filepath.Join(t.TempDir(), "export")
	if got := f.as(t, f.identity, "audit", "export", "--out", dir); got.status != exitOK || !strings.Contains(got.stdout, "8 entries") {
		t.Fatalf("export: %+v", got)
	}
	if got := f.as(t, f.identity, "audit", "export", "--out", dir); got.status != exitError {
		t.Errorf("export over an export: %+v", got)
	}
	verify := func(args ...string) ran { return run(t, nil, append([]string{"audit", "verify", dir}, args...)...) }
	if got := verify("--key", key); got.status != exitOK || got.stderr != "" || !strings.Contains(got.stdout, "verified") {
		t.Errorf("verify: %+v", got)
	}
	if got := verify(); got.status != exitOK || !strings.Contains(got.stderr, "warning: using the keys that came with the log") {
		t.Errorf("verify with the log's own keys: %+v", got)
	}
	if got := verify("--key", otherKey(t)); got.status != exitError {
		t.Errorf("verify with another key: %+v", got)
	}
	if got := verify("--key", "no key"); got.status != exitUsage {
		t.Errorf("verify with no key: %+v", got)
	}
	if got := f.as(t, f.identity, "audit", "verify", "--key", key); got.status != exitOK {
		t.Errorf("verify the live log: %+v", got)
	}

	file := filepath.Join(dir, entriesFile)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(text, []byte("object-5"), []byte("object-X"), 1)
	if err := os.WriteFile(file, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := verify("--key", key); got.status != exitError || !strings.Contains(got.stderr, "tampered with: entry 5") {
		t.Errorf("a changed entry: %+v", got)
	}
	if err := os.WriteFile(file, text[:bytes.LastIndexByte(text[:len(text)-1], '\n')+1], 0o600); err != nil {
		t.Fatal(err)
	}
	if got := verify("--key", key); got.status != exitError {
		t.Errorf("the last entry left out: %+v", got)
	}
}

// otherKey makes a key that signed none of it.
func otherKey(t *testing.T) string {
	t.Helper()
	signer, err := audit.GenerateKey("acme.test", "n1")
	if err != nil {
		t.Fatal(err)
	}
	return signer.VerifierKey()
}

func TestAuditTail(t *testing.T) {
	f := newFake(t)
	f.serveLog(t, 8)
	got := f.as(t, f.identity, "audit", "tail", "-n", "2")
	if got.status != exitOK || strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, "object-7") {
		t.Errorf("tail: %+v", got)
	}
	got = f.as(t, f.identity, "audit", "tail", "-n", "1", "-o", "json")
	if e, err := audit.ParseEntry([]byte(strings.TrimSuffix(got.stdout, "\n"))); err != nil || e.Index != 7 {
		t.Errorf("tail -o json: %v, %+v", err, got)
	}
}
