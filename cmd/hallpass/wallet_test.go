package main

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
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
	w := &wallet{client: c, service: "payments", now: time.Now, ctx: ctx, mine: func(string) bool { return mine }}
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
