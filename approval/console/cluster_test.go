package console_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

// as is a console over a real cluster, in which a person has signed in.
func as(t *testing.T, env *testenv.Env, name string) *browser {
	t.Helper()
	return bedOver(t, newFakeAPI(), env.Client(name)).signIn(t)
}

// change has the admins make a change.
func change(t *testing.T, env *testenv.Env, spec api.ChangeSpec) {
	t.Helper()
	groups, err := env.Client("dana").Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := env.Client("dana").ProposeChange(t.Context(), api.ChangeInput{Change: spec, BaseRevision: groups.Revision})
	for _, name := range []string{"carol", "erin"} {
		if err == nil {
			c, err = env.Client(name).DecideChange(t.Context(), c.ID, api.ChangeDecisionInput{Decision: "approve", Hash: c.Hash})
		}
	}
	if err != nil || c.State != api.ChangeApplied {
		t.Fatalf("change is %s: %v", c.State, err)
	}
}

// From a request to its end, with a real cluster behind the pages.
func TestOnACluster(t *testing.T) {
	env := testenv.Start(t, testenv.Options{Nodes: 1})
	bob, alice := as(t, env, "bob"), as(t, env, "alice")

	r := env.Request("alice", "payments", time.Hour, "GET /accounts/**", "POST /refunds/*")
	wants(t, bob.get("/"), http.StatusOK, "user/alice", "a test", "Needs 1 more of owners")
	wants(t, alice.get(at(r)), http.StatusOK, "You asked for it.", "who could be: bob", "Withdraw it")
	wants(t, alice.post(at(r)+"/decide", fields(t, bob.get(at(r)).body, at(r)+"/decide")), http.StatusForbidden, "not of your session")
	page := bob.get(at(r))
	wants(t, page, http.StatusOK, "First time", "may change things, with POST.", "not held by any grant")
	form := fields(t, page.body, at(r)+"/decide")
	form["keep"], form["duration"], form["comment"] = []string{"0"}, []string{"15m"}, []string{"reading is enough"}
	if got := bob.post(at(r)+"/decide", form); got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != at(r) {
		t.Fatalf("approve: %d %s", got.StatusCode, got.body)
	}
	if got := bob.post(at(r)+"/decide", form); got.StatusCode != http.StatusSeeOther {
		t.Errorf("the same form again, by a double click: %d %s", got.StatusCode, got.body)
	}
	wants(t, bob.get(at(r)), http.StatusOK, "You approved this", "Narrowed from", "Granted until", "reading is enough", "It is approved: there is nothing left to decide.")
	wants(t, alice.get("/grants"), http.StatusOK, "GET /accounts/**", "data-ends")

	// What she holds is told when she asks again.
	again := env.Request("alice", "payments", time.Hour, "GET /accounts/42")
	page = bob.get(at(again))
	wants(t, page, http.StatusOK, "Nothing new: all of it is held already", "/grants/"+r.ID)
	if strings.Contains(page.body, "First time") {
		t.Error("it is not the first time")
	}
	form = fields(t, page.body, at(again)+"/decide")
	form["decision"], form["comment"] = []string{"deny"}, []string{"you have it"}
	wants(t, bob.post(at(again)+"/decide", form), http.StatusSeeOther)
	wants(t, alice.get(at(again)), http.StatusOK, "Denied", "you have it")

	revoke := fields(t, bob.get("/grants/"+r.ID).body, "/grants/"+r.ID+"/revoke")
	wants(t, bob.post("/grants/"+r.ID+"/revoke", revoke), http.StatusUnprocessableEntity, "reason")
	revoke["reason"] = []string{"the ticket is closed"}
	wants(t, bob.post("/grants/"+r.ID+"/revoke", revoke), http.StatusSeeOther)
	wants(t, alice.get("/grants/"+r.ID), http.StatusOK, "revoked", "the ticket is closed")
	wants(t, alice.get("/history?state=denied&subject=user/alice"), http.StatusOK, again.ID)
}

// Between opening a page and clicking, the request changes, or one's right goes: nothing is decided,
// and the page says why.
func TestMeanwhileOnACluster(t *testing.T) {
	env := testenv.Start(t, testenv.Options{Nodes: 1, Policy: strings.Replace(testenv.DefaultPolicy, "approvals: 1", "approvals: 2", 1)})
	change(t, env, api.ChangeSpec{Kind: api.ChangeGroupSet, Name: "owners", Members: []string{"bob", "carol"}})
	bob, carol := as(t, env, "bob"), as(t, env, "carol")
	r := env.Request("alice", "payments", time.Hour, "GET /accounts/**")
	form := fields(t, bob.get(at(r)).body, at(r)+"/decide")
	narrower := fields(t, carol.get(at(r)).body, at(r)+"/decide")
	narrower["duration"] = []string{"10m"}
	wants(t, carol.post(at(r)+"/decide", narrower), http.StatusSeeOther)

	got := bob.post(at(r)+"/decide", form)
	wants(t, got, http.StatusConflict, "The request has changed since you opened it. Nothing was decided.", "Narrowed from", ">Approve<")
	now, err := env.Client("bob").Request(t.Context(), r.ID)
	if err != nil || len(now.Decisions) != 1 || now.Hash == r.Hash {
		t.Fatalf("%+v, %v", now.Decisions, err)
	}
	form = fields(t, got.body, at(r)+"/decide") // the page that says so holds the next try

	change(t, env, api.ChangeSpec{Kind: api.ChangeGroupSet, Name: "owners", Members: []string{"carol", "dana"}})
	got = bob.post(at(r)+"/decide", form)
	wants(t, got, http.StatusForbidden, "You may not see this request any more.", "you have no say in it now")
	change(t, env, api.ChangeSpec{Kind: api.ChangeGroupSet, Name: "admins", Members: []string{"carol", "dana", "erin", "bob"}})
	wants(t, bob.post(at(r)+"/decide", form), http.StatusForbidden, "bob is in none of the groups that must approve", "Nothing was decided.", "You are in none of the groups")
	if now, err = env.Client("carol").Request(t.Context(), r.ID); err != nil || len(now.Decisions) != 1 {
		t.Errorf("%+v, %v", now.Decisions, err)
	}
}
