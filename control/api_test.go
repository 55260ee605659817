package control

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/raftstore"
)

// raw is an HTTP client of the given path that does nothing by itself.
func (c *cluster) raw(path string, protocols ...string) *http.Client {
	c.t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: c.roots(), MinVersion: tls.VersionTLS13, NextProtos: protocols,
		Certificates: []tls.Certificate{c.identity(c.t, "spiffe://acme.test/"+path)},
	}, ForceAttemptHTTP2: len(protocols) == 0}
	c.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// post sends a body, again while nobody leads, and returns status, problem (if
// it is one) and answer.
func post(t *testing.T, cl *http.Client, url, body string, header ...string) (int, api.Problem, []byte) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		status, p, answer := postOnce(t, cl, url, body, header...)
		if status != http.StatusServiceUnavailable || time.Now().After(deadline) {
			return status, p, answer
		}
	}
}

func postOnce(t *testing.T, cl *http.Client, url, body string, header ...string) (int, api.Problem, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	must(t, err)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := cl.Do(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	must(t, err)
	var p api.Problem
	if resp.StatusCode >= 400 {
		must(t, json.Unmarshal(answer, &p))
	}
	return resp.StatusCode, p, answer
}

const rawRequest = `{"service":"payments","permissions":["GET /accounts/**"],"reason":"ticket 7","duration":"30m"}`

// TestOverTheWire checks what a stranger's client can send, at a follower and at
// the leader, over both versions of HTTP.
func TestOverTheWire(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	for name, node := range map[string]*running{"leader": c.leader(), "follower": c.follower()} {
		for _, protocol := range []string{"h2", "http/1.1"} {
			t.Run(name+" "+protocol, func(t *testing.T) { c.checkWire(t, node.url(), protocol) })
		}
	}
	c.check()
}

func (c *cluster) checkWire(t *testing.T, url, protocol string) {
	cl := c.raw("user/alice", protocol)
	if protocol == "h2" {
		cl = c.raw("user/alice")
	}
	huge := strings.Replace(rawRequest, "ticket 7", strings.Repeat("x", 100<<10), 1)
	for _, tt := range []struct {
		name, body string
		status     int
		code       api.Code
	}{
		{"huge body", huge, 413, api.CodeTooLarge},
		{"unknown field", strings.Replace(rawRequest, "{", `{"approved":true,`, 1), 422, api.CodeInvalid},
		{"not JSON", "service=payments", 400, api.CodeInvalid},
		{"no rule", strings.Replace(rawRequest, "payments", "nowhere", 1), 403, api.CodeDenied},
		{"bad permission", strings.Replace(rawRequest, "GET /accounts", "GET accounts", 1), 422, api.CodeInvalid},
		{"too long", strings.Replace(rawRequest, "30m", "30h", 1), 403, api.CodeDenied},
		{"foreign subject", strings.Replace(rawRequest, "{", `{"subject":"spiffe://acme.test/user/bob",`, 1), 403, api.CodeDenied},
		{"no SPIFFE ID", strings.Replace(rawRequest, "{", `{"subject":"bob",`, 1), 422, api.CodeInvalid},
	} {
		status, p, answer := post(t, cl, url+"/v1/requests", tt.body)
		if status != tt.status || p.Code != tt.code || p.RequestID == "" || p.Detail == "" {
			t.Errorf("%s: %d %s", tt.name, status, answer)
		}
	}

	key := fmt.Sprintf("wire-%s-%s", protocol, url[len(url)-5:])
	status, _, first := post(t, cl, url+"/v1/requests", rawRequest, "Idempotency-Key", key)
	if status != http.StatusCreated {
		t.Fatalf("create: %d %s", status, first)
	}
	status, _, second := post(t, cl, url+"/v1/requests", rawRequest, "Idempotency-Key", key)
	if status != http.StatusCreated || !bytes.Equal(first, second) {
		t.Errorf("again: %d %s\nfirst: %s", status, second, first)
	}
	status, p, _ := post(t, cl, url+"/v1/requests", strings.Replace(rawRequest, "ticket 7", "ticket 8", 1), "Idempotency-Key", key)
	if status != http.StatusUnprocessableEntity || p.Code != api.CodeMismatch {
		t.Errorf("another body: %d %+v", status, p)
	}
	// The key is the caller's own.
	erin := c.raw("user/erin")
	status, _, other := post(t, erin, url+"/v1/requests", rawRequest, "Idempotency-Key", key)
	if status != http.StatusCreated || bytes.Equal(first, other) {
		t.Errorf("another caller: %d %s", status, other)
	}
	resp, err := cl.Get(url + "/v1/whoami")
	must(t, err)
	_ = resp.Body.Close()
	if want := map[string]int{"h2": 2, "http/1.1": 1}[protocol]; resp.ProtoMajor != want {
		t.Errorf("spoke %s", resp.Proto)
	}
}

// TestNoTickets: a client that keeps tickets gets none to keep.
func TestNoTickets(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	cache := &countingCache{ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	conf := &tls.Config{
		RootCAs: c.roots(), Certificates: []tls.Certificate{c.identity(t, "spiffe://acme.test/user/alice")}, MinVersion: tls.VersionTLS13,
		ClientSessionCache: cache,
	}
	for range 3 {
		tr := &http.Transport{TLSClientConfig: conf.Clone()}
		resp, err := (&http.Client{Transport: tr}).Get(c.follower().url() + "/v1/whoami?stale=true")
		must(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.TLS.DidResume {
			t.Errorf("%s, resumed: %v", resp.Status, resp.TLS.DidResume)
		}
		tr.CloseIdleConnections()
	}
	if n := cache.puts.Load(); n > 0 {
		t.Errorf("the node issued %d tickets", n)
	}
}

type countingCache struct {
	tls.ClientSessionCache
	puts atomic.Int32
}

func (c *countingCache) Put(key string, s *tls.ClientSessionState) {
	if s != nil {
		c.puts.Add(1)
	}
	c.ClientSessionCache.Put(key, s)
}

// TestIdempotencyAcrossLeaders: one call, one request, whoever leads.
func TestIdempotencyAcrossLeaders(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	alice, key := c.as("user/alice"), api.WithKey("one")
	first, err := alice.CreateRequest(t.Context(), readAccounts(), key)
	must(t, err)
	c.crash(c.leader().ID())
	again, err := alice.CreateRequest(t.Context(), readAccounts(), key)
	must(t, err)
	if again.ID != first.ID {
		t.Errorf("got %s, then %s", first.ID, again.ID)
	}
	other := readAccounts()
	other.Reason = "ticket 8"
	_, err = alice.CreateRequest(t.Context(), other, key)
	wantProblem(t, err, api.CodeMismatch)
	list, err := alice.Requests(t.Context(), api.Filter{Requester: first.Requester})
	must(t, err)
	if len(list.Requests) != 1 {
		t.Errorf("%d requests", len(list.Requests))
	}
	c.check()
}

// said is an audit entry as far as tests look at it.
type said struct{ Actor, Node, Kind, Object string }

// lastEntry is what the audit log says last.
func (c *cluster) lastEntry(t *testing.T) (entry said) {
	t.Helper()
	var last []byte
	must(t, c.leader().Store().ReadRecords(t.Context(), 0, func(_ uint64, body []byte) bool {
		last = append(last[:0], body...)
		return true
	}))
	must(t, json.Unmarshal(last, &entry))
	return entry
}

// TestFollowersForward: the leader takes the caller's chain, and the leaf names
// the node that vouches for the handshake.
func TestFollowersForward(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	follower := c.follower()
	r, err := c.at(follower, "user/alice").CreateRequest(t.Context(), readAccounts())
	must(t, err)
	entry := c.lastEntry(t)
	if entry.Actor != "spiffe://acme.test/user/alice" || entry.Node != follower.ID() || entry.Object != r.ID {
		t.Errorf("the leaf says %+v, the call came by %s", entry, follower.ID())
	}
	// A linearizable read through a follower sees what was just written.
	for _, n := range c.live() {
		got, err := c.at(n, "user/alice").Request(t.Context(), r.ID)
		must(t, err)
		if got.Hash != r.Hash {
			t.Errorf("node %s: %+v", n.ID(), got)
		}
	}
	c.checkHeadersBetweenNodes(t, follower)
}

// checkHeadersBetweenNodes: what nodes tell each other means nothing from a
// caller.
func (c *cluster) checkHeadersBetweenNodes(t *testing.T, n *running) {
	t.Helper()
	ann := c.identity(t, "spiffe://acme.test/user/ann")
	cl := c.raw("user/alice")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url()+"/v1/whoami", nil)
	must(t, err)
	req.Header.Set(headerChain, chainHeader(ann))
	req.URL.RawQuery = "stale=true" // whoever leads
	resp, err := cl.Do(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	var who api.WhoAmI
	must(t, json.NewDecoder(resp.Body).Decode(&who))
	if who.ID != "spiffe://acme.test/user/alice" || who.Admin {
		t.Errorf("a header made alice %+v", who)
	}
	resp, err = cl.Get(n.url() + pathVerified)
	must(t, err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("%s is answered with %d", pathVerified, resp.StatusCode)
	}
}

// TestEndOfTheCertificate: a connection does not outlive the identity that
// opened it, nor does a stream or a blocking read on it.
func TestEndOfTheCertificate(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { // another leader would end the blocking reads, too: none comes of a busy machine
		cfg.Timing = raftstore.Timing{Heartbeat: 2 * time.Second, Election: 2 * time.Second, Lease: 2 * time.Second}
	})
	r, err := c.as("user/alice").CreateRequest(t.Context(), readAccounts())
	must(t, err)
	leader, follower := c.leader(), c.follower()
	blocking := "/v1/requests/" + r.ID + "?wait=60s&index=999999"
	cert := c.identity(t, "spiffe://acme.test/user/alice", 8*time.Second)
	var all sync.WaitGroup
	open := func(name, protocol, target string, node *running) (*http.Transport, *http.Request) {
		tr := &http.Transport{ForceAttemptHTTP2: protocol == "h2", TLSClientConfig: &tls.Config{
			RootCAs: c.roots(), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{protocol},
		}}
		t.Cleanup(tr.CloseIdleConnections)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, node.url()+target, nil)
		must(t, err)
		req.Header.Set("Accept", "text/event-stream, application/json")
		all.Go(func() {
			resp, err := (&http.Client{Transport: tr}).Do(req)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			late := time.Since(cert.Leaf.NotAfter)
			if late < -time.Second || late > time.Second+5*time.Second { // a second, and a loaded machine
				t.Errorf("%s ended %s after its certificate: %v", name, late, err)
			}
		})
		return tr, req
	}
	for _, protocol := range []string{"h2", "http/1.1"} {
		open(protocol+" events", protocol, "/v1/events", follower)
		open(protocol+" blocking read at the leader", protocol, blocking, leader)
		open(protocol+" blocking read at a follower", protocol, blocking, follower)
	}
	for name, text := range map[string]string{
		"an idle connection": "GET /v1/whoami?stale=true HTTP/1.1\r\nHost: x\r\n\r\n",
		"an upload":          "POST /v1/requests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
	} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(follower.url(), "https://"), &tls.Config{
			RootCAs: c.roots(), Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		})
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, err = io.WriteString(conn, text)
		must(t, err)
		all.Go(func() {
			_, _ = io.Copy(io.Discard, conn)
			if late := time.Since(cert.Leaf.NotAfter); late < -time.Second || late > time.Second+4*time.Second {
				t.Errorf("%s ended %s after its certificate", name, late)
			}
		})
	}
	tr, req := open("the feed", "h2", "/v1/revocations", follower)
	// A node that does not cut its callers has the leader wait no longer, either.
	status, _ := c.asserted(t, follower, leader, cert, "GET", blocking, "")
	if late := time.Since(cert.Leaf.NotAfter); status != http.StatusOK || late > 6*time.Second {
		t.Errorf("a blocking read in her name ended %s after her certificate: %d", late, status)
	}
	all.Wait()
	cl := &http.Client{Transport: tr}
	if resp, err := cl.Do(req); err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized { // on a connection that is about to be cut
			t.Errorf("an expired identity got %s", resp.Status)
		}
	}
	tr.CloseIdleConnections()
	if resp, err := (&http.Client{Transport: tr.Clone()}).Do(req); err == nil {
		_ = resp.Body.Close()
		t.Error("an expired identity connected again")
	}
	if !strings.Contains(c.logs.String(), "reason=expired") {
		t.Error("the log does not say that the identity had expired")
	}
}
