package console_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallpass/hallpass/approval/console"
)

// Whatever looks at the link before its reader does, and whoever has it afterwards, gets nothing.
func TestOneTimeLink(t *testing.T) {
	b := newBed(t)
	token := b.linkToken(t)
	if len(token) < 26 { // of base32: 130 bits
		t.Errorf("a token of %d characters", len(token))
	}
	preview := b.anyone(t)
	for range 3 {
		got := preview.get("/sign-in?token=" + token)
		wants(t, got, http.StatusOK, "You will act as", id("bob"))
		if len(got.Cookies()) > 0 {
			t.Fatal("a GET is handed the session")
		}
		if head := preview.do(http.MethodHead, "/sign-in?token="+token, ""); len(head.Cookies()) > 0 {
			t.Fatal("a HEAD is handed the session")
		}
	}
	preview.edit = func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }
	wants(t, preview.post("/sign-in", url.Values{"token": {token}}), http.StatusForbidden, "another site")
	preview.edit = nil

	who := b.anyone(t)
	for _, wrong := range []string{"", "x", token[1:], token + "A", strings.ToLower(token)} {
		got := who.post("/sign-in", url.Values{"token": {wrong}})
		wants(t, got, http.StatusForbidden, "not the link of this console")
	}
	got := who.post("/sign-in", fields(t, who.get("/sign-in?token="+token).body, "/sign-in"))
	if got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != "/" {
		t.Fatalf("status %d, to %q: the token stays in the address", got.StatusCode, got.Header.Get("Location"))
	}
	cookie := got.Cookies()[0]
	if cookie.Name != "__Host-hallpass" || !cookie.Secure || !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Path != "/" || cookie.Domain != "" || cookie.Value == token {
		t.Errorf("cookie %+v", cookie)
	}
	// The link is replayed from the history, or by one who read it.
	replay := b.anyone(t).post("/sign-in", url.Values{"token": {token}})
	wants(t, replay, http.StatusForbidden, "This link has been used.", "If it was not you", "Ctrl-C")
	if len(replay.Cookies()) > 0 {
		t.Error("the link works twice")
	}
	who.cookie = cookie.Value
	wants(t, who.get("/"), http.StatusOK)
}

// A session is found by its cookie alone.
func TestSessionCookie(t *testing.T) {
	b := newBed(t)
	who := b.signIn(t)
	good := who.cookie
	for _, bad := range []string{"", "x", good + "A", good[1:], b.linkToken(t), strings.ToLower(good)} {
		who.cookie = bad
		for _, path := range []string{"/", "/events?after=0"} {
			wants(t, who.get(path), http.StatusUnauthorized, "hallpass console")
		}
	}
	who.cookie = good
	who.edit = func(r *http.Request) { r.Header.Add("Cookie", "__Host-hallpass=x") }
	wants(t, who.get("/"), http.StatusUnauthorized) // two readers could go by either
	who.edit = nil
	who.cookie = ""
	wants(t, who.get("/?__Host-hallpass="+good), http.StatusUnauthorized)
}

func TestLinkLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		time.Sleep(5*time.Minute + time.Second)
		wants(t, b.anyone(t).post("/sign-in", url.Values{"token": {b.linkToken(t)}}), http.StatusForbidden, "not used in its time")
		<-b.local.Over()
		if !errors.Is(b.local.Err(), console.ErrLinkUnused) {
			t.Error(b.local.Err())
		}
	})
}

func TestSessionEnds(t *testing.T) {
	idle := func(b *bed, who *browser) {
		time.Sleep(59 * time.Minute)
		wants(t, who.get("/"), http.StatusOK)
		time.Sleep(59 * time.Minute)
		wants(t, who.get("/"), http.StatusOK)
		time.Sleep(time.Hour)
	}
	long := func(b *bed, who *browser) {
		for range 17 {
			time.Sleep(30 * time.Minute)
			wants(t, who.get("/"), http.StatusOK)
		}
		time.Sleep(31 * time.Minute)
	}
	// A page that is left open comes back for news every few seconds. Were that use, whoever sat down
	// at the machine in the evening would have the session.
	open := func(b *bed, who *browser) {
		for range 12 {
			time.Sleep(5 * time.Minute)
			who.get("/events?after=none") // refused, once it is known whose it is
		}
	}
	for name, end := range map[string]func(*bed, *browser){"unused": idle, "long": long, "left open": open} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				who := b.signIn(t)
				end(b, who)
				wants(t, who.get("/"), http.StatusUnauthorized, "your session is over")
				<-b.local.Over()
				if !errors.Is(b.local.Err(), console.ErrSessionOver) {
					t.Error(b.local.Err())
				}
			})
		})
	}
}

// Two consoles of one machine are of two hosts: neither is sent the other's cookie.
func TestLocalHost(t *testing.T) {
	a, b := console.LocalHost(8080), console.LocalHost(8080)
	if a == b || !strings.HasSuffix(a, ".localhost:8080") || len(a) < 40 {
		t.Errorf("%s and %s", a, b)
	}
	if c := console.LocalHost(80); !strings.HasSuffix(c, ".localhost") {
		t.Errorf("browsers never call %s so", c)
	}
	if label, _, _ := strings.Cut(a, "."); len(label) > 63 {
		t.Errorf("a label of %d", len(label))
	}
}
