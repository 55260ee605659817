package control

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
)

// longLived is a client of a person whose identity outlives clocks that tests
// put forward.
func (c *cluster) longLived(path string) *api.Client {
	c.t.Helper()
	return c.client(c.identity(c.t, "spiffe://acme.test/"+path, 20*24*time.Hour), c.urls()...)
}

// TestVotesOverTheAPI: who may not vote, cannot by any of their names, on what
// is no longer what they saw, or twice, or too late.
func TestVotesOverTheAPI(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	c := newCluster(t, func(cfg *Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	ctx := t.Context()
	alice, laptop := c.longLived("user/alice"), c.longLived("user/alice-laptop")
	bob, phone, carol := c.longLived("user/bob"), c.longLived("user/bob-phone"), c.longLived("user/carol")
	ask := func(who *api.Client, subject string) api.Request {
		t.Helper()
		in := readAccounts()
		in.Service, in.Permissions, in.Subject = "ledger", []string{"GET,HEAD /accounts/**"}, subject
		r, err := who.CreateRequest(ctx, in)
		must(t, err)
		return r
	}
	refused := func(who *api.Client, r api.Request, code api.Code, says string) {
		t.Helper()
		_, err := who.DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash})
		if p := theProblem(t, err, code); !strings.Contains(p.Detail+" "+p.Next, says) {
			t.Errorf("it says %q, next %q; want %q", p.Detail, p.Next, says)
		}
	}

	// Whoever asks, as whichever of their identities, and for their workload.
	for _, r := range []api.Request{ask(alice, ""), ask(laptop, "")} {
		refused(alice, r, api.CodeDenied, "is who asked")
		refused(laptop, r, api.CodeDenied, "is who asked")
	}
	refused(alice, ask(c.longLived("agent/robot"), ""), api.CodeDenied, "owns the subject")

	// Two persons are needed, and bob is one, with two identities.
	r := ask(alice, "")
	first, err := bob.DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash, Permissions: []string{"GET /accounts/**"}})
	must(t, err)
	refused(bob, first, api.CodeConflict, "approved")
	refused(phone, first, api.CodeConflict, "approved")
	refused(carol, r, api.CodeStale, "look at the request again") // bob has narrowed it
	if got, err := bob.Request(ctx, r.ID); err != nil || got.State != api.RequestPending || got.Require[0].Given != 1 {
		t.Errorf("after one person's votes: %+v, %v", got, err)
	}
	done, err := carol.DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: first.Hash})
	must(t, err)
	if done.State != api.RequestApproved || done.Grant.Permissions[0] != "GET /accounts/**" {
		t.Errorf("after two persons' votes: %+v", done)
	}

	late := ask(alice, "")
	ahead.Store(int64(25 * time.Hour))
	refused(bob, late, api.CodeExpired, "ask again")
	c.check()
}

// weakCSRs are requests whose key must not be certified, or that prove nothing,
// each with what the answer says of it.
func weakCSRs(t *testing.T) map[string][2]string {
	t.Helper()
	of := func(key crypto.Signer, err error) string {
		t.Helper()
		must(t, err)
		csr, err := ca.MakeCSR(key, "x")
		must(t, err)
		return string(csr)
	}
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p224 := of(small, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	rsa2048 := of(rsaKey, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	ed25519CSR := of(ed, err)
	good, _ := newCSR(t)
	block, _ := pem.Decode([]byte(good))
	flip := func(at int) string {
		der := bytes.Clone(block.Bytes)
		der[at] ^= 1
		return string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}))
	}
	return map[string][2]string{
		"RSA":             {rsa2048, "RSA keys are not certified"},
		"P-224":           {p224, "P-256"},
		"Ed25519":         {ed25519CSR, "Ed25519 keys are not certified"},
		"bad signature":   {flip(len(block.Bytes) - 1), "not signed by the key in it"},
		"text":            {"hello", "PEM"},
		"two":             {good + good, "more than one"},
		"a key":           {strings.ReplaceAll(good, "CERTIFICATE REQUEST", "PRIVATE KEY"), "private key"},
		"more than a CSR": {good + strings.Repeat("\n", 4000), ""},
	}
}

// TestWeakCSRs: no call takes a key that must not be certified, or that its
// sender does not have.
func TestWeakCSRs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	r := c.granted()
	for name, csr := range weakCSRs(t) {
		if csr[1] == "" {
			continue // is good
		}
		in := readAccounts()
		in.CSR = csr[0]
		_, asked := c.as("user/alice").CreateRequest(ctx, in)
		_, minted := c.as("user/alice").GrantCertificate(ctx, r.ID, csr[0])
		_, issued := c.as("user/ann").IssueIdentity(ctx, api.IdentityInput{CSR: csr[0], SPIFFEID: "spiffe://acme.test/service/payments"})
		for call, err := range map[string]error{"a request": asked, "a certificate": minted, "an identity": issued} {
			p := theProblem(t, err, api.CodeInvalid)
			if !strings.Contains(strings.ToLower(p.Detail), strings.ToLower(csr[1])) || !strings.Contains(p.Next, "P-256") {
				t.Errorf("%s with %s: %q, next %q", call, name, p.Detail, p.Next)
			}
		}
	}
	if got := c.leader().issued(t, r.ID); len(got) != 0 {
		t.Errorf("%d certificates were recorded", len(got))
	}
}

// TestHostileBodies: JSON that two parsers read in two ways, texts that hide
// something, and bodies without end, at a follower, which must not pass them on.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	before := c.lastEntry(t)
	node, cl := c.follower(), c.raw("user/alice")
	edit := func(from, to string) string { return strings.Replace(rawRequest, from, to, 1) }
	for _, tt := range []struct {
		name, body string
		status     int
		says       string
	}{
		{"a member twice", edit(`{`, `{"service":"wiki",`), 400, `"service" is there twice`},
		{"a member twice, escaped", edit(`{`, `{"\u0073ervice":"wiki",`), 400, `"service" is there twice`},
		{"another case", edit(`service`, `SERVICE`), 400, "lower-case"},
		{"a second value", rawRequest + `{}`, 400, "text after the JSON value"},
		{"text behind", rawRequest + `x`, 400, "text after the JSON value"},
		{"two bodies", rawRequest + "\n" + rawRequest, 400, "text after the JSON value"},
		{"a byte order mark", "\ufeff" + rawRequest, 400, "not JSON"},
		{"UTF-16", "\xff\xfe{\x00}\x00", 400, "not valid UTF-8"},
		{"not UTF-8", edit("ticket", "\xff"), 400, "not valid UTF-8"},
		{"half a surrogate", edit("ticket", `\ud800`), 422, "U+FFFD"},
		{"a comment", edit(`{`, `{/* x */`), 400, "not JSON"},
		{"no end", rawRequest[:len(rawRequest)-1], 400, "not JSON"},
		{"deep", strings.Repeat(`{"a":`, 1000), 400, "deep"},
		{"an array", "[" + rawRequest + "]", 422, "object"},
		{"null", "null", 422, ""},
		{"an empty body", "", 400, "body"},
		{"a number for a text", edit(`"ticket 7"`, `7`), 422, "reason"},
		{"an escape sequence", edit("ticket", `\u001b[2J`), 422, "U+001B"},
		{"text turned around", edit("ticket", "\u202e"), 422, "U+202E"},
		{"text that does not show", edit("ticket", "a\U000e0041"), 422, "U+E0041"},
		{"a wall of lines", edit("ticket", strings.Repeat(`\n`, 100)), 422, "lines"},
		{"a control in a permission", edit("GET /accounts", `GET /\u0007accounts`), 422, "permission"},
		{"a NUL in a service", edit("payments", `payments\u0000`), 422, "service"},
		{"a homoglyph for a service", edit("payments", "p\u0430yments"), 422, "service"},
	} {
		status, p, answer := post(t, cl, node.url()+"/v1/requests", tt.body)
		if status != tt.status || !strings.Contains(p.Detail, tt.says) || p.RequestID == "" {
			t.Errorf("%s: %d %s; want %d …%s…", tt.name, status, answer, tt.status, tt.says)
		}
		if strings.ContainsAny(string(answer), "\x1b\x00\u202e\u009b") {
			t.Errorf("%s: the answer holds what was sent: %q", tt.name, answer)
		}
	}
	c.endless(t, node)
	if after := c.lastEntry(t); after != before {
		t.Errorf("the log has grown by %+v", after)
	}
}

// endless sends a body of unknown length that goes on and on.
func (c *cluster) endless(t *testing.T, node *running) {
	t.Helper()
	for _, protocol := range []string{"h2", "http/1.1"} {
		cl := c.raw("user/alice")
		if protocol != "h2" {
			cl = c.raw("user/alice", protocol)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		sent := &counted{r: io.LimitReader(spaces{}, 1<<30)}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, node.url()+"/v1/requests", io.NopCloser(sent))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		if resp, err := cl.Do(req); err == nil { // or it was cut off
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("%s: endless: %s", protocol, resp.Status)
			}
		}
		if n := sent.n.Load(); n > 64<<20 {
			t.Errorf("%s: %d bytes were taken", protocol, n)
		}
	}
}

// TestBodiesThatStopComing: whatever the answer is, it comes, and the connection
// is not left open for the rest.
func TestBodiesThatStopComing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, slots(Limits{ConnectionsPerCaller: 6}))
	node := c.follower()
	conf := &tls.Config{
		RootCAs: c.roots(), Certificates: []tls.Certificate{c.identity(t, "spiffe://acme.test/user/alice")},
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
	}
	const rest = " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
	const chunked = " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
	var all sync.WaitGroup
	for _, tt := range []struct {
		text   string
		status int
	}{
		{"POST /v1/requests" + rest, http.StatusRequestTimeout},
		{"POST /v1/nothing" + rest, http.StatusNotFound},
		{"GET /v1/whoami?stale=true" + rest, http.StatusUnprocessableEntity},
		{"DELETE /v1/requests" + rest, http.StatusMethodNotAllowed},
		{"POST /v1/requests" + chunked + "20000\r\n" + strings.Repeat(" ", 70<<10), http.StatusRequestEntityTooLarge},
		{"POST /v1/requests" + strings.Replace(rest, "1000", "100000", 1), http.StatusRequestEntityTooLarge},
	} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(node.url(), "https://"), conf)
		must(t, err)
		defer func() { _ = conn.Close() }()
		_, err = io.WriteString(conn, tt.text)
		must(t, err)
		all.Go(func() {
			_ = conn.SetReadDeadline(time.Now().Add(45 * time.Second)) // or Read fails
			answer, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(answer), fmt.Sprintf("HTTP/1.1 %d ", tt.status)) {
				t.Errorf("%.30q…: %.60q, %v; want %d", tt.text, answer, err, tt.status)
			}
		})
	}
	all.Wait()
	// A refusal before any route is looked up.
	c.until("her places are free again", func() bool { _, _, callers := node.api.counts(); return callers == 0 })
	for range 6 {
		if status, p, err := c.held(node, "user/alice")(); status != http.StatusOK {
			t.Fatalf("%d %+v %v", status, p, err)
		}
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(node.url(), "https://"), conf)
	must(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "POST /v1/requests"+rest)
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(45*time.Second)))
	if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 429 ") {
		t.Errorf("one more: %.60q, %v", answer, err)
	}
}

// spaces is JSON's white space, without end.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

type counted struct {
	r io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// TestHostileIDs: what is no id of ours is an object that does not exist.
func TestHostileIDs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	r := c.granted()
	node, cl := c.follower(), c.raw("user/ann")
	for _, id := range []string{
		"x", "..", "%2e%2e", "..%2f..", "%00", r.ID + "%00", r.ID + "x", strings.ToUpper(r.ID), "{" + r.ID + "}", strings.ReplaceAll(r.ID, "-", ""),
		"%1b%5b2J", "%E2%80%AE", "%ff", strings.Repeat("a", 129), "*", "-1", "0", "ra%2f", "undefined",
	} {
		for _, route := range []string{"/v1/requests/", "/v1/grants/", "/v1/changes/"} {
			resp, err := cl.Get(node.url() + route + id)
			must(t, err)
			text, err := io.ReadAll(resp.Body)
			must(t, errors.Join(err, resp.Body.Close()))
			var p api.Problem
			if err := json.Unmarshal(text, &p); err != nil {
				t.Errorf("%s%s: %s is no problem: %v", route, id, text, err)
			}
			if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusUnprocessableEntity || strings.ContainsAny(string(text), "\x00\x1b") {
				t.Errorf("%s%s: %s %q", route, id, resp.Status, text)
			}
		}
	}
	for _, query := range []string{
		"state=pending%00", "subject=%00", "service=a%00b", "cursor=..", "cursor=" + url.QueryEscape(r.ID+"\x00"), "limit=1001", "limit=-1", "limit=1e3",
		"state=a&state=b", "cursor=" + strings.Repeat("x", 513),
	} {
		resp, err := cl.Get(node.url() + "/v1/requests?" + query)
		must(t, err)
		text, err := io.ReadAll(resp.Body)
		must(t, errors.Join(err, resp.Body.Close()))
		if resp.StatusCode != http.StatusUnprocessableEntity {
			t.Errorf("?%s: %s %s", query, resp.Status, text)
		}
	}
}
