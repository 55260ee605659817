package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/proxy"
)

const (
	walletLook  = 10 * time.Second // how often the live grants are looked up
	walletFresh = time.Second      // what is younger is fresh enough
)

// wallet knows the caller's live grants for one service, as proxy.Wallet.
type wallet struct {
	client  *api.Client
	service string
	subject string
	only    []string             // ids; empty: all
	mine    func(id string) bool // of those, the ones that it says; nil: all
	now     func() time.Time

	looking chan struct{} // of one; holds an element while somebody asks the cluster

	ctx context.Context // of renewals

	mu       sync.Mutex // owns what follows
	over     bool
	run      sync.WaitGroup
	grants   []heldGrant
	looked   time.Time
	expected int   // how often expect was called
	unread   error // why a grant was passed over; nil: none was
}

// heldGrant is a live grant. Its certificate is fetched when it is first used.
type heldGrant struct {
	id   string
	ends time.Time
	held proxy.Held
	stop context.CancelFunc
}

// keep looks grants up until its context ends, and waits for the renewals to.
func (w *wallet) keep() {
	ctx := w.ctx
	defer func() {
		w.mu.Lock()
		w.over = true
		w.mu.Unlock()
		w.run.Wait()
	}()
	tick := time.NewTicker(walletLook)
	defer tick.Stop()
	for {
		_, _ = w.Held(ctx, true) // whoever finds no grant asks again, and is told the error
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Held is proxy.Wallet's: the grants that live, those that end last first.
func (w *wallet) Held(ctx context.Context, fresh bool) ([]proxy.Held, error) {
	if fresh {
		if err := w.look(ctx); err != nil {
			return nil, err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []proxy.Held
	for _, g := range w.grants {
		if w.now().Before(g.ends) && (w.mine == nil || w.mine(g.id)) {
			out = append(out, g.held)
		}
	}
	if len(out) == 0 && w.unread != nil {
		return nil, w.unread
	}
	return out, nil
}

// expect has the next look ask the cluster: there is a grant that was not there before.
func (w *wallet) expect() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked = time.Time{}
	w.expected++
}

// look asks the cluster, unless that has just been done: a program that calls in vain asks once
// a second.
func (w *wallet) look(ctx context.Context) error {
	select { // nodes that accept and never answer must not hold a call beyond its own time
	case w.looking <- struct{}{}:
		defer func() { <-w.looking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	w.mu.Lock()
	recent := time.Since(w.looked) < walletFresh
	expected := w.expected
	w.mu.Unlock()
	if recent {
		return nil
	}
	at := time.Now()
	var live []api.Grant
	f := api.Filter{Service: w.service, Subject: w.subject, State: api.GrantActive}
	for {
		list, err := w.client.Grants(ctx, f)
		if err != nil {
			return err
		}
		live = append(live, list.Grants...)
		if list.Next == "" || len(live) > 1000 {
			break
		}
		f.Cursor = list.Next
	}
	return w.take(live, at, expected) //nolint:contextcheck // renewals live as long as the wallet
}

// take makes live what is held. A grant that stays keeps its certificate. expected is the count
// from before the cluster was asked: what has come to be since is not in its answer.
func (w *wallet) take(live []api.Grant, at time.Time, expected int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return context.Canceled
	}
	var next []heldGrant
	w.unread = nil
	for _, g := range live {
		if len(w.only) > 0 && !slices.Contains(w.only, g.ID) || w.mine != nil && !w.mine(g.ID) {
			continue
		}
		if i := slices.IndexFunc(w.grants, func(h heldGrant) bool { return h.id == g.ID }); i >= 0 {
			h := w.grants[i]
			h.ends = g.ExpiresAt // it may have been extended
			next = append(next, h)
			continue
		}
		scope, err := grant.ParseScope(g.Service, g.Permissions)
		if err != nil {
			// Of a cluster that knows more than we do: the others are of use without it.
			w.unread = fmt.Errorf("grant %s: %w", g.ID, err)
			continue
		}
		source := proxy.NewRenewingSource(grantFetcher(w.client, g.ID), w.now)
		ctx, stop := context.WithCancel(w.ctx)
		w.run.Go(func() { source.Run(ctx) })
		next = append(next, heldGrant{id: g.ID, ends: g.ExpiresAt, held: proxy.Held{Scope: scope, Source: source}, stop: stop})
	}
	for _, h := range w.grants {
		if !slices.ContainsFunc(next, func(n heldGrant) bool { return n.id == h.id }) {
			h.stop() // revoked, returned or over
		}
	}
	slices.SortStableFunc(next, func(a, b heldGrant) int { return b.ends.Compare(a.ends) })
	w.grants = next
	if w.expected == expected {
		w.looked = at
	}
	return nil
}

// asker asks for access for calls that no grant allows, as proxy.Asker.
type asker struct {
	client   *api.Client
	wallet   *wallet
	reason   string
	duration time.Duration

	mu   sync.Mutex // owns made
	made []string   // ids of the requests that it has made
}

// Ask finds the caller's own request for exactly this that is pending, which an earlier run or
// another program may have made, or makes one.
func (a *asker) Ask(ctx context.Context, need grant.Permission) (string, error) {
	list, err := a.client.Requests(ctx, api.Filter{Service: a.wallet.service, Subject: a.wallet.subject, Requester: a.wallet.subject, State: api.RequestPending})
	if err != nil {
		return "", err
	}
	for _, r := range list.Requests {
		if len(r.Permissions) == 1 && r.Permissions[0] == need.String() {
			return r.ID, nil
		}
	}
	r, err := a.client.CreateRequest(ctx, api.RequestInput{
		Service: a.wallet.service, Permissions: []string{need.String()}, Reason: a.reason, Duration: api.Duration(a.duration),
	})
	if errors.Is(err, api.ErrDenied) || errors.Is(err, api.ErrInvalid) {
		return "", fmt.Errorf("%w: %w", proxy.ErrNotGranted, err)
	}
	if err != nil {
		return "", err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.made = append(a.made, r.ID)
	return r.ID, nil
}

// Wait waits for the decision, through whatever time no node can be reached.
func (a *asker) Wait(ctx context.Context, id string) error {
	for {
		r, err := a.client.WaitRequest(ctx, id)
		switch {
		case err == nil && r.State == api.RequestApproved:
			a.wallet.expect()
			return nil
		case err == nil:
			return fmt.Errorf("%w: request %s is %s", proxy.ErrNotGranted, id, r.State)
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, api.ErrNotFound), errors.Is(err, api.ErrUnauthenticated), errors.Is(err, api.ErrDenied):
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// folderSource gives the certificate of an identity folder, which others renew, as
// proxy.CertSource.
type folderSource struct {
	dir string

	mu   sync.Mutex // owns what follows
	cert *tls.Certificate
	read time.Time
}

// Certificate reads the folder again once a second at most.
func (s *folderSource) Certificate(context.Context) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert != nil && time.Since(s.read) < time.Second {
		return s.cert, nil
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(s.dir, ca.FolderChain), filepath.Join(s.dir, ca.FolderKey))
	if err != nil {
		return nil, err
	}
	s.cert, s.read = &cert, time.Now()
	return s.cert, nil
}
