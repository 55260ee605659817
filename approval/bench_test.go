package approval

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// bigPolicy is the default policy with n more rules, for other services.
func bigPolicy(n int) string {
	var b strings.Builder
	b.WriteString(defaultPolicy)
	for i := range n {
		fmt.Fprintf(&b, `  - name: other-%d
    service: other-%d
    requesters: ["group:engineers"]
    permissions: ["GET,HEAD /accounts/**", "POST /refunds/*"]
    require: [{group: payments-owners, approvals: 1}]
    max_duration: 1h
`, i, i)
	}
	return b.String()
}

// BenchmarkApply measures what one command of a kind costs, apart from the
// store.
func BenchmarkApply(b *testing.B) {
	for _, rules := range []int{5, 100} {
		w := busyWorld(b)
		w.change(Edit{Kind: EditPolicySet, YAML: bigPolicy(rules - 5)}, "abe", "amy")
		id := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
		live := w.asks("alice", "alice", "payments", "GET /accounts/**", time.Hour)
		w.must(w.apply("bob", w.decide(live, Approve)))
		create := w.create("payments", []string{"GET /accounts/**"}, time.Minute)
		create.Subject = spiffe("alice")
		for _, c := range []Command{
			w.command("alice", create), w.command("bob", w.decide(id, Approve)),
			w.command("alice", w.issue(live)), w.command("bob", RevokeGrant{Grant: live, Reason: "x"}),
		} {
			data, err := c.Encode()
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("%s/rules=%d", c.Body.kind(), rules), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if r := w.machine.decide(newDraft(w.a), w.index+1, data); r.Err != nil {
						b.Fatal(r.Err)
					}
				}
			})
		}
	}
}
