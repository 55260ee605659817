package main

import (
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/trust"
)

// TestRootsByCommand rotates and retires roots, and says so in documents that
// follow from the founding ones.
func TestRootsByCommand(t *testing.T) {
	dir := filepath.Join(offlineCluster(t), "ca")
	m, err := ca.LoadManifest(filepath.Join(dir, ca.ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := offlineOK(t, offlineNow(), "ca", "rotate", "--dir", dir, "-o", "json")
	var made []madeDocument
	if err := json.Unmarshal([]byte(stdout), &made); err != nil || len(made) != 2 || len(made[1].Roots) != 2 {
		t.Fatalf("%v: %s", err, stdout)
	}
	if !strings.Contains(stderr, "hallpass bundle publish") {
		t.Errorf("no word on what is next: %s", stderr)
	}
	offlineOK(t, offlineNow(), "ca", "retire", "--dir", dir, "--grants")
	offlineOK(t, offlineNow(), "ca", "deny", strings.Repeat("ab", 32), "--dir", dir, "--identities")
	text, err := os.ReadFile(filepath.Join(dir, ca.RootsFile))
	if err != nil {
		t.Fatal(err)
	}
	documents, err := trust.ParseAll(text)
	if err != nil {
		t.Fatal(err)
	}
	identity, _ := trust.NewSet("acme.test", m.IdentityRoots).Follow(documents)
	grants, _ := trust.NewSet("grants.acme.test", m.GrantRoots).Follow(documents)
	if len(identity.Roots()) != 2 || !identity.Denies(strings.Repeat("ab", 32)) || len(grants.Roots()) != 1 || grants.Has(m.GrantRoots[0]) {
		t.Errorf("identities: %d roots at %d; grants: %d roots at %d", len(identity.Roots()), identity.Sequence(), len(grants.Roots()), grants.Sequence())
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"no folder":       {[]string{"ca", "rotate"}, exitUsage, "--dir"},
		"nothing to deny": {[]string{"ca", "deny", "--dir", dir}, exitUsage, "ISSUER-ID"},
		"no issuer's id":  {[]string{"ca", "deny", "n1", "--dir", dir}, exitUsage, "64 hex digits"},
		"the only root":   {[]string{"ca", "retire", "--dir", dir, "--grants"}, exitError, "one root"},
	} {
		if status, _, stderr := offlineRun(t, offlineNow(), "", c.args...); status != c.status || !strings.Contains(stderr, c.says) {
			t.Errorf("%s: status %d, %s", name, status, stderr)
		}
	}
}

// TestPublishSaysWhatTheLeaderSays: roots are read at any node, of which one may not
// have heard yet what was just put in force.
func TestPublishSaysWhatTheLeaderSays(t *testing.T) {
	dir := filepath.Join(offlineCluster(t), "ca")
	m, err := ca.LoadManifest(filepath.Join(dir, ca.ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	f := newFake(t)
	set := func(td string, sequence uint64, certs ...*x509.Certificate) api.RootSet {
		return api.RootSet{TrustDomain: td, Sequence: sequence, Roots: string(ca.EncodeCertificates(certs...))}
	}
	old := api.Roots{Identity: set("acme.test", 0, m.IdentityRoots...), Grants: set("grants.acme.test", 0, m.GrantRoots...)}
	f.mux.HandleFunc("GET /v1/roots", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, old) })
	f.mux.HandleFunc("POST /v1/roots", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, set("grants.acme.test", 1, m.GrantRoots...))
	})
	offlineOK(t, offlineNow(), "ca", "rotate", "--dir", dir, "--grants")
	got := f.as(t, f.identity, "bundle", "publish", filepath.Join(dir, ca.RootsFile), "-o", "json")
	var states []rootsState
	if err := json.Unmarshal([]byte(got.stdout), &states); err != nil || len(states) != 2 || states[0].Sequence != 0 || states[1].Sequence != 1 {
		t.Errorf("%v: %+v", err, got)
	}
	empty := filepath.Join(t.TempDir(), ca.RootsFile)
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := f.as(t, f.identity, "bundle", "publish", empty); got.status != exitError || !strings.Contains(got.stderr, "holds no roots document") {
		t.Errorf("an empty file: %+v", got)
	}
}
