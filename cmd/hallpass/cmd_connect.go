package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/internal/telemetry"
	"github.com/hallpass/hallpass/proxy"
)

// connectFlags are the flags of `connect`.
type connectFlags struct {
	via    string
	grant  string
	listen string
	host   string
	tcp    bool

	onDemand bool
	ask      askSettings
}

func (a *app) newConnectCommand() *cobra.Command {
	var f connectFlags
	var p processSettings
	cmd := &cobra.Command{
		Use:   "connect SERVICE --via HOST:PORT",
		Short: "Carry a program's traffic to a service with your grant, renewed while it lives",
		Long: `Listen on this machine and carry what comes in to a service's proxy, with your
grant's certificate, renewed while the grant lives. Programs need no change: they
talk plain HTTP, or with --tcp anything, to the local address.

Whoever can reach that address acts with your grant, so it is a Unix socket that
you alone may use, unless you say otherwise: --listen 127.0.0.1:8080.

With --on-demand every live grant of yours is used, each for the calls that it
allows. A call that none allows asks for exactly what it needs, waits until that
is decided, and is then sent.`,
		Example: `  hallpass connect payments --via payments.acme.test:9443 --listen 127.0.0.1:8080
  curl http://127.0.0.1:8080/accounts/42`,
		Args: exactArgs("SERVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.via == "" {
				return usagef("no proxy given: --via HOST:PORT")
			}
			if err := f.check(); err != nil {
				return err
			}
			if err := a.override(cmd, &p); err != nil {
				return err
			}
			return a.connect(cmd.Context(), args[0], f, p)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.via, "via", "", "`address` of the service's proxy, HOST:PORT")
	flags.StringVar(&f.grant, "grant", "", "`ID` of the grant to use (default: the only live one for this service)")
	flags.StringVar(&f.listen, "listen", "", "local `address`: unix:///PATH or 127.0.0.1:PORT (default: a socket in $XDG_RUNTIME_DIR)")
	flags.StringVar(&f.host, "host", "", "`name` that the proxy knows the service by (default: that of --via)")
	flags.BoolVar(&f.tcp, "tcp", false, "carry bytes instead of HTTP requests")
	flags.BoolVar(&f.onDemand, "on-demand", false, "ask for what no grant allows when it is called for, and hold the call")
	flags.StringVar(&f.ask.Reason, "reason", "", "why, for --on-demand")
	flags.DurationVar(&f.ask.Duration, "for", 0, "how long, for --on-demand (default 15m)")
	flags.DurationVar(&f.ask.Hold, "hold", 0, "how long a call is held by --on-demand (default 2m)")
	flags.IntVar(&f.ask.MaxPending, "max-pending", 0, "undecided requests at a time, for --on-demand (default 4)")
	flags.StringVar(&f.ask.Permission, "permission", "", "what to ask for with --tcp and --on-demand (default tcp)")
	addSettings(cmd, &p)
	return cmd
}

// check refuses flags that do not go together.
func (f connectFlags) check() error {
	switch {
	case !f.onDemand && f.ask.set():
		return usagef("--reason, --for, --hold, --max-pending and --permission are for --on-demand")
	case !f.onDemand:
		return nil
	case f.grant != "":
		return usagef("--on-demand uses every live grant, and --grant names one: give either")
	case strings.TrimSpace(f.ask.Reason) == "":
		return usagef("no reason given: --reason 'why you need it'")
	}
	if err := f.ask.check(f.protocol()); err != nil {
		return usagef("%w", err)
	}
	return nil
}

func (f connectFlags) protocol() string {
	if f.tcp {
		return protocolTCP
	}
	return protocolHTTP
}

func (a *app) connect(ctx context.Context, service string, f connectFlags, p processSettings) (err error) {
	tel, err := a.telemetry(ctx, "hallpass-connect", service, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Shutdown(context.WithoutCancel(ctx))) }()
	return a.callAs(ctx, tel.TracerProvider, func(ctx context.Context, c *api.Client) error {
		if f.onDemand {
			return a.carryOnDemand(ctx, c, tel, service, f)
		}
		return a.carry(ctx, c, tel, service, f)
	})
}

// carryOnDemand carries it with whichever grant allows each call.
func (a *app) carryOnDemand(ctx context.Context, c *api.Client, tel *telemetry.Telemetry, service string, f connectFlags) error {
	k, err := a.newCarrier(ctx, c, tel)
	if err != nil {
		return err
	}
	defer k.close()
	if f.listen == "" {
		if f.listen, err = a.defaultSocket(service); err != nil {
			return err
		}
	}
	at, err := k.serve(carried{service: service, via: f.via, host: f.host, protocol: f.protocol(), listen: []string{f.listen}, ask: &f.ask})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "carrying %s to %s; what no grant of yours allows is asked for\n", safeLine(at[0]), safeLine(f.via))
	return k.wait(ctx)
}

// carry carries a program's traffic until ctx ends.
func (a *app) carry(ctx context.Context, c *api.Client, tel *telemetry.Telemetry, service string, f connectFlags) error {
	cert, err := readIdentity(a.identity)
	if err != nil {
		return unauthenticatedf("identity: %w", err)
	}
	me, err := spiffeid.FromString(spiffeOf(cert))
	if err != nil {
		return unauthenticatedf("identity: %w", err)
	}
	if f.listen == "" {
		if f.listen, err = a.defaultSocket(service); err != nil {
			return err
		}
	}
	if f.grant == "" {
		if f.grant, err = onlyGrant(ctx, c, service, me.String()); err != nil {
			return err
		}
	}
	bundle, err := x509bundle.Load(me.TrustDomain(), filepath.Join(a.identity, ca.FolderIdentityBundle))
	if err != nil {
		return err
	}
	source := proxy.NewRenewingSource(grantFetcher(c, f.grant), a.now)
	first, err := source.Certificate(ctx)
	if err != nil {
		return a.explainNoGrant(ctx, c, f.grant, err)
	}
	connector, err := proxy.NewConnector(proxy.ConnectorConfig{
		Service: service, Address: f.via, TrustDomain: me.TrustDomain(), Bundle: bundle, Source: source,
		TCP: f.tcp, Host: f.host, Logger: tel.Logger, Now: a.now, TracerProvider: tel.TracerProvider,
	})
	if err != nil {
		return usagef("%w", err)
	}
	listener, err := proxy.ListenLocal(ctx, f.listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "carrying %s to %s as %s; the certificate is renewed until the grant ends\n",
		f.listen, f.via, safeLine(spiffeOf(first.Leaf)))
	var group sync.WaitGroup
	defer group.Wait()
	running, stop := context.WithCancel(ctx)
	defer stop()
	group.Go(func() { source.Run(running) })
	return connector.Serve(ctx, listener)
}

// defaultSocket is a socket in the folder that the system makes for this user alone.
func (a *app) defaultSocket(service string) (string, error) {
	dir := a.env("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		return "", usagef("no XDG_RUNTIME_DIR on this machine: --listen unix:///PATH or --listen 127.0.0.1:PORT")
	}
	dir = filepath.Join(dir, "hallpass")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return "unix://" + filepath.Join(dir, service+".sock"), nil
}

// onlyGrant returns the caller's one live grant for a service. With several, guessing would use
// more than was meant.
func onlyGrant(ctx context.Context, c *api.Client, service, subject string) (string, error) {
	list, err := c.Grants(ctx, api.Filter{Service: service, Subject: subject, State: api.GrantActive})
	if err != nil {
		return "", err
	}
	switch len(list.Grants) {
	case 0:
		return "", deniedf("you have no live grant for %s: hallpass request create %s --allow PERMISSION --for 30m --reason TEXT --wait", service, service)
	case 1:
		return list.Grants[0].ID, nil
	}
	var lines []string
	for _, g := range list.Grants {
		lines = append(lines, "  --grant "+g.ID+"  "+strings.Join(g.Permissions, ", "))
	}
	return "", usagef("you have %d live grants for %s; say which:\n%s", len(list.Grants), service, strings.Join(lines, "\n"))
}

// grantFetcher gets the grant's next certificate, for a key that never leaves this process.
func grantFetcher(c *api.Client, id string) func(context.Context) (*tls.Certificate, error) {
	return func(ctx context.Context) (*tls.Certificate, error) {
		key, err := ca.GenerateKey()
		if err != nil {
			return nil, err
		}
		csr, err := ca.MakeCSR(key, "")
		if err != nil {
			return nil, err
		}
		minted, err := c.GrantCertificate(ctx, id, string(csr))
		if err != nil {
			return nil, err
		}
		chain, err := ca.DecodeCertificates([]byte(minted.Certificate))
		if err != nil {
			return nil, err
		}
		cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
		for _, c := range chain {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		return cert, nil
	}
}
