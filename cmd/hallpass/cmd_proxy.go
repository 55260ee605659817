package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/internal/config"
	"github.com/hallpass/hallpass/proxy"
)

func (a *app) newProxyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "proxy --config FILE",
		Short: "Run the proxy beside a service until SIGINT or SIGTERM",
		Long: `Run the proxy beside a service until SIGINT or SIGTERM. It admits what a
certificate says, and asks nobody. Settings come from the file, then from
HALLPASS_* variables, then from flags.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var p processSettings
			load := func() (proxy.Settings, error) {
				s, err := loadProxy(file)
				if err != nil {
					return s, err
				}
				if err := a.override(cmd, &s, &p); err != nil {
					return s, err
				}
				return s, s.Check()
			}
			s, err := load()
			if err != nil {
				return err
			}
			return a.runProxy(cmd.Context(), s, load, p)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `file`")
	addSettings(cmd, new(proxy.Settings), new(processSettings))
	cmd.AddCommand(a.newProxyDoctor(), a.newProxyDoctorPostgres())
	return cmd
}

// loadProxy reads a proxy's settings; file may be "". The first reading is for its words on a
// misspelt key, the second is the proxy's own.
func loadProxy(file string) (proxy.Settings, error) {
	if file == "" {
		return proxy.Settings{}, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return proxy.Settings{}, err
	}
	if err := config.Decode(file, text, new(proxy.Settings)); err != nil {
		return proxy.Settings{}, err
	}
	return proxy.LoadSettings(file)
}

// runProxy runs a proxy until ctx ends.
func (a *app) runProxy(ctx context.Context, s proxy.Settings, load func() (proxy.Settings, error), p processSettings) (err error) {
	tel, err := a.telemetry(ctx, "hallpass-proxy", serviceNames(s), p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Shutdown(context.WithoutCancel(ctx))) }()
	given, err := inherit(wantedByProxy(s)...)
	if err != nil {
		return err
	}
	tell := func(state string) { tellManager(ctx, tel.Logger, state) }
	ready := func() { tell(daemon.SdNotifyReady) }
	fleet, err := proxy.NewFleet(proxy.FleetConfig{Load: load, Listeners: given, Ready: ready, Config: proxy.Config{ //nolint:contextcheck // exported records outlive their requests
		Settings: s, Logger: tel.Logger, Now: a.now,
		TracerProvider: tel.TracerProvider, MeterProvider: tel.MeterProvider, LoggerProvider: tel.LoggerProvider, Metrics: tel.MetricsHandler,
	}})
	if err != nil {
		return err
	}
	if err := fleet.Sandbox(telemetryPorts(a.environ())...); err != nil {
		return errors.Join(err, fleet.Close())
	}
	// SIGHUP reads configuration, certificates and bundles again at once; changed files are noticed without it.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	var group sync.WaitGroup
	defer group.Wait()
	defer close(hangup)
	defer signal.Stop(hangup)
	running, stop := context.WithCancel(ctx)
	defer stop()
	group.Go(func() { a.leaveRoom(running) })
	group.Go(func() {
		for range hangup {
			tell(daemon.SdNotifyReloading)
			if err := fleet.Reload(); err != nil { //nolint:contextcheck // services and connections have their own
				tel.Logger.ErrorContext(ctx, "reload: what was loaded before stays in use", slog.Any("error", err))
			}
			ready()
		}
	})
	defer context.AfterFunc(ctx, func() { tell(daemon.SdNotifyStopping) })()
	return fleet.Run(ctx)
}

// wantedByProxy are a proxy's listeners: each service's, by its name, and admin.
func wantedByProxy(s proxy.Settings) []wanted {
	all := []wanted{{"admin", s.Admin, true}}
	if len(s.Services) == 0 {
		return append(all, wanted{s.Service, s.Listen, false})
	}
	for _, one := range s.Services {
		all = append(all, wanted{one.Service, cmp.Or(one.Listen, s.Listen), false})
	}
	return all
}

// serviceNames are the services of a proxy, for those who look at its telemetry.
func serviceNames(s proxy.Settings) string {
	if len(s.Services) == 0 {
		return s.Service
	}
	var names []string
	for _, one := range s.Services {
		names = append(names, one.Service)
	}
	return strings.Join(names, ",")
}

// telemetryPorts are those that OpenTelemetry's exporters connect to.
func telemetryPorts(environ []string) []uint16 {
	var ports []uint16
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case strings.HasPrefix(name, "OTEL_EXPORTER_OTLP_") && strings.HasSuffix(name, "ENDPOINT"):
			u, err := url.Parse(value)
			if err != nil {
				continue // who exports will say so
			}
			port := u.Port()
			if port == "" {
				port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
			}
			if n, err := strconv.ParseUint(port, 10, 16); err == nil {
				ports = append(ports, uint16(n))
			}
		case strings.HasPrefix(name, "OTEL_") && strings.HasSuffix(name, "_EXPORTER") && value == "otlp":
			ports = append(ports, 4317, 4318) // where it is told no endpoint
		}
	}
	return ports
}
