package ca

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// tree lists a folder's files with their modes.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		list = append(list, info.Mode().String()+" "+name)
		return err
	}))
	return list
}

func TestInit(t *testing.T) {
	f := newFixture(t, 0)
	want := []string{
		"drwx------ .",
		"-rw-r--r-- grants-root.crt",
		"-rw------- grants-root.key",
		"-rw-r--r-- identity-root.crt",
		"-rw------- identity-root.key",
		"-rw------- issued.jsonl",
		"drwx------ persons",
	}
	for _, name := range []string{"ada", "grace", "linus"} {
		want = append(want, "drwx------ persons/"+name, "-rw-r--r-- persons/"+name+"/cert.pem", "-rw-r--r-- persons/"+name+"/grants-bundle.pem",
			"-rw-r--r-- persons/"+name+"/identity-bundle.pem", "-rw------- persons/"+name+"/key.pem")
	}
	want = append(want, "-rw-r--r-- seed.json")
	if diff := cmp.Diff(want, tree(t, f.offline)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}

	before := tree(t, filepath.Dir(f.offline))
	content := got(os.ReadFile(filepath.Join(f.offline, "identity-root.key")))(t)
	if err := Init(f.offline, testInitOptions()); !errors.Is(err, ErrExists) {
		t.Errorf("over an existing folder: %v", err)
	}
	if diff := cmp.Diff(before, tree(t, filepath.Dir(f.offline))); diff != "" {
		t.Errorf("a refused init changed the disk:\n%s", diff)
	}
	if again := got(os.ReadFile(filepath.Join(f.offline, "identity-root.key")))(t); !bytes.Equal(content, again) {
		t.Error("the root's key was replaced")
	}
}

func TestInitMakesTheAdminsIdentities(t *testing.T) {
	f := newFixture(t, 0)
	roots := got(DecodeCertificates(got(os.ReadFile(filepath.Join(f.offline, "identity-root.crt")))(t)))(t)
	for _, name := range []string{"ada", "grace", "linus"} {
		dir := filepath.Join(f.offline, PersonsDir, name)
		chain := got(DecodeCertificates(got(os.ReadFile(filepath.Join(dir, FolderChain)))(t)))(t)
		id := got(VerifyIdentity(chain, roots, testTD(), testNow()))(t)
		if id != personID(testTD(), name) {
			t.Errorf("%s is %s", name, id)
		}
		if life := chain[0].NotAfter.Sub(testNow()); life != MaxIdentityTTL {
			t.Errorf("%s lives %s", name, life)
		}
		key := got(readKey(filepath.Join(dir, FolderKey)))(t)
		if !samePublicKey(key.Public(), chain[0].PublicKey) {
			t.Errorf("%s has another's key", name)
		}
		identityBundle := got(os.ReadFile(filepath.Join(dir, FolderIdentityBundle)))(t)
		grantsBundle := got(os.ReadFile(filepath.Join(dir, FolderGrantsBundle)))(t)
		if !bytes.Equal(identityBundle, EncodeCertificates(roots...)) || bytes.Contains(grantsBundle, bytes.TrimSpace(identityBundle)) {
			t.Errorf("%s has the wrong bundles", name)
		}
	}
}

func TestInitRefuses(t *testing.T) {
	person := func(name string, ids ...string) Person { return Person{Name: name, IDs: ids} }
	for name, c := range map[string]struct {
		change func(*InitOptions)
		says   string
	}{
		"no trust domain":         {func(o *InitOptions) { o.TrustDomain = spiffeid.TrustDomain{} }, "trust domain"},
		"one domain for both":     {func(o *InitOptions) { o.GrantTrustDomain = o.TrustDomain }, "two trust domains"},
		"a domain with _":         {func(o *InitOptions) { o.TrustDomain = spiffeid.RequireTrustDomainFromString("acme_corp.test") }, "DNS name"},
		"an address as domain":    {func(o *InitOptions) { o.TrustDomain = spiffeid.RequireTrustDomainFromString("127.0.0.1") }, "DNS name"},
		"no admins":               {func(o *InitOptions) { o.Admins = nil }, "at least 3"},
		"two admins":              {func(o *InitOptions) { o.Admins = []string{"ada", "grace"} }, "at least 3"},
		"one admin thrice":        {func(o *InitOptions) { o.Admins = []string{"ada", "ada", "ada"} }, "twice"},
		"an admin in upper case":  {func(o *InitOptions) { o.Admins[0] = "Ada" }, "Ada"},
		"an admin with a slash":   {func(o *InitOptions) { o.Admins[0] = "a/b" }, "a/b"},
		"an admin called ..":      {func(o *InitOptions) { o.Admins[0] = ".." }, `".."`},
		"an admin without a name": {func(o *InitOptions) { o.Admins[0] = "" }, "name"},
		"an ID of two persons":    {func(o *InitOptions) { o.Seed = &Seed{Persons: []Person{person("eve", "spiffe://acme.test/user/ada")}} }, "named before"},
		"an ID twice": {func(o *InitOptions) {
			o.Seed = &Seed{Persons: []Person{person("eve", "spiffe://a.test/e", "spiffe://a.test/e")}}
		}, "named before"},
		"a person who owns himself": {func(o *InitOptions) {
			o.Seed = &Seed{Persons: []Person{{Name: "eve", IDs: []string{"spiffe://a.test/e"}, Owns: []string{"spiffe://a.test/e"}}}}
		}, "persons[0].owns[0]"},
		"an owned ID twice": {func(o *InitOptions) {
			o.Seed = &Seed{Persons: []Person{{Name: "eve", IDs: []string{"spiffe://a.test/e"}, Owns: []string{"spiffe://a.test/b", "spiffe://a.test/b"}}}}
		}, "persons[0].owns[1]"},
		"a person who is a grant": {func(o *InitOptions) {
			o.Seed = &Seed{Persons: []Person{person("eve", "spiffe://grants.acme.test/user/eve")}}
		}, "persons[0].ids[0]"},
		"a person who is a service": {func(o *InitOptions) {
			o.Seed = &Seed{Persons: []Person{person("eve", "spiffe://acme.test/service/eve")}}
		}, "persons[0].ids[0]"},
		"a person who is a node":  {func(o *InitOptions) { o.Seed = &Seed{Persons: []Person{person("eve", "spiffe://acme.test/node/n1")}} }, "persons[0].ids[0]"},
		"a person without an ID":  {func(o *InitOptions) { o.Seed = &Seed{Persons: []Person{person("eve")}} }, "persons[0].ids"},
		"a person without a name": {func(o *InitOptions) { o.Seed = &Seed{Persons: []Person{person("", "spiffe://a.test/e")}} }, "persons[0].name"},
		"an ID that is none":      {func(o *InitOptions) { o.Seed = &Seed{Persons: []Person{person("eve", "eve")}} }, "persons[0].ids[0]"},
		"a trust domain as ID":    {func(o *InitOptions) { o.Seed = &Seed{Persons: []Person{person("eve", "spiffe://a.test")}} }, "persons[0].ids[0]"},
		"a group of admins":       {func(o *InitOptions) { o.Seed = &Seed{Groups: []Group{{Name: AdminGroup, Members: []string{"ada"}}}} }, "made from the admins"},
		"a group of nobody known": {func(o *InitOptions) { o.Seed = &Seed{Groups: []Group{{Name: "owners", Members: []string{"eve"}}}} }, "groups[1].members[0]"},
		"a member twice": {func(o *InitOptions) {
			o.Seed = &Seed{Groups: []Group{{Name: "owners", Members: []string{"ada", "ada"}}}}
		}, "groups[1].members[1]"},
		"a group without a name":   {func(o *InitOptions) { o.Seed = &Seed{Groups: []Group{{}}} }, "groups[1].name"},
		"a policy that isn't text": {func(o *InitOptions) { o.Seed = &Seed{Policy: "\xff"} }, "policy"},
	} {
		parent := t.TempDir()
		o := testInitOptions()
		c.change(&o)
		err := Init(filepath.Join(parent, "offline"), o)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one that says %q", name, err, c.says)
		}
		if left := tree(t, parent); len(left) != 1 {
			t.Errorf("%s: it left %v", name, left)
		}
	}
	if err := Init(filepath.Join(t.TempDir(), "no", "parent"), testInitOptions()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a parent folder: %v", err)
	}
}

func TestSeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "offline")
	o := testInitOptions()
	o.Seed = &Seed{
		Persons: []Person{{Name: "ada", IDs: []string{"spiffe://other.test/ada"}, Owns: []string{"spiffe://acme.test/agent/bot"}}, {Name: "bob", IDs: []string{"spiffe://acme.test/user/bob"}, Owns: []string{"spiffe://acme.test/agent/bot", "spiffe://acme.test/service/batch"}}},
		Groups:  []Group{{Name: "owners", Members: []string{"bob"}}},
		Policy:  "version: 1\nrules: [] # <&>\n",
	}
	given := slices.Clone(o.Seed.Persons)
	must(t, Init(dir, o))
	request := got(NewNode(t.TempDir(), testNodeOptions(1)))(t)
	m := got(SignNodes(dir, []NodeRequest{request}, SignOptions{Now: testNow()}))(t)
	persons := []Person{
		{Name: "ada", IDs: []string{"spiffe://other.test/ada", "spiffe://acme.test/user/ada"}, Owns: []string{"spiffe://acme.test/agent/bot"}},
		{Name: "bob", IDs: []string{"spiffe://acme.test/user/bob"}, Owns: []string{"spiffe://acme.test/agent/bot", "spiffe://acme.test/service/batch"}},
		{Name: "grace", IDs: []string{"spiffe://acme.test/user/grace"}},
		{Name: "linus", IDs: []string{"spiffe://acme.test/user/linus"}},
	}
	groups := []Group{{Name: "admins", Members: []string{"ada", "grace", "linus"}}, {Name: "owners", Members: []string{"bob"}}}
	if diff := cmp.Diff(persons, m.Persons); diff != "" {
		t.Errorf("persons (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(groups, m.Groups); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	if m.Policy != o.Seed.Policy {
		t.Errorf("policy %q", m.Policy)
	}
	if diff := cmp.Diff(given, o.Seed.Persons); diff != "" {
		t.Errorf("the caller's seed was changed:\n%s", diff)
	}
}

// The roots' journal holds every certificate that they signed, and nothing
// that they did not.
func TestJournal(t *testing.T) {
	f := newFixture(t, 2)
	pub := got(GenerateKey())(t).Public()
	spec := f.identitySpec(pub)
	extra := got(IssueOffline(f.offline, spec))(t)
	if len(extra) != 1 {
		t.Errorf("a chain of %d, but the root itself signed it", len(extra))
	}
	got(VerifyIdentity(extra, f.manifest.IdentityRoots, testTD(), testNow()))(t)

	signed := map[string]*x509.Certificate{SerialText(extra[0].SerialNumber): extra[0]}
	for _, name := range []string{"ada", "grace", "linus"} {
		cert := got(readCertificate(filepath.Join(f.offline, PersonsDir, name, FolderChain)))(t)
		signed[SerialText(cert.SerialNumber)] = cert
	}
	for _, n := range f.manifest.Nodes {
		for _, cert := range []*x509.Certificate{n.IdentityIssuer, n.GrantIssuer, n.APICertificate} {
			signed[SerialText(cert.SerialNumber)] = cert
		}
	}
	lines := bufio.NewScanner(bytes.NewReader(got(os.ReadFile(filepath.Join(f.offline, journalFile)))(t)))
	manifests := 0
	for lines.Scan() {
		var line journalLine
		must(t, json.Unmarshal(lines.Bytes(), &line))
		if line.Record.Serial == "" {
			manifests++
			continue
		}
		cert := signed[line.Record.Serial]
		if cert == nil {
			t.Errorf("%s is in the journal and not on disk", line.What)
			continue
		}
		if !line.Record.NotAfter.Equal(cert.NotAfter) || line.Record.TBSHash != hashOf(cert.RawTBSCertificate).String() {
			t.Errorf("%s: the journal says %+v", line.What, line.Record)
		}
		delete(signed, line.Record.Serial)
	}
	if len(signed) > 0 || manifests != 1 {
		t.Errorf("%d certificates are not in the journal, and %d manifests are", len(signed), manifests)
	}
}

func TestIssueOfflineRefuses(t *testing.T) {
	f := newFixture(t, 0)
	pub := got(GenerateKey())(t).Public()
	for name, change := range map[string]func(*IdentitySpec){
		"31 days":       func(s *IdentitySpec) { s.TTL = MaxIdentityTTL + 24*time.Hour },
		"another's ID":  func(s *IdentitySpec) { s.ID = spiffeid.RequireFromString("spiffe://other.test/user/eve") },
		"a grants ID":   func(s *IdentitySpec) { s.ID = spiffeid.RequireFromString("spiffe://grants.acme.test/v1/x") },
		"no time":       func(s *IdentitySpec) { s.Now = time.Time{} },
		"a bad name":    func(s *IdentitySpec) { s.DNSNames = []string{"*"} },
		"before a root": func(s *IdentitySpec) { s.Now = testNow().Add(-time.Hour) },
	} {
		spec := f.identitySpec(pub)
		change(&spec)
		if _, err := IssueOffline(f.offline, spec); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := IssueOffline(t.TempDir(), f.identitySpec(pub)); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "ca init") {
		t.Errorf("in some other folder: %v", err)
	}
	must(t, os.Chmod(filepath.Join(f.offline, "identity-root.key"), 0o640))
	if _, err := IssueOffline(f.offline, f.identitySpec(pub)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a root key that others may read: %v", err)
	}
	must(t, os.Chmod(filepath.Join(f.offline, "identity-root.key"), 0o600))
	must(t, os.Rename(filepath.Join(f.offline, "grants-root.key"), filepath.Join(f.offline, "identity-root.key")))
	if _, err := IssueOffline(f.offline, f.identitySpec(pub)); err == nil {
		t.Error("with another root's key it signs")
	}
}

func TestFolderWrite(t *testing.T) {
	f := newFixture(t, 1)
	key := got(GenerateKey())(t)
	chain := got(IssueOffline(f.offline, f.identitySpec(key.Public())))(t)
	folder := Folder{Chain: chain, Key: got(GenerateKey())(t), IdentityRoots: f.manifest.IdentityRoots, GrantRoots: f.manifest.GrantRoots}
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := folder.Write(dir); !errors.Is(err, ErrKey) {
		t.Errorf("with another key: %v", err)
	}
	if err := (Folder{}).Write(dir); !errors.Is(err, ErrKey) {
		t.Errorf("with nothing: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a refused folder was made")
	}
	folder.Key = key
	for range 2 { // the second time replaces the first
		must(t, folder.Write(dir))
		want := []string{"drwx------ .", "-rw-r--r-- cert.pem", "-rw-r--r-- grants-bundle.pem", "-rw-r--r-- identity-bundle.pem", "-rw------- key.pem"}
		if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
	}
}
