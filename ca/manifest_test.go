package ca

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/internal/near"
)

// wire turns a manifest into the JSON tree that a test may change.
func wire(t *testing.T, m Manifest) manifestJSON {
	t.Helper()
	var w manifestJSON
	must(t, json.Unmarshal(got(m.Encode())(t), &w))
	return w
}

// What is wrong with a manifest is said with the field that it is wrong in. The
// signature is made anew, so that what is found is the field's own check.
func TestManifestNamesTheField(t *testing.T) {
	f := newFixture(t, 2)
	other := newFixture(t, 1)
	theirs := wire(t, other.manifest)
	off := got(openOffline(f.offline, nil))(t)
	root := got(off.signing(off.identities))(t)
	pem := func(text string) string { return strings.Replace(text, "MI", "MJ", 1) }
	for name, c := range map[string]struct {
		change func(*manifestJSON)
		says   string
	}{
		"cluster":             {func(w *manifestJSON) { w.Cluster = strings.Repeat("0", 32) }, "cluster:"},
		"trust domain":        {func(w *manifestJSON) { w.TrustDomain = "other.test" }, "identity_roots[0]"},
		"sequence":            {func(w *manifestJSON) { w.Sequence = 0 }, "sequence"},
		"empty trust domain":  {func(w *manifestJSON) { w.TrustDomain = "" }, "trust_domain"},
		"domain as URI":       {func(w *manifestJSON) { w.TrustDomain = "spiffe://acme.test" }, "trust_domain"},
		"one domain":          {func(w *manifestJSON) { w.GrantTrustDomain = w.TrustDomain }, "grant_trust_domain"},
		"other grants domain": {func(w *manifestJSON) { w.GrantTrustDomain = "grants.other.test" }, "grant_roots[0]"},
		"no roots":            {func(w *manifestJSON) { w.IdentityRoots = "" }, "identity_roots"},
		"broken roots":        {func(w *manifestJSON) { w.GrantRoots = pem(w.GrantRoots) }, "grant_roots"},
		"swapped roots":       {func(w *manifestJSON) { w.IdentityRoots, w.GrantRoots = w.GrantRoots, w.IdentityRoots }, "identity_roots[0]"},
		"pooled roots":        {func(w *manifestJSON) { w.IdentityRoots += w.GrantRoots }, "identity_roots[1]"},
		"another's root":      {func(w *manifestJSON) { w.IdentityRoots = theirs.IdentityRoots }, "cluster"},
		"another's root too":  {func(w *manifestJSON) { w.IdentityRoots = theirs.IdentityRoots + w.IdentityRoots }, "cluster"},
		"an issuer as root":   {func(w *manifestJSON) { w.IdentityRoots += w.Nodes[0].IdentityIssuer }, "identity_roots[1]"},
		"a leaf as root":      {func(w *manifestJSON) { w.IdentityRoots += w.Nodes[0].APICertificate }, "identity_roots[1]"},
		"dev":                 {func(w *manifestJSON) { w.Dev = true }, "dev"},
		"no nodes":            {func(w *manifestJSON) { w.Nodes = nil }, "nodes"},
		"one node twice":      {func(w *manifestJSON) { w.Nodes[1] = w.Nodes[0] }, "nodes[1].id"},
		"out of order":        {func(w *manifestJSON) { w.Nodes[0], w.Nodes[1] = w.Nodes[1], w.Nodes[0] }, "nodes[1].id"},
		"node id":             {func(w *manifestJSON) { w.Nodes[0].ID = "N1" }, "nodes[0].id"},
		"other node id":       {func(w *manifestJSON) { w.Nodes[0].ID = "n0" }, "nodes[0].audit_key"},
		"raft address":        {func(w *manifestJSON) { w.Nodes[1].RaftAddress = "localhost" }, "nodes[1].raft_address"},
		"same raft address":   {func(w *manifestJSON) { w.Nodes[1].RaftAddress = w.Nodes[0].RaftAddress }, "nodes[1].raft_address"},
		"api address":         {func(w *manifestJSON) { w.Nodes[1].APIAddress = "" }, "nodes[1].api_address"},
		"key":                 {func(w *manifestJSON) { w.Nodes[1].Key = "AAAA" }, "nodes[1].key"},
		"key not base64":      {func(w *manifestJSON) { w.Nodes[1].Key = "!" }, "nodes[1].key"},
		"same key":            {func(w *manifestJSON) { w.Nodes[1].Key = w.Nodes[0].Key }, "nodes[1].key"},
		"audit key":           {func(w *manifestJSON) { w.Nodes[1].AuditKey = "x" }, "nodes[1].audit_key"},
		"another's audit key": {func(w *manifestJSON) { w.Nodes[1].AuditKey = w.Nodes[0].AuditKey }, "nodes[1].audit_key"},
		"no issuer":           {func(w *manifestJSON) { w.Nodes[0].IdentityIssuer = "" }, "nodes[0].identity_issuer"},
		"two issuers":         {func(w *manifestJSON) { w.Nodes[0].GrantIssuer += w.Nodes[1].GrantIssuer }, "nodes[0].grant_issuer"},
		"swapped issuers": {func(w *manifestJSON) {
			n := &w.Nodes[0]
			n.IdentityIssuer, n.GrantIssuer = n.GrantIssuer, n.IdentityIssuer
		}, "nodes[0].identity_issuer"},
		"another root's issuer": {func(w *manifestJSON) { w.Nodes[0].GrantIssuer = theirs.Nodes[0].GrantIssuer }, "nodes[0].grant_issuer"},
		"a root as issuer":      {func(w *manifestJSON) { w.Nodes[0].GrantIssuer = w.GrantRoots }, "nodes[0].grant_issuer"},
		"a leaf as issuer":      {func(w *manifestJSON) { w.Nodes[0].IdentityIssuer = w.Nodes[0].APICertificate }, "nodes[0].identity_issuer"},
		"same issuer":           {func(w *manifestJSON) { w.Nodes[1].GrantIssuer = w.Nodes[0].GrantIssuer }, "nodes[1].grant_issuer"},
		"an issuer as API":      {func(w *manifestJSON) { w.Nodes[0].APICertificate = w.Nodes[0].IdentityIssuer }, "nodes[0].api_certificate"},
		"another's API":         {func(w *manifestJSON) { w.Nodes[0].APICertificate = w.Nodes[1].APICertificate }, "nodes[0].api_certificate"},
		"no persons":            {func(w *manifestJSON) { w.Persons = nil }, "groups[0].members[0]"},
		"a person's ID":         {func(w *manifestJSON) { w.Persons[1].IDs[0] = w.Persons[0].IDs[0] }, "persons[1].ids[0]"},
		"two admins":            {func(w *manifestJSON) { w.Groups[0].Members = w.Groups[0].Members[:2] }, "groups"},
		"an admin by another":   {func(w *manifestJSON) { w.Persons[0].IDs[0] = "spiffe://acme.test/user/eve" }, "groups[0].members[0]"},
		"no policy":             {func(w *manifestJSON) { w.Policy = "" }, "policy"},
		"signature":             {func(w *manifestJSON) { w.Signature = "!" }, "signature"},
	} {
		w := wire(t, f.manifest)
		c.change(&w)
		text := got(encodeJSON(w))(t)
		if m, err := w.parse(); err == nil {
			statement := got(m.Statement())(t)
			m.Signature = got(off.signStatement(root, "test", statement, testNow()))(t)
			text = got(m.Encode())(t)
		}
		_, err := ParseManifest(text)
		if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one that names %s", name, err, c.says)
		}
	}
}

// What no other check would see, the root's signature does.
func TestManifestTampered(t *testing.T) {
	f := newFixture(t, 2)
	for name, change := range map[string]func(*manifestJSON){
		"the sequence": func(w *manifestJSON) { w.Sequence++ },
		"an address":   func(w *manifestJSON) { w.Nodes[0].RaftAddress = "10.6.6.6:7000" },
		"a node's key": func(w *manifestJSON) { w.Nodes[0].Key = base64.StdEncoding.EncodeToString(make([]byte, 32)) },
		"the policy":   func(w *manifestJSON) { w.Policy = "version: 1\nrules: [] #\n" },
		"one more ID":  func(w *manifestJSON) { w.Persons[0].IDs = append(w.Persons[0].IDs, "spiffe://evil.test/eve") },
		"one more": func(w *manifestJSON) {
			w.Persons = append(w.Persons, Person{Name: "eve", IDs: []string{"spiffe://evil.test/eve"}})
		},
		"fewer nodes":   func(w *manifestJSON) { w.Nodes = w.Nodes[:1] },
		"no signature":  func(w *manifestJSON) { w.Signature = "" },
		"one group":     func(w *manifestJSON) { w.Groups = append(w.Groups, Group{Name: "owners", Members: []string{"ada"}}) },
		"other's owned": func(w *manifestJSON) { w.Persons[0].Owns = []string{"spiffe://acme.test/agent/bot"} },
	} {
		w := wire(t, f.manifest)
		change(&w)
		text := got(encodeJSON(w))(t)
		if _, err := ParseManifest(text); !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), "signature:") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The signature covers the manifest and nothing that is a certificate.
	if statement := got(f.manifest.Statement())(t); !bytes.HasPrefix(statement, []byte("hallpass manifest v1\n{")) || bytes.Contains(statement, f.manifest.Signature) {
		t.Errorf("the root signs %.40q", statement)
	}
}

func TestManifestSpelling(t *testing.T) {
	f := newFixture(t, 1)
	text := string(got(f.manifest.Encode())(t))
	got(ParseManifest([]byte(text)))(t)
	got(ParseManifest([]byte(strings.TrimSpace(text))))(t)
	for name, bad := range map[string]string{
		"empty":           "",
		"not JSON":        "version: 1",
		"an array":        "[]",
		"half of it":      text[:len(text)/2],
		"two of it":       text + text,
		"an unknown key":  strings.Replace(text, `"cluster"`, `"extra": 1, "cluster"`, 1),
		"another case":    strings.Replace(text, `"cluster"`, `"Cluster"`, 1),
		"a key twice":     strings.Replace(text, `"policy"`, `"policy": "", "policy"`, 1),
		"a wrong type":    strings.Replace(text, `"nodes": [`, `"nodes": [1, `, 1),
		"other spaces":    strings.Replace(text, "  ", "   ", 1),
		"other escapes":   strings.Replace(text, "acme", `acm\u0065`, 1),
		"a private key":   strings.Replace(text, `-----END CERTIFICATE-----\n"`, `-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"`, 1),
		"PEM with spaces": strings.Replace(text, `"-----BEGIN`, `" -----BEGIN`, 1),
	} {
		if _, err := ParseManifest([]byte(bad)); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "manifest.json")
	if _, err := LoadManifest(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	must(t, os.WriteFile(path, make([]byte, maxFile+1), 0o600))
	if _, err := LoadManifest(path); !errors.Is(err, ErrInvalid) {
		t.Errorf("a huge file: %v", err)
	}
	if _, err := LoadManifest(filepath.Dir(path)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a folder: %v", err)
	}
}

// A manifest is read long after its certificates have ended.
func TestManifestOutlivesItsCertificates(t *testing.T) {
	f := newFixture(t, 0)
	request := got(NewNode(t.TempDir(), testNodeOptions(1)))(t)
	m := got(SignNodes(f.offline, []NodeRequest{request}, SignOptions{Now: testNow().Add(time.Hour)}))(t)
	must(t, m.Validate())
}

func TestDevRoots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "offline")
	o := testInitOptions()
	o.Dev = true
	must(t, Init(dir, o))
	request := got(NewNode(t.TempDir(), testNodeOptions(1)))(t)
	m := got(SignNodes(dir, []NodeRequest{request}, SignOptions{Now: testNow()}))(t)
	if !m.Dev || !got(LoadManifest(filepath.Join(dir, ManifestFile)))(t).Dev {
		t.Error("a development manifest does not say so")
	}
	if newFixture(t, 1).manifest.Dev {
		t.Error("any manifest says that it is for development")
	}
}

func TestLoadNode(t *testing.T) {
	f := newFixture(t, 3)
	other := newFixture(t, 3)
	n := f.node(1)
	if n.ID != "n2" || n.Identity.Role() != RoleIdentity || n.Grants.Role() != RoleGrants || n.AuditSigner.Name() != "acme.test/hallpass/node/n2" {
		t.Errorf("node %+v", n)
	}
	if n.Identity.ID() == n.Grants.ID() || n.Grants.ID() != hexSHA256(f.manifest.Nodes[1].GrantIssuer.Raw) {
		t.Errorf("issuers %s, %s", n.Identity.ID(), n.Grants.ID())
	}
	if _, err := LoadNode(f.nodeDirs[0], other.manifest); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "no node of the manifest") {
		t.Errorf("with another cluster's manifest: %v", err)
	}
	if _, err := LoadNode(f.nodeDirs[0], Manifest{}); !errors.Is(err, ErrManifest) {
		t.Errorf("with no manifest: %v", err)
	}
	for _, name := range []string{transportKeyFile, auditKeyFile, identityIssuerKeyFile, grantIssuerKeyFile, apiKeyFile} {
		dir := f.nodeDirs[2]
		path := filepath.Join(dir, name)
		mine := got(os.ReadFile(path))(t)
		for _, mode := range []os.FileMode{0o644, 0o640, 0o604, 0o601, 0o700} {
			must(t, os.Chmod(path, mode))
			if _, err := LoadNode(dir, f.manifest); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s with mode %o: %v", name, mode, err)
			}
		}
		must(t, os.Chmod(path, 0o400))
		got(LoadNode(dir, f.manifest))(t)
		for what, content := range map[string][]byte{
			"another cluster's": got(os.ReadFile(filepath.Join(other.nodeDirs[2], name)))(t),
			"empty":             {},
			"half":              mine[:len(mine)/2],
		} {
			must(t, os.Chmod(path, 0o600))
			must(t, os.WriteFile(path, content, 0o600))
			if _, err := LoadNode(dir, f.manifest); !errors.Is(err, ErrKey) {
				t.Errorf("%s, %s: %v", name, what, err)
			} else if what == "half" && strings.Contains(err.Error(), string(mine[30:60])) {
				t.Errorf("%s: the error shows the key: %v", name, err)
			}
		}
		must(t, os.Remove(path))
		if _, err := LoadNode(dir, f.manifest); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("without %s: %v", name, err)
		}
		must(t, os.WriteFile(path, mine, 0o600))
	}
	// Two of a node's own keys, swapped.
	a, b := filepath.Join(f.nodeDirs[0], identityIssuerKeyFile), filepath.Join(f.nodeDirs[0], grantIssuerKeyFile)
	must(t, os.Rename(a, a+".old"))
	must(t, os.Rename(b, a))
	must(t, os.Rename(a+".old", b))
	if _, err := LoadNode(f.nodeDirs[0], f.manifest); !errors.Is(err, ErrKey) {
		t.Errorf("with swapped issuer keys: %v", err)
	}
}

// FuzzParseManifest: what is read is written the same, and all else is ErrManifest.
func FuzzParseManifest(f *testing.F) {
	f.Add(got(newFixture(f, 1).manifest.Encode())(f), uint16(0), byte(' '))
	for _, seed := range []string{"", "{}", `{"cluster":"","nodes":[]}`} {
		f.Add([]byte(seed), uint16(0), byte(' '))
	}
	f.Fuzz(func(t *testing.T, text []byte, at uint16, b byte) {
		for _, text := range near.Of(text, at, b) {
			m, err := ParseManifest(text)
			if err != nil {
				if !errors.Is(err, ErrManifest) {
					t.Error(err)
				}
				continue
			}
			if again := got(m.Encode())(t); !bytes.Equal(bytes.TrimSpace(again), bytes.TrimSpace(text)) {
				t.Errorf("%q has another spelling", text)
			}
		}
	})
}
