package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// While an exchange takes long, somebody reads a byte ahead to hear whether the client
// is still there. In these tests something takes longer than that: what the byte
// belongs to must have it in its place.

// alphabet is a body in which no two neighbours are alike.
func alphabet(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + i%26)
	}
	return string(b)
}

// dialSlowly has connections to the upstream take d.
func (e *env) dialSlowly(d time.Duration) {
	dial := e.px.up.backends.dial
	e.px.up.backends.dial = func(ctx context.Context) (net.Conn, error) {
		time.Sleep(d)
		return dial(ctx)
	}
}

const unhurried = noticeAfter + noticeAfter/2

// TestAByteAheadOfABody: the body of a pipelined request comes while the one before it is answered.
func TestAByteAheadOfABody(t *testing.T) {
	heard := make(chan string, 2)
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/a" {
			time.Sleep(2 * unhurried)
		} else {
			heard <- r.Method + " " + r.URL.Path + " " + string(b)
		}
		_, _ = io.WriteString(w, "ok")
	})})
	c := e.dial(e.pki.grant(time.Hour, "* /**"), "http/1.1")
	const host = " HTTP/1.1\r\nHost: localhost\r\n"
	_, _ = io.WriteString(c, "GET /a"+host+"\r\nPOST /b"+host+"Content-Length: 6\r\n\r\n")
	time.Sleep(unhurried)
	_, _ = io.WriteString(c, "abcdef")
	time.Sleep(2 * unhurried)
	_, _ = io.WriteString(c, "GET /c"+host+"Connection: close\r\n\r\n")
	_, _ = io.Copy(io.Discard, c)
	for _, want := range []string{"POST /b abcdef", "GET /c "} {
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("the upstream was asked %q, want %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("the upstream was not asked %q", want)
		}
	}
}

// TestAByteAheadWhileDialing: the body comes, or goes on coming, while the upstream is dialed.
func TestAByteAheadWhileDialing(t *testing.T) {
	body := alphabet(20_000)
	for name, tc := range map[string]struct {
		head, tail string
		pause      time.Duration // before what is left of the body
	}{
		"of a known length":        {fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)), "", unhurried},
		"in chunks":                {fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", len(body)), "\r\n0\r\n\r\n", unhurried},
		"in chunks, later":         {fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", len(body)), "\r\n0\r\n\r\n", 4 * unhurried},
		"of a known length, later": {fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)), "", 4 * unhurried},
	} {
		t.Run(name, func(t *testing.T) {
			heard := make(chan string, 1)
			e := start(t, options{upstream: upstreamServer(t, func(_ http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				heard <- string(b)
			})})
			e.dialSlowly(2 * unhurried)
			c := e.dial(e.pki.grant(time.Hour, "* /**"), "http/1.1")
			_ = c.SetDeadline(time.Now().Add(patience)) // a lost byte is waited for
			_, _ = io.WriteString(c, "POST /a HTTP/1.1\r\nHost: localhost\r\n"+tc.head+body[:100])
			time.Sleep(tc.pause)
			_, _ = io.WriteString(c, body[100:5000])
			time.Sleep(50 * time.Millisecond)
			_, _ = io.WriteString(c, body[5000:]+tc.tail)
			line, err := bufio.NewReader(c).ReadString('\n')
			if !strings.Contains(line, " 200 ") {
				t.Errorf("answer %q, %v", line, err)
			}
			select {
			case got := <-heard:
				if got != body {
					i := 0
					for i < min(len(got), len(body)) && got[i] == body[i] {
						i++
					}
					t.Errorf("the upstream has %d bytes of %d, and others from the %d. on: %.8q", len(got), len(body), i, got[i:])
				}
			case <-time.After(patience):
				t.Error("the upstream has not heard all of the body")
			}
		})
	}
}

// TestAByteAheadOfATunnel: the client goes on speaking before the upstream has switched.
func TestAByteAheadOfATunnel(t *testing.T) {
	heard := make(chan string, 1)
	e := start(t, options{upstream: rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
		}
		time.Sleep(2 * unhurried)
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		b := make([]byte, 3)
		_, _ = io.ReadFull(r, b)
		heard <- string(b)
	})})
	c := e.dial(e.pki.grant(time.Hour, "* /**"), "http/1.1")
	_, _ = io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nAB")
	time.Sleep(unhurried)
	_, _ = io.WriteString(c, "C")
	select {
	case got := <-heard:
		if got != "ABC" {
			t.Errorf("the upstream hears %q, the client said ABC", got)
		}
	case <-time.After(patience):
		t.Error("the upstream has heard nothing")
	}
}

// TestABodyIsPassedOverOnce. The attack: a text in a body becomes a request, of whoever
// sent the body. What went to an upstream that gave no answer was read already.
func TestABodyIsPassedOverOnce(t *testing.T) {
	for name, upstream := range map[string]string{
		"nobody is there": "http://127.0.0.1:1",
		"it hangs up":     rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) { _, _ = r.ReadString('\n'); _ = c.Close() }),
		"it answers badly": rawUpstream(t, func(_ int, c net.Conn, r *bufio.Reader) {
			_, _ = r.ReadString('\n')
			_, _ = io.WriteString(c, "what?\r\n\r\n")
		}),
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, options{upstream: upstream})
			hidden := "DELETE /victim HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
			second := fmt.Sprintf("POST /b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", len(hidden))
			first := fmt.Sprintf("POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(second), strings.Repeat("x", len(second)))
			e.raw(e.pki.grant(time.Hour, "* /**"), first+second+hidden)
			for _, r := range e.records() {
				if r.Path == "/victim" {
					t.Error("the body of a request was taken for a request")
				}
			}
		})
	}
}
