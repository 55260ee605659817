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
func (f *fake) serveLog(t *testing.T, n int, edits ...func(*audit.Entry)) (verifierKey string) {
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
			Actor: "spiffe://acme.test/user/alice", Node: "n1", Object: objectOf(i),
			CommandID: "01a20afa-e731-7f26-a3d8-3e7dc7f78185", Details: json.RawMessage(`{"reason":"<b>&"}`),
		}
		for _, edit := range edits {
			edit(&e)
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
	head := audit.Checkpoint{Origin: audit.Origin("acme.test", 1), Size: size, Root: root}
	signed, err := head.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	signed = append(signed, cosignature(t, signer, head)...)
	f.answer("GET /v1/audit/checkpoint", http.StatusOK, api.AuditCheckpoint{Checkpoint: string(signed), Size: uint64(size)})
	f.serveProofs(t, store)
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

// cosignature is n1's own, the only one that the fake's log has.
func cosignature(t *testing.T, signer *audit.Signer, head audit.Checkpoint) string {
	t.Helper()
	cosigner, err := audit.NewCosigner(signer, signer.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	line, err := cosigner.Cosign(head, time.Unix(1700000000, 0))
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// TestAuditRequire: a head that one node alone vouches for is refused by who asks for more,
// wherever it is verified, and is not kept for the next time.
func TestAuditRequire(t *testing.T) {
	f := newFake(t)
	key := f.serveLog(t, 8)
	dir := t.TempDir()
	export, bundle, since, kept := filepath.Join(dir, "export"), filepath.Join(dir, "bundle"), f.checkpoint(t), filepath.Join(dir, "kept")
	if got := f.as(t, f.identity, "audit", "export", "--out", export); got.status != exitOK {
		t.Fatal(got)
	}
	if got := f.as(t, f.identity, "audit", "prove", provable, "--out", bundle, "--require", "2"); got.status != exitError || !strings.Contains(got.stderr, "2 nodes must have cosigned it") {
		t.Errorf("prove: %+v", got)
	}
	if got := f.as(t, f.identity, "audit", "prove", provable, "--out", bundle, "--require", "1"); got.status != exitOK {
		t.Errorf("prove: %+v", got)
	}
	for name, args := range map[string][]string{
		"export": {export}, "bundle": {bundle}, "since": {"--since", since}, "live": nil,
	} {
		verify := append([]string{"audit", "verify", "--key", key, "--save", kept, "--require"}, "2")
		got := f.as(t, f.identity, append(verify, args...)...)
		if got.status != exitError || !strings.Contains(got.stderr, "2 nodes must have cosigned it, and acme.test/hallpass/node/n1 did") {
			t.Errorf("%s: %+v", name, got)
		}
		if _, err := os.Stat(kept); !os.IsNotExist(err) {
			t.Errorf("%s: it is kept: %v", name, err)
		}
		verify[len(verify)-1] = "1"
		got = f.as(t, f.identity, append(verify[:4:4], append(verify[6:], args...)...)...)
		if got.status != exitOK || !strings.Contains(got.stdout, "cosigned by") {
			t.Errorf("%s by one: %+v", name, got)
		}
	}
	if got := f.as(t, f.identity, "audit", "verify", export, "--key", key, "--require", "-1"); got.status != exitUsage {
		t.Errorf("less than none: %+v", got)
	}
}

// provable is the id of a grant, made a minute before the log's first entry; the log has entries
// about it at 2 and 4.
const provable = "018bcfe4-7da0-7f26-a3d8-3e7dc7f78185"

func objectOf(i int) string {
	if i == 2 || i == 4 {
		return provable
	}
	return "object-" + strconv.Itoa(i)
}

// serveProofs makes the fake prove what is asked of the log in store.
func (f *fake) serveProofs(t *testing.T, store hashes) {
	t.Helper()
	number := func(r *http.Request, name string) int64 {
		n, err := strconv.ParseInt(r.URL.Query().Get(name), 10, 64)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	texts := func(list []tlog.Hash, err error) []string {
		if err != nil {
			t.Error(err)
		}
		out := []string{}
		for _, h := range list {
			out = append(out, h.String())
		}
		return out
	}
	f.mux.HandleFunc("GET /v1/audit/proof/inclusion", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, api.InclusionProof{Hashes: texts(audit.InclusionProof(store, number(r, "size"), number(r, "index")))})
	})
	f.mux.HandleFunc("GET /v1/audit/proof/consistency", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, api.ConsistencyProof{Hashes: texts(audit.ConsistencyProof(store, number(r, "old"), number(r, "new")))})
	})
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

// checkpoint keeps the log's checkpoint in a file.
func (f *fake) checkpoint(t *testing.T) (file string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kept")
	if got := f.as(t, f.identity, "audit", "export", "--out", dir); got.status != exitOK {
		t.Fatalf("export: %+v", got)
	}
	return filepath.Join(dir, checkpointFile)
}

func TestAuditVerifySince(t *testing.T) {
	f := newFake(t)
	key := f.serveLog(t, 8)
	file := f.checkpoint(t)
	saved := filepath.Join(t.TempDir(), "next")
	got := f.as(t, f.identity, "audit", "verify", "--since", file, "--key", key, "--save", saved)
	if got.status != exitOK || !strings.Contains(got.stdout, "append-only: it begins with the 8 entries") || got.stderr != "" {
		t.Errorf("the same log: %+v", got)
	}
	kept, err := os.ReadFile(saved)
	if want, err2 := os.ReadFile(file); err != nil || err2 != nil || !bytes.Equal(kept, want) {
		t.Errorf("kept %q, want %q (%v, %v)", kept, want, err, err2)
	}
	if got := f.as(t, f.identity, "audit", "checkpoint"); got.stdout != string(kept) {
		t.Errorf("checkpoint prints %+v, want %q", got, kept)
	}
	cosigner, err := audit.CosignerKey(key)
	if got := f.as(t, f.identity, "audit", "keys"); err != nil || got.stdout != key+"\n"+cosigner+"\n" {
		t.Errorf("keys prints %+v, want %q and %q", got, key, cosigner)
	}
	// Another cluster of the same name: its log is another, and so is its key.
	other := newFake(t)
	otherKey := other.serveLog(t, 3)
	if got := other.as(t, other.identity, "audit", "verify", "--since", file, "--key", otherKey); got.status != exitError {
		t.Errorf("a checkpoint of another key: %+v", got)
	}
	got = other.as(t, other.identity, "audit", "verify", "--since", file, "--key", otherKey, "--key", key, "--save", saved)
	if got.status != exitError || !strings.Contains(got.stderr, "two histories were signed: it covers 8 entries, the newer one only 3") {
		t.Errorf("a log that lost entries: %+v", got)
	}
	if again, err := os.ReadFile(saved); err != nil || !bytes.Equal(again, kept) {
		t.Errorf("a checkpoint that was refused is kept: %q, %v", again, err)
	}
}

func TestAuditProve(t *testing.T) {
	f := newFake(t)
	key := f.serveLog(t, 8)
	dir := t.TempDir()
	bundle, keys := filepath.Join(dir, "bundle"), filepath.Join(dir, "keys")
	if got := f.as(t, f.identity, "audit", "prove", provable, "--out", bundle); got.status != exitOK || !strings.Contains(got.stdout, "2 entries about "+provable) {
		t.Fatalf("prove: %+v", got)
	}
	if err := os.WriteFile(keys, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := run(t, nil, "audit", "verify", bundle, "--keys", keys)
	if got.status != exitOK || strings.Count(got.stdout, "request.create") != 2 || !strings.Contains(got.stdout, "verified: these 2 entries") {
		t.Errorf("verify: %+v", got)
	}
	for want, args := range map[int][]string{
		exitUsage: {"audit", "verify", bundle},
		exitError: {"audit", "verify", bundle, "--key", otherKey(t)},
	} {
		if got := run(t, nil, args...); got.status != want {
			t.Errorf("%v: %+v, want status %d", args, got, want)
		}
	}
	if got := run(t, nil, "audit", "verify", bundle, "--keys", keys, "--since", keys); got.status != exitUsage {
		t.Errorf("--since of a bundle: %+v", got)
	}
	for want, args := range map[int][]string{
		exitUsage: {"audit", "prove", "no-grant"},
		exitError: {"audit", "prove", "01a20afa-e731-7f26-a3d8-3e7dc7f78186", "--out", filepath.Join(dir, "none")},
	} {
		if got := f.as(t, f.identity, args...); got.status != want {
			t.Errorf("%v: %+v, want status %d", args, got, want)
		}
	}
	if got := f.as(t, f.identity, "audit", "prove", provable, "--out", bundle); got.status != exitError {
		t.Errorf("over another bundle: %+v", got)
	}
}
