//go:build integration

package console_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/console"
	"github.com/hallpass/hallpass/testenv"
)

var update = flag.Bool("update", false, "write the screenshots of docs/img anew")

// patience bounds every step: a machine may be busy, a browser slow.
const patience = 2 * time.Minute

// chromium is a page of a real browser, in which bob has a console over a real cluster.
type chromium struct {
	t    *testing.T
	ctx  context.Context
	base string
	link string
}

func newChromium(t *testing.T, env *testenv.Env, name string) *chromium {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := console.LocalHost(l.Addr().(*net.TCPAddr).Port)
	local := console.NewLocal(console.LocalConfig{API: env.Client(name), Who: id(name)})
	pages, err := console.New(console.Config{Sessions: local, Host: host, Zone: time.UTC, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := pages.Server()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	// Without its sandbox, which it cannot have as root: the pages are our own.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(1440, 900))
	alloc, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, leave := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		leave()
		stop()
		local.Close()
		if err := errors.Join(server.Close(), <-served); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	if err := chromedp.Do(ctx); err != nil { // the browser lives as long as what starts it
		t.Fatal(err)
	}
	return &chromium{t, ctx, "http://" + host, local.Link(host)}
}

// do takes steps, all of them within patience.
func (c *chromium) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		page, _ := chromedp.Run(c.ctx, chromedp.OuterHTML("html"))
		c.t.Fatalf("%s: %v\n%s", what, err, page)
	}
}

// take is do for one step that gives something.
func take[T any](c *chromium, what string, step chromedp.Action[T]) T {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	out, err := chromedp.Run(ctx, step)
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	return out
}

// call is take for a command of the protocol.
func call[P, R any](c *chromium, cmd cdp.Command[P, R], params P) R {
	c.t.Helper()
	return take(c, cmd.Method, func(ctx context.Context, t *chromedp.Target) (R, error) { return cdp.Call(ctx, t, cmd, params) })
}

// eval evaluates an expression in the page.
func eval[T any](c *chromium, expression string) T {
	c.t.Helper()
	return take(c, expression, chromedp.Evaluate[T](expression))
}

// until waits for an expression to be true. While a page goes and another comes, there is none to look at.
func (c *chromium) until(what, expression string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	for look := time.NewTicker(50 * time.Millisecond); ; {
		if ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool](expression)); err == nil && ok {
			return
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			page, err := chromedp.Run(c.ctx, chromedp.OuterHTML("html"))
			c.t.Fatalf("%s: not so (%v):\n%s", what, err, page)
		}
	}
}

// text waits for words in what a selector shows.
func (c *chromium) text(selector, want string) {
	c.t.Helper()
	c.until(fmt.Sprintf("%q in %s", want, selector),
		fmt.Sprintf("[...document.querySelectorAll(%s)].some((e) => e.innerText.includes(%s))", quoted(c.t, selector), quoted(c.t, want)))
}

// quoted is a string of JavaScript.
func quoted(t *testing.T, text string) string {
	t.Helper()
	out, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// visit goes to an address and waits until all of it is there, also where it is there already.
func (c *chromium) visit(address string) {
	c.t.Helper()
	at := quoted(c.t, address)
	eval[bool](c, "(window.leaving = true, setTimeout(() => location.assign("+at+")), true)")
	c.until(address+" is loaded", `!window.leaving && document.readyState === "complete" && location.href === `+at)
}

// press presses the one button with these words, by the keyboard: focus and Enter.
func (c *chromium) press(words string) {
	c.t.Helper()
	c.do("press "+words, chromedp.SendKeys(chromedp.Search(fmt.Sprintf("//button[normalize-space()=%q]", words)), "\r"))
}

func (c *chromium) open(path string) {
	c.t.Helper()
	c.visit(c.base + path)
}

// ask asks for access as alice.
func ask(t *testing.T, env *testenv.Env, reason string, d time.Duration, permissions ...string) api.Request {
	t.Helper()
	r, err := env.Client("alice").CreateRequest(t.Context(), api.RequestInput{
		Service: "payments", Permissions: permissions, Duration: api.Duration(d), Reason: reason,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A person's evening: sign in, see a request arrive, approve it, see it end, deny another.
func TestInChromium(t *testing.T) {
	env := testenv.Start(t, testenv.Options{Nodes: 1, Policy: strings.Replace(testenv.DefaultPolicy, "version: 1", "version: 2\nservices: [{name: payments, tier: production}]", 1)})
	old := ask(t, env, "the figures for the board meeting", 10*time.Minute, "GET /reports/2026")
	c := newChromium(t, env, "bob")

	c.visit(c.link)
	c.text("main", "spiffe://acme.test/user/bob")
	c.press("Sign in")
	c.text("h1", "Queue")
	if at := eval[string](c, "location.href"); at != c.base+"/" {
		t.Errorf("signed in at %s", at)
	}
	c.cookie()

	// A request arrives, and nothing moves.
	where := `document.querySelector('[data-id="` + old.ID + `"]').getBoundingClientRect().top`
	before := eval[float64](c, where)
	r := ask(t, env, "ticket 4711: a customer was charged twice on Friday", 30*time.Minute, "GET /accounts/**", "POST /refunds/*")
	c.text("#news", "1 new request")
	if after := eval[float64](c, where); after != before {
		t.Errorf("the row has moved from %v to %v", before, after)
	}
	if n := eval[int](c, `document.querySelectorAll("[data-id]").length`); n != 1 {
		t.Errorf("%d rows", n)
	}
	c.check("/, with news")
	c.do("show", chromedp.Click("#news a"))
	c.text("h3", "payments")
	c.do("the request", chromedp.Click(`[data-id="`+r.ID+`"] a`))
	c.text(".risk", "The policy calls payments production.")
	c.check("a request")
	c.shots("request")
	c.do("shorten", chromedp.SendKeys("#duration", "15m"), chromedp.SendKeys("#approve-comment", "until the ticket is closed"))
	c.press("Approve")
	c.text(".notice", "You approved this")
	c.text(".left", "left)")
	c.check("a request that was approved")

	c.open("/grants")
	c.text(".left", " min") // of the 15 that were approved
	c.check("/grants")
	c.shots("grants")
	c.open("/grants/" + r.ID)
	c.check("a grant")
	c.do("a reason", chromedp.SendKeys("#reason", "the ticket is closed"))
	c.press("Revoke the grant")
	c.text(".notice", "the ticket is closed")

	// A row that changes says so where it is.
	c.open("/")
	env.Approve("bob", old)
	c.text(`[data-id="`+old.ID+`"] [data-state]`, "changed")

	denied := ask(t, env, "cleaning up", time.Hour, "DELETE /accounts/*")
	c.open("/requests/" + denied.ID)
	c.press("Deny") // without a reason: the browser asks for it
	c.until("the focus is where the reason goes", `document.activeElement.id === "deny-comment"`)
	c.do("a reason", chromedp.SendKeys("#deny-comment", "ask for one account"))
	c.press("Deny")
	c.text("h1", "denied")
	c.text("main", "ask for one account")

	ask(t, env, "ticket 4712: the address of account 42 is wrong", 20*time.Minute, "PUT /accounts/42/address")
	ask(t, env, "on call this night", time.Hour, "GET,HEAD /health/**", "GET /metrics")
	ask(t, env, "ticket 4715: refunds of March", 15*time.Minute, "POST /refunds/*")
	c.open("/ask?service=payments&allow=GET+/accounts/**")
	c.text(".notice", "A link has filled this in.")
	c.check("/ask, from a link")
	c.do("how long", chromedp.SetValue("#duration", "20m"))
	c.press("Only say what the policy says")
	c.text("#tried", "with approval")
	c.text("section", "nobody who could is left") // bob is the only owner, and never decides for himself
	c.check("what the policy says")
	for _, path := range []string{"/", "/ask", "/history", "/audit", "/audit/3", "/policy", "/changes", "/cluster", "/requests/nowhere"} {
		c.open(path)
		c.check(path)
	}
	c.open("/audit/3")
	c.text(".notice", "It is in the log")
	c.open("/")
	c.shots("queue")
	c.keyboard()
	c.press("Sign out")
	c.text("main", "You are signed out")
}

// cookie looks at what the browser keeps: __Host- is kept from plain HTTP on *.localhost, and no script sees it.
func (c *chromium) cookie() {
	c.t.Helper()
	all := call(c, network.GetCookies, network.GetCookiesParams{}).Cookies
	if len(all) != 1 || all[0].Name != "__Host-hallpass" || !all[0].Secure || !all[0].HTTPOnly || all[0].SameSite != network.CookieSameSiteStrict || !all[0].Session {
		c.t.Errorf("cookies: %+v", all)
	}
	if seen := eval[string](c, "document.cookie"); seen != "" {
		c.t.Errorf("a script sees %q", seen)
	}
}

// check looks at the accessibility tree, and at whether anything sticks out of a narrow screen.
func (c *chromium) check(page string) {
	c.t.Helper()
	c.until(page+" is loaded", `document.readyState === "complete"`)
	nodes := call(c, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes
	c.do("a narrow screen", chromedp.EmulateViewport(360, 740))
	wide := eval[int](c, "document.documentElement.scrollWidth")
	c.do("a wide screen", chromedp.EmulateViewport(1440, 900))
	if wide > 360 {
		c.t.Errorf("%s is %d pixels wide on a screen of 360", page, wide)
	}
	seen := map[string]int{}
	for _, n := range nodes {
		role := axText(n.Role)
		if n.Ignored {
			continue
		}
		seen[role]++
		switch role {
		case "button", "link", "textbox", "searchbox", "checkbox", "combobox", "navigation", "form", "heading", "region", "RootWebArea":
			if axText(n.Name) == "" {
				c.t.Errorf("%s: a %s without a name", page, role)
			}
		}
	}
	if seen["main"] != 1 || seen["heading"] == 0 || seen["link"] == 0 || seen["banner"] != 1 || seen["status"] == 0 {
		c.t.Errorf("%s has %v", page, seen)
	}
}

func axText(v *accessibility.Value) string {
	if v == nil {
		return ""
	}
	var text string
	if err := json.Unmarshal([]byte(v.Value), &text); err != nil {
		return ""
	}
	return text
}

// keyboard goes from the skip link on with Tab alone: through the frame, then what is in the page, each with a focus
// that shows.
func (c *chromium) keyboard() {
	c.t.Helper()
	c.open("/")
	if first := eval[string](c, `document.querySelector("a, button, input, summary").className`); first != "skip" {
		c.t.Errorf("what is first to be focused is a %q", first)
	}
	eval[bool](c, `(document.querySelector(".skip").focus(), true)`)
	order := []string{eval[string](c, "document.activeElement.innerText.trim()")}
	for range 12 {
		c.do("tab", chromedp.KeyEvent("\t"))
		order = append(order, eval[string](c, "document.activeElement.innerText.trim()"))
		if width := eval[string](c, "getComputedStyle(document.activeElement).outlineWidth"); width != "3px" {
			c.t.Errorf("the focus on %q is %s wide", order[len(order)-1], width)
		}
	}
	want := []string{"Skip to the content", "Hallpass", "Queue", "Ask", "Grants", "History", "Audit", "Policy", "Cluster", "Sign out"}
	if got := order[:len(want)]; strings.Join(got, "|") != strings.Join(want, "|") || !strings.Contains(order[len(want)], "payments") {
		c.t.Errorf("the focus goes %q", order)
	}
}

// shots writes docs/img/console-NAME-WIDTH-SCHEME.png, with -update.
func (c *chromium) shots(name string) {
	c.t.Helper()
	for _, width := range []int64{360, 1440} {
		for _, scheme := range []string{"light", "dark"} {
			call(c, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
			c.do("a screen", chromedp.EmulateViewport(width, 900))
			png := take(c, "screenshot", chromedp.CaptureScreenshot())
			if !*update {
				continue
			}
			file := filepath.Join("..", "..", "docs", "img", fmt.Sprintf("console-%s-%d-%s.png", name, width, scheme))
			if err := os.WriteFile(file, png, 0o600); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	call(c, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{})
	c.do("back", chromedp.EmulateViewport(1440, 900))
}
