package console_test

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

const wednesday = "Wed 4 Mar 2026 11:00:00 UTC"

func at(r api.Request) string { return "/requests/" + r.ID }

func TestQueue(t *testing.T) {
	b := newBed(t)
	b.requests = []api.Request{
		pending(nil),
		pending(func(r *api.Request) {
			r.ID, r.Requester, r.Subject, r.RequesterPerson = "mine", id("bob"), id("bob"), "bob"
		}),
		pending(func(r *api.Request) { r.ID, r.Require = "other", []api.Requirement{{Group: "security", Approvals: 2}} }),
	}
	got := b.signIn(t).get("/")
	wants(t, got, http.StatusOK, "user/alice", "ticket 4711", "GET /accounts/**", wednesday, "Needs 1 more of owners.")
	var order []int
	for _, mark := range []string{`id="decide"`, "/requests/" + pending(nil).ID, `id="mine"`, "/requests/mine", `id="others"`, "/requests/other"} {
		order = append(order, strings.Index(got.body, mark))
	}
	if !slices.IsSorted(order) || order[0] < 0 {
		t.Errorf("sections and requests at %v:\n%s", order, got.body)
	}
	if want := (api.Filter{State: "pending", Page: api.Page{Limit: 50}}); b.filters[0] != want {
		t.Errorf("asked for %+v", b.filters[0])
	}
}

func TestRequestPage(t *testing.T) {
	b := newBed(t)
	until := time.Date(2026, 3, 4, 12, 30, 0, 0, time.UTC)
	r := pending(func(r *api.Request) {
		r.Permissions = []string{"GET /accounts/**", "POST /refunds/*"}
		r.Require = []api.Requirement{{Group: "owners", Approvals: 2, Given: 1}}
		r.Decisions = []api.Decision{{Decision: "approve", Person: "carol", Identity: id("carol"), Comment: "fine by me", Hash: r.Hash, At: until}}
		r.Revisions = append(r.Revisions, r.Revisions[0])
		r.Revisions[0].Permissions = []string{"* /**"}
	})
	b.requests = []api.Request{r, pending(func(r *api.Request) { r.ID, r.State, r.Reason = "before", api.RequestApproved, "ticket 1" })}
	b.grants = []api.Grant{{ID: "g1", State: api.GrantActive, Subject: id("alice"), Service: "payments", Permissions: []string{"GET /**"}, ExpiresAt: until}}
	b.policy = api.Policy{Revision: 4, YAML: "version: 2\nservices: [{name: payments, tier: production}]\nrules: []\n"}
	got := b.signIn(t).get(at(r))
	wants(t, got, http.StatusOK,
		"may GET anything below /accounts/", "<code>POST /refunds/*</code>", "the person alice", "own trust domain",
		"held until <time datetime=\"2026-03-04T12:30:00Z\"", "not held by any grant that you may see",
		"The policy calls payments production.", "may change things, with POST.",
		"1 of 2; 1 more, who could be: bob", "by carol", "fine by me", "<code>payments-read</code> of policy revision 3; in force now is revision 4",
		"Narrowed from", "<code>* /**</code>", "ticket 1", `value="66a7"`)
	for _, absent := range []string{"First time", "Off-hours", "GET /accounts/**: may change"} {
		if strings.Contains(got.body, absent) {
			t.Errorf("it says %q", absent)
		}
	}
}

func TestRisks(t *testing.T) {
	for want, change := range map[string]func(b *bed, r *api.Request){
		"First time: ": func(*bed, *api.Request) {},
		"Off-hours: it was asked for on Sun 11:00 UTC": func(_ *bed, r *api.Request) { r.CreatedAt = time.Date(2026, 3, 8, 11, 0, 0, 0, time.UTC) },
		"Off-hours: it would begin on Wed 03:00 UTC": func(_ *bed, r *api.Request) {
			start := time.Date(2026, 3, 4, 3, 0, 0, 0, time.UTC)
			r.Start = &start
		},
		"another trust domain: spiffe://partner.test/a":   func(_ *bed, r *api.Request) { r.Requester = "spiffe://partner.test/a" },
		"for somebody else than who asks":                 func(_ *bed, r *api.Request) { r.Subject = "spiffe://acme.test/job/nightly" },
		"<bdi>* /**: may change things, with any method.": func(_ *bed, r *api.Request) { r.Permissions = []string{"* /**"} },
		"the name of a gRPC method does not say":          func(_ *bed, r *api.Request) { r.Permissions = []string{"grpc a.B/C"} },
		"whatever the role may":                           func(_ *bed, r *api.Request) { r.Permissions = []string{"postgres a as b"} },
		"does over TCP":                                   func(_ *bed, r *api.Request) { r.Permissions = []string{"tcp"} },
		"this console cannot read it":                     func(_ *bed, r *api.Request) { r.Permissions = []string{"telnet /"} },
		"Who would get the access is blocked: stolen":     func(b *bed, r *api.Request) { b.cluster.Blocked = []api.Block{{Subject: r.Subject, Reason: "stolen"}} },
	} {
		b := newBed(t)
		r := pending(nil)
		change(b, &r)
		b.requests = []api.Request{r}
		wants(t, b.signIn(t).get(at(r)), http.StatusOK, want)
	}
}

// Who may not decide is told why, and is shown no button.
func TestStanding(t *testing.T) {
	for want, change := range map[string]func(b *bed, r *api.Request){
		"You asked for it.": func(_ *bed, r *api.Request) { r.Requester, r.RequesterPerson = id("bob2"), "bob" },
		"You would get the access.": func(b *bed, r *api.Request) {
			b.persons[1].IDs = append(b.persons[1].IDs, "spiffe://acme.test/laptop/bob")
			r.Subject = "spiffe://acme.test/laptop/bob"
		},
		"You answer for who would get the access.": func(b *bed, r *api.Request) {
			b.persons[1].Owns, r.Subject = []string{"spiffe://acme.test/agent/*"}, "spiffe://acme.test/agent/x7"
		},
		"You answer for who asked.": func(b *bed, r *api.Request) {
			b.persons[1].Owns, r.Requester, r.RequesterPerson = []string{"spiffe://acme.test/agent/**"}, "spiffe://acme.test/agent/a/b", ""
		},
		"You are in none of the groups that must approve: owners.": func(b *bed, _ *api.Request) { b.me.Groups = []string{"engineers"} },
		"Your identity belongs to no person":                       func(b *bed, _ *api.Request) { b.me.Person = "" },
		"You are blocked: left":                                    func(b *bed, _ *api.Request) { b.cluster.Blocked = []api.Block{{Subject: id("bob"), Reason: "left"}} },
		"It is denied: there is nothing":                           func(_ *bed, r *api.Request) { r.State = api.RequestDenied },
	} {
		b := newBed(t)
		r := pending(nil)
		change(b, &r)
		b.requests = []api.Request{r}
		got := b.signIn(t).get(at(r))
		wants(t, got, http.StatusOK, want)
		if strings.Contains(got.body, ">Approve<") || strings.Contains(got.body, ">Deny<") {
			t.Errorf("%s, and is offered to decide", want)
		}
	}
	// Patterns cover what they say, and no more.
	b := newBed(t)
	b.persons[1].Owns = []string{"spiffe://acme.test/agent/*"}
	r := pending(func(r *api.Request) { r.Subject = "spiffe://acme.test/agent/a/b" })
	b.requests = []api.Request{r}
	wants(t, b.signIn(t).get(at(r)), http.StatusOK, ">Approve<")
}

func TestDecide(t *testing.T) {
	b := newBed(t)
	r := pending(func(r *api.Request) {
		r.Permissions = []string{"GET /accounts/**", "POST /refunds/*"}
		r.Revisions[0].Permissions = r.Permissions
	})
	b.requests = []api.Request{r}
	who := b.signIn(t)
	action := at(r) + "/decide"
	form := fields(t, who.get(at(r)).body, action) // the first: approve
	if len(form["keep"]) != 2 || form.Get("hash") != r.Hash {
		t.Fatalf("the form has %v", form)
	}
	send := func(change func(url.Values)) answer {
		f := url.Values{}
		for k, v := range form {
			f[k] = slices.Clone(v)
		}
		change(f)
		return who.post(action, f)
	}
	last := func() api.DecisionInput { return b.decided[len(b.decided)-1] }
	sent := func(got answer, want api.DecisionInput) {
		t.Helper()
		wants(t, got, http.StatusSeeOther)
		if in := last(); in.Decision != want.Decision || in.Comment != want.Comment || in.Duration != want.Duration || !slices.Equal(in.Permissions, want.Permissions) || in.Hash != r.Hash {
			t.Errorf("decided %+v, want %+v", in, want)
		}
		if to := got.Header.Get("Location"); to != at(r) {
			t.Errorf("leads to %q", to)
		}
	}
	sent(send(func(f url.Values) {}), api.DecisionInput{Decision: "approve"})
	sent(send(func(f url.Values) { f.Set("comment", " a\r\nb "); f.Set("duration", "15m") }), api.DecisionInput{Decision: "approve", Comment: "a\nb", Duration: api.Duration(15 * time.Minute)})
	sent(send(func(f url.Values) { f["keep"] = []string{"1"} }), api.DecisionInput{Decision: "approve", Permissions: []string{"POST /refunds/*"}})
	sent(send(func(f url.Values) {
		f.Set("decision", "deny")
		f.Set("comment", "ask for less")
		f.Del("keep")
		f.Del("narrow")
	}), api.DecisionInput{Decision: "deny", Comment: "ask for less"})
	before := len(b.decided)
	for want, change := range map[string]func(url.Values){
		"a denial needs a reason":                      nil,
		"no permission is kept":                        func(f url.Values) { f.Del("keep") },
		"the duration cannot be read":                  func(f url.Values) { f.Set("duration", "soon") },
		"names a permission that is not there":         func(f url.Values) { f["keep"] = []string{"2"} },
		"the decision is neither approve nor deny":     func(f url.Values) { f.Set("decision", "Approve") },
		"the form does not say what was on the screen": func(f url.Values) { f.Del("hash") },
	} {
		if change == nil {
			change = func(f url.Values) { f.Set("decision", "deny"); f.Set("comment", " ") }
		}
		got := send(change)
		if got.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(got.body, "Nothing was decided.") || !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s", want, got.StatusCode, got.body)
		}
	}
	got := send(func(f url.Values) { f["keep"] = []string{"0", "0"} })
	wants(t, got, http.StatusUnprocessableEntity)
	if len(b.decided) != before {
		t.Errorf("decided %+v", b.decided[before:])
	}
}

// What was on the screen is not what is there any more: nothing is decided, and what was typed stays.
func TestDecideOnWhatChanged(t *testing.T) {
	b := newBed(t)
	r := pending(nil)
	b.requests = []api.Request{r}
	who := b.signIn(t)
	form := fields(t, who.get(at(r)).body, at(r)+"/decide")
	form.Set("comment", "I have read it <all>")
	b.change(func() { b.requests[0].Hash = "77b8" })
	got := who.post(at(r)+"/decide", form)
	wants(t, got, http.StatusConflict, "The request has changed since you opened it. Nothing was decided.", `value="77b8"`, "I have read it &lt;all&gt;</textarea>")
	if strings.Contains(got.body, `value="66a7"`) || len(b.decided) != 0 {
		t.Errorf("the old hash is still there, or it was decided: %v", b.decided)
	}
}

// TestUncertain: a node may have decided, and its answer been lost, before another one refused. What is
// not known to be undecided is not said to be.
func TestUncertain(t *testing.T) {
	b := newBed(t)
	r := pending(nil)
	b.requests = []api.Request{r}
	for _, cause := range []error{
		api.NewProblem(api.CodeAmbiguous, "the quorum was lost meanwhile", "ask again"), api.NewProblem(api.CodeInternal, "", ""),
		api.NewProblem(api.CodeLimit, "too many calls", ""), api.NewProblem(api.CodeNoLeader, "", ""), api.NewProblem(api.CodeUnavailable, "", ""),
		api.ErrUnauthenticated, errors.New("read: connection reset by peer"),
	} {
		who := bedOver(t, b.fakeAPI, undecided{b.fakeAPI, cause}).signIn(t)
		got := who.post(at(r)+"/decide", fields(t, who.get(at(r)).body, at(r)+"/decide"))
		if !strings.Contains(got.body, "It may have been done, or not") || strings.Contains(strings.ToLower(got.body), "nothing was decided") {
			t.Errorf("%v: %d %s", cause, got.StatusCode, got.body)
		}
	}
	for _, cause := range []error{api.NewProblem(api.CodeDenied, "no", ""), api.NewProblem(api.CodeConflict, "no", ""), api.NewProblem(api.CodeExpired, "no", "")} {
		who := bedOver(t, b.fakeAPI, undecided{b.fakeAPI, cause}).signIn(t)
		got := who.post(at(r)+"/decide", fields(t, who.get(at(r)).body, at(r)+"/decide"))
		if strings.Contains(got.body, "It may have been done, or not") || !strings.Contains(got.body, "Nothing was decided") {
			t.Errorf("%v: %d %s", cause, got.StatusCode, got.body)
		}
	}
}

// TestDenyAfterAll: whoever has approved, and learns more before the others have, can still stop it.
func TestDenyAfterAll(t *testing.T) {
	b := newBed(t)
	r := pending(func(r *api.Request) {
		r.Require = []api.Requirement{{Group: "owners", Approvals: 2, Given: 1}}
		r.Decisions = []api.Decision{{Decision: "approve", Person: "bob", Identity: id("bob")}}
	})
	b.requests = []api.Request{r}
	who := b.signIn(t)
	page := who.get(at(r)).body
	if strings.Contains(page, ">Approve<") || !strings.Contains(page, ">Deny<") || !strings.Contains(page, "You have approved it already") {
		t.Fatal(page)
	}
	form := fields(t, page, at(r)+"/decide")
	form.Set("comment", "the ticket is closed")
	wants(t, who.post(at(r)+"/decide", form), http.StatusSeeOther)
	if len(b.decided) != 1 || b.decided[0].Decision != "deny" {
		t.Errorf("decided %+v", b.decided)
	}
}

// TestGrantedAndOver: a grant that was taken back is not said to open anything.
func TestGrantedAndOver(t *testing.T) {
	for state, want := range map[string]string{
		api.GrantActive: "Granted until", api.GrantScheduled: "Granted from", api.GrantRevoked: "the grant is revoked", api.GrantReturned: "the grant is returned",
	} {
		b := newBed(t)
		r := pending(func(r *api.Request) {
			r.State = api.RequestApproved
			r.Grant = &api.Grant{ID: r.ID, State: state, Service: r.Service, Subject: r.Subject, NotBefore: r.CreatedAt, ExpiresAt: time.Now().Add(time.Hour)}
		})
		b.requests = []api.Request{r}
		got := b.signIn(t).get(at(r))
		wants(t, got, http.StatusOK, want)
		if live := state == api.GrantActive || state == api.GrantScheduled; strings.Contains(got.body, "Granted ") != live {
			t.Errorf("%s: %s", state, got.body)
		}
	}
}

func TestWithdraw(t *testing.T) {
	b := newBed(t)
	r := pending(func(r *api.Request) { r.Requester, r.Subject, r.RequesterPerson = id("bob"), id("bob"), "bob" })
	b.requests = []api.Request{r}
	who := b.signIn(t)
	wants(t, who.post(at(r)+"/cancel", fields(t, who.get(at(r)).body, at(r)+"/cancel")), http.StatusSeeOther)
	if want := []string{"cancel " + r.ID}; !slices.Equal(b.revoked, want) {
		t.Errorf("did %q", b.revoked)
	}
	// It is a person's, by whichever of their identities they asked.
	b.change(func() {
		b.requests[0].Requester, b.requests[0].Subject = "spiffe://acme.test/laptop/bob", "spiffe://acme.test/agent/x7"
	})
	wants(t, who.get(at(r)), http.StatusOK, ">Withdraw it<")
	b.change(func() { b.requests[0].RequesterPerson = "alice" })
	if got := who.get(at(r)); strings.Contains(got.body, ">Withdraw it<") {
		t.Error("somebody else's is offered to be withdrawn")
	}
	wants(t, who.get("/requests/nowhere"), http.StatusNotFound, "no request nowhere that you may see")
}

func TestGrantsAndRevoke(t *testing.T) {
	b := newBed(t)
	until := time.Date(2026, 3, 4, 12, 30, 0, 0, time.UTC)
	g := api.Grant{
		ID: "g1", State: api.GrantActive, Subject: id("alice"), Requester: id("alice"), Service: "payments", Permissions: []string{"GET /accounts/**"},
		ExpiresAt: until, Issuances: []api.Issuance{{Serial: "4711", NotAfter: until}},
	}
	b.grants = []api.Grant{g, {ID: "g2", State: api.GrantScheduled, Subject: id("dana"), Service: "payments"}}
	who := b.signIn(t)
	wants(t, who.get("/grants"), http.StatusOK, `<time datetime="2026-03-04T12:30:00Z" data-ends>Wed 4 Mar 2026 12:30:00 UTC</time>`, "user/dana", "scheduled")
	page := who.get("/grants/g1")
	wants(t, page, http.StatusOK, "Serial <code>4711</code>", "may GET anything below /accounts/", "Revoke the grant")
	form := fields(t, page.body, "/grants/g1/revoke")
	form.Set("reason", "left <the> company")
	got := who.post("/grants/g1/revoke", form)
	wants(t, got, http.StatusSeeOther)
	if got.Header.Get("Location") != "/grants/g1" || !slices.Equal(b.revoked, []string{"g1 left <the> company"}) {
		t.Errorf("did %q, leads to %q", b.revoked, got.Header.Get("Location"))
	}
	b.change(func() {
		b.grants[0].State, b.grants[0].Revoked = api.GrantRevoked, &api.Revoked{By: id("bob"), Reason: "left <the> company", At: until}
	})
	page = who.get("/grants/g1")
	wants(t, page, http.StatusOK, "left &lt;the&gt; company")
	if strings.Contains(page.body, "/grants/g1/revoke") {
		t.Error("a dead grant can be revoked")
	}
	wants(t, who.get("/grants/nowhere"), http.StatusNotFound)
}

func TestHistory(t *testing.T) {
	b := newBed(t)
	b.requests = []api.Request{pending(func(r *api.Request) { r.State = api.RequestDenied }), pending(func(r *api.Request) { r.ID, r.Service = "x", "ledger" })}
	who := b.signIn(t)
	got := who.get("/history?state=denied&service=payments&subject=user/alice")
	wants(t, got, http.StatusOK, "ticket 4711", "<option selected>denied</option>", `value="payments"`)
	if strings.Contains(got.body, "ledger") {
		t.Error("it shows what was not asked for")
	}
	if want := (api.Filter{State: "denied", Service: "payments", Subject: id("alice"), Page: api.Page{Limit: 50}}); b.filters[len(b.filters)-1] != want {
		t.Errorf("asked for %+v", b.filters[len(b.filters)-1])
	}
	wants(t, who.get("/history?state=nonsense"), http.StatusUnprocessableEntity, "there is no such state")
	b.change(func() { b.err = errors.New("x") })
	wants(t, who.get("/history"), http.StatusBadGateway)
}
