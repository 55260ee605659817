package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/internal/telemetry"
	"github.com/hallpass/hallpass/proxy"
)

// The protocols that a service may speak, at the client's end.
const (
	protocolHTTP     = "http"
	protocolTCP      = "tcp"
	protocolPostgres = "postgres"
)

// carried is one service whose traffic is carried, however it was configured.
type carried struct {
	service  string
	via      string
	host     string
	protocol string
	listen   []string
	grants   []string             // ids; empty: every live one
	mine     func(id string) bool // of those, the ones that it says; nil: all
	standing []string
	ask      *askSettings
}

// askSettings says how access is asked for on demand.
type askSettings struct {
	Reason     string        `yaml:"reason" doc:"why, for the approvers and the audit log"`
	Duration   time.Duration `yaml:"duration" doc:"how long the access should last (default 15m)"`
	Hold       time.Duration `yaml:"hold" doc:"how long a call waits for the decision (default 2m)"`
	MaxPending int           `yaml:"max_pending" doc:"undecided requests at a time (default 4)"`
	Permission string        `yaml:"permission" doc:"what a service of bytes needs (default tcp); of HTTP the call says it"`
}

// set says whether anything is asked for.
func (s askSettings) set() bool { return s != askSettings{} }

func (s askSettings) check(protocol string) error {
	bytes := protocol == protocolTCP || protocol == protocolPostgres
	if _, err := grant.ParsePermission(s.Permission); err != nil && s.Permission != "" {
		return fmt.Errorf("permission: %w", err)
	}
	switch {
	case s.Permission != "" && !bytes:
		return errors.New("permission: is for services of bytes; an HTTP call says by itself what it needs")
	case s.Permission == "" && protocol == protocolPostgres:
		return errors.New("permission: is missing: such as postgres DATABASE as ROLE")
	case strings.TrimSpace(s.Reason) == "":
		return errors.New("reason: is missing: approvers read it")
	case s.Duration < 0, s.Hold < 0, s.MaxPending < 0:
		return errors.New("duration, hold and max_pending cannot be negative")
	case s.Hold > time.Hour:
		return errors.New("hold: more than 1h: no program waits so long")
	case s.MaxPending > 32:
		return errors.New("max_pending: more than 32")
	}
	return nil
}

// carrier carries what comes in for several services, as one user.
type carrier struct {
	a      *app
	client *api.Client
	tel    *telemetry.Telemetry
	me     spiffeid.ID
	bundle *x509bundle.Bundle

	askers  []*asker
	serving sync.WaitGroup
	ended   chan error // one for each listener
	stop    context.CancelFunc
	ctx     context.Context
}

// newCarrier reads who the user is. Call close.
func (a *app) newCarrier(ctx context.Context, c *api.Client, tel *telemetry.Telemetry) (*carrier, error) {
	cert, err := readIdentity(a.identity)
	if err != nil {
		return nil, unauthenticatedf("identity: %w", err)
	}
	me, err := spiffeid.FromString(spiffeOf(cert))
	if err != nil {
		return nil, unauthenticatedf("identity: %w", err)
	}
	bundle, err := x509bundle.Load(me.TrustDomain(), filepath.Join(a.identity, ca.FolderIdentityBundle))
	if err != nil {
		return nil, err
	}
	k := &carrier{a: a, client: c, tel: tel, me: me, bundle: bundle, ended: make(chan error, 64)}
	k.ctx, k.stop = context.WithCancel(ctx)
	return k, nil
}

// close ends all that is carried and waits for it.
func (k *carrier) close() {
	k.stop()
	k.serving.Wait()
}

// connectorConfig is what connectors of one service have in common.
func (k *carrier) connectorConfig(s carried) (proxy.ConnectorConfig, error) {
	cfg := proxy.ConnectorConfig{
		Service: s.service, Address: s.via, TrustDomain: k.me.TrustDomain(), Bundle: k.bundle, TCP: s.protocol != protocolHTTP, Host: s.host,
		Logger: k.tel.Logger.With("service", s.service), Now: k.a.now, TracerProvider: k.tel.TracerProvider,
	}
	w := &wallet{client: k.client, service: s.service, subject: k.me.String(), only: s.grants, mine: s.mine, now: k.a.now, looking: make(chan struct{}, 1), ctx: k.ctx}
	cfg.Wallet = w
	if len(s.standing) > 0 {
		scope, err := grant.ParseScope(s.service, s.standing)
		if err != nil {
			return cfg, fmt.Errorf("standing: %w", err)
		}
		cfg.Standing = &proxy.Standing{Identity: &folderSource{dir: k.a.identity}, Permissions: scope}
	}
	if s.ask == nil {
		return cfg, nil
	}
	if s.ask.Permission != "" {
		need, err := grant.ParsePermission(s.ask.Permission)
		if err != nil {
			return cfg, fmt.Errorf("permission: %w", err)
		}
		cfg.Permission = need
	}
	asks := &asker{client: k.client, wallet: w, reason: s.ask.Reason, duration: s.ask.Duration}
	k.askers = append(k.askers, asks)
	if asks.duration == 0 {
		asks.duration = 15 * time.Minute
	}
	cfg.OnDemand = &proxy.OnDemand{Asker: asks, Hold: s.ask.Hold, MaxPending: s.ask.MaxPending}
	return cfg, nil
}

// serve listens for a service and carries what comes in, until close. It returns where it listens.
func (k *carrier) serve(s carried) ([]string, error) {
	cfg, err := k.connectorConfig(s)
	if err != nil {
		return nil, usagef("%s: %w", s.service, err)
	}
	connector, err := proxy.NewConnector(cfg)
	if err != nil {
		return nil, usagef("%s: %w", s.service, err)
	}
	if w, ok := cfg.Wallet.(*wallet); ok {
		k.serving.Go(w.keep)
	}
	var at []string
	for _, address := range s.listen {
		ln, err := proxy.ListenLocal(k.ctx, address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.service, err)
		}
		at = append(at, ln.Addr().String())
		k.serving.Go(func() { k.ended <- connector.Serve(k.ctx, ln) })
	}
	return at, nil
}

// wait waits until ctx ends or a listener fails.
func (k *carrier) wait(ctx context.Context) error {
	select {
	case err := <-k.ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

// asked are the ids of the requests that were made on demand.
func (k *carrier) asked() []string {
	var out []string
	for _, asks := range k.askers {
		asks.mu.Lock()
		out = append(out, asks.made...)
		asks.mu.Unlock()
	}
	return out
}

// returnGrants returns grants. One that is over already needs no returning.
func returnGrants(ctx context.Context, c *api.Client, ids []string) error {
	var errs []error
	for _, id := range ids {
		_, err := c.RevokeGrant(ctx, id, "")
		if err != nil && !errors.Is(err, api.ErrConflict) && !errors.Is(err, api.ErrExpired) && !errors.Is(err, api.ErrNotFound) {
			errs = append(errs, fmt.Errorf("grant %s could not be returned: %w", id, err))
		}
	}
	return errors.Join(errs...)
}
