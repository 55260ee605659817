package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

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
			s, err := loadProxy(file)
			if err != nil {
				return err
			}
			var p processSettings
			if err := a.override(cmd, &s, &p); err != nil {
				return err
			}
			if err := s.Check(); err != nil {
				return err
			}
			return a.runProxy(cmd.Context(), s, p)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `file`")
	addSettings(cmd, new(proxy.Settings), new(processSettings))
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
func (a *app) runProxy(ctx context.Context, s proxy.Settings, p processSettings) (err error) {
	tel, err := a.telemetry(ctx, "hallpass-proxy", s.Service, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Shutdown(context.WithoutCancel(ctx))) }()
	px, err := proxy.New(proxy.Config{
		Settings: s, Logger: tel.Logger, Now: a.now,
		TracerProvider: tel.TracerProvider, MeterProvider: tel.MeterProvider, Metrics: tel.MetricsHandler,
	})
	if err != nil {
		return err
	}
	// SIGHUP reads certificates and bundles again at once; changed files are noticed without it.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	var group sync.WaitGroup
	defer group.Wait()
	defer close(hangup)
	defer signal.Stop(hangup)
	group.Go(func() {
		for range hangup {
			if err := px.Reload(); err != nil {
				tel.Logger.ErrorContext(ctx, "reload: what was loaded before stays in use", slog.Any("error", err))
			}
		}
	})
	return px.Run(ctx)
}
