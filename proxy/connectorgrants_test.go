package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/grant"
)

// purse is a wallet and an asker without a cluster.
type purse struct {
	env *env

	mu      sync.Mutex // owns what follows
	held    []Held
	lost    error // of Held, where it would have to look
	asked   []string
	decided map[string]chan error // by permission
	refuse  error                 // of Ask
}

func newPurse(e *env) *purse { return &purse{env: e, decided: make(map[string]chan error)} }

// add puts a grant in.
func (p *purse) add(perms ...string) {
	scope, err := grant.ParseScope("payments", perms)
	if err != nil {
		p.env.t.Fatal(err)
	}
	cert := p.env.pki.grant(time.Hour, perms...)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, Held{scope, NewRenewingSource(func(context.Context) (*tls.Certificate, error) { return &cert, nil }, nil)})
}

func (p *purse) Held(_ context.Context, fresh bool) ([]Held, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fresh && p.lost != nil {
		return nil, p.lost
	}
	return append([]Held(nil), p.held...), nil
}

func (p *purse) decision(need string) chan error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.decided[need] == nil {
		p.decided[need] = make(chan error, 1)
	}
	return p.decided[need]
}

func (p *purse) Ask(_ context.Context, need grant.Permission) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, need.String())
	return need.String(), p.refuse
}

func (p *purse) Wait(ctx context.Context, id string) error {
	select {
	case err := <-p.decision(id):
		if err == nil {
			p.add(id)
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *purse) asks() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.asked, "; ")
}

func (p *purse) config(edit func(*ConnectorConfig)) ConnectorConfig {
	cfg := p.env.connectorConfig(nil)
	cfg.Source, cfg.Wallet = nil, p
	if edit != nil {
		edit(&cfg)
	}
	return cfg
}

func (p *purse) onDemand(c *ConnectorConfig) { c.OnDemand = &OnDemand{Asker: p} }

// TestWalletOutOfReach: while nobody can say what is held, nothing is called not granted. Whoever
// is told that they have no grant asks for the one they have, and somebody decides on it again.
func TestWalletOutOfReach(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	p := newPurse(e)
	p.add("GET /a/**")
	p.lost = errors.New("no node answers")
	for name, edit := range map[string]func(*ConnectorConfig){"grants_unknown": nil, "cannot_ask": p.onDemand} {
		addr := e.connect(p.config(edit), "127.0.0.1:0")
		if a, err := plainGet(t, addr, "/a/1"); err != nil || a.status != 200 {
			t.Errorf("%s: what is held already: %+v, %v", name, a, err)
		}
		a, err := plainGet(t, addr, "/b")
		if err != nil || a.status != 503 || a.problem(t).Code != name || a.problem(t).Command != "" {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	if asked := p.asks(); asked != "" {
		t.Errorf("asked for %s", asked)
	}
}

// TestWallet: each call goes out with the grant that allows it, or as the identity
// where that will do, and what nothing allows does not leave.
func TestWallet(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	p := newPurse(e)
	p.add("GET /a/**")
	p.add("POST /b", "grpc a.B/C")
	standing, err := grant.ParseScope("payments", []string{"GET /health"})
	if err != nil {
		t.Fatal(err)
	}
	addr := e.connect(p.config(func(c *ConnectorConfig) {
		c.Standing = &Standing{Identity: fixedSource{e.pki.identity(alice)}, Permissions: standing}
	}), "127.0.0.1:0")
	post := func(path string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+path, strings.NewReader("data"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	for range 2 {
		if a, err := plainGet(t, addr, "/a/1"); err != nil || a.status != 200 {
			t.Errorf("the first grant's: %+v, %v", a, err)
		}
		if status := post("/b"); status != 200 {
			t.Errorf("the second's: %d", status)
		}
	}
	if n := e.px.conns.Load(); n != 2 {
		t.Errorf("%d connections for two grants", n)
	}
	if a, err := plainGet(t, addr, "/c'd"); err != nil || a.status != 403 || a.problem(t).Code != reasonNoGrant || !strings.Contains(a.problem(t).Command, "GET /c%27d") {
		t.Errorf("nobody's: %+v, %v", a, err)
	}
	if a, err := plainGet(t, addr, "/a/..//b"); err != nil || a.status != 400 {
		t.Errorf("of two readings: %+v, %v", a, err)
	}
	// The proxy knows no standing access here: what matters is that it was asked, as alice.
	if a, err := plainGet(t, addr, "/health"); err != nil || a.status != 403 || a.problem(t).Next == "" {
		t.Errorf("%+v, %v", a, err)
	}
	e.record("the identity's call", func(r logLine) bool { return r.Path == "/health" && r.Grant == "" && r.Subject == alice })
	p.mu.Lock()
	p.held = p.held[1:]
	p.mu.Unlock()
	if a, err := plainGet(t, addr, "/a/1"); err != nil || a.status != 403 {
		t.Errorf("of a grant that is over: %+v, %v", a, err)
	}
}

// TestOnDemand: a call for which there is no grant asks for exactly what it needs,
// waits, and is sent once.
func TestOnDemand(t *testing.T) {
	var served atomic.Int64
	e := start(t, options{upstream: upstreamServer(t, func(_ http.ResponseWriter, r *http.Request) {
		served.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
	})})
	p := newPurse(e)
	addr := e.connect(p.config(p.onDemand), "127.0.0.1:0")
	// A body that is never read to its end while nobody has decided.
	body, in := io.Pipe()
	var read atomic.Int64
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+addr+"/x%20y?q=1", io.TeeReader(body, countTo(&read)))
	if err != nil {
		t.Fatal(err)
	}
	const much = 32 << 20
	go func() {
		_, _ = io.CopyN(in, noughts{}, much)
		_ = in.Close()
	}()
	answered := make(chan error, 1)
	go func() {
		res, err := http.DefaultTransport.RoundTrip(req)
		if err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if res.StatusCode != 200 {
				err = errors.New(res.Status)
			}
		}
		answered <- err
	}()
	e.eventually("a request", func() bool { return p.asks() == "PUT /x%20y" })
	was := int64(-1)
	e.eventually("a sender that has to wait", func() bool {
		now := read.Load()
		stands := now == was && now > 0
		was = now
		time.Sleep(50 * time.Millisecond)
		return stands
	})
	if was > much/2 || served.Load() != 0 {
		t.Errorf("%d bytes were taken while nothing was decided, and the service was asked %d times", was, served.Load())
	}
	p.decision("PUT /x%20y") <- nil
	if err := <-answered; err != nil || served.Load() != 1 {
		t.Errorf("%v; served %d times", err, served.Load())
	}
	p.decision("GET /a") <- nil
	if a, err := plainGet(t, addr, "/a"); err != nil || a.status != 200 || p.asks() != "PUT /x%20y; GET /a" {
		t.Errorf("%s: %+v, %v", p.asks(), a, err)
	}
}

// TestOnDemandShares: the same call many times is one request, and one that somebody
// says no to is answered with where to follow it.
func TestOnDemandShares(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	p := newPurse(e)
	addr := e.connect(p.config(p.onDemand), "127.0.0.1:0")
	many := func(path string, n int) []answer {
		out := make([]answer, n)
		var wg sync.WaitGroup
		for i := range out {
			wg.Go(func() {
				a, err := plainGet(t, addr, path)
				if err != nil {
					t.Error(err)
				}
				out[i] = a
			})
		}
		wg.Wait()
		return out
	}
	p.decision("GET /yes") <- nil
	for _, a := range many("/yes", 5) {
		if a.status != 200 {
			t.Errorf("%+v", a)
		}
	}
	p.decision("GET /no") <- fmt.Errorf("%w: bob said no", ErrNotGranted)
	for range 2 { // a program that tries again pesters nobody
		for _, a := range many("/no", 3) {
			if pr := a.problem(t); a.status != 403 || pr.Code != "request_denied" || !strings.Contains(pr.Command, "'GET /no'") || strings.Contains(a.body, "bob") {
				t.Errorf("%+v", a)
			}
		}
	}
	if got := p.asks(); got != "GET /yes; GET /no" {
		t.Errorf("asked for %s", got)
	}
	p.mu.Lock()
	p.refuse = ErrNotGranted
	p.mu.Unlock()
	if a, err := plainGet(t, addr, "/never"); err != nil || a.status != 403 || a.problem(t).Code != "request_refused" {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestOnDemandIsBounded: what nobody decides on is answered with where to follow it,
// is not asked for again meanwhile, and keeps a third from being asked for.
func TestOnDemandIsBounded(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, echoHandler)})
	short := newPurse(e)
	addr := e.connect(short.config(func(c *ConnectorConfig) {
		c.OnDemand = &OnDemand{Asker: short, Hold: 50 * time.Millisecond, MaxPending: 2}
	}), "127.0.0.1:0")
	for range 2 {
		for _, path := range []string{"/1", "/2"} {
			a, err := plainGet(t, addr, path)
			if pr := a.problem(t); err != nil || a.status != 504 || pr.Code != "approval_pending" || !strings.HasPrefix(pr.Command, "hallpass request get 'GET "+path) || pr.Permission != "GET "+path {
				t.Errorf("%+v, %v", a, err)
			}
		}
	}
	if a, err := plainGet(t, addr, "/3"); err != nil || a.status != 503 || a.problem(t).Code != "too_many_pending" {
		t.Errorf("%+v, %v", a, err)
	}
	if got := short.asks(); got != "GET /1; GET /2" {
		t.Errorf("asked for %s", got)
	}
	short.decision("GET /1") <- nil
	e.eventually("what was granted later", func() bool { a, err := plainGet(t, addr, "/1"); return err == nil && a.status == 200 })
	if a, err := plainGet(t, addr, "/3"); err != nil || a.status != 504 {
		t.Errorf("with room again: %+v, %v", a, err)
	}
}

// TestOnDemandHearsNoAnswer: a call that a grant allows, and that the service answers as if more
// were needed, is answered so. Nobody is asked for what the answer names: whoever can have it
// answer would choose what a person is asked to open.
func TestOnDemandHearsNoAnswer(t *testing.T) {
	e := start(t, options{upstream: upstreamServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		pr := newProblem(http.StatusForbidden, reasonOutsideScope, "the grant does not allow this", "payments")
		pr.Permission, pr.Command = "* /**", "hallpass request create payments --can '* /**'"
		_, _ = w.Write(pr.json())
	})})
	p := newPurse(e)
	p.add("GET /a")
	addr := e.connect(p.config(func(c *ConnectorConfig) {
		c.OnDemand = &OnDemand{Asker: p, Hold: 50 * time.Millisecond}
	}), "127.0.0.1:0")
	for range 2 {
		a, err := plainGet(t, addr, "/a")
		if err != nil || a.status != http.StatusForbidden || a.problem(t).Permission != "* /**" {
			t.Errorf("%+v, %v", a, err)
		}
	}
	if got := p.asks(); got != "" {
		t.Errorf("asked for %s", got)
	}
}

// TestOnDemandTCP: a connection is held as well, and broken off when it may not be.
func TestOnDemandTCP(t *testing.T) {
	e := start(t, options{upstream: "tcp://" + tcpEcho(t), edit: tcpService})
	for _, verdict := range []error{nil, ErrNotGranted} {
		p := newPurse(e)
		addr := e.connect(p.config(func(c *ConnectorConfig) {
			c.TCP = true
			p.onDemand(c)
		}), "127.0.0.1:0")
		p.decision("tcp") <- verdict
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			if verdict == nil {
				t.Error(err)
			}
			continue // reset at once
		}
		_, err = io.WriteString(c, "hello")
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
		if (err == nil) != (verdict == nil) {
			t.Errorf("after the verdict %v: %v", verdict, err)
		}
		_ = c.Close()
		if got := p.asks(); got != "tcp" {
			t.Errorf("asked for %q", got)
		}
	}
}

type noughts struct{}

func (noughts) Read(p []byte) (int, error) { return len(p), nil }

type counter struct{ n *atomic.Int64 }

func countTo(n *atomic.Int64) counter { return counter{n} }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
