package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/internal/config"
)

// agentSettings is the configuration file of `agent`.
type agentSettings struct {
	Servers  []string       `yaml:"servers" doc:"control nodes, https://HOST:PORT (default: --server)"`
	Identity string         `yaml:"identity" doc:"identity folder, from the file's own folder (default: --identity)"`
	Services []agentService `yaml:"services" doc:"the services whose traffic is carried"`
}

// agentService is one of them.
type agentService struct {
	Name     string      `yaml:"name" doc:"short name of the service"`
	Via      string      `yaml:"via" doc:"its proxy, HOST:PORT"`
	Host     string      `yaml:"host" doc:"name that the proxy knows the service by (default: that of via)"`
	Protocol string      `yaml:"protocol" doc:"http (default), tcp or postgres"`
	Listen   string      `yaml:"listen" doc:"local address: unix:///PATH (default: NAME.sock in $XDG_RUNTIME_DIR/hallpass) or 127.0.0.1:PORT"`
	Grants   []string    `yaml:"grants" doc:"ids of the grants to use (default: every live one)"`
	Standing []string    `yaml:"standing" doc:"permissions that the identity has by the service's own rules"`
	OnDemand askSettings `yaml:"on_demand" doc:"ask for access by itself; without it, nothing is asked for"`
}

// maxAgentServices bounds what one process carries.
const maxAgentServices = 64

func (a *app) newAgentCommand() *cobra.Command {
	var file string
	var p processSettings
	cmd := &cobra.Command{
		Use:   "agent --config FILE",
		Short: "Carry programs' traffic to several services, with whichever grant allows each call",
		Long: `Carry programs' traffic to several services until SIGINT or SIGTERM, each with a
listener of its own. Every call goes out with a live grant of yours that allows
it; certificates are renewed while their grants live. A service may have
on_demand: then a call that no grant allows asks for access, and waits.`,
		Example: `  hallpass agent --config agent.yaml`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("no configuration given: --config FILE")
			}
			s, err := loadAgent(file)
			if err != nil {
				return err
			}
			if err := a.override(cmd, &p); err != nil {
				return err
			}
			return a.agent(cmd.Context(), s, p)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `file`")
	addSettings(cmd, &p)
	return cmd
}

// loadAgent reads and checks a configuration file.
func loadAgent(file string) (agentSettings, error) {
	var s agentSettings
	text, err := os.ReadFile(file)
	if err != nil {
		return s, err
	}
	if err := config.Decode(file, text, &s); err != nil {
		return s, err
	}
	lines, err := config.Lines(file, text)
	if err != nil {
		return s, err
	}
	if s.Identity != "" && !filepath.IsAbs(s.Identity) {
		s.Identity = filepath.Join(filepath.Dir(file), s.Identity)
	}
	return s, s.check(lines)
}

// check says what cannot be meant, all of it at once, each with its line.
func (s agentSettings) check(at config.Places) error {
	var errs []error
	if len(s.Services) == 0 {
		errs = append(errs, at.Mistake("services", "is empty: there would be nothing to do"))
	}
	if len(s.Services) > maxAgentServices {
		errs = append(errs, at.Mistake("services", fmt.Sprintf("are more than %d", maxAgentServices)))
	}
	listens := make(map[string]string)
	for i, v := range s.Services {
		key := fmt.Sprintf("services[%d]", i)
		for _, m := range v.mistakes() {
			errs = append(errs, at.Mistake(key+"."+m.key, m.text))
		}
		address := v.Listen
		if address == "" {
			address = "the default socket of " + v.Name
		}
		if other, twice := listens[address]; twice && !strings.HasSuffix(address, ":0") {
			errs = append(errs, at.Mistake(key+".listen", "is also where "+other+" listens"))
		}
		listens[address] = key
	}
	return errors.Join(errs...)
}

type settingMistake struct{ key, text string }

func (v agentService) mistakes() []settingMistake {
	var out []settingMistake
	add := func(key, format string, args ...any) {
		out = append(out, settingMistake{key, fmt.Sprintf(format, args...)})
	}
	if err := grant.ValidService(v.Name); err != nil {
		add("name", "%q is no service name", v.Name)
	}
	if host, port, err := net.SplitHostPort(v.Via); err != nil || host == "" || port == "" {
		add("via", "%q is no HOST:PORT", v.Via)
	}
	if v.Listen != "" && !localAddress(v.Listen) {
		add("listen", "%q is neither unix:///PATH nor loopback: whoever reached it would act with your grants", v.Listen)
	}
	switch v.Protocol {
	case "", protocolHTTP, protocolTCP, protocolPostgres:
	default:
		add("protocol", "%q is none of http, tcp and postgres", v.Protocol)
	}
	if len(v.Standing) > 0 {
		if _, err := grant.ParseScope(v.Name, v.Standing); err != nil {
			add("standing", "%s", err)
		}
	}
	if !v.OnDemand.set() {
		return out
	}
	if err := v.OnDemand.check(v.Protocol); err != nil {
		add("on_demand", "%s", err)
	}
	return out
}

func (v agentService) carried(a *app) (carried, error) {
	c := carried{service: v.Name, via: v.Via, host: v.Host, protocol: v.Protocol, grants: v.Grants, standing: v.Standing}
	if c.protocol == "" {
		c.protocol = protocolHTTP
	}
	if v.OnDemand.set() {
		c.ask = &v.OnDemand
	}
	address := v.Listen
	if address == "" {
		var err error
		if address, err = a.defaultSocket(v.Name); err != nil {
			return c, err
		}
	}
	c.listen = []string{address}
	return c, nil
}

// agent carries traffic until ctx ends.
func (a *app) agent(ctx context.Context, s agentSettings, p processSettings) (err error) {
	if len(s.Servers) > 0 && len(a.servers) == 0 {
		a.servers = s.Servers
	}
	if s.Identity != "" && a.identity == "" {
		a.identity = s.Identity
	}
	tel, err := a.telemetry(ctx, "hallpass-agent", "agent", p)
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
		for _, v := range s.Services {
			one, err := v.carried(a)
			if err != nil {
				return err
			}
			at, err := k.serve(one)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "carrying %s to %s (%s)\n", safeLine(strings.Join(at, ", ")), safeLine(v.Name), safeLine(v.Via))
		}
		return k.wait(ctx)
	})
}
