package seed

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// The company that the history is of.
const (
	persons  = 320
	teamSize = 8  // owners of one service
	security = 12 // who decides on corrections too
)

// serviceNames are what is asked for.
func serviceNames() []string {
	return []string{
		"payments", "ledger", "accounts", "cards", "fraud", "kyc", "statements", "transfers", "loans", "mortgages",
		"pricing", "quotes", "orders", "inventory", "shipping", "returns", "catalog", "search", "reviews", "loyalty",
		"billing", "invoices", "tax", "payroll", "hr", "identity", "sessions", "profiles", "mail", "sms",
		"push", "files", "images", "reports", "warehouse", "metrics", "flags", "config-api", "deploys", "vault-proxy",
	}
}

// reads and writes are what a service lets be asked for, in canonical form.
func reads(service string) []string { return []string{"GET,HEAD /v1/" + service + "/**"} }

// one is a part of what reads opens, as careful people ask for it.
func one(rng *rand.Rand, service string) []string {
	return []string{fmt.Sprintf("GET /v1/%s/%d/**", service, rng.IntN(100_000_000))}
}

func writes(service string) []string {
	return []string{"GET,HEAD /v1/" + service + "/**", "POST /v1/" + service + "/*/corrections"}
}

func personName(i int) string {
	first := []string{"ada", "ben", "cleo", "dan", "eva", "finn", "gita", "hugo", "ines", "jon", "kim", "lea", "max", "nora", "omar", "pia"}
	last := []string{
		"adler", "brandt", "costa", "diaz", "engel", "fischer", "gupta", "haas", "ito", "jansen",
		"kaya", "lopez", "meyer", "novak", "okafor", "peters", "quinn", "rossi", "silva", "tanaka",
	}
	return first[i%len(first)] + "." + last[i/len(first)%len(last)]
}

func personID(name string) string { return "spiffe://acme.test/user/" + name }

func agentID(name string) string { return "spiffe://acme.test/agent/" + name + "-bot" }

// owner is one of those who decide on a service.
func owner(service, i int) string { return personName((service*teamSize + i%teamSize) % persons) }

// Company is the seed file of the company's cluster, for `ca init --seed`. Of the
// text it is given the persons, groups and rules are there too.
func Company(more Extra) string {
	var b strings.Builder
	b.WriteString("persons:\n" + more.Persons)
	for i := range persons {
		fmt.Fprintf(&b, "  - {name: %s, ids: [%q], owns: [%q]}\n", personName(i), personID(personName(i)), agentID(personName(i)))
	}
	b.WriteString("groups:\n" + more.Groups)
	fmt.Fprintf(&b, "  - {name: staff, members: [%s]}\n", strings.Join(names(persons, personName), ", "))
	fmt.Fprintf(&b, "  - {name: security, members: [%s]}\n", strings.Join(names(security, personName), ", "))
	for s, name := range serviceNames() {
		fmt.Fprintf(&b, "  - {name: %s-team, members: [%s]}\n", name, strings.Join(names(teamSize, func(i int) string { return owner(s, i) }), ", "))
	}
	b.WriteString("policy: |\n  version: 1\n  rules:\n" + more.Rules)
	for _, name := range serviceNames() {
		fmt.Fprintf(&b, `    - name: %[1]s-look
      service: %[1]s
      requesters: [group:staff]
      subjects: ["spiffe://acme.test/agent/*"]
      permissions: [%[2]q]
      require: [{group: %[1]s-team, approvals: 1}]
      max_duration: 8h
      certificate_ttl: 5m
    - name: %[1]s-correct
      service: %[1]s
      requesters: [group:staff]
      subjects: ["spiffe://acme.test/agent/*"]
      permissions: [%[3]q]
      require: [{group: %[1]s-team, approvals: 1}, {group: security, approvals: 1}]
      max_duration: 2h
      certificate_ttl: 5m
`, name, reads(name)[0], writes(name)[1])
	}
	return b.String()
}

// Extra is what a seed file has besides the company: lines of the lists, indented
// as they are there.
type Extra struct{ Persons, Groups, Rules string }

func names(n int, name func(int) string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = name(i)
	}
	return all
}

// words are what reasons are made of: a snapshot is compressed, and a dozen sentences would make it smaller than people do.
func words() []string {
	return strings.Fields(`access account after again alert all amount an analyst and answer api archive as asked at audit
backfill balance bank batch because before between blocked booking broken bug build bulk but by cache call campaign cannot
card case certificate change charge check checkout chargeback claim cleanup client clock close cluster code comparing config
confirm contract copy correct corrupted count country coupon credit cron currency customer cutover daily dashboard data
database date day debug decision delay deleted delivery deploy details device difference disabled dispute document dropped
duplicate during early email empty enable endpoint error escalated every evidence exact exception expected expired export
failed failing failover feature fee field figures file finance finding fix flag flow follow for form fraud from full gateway
hanging has header high history hotfix id import in incident index inspect integration invalid invoice is issue item its job
journal july june key language large last late latency launch legal limit line list live loading log login look lost mail
manual march match merchant merge message method migration missing mobile monthly month morning moved name need negative new
night not number of old on onboarding once only open order other outage overnight owner page paid parser partner patch
payment payout pending peak permission phone pipeline plan policy portal position posting previous price priority problem
process production profile project proof provider pull push quarter query queue quick rate read rebuild receipt record
reconcile recover refund region regression reindex reject release reminder remove renewal repair replay report request reset
resend restore result retry return review rollback root rotate round rows rule run sample schedule schema score search second
see segment sender sepa server service settlement shard shop sign since slow source spike staging stale start state statement
status step stock stop store stuck subject sum supplier support suspected sync table tax team tenant terminal test that the
their ticket time timeout to token tonight total trace transaction transfer trial twice type under unexpected until update
upload user value vendor verify version wallet warehouse was webhook week weekend why with without work worker wrong year`)
}

// reason is what somebody might say: a ticket, and some of all words about it.
func reason(rng *rand.Rand, all []string, service string) string {
	said := make([]string, 3+rng.IntN(9))
	for i := range said {
		said[i] = all[rng.IntN(len(all))]
	}
	if rng.IntN(3) == 0 {
		said = append(said, fmt.Sprintf("%s-%d", []string{"customer", "order", "case", "batch"}[rng.IntN(4)], rng.IntN(10_000_000)))
	}
	return fmt.Sprintf("%s-%d %s: %s", []string{"OPS", "INC", "SUP", "CHG"}[rng.IntN(4)], 10_000+rng.IntN(900_000), service, strings.Join(said, " "))
}

func comment(rng *rand.Rand) string {
	return []string{"", "", "", "", "ok", "lgtm", "ok, ticket checked", "fine, keep it short", "approved, ping me when done"}[rng.IntN(9)]
}
