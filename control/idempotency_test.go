package control

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
)

// ledger asks for what takes two approvals.
func ledger() api.RequestInput {
	in := readAccounts()
	in.Service = "ledger"
	return in
}

// TestOneKeyManyCalls: a key stands for one caller's one call on one route, and
// gives nobody what another was told, nor its own caller what they may no longer
// see.
func TestOneKeyManyCalls(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx, key := t.Context(), api.WithKey("one-for-all")
	alice, bob, carol := c.as("user/alice"), c.as("user/bob"), c.as("user/carol")

	one, err := alice.CreateRequest(ctx, ledger(), key)
	must(t, err)
	two, err := alice.CreateRequest(ctx, ledger())
	must(t, err)
	// The same key on another route is another call; on another object it is a mistake.
	_, err = alice.CancelRequest(ctx, two.ID, key)
	must(t, err)
	_, err = alice.CancelRequest(ctx, one.ID, key)
	if p := theProblem(t, err, api.CodeMismatch); !strings.Contains(p.Next, "new key") {
		t.Errorf("it says %+v", p)
	}
	// A dry run commits nothing, so it takes no key from anyone.
	if dry, err := alice.DryRun(ctx, ledger()); err != nil || !dry.Allowed {
		t.Errorf("%+v, %v", dry, err)
	}

	// Carol's vote under bob's key is carol's, and not bob's answer once more.
	yes := api.DecisionInput{Decision: "approve", Hash: one.Hash}
	first, err := bob.DecideRequest(ctx, one.ID, yes, key)
	must(t, err)
	again, err := bob.DecideRequest(ctx, one.ID, yes, key)
	must(t, err)
	if len(first.Decisions) != 1 || len(again.Decisions) != 1 {
		t.Errorf("bob decided %d times, then %d", len(first.Decisions), len(again.Decisions))
	}
	_, err = bob.DecideRequest(ctx, one.ID, api.DecisionInput{Decision: "deny", Hash: one.Hash}, key)
	wantProblem(t, err, api.CodeMismatch)
	// Nor is it another identity of the same person: who votes twice is told so.
	_, err = c.as("user/bob-phone").DecideRequest(ctx, one.ID, yes, key)
	wantProblem(t, err, api.CodeConflict)
	done, err := carol.DecideRequest(ctx, one.ID, yes, key)
	must(t, err)
	if done.State != api.RequestApproved || len(done.Decisions) != 2 {
		t.Errorf("after both: %+v", done)
	}

	// Bob leaves the group, and with it what he was told.
	dir, err := c.as("user/ann").Groups(ctx)
	must(t, err)
	ch, err := c.as("user/ann").ProposeChange(ctx, api.ChangeInput{BaseRevision: dir.Revision, Change: api.ChangeSpec{
		Kind: api.ChangeGroupSet, Name: "payments-owners", Members: []string{"carol", "alice"},
	}})
	must(t, err)
	for _, admin := range []string{"user/ben", "user/cid"} {
		_, err := c.as(admin).DecideChange(ctx, ch.ID, api.ChangeDecisionInput{Decision: "approve", Hash: ch.Hash})
		must(t, err)
	}
	_, err = bob.DecideRequest(ctx, one.ID, yes, key)
	wantProblem(t, err, api.CodeNotFound)
	three, err := alice.CreateRequest(ctx, ledger())
	must(t, err)
	_, err = bob.DecideRequest(ctx, three.ID, api.DecisionInput{Decision: "approve", Hash: three.Hash}, api.WithKey("later"))
	wantProblem(t, err, api.CodeNotFound)
	c.check()
}

// TestOneKeyAtOnce: the same call sent many times at once, to every node, is one.
func TestOneKeyAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	var all sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]int{}
	for _, n := range c.live() {
		cl := c.at(n, "user/alice")
		for range 5 {
			all.Go(func() {
				r, err := cl.CreateRequest(t.Context(), readAccounts(), api.WithKey("at-once"))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				ids[r.ID]++
			})
		}
	}
	all.Wait()
	list, err := c.as("user/alice").Requests(t.Context(), api.Filter{})
	must(t, err)
	if len(ids) != 1 || len(list.Requests) != 1 {
		t.Errorf("answers by request: %v; %d requests", ids, len(list.Requests))
	}
}

// TestTwoKeys: of two keys on one call, a filter in front may have gone by the
// other.
func TestTwoKeys(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	cl := c.raw("user/alice")
	for _, keys := range [][]string{{"a", "b"}, {"a", "a"}, {""}, {"a b"}, {"\u00e9"}, {strings.Repeat("k", 129)}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.follower().url()+"/v1/requests", strings.NewReader(rawRequest))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header["Idempotency-Key"] = keys
		resp, err := cl.Do(req)
		must(t, err)
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(string(text), "Idempotency-Key") {
			t.Errorf("%q: %s %s", keys, resp.Status, text)
		}
	}
	if e := c.lastEntry(t); e.Kind != "bootstrap" {
		t.Errorf("the log has grown by %+v", e)
	}
}
