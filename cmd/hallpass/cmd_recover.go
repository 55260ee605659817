package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/control"
	"github.com/hallpass/hallpass/internal/config"
)

// offlineFlags are the flags of commands on a node that does not run.
type offlineFlags struct {
	file   string
	reason string
	until  string
}

func (f *offlineFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.file, "config", "", "the node's configuration `file`")
	flags.StringVar(&f.reason, "reason", "", "why, for the audit log")
	flags.StringVar(&f.until, "lost-until", "", "`time` (RFC 3339) until which the cluster was at work, where it is later than this machine's clock")
	// Whoever starts the server by flags uses the same ones here.
	addSettings(cmd, new(serverSettings), new(processSettings))
	for _, s := range []any{new(serverSettings), new(processSettings)} {
		for _, field := range config.Fields(s) {
			if !slices.Contains(offlineSettings(), field.Path) {
				_ = cmd.Flags().MarkHidden(field.Flag()) // it is there
			}
		}
	}
}

// offlineSettings are those of a server's settings that matter while it does not run.
func offlineSettings() []string {
	return []string{"node", "data_dir", "log_store", "keys_dir", "manifest", "skew"}
}

// node reads the settings as the server does, and the node's keys.
func (f *offlineFlags) node(a *app, cmd *cobra.Command) (o control.Offline, err error) {
	s, err := loadServer(f.file)
	if err != nil {
		return o, err
	}
	var p processSettings
	if err := a.override(cmd, &s, &p); err != nil {
		return o, err
	}
	if err := s.checkOffline(); err != nil {
		return o, err
	}
	manifest, err := ca.LoadManifest(s.Manifest)
	if err != nil {
		return o, err
	}
	node, err := ca.LoadNode(s.KeysDir, manifest)
	if err != nil {
		return o, err
	}
	if node.ID != s.Node {
		return o, fmt.Errorf("%w: node is %s, and keys_dir %s holds the keys of %s", config.ErrConfig, s.Node, s.KeysDir, node.ID)
	}
	return control.Offline{
		Node: node, Manifest: manifest, DataDir: s.DataDir, LogStore: s.LogStore, Skew: s.Skew, Now: a.now,
		Logger: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}, nil
}

// checkOffline says what is missing of what matters.
func (s serverSettings) checkOffline() error {
	var errs []error
	for _, f := range config.Fields(&s) {
		switch f.Path {
		case "data_dir", "keys_dir", "manifest", "node":
			if f.String() == "" {
				errs = append(errs, fmt.Errorf("%w: %s is missing: %s (or --%s, %s)", config.ErrConfig, f.Path, f.Doc, f.Flag(), f.Env()))
			}
		}
	}
	if err := control.CheckLogStore(s.LogStore); err != nil {
		errs = append(errs, fmt.Errorf("%w: log_store: %w", config.ErrConfig, err))
	}
	return errors.Join(errs...)
}

// lostUntil reads --lost-until.
func (f *offlineFlags) lostUntil() (t time.Time, err error) {
	if f.until == "" {
		return t, nil
	}
	if t, err = time.Parse(time.RFC3339, f.until); err != nil {
		return t, usagef("--lost-until %q: want a time such as 2026-11-30T08:00:00Z", f.until)
	}
	return t, nil
}

func (a *app) newSnapshotRestore() *cobra.Command {
	var f offlineFlags
	var opts control.RestoreOptions
	cmd := &cobra.Command{
		Use:   "restore FILE --config FILE",
		Short: "Make a stopped node's empty data_dir of a snapshot, for a cluster that begins anew",
		Long: `Make a node's data_dir of a snapshot. It works offline: the node is stopped, and its
data_dir empty, or a part of it that an earlier restore has left. Everything is read
and checked first; whatever is wrong, the data_dir stays empty. - is standard input.

The node is the only voter then, of a log with a lineage of its own. When it starts, a
new epoch begins: what the cluster had granted, also after the snapshot, is denied at
the proxies and cannot be renewed, and what was asked for or remembered for an
Idempotency-Key has ended. The other nodes join it with empty data_dirs; one with what
it had before is not let in.

A snapshot can be forged whole: give --sha256, of where you keep it. A snapshot without
the audit log's entries needs them from elsewhere: --audit-entries, a data_dir of a
node or a folder of audit export. docs/operations.md has the whole procedure.`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.LostUntil, err = f.lostUntil(); err != nil {
				return err
			}
			if opts.Entries != "" && opts.WithoutEntries {
				return usagef("--audit-entries and --without-audit-entries contradict each other")
			}
			o, err := f.node(a, cmd)
			if err != nil {
				return err
			}
			opts.Reason = f.reason
			return a.restore(o, args[0], opts)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.SHA256, "sha256", "", "the `hash` that the file must have")
	flags.StringVar(&opts.AuditRoot, "audit-root", "", "the `root` that the audit log in it must have")
	flags.StringVar(&opts.Entries, "audit-entries", "", "`folder` with the audit log's entries, for a snapshot without")
	flags.BoolVar(&opts.WithoutEntries, "without-audit-entries", false, "go on without them: what no export holds is lost")
	f.add(cmd)
	return cmd
}

func (a *app) restore(o control.Offline, path string, opts control.RestoreOptions) error {
	in := a.stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }() // only read
		in = file
	}
	done, err := control.Restore(o, in, opts)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if opts.SHA256 == "" {
		a.warn("nothing says that this is the cluster's own snapshot: compare its SHA-256 with the one that you kept, before you start the node")
	}
	if done.EntriesMissing > 0 {
		a.warn("%d entries of the audit log are lost, but for exports: /readyz will say so", done.EntriesMissing)
	}
	a.nextAfter(done.Node, done.NewBeginning)
	a.next("do again what was done after %s: docs/operations.md, \"Coming back from a snapshot\"", done.Snapshot.Newest.Format(time.RFC3339))
	return a.print(done, func(w *tabular) {
		w.field("node", done.Node)
		w.field("newest", w.when(done.Snapshot.Newest))
		w.field("audit log", fmt.Sprintf("%d entries", done.Snapshot.AuditSize))
		w.field("audit root", done.Snapshot.AuditRoot)
		w.field("sha256", done.Snapshot.SHA256)
		w.field("index", strconv.FormatUint(done.Snapshot.Index, 10))
		w.field("lineage", done.Lineage+", instead of "+done.Snapshot.Lineage)
		w.beginning(done.NewBeginning)
	})
}

func (a *app) warn(format string, args ...any) {
	fmt.Fprintln(a.stderr, "warning:", safeLine(fmt.Sprintf(format, args...)))
}

func (w *tabular) beginning(b control.NewBeginning) {
	w.field("epoch", fmt.Sprintf("%d, from %s on", b.Epoch, b.Begins.Format(time.RFC3339Nano)))
	w.field("others", orNone(strings.Join(b.Others, ", ")))
}

// nextAfter says what comes after a node was made the only one.
func (a *app) nextAfter(node string, b control.NewBeginning) {
	a.next("start %s", node)
	for _, other := range b.Others {
		a.next("%s, where it is to come back: move its data_dir away, start it, hallpass cluster join %[1]s, hallpass cluster promote %[1]s;"+
			" where it is lost: hallpass cluster remove %[1]s", other)
	}
}

func (a *app) newClusterRecover() *cobra.Command {
	var f offlineFlags
	var opts control.RecoverOptions
	var dry bool
	cmd := &cobra.Command{
		Use:   "recover --config FILE --lost NODE,… --reason TEXT",
		Short: "Have a stopped node go on alone, when the other voters are lost for good",
		Long: `Have a node go on alone when so many voters are lost for good that no quorum will
ever be there again. It works offline, on one node that is left, while that is stopped.

Of several nodes that are left take the one with the highest term, and of these the one
with the highest index: --dry-run says them, and changes nothing. --lost names all other
voters, exactly: each of them must be stopped for good, or have its data_dir moved away,
before this node starts. One that is alive could still grant, with others like it.

All that the node's log has is kept, also what is not known to be committed: it may
have been acknowledged. What the node did not have is lost. The node is the only voter
then, of a log with a lineage of its own, and a new epoch begins when it starts: see
snapshot restore. What it had before is put aside in its data_dir, before-….`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if opts.LostUntil, err = f.lostUntil(); err != nil {
				return err
			}
			switch {
			case dry && (len(opts.Lost) > 0 || f.reason != ""):
				return usagef("--dry-run takes neither --lost nor --reason: it changes nothing")
			case !dry && len(opts.Lost) == 0:
				return usagef("no --lost given: name all other voters, once each is stopped for good; --dry-run says which there are")
			case !dry && f.reason == "":
				return usagef("no reason given: --reason 'why'")
			}
			o, err := f.node(a, cmd)
			if err != nil {
				return err
			}
			if dry {
				return a.survey(o)
			}
			opts.Reason = f.reason
			return a.recover(o, opts)
		},
	}
	cmd.Flags().StringSliceVar(&opts.Lost, "lost", nil, "all other voters, comma separated")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what this node has, and change nothing")
	f.add(cmd)
	return cmd
}

func (a *app) survey(o control.Offline) error {
	s, err := o.Survey()
	if err != nil {
		return err
	}
	return a.print(s, func(w *tabular) { w.survey(s) })
}

func (w *tabular) survey(s control.LogSurvey) {
	w.field("node", s.Node)
	w.field("term", strconv.FormatUint(s.Term, 10))
	w.field("index", strconv.FormatUint(s.Index, 10))
	w.field("committed", fmt.Sprintf("at least up to %d; of the %d after that nobody here knows", s.Committed, s.Index-s.Committed))
	w.field("voters", strings.Join(s.Voters, ", "))
	w.field("nonvoters", orNone(strings.Join(s.Nonvoters, ", ")))
	if s.Joining {
		w.field("joining", "it had not caught up with the others: entries may be missing here")
	}
}

func (a *app) recover(o control.Offline, opts control.RecoverOptions) error {
	done, err := control.Recover(o, opts)
	if err != nil {
		return err
	}
	if done.EntriesMissing > 0 {
		a.warn("%d entries of the audit log are missing here: /readyz will say so", done.EntriesMissing)
	}
	a.next("see to it that %s cannot start with what they have: stop them for good, or move their data_dir away", strings.Join(opts.Lost, " and "))
	a.nextAfter(done.Node, done.NewBeginning)
	a.next("once all is well, delete %s: it is what the node had before", done.Aside)
	return a.print(done, func(w *tabular) {
		w.survey(done.LogSurvey)
		w.field("audit log", fmt.Sprintf("%d entries", done.Entries))
		w.field("lineage", done.Lineage+", instead of "+done.OldLog)
		w.beginning(done.NewBeginning)
		w.field("put aside", done.Aside)
	})
}
