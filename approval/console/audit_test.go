package console_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

// liar is a cluster that shows another entry than the one in its log, or another proof.
type liar struct {
	*api.Client
	entry func([]byte) []byte
	proof func(*api.InclusionProof)
}

func (l liar) AuditEntries(ctx context.Context, from uint64, limit int, opts ...api.CallOption) (api.AuditEntries, error) {
	run, err := l.Client.AuditEntries(ctx, from, limit, opts...)
	for i, text := range run.Entries {
		if l.entry != nil {
			run.Entries[i] = l.entry(text)
		}
	}
	return run, err
}

func (l liar) InclusionProof(ctx context.Context, index, size uint64, opts ...api.CallOption) (api.InclusionProof, error) {
	p, err := l.Client.InclusionProof(ctx, index, size, opts...)
	if l.proof != nil {
		l.proof(&p)
	}
	return p, err
}

// Every entry is proven on its page, by what the console computes; one that was changed on the way is not.
func TestAuditOnACluster(t *testing.T) {
	env := testenv.Start(t, testenv.Options{Nodes: 1})
	r := env.Request("alice", "payments", time.Hour, "GET /accounts/**")
	bob := as(t, env, "bob")
	run, err := env.Client("bob").AuditEntries(t.Context(), 0, 50)
	if err != nil || len(run.Entries) < 2 {
		t.Fatalf("%d entries, %v", len(run.Entries), err)
	}
	wants(t, bob.get("/audit"), http.StatusOK, "request.create", "user/alice", r.ID, "bootstrap")
	for i := range run.Entries {
		wants(t, bob.get(fmt.Sprintf("/audit/%d", i)), http.StatusOK, "It is in the log")
	}
	last := fmt.Sprintf("/audit/%d", len(run.Entries)-1)
	for name, l := range map[string]liar{
		"another entry":   {entry: func(text []byte) []byte { return bytes.Replace(text, []byte("alice"), []byte("mallo"), 1) }},
		"another proof":   {proof: func(p *api.InclusionProof) { p.Hashes = p.Hashes[:len(p.Hashes)-1] }},
		"no hash":         {proof: func(p *api.InclusionProof) { p.Hashes[0] = "AAAA" }},
		"another's proof": {proof: func(p *api.InclusionProof) { p.Hashes[0] = p.LeafHash }},
	} {
		l.Client = env.Client("bob")
		got := bedOver(t, newFakeAPI(), l).signIn(t).get(last)
		t.Run(name, func(t *testing.T) { wants(t, got, http.StatusOK, "It is not proven to be in the log") })
	}

	wants(t, bob.get("/audit/4711"), http.StatusNotFound, "the log has")
	for _, bad := range []string{"/audit/x", "/audit/-1", "/audit/99999999999999999999", "/audit?before=x"} {
		wants(t, bob.get(bad), http.StatusUnprocessableEntity)
	}
	wants(t, bob.get("/audit?before=1"), http.StatusOK, "bootstrap")
	wants(t, bob.get("/audit?before=0"), http.StatusOK, "No entries")
	wants(t, bob.get("/policy"), http.StatusOK, "Revision 1", "requesters: [group:engineers]")
	wants(t, bob.get("/cluster"), http.StatusOK, "acme.test", "leader", "n1", "identity", "None.")
}
