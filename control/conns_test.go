package control

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
)

// from opens a TCP connection to a node from an address of this machine, and
// says nothing on it.
func from(t *testing.T, node *running, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := d.DialContext(t.Context(), "tcp", node.api.Addr().String())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// closedByPeer waits until the other end has closed a connection, not for ever.
func closedByPeer(t *testing.T, conn net.Conn) bool {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func (l *apiListener) counts() (conns, fresh, callers int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns), len(l.fresh), len(l.callers)
}

// slots are the limits of a node with few places, whose handshakes never run
// out of time.
func slots(l Limits) func(*Config) {
	return func(cfg *Config) {
		l.Tick, l.Heartbeat, l.Header = cfg.Limits.Tick, cfg.Limits.Heartbeat, 10*time.Minute
		cfg.Limits = l
	}
}

// TestFloodOfSilentConnections: whoever connects and says nothing takes places
// from its own address first, and keeps nobody out.
func TestFloodOfSilentConnections(t *testing.T) {
	t.Parallel()
	c := newCluster(t, slots(Limits{Handshakes: 12, HandshakesPerAddress: 4}))
	node := c.follower()
	quiet := from(t, node, "127.0.0.9")
	var flood []net.Conn
	for range 20 {
		flood = append(flood, from(t, node, "127.0.0.2"))
	}
	_, err := c.once(node, "user/alice").WhoAmI(t.Context(), api.Stale())
	must(t, err)
	if !closedByPeer(t, flood[0]) {
		t.Error("the oldest silent connection was left open")
	}
	if _, fresh, _ := node.api.counts(); fresh > 5 {
		t.Errorf("%d silent connections of two addresses, one may have 4", fresh)
	}
	// From many addresses at once.
	for i := range 30 {
		flood = append(flood, from(t, node, fmt.Sprintf("127.0.1.%d", 1+i%10)))
	}
	_, err = c.once(node, "user/bob").WhoAmI(t.Context(), api.Stale())
	must(t, err)
	if _, fresh, _ := node.api.counts(); fresh > 12 {
		t.Errorf("%d silent connections, want at most 12", fresh)
	}
	if !closedByPeer(t, quiet) {
		t.Error("the oldest of all was left open")
	}
	if !strings.Contains(c.logs.String(), "reason="+droppedForAddress) || !strings.Contains(c.logs.String(), "reason="+droppedForOthers) {
		t.Error("the log does not say what was dropped")
	}
	for _, conn := range flood {
		must(t, conn.Close())
	}
	c.until("nothing is kept of the flood", func() bool {
		node.api.mu.Lock()
		defer node.api.mu.Unlock()
		return len(node.api.fresh) == 0 && len(node.api.froms) == 0
	})
}

// held is a client on one connection of HTTP/1.1, which stays open.
func (c *cluster) held(node *running, path string) func() (int, api.Problem, error) {
	c.t.Helper()
	cl := c.raw(path, "http/1.1")
	return func() (int, api.Problem, error) {
		var p api.Problem
		resp, err := cl.Get(node.url() + "/v1/whoami?stale=true")
		if err != nil {
			return 0, p, err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode >= 400 {
			err = json.NewDecoder(resp.Body).Decode(&p)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, p, err
	}
}

// TestConnectionsOfOneCaller: one identity cannot take all places.
func TestConnectionsOfOneCaller(t *testing.T) {
	t.Parallel()
	c := newCluster(t, slots(Limits{ConnectionsPerCaller: 2}))
	node := c.follower()
	first := c.raw("user/alice", "http/1.1")
	ask := func(cl *http.Client) int {
		resp, err := cl.Get(node.url() + "/v1/whoami?stale=true")
		must(t, err)
		defer func() { _ = resp.Body.Close() }()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	second, third, bob := c.held(node, "user/alice"), c.held(node, "user/alice"), c.held(node, "user/bob")
	if got := ask(first); got != http.StatusOK {
		t.Fatalf("the first: %d", got)
	}
	if got, _, err := second(); got != http.StatusOK {
		t.Fatalf("the second: %d %v", got, err)
	}
	status, p, err := third()
	if status != http.StatusTooManyRequests || p.Code != api.CodeLimit || !strings.Contains(p.Detail, "user/alice has 2 connections") || p.Next == "" {
		t.Errorf("the third: %d %+v %v", status, p, err)
	}
	if got, _, err := bob(); got != http.StatusOK {
		t.Errorf("another caller: %d %v", got, err)
	}
	first.CloseIdleConnections()
	c.until("a place is free", func() bool {
		got, _, err := third()
		must(t, err)
		return got == http.StatusOK
	})
}

// TestCallsOfOneCaller: streams and blocking reads hold places, too.
func TestCallsOfOneCaller(t *testing.T) {
	t.Parallel()
	c := newCluster(t, slots(Limits{CallsPerCaller: 2}))
	node := c.follower()
	alice := c.raw("user/alice")
	var cut []context.CancelFunc
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cut = append(cut, cancel)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, node.url()+"/v1/revocations", nil)
		must(t, err)
		req.Header.Set("Accept", "text/event-stream")
		resp, err := alice.Do(req) //nolint:bodyclose // it is the stream, closed with its context
		must(t, err)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("a stream: %s", resp.Status)
		}
	}
	ask := func(cl *http.Client) int {
		resp, err := cl.Get(node.url() + "/v1/whoami?stale=true")
		must(t, err)
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") == "" {
			t.Error("no word on when to come back")
		}
		return resp.StatusCode
	}
	if got := ask(alice); got != http.StatusTooManyRequests {
		t.Errorf("a third call: %d", got)
	}
	if got := ask(c.raw("user/bob")); got != http.StatusOK {
		t.Errorf("another caller: %d", got)
	}
	cut[0]()
	c.until("a call has ended", func() bool { return ask(alice) == http.StatusOK })
}

// TestFullOfCallers: those who are in stay in.
func TestFullOfCallers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, slots(Limits{Connections: 2}))
	node := c.follower()
	alice, bob, carol := c.held(node, "user/alice"), c.held(node, "user/bob"), c.held(node, "user/carol")
	for name, ask := range map[string]func() (int, api.Problem, error){"alice": alice, "bob": bob} {
		if got, _, err := ask(); got != http.StatusOK {
			t.Fatalf("%s: %d %v", name, got, err)
		}
	}
	if got, _, err := carol(); err == nil {
		t.Errorf("a third connection: %d", got)
	}
	if got, _, err := alice(); got != http.StatusOK {
		t.Errorf("alice, again: %d %v", got, err)
	}
	if conns, _, _ := node.api.counts(); conns != 2 {
		t.Errorf("%d connections", conns)
	}
}

// TestAChainIsNoArrival: TLS looks at a chain before the peer proves that it has
// the key. Somebody else's chain must not make a silent connection one of those
// that stay.
func TestAChainIsNoArrival(t *testing.T) {
	t.Parallel()
	inner := listen(t)
	l := newAPIListener(inner, Limits{HandshakesPerAddress: 1}.filled(), func(string, net.Addr) {})
	defer func() { must(t, l.Close()) }()
	accept := func() *apiConn {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", inner.Addr().String())
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		got, err := l.Accept()
		must(t, err)
		ac, ok := got.(*apiConn)
		if !ok {
			t.Fatalf("accepted a %T", got)
		}
		return ac
	}
	first := accept()
	first.setCaller(&caller{id: spiffeid.RequireFromString("spiffe://acme.test/user/alice")})
	second := accept()
	if _, err := first.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the first was kept: %v", err)
	}
	second.setCaller(first.getCaller())
	connState(tls.Server(second, &tls.Config{MinVersion: tls.VersionTLS13}), http.StateActive)
	third := accept()
	if _, err := second.Write([]byte("x")); err != nil {
		t.Errorf("the second was dropped after its first request: %v", err)
	}
	must(t, errors.Join(second.Close(), third.Close()))
	if conns, fresh, callers := l.counts(); conns+fresh+callers != 0 {
		t.Errorf("%d connections, %d fresh, %d callers are left", conns, fresh, callers)
	}
}

// TestSourceOf: one machine has one place to flood from.
func TestSourceOf(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.7:1234": "192.0.2.7/32", "[::ffff:192.0.2.7]:1": "192.0.2.7/32",
		"[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", address)
		must(t, err)
		if got := sourceOf(a).String(); got != want {
			t.Errorf("%s counts as %s, want %s", address, got, want)
		}
	}
}

// TestRationed: a flood of refusals leaves a bounded number of lines, and how
// many it was.
func TestRationed(t *testing.T) {
	t.Parallel()
	var r rationed
	now, lines := time.Now(), 0
	for range 1000 {
		if _, ok := r.allow(now); ok {
			lines++
		}
	}
	if lines != refusalLines {
		t.Errorf("%d lines in one second, want %d", lines, refusalLines)
	}
	if unlogged, ok := r.allow(now.Add(time.Second)); !ok || unlogged != 1000-refusalLines {
		t.Errorf("a second later: %v, and %d were not logged", ok, unlogged)
	}
}
