package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// Somebody has the browser, or its cookie, for longer than the policy trusts either:
// what asks for a newer sign-in is not approved, and no review closed, until the
// person has used a link that is shown where the browser is not.
func TestStepUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		glass := pending(func(r *api.Request) {
			r.ID, r.State, r.Grant = "glass", api.RequestApproved, &api.Grant{ID: "glass", State: api.GrantExpired}
			r.BreakGlass, r.StepUp = &api.BreakGlass{WaitsFor: []string{"owners"}}, api.Duration(5*time.Minute)
		})
		asked := pending(func(r *api.Request) { r.StepUp = api.Duration(5 * time.Minute) })
		b.requests = []api.Request{asked, glass}
		who := b.signIn(t)
		fresh := fields(t, who.get(at(asked)).body, at(asked)+"/decide")
		review := fields(t, who.get(at(glass)).body, at(glass)+"/review")
		review.Set("comment", "it was needed")

		time.Sleep(5*time.Minute + time.Second)
		page := who.get(at(asked))
		wants(t, page, http.StatusOK, "signed in at most 5m before", "Sign in again", ">Deny<")
		if strings.Contains(page.body, ">Approve<") {
			t.Error("it offers to approve")
		}
		// The attack: the forms were kept from before, or written by hand.
		wants(t, who.post(at(asked)+"/decide", fresh), http.StatusForbidden, "signed in at most 5m before", "Nothing was decided")
		wants(t, who.post(at(glass)+"/review", review), http.StatusForbidden, "signed in at most 5m before")
		if len(b.decided)+len(b.revoked) > 0 {
			t.Fatalf("%+v %+v", b.decided, b.revoked)
		}

		again := fields(t, page.body, at(asked)+"/sign-in")
		got := who.post(at(asked)+"/sign-in", again)
		wants(t, got, http.StatusOK, "it has printed a link")
		if strings.Contains(got.body, "token=") {
			t.Error("the browser is told the link")
		}
		wants(t, who.post(at(asked)+"/sign-in", again), http.StatusOK)
		if len(b.again) != 1 {
			t.Fatalf("links in the terminal: %d", len(b.again))
		}
		link, err := url.Parse(b.again[0])
		if err != nil || link.Host != testHost {
			t.Fatalf("%s, %v", b.again[0], err)
		}
		token := url.Values{"token": {link.Query().Get("token")}}
		wants(t, who.get(link.RequestURI()), http.StatusOK, "Sign in")
		// Somebody else who reads it gets nothing by it.
		wants(t, b.anyone(t).post("/sign-in", token), http.StatusForbidden, "for the browser that is signed in")
		wants(t, who.get(at(asked)), http.StatusOK, "Sign in again")

		got = who.post("/sign-in", token)
		if got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != at(asked) || len(got.Cookies()) != 1 {
			t.Fatalf("%d to %q", got.StatusCode, got.Header.Get("Location"))
		}
		stolen := *who
		who.cookie = got.Cookies()[0].Value
		wants(t, stolen.get("/"), http.StatusUnauthorized)
		wants(t, who.post("/sign-in", token), http.StatusForbidden, "not the link") // used
		if got := who.post(at(asked)+"/decide", fields(t, who.get(at(asked)).body, at(asked)+"/decide")); got.StatusCode != http.StatusSeeOther || len(b.decided) != 1 {
			t.Errorf("%d, decided %+v", got.StatusCode, b.decided)
		}

		time.Sleep(10 * time.Minute)
		wants(t, who.post(at(glass)+"/sign-in", fields(t, who.get(at(glass)).body, at(glass)+"/sign-in")), http.StatusOK)
		late, err := url.Parse(b.again[1])
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2*time.Minute + time.Second)
		wants(t, who.post("/sign-in", url.Values{"token": {late.Query().Get("token")}}), http.StatusForbidden, "not used in its time", "ask for another")
		// A denial takes nothing but access.
		deny := fields(t, who.get(at(asked)).body, at(asked)+"/decide")
		deny.Set("comment", "no")
		if got := who.post(at(asked)+"/decide", deny); got.StatusCode != http.StatusSeeOther {
			t.Errorf("a denial: %d", got.StatusCode)
		}
	})
}
