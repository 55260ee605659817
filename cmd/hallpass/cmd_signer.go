package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/ca/kms"
	"github.com/hallpass/hallpass/internal/config"
	"github.com/hallpass/hallpass/proxy"
	"github.com/hallpass/hallpass/signer"
)

// signerSettings is the configuration file of a signer. Paths are taken from the folder that the
// file lies in.
type signerSettings struct {
	Folder string        `yaml:"ca_dir" doc:"folder of ca init, with the manifest; the roots' keys are in a KMS"`
	Life   time.Duration `yaml:"life" doc:"how long issuers and API certificates live (default 168h, 2m to 2160h)"`
	Every  time.Duration `yaml:"every" doc:"how often the cluster is looked at (default 1m, at most a twentieth of life)"`
	Listen signerListen  `yaml:"listen"`
}

type signerListen struct {
	Admin string `yaml:"admin" doc:"health and metrics: loopback HOST:PORT or unix:PATH; empty: none"`
}

func (a *app) newSignerCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "signer --config FILE",
		Short: "Renew the nodes' issuers with roots in a KMS, until SIGINT or SIGTERM",
		Long: `Renew the nodes' issuers and API certificates with roots whose keys are in a KMS,
until SIGINT or SIGTERM. Of all machines, that of the signer alone has the right to
use the KMS. It signs the keys that it signed last, for nodes in the manifest, when
nearly half of their life is over, as long as no node says that they were denied;
the running cluster takes them. Settings come from the file, then from HALLPASS_*
variables, then from flags.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := loadSigner(file)
			if err != nil {
				return err
			}
			var p processSettings
			if err := a.override(cmd, &s, &p); err != nil {
				return err
			}
			if err := s.check(); err != nil {
				return err
			}
			return a.runSigner(cmd.Context(), s, p)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `file`")
	addSettings(cmd, new(signerSettings), new(processSettings))
	return cmd
}

// loadSigner reads a signer's settings; file may be "".
func loadSigner(file string) (signerSettings, error) {
	var s signerSettings
	if file == "" {
		return s, nil
	}
	if err := config.Load(file, &s); err != nil {
		return s, err
	}
	if s.Folder != "" && !filepath.IsAbs(s.Folder) {
		s.Folder = filepath.Join(filepath.Dir(file), s.Folder)
	}
	return s, nil
}

// check says what is missing, all at once.
func (s signerSettings) check() error {
	var errs []error
	if s.Folder == "" {
		errs = append(errs, fmt.Errorf("%w: ca_dir is missing: the folder of ca init (or --ca-dir, HALLPASS_CA_DIR)", config.ErrConfig))
	} else if _, err := s.signer(nil); err != nil {
		errs = append(errs, fmt.Errorf("%w: %w", config.ErrConfig, err))
	}
	if s.Listen.Admin != "" && !localAddress(s.Listen.Admin) {
		errs = append(errs, fmt.Errorf("%w: listen.admin: %s is not loopback: health and metrics have no authentication", config.ErrConfig, s.Listen.Admin))
	}
	return errors.Join(errs...)
}

func (s signerSettings) signer(change func(*signer.Config)) (*signer.Signer, error) {
	cfg := signer.Config{Dir: s.Folder, Open: kms.Open, Life: s.Life, Every: s.Every}
	if change != nil {
		change(&cfg)
	}
	return signer.New(cfg)
}

// runSigner runs a signer until ctx ends.
func (a *app) runSigner(ctx context.Context, s signerSettings, p processSettings) (err error) {
	if !kms.Built {
		return kms.ErrNoKMS
	}
	tel, err := a.telemetry(ctx, "hallpass-signer", "", p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Shutdown(context.WithoutCancel(ctx))) }()
	run, err := s.signer(func(cfg *signer.Config) { cfg.Logger, cfg.Meter, cfg.Now = tel.Logger, tel.MeterProvider, a.now })
	if err != nil {
		return err
	}
	if s.Listen.Admin == "" {
		return run.Run(ctx)
	}
	l, err := proxy.ListenLocal(ctx, s.Listen.Admin)
	if err != nil {
		return fmt.Errorf("listen.admin: %w", err)
	}
	admin := &http.Server{Handler: run.Admin(tel.MetricsHandler), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := admin.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			tel.Logger.LogAttrs(ctx, slog.LevelError, "health and metrics are not served", slog.String("error", err.Error()))
		}
	}()
	err = run.Run(ctx)
	err = errors.Join(err, admin.Close())
	<-served
	return err
}
