package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/internal/config"
	"github.com/hallpass/hallpass/proxy"
)

func (a *app) newServerCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "server --config FILE",
		Short: "Run a control node until SIGINT or SIGTERM",
		Long: `Run a control node until SIGINT or SIGTERM. Settings come from the file, then
from HALLPASS_* variables, then from flags. server init makes a node's keys, and
ca sign-node the manifest that its cluster shares.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := loadServer(file)
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
			return a.serve(cmd.Context(), s, p)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `file`")
	addSettings(cmd, new(serverSettings), new(processSettings))
	cmd.AddCommand(newServerInitCommand(a), newServerInstall(a))
	return cmd
}

// serve runs a control node until ctx ends.
func (a *app) serve(ctx context.Context, s serverSettings, p processSettings) (err error) {
	manifest, err := ca.LoadManifest(s.Manifest)
	if err != nil {
		return err
	}
	if err := s.checkDev(manifest.Dev); err != nil {
		return err
	}
	node, err := ca.LoadNode(s.KeysDir, manifest)
	if err != nil {
		return err
	}
	if node.ID != s.Node {
		return fmt.Errorf("%w: node is %s, and keys_dir %s holds the keys of %s", config.ErrConfig, s.Node, s.KeysDir, node.ID)
	}
	tel, err := a.telemetry(ctx, "hallpass-server", node.ID, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Shutdown(context.WithoutCancel(ctx))) }()

	witness, err := s.Witness.control()
	if err != nil {
		return err
	}
	tell, err := s.Notify.control()
	if err != nil {
		return err
	}
	resolvers, err := s.OnCall.control()
	if err != nil {
		return err
	}
	cfg := control.Config{
		Witness: witness, Notify: tell, Resolvers: resolvers,
		Node: node, Manifest: manifest, DataDir: s.DataDir, LogStore: s.LogStore, Logger: tel.Logger, Now: a.now,
		Skew: s.Skew, StrictSVID: s.Strict, Retention: s.retention(),
		Limits:  s.Limits.control(),
		Cleanup: control.Cleanup{After: s.Cleanup.After, MinVoters: s.Cleanup.MinVoters},
		Tracer:  tel.TracerProvider, Meter: tel.MeterProvider, Metrics: tel.MetricsHandler,
	}
	if err := s.bindAll(ctx, &cfg); err != nil {
		return err
	}
	a.easeCollector()
	server, err := control.New(cfg) //nolint:contextcheck // a node lives until Run ends; calls bring their own
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // what it took to read the log through is not needed again
	ctx, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { giveBack(ctx, idleCheck) })
	defer group.Wait()
	defer stop()
	// Its ports are open, and what it answers while it has no leader is an answer.
	tellManager(ctx, tel.Logger, daemon.SdNotifyReady)
	defer context.AfterFunc(ctx, func() { tellManager(ctx, tel.Logger, daemon.SdNotifyStopping) })()
	return server.Run(ctx)
}

// checkDev refuses development roots where others could reach the node: their keys were made in
// passing, by a command whose folder anybody may have copied.
func (s serverSettings) checkDev(dev bool) error {
	switch {
	case !dev:
		return nil
	case !s.Dev:
		return fmt.Errorf("%w: %s has development roots: make real ones with ca init, or set dev: true and stay on loopback", config.ErrConfig, s.Manifest)
	case !localAddress(s.Listen.API) || !localAddress(s.Listen.Raft):
		return fmt.Errorf("%w: development roots on %s and %s: listen on loopback", config.ErrConfig, s.Listen.API, s.Listen.Raft)
	}
	return nil
}

// bindAll opens a node's listeners, all or none.
func (s serverSettings) bindAll(ctx context.Context, cfg *control.Config) error {
	given, err := inherit(wanted{"api", s.Listen.API, false}, wanted{"raft", s.Listen.Raft, false}, wanted{"admin", s.Listen.Admin, true})
	if err != nil {
		return err
	}
	var opened []net.Listener
	for _, l := range []struct {
		key, address string
		to           *net.Listener
	}{
		{"listen.api", s.Listen.API, &cfg.API},
		{"listen.raft", s.Listen.Raft, &cfg.Raft},
		{"listen.admin", s.Listen.Admin, &cfg.Admin},
	} {
		if l.address == "" {
			continue
		}
		open := func(ctx context.Context, address string) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, "tcp", address)
		}
		if l.to == &cfg.Admin {
			open = proxy.ListenLocal
		}
		listener := given[l.address]
		if listener == nil {
			listener, err = open(ctx, l.address)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", l.key, err)
			for _, o := range opened {
				err = errors.Join(err, o.Close())
			}
			return err
		}
		*l.to = listener
		opened = append(opened, listener)
	}
	return nil
}

// gcPercent lets the heap of a control node grow to five times what lives on it. That is a few
// megabytes, since the state is in files; at the usual factor of two a busy node collects dozens of
// times a second, and spends a sixth of its time on it.
const gcPercent = 400

const (
	idleCheck = 15 * time.Second
	// idleAllocs is how many bytes a node allocates at most, from one check to the next, with nobody
	// calling it.
	idleAllocs = 32 << 20
)

// giveBack returns to the system what a burst of work has left of memory, once little is going on: the
// collector would hold on to it for as long as too little is allocated for it to run.
func giveBack(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	before := uint64(0)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		metrics.Read(allocated)
		now := allocated[0].Value.Uint64()
		if now-before < idleAllocs {
			debug.FreeOSMemory()
		}
		before = now
	}
}

// easeCollector sets it, unless whoever started the node says otherwise by GOGC.
func (a *app) easeCollector() {
	if !slices.ContainsFunc(a.environ(), func(kv string) bool { return strings.HasPrefix(kv, "GOGC=") }) {
		debug.SetGCPercent(gcPercent)
	}
}
