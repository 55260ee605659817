package control

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// TestWhoSeesWhat: requests and grants are for those who have to do with them.
func TestWhoSeesWhat(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	r := c.granted()
	own, err := c.as("agent/robot").CreateRequest(ctx, readAccounts())
	must(t, err)
	for path, sees := range map[string]struct{ alices, robots bool }{
		"user/alice":        {true, true}, // owns the robot
		"user/alice-laptop": {true, true}, // the same person
		"user/bob":          {true, true}, // may approve
		"user/ann":          {true, true}, // admin
		"user/erin":         {false, false},
		"agent/robot":       {false, true},
		"service/payments":  {false, false},
	} {
		cl := c.as(path)
		for _, q := range []struct {
			id  string
			may bool
		}{{r.ID, sees.alices}, {own.ID, sees.robots}} {
			_, err := cl.Request(ctx, q.id)
			if q.may != (err == nil) || err != nil && !errors.Is(err, api.ErrNotFound) {
				t.Errorf("%s reads %s: %v", path, q.id, err)
			}
			list, err := cl.Requests(ctx, api.Filter{})
			must(t, err)
			found := false
			for _, l := range list.Requests {
				found = found || l.ID == q.id
			}
			if found != q.may {
				t.Errorf("%s lists %s: %v", path, q.id, found)
			}
		}
		_, err := cl.Grant(ctx, r.ID)
		grants, lerr := cl.Grants(ctx, api.Filter{State: api.GrantActive})
		must(t, lerr)
		if sees.alices != (err == nil) || sees.alices != (len(grants.Grants) == 1) {
			t.Errorf("%s and the grant: %v, %d", path, err, len(grants.Grants))
		}
	}
	// What one may not see, one may not touch, and is not told that it exists.
	_, err = c.as("user/erin").RevokeGrant(ctx, r.ID, "x")
	wantProblem(t, err, api.CodeNotFound)
	_, err = c.as("user/erin").CancelRequest(ctx, own.ID)
	wantProblem(t, err, api.CodeNotFound)
	c.checkDirectory(t)
}

func (c *cluster) checkDirectory(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	for path, may := range map[string]bool{"user/erin": true, "agent/robot": false, "service/payments": false} {
		cl := c.as(path)
		_, e1 := cl.Policy(ctx)
		_, e2 := cl.Groups(ctx)
		_, e3 := cl.Persons(ctx)
		_, e4 := cl.Cluster(ctx)
		_, e5 := cl.AuditCheckpoint(ctx)
		_, e6 := cl.Changes(ctx, "", api.Page{})
		for i, err := range []error{e1, e2, e3, e4, e5, e6} {
			if may != (err == nil) || err != nil && !errors.Is(err, api.ErrDenied) {
				t.Errorf("%s, read %d: %v", path, i, err)
			}
		}
		b, err := cl.Bundle(ctx)
		must(t, err)
		if !strings.Contains(b.IdentityRoots, "BEGIN CERTIFICATE") || b.IdentityRoots == b.GrantRoots || b.GrantTrustDomain != "grants.acme.test" {
			t.Errorf("bundle: %+v", b)
		}
	}
	who, err := c.as("user/alice-laptop").WhoAmI(ctx)
	must(t, err)
	if who.Person != "alice" || who.Admin || len(who.Groups) != 2 || time.Until(who.NotAfter) > time.Hour {
		t.Errorf("whoami: %+v", who)
	}
	cl, err := c.as("user/ann").Cluster(ctx)
	must(t, err)
	if len(cl.Nodes) != 3 || len(cl.Issuers) != 6 || cl.Leader == "" || cl.Epoch != 1 || cl.TrustDomain != "acme.test" {
		t.Errorf("cluster: %+v", cl)
	}
}

// TestPages walks a long list in small pages.
func TestPages(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	alice := c.as("user/alice")
	want := map[string]bool{}
	for range 7 {
		r, err := alice.CreateRequest(t.Context(), readAccounts())
		must(t, err)
		want[r.ID] = true
		// Between them, some that alice does not see.
		_, err = c.as("user/erin").CreateRequest(t.Context(), api.RequestInput{
			Service: "wiki", Permissions: []string{"GET /x"}, Reason: "r", Duration: api.Duration(time.Minute),
		})
		must(t, err)
	}
	got := map[string]bool{}
	f := api.Filter{Page: api.Page{Limit: 2}}
	for {
		page, err := alice.Requests(t.Context(), f)
		must(t, err)
		for _, r := range page.Requests {
			if got[r.ID] || !want[r.ID] {
				t.Errorf("%s is there twice, or not alice's", r.ID)
			}
			got[r.ID] = true
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			break
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d of %d", len(got), len(want))
	}
	_, err := alice.Requests(t.Context(), api.Filter{Page: api.Page{Cursor: "nonsense"}})
	wantProblem(t, err, api.CodeInvalid)
}

// TestAutoAndNarrow: what needs nobody is granted at once; an approver may
// narrow.
func TestAutoAndNarrow(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	auto, err := c.as("user/erin").CreateRequest(ctx, api.RequestInput{
		Service: "wiki", Permissions: []string{"GET /pages/*"}, Reason: "read", Duration: api.Duration(time.Minute),
	})
	must(t, err)
	if auto.State != api.RequestApproved || !auto.Auto || auto.Grant == nil || len(auto.Require) != 0 {
		t.Errorf("auto: %+v", auto)
	}
	in := readAccounts()
	in.Permissions = []string{"GET,HEAD /accounts/**"}
	r, err := c.as("user/alice").CreateRequest(ctx, in)
	must(t, err)
	wide := api.DecisionInput{Decision: "approve", Hash: r.Hash, Permissions: []string{"POST /accounts/**"}}
	if _, err := c.as("user/bob").DecideRequest(ctx, r.ID, wide); err == nil {
		t.Error("an approver widened a request")
	}
	narrow := api.DecisionInput{Decision: "approve", Hash: r.Hash, Permissions: []string{"GET /accounts/7/*"}, Duration: api.Duration(time.Minute)}
	got, err := c.as("user/bob").DecideRequest(ctx, r.ID, narrow)
	must(t, err)
	if got.State != api.RequestApproved || len(got.Revisions) != 2 || got.Permissions[0] != "GET /accounts/7/*" ||
		got.Grant.ExpiresAt.Sub(got.Grant.NotBefore) != time.Minute {
		t.Errorf("narrowed: %+v", got)
	}
	_, err = c.as("user/carol").DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "deny", Hash: got.Hash})
	wantProblem(t, err, api.CodeConflict)
}

// TestChangesTakeTwoOthers: policy changes only when two admins other than the
// author approve.
func TestChangesTakeTwoOthers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	ann, ben, cid := c.as("user/ann"), c.as("user/ben"), c.as("user/cid")
	now, err := ann.Policy(ctx)
	must(t, err)
	spec := api.ChangeSpec{Kind: api.ChangePolicySet, YAML: strings.Replace(now.YAML, "max_duration: 1h", "max_duration: 10m", 1)}
	_, err = c.as("user/alice").ProposeChange(ctx, api.ChangeInput{Change: spec, BaseRevision: now.Revision})
	wantProblem(t, err, api.CodeDenied)
	broken := api.ChangeSpec{Kind: api.ChangePolicySet, YAML: "version: 1\nrules:\n  - name: x\n    nonsense: 1\n"}
	_, err = ann.ProposeChange(ctx, api.ChangeInput{Change: broken, BaseRevision: now.Revision})
	if p := theProblem(t, err, api.CodeInvalid); !strings.Contains(p.Detail, "4") || !strings.Contains(p.Detail, "nonsense") {
		t.Errorf("a broken policy is refused with %q", p.Detail)
	}
	mixed := spec
	mixed.Subject = "spiffe://acme.test/user/alice"
	_, err = ann.ProposeChange(ctx, api.ChangeInput{Change: mixed, BaseRevision: now.Revision})
	wantProblem(t, err, api.CodeInvalid)

	ch, err := ann.ProposeChange(ctx, api.ChangeInput{Change: spec, BaseRevision: now.Revision})
	must(t, err)
	yes := api.ChangeDecisionInput{Decision: "approve", Hash: ch.Hash}
	if _, err := ann.DecideChange(ctx, ch.ID, yes); err == nil {
		t.Error("the author approved")
	}
	ch, err = ben.DecideChange(ctx, ch.ID, yes)
	must(t, err)
	if ch.State != api.ChangePending || ch.Approvals != 1 || ch.Needed != 2 {
		t.Errorf("after one: %+v", ch)
	}
	ch, err = cid.DecideChange(ctx, ch.ID, yes)
	must(t, err)
	if ch.State != api.ChangeApplied {
		t.Errorf("after two: %+v", ch)
	}
	_, err = c.as("user/alice").CreateRequest(ctx, readAccounts()) // 30 minutes
	wantProblem(t, err, api.CodeDenied)
	stale, err := ann.ProposeChange(ctx, api.ChangeInput{Change: spec, BaseRevision: now.Revision})
	if err == nil {
		t.Errorf("a change of an old policy: %+v", stale)
	}
	list, err := ann.Changes(ctx, api.ChangeApplied, api.Page{})
	must(t, err)
	if len(list.Changes) != 1 || list.Changes[0].ID != ch.ID || list.Changes[0].Change.Kind != api.ChangePolicySet {
		t.Errorf("list: %+v", list)
	}
	c.checkBlock(t)
	c.check()
}

func (c *cluster) checkBlock(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	erin := "spiffe://acme.test/user/erin"
	wiki := api.RequestInput{Service: "wiki", Permissions: []string{"GET /x"}, Reason: "r", Duration: api.Duration(time.Minute)}
	r, err := c.as("user/erin").CreateRequest(ctx, wiki)
	must(t, err)
	_, err = c.as("user/bob").BlockSubject(ctx, api.BlockInput{Subject: erin, Reason: "left"})
	wantProblem(t, err, api.CodeDenied)
	b, err := c.as("user/ann").BlockSubject(ctx, api.BlockInput{Subject: erin, Reason: "left"})
	must(t, err)
	if b.By != "spiffe://acme.test/user/ann" || b.Subject != erin {
		t.Errorf("block: %+v", b)
	}
	g, err := c.as("user/ann").Grant(ctx, r.ID)
	must(t, err)
	if g.State != api.GrantRevoked || g.Revoked == nil {
		t.Errorf("a blocked subject's grant is %+v", g)
	}
	_, err = c.as("user/erin").CreateRequest(ctx, wiki)
	wantProblem(t, err, api.CodeDenied)
}
