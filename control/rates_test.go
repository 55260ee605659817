package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hallpass/hallpass/approval/api"
)

// flood has one identity ask for access at every node in turn, as fast as it
// can, until ctx ends. It returns how many it was let ask and how many not.
func (c *cluster) flood(ctx context.Context, t *testing.T, as string, workers int) (in, out *atomic.Int64, wait func()) {
	t.Helper()
	in, out = new(atomic.Int64), new(atomic.Int64)
	var group sync.WaitGroup
	urls := c.urls()
	for i := range workers {
		cl := c.raw(as)
		group.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				// The reason is missing, so nothing is left behind.
				body := `{"service":"payments","permissions":["GET /accounts/**"],"duration":"30m"}`
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, urls[n%len(urls)]+"/v1/requests", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Idempotency-Key", fmt.Sprintf("flood-%s-%d-%d", filepath.Base(as), i, n))
				resp, err := cl.Do(req)
				if err != nil {
					continue
				}
				var p api.Problem
				err = json.NewDecoder(resp.Body).Decode(&p)
				_ = resp.Body.Close()
				if err != nil && ctx.Err() != nil {
					return // the flood ended before the answer did
				}
				if resp.StatusCode != http.StatusTooManyRequests {
					in.Add(1)
					continue
				}
				out.Add(1)
				after, aerr := strconv.Atoi(resp.Header.Get("Retry-After"))
				if err != nil || aerr != nil || after < 1 || p.Code != api.CodeLimit || resp.Header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("429 says %+v, and to come back after %q", p, resp.Header.Get("Retry-After"))
					return
				}
			}
		})
	}
	return in, out, group.Wait
}

// TestFloodOfRequests: whoever asks without end, at all nodes at once, is told
// to wait, and keeps nobody from deciding: neither others nor themselves.
func TestFloodOfRequests(t *testing.T) {
	t.Parallel()
	const perSecond = 4
	c := newCluster(t, slots(Limits{WritesPerSecond: perSecond}))
	mine, err := c.as("user/alice").CreateRequest(t.Context(), readAccounts())
	must(t, err)
	other, err := c.as("user/erin").CreateRequest(t.Context(), readAccounts())
	must(t, err)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	began := time.Now()
	in, out, wait := c.flood(ctx, t, "user/alice", 4)
	c.until("the flood is told to wait", func() bool { return out.Load() > 20 })
	for who, r := range map[string]api.Request{"user/bob": mine, "user/alice": other} {
		got, err := c.as(who).DecideRequest(t.Context(), r.ID, api.DecisionInput{Decision: "approve", Hash: r.Hash})
		if err != nil || got.State != "approved" {
			t.Errorf("%s decides under alice's flood: %s, %v", who, got.State, err)
		}
	}
	if _, err := c.as("user/erin").CreateRequest(t.Context(), readAccounts()); err != nil {
		t.Errorf("erin asks under alice's flood: %v", err)
	}
	stop()
	wait()
	// What every node let in, the leader counted.
	most := int64(perSecond * (burstSeconds + 1 + time.Since(began).Seconds()))
	if leader := c.leader(); in.Load() > most+int64(len(c.live())) {
		t.Errorf("%d calls in %s at %s, want at most %d", in.Load(), time.Since(began), leader.ID(), most)
	}
}

// TestOnePersonOnePace: another identity of the same person is no second rate.
func TestOnePersonOnePace(t *testing.T) {
	t.Parallel()
	c := newCluster(t, slots(Limits{WritesPerSecond: 1}))
	leader := c.leader()
	ask := func(cl *http.Client) int {
		status, _, _ := postOnce(t, cl, leader.url()+"/v1/requests", `{}`, "Idempotency-Key", "k")
		return status
	}
	bob, phone := c.raw("user/bob"), c.raw("user/bob-phone")
	began, in := time.Now(), 0
	for range 40 {
		if ask(bob) != http.StatusTooManyRequests {
			in++
		}
		if ask(phone) != http.StatusTooManyRequests {
			in++
		}
	}
	if most := burstSeconds + 1 + int(time.Since(began).Seconds()); in > most {
		t.Errorf("two identities of one person made %d calls, want at most %d", in, most)
	}
}

func (p *pacer) mustBegin(t *testing.T, of pace, who string, now time.Time) (end func()) {
	t.Helper()
	end, refused := p.begin(of, who, now)
	if refused != nil {
		t.Fatalf("%s: %v", who, refused)
	}
	return end
}

// TestPaceWaitsAsTold: who comes back when told is let in, and not a second
// before.
func TestPaceWaitsAsTold(t *testing.T) {
	t.Parallel()
	p, now := newPacer(Limits{WritesPerSecond: 1, ReadsPerSecond: 10}.filled()), time.Now()
	for range burstSeconds {
		p.mustBegin(t, paceWrite, "alice", now)()
	}
	_, refused := p.begin(paceWrite, "alice", now)
	if refused == nil || refused.Code != api.CodeLimit || refused.RetryAfter != time.Second {
		t.Fatalf("told %+v", refused)
	}
	p.mustBegin(t, paceRead, "alice", now)()
	p.mustBegin(t, paceUrgent, "alice", now)()
	p.mustBegin(t, paceReport, "alice", now)()
	p.mustBegin(t, paceWrite, "bob", now)()
	if _, refused := p.begin(paceWrite, "alice", now.Add(900*time.Millisecond)); refused == nil {
		t.Error("let in before the time")
	}
	p.mustBegin(t, paceWrite, "alice", now.Add(refused.RetryAfter))()
}

// TestWritesUnderWay: a full node says so at once, holds nobody in a queue, and
// has places for decisions still.
func TestWritesUnderWay(t *testing.T) {
	t.Parallel()
	p, now := newPacer(Limits{Writes: 3, WritesPerCaller: 2}.filled()), time.Now()
	first := p.mustBegin(t, paceWrite, "alice", now)
	second := p.mustBegin(t, paceWrite, "alice", now)
	if _, refused := p.begin(paceWrite, "alice", now); refused == nil || refused.Status != http.StatusTooManyRequests || refused.RetryAfter == 0 {
		t.Errorf("a third of one caller: %+v", refused)
	}
	third := p.mustBegin(t, paceWrite, "bob", now)
	if _, refused := p.begin(paceWrite, "carol", now); refused == nil || refused.Status != http.StatusServiceUnavailable || refused.RetryAfter == 0 {
		t.Errorf("a fourth of all: %+v", refused)
	}
	p.mustBegin(t, paceUrgent, "carol", now)()
	p.mustBegin(t, paceRead, "carol", now)()
	first()
	p.mustBegin(t, paceWrite, "carol", now)()
	second()
	third()
	if p.writes != [paces]int{} || len(p.held[paceWrite])+len(p.held[paceUrgent]) != 0 {
		t.Errorf("left: %v, %v", p.writes, p.held)
	}
}

// TestPacesAreBounded: a caller with many identities costs a bounded memory.
func TestPacesAreBounded(t *testing.T) {
	t.Parallel()
	p, now := newPacer(Limits{}.filled()), time.Now()
	for i := range maxPaced + 1000 {
		p.mustBegin(t, paceWrite, "spiffe://acme.test/service/s"+strconv.Itoa(i), now)()
	}
	if p.known.Len() != maxPaced || len(p.held[paceWrite]) != 0 {
		t.Errorf("%d callers are known, %d held", p.known.Len(), len(p.held[paceWrite]))
	}
}

// TestPaceOfEveryRoute: what the API offers is counted as what it is.
func TestPaceOfEveryRoute(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	resp, err := c.raw("user/alice").Get(c.leader().url() + "/openapi.json")
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	var doc struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	must(t, json.NewDecoder(resp.Body).Decode(&doc))
	got := map[string]bool{}
	var reports []string
	for path, methods := range doc.Paths {
		for method := range methods {
			r, err := http.NewRequestWithContext(t.Context(), strings.ToUpper(method), "https://x"+path, nil)
			must(t, err)
			switch of := paceOf(r); {
			case of == paceUrgent:
				got[path] = true
			case of == paceReport:
				reports = append(reports, path)
			case (of == paceRead) != (method == "get"):
				t.Errorf("%s %s counts as %d", method, path, of)
			}
		}
	}
	want := map[string]bool{
		"/v1/requests/{id}/decisions": true, "/v1/changes/{id}/decisions": true, "/v1/grants/{id}/revoke": true,
		"/v1/subjects/block": true, "/v1/issuers/{id}/deny": true, "/v1/emergency/grants/{id}/revoke": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("urgent (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{pathAnchors, pathSeen}, slices.Sorted(slices.Values(reports))); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
}

// TestProfilesOnTheAdminSocketOnly: what a node is busy with is told on its Unix
// socket, and on no port.
func TestProfilesOnTheAdminSocketOnly(t *testing.T) {
	t.Parallel()
	socket := ""
	c := newCluster(t, func(cfg *Config) {
		if cfg.Node.ID != "n1" {
			return
		}
		must(t, cfg.Admin.Close())
		socket = filepath.Join(t.TempDir(), "admin")
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
		must(t, err)
		cfg.Admin = l
	})
	get := func(cl *http.Client, url string) int {
		resp, err := cl.Get(url)
		must(t, err)
		defer func() { _ = resp.Body.Close() }()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	var d net.Dialer
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) }}
	defer tr.CloseIdleConnections()
	for _, path := range []string{"", "heap", "goroutine", "cmdline"} {
		path = "/debug/pprof/" + path
		if got := get(&http.Client{Transport: tr}, "http://admin"+path); got != http.StatusOK {
			t.Errorf("%s on the socket: %d", path, got)
		}
		for _, n := range c.live() {
			if got := get(c.raw("user/alice"), n.url()+path); got != http.StatusNotFound {
				t.Errorf("%s on the API of %s: %d", path, n.ID(), got)
			}
			if a := n.admin.Addr(); a.Network() == "tcp" {
				if got := get(http.DefaultClient, "http://"+a.String()+path); got != http.StatusNotFound {
					t.Errorf("%s on the admin port of %s: %d", path, n.ID(), got)
				}
			}
		}
	}
	thief, leader := c.follower(), c.leader()
	alice := c.identity(t, "spiffe://acme.test/user/alice")
	if status, answer := c.asserted(t, thief, leader, alice, http.MethodGet, "/debug/pprof/heap", ""); status != http.StatusNotFound {
		t.Errorf("between nodes: %d %s", status, answer)
	}
}
