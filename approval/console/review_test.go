package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

// TestReviewForm: who may close the review of a broken glass is offered to, and nobody else.
func TestReviewForm(t *testing.T) {
	b := newBed(t)
	broken := func(id string, edit func(*api.Request)) api.Request {
		return pending(func(r *api.Request) {
			r.ID, r.State, r.Grant = id, api.RequestApproved, &api.Grant{ID: id, State: api.GrantExpired}
			r.BreakGlass = &api.BreakGlass{WaitsFor: []string{"owners"}}
			if edit != nil {
				edit(r)
			}
		})
	}
	now := time.Now()
	b.requests = []api.Request{
		broken("open", nil),
		broken("lives", func(r *api.Request) { r.Grant.State = api.GrantActive }),
		broken("others", func(r *api.Request) { r.BreakGlass.WaitsFor = []string{"security"} }),
		broken("own", func(r *api.Request) { r.Requester, r.RequesterPerson, r.Subject = id("bob"), "bob", id("bob") }),
		broken("closed", func(r *api.Request) { r.BreakGlass.ClosedAt = &now }),
	}
	who := b.signIn(t)
	for _, r := range b.requests {
		if offered := strings.Contains(who.get("/requests/"+r.ID).body, "Close the review"); offered != (r.ID == "open") {
			t.Errorf("%s: offered %t", r.ID, offered)
		}
	}
	form := fields(t, who.get("/requests/open").body, "/requests/open/review")
	wants(t, who.post("/requests/open/review", form), http.StatusUnprocessableEntity, "needs what was found")
	form.Set("comment", "the queue was stuck")
	forged := url.Values{"comment": form["comment"], "csrf": {"another"}}
	wants(t, who.post("/requests/open/review", forged), http.StatusForbidden, "not of your session")
	if len(b.revoked) != 0 {
		t.Errorf("%v", b.revoked)
	}
	if got := who.post("/requests/open/review", form); got.StatusCode != http.StatusSeeOther || b.revoked[0] != "review open the queue was stuck" {
		t.Errorf("%d %v", got.StatusCode, b.revoked)
	}
}

const glassPolicy = `version: 3
rules:
  - name: queue
    service: payments
    requesters: [group:engineers]
    permissions: ["POST /queue/*"]
    require: [{group: owners, approvals: 1}]
    max_duration: 1h
    break_glass: {groups: [engineers], max_duration: 10m, review: [admins], review_within: 24h}
`

// TestReviewOnACluster: a glass is broken, its grant taken back, its review closed.
func TestReviewOnACluster(t *testing.T) {
	env := testenv.Start(t, testenv.Options{Nodes: 1, Policy: glassPolicy})
	r, err := env.Client("alice").CreateRequest(t.Context(), api.RequestInput{
		Service: "payments", Permissions: []string{"POST /queue/restart"}, Reason: "payments is down", Duration: api.Duration(10 * time.Minute), BreakGlass: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	carol := as(t, env, "carol")
	wants(t, carol.get("/"), http.StatusOK, "Broken glasses to review", at(r))
	wants(t, carol.get(at(r)), http.StatusOK, "The glass was broken", "waits for admins")
	revoke := fields(t, carol.get("/grants/"+r.ID).body, "/grants/"+r.ID+"/revoke")
	revoke.Set("reason", "it runs again")
	wants(t, carol.post("/grants/"+r.ID+"/revoke", revoke), http.StatusSeeOther)
	form := fields(t, carol.get(at(r)).body, at(r)+"/review")
	form.Set("comment", "restarted the queue, once")
	for range 2 { // by a double click
		wants(t, carol.post(at(r)+"/review", form), http.StatusSeeOther)
	}
	wants(t, carol.get(at(r)), http.StatusOK, "Its review was closed", "restarted the queue, once")
	if got := carol.get("/"); strings.Contains(got.body, "Broken glasses to review") {
		t.Error("a review that is closed still waits")
	}
}
