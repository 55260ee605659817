package testenv_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/testenv"
)

// echo is a program that knows nothing of certificates, talking to a service of bytes.
type echo struct {
	t *testing.T
	net.Conn
}

func newEcho(t *testing.T, address string) echo {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return echo{t, c}
}

// say demands the echo of text.
func (e echo) say(text string) {
	e.t.Helper()
	if err := e.exchange(text); err != nil {
		e.t.Fatalf("%q: %v", text, err)
	}
}

func (e echo) exchange(text string) error {
	if err := e.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(e, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(e, got); err != nil {
		return err
	}
	if string(got) != text {
		return errors.New("another echo: " + string(got))
	}
	return nil
}

// refused demands that a new connection carries nothing.
func refused(t *testing.T, address string) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return // reset at once
	}
	defer func() { _ = c.Close() }()
	if err := (echo{t, c}).exchange("anyone?"); err == nil {
		t.Error("a connection was carried without a certificate")
	}
}

func tcpProxy(env *testenv.Env) *testenv.Proxy {
	return env.Proxy("payments", testenv.ProxyOptions{Upstream: env.TCPUpstream(), Protocol: "tcp"})
}

// ahead is a clock that can be put forward.
type ahead struct{ by atomic.Int64 }

func (a *ahead) now() time.Time { return time.Now().Add(time.Duration(a.by.Load())) }

// serials are the certificates of the proxy's tcp connections, in the order in
// which they began.
func serials(t *testing.T, p *testenv.Proxy) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(accessLog(t, p)) {
		if strings.Contains(line, `"event":"open"`) {
			_, rest, _ := strings.Cut(line, `"serial":"`)
			serial, _, _ := strings.Cut(rest, `"`)
			out = append(out, serial)
		}
	}
	return out
}

// TestConnectTCPRenews: connections that are open go on with the renewed certificate,
// and new ones come with it, all in one connection to the proxy. With every control
// node dead both go on, new ones come with the certificate that there is, and when
// that has expired nothing new is carried, until the nodes are back.
func TestConnectTCPRenews(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p := tcpProxy(env)
	grant := env.Approve("bob", env.Request("alice", "payments", time.Hour, "tcp")).ID
	var clock ahead
	c := env.Connector(p, testenv.ConnectorOptions{Who: "alice", Grant: grant, TCP: true, Now: clock.now})

	first := newEcho(t, c.Address())
	first.say("before the renewal")
	cert, err := c.Source.Certificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	life := time.Until(cert.Leaf.NotAfter)
	clock.by.Store(int64(life * 3 / 5))
	env.Eventually("the certificate is renewed", func() bool {
		now, err := c.Source.Certificate(t.Context())
		return err == nil && now.Leaf.SerialNumber.Cmp(cert.Leaf.SerialNumber) != 0
	})
	env.Eventually("it is proven in band", func() bool { return strings.Contains(accessLog(t, p), `"kind":"renewal"`) })
	second := newEcho(t, c.Address())
	second.say("after the renewal")
	first.say("still here")
	got := serials(t, p)
	if len(got) != 2 || got[0] == got[1] {
		t.Errorf("connections with the certificates %v, want two", got)
	}

	for _, n := range env.Nodes() {
		n.Kill()
	}
	clock.by.Add(int64(life / 4)) // past half of what was left of the second: a renewal is due, and cannot be had
	third := newEcho(t, c.Address())
	third.say("nobody is waited for")
	first.say("still here")
	second.say("still here")
	got = serials(t, p)
	if len(got) != 3 || got[2] != got[1] {
		t.Errorf("connections with the certificates %v, want the second's again", got)
	}

	clock.by.Add(int64(life)) // for the connector the certificate is over
	refused(t, c.Address())
	third.say("still here: it is the proxy that ends it")

	clock.by.Store(0)
	for _, n := range env.Nodes() {
		n.Start()
	}
	env.WaitReady()
	newEcho(t, c.Address()).say("again")
}

func accessLog(t *testing.T, p *testenv.Proxy) string {
	t.Helper()
	data, err := os.ReadFile(p.AccessLog())
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestConnectTCPEnds: a connection in use ends with its certificate, with no
// control node alive to say so, and looks broken off at the program's end.
func TestConnectTCPEnds(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t, testenv.Options{})
	p := tcpProxy(env)
	grant := env.Approve("bob", env.Request("alice", "payments", 8*time.Second, "tcp")).ID
	c := env.Connector(p, testenv.ConnectorOptions{Who: "alice", Grant: grant, TCP: true})
	busy, idle := newEcho(t, c.Address()), newEcho(t, c.Address())
	busy.say("hello")
	idle.say("hello")
	cert, err := c.Source.Certificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range env.Nodes() {
		n.Kill()
	}
	for err = nil; err == nil; time.Sleep(10 * time.Millisecond) {
		err = busy.exchange("hello")
	}
	// A second is what is promised, and measured by the proxy's own tests; the rest
	// is for a busy machine.
	if late := time.Since(cert.Leaf.NotAfter); late < 0 || late > 10*time.Second {
		t.Errorf("cut %s after NotAfter with %v", late, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("it looks finished: %v", err)
	}
	if _, err := io.Copy(io.Discard, idle); err == nil {
		t.Error("the idle one looks finished")
	}
	refused(t, c.Address())
}
