package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestConnectorCall: calls of the process itself, without a listener, go out as those of programs.
func TestConnectorCall(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/accounts/moved" {
			http.Redirect(w, r, "/accounts/1", http.StatusFound)
			return
		}
		echoHandler(w, r)
	})})
	c, err := NewConnector(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "GET,POST /accounts/**")}))
	if err != nil {
		t.Fatal(err)
	}
	end := c.Begin()
	call := func(method, target string, h http.Header, body string) (answer, error) {
		res, err := c.Call(t.Context(), method, target, h, []byte(body))
		if err != nil {
			return answer{}, err
		}
		defer func() { _ = res.Body.Close() }()
		text, err := io.ReadAll(res.Body)
		return answer{res.StatusCode, res.Header, string(text)}, err
	}
	a, err := call("POST", "/accounts/a%20b?x=%zz;y", http.Header{"X-Mine": {"1"}}, "hello")
	if err != nil || a.status != 200 {
		t.Fatalf("%+v, %v", a, err)
	}
	if s := a.seen(t); s.Method != "POST" || s.Target != "/accounts/a%20b?x=%zz;y" || s.Host != "payments.acme.test" ||
		s.Header.Get("X-Mine") != "1" || s.Header.Get("X-Hallpass-Subject") != alice {
		t.Errorf("%+v", s)
	}
	if a, err := call("GET", "/other", nil, ""); err != nil || a.status != 403 || a.problem(t).Code != reasonOutsideScope {
		t.Errorf("outside of the scope: %+v, %v", a, err)
	}
	if a, err := call("GET", "/accounts/moved", nil, ""); err != nil || a.status != 302 {
		t.Errorf("a redirection: %+v, %v", a, err)
	}
	end()
	end()
	if _, err := call("GET", "/accounts/1", nil, ""); err == nil {
		t.Error("it goes on after its end")
	}
}

// TestConnectorCallRefuses what would not be a call of the service: the connector's own streams
// and renewals, other hosts, and what becomes something else than HTTP.
func TestConnectorCallRefuses(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	c, err := NewConnector(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "* /**")}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Begin()()
	for _, bad := range []struct{ method, target, upgrade string }{
		{"CONNECT", "/" + streamTarget, ""},
		{"CONNECT", renewTarget, ""},
		{"GET", "", ""},
		{"GET", "*", ""},
		{"GET", "accounts/1", ""},
		{"GET", "http://evil.test/", ""},
		{"GET", "//evil.test/", ""},
		{"GET", "/ws", "websocket"},
	} {
		h := http.Header{}
		if bad.upgrade != "" {
			h.Set("Upgrade", bad.upgrade)
		}
		res, err := c.Call(t.Context(), bad.method, bad.target, h, nil)
		if err == nil {
			_ = res.Body.Close()
		}
		if no, ok := errors.AsType[*CallError](err); !ok || no.Code != "bad_call" {
			t.Errorf("%s %s: %v", bad.method, bad.target, err)
		}
	}
	// What HTTP itself cannot carry is refused before it is on the wire.
	for _, bad := range []struct{ method, target, name, value string }{
		{"GET /a HTTP/1.1\r\nX: y\r\n\r\nGET", "/b", "X", "y"},
		{"GET", "/a", "X", "y\r\nHost: evil.test"},
		{"GET", "/a", "X: y\r\nHost", "evil.test"},
	} {
		res, err := c.Call(t.Context(), bad.method, bad.target, http.Header{bad.name: {bad.value}}, nil)
		if err == nil {
			_ = res.Body.Close()
			t.Errorf("%q %q: %q passes", bad.method, bad.name, bad.value)
		}
	}
	if a, err := c.Call(t.Context(), "GET", "/a\r\nHost: evil.test\r\n\r\n", nil, nil); err == nil {
		_ = a.Body.Close()
		if a.StatusCode != 400 {
			t.Errorf("a path with a line break: %d", a.StatusCode)
		}
	}
	for _, r := range e.records() {
		if r.Kind == kindRequest && r.Status == 200 {
			t.Errorf("it reached the service: %+v", r)
		}
	}
}

// TestConnectorCallTrouble: what keeps a call back is told in words of ours.
func TestConnectorCallTrouble(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	c, err := NewConnector(e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "* /**")}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Begin()()
	e.shutdown()
	res, err := c.Call(t.Context(), "GET", "/a", nil, nil)
	if err == nil {
		_ = res.Body.Close()
	}
	no, ok := errors.AsType[*CallError](err)
	if !ok || no.Code != "proxy_unreachable" || strings.Contains(no.Detail, e.addr) || no.Unwrap() == nil {
		t.Errorf("%v", err)
	}
}
