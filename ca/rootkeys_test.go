package ca

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// memoryKMS is a KMS of a test: its keys are in this process and in no file.
type memoryKMS struct {
	mu     sync.Mutex
	keys   map[string]crypto.Signer
	gone   error // what it answers, instead of anything
	opened int
	closed int
}

func newMemoryKMS() *memoryKMS { return &memoryKMS{keys: map[string]crypto.Signer{}} }

func (m *memoryKMS) open(string) (KMS, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone != nil {
		return nil, m.gone
	}
	m.opened++
	return m, nil
}

func (m *memoryKMS) CreateKey(name string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[name] != nil {
		return "", fmt.Errorf("%w: %s", ErrExists, name)
	}
	key, err := GenerateKey()
	m.keys[name] = key
	return name, err
}

func (m *memoryKMS) Signer(name string) (crypto.Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[name] == nil {
		return nil, fmt.Errorf("no key %s", name)
	}
	return m.keys[name], nil
}

func (m *memoryKMS) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed++
	return nil
}

func kmsKeys(n string) RootKeys {
	return RootKeys{KMS: "memory:1", Identity: "identity-" + n, Grants: "grants-" + n}
}

// newKMSFixture makes a cluster with roots in a KMS.
func newKMSFixture(t *testing.T, nodes int) (*fixture, *memoryKMS) {
	t.Helper()
	m := newMemoryKMS()
	f := &fixture{t: t, offline: filepath.Join(t.TempDir(), "offline")}
	o := testInitOptions()
	o.Open, o.Keys = m.open, kmsKeys("1")
	must(t, Init(f.offline, o))
	for i := range nodes {
		dir := filepath.Join(t.TempDir(), "keys")
		f.nodeDirs = append(f.nodeDirs, dir)
		f.requests = append(f.requests, got(NewNode(dir, testNodeOptions(i+1)))(t))
	}
	if nodes > 0 {
		f.manifest = got(SignNodes(f.offline, f.requests, SignOptions{Now: testNow(), Open: m.open}))(t)
	}
	return f, m
}

// noKeyIn fails when a root's private key is in a folder, in whatever file.
func noKeyIn(t *testing.T, dir string, m *memoryKMS) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text := got(os.ReadFile(path))(t)
		if strings.HasSuffix(path, ".key") {
			t.Errorf("%s is a key", path)
		}
		for name, key := range m.keys {
			if bytes.Contains(text, got(EncodeKey(key))(t)) {
				t.Errorf("%s holds the key %s", path, name)
			}
		}
		return nil
	}))
}

// TestRootsInAKMS has everything that a root signs signed by keys in a KMS.
func TestRootsInAKMS(t *testing.T) {
	f, m := newKMSFixture(t, 2)
	noKeyIn(t, f.offline, m)
	n, _ := f.manifest.Node("n1")
	if life := n.GrantIssuer.NotAfter.Sub(testNow()); life != KMSIssuerLife {
		t.Errorf("issuers live %s", life)
	}
	pub := got(GenerateKey())(t).Public()
	chain := got(IssueWithKMS(f.offline, f.identitySpec(pub), m.open))(t)
	must(t, chain[0].CheckSignatureFrom(f.manifest.IdentityRoots[0]))
	got(RenewNodes(f.offline, f.requests, SignOptions{Now: testNow().Add(time.Hour), Open: m.open}))(t)
	// Whoever cannot open the KMS can sign nothing, and reads what is public.
	if _, err := IssueOffline(f.offline, f.identitySpec(pub)); !errors.Is(err, ErrNoKMS) {
		t.Errorf("without a KMS: %v", err)
	}
	if _, _, err := OfflineRoots(f.offline); err != nil {
		t.Error(err)
	}
	if m.opened != m.closed {
		t.Errorf("opened %d times, closed %d times", m.opened, m.closed)
	}
	// Each signature is in the journal, as with roots in the folder.
	signed := got(readJournal(f.offline))(t)
	if !signed.has(chain[0], hexSHA256(f.manifest.IdentityRoots[0].Raw)) || signed.has(chain[0], "") {
		t.Error("the identity is not in the journal")
	}
}

func TestInitInAKMSRefuses(t *testing.T) {
	m := newMemoryKMS()
	init := func(change func(*InitOptions)) error {
		o := testInitOptions()
		o.Open, o.Keys = m.open, kmsKeys("1")
		change(&o)
		dir := filepath.Join(t.TempDir(), "offline")
		err := Init(dir, o)
		if _, there := os.Lstat(dir); err != nil && there == nil {
			t.Errorf("%v, and the folder is there", err)
		}
		return err
	}
	if err := init(func(o *InitOptions) { o.Keys.Grants = "" }); !errors.Is(err, ErrInvalid) {
		t.Errorf("a key without a name: %v", err)
	}
	if err := init(func(o *InitOptions) { o.Keys.Grants = o.Keys.Identity }); !errors.Is(err, ErrInvalid) {
		t.Errorf("one key for two roots: %v", err)
	}
	if err := init(func(o *InitOptions) { o.Keys.KMS = "" }); !errors.Is(err, ErrInvalid) {
		t.Errorf("keys of no KMS: %v", err)
	}
	if err := init(func(o *InitOptions) { o.Open = nil }); !errors.Is(err, ErrNoKMS) {
		t.Errorf("no KMS: %v", err)
	}
	must(t, init(func(*InitOptions) {}))
	// The keys are another cluster's roots: whoever has that folder would be this
	// cluster's certificate authority.
	if err := init(func(*InitOptions) {}); !errors.Is(err, ErrExists) {
		t.Errorf("keys that are there: %v", err)
	}
	must(t, init(func(o *InitOptions) { o.Keys.Existing = true }))
	m.keys["other"] = m.keys["identity-1"]
	if err := init(func(o *InitOptions) { o.Keys.Existing, o.Keys.Grants = true, "other" }); !errors.Is(err, ErrKey) {
		t.Errorf("one key under two names: %v", err)
	}
}

// TestRotateIntoAKMS goes over from roots in the folder to roots in a KMS, and from
// those to the next.
func TestRotateIntoAKMS(t *testing.T) {
	f, m := newFixture(t, 1), newMemoryKMS()
	o := both()
	o.Open, o.Keys = m.open, kmsKeys("2")
	if made := got(RotateRoots(f.offline, o))(t); len(made) != 2 || len(made[0].Signatures) != 2 {
		t.Fatalf("%+v", made)
	}
	again := o
	again.Keys = RootKeys{}
	if _, err := RotateRoots(f.offline, again); !errors.Is(err, ErrKeyOnDisk) {
		t.Errorf("back to the folder, by oversight: %v", err)
	}
	before, _ := f.manifest.Node("n1")
	c := got(RenewNodes(f.offline, f.requests, SignOptions{Now: testNow().Add(time.Hour), Open: m.open}))(t)[0]
	if !c.GrantIssuer.NotAfter.Before(before.GrantIssuer.NotAfter) || !c.APICertificate.NotAfter.After(before.APICertificate.NotAfter) {
		t.Errorf("the successors end at %s and %s", c.GrantIssuer.NotAfter, c.APICertificate.NotAfter)
	}
	got(RetireRoots(f.offline, o))(t)
	must(t, os.Remove(filepath.Join(f.offline, "identity-root.key")))
	must(t, os.Remove(filepath.Join(f.offline, "grants-root.key")))
	noKeyIn(t, f.offline, m)
	o.Keys = kmsKeys("3")
	got(RotateRoots(f.offline, o))(t)
	got(RetireRoots(f.offline, o))(t)
	got(RenewNodes(f.offline, f.requests, SignOptions{Now: testNow().Add(2 * time.Hour), Open: m.open}))(t)
	again = o
	again.Keys, again.OnDisk = RootKeys{}, true
	got(RotateRoots(f.offline, again))(t)
}

// TestKMSFileOfOthers: the URI in NAME.kms names a library that this process loads.
func TestKMSFileOfOthers(t *testing.T) {
	f, m := newKMSFixture(t, 0)
	path := filepath.Join(f.offline, "identity-root.kms")
	text := got(os.ReadFile(path))(t)
	spec := f.identitySpec(got(GenerateKey())(t).Public())
	refused := func(what, says string) {
		t.Helper()
		opened := m.opened
		if _, err := IssueWithKMS(f.offline, spec, m.open); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), says) || m.opened != opened {
			t.Errorf("%s: %v, opened %d times", what, err, m.opened-opened)
		}
	}
	must(t, os.Chmod(path, 0o666))
	refused("written by anybody", "identity-root.kms")
	must(t, os.Chmod(path, 0o600))
	must(t, os.WriteFile(filepath.Join(f.offline, "identity-root.key"), got(newKeyText())(t), 0o600))
	refused("a key and a place of one", "a root has one key")
	must(t, os.Remove(filepath.Join(f.offline, "identity-root.key")))
	must(t, os.WriteFile(path, []byte(`{"kms":"memory:1"}`), 0o600))
	refused("no key named", "missing")
	must(t, os.WriteFile(path, bytes.ReplaceAll(text, []byte("identity-1"), []byte("grants-1")), 0o600))
	if _, err := IssueWithKMS(f.offline, spec, m.open); !errors.Is(err, ErrKey) {
		t.Errorf("the other root's key: %v", err)
	}
}
