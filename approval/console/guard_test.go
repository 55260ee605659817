package console_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/approval/api"
)

// A page of evil.example whose name was pointed at loopback calls the console as its own origin.
func TestDNSRebinding(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	for _, host := range []string{"evil.example:4711", "evil.example", "127.0.0.1:4711", "localhost:4711", "hallpass-test.localhost:4712", "hallpass-test.localhost", "x" + testHost, ""} {
		who.edit = func(r *http.Request) {
			r.Host = host
			r.Header.Set("Origin", "http://"+host)
		}
		for _, got := range []answer{who.get("/"), who.get("/static/console.js"), who.get("/events?after=0"), who.post("/sign-out", url.Values{})} {
			wants(t, got, http.StatusMisdirectedRequest, "This console has another name.")
		}
	}
	who.edit = nil
	wants(t, who.get("/"), http.StatusOK)
}

// Another site posts a form here, and the browser adds the cookie.
func TestCrossSiteRequestForgery(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	good := fields(t, who.get("/").body, "/sign-out")
	attacks := map[string]func(r *http.Request){
		"cross-site":                    func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"another port of the same host": func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
		"an old browser, by its Origin": func(r *http.Request) {
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set("Origin", "http://evil.example")
		},
		"a sandboxed frame": func(r *http.Request) {
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Set("Origin", "null")
		},
	}
	for name, attack := range attacks {
		who.edit = attack
		got := who.post("/sign-out", good)
		if got.StatusCode != http.StatusForbidden || !strings.Contains(got.body, "page of another site") {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.body)
		}
	}
	who.edit = func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Del("Origin") }
	for _, token := range []string{"", "x", strings.ToLower(good.Get("csrf")), good.Get("csrf") + "A", b.linkToken(t), who.cookie} {
		wants(t, who.post("/sign-out", url.Values{"csrf": {token}}), http.StatusForbidden, "not of your session")
	}
	wants(t, who.post("/sign-out?csrf="+good.Get("csrf"), url.Values{}), http.StatusBadRequest)
	who.edit = nil
	wants(t, who.get("/"), http.StatusOK) // still signed in
	wants(t, who.post("/sign-out", good), http.StatusSeeOther)
	wants(t, who.get("/"), http.StatusUnauthorized, "not signed in")
	wants(t, who.get("/sign-in"), http.StatusOK, "You are signed out")
}

// A page of somebody else shows ours in a frame, and has the person click.
func TestClickjacking(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	for _, got := range []answer{
		who.get("/"), who.get("/nowhere"), b.anyone(t).get("/"), b.anyone(t).get("/sign-in?token=x"), who.get("/static/console.css"), who.post("/sign-out", url.Values{}),
	} {
		h := got.Header
		csp := h.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'", "script-src 'self'", "style-src 'self'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: no %s in %q", got.Status, want, csp)
			}
		}
		for name, want := range map[string]string{
			"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q, want %q", got.Status, name, h.Get(name), want)
			}
		}
		if strings.Contains(csp, "unsafe") {
			t.Errorf("the policy is unsafe: %q", csp)
		}
	}
}

// A requester writes what the approver's browser shall run, or show otherwise than it is.
func TestScriptsInTexts(t *testing.T) {
	const evil = `</p><script>alert(1)</script><img src=x onerror=alert(1)>" onmouseover="alert(1) javascript:alert(1) {{.Token}}`
	b := newBed(t)
	b.requests = []api.Request{pending(func(r *api.Request) {
		r.Reason, r.Service, r.Permissions = evil, evil, []string{evil}
		r.Subject, r.RequesterPerson, r.Rules, r.Require = evil, evil, []string{evil}, []api.Requirement{{Group: evil, Approvals: 1}}
		r.ID = `../"><script>alert(1)</script>`
	})}
	b.me.Groups = []string{evil}
	b.grants = []api.Grant{{
		ID: "g", State: api.GrantActive, Subject: evil, Service: evil, Permissions: []string{evil}, SPIFFEID: evil,
		Emergency: &api.EmergencyOrigin{Reason: evil, Custodians: []string{evil}}, Revoked: &api.Revoked{By: evil, Reason: evil},
	}}
	b.requests = append(b.requests, pending(func(r *api.Request) {
		*r = b.requests[0]
		r.ID, r.State, r.EndedBy = "r", api.RequestDenied, evil
		r.Decisions = []api.Decision{{Decision: "deny", Person: evil, Identity: evil, Comment: evil}}
	}))
	b.requests = append(b.requests, pending(func(r *api.Request) {
		*r = b.requests[0]
		r.ID, r.State = "glass", api.RequestApproved
		r.BreakGlass = &api.BreakGlass{DueAt: &r.CreatedAt, WaitsFor: []string{evil}, Findings: []api.Finding{{Person: evil, Identity: evil, Finding: evil}}}
	}))
	b.requests[0].Bundles = []string{evil}
	b.services = []api.Service{{
		Name: "pay", Description: evil, Tier: evil, Owners: []string{evil}, Permissions: []string{evil},
		Bundles: []api.ServiceBundle{{Name: evil, Description: evil, Permissions: []string{evil}}},
	}}
	b.cluster.Blocked = []api.Block{{Subject: evil, Reason: evil}}
	who := b.signIn(t)
	for _, path := range []string{"/", "/requests/r", "/requests/glass", "/grants", "/grants/g", "/history", "/ask", "/ask?service=pay"} {
		got := who.get(path)
		if got.StatusCode != http.StatusOK || !strings.Contains(got.body, "&lt;script&gt;alert(1)") {
			t.Errorf("%s does not show it as it is: %d\n%s", path, got.StatusCode, got.body)
		}
		for _, bad := range []string{"<script>alert", "<img", `" onmouseover`, `href="javascript:`} {
			if strings.Contains(got.body, bad) {
				t.Errorf("%s has %q in it:\n%s", path, bad, got.body)
			}
		}
	}
	got := who.get("/history?service=" + url.QueryEscape(evil) + "&subject=" + url.QueryEscape(evil))
	if strings.Contains(got.body, "<script>alert") || strings.Contains(got.body, `" onmouseover`) {
		t.Errorf("a link puts it into the page:\n%s", got.body)
	}
}

// A requester hides a part of a reason, or turns the text around it.
func TestHiddenCharacters(t *testing.T) {
	b := newBed(t)
	b.requests = []api.Request{pending(func(r *api.Request) {
		r.Reason = "harmless \u202etxet\u202c \u2066x\u2069 \u200bzero \x00 \x1b[1m \U000e0041"
	})}
	body := b.signIn(t).get("/").body
	for _, r := range body {
		if r == 0x202e || r == 0x200b || r == 0 || r == 0x1b || r == 0xe0041 || r == 0x2066 {
			t.Errorf("%U is in the page", r)
		}
	}
	if !strings.Contains(body, `harmless \u202etxet`) {
		t.Errorf("what was hidden is not spelled out:\n%s", body)
	}
}

// A link that looks like ours leads elsewhere.
func TestOpenRedirect(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	form := fields(t, who.get("/").body, "/sign-out")
	for _, target := range []string{
		"//evil.example", "//evil.example/..", `/\evil.example`, "/%2f%2fevil.example", "/https://evil.example", "/./", "/../", "//", "/static/../",
		"/sign-in?next=https://evil.example", "/?return=//evil.example", "/sign-in/?token=x",
	} {
		for _, got := range []answer{who.get(target), who.post(target, form)} {
			if to := got.Header.Get("Location"); to != "" {
				t.Errorf("%s leads to %q", target, to)
			}
		}
	}
	form.Set("next", "https://evil.example")
	if got := who.post("/sign-out", form); got.Header.Get("Location") != "/sign-in" {
		t.Errorf("a form leads to %q", got.Header.Get("Location"))
	}
}

// What two readers could read in two ways, or one alone could be kept busy by, is refused.
func TestBadForms(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	form := fields(t, who.get("/").body, "/sign-out").Encode()
	wants(t, who.do(http.MethodPost, "/sign-out", form+"&csrf=x"), http.StatusBadRequest, "in it twice")
	wants(t, who.do(http.MethodPost, "/sign-out", form+"&x=%zz"), http.StatusBadRequest)
	wants(t, who.do(http.MethodPost, "/sign-out", form+"&x="+strings.Repeat("a", 64<<10)), http.StatusRequestEntityTooLarge, "Nothing was done")
	wants(t, who.get("/?cursor=a&cursor=b"), http.StatusBadRequest, "in it twice")
	wants(t, who.get("/?cursor="+strings.Repeat("a", 9000)), http.StatusRequestURITooLong)
	wants(t, who.do(http.MethodGet, "/", "body"), http.StatusBadRequest)
	wants(t, who.do(http.MethodDelete, "/", ""), http.StatusMethodNotAllowed)
	who.edit = func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }
	wants(t, who.do(http.MethodPost, "/sign-out", `{"csrf":"x"}`), http.StatusUnsupportedMediaType)
	who.edit = func(r *http.Request) { r.Header.Set("Content-Type", "multipart/form-data; boundary=x") }
	wants(t, who.do(http.MethodPost, "/sign-out", "--x--"), http.StatusUnsupportedMediaType)
	who.edit = nil
	wants(t, who.get("/"), http.StatusOK)
}

// Whoever sends endless headers, or none, does not hold a connection.
func TestServerLimits(t *testing.T) {
	b := newBed(t)
	s := b.pages.Server()
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 0 || s.IdleTimeout <= 0 {
		t.Errorf("a connection may be held: %+v", s)
	}
	server := httptest.NewUnstartedServer(nil)
	server.Config = s
	server.Start()
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+testHost+"\r\nX: "+strings.Repeat("a", 64<<10)+"\r\n\r\n")
	if err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log(err) // the answer may come before the last byte was taken
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// What the cluster answers is told in its own words; what went wrong inside is not.
func TestTroubles(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	p := api.NewProblem(api.CodeDenied, "bob is blocked", "ask an admin")
	p.RequestID = "0199-4711"
	b.change(func() { b.err = p })
	wants(t, who.get("/"), http.StatusForbidden, "Denied: bob is blocked", "Ask an admin", "0199-4711")
	b.change(func() { b.err = errors.New("dial tcp 10.0.0.1: secret") })
	got := who.get("/")
	wants(t, got, http.StatusBadGateway, "No control node answers.")
	if strings.Contains(got.body, "secret") {
		t.Error("an inner error is shown")
	}
	b.change(func() { b.err = api.ErrUnauthenticated })
	wants(t, who.get("/"), http.StatusForbidden, "does not accept your identity")
	b.change(func() { b.err = api.NewProblem(api.CodeAmbiguous, "no quorum", "") })
	wants(t, who.get("/"), http.StatusServiceUnavailable, "It may have been done, or not")
}
