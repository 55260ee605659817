//go:build integration || kms

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

// console is docs/console.md: what is printed is a link that a browser can follow.
func (p *pagesRun) console(t *testing.T) {
	terminal := p.shell(t, "desk")
	terminal.run(t, "export HALLPASS_SERVER="+strings.TrimSpace(p.desk.run(t, "echo $HALLPASS_SERVER")))
	printed := terminal.start(t, p.page(t, "console.md console"))
	within(t, "the console has printed its link", func() error {
		text, err := os.ReadFile(printed)
		link := regexp.MustCompile(`http://hallpass-[a-z0-9]+\.localhost:[0-9]+/sign-in\?token=[A-Z0-9]+\n`).FindString(string(text))
		if link == "" {
			return fmt.Errorf("%q, %w", text, err)
		}
		wants(t, p.desk.run(t, "curl -sS --fail-with-body '"+strings.TrimSpace(link)+"'"), "You will act as", "spiffe://acme.test/user/bob")
		return nil
	})
}

// onDemand is docs/connect.md: a call that nothing allows yet, in one terminal, waits for bob, in another.
func (p *pagesRun) onDemand(t *testing.T) {
	p.desk.run(t, p.page(t, "connect.md on-demand", "payments.acme.test:9443", fmt.Sprintf("localhost:%d", p.ports["proxy"])))
	p.desk.run(t, "until test -S payments.sock; do sleep 0.1; done")
	caller := p.shell(t, "desk")
	printed := caller.start(t, p.page(t, "connect.md call"))
	within(t, "bob has something to approve", func() error {
		p.desk.run(t, "ID=$(hallpass --identity people/bob request list --state pending -o json | jq -r '.requests[] | select(.permissions == [\"GET /accounts/43\"]) | .id')")
		if said := p.desk.run(t, "echo $ID"); said == "\n" {
			return errors.New("nothing is pending")
		}
		return nil
	})
	if text, err := os.ReadFile(printed); err != nil || len(text) != 0 {
		t.Errorf("before it was approved, curl printed %q, %v", text, err)
	}
	p.desk.run(t, "hallpass --identity people/bob review approve $ID")
	within(t, "curl has its answer", func() error {
		text, err := os.ReadFile(printed)
		if want := "payments: GET /accounts/43 for spiffe://acme.test/user/alice\n"; string(text) != want {
			return fmt.Errorf("%q, %w", text, err)
		}
		return nil
	})
	p.desk.run(t, "kill -TERM $(cat connect.pid)")
}

// refused types what must fail, and says what it said.
func refused(t *testing.T, s *shell, command string) string {
	t.Helper()
	return s.run(t, "if "+strings.TrimSpace(command)+"; then echo; echo this passes; exit 1; fi")
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
	said := func(want string) error {
		printed := p.payments.run(t, p.page(t, "operations.md deaf", "127.0.0.1:9901", p.admin("proxy")))
		if !strings.Contains(printed, want) {
			return errors.New(printed)
		}
		return nil
	}
	within(t, "the proxy says that it is refused", func() error { return said("the node refuses this service's certificate") })
	p.service(t)
	within(t, "the proxy hears the nodes again", func() error { return said("null") })
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
	wants(t, p.desk.run(t, p.page(t, "operations.md join", named...)), "nonvoter")
	p.desk.run(t, p.page(t, "operations.md remove", named...))
	wants(t, p.desk.run(t, p.page(t, "operations.md promote", named...)), next+"    follower")
	p.nodes[next].run(t, "until hallpass health "+p.admin(next)+"; do sleep 0.1; done")
	p.offline.run(t, p.page(t, "operations.md drop", named...))
	status := p.desk.run(t, "hallpass cluster status -o json | jq -c '[[.nodes[].id], ([.issuers[] | select(.denied) | .node] | unique)]'")
	wants(t, status, `"`+next+`"],[`, `"`+old+`"`)
}

// backup takes a snapshot, and sees a flipped bit.
func (p *pagesRun) backup(t *testing.T) {
	printed := p.desk.run(t, p.page(t, "operations.md backup"))
	wants(t, printed, "acme.test", "all in it and checked", "n1      voter")
	p.desk.run(t, "cp cluster.snapshot damaged; printf not-what-was-there | dd of=damaged bs=1 seek=4000 conv=notrunc status=none")
	wants(t, refused(t, p.desk, "hallpass snapshot inspect damaged"), "at byte")
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

// newRoots goes over to new roots while everything runs, and throws the old ones away.
func (p *pagesRun) newRoots(t *testing.T) {
	p.offline.run(t, p.page(t, "operations.md rotate"))
	p.carry(t, "offline/ca/roots.jsonl", "desk/roots.jsonl")
	p.desk.run(t, p.page(t, "operations.md publish"))
	followed := p.page(t, "operations.md followed", "127.0.0.1:9901", p.admin("proxy"))
	p.payments.run(t, "until "+strings.TrimSpace(followed)+"; do sleep 0.1; done")

	p.offline.run(t, p.page(t, "operations.md renew"))
	p.supplant(t, "offline/ca/renewed", "desk/renewed")
	p.desk.run(t, p.page(t, "operations.md install"))
	p.service(t)
	for _, admin := range []string{"ada", "grace", "linus", "barbara", "edsger"} {
		p.offline.run(t, fmt.Sprintf("hallpass identity issue user/%s --root ca --out ca/persons/%[1]s", admin))
	}
	p.supplant(t, "offline/ca/persons", "desk/ca/persons")
	p.offline.run(t, p.page(t, "operations.md persons"))
	p.supplant(t, "offline/people", "desk/people")

	p.offline.run(t, p.page(t, "operations.md retire"))
	p.carry(t, "offline/ca/roots.jsonl", "desk/roots.jsonl")
	p.desk.run(t, p.page(t, "operations.md publish-again"))
	p.offline.run(t, p.page(t, "operations.md destroy"))
	within(t, "the proxy has the new roots alone", func() error {
		said := p.payments.run(t, "curl -s "+p.admin("proxy")+"/readyz")
		if !strings.Contains(said, `"roots_documents":[2,2]`) || !strings.Contains(said, `"ready":true`) {
			return errors.New(said)
		}
		return nil
	})
	p.use(t)
	// One that nobody has: the document is made, and nothing else changes.
	wants(t, p.offline.run(t, "ISSUER="+strings.Repeat("ab", 32)+"\n"+p.page(t, "operations.md deny-by-document")), "denied")
}

// supplant carries a folder to where an older one of that name is.
func (p *pagesRun) supplant(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(p.dir, to)); err != nil {
		t.Fatal(err)
	}
	p.carry(t, from, to)
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
	// Those whose roots were retired are denied too from here on: no root signs their keys again.
	denied := p.desk.run(t, `hallpass cluster status -o json | jq -r '[.issuers[] | select(.denied.reason == "n3 was broken into") | .node] | unique | join(" ")'`)
	left := p.desk.run(t, `hallpass cluster status -o json | jq -r '[.issuers[] | select(.denied == null) | .node] | unique | join(" ")'`)
	if denied != "n3\n" || left != "n1 n2\n" {
		t.Errorf("denied are issuers of %q, and left are those of %q", denied, left)
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
	p.carry(t, "payments/access.jsonl", "desk/access.jsonl")
	records := p.read(t, "desk/access.jsonl")
	if real := regexp.MustCompile(`"serial":"([0-9a-f]{20,})"`).FindAllString(records, -1); len(real) < 5 {
		t.Fatalf("only %d serials in the access log: %s", len(real), records)
	}
	wants(t, p.desk.run(t, p.page(t, "operations.md forged")), "never committed  0")
	const made = "00112233445566778899aabbccddeeff"
	var granted string
	for line := range strings.Lines(records) {
		if strings.Contains(line, `"grant":`) {
			granted = line
		}
	}
	p.write(t, "desk/access.jsonl", records+regexp.MustCompile(`"serial":"[0-9a-f]+"`).ReplaceAllString(granted, `"serial":"`+made+`"`))
	wants(t, refused(t, p.desk, strings.TrimSpace(p.page(t, "operations.md forged"))), "never committed  1", made)
	p.write(t, "desk/access.jsonl", records)
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

	p.desk.run(t, "mkdir checkpoints; hallpass audit checkpoint > checkpoints/yesterday")
	wants(t, p.desk.run(t, p.page(t, "operations.md audit")), "verified")
}

// withoutUs is docs/audit.md: with hallpass, with Python and with openssl.
func (p *pagesRun) withoutUs(t *testing.T) {
	wants(t, p.desk.run(t, p.page(t, "audit.md export")), "verified")
	p.write(t, "desk/root.py", p.page(t, "audit.md root"))
	wants(t, p.desk.run(t, p.page(t, "audit.md since")), "append-only")
	wants(t, p.desk.run(t, p.page(t, "audit.md access")), "never committed  0")
	// The cluster has been put back since: what was anchored after the snapshot it has forgotten.
	p.carry(t, "payments/access.jsonl", "desk/access.jsonl")
	for page, want := range map[string]string{"access-used": "TIMES", "access-anchored": "AUDIT LOG"} {
		text := strings.Replace(p.page(t, "audit.md "+page), "access.jsonl", "access.jsonl --allow-unanchored", 1)
		wants(t, p.desk.run(t, text), want, "grant ")
	}
	wants(t, p.desk.run(t, p.page(t, "audit.md require")), "verified", "cosigned by")
	p.desk.run(t, "GRANT=$(hallpass request list -o json | jq -r '[.requests[] | select(.state == \"approved\")][0].id')")
	wants(t, p.desk.run(t, p.page(t, "audit.md prove")), "verified", "request.create", "grant.issue")
	wants(t, p.desk.run(t, "cd audit; python3 ../root.py"), "acme.test/hallpass/epoch/2 holds")
	wants(t, p.desk.run(t, p.page(t, "audit.md signature")), "Signature Verified Successfully")

	p.desk.run(t, "cp -r . ../touched; cd ../touched; sed -i '0,/alice/s//olice/' entries.jsonl")
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
		if err := os.Rename(filepath.Join(p.dir, n, "data"), filepath.Join(p.dir, n, "data-of-epoch-3")); err != nil {
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
