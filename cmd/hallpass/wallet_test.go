package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/proxy"
)

// TestWalletExpects: a grant that comes to be while the wallet waits for an answer of before it
// is not missed, however fresh that answer is. Whoever was just approved would be told that they
// have no grant.
func TestWalletExpects(t *testing.T) {
	f := newFake(t)
	var looks atomic.Int64
	asked, answer := make(chan struct{}), make(chan struct{})
	f.mux.HandleFunc("GET /v1/grants", func(w http.ResponseWriter, _ *http.Request) {
		if looks.Add(1) == 1 {
			close(asked)
			<-answer
			reply(w, http.StatusOK, api.GrantList{})
			return
		}
		reply(w, http.StatusOK, api.GrantList{Grants: []api.Grant{{
			ID: "01a20afa-e731-7f26-a3d8-3e7dc7f78185", State: api.GrantActive, Service: "payments",
			Permissions: []string{"GET /accounts/**"}, ExpiresAt: time.Now().Add(time.Hour),
		}}})
	})
	c, err := api.NewClient(api.ClientConfig{Servers: []string{f.URL}, Identity: f.identity})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, stop := context.WithCancel(t.Context())
	mine := true
	w := &wallet{client: c, service: "payments", now: time.Now, looking: make(chan struct{}, 1), ctx: ctx, mine: func(string) bool { return mine }}
	defer w.run.Wait()
	defer stop()

	before := make(chan error, 1)
	go func() { before <- w.look(ctx) }()
	<-asked
	w.expect()
	close(answer)
	if err := <-before; err != nil {
		t.Fatal(err)
	}
	held, err := w.Held(ctx, true)
	if err != nil || len(held) != 1 {
		t.Errorf("%d grants, %v", len(held), err)
	}
	mine = false // from here on, without another look
	if held, err := w.Held(ctx, false); err != nil || len(held) != 0 {
		t.Errorf("what is not the session's: %d grants, %v", len(held), err)
	}
}

// TestWalletKeepsTime: a node that takes a question and never answers holds nobody beyond their own
// time, not even who waits for another's question: all calls would hang with it.
func TestWalletKeepsTime(t *testing.T) {
	f := newFake(t)
	asked, answer := make(chan struct{}), make(chan struct{})
	f.mux.HandleFunc("GET /v1/grants", func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-answer
		reply(w, http.StatusOK, api.GrantList{})
	})
	c, err := api.NewClient(api.ClientConfig{Servers: []string{f.URL}, Identity: f.identity})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := &wallet{client: c, service: "payments", now: time.Now, looking: make(chan struct{}, 1), ctx: t.Context()}
	first := make(chan error, 1)
	go func() { first <- w.look(t.Context()) }()
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := w.Held(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who waits for another's question: %v", err)
	}
	select {
	case err := <-first:
		t.Errorf("the first was answered: %v", err)
	default:
	}
	close(answer)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// TestMCPNotCarried: an agent is told to ask for access where that would help, and nowhere else.
func TestMCPNotCarried(t *testing.T) {
	m, s := &mcpServer{log: slog.New(slog.DiscardHandler)}, &mcpService{name: "payments"}
	for code, ask := range map[string]bool{"no_grant": true, "grants_unknown": false, "proxy_unreachable": false} {
		err := m.notCarried(t.Context(), s, &proxy.CallError{Code: code, Detail: "why", Permission: "GET /a"})
		if !strings.HasPrefix(err.Error(), code+": ") || strings.Contains(err.Error(), "request_access") != ask {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// TestWalletPassesOver: a grant of a permission that only a later release knows is of no use, and
// those beside it are. Where there is no other, whoever asks is told why.
func TestWalletPassesOver(t *testing.T) {
	f := newFake(t)
	unknown := api.Grant{ID: "01a20afa-e731-7f26-a3d8-3e7dc7f78186", State: api.GrantActive, Service: "payments", Permissions: []string{"teleport /x"}, ExpiresAt: time.Now().Add(time.Hour)}
	known := api.Grant{ID: "01a20afa-e731-7f26-a3d8-3e7dc7f78185", State: api.GrantActive, Service: "payments", Permissions: []string{"GET /a"}, ExpiresAt: time.Now().Add(time.Hour)}
	var there atomic.Pointer[[]api.Grant]
	f.mux.HandleFunc("GET /v1/grants", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, api.GrantList{Grants: *there.Load()})
	})
	c, err := api.NewClient(api.ClientConfig{Servers: []string{f.URL}, Identity: f.identity})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, stop := context.WithCancel(t.Context())
	w := &wallet{client: c, service: "payments", now: time.Now, looking: make(chan struct{}, 1), ctx: ctx}
	defer w.run.Wait()
	defer stop()
	there.Store(&[]api.Grant{known, unknown})
	if held, err := w.Held(ctx, true); err != nil || len(held) != 1 {
		t.Errorf("beside one that is unknown: %d grants, %v", len(held), err)
	}
	there.Store(&[]api.Grant{unknown})
	w.expect()
	if held, err := w.Held(ctx, true); err == nil || !strings.Contains(err.Error(), unknown.ID) {
		t.Errorf("one that is unknown: %d grants, %v", len(held), err)
	}
}
