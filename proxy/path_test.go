package proxy

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAmbiguousPaths: every one of these has opened something in some pair of
// proxy and upstream. The grant allows everything, so that only the reading refuses.
func TestAmbiguousPaths(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the upstream was asked for %s", r.RequestURI) })})
	cert := e.pki.grant(time.Hour, "* /**")
	for _, target := range []string{
		"/a/../b", "/..", "/../", "/a/..", "/./a", "/a/.", "/a//b", "//", "//evil.test/x", "/a//", "/%2e%2e/b", "/a/%2e%2e/b", "/a/%2E", "/a/.%2e/b",
		"/a%2fb", "/a%2Fb", "/a%5cb", "/a%5Cb", `/a\b`, `/..\b`, "/..;/b", "/a;x=1/b", "/a;", "/;", "/a%00b", "/a%0ab", "/a%0d%0ab", "/a%7f", "/%61dmin", "/%7Euser", "/a%2Db",
		"/a%", "/a%4", "/a%zz", "/a%u0041", "/%c0%ae%c0%ae/b", "/%ff", "/a%C0%AF", "/caf\xc3\xa9", "/a#b", "/a?b#c", "/a%23/../b", "*", "http://localhost/a", "https://localhost/a", "a", "?x",
	} {
		got := e.raw(cert, "GET "+target+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%q: %.80q", target, got)
		}
	}
	// The same over HTTP/2, as far as a client will send it.
	c := e.client(cert, true)
	for _, target := range []string{"/a/../b", "/a/%2e%2e/b", "/a%2fb", "/..;/b", "/a//b", "/a%5cb", "/%61dmin", "/a;x=1"} {
		a, err := e.opaque(c, "GET", target)
		if err != nil || a.status != 400 {
			t.Errorf("h2 %q: %d %v", target, a.status, err)
		}
	}
	for _, r := range e.records() {
		if r.Kind == kindRequest && (r.Decision != decisionRefuse || r.Status != 400) {
			t.Errorf("record %+v", r)
		}
	}
}

// opaque sends a target as it stands.
func (e *env) opaque(c *http.Client, method, target string) (answer, error) {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, "https://"+e.addr+"/", http.NoBody)
	if err != nil {
		return answer{}, err
	}
	req.URL.Opaque, req.URL.Path = target, ""
	res, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	return answer{status: res.StatusCode, header: res.Header}, nil
}

// TestSemicolonByConfiguration: §4 lets a service allow ";".
func TestSemicolonByConfiguration(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) { s.AllowSemicolon = true }})
	cert := e.pki.grant(time.Hour, "* /**")
	a := e.must(e.client(cert, false), "GET", "/a;x=1/b")
	if a.status != 200 || a.seen(t).Target != "/a;x=1/b" {
		t.Errorf("status %d", a.status)
	}
	if got := e.raw(cert, "GET /..;/b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("/..;/b: %.80q", got)
	}
}

// TestHosts: a Host that is not the service's could choose another virtual host.
func TestHosts(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		e := start(t, options{upstream: upstreamServer(t, echoHandler), edit: func(s *Settings) { s.Hosts = append(s.Hosts, "::1") }})
		c := e.client(e.pki.grant(time.Hour, "GET /**"), h2)
		for host, ok := range map[string]bool{
			"localhost": true, "localhost:1234": true, "LOCALHOST": true, "payments.acme.test:443": true, "127.0.0.1": true, "[::1]": true, "[::1]:80": true,
			"evil.test": false, "payments.acme.test.": false, "payments.acme.test:": false, "payments.acme.test:x": false, "payments.acme.test:99999": false,
			"xpayments.acme.test": false, "payments.acme.test.evil.test": false, "localhost,evil.test": false, "[::2]": false, "[localhost]": true,
		} {
			if host == "[localhost]" {
				continue // net/http's client does not send it
			}
			a, err := e.do(c, "GET", "/a", "Host", host)
			if err != nil {
				t.Errorf("%q: %v", host, err)
				continue
			}
			if (a.status == 200) != ok {
				t.Errorf("%q: status %d", host, a.status)
			}
			if !ok && a.status != http.StatusMisdirectedRequest && a.status != http.StatusBadRequest {
				t.Errorf("%q: status %d", host, a.status)
			}
		}
	})
}
