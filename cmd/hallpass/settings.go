package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/internal/config"
	"github.com/hallpass/hallpass/internal/telemetry"
)

// serverSettings is the configuration file of a control node. Paths are taken from the folder
// that the file lies in.
type serverSettings struct {
	Node      string         `yaml:"node" doc:"this node's id, as in the manifest"`
	DataDir   string         `yaml:"data_dir" doc:"folder of the replicated state; made when missing"`
	LogStore  string         `yaml:"log_store" doc:"how the log is kept in data_dir: bolt or wal (default bolt); a node stays with what it began with"`
	KeysDir   string         `yaml:"keys_dir" doc:"folder that server init made"`
	Manifest  string         `yaml:"manifest" doc:"the cluster's manifest.json, the same on every node"`
	Listen    listen         `yaml:"listen"`
	Skew      time.Duration  `yaml:"skew" doc:"how far certificates are backdated for slow clocks (default 10s)"`
	Strict    bool           `yaml:"strict_svid" doc:"give grant certificates both extended key usages"`
	Retention int            `yaml:"retention_days" doc:"days that requests, decisions and grants are kept after they ended (default 400, at least 60); the audit log is kept for ever"`
	Dev       bool           `yaml:"dev" doc:"accept development roots, on loopback only"`
	Cleanup   cleanup        `yaml:"cleanup"`
	Witness   witnesses      `yaml:"witness"`
	Limits    limits         `yaml:"limits"`
	Notify    notifySettings `yaml:"notify"`
	OnCall    onCallSettings `yaml:"on_call"`
}

// cleanup is when members are removed that nobody hears any more.
type cleanup struct {
	After     time.Duration `yaml:"after" doc:"remove a member that the leader has not heard for this long (default never)"`
	MinVoters int           `yaml:"min_voters" doc:"how many voters that leaves at least (default 3, which is the least)"`
}

// minCleanup keeps a reboot, or a switch that is exchanged, from costing a node.
const minCleanup = time.Hour

// listen is where a node listens.
type listen struct {
	API   string `yaml:"api" doc:"address of the API, HOST:PORT"`
	Raft  string `yaml:"raft" doc:"address for the other nodes, HOST:PORT"`
	Admin string `yaml:"admin" doc:"health and metrics: loopback HOST:PORT or unix:PATH; empty: none"`
}

// processSettings is what every long-running command has, by flags and environment only.
type processSettings struct {
	Log struct {
		Format string `yaml:"format" doc:"form of log lines: text or json"`
		Level  string `yaml:"level" doc:"least level of log lines: debug, info, warn or error"`
	} `yaml:"log"`
}

// clientVariables are the variables of commands that call the API. A server or proxy started from
// a shell that has them is not confused by them.
func clientVariables() []string { return []string{"HALLPASS_SERVER", "HALLPASS_IDENTITY"} }

// addSettings gives a command one flag for each setting of the given structs.
func addSettings(cmd *cobra.Command, structs ...any) {
	for _, s := range structs {
		for _, f := range config.Fields(s) {
			doc := f.Doc
			if doc == "" {
				doc = f.Path + " of the file"
			}
			cmd.Flags().String(f.Flag(), "", fmt.Sprintf("%s (%s)", doc, f.Env()))
			if f.Bool() {
				cmd.Flags().Lookup(f.Flag()).NoOptDefVal = "true"
			}
		}
	}
}

// override sets what environment and flags say, in this order.
func (a *app) override(cmd *cobra.Command, structs ...any) error {
	var fields []config.Field
	for _, s := range structs {
		fields = append(fields, config.Fields(s)...)
	}
	if err := config.Environ(fields, a.environ(), clientVariables()); err != nil {
		return err
	}
	for _, f := range fields {
		flag := cmd.Flags().Lookup(f.Flag())
		if flag == nil || !flag.Changed {
			continue
		}
		if err := f.Set(flag.Value.String()); err != nil {
			return usagef("--%s: %w", f.Flag(), err)
		}
	}
	return nil
}

// loadServer reads a control node's settings; file may be "".
func loadServer(file string) (serverSettings, error) {
	var s serverSettings
	if file == "" {
		return s, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return s, fmt.Errorf("%w: %w", config.ErrConfig, err)
	}
	if err := config.Decode(file, text, &s); err != nil {
		return s, err
	}
	lines, err := config.Lines(file, text)
	if err != nil {
		return s, err
	}
	s.Notify.from(filepath.Dir(file))
	s.OnCall.from(filepath.Dir(file))
	if err := errors.Join(s.Notify.check(lines), s.OnCall.check(lines)); err != nil {
		return s, err
	}
	paths := []*string{&s.DataDir, &s.KeysDir, &s.Manifest, &s.Witness.SecretFile}
	for i := range s.Witness.Files {
		paths = append(paths, &s.Witness.Files[i]) // an empty one stays what it is, and is refused
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(file), *p)
		}
	}
	return s, nil
}

// check says what is missing, all at once.
func (s serverSettings) check() error {
	var errs []error
	for _, f := range config.Fields(&s) {
		switch f.Path {
		case "data_dir", "keys_dir", "manifest", "node", "listen.api", "listen.raft":
			if f.String() == "" {
				errs = append(errs, fmt.Errorf("%w: %s is missing: %s (or --%s, %s)", config.ErrConfig, f.Path, f.Doc, f.Flag(), f.Env()))
			}
		}
	}
	if err := control.CheckLogStore(s.LogStore); err != nil {
		errs = append(errs, fmt.Errorf("%w: log_store: %w", config.ErrConfig, err))
	}
	if after := s.Cleanup.After; after != 0 && after < minCleanup {
		errs = append(errs, fmt.Errorf("%w: cleanup.after: %s is below %s: a machine that restarts would be removed", config.ErrConfig, after, minCleanup))
	}
	if n := s.Cleanup.MinVoters; n != 0 && n < 3 {
		errs = append(errs, fmt.Errorf("%w: cleanup.min_voters: %d: want 3 or more", config.ErrConfig, n))
	}
	if err := control.CheckRetention(s.retention()); err != nil {
		errs = append(errs, fmt.Errorf("%w: retention_days: %w", config.ErrConfig, err))
	}
	errs = append(errs, s.Witness.check())
	if s.Listen.Admin != "" && !localAddress(s.Listen.Admin) {
		errs = append(errs, fmt.Errorf("%w: listen.admin: %s is not loopback: health and metrics have no authentication", config.ErrConfig, s.Listen.Admin))
	}
	return errors.Join(errs...)
}

// retention is retention_days; one that no duration can hold is one that is too long.
func (s serverSettings) retention() time.Duration {
	const day = 24 * time.Hour
	return time.Duration(max(min(s.Retention, int(math.MaxInt64/day)), -1)) * day
}

// localAddress reports whether only this machine can reach an address to listen on.
func localAddress(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// telemetry sets up logs, metrics and traces of a long-running command.
func (a *app) telemetry(ctx context.Context, service, instance string, p processSettings) (*telemetry.Telemetry, error) {
	format := telemetry.Format(p.Log.Format)
	if format != "" && format != telemetry.Text && format != telemetry.JSON {
		return nil, usagef("log.format %q: want text or json", p.Log.Format)
	}
	level := slog.LevelInfo
	if p.Log.Level != "" {
		if err := level.UnmarshalText([]byte(p.Log.Level)); err != nil {
			return nil, usagef("log.level %q: want debug, info, warn or error", p.Log.Level)
		}
	}
	t, err := telemetry.Setup(ctx, telemetry.Options{
		Service: service, Version: version, Instance: instance,
		LogWriter: a.stderr, LogFormat: format, LogLevel: level,
	})
	if err != nil {
		return nil, err
	}
	t.Install() //nolint:contextcheck // OpenTelemetry reports its own errors under no context
	return t, nil
}
