package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// consoleRun is a `hallpass console` under way.
type consoleRun struct {
	stdout *bufio.Reader
	stderr chan string // its lines, all of which there is room for
	ended  chan int    // its status
	stop   context.CancelFunc
}

func (f *fake) console(t *testing.T, env []string, args ...string) *consoleRun {
	t.Helper()
	out, outW := io.Pipe()
	errs, errsW := io.Pipe()
	a := &app{
		stdin: strings.NewReader(""), stdout: outW, stderr: errsW,
		environ: func() []string {
			return append([]string{"HALLPASS_SERVER=" + f.URL, "HALLPASS_IDENTITY=" + f.identity}, env...)
		}, now: time.Now,
	}
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	c := &consoleRun{bufio.NewReader(out), make(chan string, 64), make(chan int, 1), stop}
	go func() {
		defer close(c.stderr)
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			c.stderr <- lines.Text()
		}
	}()
	go func() {
		c.ended <- a.run(ctx, append([]string{"console"}, args...))
		_, _ = outW.Close(), errsW.Close()
	}()
	return c
}

// line is the next line of stdout.
func (c *consoleRun) line(t *testing.T) string {
	t.Helper()
	line, err := c.stdout.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// rest waits for the end, and returns the status and what else was said on stderr.
func (c *consoleRun) rest() (status int, said string) {
	go func() { _, _ = io.Copy(io.Discard, c.stdout) }()
	for line := range c.stderr {
		said += line + "\n"
	}
	return <-c.ended, said
}

// visited is what a browser was answered.
type visited struct {
	status  int
	cookies []*http.Cookie
	body    string
}

// visit calls the console the way a browser does: *.localhost is this machine.
func visit(t *testing.T, method, at, cookie string, form url.Values) visited {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^hallpass-[a-z2-7]{26}\.localhost:[0-9]+$`).MatchString(u.Host) {
		t.Fatalf("the link is to %s", u.Host)
	}
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+u.Port())
	}
	client := &http.Client{
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	r, err := http.NewRequestWithContext(t.Context(), method, at, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	r.Header.Set("Cookie", "__Host-hallpass="+cookie)
	r.Header.Set("User-Agent", "a browser\u202e")
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return visited{resp.StatusCode, resp.Cookies(), string(body)}
}

func consoleFake(t *testing.T) *fake {
	t.Helper()
	f := newFake(t)
	f.answer("GET /v1/whoami", 200, api.WhoAmI{ID: "spiffe://acme.test/user/alice", Person: "alice", TrustDomain: "acme.test", Node: "n1", NotAfter: time.Now().Add(time.Hour)})
	f.answer("GET /v1/persons", 200, api.Persons{Persons: []api.Person{{Name: "alice", IDs: []string{"spiffe://acme.test/user/alice"}}}})
	f.answer("GET /v1/audit/entries", 200, api.AuditEntries{Size: 3})
	f.answer("GET /v1/reviews", 200, api.RequestList{})
	f.answer("GET /v1/requests", 200, api.RequestList{Requests: []api.Request{request(nil)}})
	f.answer("GET /v1/requests/"+request(nil).ID, 200, request(nil))
	return f
}

func TestConsole(t *testing.T) {
	f := consoleFake(t)
	c := f.console(t, []string{"DISPLAY=:1"}, "--no-open")
	link := c.line(t)
	if said := <-c.stderr; !strings.HasPrefix(said, "The link works once, until ") {
		t.Errorf("stderr: %s", said)
	}
	at, query, _ := strings.Cut(link, "/sign-in?")
	token, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	if got := visit(t, http.MethodGet, link, "", nil); got.status != http.StatusOK || len(got.cookies) != 0 {
		t.Fatalf("GET: %d, %v", got.status, got.cookies)
	}
	got := visit(t, http.MethodPost, at+"/sign-in", "", token)
	if got.status != http.StatusSeeOther || len(got.cookies) != 1 {
		t.Fatal(got.status)
	}
	cookie := got.cookies[0].Value
	if said := <-c.stderr; said != `signed in: a browser that calls itself a browser\u202e` {
		t.Errorf("stderr: %s", said)
	}
	page := visit(t, http.MethodGet, at+"/", cookie, nil).body
	if !strings.Contains(page, "ticket 4711") {
		t.Fatal(page)
	}
	csrf := regexp.MustCompile(`name="csrf" value="([^"]*)"`).FindStringSubmatch(page)[1]
	asked := "/requests/" + request(nil).ID
	if got := visit(t, http.MethodPost, at+asked+"/sign-in", cookie, url.Values{"csrf": {csrf}}); got.status != http.StatusOK {
		t.Fatal(got.status)
	}
	if said := <-c.stderr; !strings.Contains(said, "sign in again, for "+asked) {
		t.Errorf("stderr: %s", said)
	}
	again := <-c.stderr
	if said := <-c.stderr; !strings.HasPrefix(again, at+"/sign-in?token=") || again == link || !strings.Contains(said, "Ctrl-C") {
		t.Errorf("stderr: %s, %s", again, said)
	}
	if got := visit(t, http.MethodPost, at+"/sign-out", cookie, url.Values{"csrf": {csrf}}); got.status != http.StatusSeeOther {
		t.Fatal(got.status)
	}
	if status, said := c.rest(); status != exitOK || !strings.Contains(said, "the console has ended: signed out") {
		t.Errorf("status %d: %s", status, said)
	}
}

// Ctrl-C ends it, whoever is signed in or not.
func TestConsoleStops(t *testing.T) {
	c := consoleFake(t).console(t, nil, "-o", "json")
	for line := ""; line != "}"; line = c.line(t) { //nolint:revive // until the document is whole
	}
	c.stop()
	if status, said := c.rest(); status != exitOK {
		t.Errorf("status %d: %s", status, said)
	}
}

// The browser is not told the link where everyone on the machine can read it.
func TestConsoleOpens(t *testing.T) {
	dir, runtimeDir := t.TempDir(), t.TempDir()
	seen := filepath.Join(dir, "seen")
	if err := syscall.Mkfifo(seen, 0o600); err != nil {
		t.Fatal(err)
	}
	program := "#!/bin/sh\nset -e\nexec > " + seen + "\necho \"$@\"\nstat -c %a \"$1\" \"$(dirname \"$1\")\"\ncat \"$1\"\n"
	if err := os.WriteFile(filepath.Join(dir, "xdg-open"), []byte(program), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	c := consoleFake(t).console(t, []string{"DISPLAY=:1", "XDG_RUNTIME_DIR=" + runtimeDir})
	link := c.line(t)
	text, err := os.ReadFile(seen) // waits for the program
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitN(string(text), "\n", 4)
	if !strings.HasPrefix(lines[0], runtimeDir) || strings.Contains(lines[0], "token") || lines[1] != "600" || lines[2] != "700" {
		t.Errorf("called with %q, modes %q and %q", lines[0], lines[1], lines[2])
	}
	if !strings.Contains(lines[3], strings.ReplaceAll(link, "&", "&amp;")) {
		t.Errorf("%s does not lead to %s", lines[3], link)
	}
	c.stop()
	c.rest()
	if left, err := os.ReadDir(runtimeDir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestConsoleTakesBothLoopbacks: browsers try 127.0.0.1 and ::1. Whoever had the same port of the
// other one would be sent the link, or the cookie: it is taken, or there is no console.
func TestConsoleTakesBothLoopbacks(t *testing.T) {
	c := consoleFake(t).console(t, nil, "--no-open")
	link, err := url.Parse(c.line(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, link.Port()))
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT): // not on this machine
		case err == nil:
			t.Errorf("%s was left to others", l.Addr())
			_ = l.Close()
		case !errors.Is(err, syscall.EADDRINUSE):
			t.Error(err)
		}
	}
	c.stop()
	c.rest()

	for _, host := range []string{"127.0.0.1", "::1"} {
		mallory, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, port, err := net.SplitHostPort(mallory.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		f := consoleFake(t)
		if got := f.as(t, f.identity, "console", "--no-open", "--listen", "127.0.0.1:"+port); got.status != exitError || got.stdout != "" || !strings.Contains(got.stderr, "both are needed") {
			t.Errorf("with %s taken: %+v", mallory.Addr(), got)
		}
		_ = mallory.Close()
	}
}

// It listens where only this machine can call, and not as somebody whom nobody knows.
func TestConsoleRefuses(t *testing.T) {
	f := newFake(t)
	for _, listen := range []string{"0.0.0.0:0", ":0", "192.0.2.1:80", "[::]:0", "unix:/tmp/x", "unix:x:1", "127.0.0.1", "127.0.0.2:0", "localhost", "console.acme.test:80", ""} {
		if got := f.as(t, f.identity, "console", "--listen", listen); got.status != exitUsage || !strings.Contains(got.stderr, "loopback HOST:PORT") {
			t.Errorf("--listen %q: %+v", listen, got)
		}
	}
	f.answer("GET /v1/whoami", 401, api.NewProblem(api.CodeUnauthorized, "no", ""))
	if got := f.as(t, f.identity, "console"); got.status != exitUnauthenticated || got.stdout != "" {
		t.Errorf("%+v", got)
	}
}
