package proxy

import (
	"encoding/json"
	"html"
	"net/http"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/grant"
)

// both runs a test over HTTP/1.1 and HTTP/2.
func both(t *testing.T, run func(t *testing.T, h2 bool)) {
	t.Run("http1", func(t *testing.T) { run(t, false) })
	t.Run("http2", func(t *testing.T) { run(t, true) })
}

// TestAllowed: what is in scope reaches the upstream byte for byte, with the
// client's word for who it is replaced by ours, and is recorded once.
func TestAllowed(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, echoHandler)})
		id := newGrantID(t)
		cert := e.pki.grantWithID(id, time.Hour, "GET,HEAD /accounts/**", "POST /refunds/*")
		c := e.client(cert, h2)
		a := e.must(c, "GET", "/accounts/a%20b/!$&'()*+,=:@?q=%zz&a;b=1&&c=%2F",
			"X-Forwarded-Client-Cert", "URI=spiffe://acme.test/user/root", "x_hallpass_subject", "spiffe://acme.test/user/root",
			"X-Hallpass-Grant", "other", "X.Hallpass.Subject", "root", "X-Forwarded-For", "10.0.0.1", "Forwarded", "for=10.0.0.1", "X-Real-Ip", "10.0.0.1",
			"Host", "payments.acme.test", "Accept", "text/plain", "Proxy-Authorization", "Basic eDp5")
		if a.status != 200 {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
		s := a.seen(t)
		if want := "/accounts/a%20b/!$&'()*+,=:@?q=%zz&a;b=1&&c=%2F"; s.Target != want {
			t.Errorf("target %q, want %q", s.Target, want)
		}
		if s.Host != "payments.acme.test" {
			t.Errorf("host %q", s.Host)
		}
		want := http.Header{
			"Accept":                  {"text/plain"},
			"User-Agent":              {"Go-http-client/1.1"},
			"X-Forwarded-For":         {"127.0.0.1"},
			"X-Forwarded-Proto":       {"https"},
			"X-Hallpass-Subject":      {alice},
			"X-Hallpass-Grant":        {id},
			"X-Hallpass-Service":      {"payments"},
			"X-Forwarded-Client-Cert": {"By=spiffe://acme.test/service/payments;Hash=" + hexSum(cert.Leaf) + ";URI=" + cert.Leaf.URIs[0].String()},
		}
		if h2 {
			want["User-Agent"] = []string{"Go-http-client/2.0"}
		}
		if diff := cmp.Diff(want, s.Header); diff != "" {
			t.Errorf("headers at the upstream (-want +got):\n%s", diff)
		}
		r := e.record("the request", func(r logLine) bool { return r.Kind == kindRequest })
		if r.Decision != decisionAllow || r.Grant != id || r.Subject != alice || r.Issuer != hexSum(e.pki.grantIssuer.cert) || r.Permission != "GET,HEAD /accounts/**" ||
			r.Path != "/accounts/a%20b/!$&'()*+,=:@" || r.Method != "GET" || r.Status != 200 || r.BytesOut != int64(len(a.body)) || r.Event != "end" || r.Conn == 0 {
			t.Errorf("record %+v", r)
		}
	})
}

// TestUploads: bodies go up whole, with and without a length, and come down whole.
func TestUploads(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, echoHandler)})
		c := e.client(e.pki.grant(time.Hour, "* /**"), h2)
		text := strings.Repeat("0123456789abcdef", 20000)
		for _, length := range []int64{int64(len(text)), -1} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+e.addr+"/upload", strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = length
			req.Header.Set("Expect", "100-continue")
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			var s seen
			err = json.NewDecoder(res.Body).Decode(&s)
			_ = res.Body.Close()
			if err != nil || s.Body != text {
				t.Errorf("length %d: %v, %d bytes arrived", length, err, len(s.Body))
			}
		}
		r := e.record("the upload", func(r logLine) bool { return r.Kind == kindRequest })
		if r.BytesIn != int64(len(text)) {
			t.Errorf("bytes_in %d", r.BytesIn)
		}
	})
}

// TestDenied: an identity, and a grant of something else, get 403 and the exact
// command; the upstream hears nothing.
func TestDenied(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") })})
		tests := []struct {
			name, method, path, reason, permission string
			identity                               bool
		}{
			{"an identity", "GET", "/accounts/7?x=1", reasonNoGrant, "GET /accounts/7", true},
			{"another path", "GET", "/admin", reasonOutsideScope, "GET /admin", false},
			{"another method", "DELETE", "/accounts/7", reasonOutsideScope, "DELETE /accounts/7", false},
			{"HEAD is not GET", "HEAD", "/accounts/7", reasonOutsideScope, "", false},
			{"the path above", "GET", "/accounts", reasonOutsideScope, "GET /accounts", false},
			{"the root", "GET", "/", reasonOutsideScope, "GET /", false},
			{"a quote and a dollar", "GET", "/a'$(reboot)%60x%60", reasonOutsideScope, "GET /a'$(reboot)%60x%60", false},
			{"an escape", "POST", "/caf%C3%A9", reasonOutsideScope, "POST /caf%C3%A9", false},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				e := e.with(t)
				cert := e.pki.grant(time.Hour, "GET /accounts/**")
				if tt.identity {
					cert = e.pki.identity(alice)
				}
				a := e.must(e.client(cert, h2), tt.method, tt.path)
				if a.status != http.StatusForbidden {
					t.Fatalf("status %d: %s", a.status, a.body)
				}
				r := e.record("the denial", func(r logLine) bool { return r.Path == pathOf(tt.path) && r.Method == tt.method })
				if r.Decision != decisionDeny || r.Reason != tt.reason || r.Status != 403 || r.Subject != alice || (r.Grant == "") != tt.identity || r.Serial == "" {
					t.Errorf("record %+v", r)
				}
				if tt.permission == "" {
					return
				}
				p := a.problem(t)
				if a.header.Get("Content-Type") != "application/problem+json" || a.header.Get("Cache-Control") != "no-store" {
					t.Errorf("headers %v", a.header)
				}
				if p.Code != tt.reason || p.Status != 403 || p.Service != "payments" || p.Title != "Forbidden" {
					t.Errorf("problem %+v", p)
				}
				want, err := grant.ParsePermission(tt.permission)
				if err != nil {
					t.Fatal(err)
				}
				if p.Permission != want.String() {
					t.Errorf("permission %q, want %q", p.Permission, want)
				}
				checkCommand(t, p.Command, want)
			})
		}
	})
}

// checkCommand has a shell take the command apart: the words must be these and
// no more, whatever the path held.
func checkCommand(t *testing.T, command string, permission grant.Permission) {
	t.Helper()
	rest, ok := strings.CutPrefix(command, "hallpass ")
	if !ok || strings.Contains(command, `\`) {
		t.Fatalf("command %q", command)
	}
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", `set -f; printf '%s\n' `+rest).Output()
	if err != nil {
		t.Fatalf("command %q: %v", command, err)
	}
	words := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(words) != 9 {
		t.Fatalf("the shell reads %q as %q", command, words)
	}
	asked, err := grant.ParsePermission(words[4])
	if err != nil || asked != permission {
		t.Errorf("%q asks for %q, %v; want %q", command, words[4], err, permission)
	}
	words[4] = "P"
	if got := strings.Join(words, " "); got != "request create payments --allow P --for 30m --reason …" {
		t.Errorf("the shell reads %q as %q", command, got)
	}
}

// TestShellQuote: no byte of a permission's text can leave its quotes.
func TestShellQuote(t *testing.T) {
	for _, s := range []string{"", "a b", "'", "''", "a'b'c", "$(reboot)", "`reboot`", "; reboot", "\\", "\\'", "!", "\n", "-x", "*", "~"} {
		out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", "printf %s "+shellQuote(s)+"x").Output()
		if err != nil || string(out) != s+"x" {
			t.Errorf("%q quoted as %s comes out as %q, %v", s, shellQuote(s), out, err)
		}
	}
}

// TestBrowserPage: a person's browser gets a page, in which nothing of the path is markup.
func TestBrowserPage(t *testing.T) {
	e := start(t, options{})
	a := e.must(e.client(e.pki.grant(time.Hour, "GET /a"), true), "GET", "/x'&(<%3Cscript%3E", "Accept", "text/html,application/xhtml+xml")
	if a.status == http.StatusBadRequest { // "<" is not for a path
		a = e.must(e.client(e.pki.grant(time.Hour, "GET /a"), true), "GET", "/x'&(%3Cscript%3E", "Accept", "text/html,application/xhtml+xml")
	}
	if a.status != 403 || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
		t.Fatalf("status %d, %v", a.status, a.header)
	}
	if strings.Contains(a.body, "<script") || strings.Contains(a.body, "x'&(") || !strings.Contains(a.body, "hallpass request create payments") {
		t.Errorf("page:\n%s", a.body)
	}
	if !strings.Contains(a.header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("headers %v", a.header)
	}
}

// TestRequestURL: who is refused for a permission is led to where they ask for it, and nobody
// decides by the path of a call where that is.
func TestRequestURL(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		const portal = "https://access.acme.test/ask"
		e := start(t, options{edit: func(s *Settings) { s.RequestURL = portal }})
		c := e.client(e.pki.grant(time.Hour, "GET /a"), h2)
		const path = `/x'&(%22%3E%26service=other`
		a := e.must(c, "GET", path)
		pr := a.problem(t)
		u, err := url.Parse(pr.RequestURL)
		if err != nil || !strings.HasPrefix(pr.RequestURL, portal+"?") || u.Query().Get("allow") != pr.Permission || len(u.Query()["service"]) != 1 || u.Query().Get("service") != "payments" {
			t.Errorf("%v, %v", u.Query(), err)
		}
		a = e.must(c, "GET", path, "Accept", "text/html")
		link := regexp.MustCompile(`<a class="ask" href="([^"]*)">Request access</a>`).FindStringSubmatch(a.body)
		if len(link) != 2 || html.UnescapeString(link[1]) != pr.RequestURL || a.header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%v of\n%s\n%v", link, a.body, a.header)
		}
		if a := e.must(c, "GET", "/a//b", "Accept", "text/html"); strings.Contains(a.body, "Request access") {
			t.Errorf("for what nobody can be granted:\n%s", a.body)
		}
	})
}

// TestRefusedHeaders: an upstream that honours any of these would serve another
// request than was matched.
func TestRefusedHeaders(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was reached") })})
		c := e.client(e.pki.grant(time.Hour, "* /**"), h2)
		for _, h := range []string{
			"X-HTTP-Method-Override", "X-Http-Method", "X-Method-Override", "x_http_method_override", "X-HTTP_Method.Override",
			"X-Original-URL", "X-Rewrite-URL", "X-Original-Uri", "x_original_url", "X-Override-Url",
		} {
			a := e.must(c, "POST", "/a", h, "DELETE")
			if a.status != 400 || a.problem(t).Code != "override_header" {
				t.Errorf("%s: %d %s", h, a.status, a.body)
			}
		}
		if a := e.must(c, "POST", "/a", "Content-Type", "text/plain", "Content-Type", "application/grpc"); a.status != 400 {
			t.Errorf("two content types: %d", a.status)
		}
		for _, m := range []string{"TRACE", "TRACK", "get", "Get", "G-É"} {
			a, err := e.do(c, m, "/a")
			if err == nil && a.status != 400 {
				t.Errorf("%s: %d", m, a.status)
			}
		}
	})
}

// TestUpstreamDown: the client learns that, and no more.
func TestUpstreamDown(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: "http://127.0.0.1:1"})
		a := e.must(e.client(e.pki.grant(time.Hour, "GET /**"), h2), "GET", "/a")
		if a.status != http.StatusBadGateway || strings.Contains(a.body, "127.0.0.1") {
			t.Errorf("%d %s", a.status, a.body)
		}
		r := e.record("it", func(r logLine) bool { return r.Kind == kindRequest })
		if r.Decision != decisionAllow || r.Reason != reasonUpstream || r.Status != 502 {
			t.Errorf("record %+v", r)
		}
	})
}

// TestUpstreamBreaksOff: half an answer must not look like a whole one.
func TestUpstreamBreaksOff(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("half"))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})})
		if a, err := e.do(e.client(e.pki.grant(time.Hour, "GET /**"), h2), "GET", "/a"); err == nil {
			t.Errorf("got %d %q without an error", a.status, a.body)
		}
		e.record("it", func(r logLine) bool { return r.Reason == reasonUpstreamBroke && r.Status == 200 && r.BytesOut == 4 })
	})
}

// TestResponses: what the upstream answers arrives as it was: status, headers,
// trailers, no invented content type, hop-by-hop headers gone.
func TestResponses(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h["Content-Type"] = nil
			h["X-Many"] = []string{"a", "b"}
			h.Set("Keep-Alive", "timeout=5")
			h.Set("Proxy-Authenticate", "Basic")
			switch r.URL.Path {
			case "/trailers":
				h.Set("Trailer", "X-Sum")
				w.WriteHeader(http.StatusTeapot)
				_, _ = w.Write([]byte("<html>body"))
				h.Set("X-Sum", "42")
				h.Set(http.TrailerPrefix+"X-Late", "43")
			case "/empty":
				w.WriteHeader(http.StatusNoContent)
			}
		})})
		c := e.client(e.pki.grant(time.Hour, "* /**"), h2)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+e.addr+"/trailers", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		a := answer{status: res.StatusCode, header: res.Header}
		buf := make([]byte, 64)
		n := 0
		for err == nil {
			var k int
			k, err = res.Body.Read(buf[n:])
			n += k
		}
		_ = res.Body.Close()
		if a.status != http.StatusTeapot || string(buf[:n]) != "<html>body" || cmp.Diff([]string{"a", "b"}, a.header["X-Many"]) != "" {
			t.Errorf("%d %q %v", a.status, buf[:n], a.header)
		}
		for _, gone := range []string{"Content-Type", "Keep-Alive", "Proxy-Authenticate", "Connection"} {
			if v, ok := a.header[gone]; ok {
				t.Errorf("%s: %v", gone, v)
			}
		}
		if res.Trailer.Get("X-Sum") != "42" || res.Trailer.Get("X-Late") != "43" {
			t.Errorf("trailers %v", res.Trailer)
		}
		if a := e.must(c, "GET", "/empty"); a.status != http.StatusNoContent {
			t.Errorf("status %d", a.status)
		}
	})
}

// TestRequestTrailers: those announced arrive, ours to say do not, nor what an
// HTTP/1 client slips in unannounced.
func TestRequestTrailers(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	got := e.raw(e.pki.grant(time.Hour, "POST /**"), "POST /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Ok, X-Hallpass-Subject\r\n\r\n"+
		"3\r\nabc\r\n0\r\nX-Ok: 1\r\nX-Hallpass-Subject: root\r\nX_Hallpass_Grant: root\r\nX-Sneaky: 2\r\n\r\n")
	_, body, ok := strings.Cut(got, "\r\n\r\n")
	if !ok || !strings.HasPrefix(got, "HTTP/1.1 200") {
		t.Fatalf("%q", got)
	}
	s := answer{status: 200, body: body}.seen(t)
	if diff := cmp.Diff(http.Header{"X-Ok": {"1"}}, s.Trailer); diff != "" || s.Body != "abc" {
		t.Errorf("body %q, trailers (-want +got):\n%s", s.Body, diff)
	}
	if cmp.Diff([]string{alice}, s.Header["X-Hallpass-Subject"]) != "" {
		t.Errorf("subject %v", s.Header["X-Hallpass-Subject"])
	}
}

// TestBodyOfAGet: an upstream that overlooks it must not take it for a request:
// the connection is not used again.
func TestBodyOfAGet(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if !r.Close {
			t.Error("the connection is to be used again")
		}
		echoHandler(w, r)
	})})
	got := e.raw(e.pki.grant(time.Hour, "GET /a"), "GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 26\r\n\r\nGET /admin HTTP/1.1\r\nX: \r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, `GET /admin`) {
		t.Errorf("%q", got)
	}
}
