//go:build integration || kms

package main

import (
	"errors"
	"strings"
	"testing"
)

// everythingGone stops all nodes, lets ada in by two custodians, and has the cluster hear of it.
func (p *pagesRun) everythingGone(t *testing.T) {
	for _, name := range []string{"grace", "linus", "edsger"} {
		p.offline.run(t, p.page(t, "operations.md custodian", "grace", name))
	}
	wants(t, p.offline.run(t, p.page(t, "operations.md kit")), "2 of 3", "emergency register kit")
	p.carry(t, "offline/kit/issuer.crt", "desk/kit/issuer.crt")
	wants(t, p.desk.run(t, p.page(t, "operations.md register")), "emergency")
	p.carry(t, "payments/proxy.yaml", "payments/proxy.before")
	for _, n := range nodeNames() {
		p.stop(t, n)
	}

	p.offline.run(t, p.page(t, "operations.md emergency-csr"))
	alone := "hallpass emergency issue payments --kit kit --key grace.key --allow 'GET /accounts/**' --for 30m " +
		"--subject spiffe://acme.test/user/ada --reason alone --csr ada.csr --out alone"
	wants(t, refused(t, p.offline, alone), "it takes 2 of 3 together (grace, linus, edsger), and there are keys of grace only")
	wants(t, p.offline.run(t, p.page(t, "operations.md emergency-issue")), "grace, linus", "record 1", "all nodes lost, ticket 911")
	for _, file := range []string{"ada-in", "ada.key"} {
		p.carry(t, "offline/"+file, "desk/"+file)
	}
	// A service that says nothing of emergencies admits none.
	refused(t, p.desk, strings.TrimSpace(p.page(t, "operations.md emergency-use")))
	p.write(t, "payments/proxy.yaml", strings.Replace(p.read(t, "payments/proxy.before"), "emergency: deny ", "emergency: allow", 1))
	p.restartProxy(t)
	wants(t, p.desk.run(t, p.page(t, "operations.md emergency-use")), "payments: GET /accounts/42 for spiffe://acme.test/user/ada")
	wants(t, p.desk.run(t, "hallpass cert inspect ada-in/cert.pem"), "made in an EMERGENCY", "EMERGENCY issuer")
	wants(t, p.read(t, "payments/access.jsonl"), `"emergency":true`, "emergency_not_allowed")

	p.startNodes(t)
	p.carry(t, "payments/access.jsonl", "desk/access.jsonl")
	wants(t, refused(t, p.desk, "hallpass audit check-access access.jsonl"), "never committed  0", "emergency, NOT IMPORTED", "bring the journal")
	within(t, "the nodes warn of it", func() error {
		said := p.nodes["n2"].run(t, "curl -s "+p.admin("n2")+"/readyz")
		if !strings.Contains(said, "emergency certificates were used that are not imported") {
			return errors.New(said)
		}
		return nil
	})
	p.supplant(t, "offline/kit", "desk/kit")
	wants(t, p.desk.run(t, p.page(t, "operations.md import")), "records", "emergency")
	wants(t, p.desk.run(t, "hallpass audit check-access access.jsonl"), "never committed  0", "of which 0 are not imported")
	id := strings.TrimSpace(p.desk.run(t, `hallpass grant list -o json | jq -r '[.grants[] | select(.emergency)][0].id'`))
	wants(t, p.desk.run(t, "hallpass grant show "+id), "made offline by grace and linus", "all nodes lost, ticket 911")
	wants(t, p.desk.run(t, "hallpass audit export --out emergency-log; hallpass audit prove "+id+" --out emergency.proof; "+
		"hallpass audit verify emergency.proof --manifest manifest.json"), "verified", "emergency.import")

	p.offline.run(t, strings.ReplaceAll(p.page(t, "operations.md emergency-issue"), "ada-in", "again"))
	lines := strings.Split(strings.TrimSpace(p.read(t, "offline/kit/journal.jsonl")), "\n")
	grant := lines[1][strings.Index(lines[1], "/_id/")+len("/_id/"):][:36]
	issuer := strings.TrimSpace(p.desk.run(t, "hallpass emergency list -o json | jq -r .issuers[0].id"))
	p.desk.run(t, "GRANT="+grant+" ISSUER="+issuer+"\n"+p.page(t, "operations.md emergency-revoke"))
	wants(t, p.desk.run(t, "hallpass emergency list"), "denied: two shares were stolen")
	p.supplant(t, "payments/proxy.before", "payments/proxy.yaml")
	p.restartProxy(t)
	p.use(t)
}

func (p *pagesRun) restartProxy(t *testing.T) {
	t.Helper()
	p.payments.run(t, "kill -TERM $(cat proxy.pid); while kill -0 $(cat proxy.pid); do sleep 0.1; done")
	p.startProxy(t)
}
