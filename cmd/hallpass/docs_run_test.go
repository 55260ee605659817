//go:build integration || kms

package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/control"
)

// pagesRun is the machines that the pages speak of, with a shell on each.
type pagesRun struct {
	*world
	offline  *shell
	nodes    map[string]*shell
	desk     *shell // an admin's, who also acts for the people
	payments *shell // where the service is
}

func newPagesRun(t *testing.T, mine func(block string) bool) *pagesRun {
	t.Helper()
	w := newWorld(t, mine)
	p := &pagesRun{world: w, offline: w.shell(t, "offline"), nodes: map[string]*shell{}, desk: w.shell(t, "desk"), payments: w.shell(t, "payments")}
	for _, n := range nodeNames() {
		p.nodes[n] = w.shell(t, n)
	}
	return p
}

// TestPagesRun types what docs/ says to type, in the order in which one would: three control
// nodes and a proxy are processes of bin/hallpass on loopback. The first step that fails ends
// it. Words between the blocks, such as "carry this there", are the code between them here.
func TestPagesRun(t *testing.T) {
	p := newPagesRun(t, func(block string) bool { return !strings.HasPrefix(block, "kms-") })
	steps := []struct {
		name string
		run  func(t *testing.T)
	}{
		{"the roots, the keys and the manifest", p.found},
		{"start", p.start},
		{"a proxy", p.proxy},
		{"access on demand", p.onDemand}, // while nothing is granted
		{"use it", p.use},
		{"the console", p.console},
		{"the API", p.api},
		{"health", p.health},
		{"a backup", p.backup},
		{"a rolling restart", p.restart},
		{"policy, groups and persons", p.changes},
		{"nodes come and go", p.nodesComeAndGo},
		{"every ninety days", p.ninetyDays},
		{"new roots", p.newRoots},
		{"when everything is gone", p.everythingGone},
		{"a lost quorum", p.lostQuorum},
		{"something was stolen", p.stolen},
		{"the audit log", p.audit},
		{"the audit log without us", p.withoutUs},
		{"coming back from a snapshot", p.comingBack},
		{"a new cluster", p.anew},
	}
	for _, s := range steps {
		if !t.Run(s.name, s.run) {
			return
		}
	}
	for _, b := range p.unrun() {
		t.Errorf("%s is marked as run, and no step runs it", b)
	}
}

// file is the block of a page that is a file: the one with these words in it.
func file(t *testing.T, page, words string) string {
	t.Helper()
	for _, b := range pageBlocks(t) {
		if b.page == page && b.language == "yaml" && strings.Contains(b.text, words) {
			return b.text
		}
	}
	t.Fatalf("%s has no file with %q", page, words)
	return ""
}

func wants(t *testing.T, printed string, words ...string) {
	t.Helper()
	for _, want := range words {
		if !strings.Contains(printed, want) {
			t.Errorf("it does not say %q:\n%s", want, printed)
		}
	}
}

func (p *pagesRun) found(t *testing.T) {
	p.write(t, "offline/seed.yaml", file(t, "operations.md", "# seed.yaml"))
	wants(t, p.offline.run(t, p.page(t, "operations.md roots")), "ca/persons/ada", "ca/persons/edsger")
	p.offline.run(t, p.page(t, "operations.md persons"))
	var fingerprints []string
	for _, n := range nodeNames() {
		printed := p.nodes[n].run(t, p.page(t, "operations.md keys", "n1", n))
		fingerprints = append(fingerprints, regexp.MustCompile(`[0-9a-f]{64}`).FindString(printed))
		p.carry(t, n+"/keys/node-request.json", "offline/"+n+"/node-request.json")
	}
	printed := p.offline.run(t, p.page(t, "operations.md manifest"))
	wants(t, printed, fingerprints...)
	p.carry(t, "offline/ca/persons", "desk/ca/persons")
	p.carry(t, "offline/people", "desk/people")
	p.manifest(t)
}

// manifest copies it to each node, and to who verifies the log.
func (p *pagesRun) manifest(t *testing.T) {
	for _, machine := range append(nodeNames(), "desk") {
		p.carry(t, "offline/ca/manifest.json", machine+"/manifest.json")
	}
}

func (p *pagesRun) start(t *testing.T) {
	settings := file(t, "operations.md", "listen:")
	for _, n := range nodeNames() {
		p.write(t, n+"/server.yaml", strings.NewReplacer("n1", n,
			"0.0.0.0:8443", fmt.Sprintf("127.0.0.1:%d", p.ports[n+"-api"]), "0.0.0.0:7443", fmt.Sprintf("127.0.0.1:%d", p.ports[n+"-raft"]),
			"127.0.0.1:9900", p.admin(n)).Replace(settings))
	}
	p.startNodes(t)
	printed := p.desk.run(t, p.page(t, "operations.md admin"))
	wants(t, printed, "spiffe://acme.test/user/ada", "leader", "n1", "n2", "n3")
}

func (p *pagesRun) startNodes(t *testing.T) {
	t.Helper()
	for _, n := range nodeNames() {
		p.nodes[n].run(t, p.page(t, "operations.md start"))
	}
	for _, n := range nodeNames() {
		p.nodes[n].run(t, "until hallpass health "+p.admin(n)+"; do sleep 0.1; done")
	}
}

// admin is a node's admin port.
func (p *pagesRun) admin(node string) string {
	return fmt.Sprintf("127.0.0.1:%d", p.ports[node+"-admin"])
}

func (p *pagesRun) proxy(t *testing.T) {
	// What a node signed ends with the node: n3, which is to be lost, signs this.
	p.desk.run(t, p.page(t, "operations.md transfer", "n2", "n3"))
	p.service(t)
	p.write(t, "payments/proxy.yaml", p.here(strings.NewReplacer(
		"0.0.0.0:9443", fmt.Sprintf("127.0.0.1:%d", p.ports["proxy"]), "127.0.0.1:8080", fmt.Sprintf("127.0.0.1:%d", p.ports["upstream"]),
		"127.0.0.1:9901", p.admin("proxy")).Replace(file(t, "proxy.md", "upstream:"))))
	p.startProxy(t)
}

// service gives the proxy an identity, its first or a new one.
func (p *pagesRun) service(t *testing.T) {
	t.Helper()
	p.desk.run(t, p.page(t, "operations.md service"))
	p.supplant(t, "desk/svid", "payments/svid")
}

func (p *pagesRun) startProxy(t *testing.T) {
	t.Helper()
	p.payments.run(t, p.page(t, "operations.md proxy"))
	p.payments.run(t, "until hallpass health "+p.admin("proxy")+"; do sleep 0.1; done")
}

func (p *pagesRun) use(t *testing.T) {
	t.Helper()
	p.desk.run(t, "rm -rf grant") // another grant's folder is not written over
	printed := p.desk.run(t, p.page(t, "operations.md use"))
	if want := "payments: GET /accounts/42 for spiffe://acme.test/user/alice\n"; !strings.HasSuffix(printed, want) {
		t.Errorf("the last it says is not %q:\n%s", want, printed)
	}
}

func (p *pagesRun) health(t *testing.T) {
	printed := p.nodes["n1"].run(t, p.page(t, "operations.md health", "127.0.0.1:9900", p.admin("n1")))
	var said control.Health
	if err := json.Unmarshal([]byte(printed[strings.Index(printed, "{"):]), &said); err != nil || !said.Ready || len(said.Findings) < 5 {
		t.Errorf("%v: %s", err, printed)
	}
	page := pages(t)["../../docs/operations.md"]
	for _, f := range said.Findings { // each has a row in the page's table
		wants(t, page, "`"+f.Check+"`")
	}
}

// leader is the id of the leading node.
func (p *pagesRun) leader(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(p.desk.run(t, "hallpass cluster status -o json | jq -r .leader"))
}

// restart goes round the nodes, the leader last, and each is another process afterwards.
func (p *pagesRun) restart(t *testing.T) {
	leader := p.leader(t)
	var order []string
	for _, n := range nodeNames() {
		if n != leader {
			order = append(order, n)
		}
	}
	for _, n := range append(order, leader) {
		before := p.read(t, n+"/server.pid")
		p.nodes[n].run(t, p.page(t, "operations.md restart", "127.0.0.1:9900", p.admin(n)))
		if after := p.read(t, n+"/server.pid"); after == before {
			t.Errorf("%s is still process %s", n, after)
		}
		p.nodes[n].run(t, "kill -0 $(cat server.pid)")
		p.desk.run(t, "hallpass request list")
	}
}

func (p *pagesRun) changes(t *testing.T) {
	for _, command := range []string{
		"hallpass person set mallory --id spiffe://acme.test/user/mallory", "hallpass group set contractors --member alice",
	} {
		p.desk.run(t, command)
		p.approvePending(t)
	}
	p.desk.run(t, "EDITOR='sed -i s/1h/2h/'")
	printed := p.desk.run(t, p.page(t, "operations.md propose"))
	wants(t, printed, "policy.yaml: 0 of 0 tests passed", "+++ policy.yaml", "pending")
	p.approvePending(t)
	wants(t, p.desk.run(t, "hallpass policy show"), "max_duration: 2h")
	for command := range strings.Lines(p.page(t, "operations.md directory")) {
		p.desk.run(t, command)
		p.approvePending(t)
	}
	wants(t, p.desk.run(t, "hallpass group list"), "ada, grace, linus, carol", "alice, carol")
	for command := range strings.Lines(p.page(t, "operations.md turns")) {
		wants(t, p.desk.run(t, command), "on call")
		p.approvePending(t)
	}
	now := p.desk.run(t, "hallpass group list -o json | jq -c '.groups[] | [.name, (.now | length), .until != null]'")
	wants(t, now, `["on-call",1,true]`, `["desk",0,false]`)
	p.desk.run(t, p.page(t, "operations.md substitutes"))
	p.approvePending(t)
	wants(t, p.desk.run(t, p.page(t, "operations.md stand-in")), "carol stands in for bob in payments-owners until", "bob (carol stands in until", "bob counts in payments-owners again")
	if left := p.desk.run(t, "hallpass person list; hallpass group list"); strings.Contains(left, "mallory") || strings.Contains(left, "contractors") {
		t.Errorf("not deleted:\n%s", left)
	}
}

// approvePending has the one pending change approved.
func (p *pagesRun) approvePending(t *testing.T) {
	t.Helper()
	pending := strings.Fields(p.desk.run(t, "hallpass change list --state pending -o json | jq -r .changes[].id"))
	if len(pending) != 1 {
		t.Fatalf("%d changes are pending, want one", len(pending))
	}
	wants(t, p.desk.run(t, "ID="+pending[0]+"\n"+p.page(t, "operations.md approve")), "applied")
}
