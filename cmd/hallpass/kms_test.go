//go:build kms

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

const (
	softhsm = "/usr/lib/softhsm/libsofthsm2.so"
	// tokenPIN is looked for in everything that is written and said.
	tokenPIN = "7351-9842-6630"
)

// kmsSeed lets a writer mint without anybody's approval.
const kmsSeed = `persons: []
groups: []
policy: |
  version: 1
  rules:
    - name: jobs
      service: payments
      requesters: ["spiffe://acme.test/job/*"]
      permissions: ["GET /accounts/**"]
      auto: true
      max_duration: 10m
`

// kmsRun is the pages' machines, with the roots in a token of SoftHSM, which the
// machine named offline alone can reach.
type kmsRun struct {
	*pagesRun
	store string // SoftHSM's, of tokens
	pin   string // the file
}

// TestKMSPagesRun types what docs/operations.md says of roots in a KMS: a token is
// initialized, the roots' keys are made in it, three nodes are started, and a signer
// renews them again and again while somebody mints. Then the PIN is wrong, the
// library missing, the token gone.
func TestKMSPagesRun(t *testing.T) {
	for _, program := range []string{"softhsm2-util", "pkcs11-tool", softhsm} {
		if _, err := exec.LookPath(program); err != nil {
			if _, err := os.Stat(program); err != nil {
				t.Fatalf("%v: make deps installs it", err)
			}
		}
	}
	p := &kmsRun{pagesRun: newPagesRun(t, func(block string) bool { return strings.HasPrefix(block, "kms-") })}
	p.build(t, "hallpass-kms", "kms", "1")
	for _, s := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"a token", p.token},
		{"the roots in it", p.roots},
		{"the cluster", p.cluster},
		{"the signer renews under a writer", p.renews},
		{"the token is gone", p.tokenGone},
		{"new keys wait for an operator", p.confirm},
		{"a stolen node", p.stolenNode},
		{"into another key", p.rotate},
		{"a wrong PIN, a missing library", p.wrong},
		{"no key and no PIN in any file", p.leaks},
	} {
		if !t.Run(s.name, s.run) {
			return
		}
	}
	for _, b := range p.unrun() {
		t.Errorf("%s is marked as run, and no step runs it", b)
	}
}

// typed is a block of the page with this machine's PIN and the test's short lives.
func (p *kmsRun) typed(t *testing.T, block string, pairs ...string) string {
	t.Helper()
	pairs = append(pairs, "/run/hallpass/pin", p.pin, "sign-node --dir ca", "sign-node --life 2m --dir ca", "127.0.0.1:9902", p.adminOf("signer"))
	return p.page(t, "operations.md "+block, pairs...)
}

func (p *kmsRun) adminOf(name string) string {
	return fmt.Sprintf("127.0.0.1:%d", p.ports[name+"-admin"])
}

func (p *kmsRun) token(t *testing.T) {
	p.port(t, "signer-admin")
	p.store = filepath.Join(p.dir, "hsm")
	p.pin = filepath.Join(p.dir, "secret", "pin")
	p.write(t, "secret/pin", tokenPIN+"\n")
	p.write(t, "softhsm2.conf", "directories.tokendir = "+p.store+"\nobjectstore.backend = file\nlog.level = ERROR\n")
	if err := os.MkdirAll(p.store, 0o700); err != nil {
		t.Fatal(err)
	}
	// A variable of the one shell: no node can reach the token.
	p.offline.run(t, "export SOFTHSM2_CONF="+filepath.Join(p.dir, "softhsm2.conf"))
	p.offline.run(t, "softhsm2-util --init-token --free --label hallpass --so-pin 8462-1137 --pin \"$(cat "+p.pin+")\"")
}

func (p *kmsRun) roots(t *testing.T) {
	p.write(t, "offline/seed.yaml", kmsSeed)
	plain := refused(t, p.offline, strings.ReplaceAll(p.typed(t, "kms-roots"), "hallpass-kms", "hallpass"))
	wants(t, plain, "this build of hallpass opens no KMS: use hallpass-kms")
	// A PIN on the command line is refused, and not said again.
	bare := refused(t, p.offline, strings.ReplaceAll(p.typed(t, "kms-roots"), "pin-source="+p.pin, "pin-value="+tokenPIN))
	wants(t, bare, "pin-value=…", "pin-source=/path")
	if strings.Contains(bare, tokenPIN) {
		t.Errorf("the PIN is in the message: %s", bare)
	}
	wants(t, p.offline.run(t, p.typed(t, "kms-roots")), "ca/persons/ada")
	// The names are taken now, and another cluster does not get these keys.
	again := refused(t, p.offline, strings.ReplaceAll(p.typed(t, "kms-roots"), "--dir ca", "--dir other"))
	wants(t, again, "already exists", "object=identity-root")
	if _, err := os.Stat(filepath.Join(p.dir, "offline", "other")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("half of a folder was made")
	}
	p.keysStay(t, 2)
	p.offline.run(t, "hallpass-kms identity issue job/writer --root ca --out writer")
	p.carry(t, "offline/writer", "people/writer")
	wants(t, refused(t, p.offline, "hallpass identity issue job/writer --root ca --out writer"), "use hallpass-kms")
}

// keysStay asks the token: its keys were made in it, and cannot be taken out.
func (p *kmsRun) keysStay(t *testing.T, n int) {
	t.Helper()
	printed := p.offline.run(t, "pkcs11-tool --module "+softhsm+" --token-label hallpass --login --pin \"$(cat "+p.pin+")\" --list-objects --type privkey")
	for _, words := range []string{"Private Key Object; EC", "sensitive, always sensitive, never extractable, local"} {
		if got := strings.Count(printed, words); got != n {
			t.Errorf("%d times %q, want %d:\n%s", got, words, n, printed)
		}
	}
}

func (p *kmsRun) cluster(t *testing.T) {
	for _, n := range nodeNames() {
		p.nodes[n].run(t, p.page(t, "operations.md keys", "n1", n))
		p.carry(t, n+"/keys/node-request.json", "offline/"+n+"/node-request.json")
	}
	p.offline.run(t, p.typed(t, "kms-manifest"))
	p.carry(t, "offline/ca/persons", "desk/ca/persons")
	p.manifest(t)
	p.start(t)
}

// servers are the URLs of the nodes' APIs.
func (p *kmsRun) servers() (all []string) {
	for _, n := range nodeNames() {
		all = append(all, fmt.Sprintf("https://localhost:%d", p.ports[n+"-api"]))
	}
	return all
}

// issuersOf adds the grant issuers that each node has now. It asks as an admin: a job
// sees no issuers.
func (p *kmsRun) issuersOf(t *testing.T, seen map[string]map[string]bool) {
	t.Helper()
	list, err := p.client(t, "desk/ca/persons/ada").NodeIssuers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list.Issuers {
		if i.Role == "grant" {
			if seen[i.Node] == nil {
				seen[i.Node] = map[string]bool{}
			}
			seen[i.Node][i.ID] = true
		}
	}
}

func (p *kmsRun) client(t *testing.T, identity string) *api.Client {
	t.Helper()
	c, err := api.NewClient(api.ClientConfig{Servers: p.servers(), Identity: filepath.Join(p.dir, identity)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// writer mints until it is stopped, and counts.
type writer struct {
	stop context.CancelFunc
	done sync.WaitGroup
	n    int
	err  error
}

func (p *kmsRun) writer(t *testing.T) *writer {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w, c := &writer{stop: cancel}, p.client(t, "people/writer")
	w.done.Go(func() {
		for ctx.Err() == nil && w.err == nil {
			if w.err = mintOne(context.WithoutCancel(ctx), c); w.err == nil {
				w.n++
			}
			time.Sleep(100 * time.Millisecond) // one subject has at most 1000 live grants
		}
	})
	t.Cleanup(func() { cancel(); w.done.Wait() })
	return w
}

func (w *writer) ended(t *testing.T) {
	t.Helper()
	w.stop()
	w.done.Wait()
	if w.err != nil || w.n < 5 {
		t.Errorf("after %d certificates: %v", w.n, w.err)
	}
	t.Logf("%d certificates were minted", w.n)
}

func mintOne(ctx context.Context, c *api.Client) error {
	r, err := c.CreateRequest(ctx, api.RequestInput{
		Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(time.Minute), Reason: "a test",
	})
	if err != nil {
		return err
	}
	key, err := ca.GenerateKey()
	if err != nil {
		return err
	}
	csr, err := ca.MakeCSR(key, "")
	if err != nil {
		return err
	}
	_, err = c.GrantCertificate(ctx, r.Grant.ID, string(csr))
	return err
}

// renews watches two renewals of every node: from the manifest's issuers to the
// second generation after them.
func (p *kmsRun) renews(t *testing.T) {
	p.write(t, "offline/signer.yaml", strings.NewReplacer("168h", "2m", "1m", "1s", "127.0.0.1:9902", p.adminOf("signer")).Replace(file(t, "operations.md", "# signer.yaml")))
	pids := p.pids(t)
	w := p.writer(t)
	p.offline.run(t, p.typed(t, "kms-signer"))
	within(t, "the signer is ready", func() error { return p.says(t, "offline", "kms", "ok", "") })
	p.offline.run(t, p.typed(t, "kms-health"))
	seen := map[string]map[string]bool{}
	within(t, "each node has been renewed twice", func() error {
		p.issuersOf(t, seen)
		for _, n := range nodeNames() {
			if len(seen[n]) < 3 {
				return fmt.Errorf("%s has had %d issuers", n, len(seen[n]))
			}
		}
		return nil
	})
	w.ended(t)
	if after := p.pids(t); after != pids {
		t.Errorf("processes %s became %s", pids, after)
	}
	for _, n := range nodeNames() {
		p.nodes[n].run(t, "until hallpass health "+p.admin(n)+"; do sleep 0.1; done")
	}
	p.desk.run(t, "hallpass audit export --out log && hallpass audit verify log --manifest manifest.json")
	wants(t, p.desk.run(t, "cat log/*"), "issuer.install", "spiffe://acme.test/service/signer")
}

func (p *kmsRun) pids(t *testing.T) (all string) {
	t.Helper()
	for _, n := range nodeNames() {
		pid := strings.TrimSpace(p.read(t, n+"/server.pid"))
		p.nodes[n].run(t, "kill -0 "+pid)
		all += pid + " "
	}
	return all
}

// says looks for a finding of the signer's.
func (p *kmsRun) says(t *testing.T, machine, check, status, words string) error {
	t.Helper()
	s := p.offline
	if machine != "offline" {
		s = p.nodes[machine]
	}
	printed := s.run(t, "curl -sS "+p.adminOf("signer")+"/readyz | jq -r '.findings[] | select(.check == \""+check+"\") | .status + \" \" + (.detail // \"\")' || true")
	if !strings.HasPrefix(printed, status) || !strings.Contains(printed, words) {
		return fmt.Errorf("%s: %s", check, printed)
	}
	return nil
}

// tokenGone takes the token away and puts it back: the signer warns, and stays
// ready, and goes on.
func (p *kmsRun) tokenGone(t *testing.T) {
	if err := errors.Join(os.Rename(p.store, p.store+"-gone"), os.Mkdir(p.store, 0o700)); err != nil {
		t.Fatal(err)
	}
	within(t, "the signer says that the token is gone", func() error { return p.says(t, "offline", "kms", "warn", "token") })
	p.offline.run(t, "hallpass health "+p.adminOf("signer")) // it warns, and no more
	wants(t, refused(t, p.offline, "hallpass-kms identity issue job/other --root ca --out other"), "kms: open pkcs11:", "could not find PKCS#11 token")
	if err := errors.Join(os.RemoveAll(p.store), os.Rename(p.store+"-gone", p.store)); err != nil {
		t.Fatal(err)
	}
	within(t, "the signer goes on", func() error { return p.says(t, "offline", "kms", "ok", "") })
	seen := map[string]map[string]bool{}
	p.issuersOf(t, seen)
	had := len(seen["n1"])
	within(t, "n1 is renewed again", func() error {
		if p.issuersOf(t, seen); len(seen["n1"]) == had {
			return errors.New("not yet")
		}
		return nil
	})
}

// confirm makes n1 new keys, which the signer reports and does not sign.
func (p *kmsRun) confirm(t *testing.T) {
	printed := p.nodes["n1"].run(t, p.page(t, "operations.md new-keys"))
	fingerprint := firstPrint(printed)
	within(t, "the signer says that n1 asks for other keys", func() error { return p.says(t, "offline", "node n1", "warn", fingerprint) })
	p.carry(t, "n1/keys/node-request.json", "offline/n1/node-request.json")
	wants(t, p.offline.run(t, p.typed(t, "kms-confirm")), fingerprint)
	within(t, "the signer goes on with the new keys", func() error { return p.says(t, "offline", "node n1", "ok", "until") })
}

func firstPrint(text string) string {
	for word := range strings.FieldsSeq(text) {
		if len(word) == 64 {
			return word
		}
	}
	return "no fingerprint"
}

// stolenNode denies n3 as its certificates fall due; what the thief has is all he
// gets. It comes back with new keys that an operator has signed.
func (p *kmsRun) stolenNode(t *testing.T) {
	p.desk.run(t, p.page(t, "operations.md deny"))
	within(t, "the signer leaves n3", func() error { return p.says(t, "offline", "node n3", "warn", "is out of use") })
	before := p.read(t, "offline/ca/renewed/n3.json")
	seen := map[string]map[string]bool{}
	p.issuersOf(t, seen)
	had := len(seen["n2"])
	within(t, "n2 is renewed", func() error {
		if p.issuersOf(t, seen); len(seen["n2"]) == had {
			return errors.New("not yet")
		}
		return nil
	})
	if p.read(t, "offline/ca/renewed/n3.json") != before {
		t.Error("the stolen keys were signed again")
	}
	p.nodes["n3"].run(t, p.page(t, "operations.md new-keys", "n1", "n3"))
	p.carry(t, "n3/keys/node-request.json", "offline/n3/node-request.json")
	p.offline.run(t, p.typed(t, "kms-confirm", "n1", "n3"))
	within(t, "n3 is back", func() error { return p.says(t, "offline", "node n3", "ok", "until") })
}

// rotate goes over to two other keys in the token.
func (p *kmsRun) rotate(t *testing.T) {
	p.offline.run(t, p.typed(t, "kms-rotate"))
	p.keysStay(t, 4)
	p.carry(t, "offline/ca/roots.jsonl", "desk/roots.jsonl")
	p.desk.run(t, p.page(t, "operations.md publish", "hallpass bundle follow", "HALLPASS_IDENTITY=ca/persons/ada hallpass bundle follow"))
	p.offline.run(t, p.typed(t, "kms-confirm", "n1/node-request.json", "n1/node-request.json n2/node-request.json n3/node-request.json"))
	for _, n := range nodeNames() {
		within(t, n+" has moved over", func() error { return p.says(t, "offline", "node "+n, "ok", "until") })
	}
	p.offline.run(t, "hallpass-kms identity issue user/ada --root ca --out ca/persons/ada")
	p.supplant(t, "offline/ca/persons/ada", "desk/ca/persons/ada")
	p.offline.run(t, "hallpass-kms ca retire --dir ca")
	p.carry(t, "offline/ca/roots.jsonl", "desk/roots.jsonl")
	p.desk.run(t, p.page(t, "operations.md publish-again"))
	p.offline.run(t, "rm ca/identity-root.kms ca/grants-root.kms")
	seen := map[string]map[string]bool{}
	p.issuersOf(t, seen)
	had := map[string]int{}
	for n, ids := range seen {
		had[n] = len(ids)
	}
	within(t, "each node is renewed by the new roots, with its keys", func() error {
		p.issuersOf(t, seen)
		for _, n := range nodeNames() {
			if len(seen[n]) == had[n] {
				return fmt.Errorf("%s is not", n)
			}
		}
		return nil
	})
	if err := p.says(t, "offline", "kms", "ok", ""); err != nil {
		t.Error(err)
	}
}

// wrong has the PIN and the library wrong, one after the other.
func (p *kmsRun) wrong(t *testing.T) {
	issue := "hallpass-kms identity issue job/other --root ca --out other"
	p.offline.run(t, issue)
	p.write(t, "secret/pin", "0000-0000\n")
	printed := refused(t, p.offline, issue)
	wants(t, printed, "the KMS refused its PIN", "CKR_PIN_INCORRECT")
	if strings.Contains(printed, "0000-0000") {
		t.Errorf("the PIN is in the message: %s", printed)
	}
	within(t, "the signer says so", func() error { return p.says(t, "offline", "kms", "warn", "start the signer again") })
	p.write(t, "secret/pin", tokenPIN+"\n")
	if err := os.Chmod(p.pin, 0o644); err != nil {
		t.Fatal(err)
	}
	wants(t, refused(t, p.offline, issue), "has mode 0644")
	if err := os.Remove(p.pin); err != nil {
		t.Fatal(err)
	}
	wants(t, refused(t, p.offline, issue), "no such file")
	p.write(t, "secret/pin", tokenPIN+"\n")
	p.offline.run(t, "sed -i.kept s,"+softhsm+",/usr/lib/softhsm/none.so, ca/identity-root-2.kms")
	wants(t, refused(t, p.offline, issue), "could not open PKCS#11", "/usr/lib/softhsm/none.so")
	p.offline.run(t, "mv ca/identity-root-2.kms.kept ca/identity-root-2.kms; "+issue)
	p.offline.run(t, "kill $(cat signer.pid); wait $(cat signer.pid)")
}

// leaks looks into every file of every machine but the token's and the PIN's own.
func (p *kmsRun) leaks(t *testing.T) {
	err := filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == p.store || path == filepath.Join(p.dir, "secret") {
			if path == p.store || path == filepath.Join(p.dir, "secret") {
				return fs.SkipDir
			}
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if typedHere := strings.HasPrefix(d.Name(), ".typed-") && !strings.HasSuffix(d.Name(), ".out"); !typedHere && bytes.Contains(text, []byte(tokenPIN)) {
			t.Errorf("%s has the PIN", path)
		}
		in, _ := strings.CutPrefix(path, filepath.Join(p.dir, "offline", "ca")+string(filepath.Separator))
		if in != path && !strings.HasPrefix(in, ca.PersonsDir) && bytes.Contains(text, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds a private key", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
