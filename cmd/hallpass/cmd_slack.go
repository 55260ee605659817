package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/approval/bridge"
	"github.com/hallpass/hallpass/internal/config"
)

// slackSettings is the configuration file of the bridge to Slack. Paths are taken from the
// folder that the file lies in.
type slackSettings struct {
	Team       string      `yaml:"team" doc:"the workspace's id, as in the policy"`
	SecretFile string      `yaml:"signing_secret_file" doc:"file with the Slack app's signing secret, which only its owner may access"`
	Hooks      string      `yaml:"hooks" doc:"where Slack takes answers (default https://hooks.slack.com)"`
	Listen     slackListen `yaml:"listen"`
}

type slackListen struct {
	Address     string `yaml:"address" doc:"HOST:PORT that Slack's calls come to; without a certificate, on loopback alone"`
	Certificate string `yaml:"certificate" doc:"PEM file with the certificate chain that Slack is shown; read anew for each connection"`
	Key         string `yaml:"key" doc:"PEM file with its key"`
}

func (a *app) newSlackCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "slack --config FILE",
		Short: "Bring in what is decided by the buttons in Slack, until SIGINT or SIGTERM",
		Long: `Bring in what is decided by the buttons in Slack, until SIGINT or SIGTERM. Slack calls
it at /slack; it verifies that Slack did, and asks the cluster for the decision with
its own identity, which the policy names under channels. Whose the account is and
whether the policy lets that person decide, the cluster says.

Who it is and which cluster: --identity and --server. Settings come from the file,
then from HALLPASS_* variables, then from flags.`,
		Example: `  hallpass slack --config slack.yaml --identity bridge --server https://n1.acme.test:8443`,
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := loadSlack(file)
			if err != nil {
				return err
			}
			var p processSettings
			if err := a.override(cmd, &s, &p); err != nil {
				return err
			}
			return a.runSlack(cmd.Context(), s, p)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `file`")
	addSettings(cmd, new(slackSettings), new(processSettings))
	return cmd
}

// loadSlack reads the bridge's settings; file may be "".
func loadSlack(file string) (slackSettings, error) {
	var s slackSettings
	if file == "" {
		return s, nil
	}
	if err := config.Load(file, &s); err != nil {
		return s, err
	}
	for _, p := range []*string{&s.SecretFile, &s.Listen.Certificate, &s.Listen.Key} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(file), *p)
		}
	}
	return s, nil
}

// check says what is missing, all at once.
func (s slackSettings) check() error {
	var errs []error
	for _, f := range config.Fields(&s) {
		switch f.Path {
		case "team", "signing_secret_file", "listen.address":
			if f.String() == "" {
				errs = append(errs, fmt.Errorf("%w: %s is missing: %s (or --%s, %s)", config.ErrConfig, f.Path, f.Doc, f.Flag(), f.Env()))
			}
		}
	}
	switch {
	case (s.Listen.Certificate == "") != (s.Listen.Key == ""):
		errs = append(errs, fmt.Errorf("%w: listen.certificate and listen.key: want both or neither", config.ErrConfig))
	case s.Listen.Certificate == "" && s.Listen.Address != "" && !localAddress(s.Listen.Address):
		// Who is on the way would read whose buttons were pressed, and keep calls back.
		errs = append(errs, fmt.Errorf("%w: listen.address: %s is not loopback: give a certificate and its key, or listen on loopback behind what ends TLS", config.ErrConfig, s.Listen.Address))
	}
	if s.Team != "" {
		// The secret and the cluster are not looked at yet: others stand in.
		if _, err := bridge.New(bridge.Config{Secret: make([]byte, 32), Team: s.Team, Hooks: s.Hooks, API: (*api.Client)(nil)}); err != nil {
			errs = append(errs, fmt.Errorf("%w: %w", config.ErrConfig, err))
		}
	}
	return errors.Join(errs...)
}

// tls is what Slack is shown; nil for loopback. Its files are read for each connection, so
// that a renewal needs no restart.
func (s slackSettings) tls() (*tls.Config, error) {
	if s.Listen.Certificate == "" {
		return nil, nil //nolint:nilnil // in the clear
	}
	load := func() (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(s.Listen.Certificate, s.Listen.Key)
		return &c, err
	}
	if _, err := secretOf(s.Listen.Key, true, ""); err != nil {
		return nil, fmt.Errorf("%w: listen.key: %w", config.ErrConfig, err)
	}
	if _, err := load(); err != nil {
		return nil, fmt.Errorf("%w: listen.certificate: %w", config.ErrConfig, err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() },
	}, nil
}

// runSlack brings in decisions until ctx ends.
func (a *app) runSlack(ctx context.Context, s slackSettings, p processSettings) (err error) {
	if err := s.check(); err != nil {
		return err
	}
	conf, err := s.tls()
	if err != nil {
		return err
	}
	secret, err := secretOf(s.SecretFile, true, "")
	if err != nil {
		return fmt.Errorf("%w: signing_secret_file: %w", config.ErrConfig, err)
	}
	tel, err := a.telemetry(ctx, "hallpass-slack", "", p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Shutdown(context.WithoutCancel(ctx))) }()
	return a.callAs(ctx, tel.TracerProvider, func(ctx context.Context, c *api.Client) error {
		b, err := bridge.New(bridge.Config{Secret: []byte(secret), Team: s.Team, API: c, Hooks: s.Hooks, Logger: tel.Logger, Now: a.now})
		if err != nil {
			return fmt.Errorf("%w: %w", config.ErrConfig, err)
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Listen.Address)
		if err != nil {
			return fmt.Errorf("listen.address: %w", err)
		}
		tel.Logger.LogAttrs(ctx, slog.LevelInfo, "waiting for Slack", slog.String("address", l.Addr().String()), slog.Bool("tls", conf != nil))
		if conf != nil {
			l = tls.NewListener(l, conf)
		}
		return b.Serve(ctx, l)
	})
}
