//go:build integration

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// api is docs/api.md, typed where alice's and bob's folders are.
func (p *pagesRun) api(t *testing.T) {
	p.carry(t, "desk/people/alice", "people/alice")
	p.carry(t, "desk/people/bob", "people/bob")
	s := p.shell(t, "people")
	wants(t, s.run(t, p.page(t, "api.md hp")), `"spiffe://acme.test/user/alice"`)
	wants(t, s.run(t, p.page(t, "api.md ask")), `"state":"pending"`, `"hash":"`, `"require":[{"group":"payments-owners","approvals":1,"given":0}]`)
	wants(t, s.run(t, p.page(t, "api.md decide")), `"state":"approved"`)
	wants(t, s.run(t, p.page(t, "api.md certificate")), "payments: GET /accounts/7 for spiffe://acme.test/user/alice")
}

// refused types what must fail, and says what it said.
func refused(t *testing.T, s *shell, command string) string {
	t.Helper()
	return s.run(t, "if "+command+"; then echo; echo this passes; exit 1; fi")
}

const callAgain = "curl -sS --fail-with-body --cacert grant/identity-bundle.pem --cert grant/cert.pem --key grant/key.pem https://payments.acme.test:9443/accounts/42"

// nodesComeAndGo has n4 take n3's place, and then a new n3 that of n4.
func (p *pagesRun) nodesComeAndGo(t *testing.T) {
	p.desk.run(t, p.page(t, "operations.md transfer"))
	if leader := p.leader(t); leader != "n2" {
		t.Errorf("%s leads, and n2 was to", leader)
	}
	p.nodes["n4"] = p.shell(t, "n4")
	p.replace(t, "n3", "n4")
	p.replace(t, "n4", "n3")
	p.carry(t, "offline/ca/manifest.json", "n1/manifest.json")
	p.carry(t, "offline/ca/manifest.json", "n2/manifest.json")
	p.use(t)
}

// replace types what the page says of n4 in the place of n3.
func (p *pagesRun) replace(t *testing.T, old, next string) {
	t.Helper()
	named := []string{"n3", old, "n4", next}
	p.stop(t, old)
	if err := os.Rename(filepath.Join(p.dir, old), filepath.Join(p.dir, "lost-"+old)); err != nil {
		t.Fatal(err)
	}
	p.nodes[next] = p.shell(t, next) // a new machine
	p.nodes[next].run(t, p.page(t, "operations.md keys", "n1", next))
	p.carry(t, next+"/keys/node-request.json", "offline/"+next+"/node-request.json")
	p.desk.run(t, "hallpass cluster remove "+next+" --reason 'another takes its name' || true") // refused where it is none
	p.offline.run(t, p.page(t, "operations.md add", named...))
	p.carry(t, "offline/ca/manifest.json", "desk/manifest.json")
	p.desk.run(t, p.page(t, "operations.md adopt"))
	p.carry(t, "offline/ca/manifest.json", next+"/manifest.json")
	p.write(t, next+"/server.yaml", strings.NewReplacer("node: "+old, "node: "+next,
		fmt.Sprint(":", p.ports[old+"-api"]), fmt.Sprint(":", p.ports[next+"-api"]),
		fmt.Sprint(":", p.ports[old+"-raft"]), fmt.Sprint(":", p.ports[next+"-raft"]),
		p.admin(old), p.admin(next)).Replace(p.read(t, "lost-"+old+"/server.yaml")))
	p.nodes[next].run(t, p.page(t, "operations.md start"))
	wants(t, p.desk.run(t, p.page(t, "operations.md join", named...)), next+"    follower")
	p.nodes[next].run(t, "until hallpass health "+p.admin(next)+"; do sleep 0.1; done")
	p.desk.run(t, p.page(t, "operations.md remove", named...))
	p.offline.run(t, p.page(t, "operations.md drop", named...))
	status := p.desk.run(t, "hallpass cluster status -o json | jq -c '[[.nodes[].id], ([.issuers[] | select(.denied) | .node] | unique)]'")
	wants(t, status, `"`+next+`"],[`, `"`+old+`"`)
}

// ninetyDays renews what all nodes sign with, while they run.
func (p *pagesRun) ninetyDays(t *testing.T) {
	issuers := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(p.desk.run(t, "hallpass cluster status -o json | jq '.issuers | length'")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	p.offline.run(t, p.page(t, "operations.md renew"))
	p.carry(t, "offline/ca/renewed", "desk/renewed")
	before := issuers() // those of nodes that were removed are among them
	p.desk.run(t, p.page(t, "operations.md install"))
	if n := issuers(); n != before+6 {
		t.Errorf("%d issuers after a renewal of six", n)
	}
	p.nodes["n1"].run(t, p.page(t, "operations.md new-keys"))
	p.carry(t, "n1/keys/node-request.json", "offline/n1/node-request.json")
	p.offline.run(t, "hallpass ca sign-node --dir ca --renew n1/node-request.json")
	p.carry(t, "offline/ca/renewed/n1.json", "n1/n1.json")
	p.nodes["n1"].run(t, p.page(t, "operations.md by-hand"))
	within(t, "n1 has what was put into its folder", func() error {
		if n := issuers(); n != before+8 {
			return fmt.Errorf("%d issuers", n)
		}
		return nil
	})
	p.use(t)
}

func (p *pagesRun) stolen(t *testing.T) {
	p.use(t)
	p.desk.run(t, p.page(t, "operations.md revoke"))
	within(t, "the revoked grant is refused", func() error {
		if strings.Contains(p.desk.run(t, callAgain+" || true"), "payments: ") {
			return errors.New("it is admitted")
		}
		return nil
	})
	refused(t, p.desk, "hallpass --identity people/alice grant cert $ID --out again")

	p.desk.run(t, p.page(t, "operations.md block"))
	ask := "hallpass --identity people/alice request create payments --allow 'GET /accounts/1' --for 5m --reason x"
	wants(t, refused(t, p.desk, ask), "blocked")
	p.approvePending(t)
	p.desk.run(t, ask)

	p.stop(t, "n3")
	p.desk.run(t, p.page(t, "operations.md deny"))
	denied := p.desk.run(t, `hallpass cluster status -o json | jq -r '.issuers[] | select(.denied) | .node' | sort | uniq -c | tr -s ' '`)
	if denied != " 6 n3\n 2 n4\n" { // those of the n3 that is stolen, their successors, and of the two machines that were replaced
		t.Errorf("denied are issuers of %q", denied)
	}
	p.use(t)
	p.forged(t)
}

// stop ends a node as the pages do.
func (p *pagesRun) stop(t *testing.T, node string) {
	t.Helper()
	p.nodes[node].run(t, "kill -TERM $(cat server.pid); while kill -0 $(cat server.pid); do sleep 0.1; done")
}

// forged finds nothing in the log of a proxy that was shown real certificates, and a serial that
// nobody committed.
func (p *pagesRun) forged(t *testing.T) {
	serial := regexp.MustCompile(`(?m)^[0-9a-f]{20,}$`)
	p.carry(t, "payments/access.jsonl", "desk/access.jsonl")
	records := p.read(t, "desk/access.jsonl")
	if real := regexp.MustCompile(`"serial":"([0-9a-f]{20,})"`).FindAllString(records, -1); len(real) < 5 {
		t.Fatalf("only %d serials in the access log: %s", len(real), records)
	}
	if found := serial.FindAllString(p.desk.run(t, p.page(t, "operations.md forged")), -1); len(found) > 0 {
		t.Errorf("taken for forged: %v", found)
	}
	const made = "00112233445566778899aabbccddeeff"
	first, _, _ := strings.Cut(records, "\n")
	p.write(t, "desk/access.jsonl", records+regexp.MustCompile(`"serial":"[0-9a-f]+"`).ReplaceAllString(first, `"serial":"`+made+`"`)+"\n")
	p.desk.run(t, "rm -r now")
	if found := serial.FindAllString(p.desk.run(t, p.page(t, "operations.md forged")), -1); len(found) != 1 || found[0] != made {
		t.Errorf("found forged: %v, want %s", found, made)
	}
}

func (p *pagesRun) audit(t *testing.T) {
	tail := p.shell(t, "desk")
	tail.run(t, p.page(t, "operations.md admin"))
	printed := tail.start(t, p.page(t, "operations.md tail"))
	follows := func(what string) {
		t.Helper()
		within(t, "the log shows "+what, func() error {
			if text, err := os.ReadFile(printed); err != nil || !strings.Contains(string(text), what) {
				return fmt.Errorf("%w: %s", err, text)
			}
			return nil
		})
	}
	follows("issuer.deny")
	ask := `hallpass --identity people/alice request create payments --allow 'GET /accounts/9' --for 5m --reason 'for the log' --quiet`
	follows(strings.TrimSpace(p.desk.run(t, ask)))
	tail.kill()

	p.desk.run(t, "mkdir checkpoints; cp now/checkpoint checkpoints/yesterday")
	wants(t, p.desk.run(t, p.page(t, "operations.md audit")), "verified")
}

// withoutUs is docs/audit.md: with hallpass, with Python and with openssl.
func (p *pagesRun) withoutUs(t *testing.T) {
	wants(t, p.desk.run(t, p.page(t, "audit.md export")), "verified")
	p.write(t, "desk/root.py", p.page(t, "audit.md root"))
	wants(t, p.desk.run(t, "cd audit; python3 ../root.py"), "acme.test/hallpass/epoch/1 holds")
	wants(t, p.desk.run(t, p.page(t, "audit.md signature")), "Signature Verified Successfully")

	p.desk.run(t, "cp -r . ../touched; cd ../touched; sed -i '3s/alice/olice/' entries.jsonl")
	wants(t, p.desk.run(t, "python3 ../root.py"), "DOES NOT HOLD")
	refused(t, p.desk, "hallpass audit verify . --manifest ../manifest.json")
	p.desk.run(t, "sed -i '2s/^/1/' checkpoint")
	refused(t, p.desk, "( "+p.page(t, "audit.md signature")+")")
	p.desk.run(t, "cd ..")
}

// anew is the new cluster in the old one's place.
func (p *pagesRun) anew(t *testing.T) {
	p.stop(t, "n1")
	p.stop(t, "n2")
	for _, n := range nodeNames() {
		if err := os.Rename(filepath.Join(p.dir, n, "data"), filepath.Join(p.dir, n, "data-before")); err != nil {
			t.Fatal(err)
		}
	}
	p.offline.run(t, p.page(t, "operations.md again"))
	p.manifest(t)
	p.startNodes(t)
	p.payments.run(t, "kill -TERM $(cat proxy.pid); while kill -0 $(cat proxy.pid); do sleep 0.1; done; rm revocations.json")
	p.startProxy(t)
	p.use(t)
	p.desk.run(t, "hallpass audit export --out anew; hallpass audit verify anew --manifest manifest.json")
	wants(t, refused(t, p.desk, "hallpass audit verify anew --manifest manifest.json --older checkpoints/today"), "histor")
}
