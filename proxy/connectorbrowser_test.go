package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// TestConnectorForeignPages: a page's request is not taken for what a program
// says to a tcp service, and what a program says is not taken for a page's.
func TestConnectorForeignPages(t *testing.T) {
	up, all := tcpUpstream(t)
	e := start(t, options{upstream: up, edit: tcpService})
	cfg := e.connectorConfig(fixedSource{e.pki.grant(time.Hour, "tcp")})
	cfg.TCP = true
	addr := e.connect(cfg, "127.0.0.1:0")
	const body = "\r\n\r\nHELO evil\r\nFLUSHALL\r\n"
	for name, text := range map[string]string{
		"form":              "POST / HTTP/1.1\r\nHost: " + addr + "\r\nOrigin: https://evil.test\r\nContent-Length: 21" + body,
		"sandboxed form":    "POST / HTTP/1.1\r\nHost: " + addr + "\r\nOrigin: null" + body,
		"image":             "GET /FLUSHALL HTTP/1.1\r\nHost: " + addr + "\r\nSec-Fetch-Site: cross-site" + body,
		"DNS rebinding":     "POST / HTTP/1.1\r\nHost: evil.test" + body,
		"preflight":         "OPTIONS / HTTP/1.1\r\nHost: " + addr + "\r\nOrigin: https://evil.test" + body,
		"websocket":         "GET / HTTP/1.1\r\nHost: " + addr + "\r\nOrigin: https://evil.test\r\nUpgrade: websocket\r\nConnection: Upgrade" + body,
		"a long line":       "GET /" + strings.Repeat("x", maxFirstHead) + " HTTP/1.1\r\nHost: evil.test" + body,
		"a long head":       "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", maxFirstHead) + "\r\nHost: evil.test" + body,
		"half a head":       "GET / HTTP/1.1\r\nHost: " + addr + "\r\n",
		"broken head":       "GET / HTTP/1.1\r\nHost " + addr + body,
		"without a Host":    "GET / HTTP/1.0" + body,
		"bare line feeds":   "GET / HTTP/1.1\nHost: evil.test\n\n",
		"a method of words": "PROPFIND / HTTP/1.1\r\nHost: evil.test" + body,
	} {
		if got, err := say(t, addr, text, true); err == nil {
			t.Errorf("%s: the connection ended well, after %q", name, got)
		}
		select {
		case s := <-all:
			if s.data != "" {
				t.Errorf("%s: the service read %q", name, s.data)
			}
		case <-time.After(patience):
			t.Errorf("%s: the service waits", name)
		}
	}
	for name, text := range map[string]string{
		"nothing":              "",
		"mail":                 "EHLO localhost\r\nQUIT\r\n",
		"a word":               "QUIT",
		"a key":                "GET key\r\n",
		"a key with a slash":   "GET /key\r\nGET /other\r\n",
		"a sentence":           "GET /key in HTTP/2.0\r\n",
		"a program's request":  "POST / HTTP/1.1\r\nHost: " + addr + body,
		"curl's":               "GET / HTTP/1.1\r\nHost: payments.acme.test\r\nUser-Agent: curl/7.88\r\n\r\n",
		"HTTP/2":               "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"a request by a proxy": "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
		"TLS":                  "\x16\x03\x01\x02\x00\x01",
		"a postgres startup":   "\x00\x00\x00\x08\x04\xd2\x16\x2f",
		"much":                 strings.Repeat("GET", 100000),
	} {
		if _, err := say(t, addr, text, true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if s := <-all; s.data != text {
			t.Errorf("%s: the service read %q, %v", name, s.data, s.err)
		}
	}
	// On a socket, which no page can reach, bytes are bytes.
	path := t.TempDir() + "/s"
	e.connect(cfg, "unix:"+path)
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = io.WriteString(c, "POST / HTTP/1.1\r\nHost: evil.test"+body)
	if hc, ok := c.(halfCloser); err != nil || !ok || hc.CloseWrite() != nil {
		t.Fatal(err)
	}
	if s := <-all; !strings.HasSuffix(s.data, body) {
		t.Errorf("the service read %q, %v", s.data, s.err)
	}
}

// TestNotForeign: what is held back is held back for a moment only, and comes out
// as it went in, however it comes.
func TestNotForeign(t *testing.T) {
	c, err := NewConnector((&env{t: t, pki: newPKI(t), addr: "127.0.0.1:1"}).connectorConfig(fixedSource{}))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		for _, pieces := range [][]string{
			{"GET "}, {"G", "ET", " /a"}, {"QUIT", "\r\n"}, {"GET /a", "\n"}, {"GET /a HTTP/1.1\r\n", "Host: localhost\r\n\r\n", "body"},
		} {
			near, far := net.Pipe()
			f := &notForeign{Conn: far, foreign: func(r *http.Request) string { return c.foreign(r, true) }}
			began := time.Now()
			go func() {
				for _, piece := range pieces {
					_, _ = io.WriteString(near, piece)
				}
			}()
			want := strings.Join(pieces, "")
			got := make([]byte, len(want))
			if _, err := io.ReadFull(iotest.OneByteReader(f), got); err != nil || string(got) != want {
				t.Errorf("%q: %q, %v", pieces, got, err)
			}
			if took := time.Since(began); took > firstLineWait {
				t.Errorf("%q was held back for %s", pieces, took)
			}
			_ = near.Close()
			if _, err := f.Read(got); !errors.Is(err, io.EOF) {
				t.Errorf("%q: after the end: %v", pieces, err)
			}
		}
		// Half a head is a page's, after a while.
		near, far := net.Pipe()
		defer func() { _ = near.Close() }()
		f := &notForeign{Conn: far, foreign: func(r *http.Request) string { return c.foreign(r, true) }}
		began := time.Now()
		go func() { _, _ = io.WriteString(near, "GET / HTTP/1.1\r\nHost: localhost\r\n") }()
		if _, err := f.Read(make([]byte, 1)); !errors.Is(err, errForeignPage) || time.Since(began) > headWait {
			t.Errorf("half a head: %v after %s", err, time.Since(began))
		}
	})
}
