package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/grant"
)

// offlineRun runs one of the commands that need no cluster.
func offlineRun(t *testing.T, now time.Time, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{
		stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs,
		environ: func() []string { return nil }, now: func() time.Time { return now }, output: "table",
	}
	root := &cobra.Command{Use: "hallpass", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "")
	server := &cobra.Command{Use: "server"}
	server.AddCommand(newServerInitCommand(a), newServerInstall(a))
	root.AddCommand(newCACommand(a), newCertCommand(a), server)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(t.Context())
	return a.fail(cmd, err), out.String(), errs.String()
}

func offlineOK(t *testing.T, now time.Time, args ...string) (stdout, stderr string) {
	t.Helper()
	status, stdout, stderr := offlineRun(t, now, "", args...)
	if status != exitOK {
		t.Fatalf("hallpass %s: status %d\n%s%s", strings.Join(args, " "), status, stdout, stderr)
	}
	return stdout, stderr
}

func offlineNow() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

const seedText = `persons:
  - {name: alice, ids: ["spiffe://acme.test/user/alice"], owns: ["spiffe://acme.test/agent/bot"]}
groups:
  - {name: payments-owners, members: [alice, bob]}
policy: |
  version: 1
  rules: []
`

// offlineCluster makes a cluster of three nodes by command alone and returns its folder.
func offlineCluster(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	seed := filepath.Join(dir, "seed.yaml")
	if err := os.WriteFile(seed, []byte(seedText), 0o600); err != nil {
		t.Fatal(err)
	}
	offlineOK(t, offlineNow(), "ca", "init", "--dir", filepath.Join(dir, "ca"), "--trust-domain", "acme.test", "--dev", "--admin", "bob,carol", "--admin", "dana", "--seed", seed)
	sign := []string{"ca", "sign-node", "--dir", filepath.Join(dir, "ca")}
	for _, n := range []string{"n1", "n2", "n3"} {
		keys := filepath.Join(dir, n)
		offlineOK(t, offlineNow(), "server", "init", "--dir", keys, "--node", n, "--trust-domain", "acme.test",
			"--raft-address", "127.0.0.1:710"+n[1:], "--api-address", "127.0.0.1:810"+n[1:], "--ip", "127.0.0.1", "--dns", "localhost")
		sign = append(sign, filepath.Join(keys, ca.NodeRequestFile))
	}
	offlineOK(t, offlineNow(), sign...)
	return dir
}

func TestOfflineCluster(t *testing.T) {
	dir := offlineCluster(t)
	manifest := filepath.Join(dir, "ca", ca.ManifestFile)
	m, err := ca.LoadManifest(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Dev || len(m.Nodes) != 3 || m.Policy != "version: 1\nrules: []\n" {
		t.Errorf("manifest: dev %v, %d nodes, policy %q", m.Dev, len(m.Nodes), m.Policy)
	}
	groups := []ca.Group{{Name: "admins", Members: []string{"bob", "carol", "dana"}}, {Name: "payments-owners", Members: []string{"alice", "bob"}}}
	if diff := cmp.Diff(groups, m.Groups); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	for _, n := range []string{"n1", "n2", "n3"} {
		node, err := ca.LoadNode(filepath.Join(dir, n), m)
		if err != nil {
			t.Fatal(err)
		}
		if node.ID != n {
			t.Errorf("the keys of %s are of %s", n, node.ID)
		}
	}

	// All of it again: the roots refuse, the rest stays as it is.
	status, _, stderr := offlineRun(t, offlineNow(), "", "ca", "init", "--dir", filepath.Join(dir, "ca"), "--trust-domain", "acme.test", "--admin", "a,b,c")
	if status != exitError || !strings.Contains(stderr, "already exists") {
		t.Errorf("ca init over roots: status %d, %s", status, stderr)
	}
	before, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	init := []string{
		"server", "init", "--dir", filepath.Join(dir, "n1"), "--node", "n1", "--trust-domain", "acme.test",
		"--raft-address", "127.0.0.1:7101", "--api-address", "127.0.0.1:8101", "--ip", "127.0.0.1", "--dns", "localhost", "-o", "json",
	}
	stdout, stderr := offlineOK(t, offlineNow(), init...)
	var made madeNode
	if err := json.Unmarshal([]byte(stdout), &made); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stderr, "ca sign-node") || made.Node != "n1" || len(made.IPs) != 1 {
		t.Errorf("server init again: %+v\n%s", made, stderr)
	}
	requests := []string{filepath.Join(dir, "n2", ca.NodeRequestFile), filepath.Join(dir, "n1", ca.NodeRequestFile), filepath.Join(dir, "n3", ca.NodeRequestFile)}
	stdout, _ = offlineOK(t, offlineNow(), append([]string{"ca", "sign-node", "-o", "json", "--dir", filepath.Join(dir, "ca")}, requests...)...)
	var out signedNodes
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		t.Fatal(err)
	}
	if len(out.Nodes) != 3 || out.Nodes[0].Fingerprint != made.Fingerprint || !out.Nodes[0].NotAfter.Equal(offlineNow().Add(ca.IssuerLife)) {
		t.Errorf("sign-node again: %+v", out)
	}
	after, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("sign-node again changed the manifest")
	}
	sign := append([]string{"ca", "sign-node", "--dir", filepath.Join(dir, "ca")}, requests[:2]...)
	if status, _, stderr = offlineRun(t, offlineNow(), "", sign...); status != exitError || !strings.Contains(stderr, "--replace") {
		t.Errorf("sign-node with fewer nodes: status %d, %s", status, stderr)
	}
	offlineOK(t, offlineNow(), append(sign, "--replace", "--dns-domain", "payments", "--ip-range", "10.0.0.0/8")...)
}

func TestOfflineUsage(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "seed.yaml")
	if err := os.WriteFile(bad, []byte("personnes: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	badPolicy, noGroup := filepath.Join(dir, "bad-policy.yaml"), filepath.Join(dir, "no-group.yaml")
	for file, text := range map[string]string{
		badPolicy: "policy: |\n  version: 2\n",
		noGroup:   "policy: |\n  version: 1\n  rules:\n    - {name: r, service: payments, requesters: [group:nobody], permissions: [tcp], auto: true, max_duration: 1h}\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ok := []string{"ca", "init", "--dir", filepath.Join(dir, "ca"), "--trust-domain", "acme.test", "--admin", "a,b,c"}
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"ca", "init"}, exitUsage, "--dir"},
		{[]string{"ca", "init", "--dir", "x"}, exitUsage, "--trust-domain"},
		{[]string{"ca", "init", "--dir", "x", "--trust-domain", "A B", "--admin", "a,b,c"}, exitUsage, "A B"},
		{[]string{"ca", "init", "--dir", "x", "--trust-domain", "acme.test", "--admin", "a,b"}, exitUsage, "at least 3"},
		{append(slices.Clip(ok), "--grant-trust-domain", "acme.test"), exitError, "two trust domains"},
		{append(slices.Clip(ok), "--seed", bad), exitError, "personnes: unknown key"},
		{append(slices.Clip(ok), "--seed", badPolicy), exitError, "bad-policy.yaml"},
		{append(slices.Clip(ok), "--seed", noGroup), exitError, `there is no group "nobody"`},
		{append(slices.Clip(ok), "more"), exitUsage, "too many"},
		{[]string{"ca", "sign-node"}, exitUsage, "REQUEST"},
		{[]string{"ca", "sign-node", "x"}, exitUsage, "--dir"},
		{[]string{"ca", "sign-node", bad, "--dir", dir}, exitError, "seed.yaml"},
		{[]string{"ca", "sign-node", bad, "--dir", dir, "--ip-range", "10.0.0.0"}, exitUsage, "prefix"},
		{[]string{"server", "init"}, exitUsage, "--dir"},
		{[]string{"server", "init", "--dir", "x", "--node", "n1", "--raft-address", "h:1"}, exitUsage, "--api-address"},
		{[]string{"server", "init", "--dir", "x", "--node", "n1", "--raft-address", "h:1", "--api-address", "h:2"}, exitUsage, "--trust-domain"},
		{[]string{"server", "init", "--dir", "x", "--node", "n1", "--raft-address", "h:1", "--api-address", "h:2", "--trust-domain", "acme.test", "--ip", "x"}, exitUsage, "IP address"},
		{[]string{"cert", "inspect"}, exitUsage, "FILE"},
		{[]string{"cert", "inspect", filepath.Join(dir, "none")}, exitError, "no such file"},
	} {
		status, stdout, stderr := offlineRun(t, offlineNow(), "", c.args...)
		if status != c.status || !strings.Contains(stderr, c.says) || stdout != "" {
			t.Errorf("hallpass %s: status %d, stdout %q, stderr %q; want %d and %q", strings.Join(c.args, " "), status, stdout, stderr, c.status, c.says)
		}
	}
}

// aGrant mints a grant certificate with the chain that its holder gets.
func aGrant(t *testing.T, dir string) []byte {
	t.Helper()
	m, err := ca.LoadManifest(filepath.Join(dir, "ca", ca.ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	node, err := ca.LoadNode(filepath.Join(dir, "n1"), m)
	if err != nil {
		t.Fatal(err)
	}
	scope, err := grant.ParseScope("payments", []string{"GET,HEAD /accounts/**", "POST /refunds/*", `postgres "my db" as readonly`})
	if err != nil {
		t.Fatal(err)
	}
	id, err := grant.NewID(m.GrantTrustDomain, scope, spiffeid.RequireFromString("spiffe://acme.test/user/alice"), "01938a2b-0000-7000-8000-000000000001")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := node.Grants.PrepareGrant(ca.GrantSpec{ID: id, PublicKey: key.Public(), Now: offlineNow(), TTL: 5 * time.Minute, GrantExpiry: offlineNow().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ticket.Sign(ticket.Record())
	if err != nil {
		t.Fatal(err)
	}
	return ca.EncodeCertificates(chain...)
}

func TestCertInspectGrant(t *testing.T) {
	dir := offlineCluster(t)
	chain := aGrant(t, dir)
	file := filepath.Join(dir, "cert.pem")
	if err := os.WriteFile(file, chain, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, _ := offlineOK(t, offlineNow().Add(time.Minute), "cert", "inspect", file)
	for _, want := range []string{
		"grant certificate:",
		"who      spiffe://acme.test/user/alice\n",
		"service  payments\n",
		"GET or HEAD anything below /accounts/  (GET,HEAD /accounts/**)\n",
		"POST /refunds/* (each * is one segment)  (POST /refunds/*)\n",
		"open the Postgres database \"my db\" as role readonly  (postgres \"my db\" as readonly)\n",
		"grant    01938a2b-0000-7000-8000-000000000001\n",
		"state    valid\n",
		"until    2026-11-23 12:05:00Z (in 4m)\n",
		"issuer   CN=grants.acme.test grants issuer n1,O=Hallpass, in this file, and its signature holds\n",
		"issuer: it signs certificates\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("it does not say %q:\n%s", want, stdout)
		}
	}
	for now, want := range map[time.Time]string{offlineNow().Add(6 * time.Minute): "state    expired\n", offlineNow().Add(-time.Minute): "state    not yet valid\n"} {
		if stdout, _ := offlineOK(t, now, "cert", "inspect", file); !strings.Contains(stdout, want) {
			t.Errorf("at %s it does not say %q:\n%s", now, want, stdout)
		}
	}

	status, stdout, stderr := offlineRun(t, offlineNow(), string(chain), "cert", "inspect", "-", "-o", "json")
	if status != exitOK {
		t.Fatal(stderr)
	}
	var out struct{ Certificates []inspected }
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		t.Fatal(err)
	}
	if len(out.Certificates) != 2 {
		t.Fatalf("%d certificates", len(out.Certificates))
	}
	leaf, issuer := out.Certificates[0], out.Certificates[1]
	if leaf.Kind != certGrant || leaf.Service != "payments" || len(leaf.Permissions) != 3 || leaf.IssuerID != issuer.ID || leaf.Problems != nil || len(leaf.Serial) != 34 {
		t.Errorf("grant: %+v", leaf)
	}
	if issuer.Kind != certIssuer || issuer.SPIFFEID != "spiffe://grants.acme.test" || issuer.IssuerID != "" {
		t.Errorf("issuer: %+v", issuer)
	}
}

func TestCertInspectOthers(t *testing.T) {
	dir := offlineCluster(t)
	person := filepath.Join(dir, "ca", ca.PersonsDir, "bob", ca.FolderChain)
	stdout, _ := offlineOK(t, offlineNow(), "cert", "inspect", person)
	for _, want := range []string{"identity:", "who     spiffe://acme.test/user/bob\n", "state   valid\n", "(in 30d)\n", "usage   server, client\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("of a person it does not say %q:\n%s", want, stdout)
		}
	}
	if stdout, _ := offlineOK(t, offlineNow(), "cert", "inspect", filepath.Join(dir, "ca", ca.GrantsRootFile)); !strings.Contains(stdout, "root:") || !strings.Contains(stdout, "issuer  itself\n") {
		t.Errorf("of a root it says:\n%s", stdout)
	}
	// DER, and PEM with text around it, as other tools write it.
	der := filepath.Join(dir, "cert.der")
	opensslRun(t, "x509", "-in", person, "-outform", "DER", "-out", der)
	text := filepath.Join(dir, "cert.txt")
	opensslRun(t, "x509", "-in", person, "-text", "-out", text)
	for _, file := range []string{der, text} {
		if stdout, _ := offlineOK(t, offlineNow(), "cert", "inspect", file); !strings.Contains(stdout, "spiffe://acme.test/user/bob") {
			t.Errorf("of %s it says:\n%s", file, stdout)
		}
	}
	// A certificate of nothing we know, and one that only looks like a grant.
	for uri, says := range map[string]string{
		"":                                "0 URI names",
		"URI:https://acme.test/":          "no SPIFFE ID",
		"URI:spiffe://a.test,URI:spiffe:": "2 URI names",
		"URI:spiffe://grants.acme.test/v1/payments/_can/everything": "looks like a grant and is none",
		"DNS:acme.test,URI:spiffe://acme.test":                      "names a trust domain",
	} {
		file := filepath.Join(dir, "odd.pem")
		args := []string{"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", filepath.Join(dir, "odd.key"), "-out", file, "-subj", "/CN=odd", "-addext", "basicConstraints=CA:FALSE"}
		if uri != "" {
			args = append(args, "-addext", "subjectAltName="+uri)
		}
		opensslRun(t, args...)
		if stdout, _ := offlineOK(t, offlineNow(), "cert", "inspect", file); !strings.Contains(stdout, "problem") || !strings.Contains(stdout, says) {
			t.Errorf("of %q it does not say %q:\n%s", uri, says, stdout)
		}
	}
	for _, c := range []struct{ name, content, says string }{
		{"key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no certificate, but: private key"},
		{"csr.pem", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "certificate request"},
		{"half.pem", "-----BEGIN CERTIFICATE-----\nAAAA", "broken PEM"},
		{"junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1"},
		{"empty.pem", "", "neither PEM nor DER"},
		{"notes.txt", "hello\n", "neither PEM nor DER"},
		{"huge.bin", strings.Repeat("x", maxInspect+1), "more than"},
	} {
		file := filepath.Join(dir, c.name)
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		status, stdout, stderr := offlineRun(t, offlineNow(), "", "cert", "inspect", file)
		if status != exitError || stdout != "" || !strings.Contains(stderr, c.says) || !strings.Contains(stderr, c.name) {
			t.Errorf("%s: status %d, %q, %q", c.name, status, stdout, stderr)
		}
	}
}

func opensslRun(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// A node is added and dropped without the others' requests, and the manifest says which it is.
func TestCASignNodeAgain(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ok := func(args ...string) ran {
		t.Helper()
		got := run(t, nil, args...)
		if got.status != exitOK {
			t.Fatalf("hallpass %s: %+v", strings.Join(args, " "), got)
		}
		return got
	}
	ok("ca", "init", "--dir", in("ca"), "--trust-domain", "acme.test", "--admin", "ada,grace,linus")
	request := func(id string, port int) string {
		ok("server", "init", "--dir", in(id), "--node", id, "--trust-domain", "acme.test",
			"--raft-address", fmt.Sprintf("127.0.0.1:%d", port), "--api-address", fmt.Sprintf("127.0.0.1:%d", port+1))
		return filepath.Join(in(id), ca.NodeRequestFile)
	}
	n1, n2 := request("n1", 7001), request("n2", 7003)
	if got := ok("ca", "sign-node", "--dir", in("ca"), n1); !strings.Contains(got.stdout, "sequence  1") || !strings.Contains(got.stderr, "hallpass server") {
		t.Errorf("%+v", got)
	}
	if got := ok("ca", "sign-node", "--dir", in("ca"), "--add", n2); !strings.Contains(got.stdout, "sequence  2") || !strings.Contains(got.stdout, "n1 ") || !strings.Contains(got.stderr, "hallpass cluster adopt "+in("ca")) {
		t.Errorf("%+v", got)
	}
	if got := ok("ca", "sign-node", "--dir", in("ca"), "--drop", "n1"); !strings.Contains(got.stdout, "sequence  3") || strings.Contains(got.stdout, "n1 ") {
		t.Errorf("%+v", got)
	}
	for _, more := range [][]string{
		{"--add", "--replace", n1}, {"--add", "--renew", n1}, {"--drop", "n2", "--renew"}, {},
	} {
		if got := run(t, nil, append([]string{"ca", "sign-node", "--dir", in("ca")}, more...)...); got.status != exitUsage {
			t.Errorf("%q: %+v", more, got)
		}
	}
	if got := run(t, nil, "ca", "sign-node", "--dir", in("ca"), "--drop", "n9"); got.status != exitError || !strings.Contains(got.stderr, `no node "n9"`) {
		t.Errorf("%+v", got)
	}
}
