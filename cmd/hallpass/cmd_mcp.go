package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/internal/telemetry"
	"github.com/hallpass/hallpass/proxy"
)

// mcpFlags are the flags of `mcp`.
type mcpFlags struct {
	services []string
	atMost   []string
	longest  time.Duration
	limit    time.Duration
}

func (a *app) newMCPCommand() *cobra.Command {
	var f mcpFlags
	var p processSettings
	cmd := &cobra.Command{
		Use:   "mcp --service NAME=HOST:PORT [flags]",
		Short: "Let an AI agent ask for access and use it, over the Model Context Protocol",
		Long: `Serve the Model Context Protocol on stdin and stdout, for an AI agent's client to
start. The agent asks for access like everybody else, with the identity of
--identity, waits for the people who approve, and calls services with what was
granted and with nothing else: not with other grants of the same identity, and
at no address but those of --service. Its tools are

  list_services   which services there are, and what it has asked for
  check_access    what the rules would answer to a request
  request_access  ask, for permissions, a time and a reason
  get_request     what became of a request; it may wait for the decision
  call_service    one HTTP call under a grant
  return_access   give a grant back, or withdraw a request

None of them approves, denies or changes a rule. Keys never leave this process.
--at-most and --max-for bound what the agent may ask for, whatever the rules say.
When the client ends this process, its requests are withdrawn and its grants
returned.`,
		Example: `  hallpass mcp --service payments=payments.acme.test:9443 --at-most 'GET /**' --max-for 30m`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			offered, err := f.offered()
			if err != nil {
				return err
			}
			if err := a.override(cmd, &p); err != nil {
				return err
			}
			return a.mcp(cmd.Context(), f, offered, p)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.services, "service", nil, "a service of HTTP and its proxy, `NAME=HOST:PORT`; repeat for more")
	flags.StringArrayVar(&f.atMost, "at-most", nil, "`permission` that the agent's must lie within (default: what the rules allow); repeat for more")
	flags.DurationVar(&f.longest, "max-for", time.Hour, "the longest time that the agent may ask for")
	flags.DurationVar(&f.limit, "call-timeout", 30*time.Second, "how long one call of a service may take")
	addSettings(cmd, &p)
	return cmd
}

// offered reads the services off the flags.
func (f mcpFlags) offered() ([]*mcpService, error) {
	switch {
	case len(f.services) == 0:
		return nil, usagef("no service given: --service NAME=HOST:PORT")
	case len(f.services) > maxAgentServices:
		return nil, usagef("%d services are more than %d", len(f.services), maxAgentServices)
	case f.longest <= 0:
		return nil, usagef("--max-for %s: want a time such as 30m", f.longest)
	case f.limit <= 0 || f.limit > mcpWaitMost:
		return nil, usagef("--call-timeout %s: want a time up to %s, such as 30s", f.limit, mcpWaitMost)
	}
	var all []*mcpService
	seen := make(map[string]bool)
	for _, text := range f.services {
		name, via, ok := strings.Cut(text, "=")
		if !ok || len((agentService{Name: name, Via: via}).mistakes()) > 0 {
			return nil, usagef("--service %s: want NAME=HOST:PORT, of a service of HTTP", text)
		}
		if seen[name] {
			return nil, usagef("--service %s: given twice", name)
		}
		seen[name] = true
		s := &mcpService{name: name, via: via}
		if len(f.atMost) > 0 {
			var err error
			if s.atMost, err = grant.ParseScope(name, f.atMost); err != nil {
				return nil, usagef("--at-most: %w", err)
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// mcp serves the protocol until the client closes stdin or ctx ends.
func (a *app) mcp(ctx context.Context, f mcpFlags, offered []*mcpService, p processSettings) (err error) {
	// A span holds what services and clients chose, and a line of it would be read as the protocol's.
	if variable := telemetry.Printing(); variable != "" {
		return usagef("%s=console prints to stdout, where this command speaks its protocol: export by OTLP, or set it to none", variable)
	}
	ctx, done := mcpSignals(ctx)
	defer done()
	tel, err := a.telemetry(ctx, "hallpass-mcp", "mcp", p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Shutdown(context.WithoutCancel(ctx))) }()
	return a.callAs(ctx, tel.TracerProvider, func(ctx context.Context, c *api.Client) error {
		k, err := a.newCarrier(ctx, c, tel)
		if err != nil {
			return err
		}
		defer k.close()
		m := &mcpServer{
			api: c, log: tel.Logger, now: a.now, me: k.me.String(), longest: f.longest, services: offered,
			slots: make(chan struct{}, mcpCallsAtATime), limit: f.limit, asked: make(map[string]*mcpAsked), asking: make(map[grant.Scope]bool), denied: make(map[grant.Scope]time.Time),
		}
		for _, s := range offered {
			end, err := k.offer(m, s)
			if err != nil {
				return err
			}
			defer end()
		}
		fmt.Fprintf(a.stderr, "serving MCP for %s; ends with stdin\n", safeLine(m.me))
		lost, err := m.serve(ctx, a.stdin, a.stdout)
		if lost != nil {
			a.complain(lost) // they end by themselves
		}
		return err
	})
}

// offer makes a service ready for calls. No program can make them but through the tools: there
// is no listener.
func (k *carrier) offer(m *mcpServer, s *mcpService) (end func(), err error) {
	cfg, err := k.connectorConfig(carried{service: s.name, via: s.via, protocol: protocolHTTP, mine: m.mine})
	if err != nil {
		return nil, usagef("%s: %w", s.name, err)
	}
	connector, err := proxy.NewConnector(cfg)
	if err != nil {
		return nil, usagef("%s: %w", s.name, err)
	}
	s.connector = connector
	if w, ok := cfg.Wallet.(*wallet); ok {
		s.wallet = w
		k.serving.Go(w.keep)
	}
	return connector.Begin(), nil
}
