package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// authority is a root that signs anything a test wants.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) issue(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{u}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve runs h behind mTLS as node n1.
func (a *authority) serve(t *testing.T, id string, h http.Handler) *httptest.Server {
	t.Helper()
	return a.serveTo(t, a, id, h)
}

// serveTo is serve for clients that another authority knows.
func (a *authority) serveTo(t *testing.T, clients *authority, id string, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(api.WithCaller(r.Context(), alice())))
	}))
	s.TLS = &tls.Config{
		Certificates: []tls.Certificate{a.issue(t, id)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: clients.pool(),
	}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(discard{}, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (a *authority) client(t *testing.T, servers ...string) *api.Client {
	t.Helper()
	return a.clientFor(t, 2*time.Second, servers...)
}

func (a *authority) clientFor(t *testing.T, retry time.Duration, servers ...string) *api.Client {
	t.Helper()
	cert := a.issue(t, "spiffe://acme.test/user/alice")
	c, err := api.NewClient(api.ClientConfig{Servers: servers, Certificate: &cert, Roots: a.pool(), RetryFor: retry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

const node1 = "spiffe://acme.test/node/n1"

// failing answers n times with a problem before it lets h answer.
func failing(n int32, p *api.Problem, h http.Handler, keys chan<- string) http.Handler {
	var left atomic.Int32
	left.Store(n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if keys != nil {
			keys <- r.Header.Get("Idempotency-Key")
		}
		if left.Add(-1) >= 0 {
			maps.Copy(w.Header(), p.GetHeaders())
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(p.Status)
			_ = json.NewEncoder(w).Encode(p)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func TestClientRepeatsUnderOneKey(t *testing.T) {
	ca := newAuthority(t)
	f := newFake()
	keys := make(chan string, 8)
	ambiguous := api.NewProblem(api.CodeAmbiguous, "", "")
	s1 := ca.serve(t, node1, failing(1, ambiguous, newHandler(t, f), keys))
	s2 := ca.serve(t, node1, failing(1, ambiguous, newHandler(t, f), keys))
	c := ca.client(t, s1.URL, s2.URL)
	r, err := c.CreateRequest(t.Context(), api.RequestInput{Service: "payments", Permissions: []string{"tcp"}, Reason: "x", Duration: api.Duration(time.Minute)})
	if err != nil || r.ID != "r1" {
		t.Fatalf("got %+v, %v", r, err)
	}
	first := <-keys
	for range 2 {
		if k := <-keys; k != first || k == "" {
			t.Errorf("key %q after %q", k, first)
		}
	}
}

// TestClientWaitsAsTold: a caller who is too fast waits, at the same server, as
// long as it was told, and gives up at once when that is longer than it would
// try.
func TestClientWaitsAsTold(t *testing.T) {
	ca := newAuthority(t)
	limited := api.NewProblem(api.CodeLimit, "too fast", "wait")
	limited.RetryAfter = time.Second
	asked, other := make(chan string, 8), make(chan string, 8)
	s1 := ca.serve(t, node1, failing(1, limited, newHandler(t, newFake()), asked))
	s2 := ca.serve(t, node1, failing(0, limited, newHandler(t, newFake()), other))
	began := time.Now()
	if _, err := ca.client(t, s1.URL, s2.URL).WhoAmI(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < time.Second || len(asked) != 2 || len(other) != 0 {
		t.Errorf("%d and %d calls in %s, want two of one server and a second between", len(asked), len(other), took)
	}

	limited.RetryAfter = time.Hour
	asked = make(chan string, 8)
	s3 := ca.serve(t, node1, failing(8, limited, newHandler(t, newFake()), asked))
	_, err := ca.client(t, s3.URL, s2.URL).WhoAmI(t.Context())
	if !errors.Is(err, api.ErrLimit) || len(asked) != 1 || len(other) != 0 {
		t.Errorf("%v, after %d and %d calls", err, len(asked), len(other))
	}
}

func TestClientGoesToTheNextServer(t *testing.T) {
	ca := newAuthority(t)
	s := ca.serve(t, node1, newHandler(t, newFake()))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "https://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := ca.client(t, dead, s.URL)
	who, err := c.WhoAmI(t.Context())
	if err != nil || who.ID != "spiffe://acme.test/user/alice" {
		t.Fatalf("got %+v, %v", who, err)
	}
	c = ca.client(t, dead)
	if _, err := c.WhoAmI(t.Context()); err == nil || strings.Count(err.Error(), dead) != 1 {
		t.Errorf("a dead cluster answered: %v", err)
	}
	// What the node that is there says is said, wherever it stands among those that are not.
	none := api.NewProblem(api.CodeUnavailable, "no leader", "wait")
	alone := ca.serve(t, node1, failing(1000, none, newHandler(t, newFake()), make(chan string, 1000)))
	if _, err := ca.client(t, dead, alone.URL, dead).WhoAmI(t.Context()); !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("one of three is there: %v", err)
	}
}

func TestClientReturnsProblems(t *testing.T) {
	ca := newAuthority(t)
	f := newFake()
	f.err = errStale
	c := ca.client(t, ca.serve(t, node1, newHandler(t, f)).URL)
	_, err := c.DecideRequest(t.Context(), "r1", api.DecisionInput{Decision: "approve", Hash: "h"})
	var p *api.Problem
	if !errors.Is(err, api.ErrStale) || errors.Is(err, api.ErrDenied) || !errors.As(err, &p) || p.Next != "look again" || p.RequestID == "" {
		t.Errorf("got %v", err)
	}
	if f.called() != 1 {
		t.Errorf("asked %d times", f.called())
	}
}

// A service whose certificate carries a control node's DNS name must not pass
// for one.
func TestClientRefusesAServerThatIsNoNode(t *testing.T) {
	ca := newAuthority(t)
	f := newFake()
	c := ca.client(t, ca.serve(t, "spiffe://acme.test/service/payments", newHandler(t, f)).URL)
	if _, err := c.WhoAmI(t.Context()); err == nil || f.called() != 0 {
		t.Errorf("got %v", err)
	}
	other := newAuthority(t)
	c = ca.client(t, other.serve(t, node1, newHandler(t, f)).URL)
	if _, err := c.WhoAmI(t.Context()); err == nil || f.called() != 0 {
		t.Errorf("foreign root: got %v", err)
	}
}

func TestClientSaysWhenItsIdentityIsRefused(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	s := ca.serve(t, node1, newHandler(t, newFake()))
	cert := other.issue(t, "spiffe://acme.test/user/alice")
	c, err := api.NewClient(api.ClientConfig{Servers: []string{s.URL}, Certificate: &cert, Roots: ca.pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WhoAmI(t.Context()); !errors.Is(err, api.ErrUnauthenticated) {
		t.Errorf("got %v", err)
	}
}

// A node that has only begun to join knows the roots of its own files, not those
// that the cluster has come to trust since, and refuses who is known to the others.
func TestClientRefusedByOneNodeAsksTheOthers(t *testing.T) {
	ca := newAuthority(t)
	f := newFake()
	f.feed = api.Feed{Revision: 1}
	behind := ca.serveTo(t, newAuthority(t), node1, newHandler(t, newFake()))
	good := ca.serve(t, "spiffe://acme.test/node/n2", newHandler(t, f))
	c := ca.client(t, behind.URL, good.URL)
	if _, err := c.WhoAmI(t.Context()); err != nil {
		t.Errorf("refused by the first of two: %v", err)
	}
	seen := errors.New("seen")
	c = ca.client(t, behind.URL, good.URL)
	if err := c.WatchRevocations(t.Context(), func(api.FeedEvent) error { return seen }); !errors.Is(err, seen) {
		t.Errorf("the feed: %v", err)
	}
	// Who is known waits for the node that cannot answer yet; who is not is told at once.
	busy := ca.serve(t, node1, failing(2, api.NewProblem(api.CodeUnavailable, "no leader", ""), newHandler(t, newFake()), nil))
	if _, err := ca.client(t, behind.URL, busy.URL).WhoAmI(t.Context()); err != nil {
		t.Errorf("refused, and no leader at the other: %v", err)
	}
	began := time.Now()
	c = ca.clientFor(t, time.Minute, behind.URL, behind.URL)
	if _, err := c.WhoAmI(t.Context()); !errors.Is(err, api.ErrUnauthenticated) || time.Since(began) > 30*time.Second {
		t.Errorf("refused by all after %s: %v", time.Since(began), err)
	}
	err := c.WatchRevocations(t.Context(), func(api.FeedEvent) error { return seen })
	if !errors.Is(err, api.ErrUnauthenticated) {
		t.Errorf("the feed, refused by all: %v", err)
	}
}

func TestClientFromAnIdentityFolder(t *testing.T) {
	ca := newAuthority(t)
	s := ca.serve(t, node1, newHandler(t, newFake()))
	dir := t.TempDir()
	if _, err := api.NewClient(api.ClientConfig{Servers: []string{s.URL}, Identity: dir}); err == nil {
		t.Error("an empty folder is an identity")
	}
	cert := ca.issue(t, "spiffe://acme.test/user/alice")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem":            {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"key.pem":             {Type: "PRIVATE KEY", Bytes: key},
		"identity-bundle.pem": {Type: "CERTIFICATE", Bytes: ca.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := api.NewClient(api.ClientConfig{Servers: []string{s.URL}, Identity: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WhoAmI(t.Context()); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "http://a:1", "https://", "https://a/v1", "a:1"} {
		if _, err := api.NewClient(api.ClientConfig{Servers: []string{bad}, Identity: dir}); err == nil {
			t.Errorf("server %q was taken", bad)
		}
	}
}

func TestClientWaits(t *testing.T) {
	ca := newAuthority(t)
	c := ca.client(t, ca.serve(t, node1, newHandler(t, newFake())).URL)
	r, err := c.WaitRequest(t.Context(), "r1")
	if err != nil || r.State != api.RequestApproved {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestWatchRevocations(t *testing.T) {
	ca := newAuthority(t)
	f := newFake()
	h, err := api.NewHandler(api.Config{Backend: f, Logger: discardLogger(), Heartbeat: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	first := api.NewProblem(api.CodeUnavailable, "", "")
	c := ca.client(t, ca.serve(t, node1, failing(1, first, h, nil)).URL)
	var lists, beats int
	stop := errors.New("stop")
	err = c.WatchRevocations(t.Context(), func(e api.FeedEvent) error {
		switch {
		case e.Feed != nil:
			lists++
			if e.Feed.Revision == 2 {
				return stop
			}
		case e.Heartbeat != nil:
			beats++
			if beats == 2 {
				f.set(func() { f.feed = api.Feed{Revision: 2} })
			}
		}
		return nil
	})
	if !errors.Is(err, stop) || lists != 2 || beats < 2 {
		t.Errorf("%d lists, %d heartbeats, %v", lists, beats, err)
	}
}

func TestWatchEventsOverReconnects(t *testing.T) {
	ca := newAuthority(t)
	f := newFake()
	f.events = []api.Event{{ID: 1, Kind: "a"}, {ID: 2, Kind: "b"}}
	h := newHandler(t, f)
	// Each connection dies after a moment.
	cut := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 50*time.Millisecond)
		defer cancel()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
	c := ca.client(t, ca.serve(t, node1, cut).URL)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() {
		for i := uint64(3); i <= 6 && ctx.Err() == nil; i++ {
			f.set(func() { f.events = append(f.events, api.Event{ID: i, Kind: "c"}) })
			time.Sleep(60 * time.Millisecond) // longer than a connection lives
		}
	}()
	var got []uint64
	stop := errors.New("stop")
	err := c.WatchEvents(ctx, 1, func(e api.Event) error {
		got = append(got, e.ID)
		if e.ID == 6 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		t.Fatalf("got %v, %v", got, err)
	}
	for i, id := range got {
		if id != uint64(i)+2 {
			t.Errorf("got %v, want 2 to 6 once each", got)
			break
		}
	}
}
