package testenv

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/proxy"
)

// ConnectorOptions says whose traffic a connector carries, and how.
type ConnectorOptions struct {
	Who   string // whose grant it is
	Grant string // its id
	TCP   bool   // bytes, instead of HTTP requests
	// Now is the clock of renewals; nil is time.Now. One that is ahead renews sooner.
	Now func() time.Time
}

// Connector is the client's end of a proxy, with certificates that it fetches
// from the cluster and renews.
type Connector struct {
	Source  *proxy.RenewingSource
	address string
}

// Address is where programs without a certificate connect to, host:port.
func (c *Connector) Address() string { return c.address }

// Connector runs a connector until the test ends.
func (e *Env) Connector(p *Proxy, o ConnectorOptions) *Connector {
	e.t.Helper()
	td := spiffeid.RequireTrustDomainFromString(TrustDomain)
	client, err := api.NewClient(api.ClientConfig{
		Servers: e.Servers(), Certificate: e.Certificate(o.Who), Roots: e.roots.identity, RetryFor: time.Second,
		TracerProvider: e.opts.Tracer,
	})
	e.must(err)
	e.t.Cleanup(client.Close)
	source := proxy.NewRenewingSource(func(ctx context.Context) (*tls.Certificate, error) {
		return e.mint(ctx, client, o.Grant)
	}, o.Now)
	c, err := proxy.NewConnector(proxy.ConnectorConfig{
		Service: p.Service, Address: p.Address(), TrustDomain: td, Host: "localhost",
		Bundle: x509bundle.FromX509Authorities(td, e.manifest.IdentityRoots), Source: source,
		TCP: o.TCP, Logger: e.log, TracerProvider: e.opts.Tracer,
	})
	e.must(err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.t.Context()))
	l, err := proxy.ListenLocal(ctx, "127.0.0.1:0")
	e.must(err)
	go source.Run(ctx) // ends with ctx
	e.serve(func() error { return c.Serve(ctx, l) }, cancel)
	return &Connector{Source: source, address: l.Addr().String()}
}
