package main

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/ca"
)

// TestRenewByCommand has a node's successors signed, with its keys and with new
// ones, and put into its folder.
func TestRenewByCommand(t *testing.T) {
	dir := offlineCluster(t)
	later := offlineNow().Add(40 * 24 * time.Hour)
	keys, request := filepath.Join(dir, "n1"), filepath.Join(dir, "n1", ca.NodeRequestFile)
	renew := []string{"ca", "sign-node", "--dir", filepath.Join(dir, "ca"), "--renew", request, "--life", "168h"}
	_, stderr := offlineOK(t, later, renew...)
	if !strings.Contains(stderr, "hallpass issuer install") {
		t.Errorf("no word on what is next: %s", stderr)
	}
	file := filepath.Join(dir, "ca", ca.RenewedDir, "n1.json")
	first, err := ca.LoadNodeCertificates(file)
	if err != nil {
		t.Fatal(err)
	}
	if !first.NotAfter().Equal(later.Add(168 * time.Hour)) {
		t.Errorf("until %s", first.NotAfter())
	}
	offlineOK(t, later, "server", "install", file, "--dir", keys)

	offlineOK(t, later, "server", "init", "--dir", keys, "--node", "n1", "--trust-domain", "acme.test", "--raft-address", "127.0.0.1:7101",
		"--api-address", "127.0.0.1:8101", "--ip", "127.0.0.1", "--dns", "localhost", "--new-issuer-keys")
	offlineOK(t, later, renew...)
	second, err := ca.LoadNodeCertificates(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(first.GrantIssuer.RawSubjectPublicKeyInfo, second.GrantIssuer.RawSubjectPublicKeyInfo) {
		t.Error("the new keys were not signed")
	}
	offlineOK(t, later, "server", "install", file, "--dir", keys)

	for name, c := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"another node's folder": {[]string{"server", "install", file, "--dir", filepath.Join(dir, "n2")}, exitError, "of node"},
		"no folder":             {[]string{"server", "install", file}, exitUsage, "--dir"},
		"not what it should be": {[]string{"server", "install", request, "--dir", keys}, exitError, "node certificates"},
		"both at once":          {append(slices.Clip(renew), "--replace"), exitUsage, "one of them"},
		"a hundred days":        {append(slices.Clip(renew[:len(renew)-1]), "2400h"), exitError, "at most"},
	} {
		status, _, stderr := offlineRun(t, later, "", c.args...)
		if status != c.status || !strings.Contains(stderr, c.says) {
			t.Errorf("%s: status %d, %s", name, status, stderr)
		}
	}
}
