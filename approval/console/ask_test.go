package console_test

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/testenv"
)

// A page of somebody else's leads to a form that is filled in: it asks for nothing by itself, says
// that a link has written it, and shows what is in it as text.
func TestAskByALink(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	evil := url.Values{
		"service": {`pay"><script>alert(1)</script>`}, "allow": {"* /**\u202e"}, "for": {"720h"}, "reason": {"</textarea><b>urgent"},
		"subject": {"spiffe://evil.test/mallory"}, "what": {"ask"},
	}
	got := who.get("/ask?" + evil.Encode())
	wants(t, got, http.StatusOK, "A link has filled this in. Nothing has been asked for", "* /**\\u202e", "&lt;/textarea&gt;&lt;b&gt;urgent", "<details open>", "spiffe://evil.test/mallory")
	if strings.Contains(got.body, "<script>alert") || strings.Contains(got.body, "<b>urgent") {
		t.Error("what is in the link is not shown as text")
	}
	if len(b.asked)+len(b.tried) > 0 {
		t.Errorf("a link asks: %+v %+v", b.asked, b.tried)
	}
	wants(t, who.get("/ask?service="+strings.Repeat("a", 2000)), http.StatusOK, `value="`+strings.Repeat("a", 63)+`"`)
	if got := who.get("/ask"); strings.Contains(got.body, "A link has filled") {
		t.Error("an empty form is taken for a link's")
	}
	wants(t, b.anyone(t).get("/ask"), http.StatusUnauthorized)
	form := fields(t, who.get("/ask").body, "/ask")
	form.Set("what", "ask")
	form.Set("csrf", "of another session")
	wants(t, who.post("/ask", form), http.StatusForbidden, "not of your session")
	who.edit = func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }
	wants(t, who.post("/ask", form), http.StatusForbidden, "a page of another site")
	if len(b.asked) > 0 {
		t.Errorf("a forged form asks: %+v", b.asked)
	}
}

func TestAskReads(t *testing.T) {
	b := newBed(t)
	b.services = []api.Service{{Name: "payments", Tier: "production"}, {Name: "ledger"}}
	who := b.signIn(t)
	page := who.get("/ask?service=payments&allow=GET+/a")
	wants(t, page, http.StatusOK, `<option value="payments">`, `<option value="ledger">`, "GET /a</textarea>")
	form := fields(t, page.body, "/ask")
	fill := func(name, text string) { form.Set(name, text) }
	fill("what", "ask")
	fill("service", " payments ")
	fill("allow", "GET /a\r\n\r\n POST /b \r\n")
	fill("duration", "1h30m")
	fill("reason", "line\r\nbreak")
	fill("start", "2026-03-09T08:30")
	fill("subject", "user/alice")
	got := who.post("/ask", form)
	if got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != at(pending(nil)) {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	in := b.asked[0]
	if in.Service != "payments" || !slices.Equal(in.Permissions, []string{"GET /a", "POST /b"}) || in.Reason != "line\nbreak" ||
		in.Duration != api.Duration(90*time.Minute) || in.Subject != id("alice") || in.DryRun ||
		in.Start == nil || !in.Start.Equal(time.Date(2026, 3, 9, 8, 30, 0, 0, time.UTC)) {
		t.Errorf("%+v", in)
	}
	for name, bad := range map[string][3]string{
		"a duration":        {"duration", "soon", "the duration cannot be read"},
		"a duration of 0":   {"duration", "0s", "the duration cannot be read"},
		"a start":           {"start", "tomorrow", "the start cannot be read"},
		"neither try nor":   {"what", "approve", "says neither try nor ask"},
		"nothing to do":     {"what", "", "says neither try nor ask"},
		"a negative length": {"duration", "-5m", "the duration cannot be read"},
	} {
		was := form.Get(bad[0])
		fill(bad[0], bad[1])
		wants(t, who.post("/ask", form), http.StatusUnprocessableEntity, bad[2], "Nothing was asked for.", "GET /a\n\n POST /b", `value="payments"`)
		if len(b.asked) != 1 {
			t.Errorf("%s: asked all the same", name)
		}
		fill(bad[0], was)
	}
	b.err = &api.Problem{Status: http.StatusForbidden, Code: api.CodeDenied, Title: "denied", Detail: "no rule lets you ask for this"}
	wants(t, who.post("/ask", form), http.StatusForbidden, "no rule lets you ask for this. Nothing was asked for.", "GET /a\n\n POST /b")
}

// TestAskOnACluster: what the policy says is what then happens; a form that is sent twice asks once.
func TestAskOnACluster(t *testing.T) {
	env := testenv.Start(t, testenv.Options{Nodes: 1})
	alice, bob := as(t, env, "alice"), as(t, env, "bob")
	form := fields(t, alice.get("/ask").body, "/ask")
	for name, text := range map[string]string{"what": "try", "service": "payments", "allow": "GET /accounts/**", "duration": "30m", "reason": "ticket 4711"} {
		form.Set(name, text)
	}
	wants(t, alice.post("/ask", form), http.StatusOK, "with approval", "1 of them must approve: bob", "Nothing has been asked for yet.", "ticket 4711")
	if list, err := env.Client("alice").Requests(t.Context(), api.Filter{}); err != nil || len(list.Requests) != 0 {
		t.Fatalf("a try asks: %+v, %v", list.Requests, err)
	}
	form.Set("duration", "900h")
	wants(t, alice.post("/ask", form), http.StatusOK, "What the policy says", `>no<`, "Because")
	form.Set("what", "ask")
	wants(t, alice.post("/ask", form), http.StatusForbidden, "Nothing was asked for.")
	form.Set("duration", "30m")
	form.Set("allow", "GET accounts")
	wants(t, alice.post("/ask", form), http.StatusUnprocessableEntity, "Nothing was asked for.", "GET accounts")
	form.Set("allow", "GET /accounts/**")
	first := alice.post("/ask", form)
	again := alice.post("/ask", form)
	if first.StatusCode != http.StatusSeeOther || again.StatusCode != http.StatusSeeOther || first.Header.Get("Location") != again.Header.Get("Location") {
		t.Fatalf("sent twice: %d %s, %d %s", first.StatusCode, first.Header.Get("Location"), again.StatusCode, again.Header.Get("Location"))
	}
	path := first.Header.Get("Location")
	wants(t, bob.get(path), http.StatusOK, "ticket 4711", ">Approve<")
	decide := fields(t, bob.get(path).body, path+"/decide")
	wants(t, bob.post(path+"/decide", decide), http.StatusSeeOther)
	form.Set("what", "try")
	wants(t, alice.post("/ask", form), http.StatusOK, "held until", strings.Replace(path, "/requests/", "/grants/", 1))
}

// The catalogue is gone through by links and a form alone: what is chosen there is a service, and
// its bundles are boxes of the form.
func TestAskByTheCatalogue(t *testing.T) {
	b := newBed(t)
	b.services = []api.Service{
		{
			Name: "payments", Description: "Accounts and refunds", Tier: "critical", Owners: []string{"group:owners"}, Permissions: []string{"GET /**"},
			Bundles: []api.ServiceBundle{
				{Name: "read", Description: "Look at accounts", Permissions: []string{"GET,HEAD /accounts/**"}},
				{Name: "refund", Permissions: []string{"POST /refunds/*"}},
			},
		},
		{Name: "status", Permissions: []string{"GET /health", "GET /metrics", "GET /ready", "GET /version"}},
	}
	b.moreServices = "status"
	who := b.signIn(t)
	page := who.get("/ask?find=")
	wants(t, page, http.StatusOK, `<a href="/ask?service=payments">payments</a>`, "Accounts and refunds", "group:owners", "and 1 more", `href="/ask?find=&amp;cursor=status"`)
	if strings.Contains(page.body, "A link has filled") || strings.Contains(page.body, `name="bundle"`) {
		t.Error("the page takes its own link for another's, or offers bundles of no service")
	}
	wants(t, who.get("/ask?find=nothing"), http.StatusOK, "Nothing that you may ask for has all of these words.", `value="nothing"`)
	who.get("/ask?find=a&cursor=status")
	if last := b.found[len(b.found)-1]; last.Query != "a" || last.Cursor != "status" || last.Limit == 0 {
		t.Errorf("%+v", last)
	}
	page = who.get("/ask?service=payments")
	wants(t, page, http.StatusOK, `name="bundle" value="read">`, `name="bundle" value="refund">`, "Look at accounts", "GET,HEAD /accounts/**")
	form := fields(t, page.body, "/ask")
	form["bundle"] = []string{"refund", "read", "read"}
	for name, text := range map[string]string{"what": "try", "allow": "", "duration": "30m", "reason": "ticket 4711"} {
		form.Set(name, text)
	}
	b.says = api.DryRun{Allowed: true, Permissions: []string{"GET,HEAD /accounts/**", "POST /refunds/*"}}
	wants(t, who.post("/ask", form), http.StatusOK, "<code>POST /refunds/*</code>", `value="read" checked>`, `value="refund" checked>`)
	form.Set("what", "ask")
	if got := who.post("/ask", form); got.StatusCode != http.StatusSeeOther {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	if in := b.asked[0]; !slices.Equal(in.Bundles, []string{"refund", "read"}) || len(in.Permissions) != 0 {
		t.Errorf("%+v", in)
	}
	// A link that chooses bundles says that it is a link's; one that is not offered is said so, and
	// is not left out: whoever asks would think that it was asked for.
	wants(t, who.get("/ask?service=payments&bundle=read&bundle=gone"), http.StatusOK, "A link has filled this in", `value="read" checked>`, `value="gone" checked>`, "It is not offered to you at this service.")
	b.err = api.NewProblem(api.CodeUnavailable, "no leader", "")
	wants(t, who.get("/ask?service=payments&allow=GET+/a"), http.StatusOK, `value="payments"`, "GET /a</textarea>")
}

// silent is a cluster whose catalogue does not answer.
type silent struct{ *fakeAPI }

func (silent) Services(context.Context, api.ServiceFilter, ...api.CallOption) (api.ServiceList, error) {
	return api.ServiceList{}, api.NewProblem(api.CodeUnavailable, "no leader", "")
}

// TestAskOfASilentCatalogue: that nothing is known of what is offered is not said as if nothing were.
func TestAskOfASilentCatalogue(t *testing.T) {
	f := newFakeAPI()
	b := bedOver(t, f, silent{f})
	got := b.signIn(t).get("/ask?service=payments&bundle=read-accounts")
	wants(t, got, http.StatusOK, "does not say now what you may ask for", `value="read-accounts" checked`)
	for _, lie := range []string{"not offered to you", "No rule lets you", "Nothing that you may ask for"} {
		if strings.Contains(got.body, lie) {
			t.Errorf("it says %q", lie)
		}
	}
}
