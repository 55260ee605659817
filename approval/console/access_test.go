package console_test

import (
	"fmt"
	"math"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/hallpass/hallpass/approval/api"
)

// stylesheet reads the colours of both schemes, and the rules without them.
func stylesheet(t *testing.T) (schemes map[string]map[string]string, rules string) {
	t.Helper()
	text, err := os.ReadFile("static/console.css")
	if err != nil {
		t.Fatal(err)
	}
	css := regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(string(text), "")
	blocks := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(css, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d sets of colours, want a light and a dark one", len(blocks))
	}
	schemes = map[string]map[string]string{"light": {}, "dark": {}}
	for i, scheme := range []string{"light", "dark"} {
		for _, m := range regexp.MustCompile(`--([a-z-]+): (#[0-9a-f]{6});`).FindAllStringSubmatch(blocks[i][1], -1) {
			schemes[scheme][m[1]] = m[2]
		}
	}
	if len(schemes["light"]) != len(schemes["dark"]) || len(schemes["light"]) < 15 {
		t.Fatalf("%d light colours, %d dark ones", len(schemes["light"]), len(schemes["dark"]))
	}
	return schemes, regexp.MustCompile(`(?s):root \{.*?\}`).ReplaceAllString(css, "")
}

// luminance is WCAG 2.2's relative luminance of #rrggbb.
func luminance(t *testing.T, color string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimPrefix(color, "#"), 16, 32)
	if err != nil || len(color) != 7 {
		t.Fatalf("%q is no colour", color)
	}
	part := func(shift uint) float64 {
		v := float64(n>>shift&0xff) / 255
		if v <= 0.04045 {
			return v / 12.92
		}
		return math.Pow((v+0.055)/1.055, 2.4)
	}
	return 0.2126*part(16) + 0.7152*part(8) + 0.0722*part(0)
}

func contrast(t *testing.T, a, b string) float64 {
	x, y := luminance(t, a), luminance(t, b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// WCAG 2.2: 4.5 for text (1.4.3), 3 for what makes a control recognizable, and for focus (1.4.11).
func TestContrast(t *testing.T) {
	schemes, rules := stylesheet(t)
	type pair struct {
		over, under string
		least       float64
	}
	pairs := map[pair]bool{}
	for _, under := range []string{"page", "card", "code"} {
		pairs[pair{"ink", under, 4.5}] = true
	}
	for _, under := range []string{"page", "card"} {
		pairs[pair{"dim", under, 4.5}], pairs[pair{"link", under, 4.5}] = true, true
		pairs[pair{"focus", under, 3}], pairs[pair{"field", under, 3}] = true, true
		pairs[pair{"primary", under, 3}], pairs[pair{"danger", under, 3}] = true, true
	}
	for _, under := range []string{"alert", "notice", "warn"} {
		pairs[pair{"on-" + under, under, 4.5}] = true
		pairs[pair{"focus", under, 3}] = true
		pairs[pair{"link", under, 4.5}] = true
	}
	// Whatever a rule puts on a ground of its own.
	own := 0
	for _, m := range regexp.MustCompile(`(?s)\{([^{}]*)\}`).FindAllStringSubmatch(rules, -1) {
		ground := regexp.MustCompile(`background: var\(--([a-z-]+)\)`).FindStringSubmatch(m[1])
		text := regexp.MustCompile(`(?:^|[\s;])color: var\(--([a-z-]+)\)`).FindStringSubmatch(m[1])
		if ground != nil && text != nil {
			pairs[pair{text[1], ground[1], 4.5}] = true
			own++
		}
	}
	if own < 10 {
		t.Errorf("only %d rules with a ground and a text were found", own)
	}
	for scheme, colors := range schemes {
		for p := range pairs {
			if got := contrast(t, colors[p.over], colors[p.under]); got < p.least {
				t.Errorf("%s: %s on %s is %.2f, want %.1f", scheme, p.over, p.under, got, p.least)
			}
		}
	}
	// Every colour is one of these, so that the above is all there is.
	for _, m := range regexp.MustCompile(`(?:^|[\s;{])((?:[a-z-]*color)|background|outline|border(?:-[a-z]+)?): ([^;}]*)`).FindAllStringSubmatch(rules, -1) {
		value := regexp.MustCompile(`var\(--[a-z-]+\)|\b(?:none|solid|0|[0-9.]+(?:px|rem))\b`).ReplaceAllString(m[2], "")
		if m[1] != "border-radius" && strings.TrimSpace(value) != "" {
			t.Errorf("%s: %s is none of the colours at the top", m[1], m[2])
		}
	}
	if got := contrast(t, "#000000", "#ffffff"); math.Abs(got-21) > 0.001 {
		t.Errorf("black on white is %.3f", got)
	}
}

// everyPage is each page, as full as it gets.
func everyPage(t *testing.T) map[string]answer {
	t.Helper()
	b := newBed(t)
	now := time.Date(2026, 3, 8, 11, 0, 0, 0, time.UTC)
	full := pending(func(r *api.Request) {
		r.Permissions = []string{"GET /accounts/**", "POST /refunds/*"}
		r.CreatedAt, r.Start = now, &now
		r.Parent, r.Delegation = "g", &api.Delegation{To: []string{id("x")}, Most: 1}
		r.Decisions = []api.Decision{{Decision: "approve", Person: "carol", Identity: id("carol"), Comment: "fine", At: now, Void: true}}
		r.Revisions = append(r.Revisions, r.Revisions[0])
	})
	g := api.Grant{
		ID: "g", State: api.GrantActive, Subject: id("alice"), Service: "payments", Permissions: []string{"GET /accounts/**"}, ExpiresAt: now, BreakGlass: true, Parent: "p", Delegation: &api.Delegation{To: []string{id("x")}, Most: 1},
		Emergency: &api.EmergencyOrigin{Reason: "fire"}, Issuances: []api.Issuance{{Serial: "1"}},
	}
	b.grants = []api.Grant{g, {ID: "ended", State: api.GrantRevoked, Revoked: &api.Revoked{By: id("bob"), Reason: "x"}}}
	b.requests = []api.Request{
		full,
		pending(func(r *api.Request) {
			r.ID, r.Requester, r.Subject, r.RequesterPerson = "mine", id("bob"), id("bob"), "bob"
		}),
		pending(func(r *api.Request) {
			r.ID, r.Require, r.Extends = "other", nil, &api.Extends{Grant: "g", From: now, To: now}
		}),
		pending(func(r *api.Request) { r.ID, r.State, r.Grant, r.EndedAt = "granted", api.RequestApproved, &g, &now }),
		pending(func(r *api.Request) {
			ended := g
			ended.State = api.GrantExpired
			r.ID, r.State, r.Grant, r.EndedAt = "glass", api.RequestApproved, &ended, &now
			r.BreakGlass = &api.BreakGlass{DueAt: &now, Overdue: true, WaitsFor: []string{"owners"}, Findings: []api.Finding{{Person: "carol", Identity: id("carol"), Finding: "fine", At: now}}}
		}),
	}
	b.entries = []string{`{"actor":"","command":"c","details":{},"index":0,"kind":"bootstrap","node":"n1","object":"","time":"2026-03-04T11:00:00.000Z"}`, "{}"}
	silent, behind := api.Duration(time.Second), uint64(3)
	b.cluster = api.Cluster{
		TrustDomain: "acme.test", Nodes: []api.Node{{ID: "n1", Leader: true}, {ID: "n2", SilentFor: &silent, Behind: &behind}},
		Issuers: []api.Issuer{{ID: "i", Node: "n1", Denied: &api.Revoked{}}}, Blocked: []api.Block{{Subject: id("mallory"), Reason: "x"}}, EpochBegan: &now,
	}
	b.changes = []api.Change{
		{ID: "policy", State: api.ChangePending, AuthorPerson: "dana", Hash: "h", BaseRevision: 2, Change: api.ChangeSpec{Kind: api.ChangePolicySet, YAML: "version: 1\nrules: [{}]\n"}},
		{ID: "own", State: api.ChangePending, Author: id("bob"), Change: api.ChangeSpec{Kind: api.ChangeSubjectUnblock, Subject: id("mallory")}},
		{ID: "old", State: api.ChangeDenied, EndedAt: &now, Decisions: full.Decisions, Change: api.ChangeSpec{Kind: api.ChangeGroupSet, Name: "owners", Members: []string{"bob"}}},
	}
	b.me.Admin = true
	b.services = []api.Service{
		{Name: "payments", Description: "Accounts", Tier: "critical", Owners: []string{"group:owners"}, Bundles: []api.ServiceBundle{{Name: "read", Description: "Look", Permissions: []string{"GET /a"}}}},
		{Name: "status", Permissions: []string{"GET /**"}},
	}
	who := b.signIn(t)
	out := map[string]answer{}
	for _, path := range []string{
		"/", at(full), "/requests/mine", "/requests/other", "/requests/granted", "/requests/glass", "/grants", "/grants/g", "/grants/ended", "/history",
		"/audit", "/audit/0", "/policy", "/cluster", "/changes", "/changes/policy", "/changes/own", "/changes/old", "/ask", "/ask?service=payments&allow=GET+/a", "/ask?service=payments&bundle=read&bundle=gone",
	} {
		out[path] = who.get(path)
		wants(t, out[path], http.StatusOK)
	}
	form := fields(t, out[at(full)].body, at(full)+"/decide")
	form.Del("keep")
	out["a form that was refused"] = who.post(at(full)+"/decide", form)
	b.says = api.DryRun{Allowed: true, Rules: []string{"payments-read"}, Require: []api.Requirement{{Group: "owners", Approvals: 1}}}
	try := fields(t, out["/ask"].body, "/ask")
	for name, text := range map[string]string{"what": "try", "service": "payments", "allow": "GET /accounts/**", "duration": "30m"} {
		try.Set(name, text)
	}
	out["what the policy says"] = who.post("/ask", try)
	try.Set("duration", "soon")
	out["what cannot be asked for"] = who.post("/ask", try)
	out["a problem"] = who.get("/requests/nowhere")
	out["the sign-in page"] = b.anyone(t).get("/sign-in?token=x")
	out["the sign-in page without a link"] = b.anyone(t).get("/sign-in")
	return out
}

// checker collects what is wrong with a page for those who do not see it, or use no mouse.
type checker struct {
	ids      map[string]int
	refs     []string
	labels   map[string]bool
	controls []string // ids of those that need a label
	levels   []int
	counts   map[string]int
	bad      []string
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func textOf(n *html.Node) string {
	if n.Type == html.TextNode {
		return n.Data
	}
	var out strings.Builder
	for c := n.FirstChild; c != nil; c = c.NextSibling {
		out.WriteString(textOf(c))
	}
	return strings.TrimSpace(out.String())
}

func (c *checker) walk(n *html.Node, inLabel bool) {
	if n.Type == html.ElementNode {
		c.element(n, inLabel)
	}
	for child := n.FirstChild; child != nil; child = child.NextSibling {
		c.walk(child, inLabel || n.Data == "label")
	}
}

func (c *checker) element(n *html.Node, inLabel bool) {
	c.counts[n.Data]++
	if id := attr(n, "id"); id != "" {
		c.ids[id]++
	}
	if ref := attr(n, "aria-labelledby"); ref != "" {
		c.refs = append(c.refs, ref)
	}
	for _, a := range n.Attr {
		if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
			c.bad = append(c.bad, a.Key+" on "+n.Data+": the content security policy stops it")
		}
	}
	switch n.Data {
	case "h1", "h2", "h3", "h4":
		c.levels = append(c.levels, int(n.Data[1]-'0'))
	case "label":
		if attr(n, "for") != "" {
			c.labels[attr(n, "for")] = true
		}
	case "input", "textarea", "select":
		if attr(n, "type") != "hidden" && !inLabel && attr(n, "aria-label") == "" {
			c.controls = append(c.controls, attr(n, "id"))
		}
	case "a", "button", "summary":
		if textOf(n) == "" {
			c.bad = append(c.bad, n.Data+" without words")
		}
	case "nav", "section":
		if attr(n, "aria-label") == "" && attr(n, "aria-labelledby") == "" {
			c.bad = append(c.bad, n.Data+" without a name")
		}
	case "form":
		if attr(n, "aria-label") == "" {
			c.bad = append(c.bad, "form without a name")
		}
		if attr(n, "method") == "post" && attr(n, "action") != "/sign-in" && !strings.Contains(render(n), `name="csrf"`) {
			c.bad = append(c.bad, "form to "+attr(n, "action")+" without the session's token")
		}
	case "style", "script":
		if n.FirstChild != nil {
			c.bad = append(c.bad, n.Data+" in the page: the content security policy stops it")
		}
	}
}

func render(n *html.Node) string {
	var b strings.Builder
	if err := html.Render(&b, n); err != nil {
		return err.Error()
	}
	return b.String()
}

func (c *checker) verdict() []string {
	for id, n := range c.ids {
		if n > 1 {
			c.bad = append(c.bad, "two elements with the id "+id)
		}
	}
	for _, ref := range c.refs {
		if c.ids[ref] == 0 {
			c.bad = append(c.bad, "named by "+ref+", which is not there")
		}
	}
	for _, id := range c.controls {
		if id == "" || !c.labels[id] {
			c.bad = append(c.bad, fmt.Sprintf("a field %q without a label", id))
		}
	}
	for i, level := range c.levels {
		if i == 0 && level != 1 || i > 0 && (level == 1 || level > c.levels[i-1]+1) {
			c.bad = append(c.bad, fmt.Sprintf("headings of levels %v", c.levels))
			break
		}
	}
	for _, name := range []string{"h1", "main", "title", "header"} {
		if c.counts[name] != 1 {
			c.bad = append(c.bad, fmt.Sprintf("%d times %s", c.counts[name], name))
		}
	}
	return c.bad
}

// Landmarks, names, labels, headings: WCAG 2.2's 1.3.1, 2.4.1, 2.4.2, 2.4.6, 3.1.1, 3.3.2, 4.1.2.
func TestPagesAreAccessible(t *testing.T) {
	for path, got := range everyPage(t) {
		doc, err := html.Parse(strings.NewReader(got.body))
		if err != nil {
			t.Fatal(err)
		}
		c := &checker{ids: map[string]int{}, labels: map[string]bool{}, counts: map[string]int{}}
		c.walk(doc, false)
		for _, bad := range c.verdict() {
			t.Errorf("%s: %s", path, bad)
		}
		for _, want := range []string{`<html lang="en">`, `class="skip" href="#main"`, `name="viewport" content="width=device-width, initial-scale=1"`} {
			if !strings.Contains(got.body, want) {
				t.Errorf("%s has no %s", path, want)
			}
		}
	}
}
