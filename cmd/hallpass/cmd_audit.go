package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/ca"
)

// The files of an export.
const (
	entriesFile    = "entries.jsonl"
	leavesFile     = "leaves" // the leaf hash of each entry: lets verify name a changed one
	checkpointFile = "checkpoint"
	keysFile       = "keys"
)

func (a *app) newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "The log of every change: tail, export, verify",
	}
	cmd.AddCommand(a.newAuditTail(), a.newAuditExport(), a.newAuditVerify())
	return cmd
}

func (a *app) newAuditTail() *cobra.Command {
	var last uint64
	var follow bool
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print the newest entries, one a line",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.tail(ctx, c, last, follow)
			})
		},
	}
	cmd.Flags().Uint64VarP(&last, "last", "n", 20, "how many entries to begin with")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with each new entry until interrupted")
	return cmd
}

func (a *app) tail(ctx context.Context, c *api.Client, last uint64, follow bool) error {
	head, err := c.AuditEntries(ctx, 0, 1)
	if err != nil {
		return err
	}
	from := uint64(0)
	if head.Size > last {
		from = head.Size - last
	}
	for {
		if from, err = a.printEntries(ctx, c, from); err != nil || !follow {
			return err
		}
		// Any event says that the log has grown; the entries themselves come from the log.
		err = c.WatchEvents(ctx, from, func(api.Event) error { return errGrown })
		select {
		case <-ctx.Done():
			return nil // interrupted, as -f is meant to be
		default:
		}
		if !errors.Is(err, errGrown) {
			return err
		}
	}
}

// errGrown ends the wait for the next entry.
var errGrown = errors.New("the log has grown")

// printEntries prints the entries from an index on and returns the index after the last.
func (a *app) printEntries(ctx context.Context, c *api.Client, from uint64) (uint64, error) {
	for {
		run, err := c.AuditEntries(ctx, from, 0)
		if err != nil {
			return from, err
		}
		for _, body := range run.Entries {
			e, err := audit.ParseEntry(body)
			if err != nil {
				return from, fmt.Errorf("entry %d: %w", from, err)
			}
			if err := a.printEntry(e, body); err != nil {
				return from, err
			}
			from++
		}
		if len(run.Entries) == 0 || from >= run.Size {
			return from, nil
		}
	}
}

// printEntry prints one entry on one line, in whichever form: a log is read by line.
func (a *app) printEntry(e audit.Entry, body []byte) error {
	if a.output != "table" {
		_, err := fmt.Fprintf(a.stdout, "%s\n", safeJSON(body))
		return err
	}
	who := e.Actor
	if who == "" {
		who = "the cluster"
	}
	_, err := fmt.Fprintf(a.stdout, "%6d  %s  %-16s %s  %s  %s\n", e.Index, e.Time.Format("2006-01-02 15:04:05.000Z"),
		safeLine(e.Kind), safeLine(who), safeLine(e.Object), safeLine(string(e.Details)))
	return err
}

func (a *app) newAuditExport() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "export --out FOLDER",
		Short: "Write the whole log with a signed checkpoint, for `audit verify`",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usagef("no folder given: --out FOLDER")
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.export(ctx, c, out)
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "new `folder` to write")
	return cmd
}

func (a *app) export(ctx context.Context, c *api.Client, out string) error {
	cp, err := c.AuditCheckpoint(ctx)
	if err != nil {
		return err
	}
	cluster, err := c.Cluster(ctx)
	if err != nil {
		return err
	}
	if err := os.Mkdir(out, 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(folder(out).file(entriesFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	var leaves bytes.Buffer
	err = copyEntries(ctx, c, file, &leaves, cp.Size)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	var keys strings.Builder
	for _, n := range cluster.Nodes {
		fmt.Fprintln(&keys, n.AuditKey)
	}
	err = errors.Join(folder(out).write(checkpointFile, cp.Checkpoint), folder(out).write(keysFile, keys.String()),
		folder(out).write(leavesFile, leaves.String()))
	if err != nil {
		return err
	}
	a.next("hallpass audit verify %s --manifest manifest.json", out)
	return a.print(map[string]any{"folder": out, "entries": cp.Size}, func(w *tabular) {
		w.line("%d entries in %s", cp.Size, out)
	})
}

// copyEntries writes the entries before size, one a line, byte for byte as they were hashed, and
// to leaves their hashes.
func copyEntries(ctx context.Context, c *api.Client, w, leaves io.Writer, size uint64) error {
	for at := uint64(0); at < size; {
		run, err := c.AuditEntries(ctx, at, 0)
		if err != nil {
			return err
		}
		if len(run.Entries) == 0 {
			return fmt.Errorf("the log ends at entry %d, before its checkpoint's %d", at, size)
		}
		for _, body := range run.Entries[:min(uint64(len(run.Entries)), size-at)] {
			if _, err := w.Write(append(bytes.Clone(body), '\n')); err != nil {
				return err
			}
			if _, err := fmt.Fprintln(leaves, audit.LeafHash(body)); err != nil {
				return err
			}
			at++
		}
	}
	return nil
}

func (a *app) newAuditVerify() *cobra.Command {
	var keys, older []string
	var manifest string
	cmd := &cobra.Command{
		Use:   "verify [FOLDER]",
		Short: "Check an export, or the live log, with nothing but public keys",
		Long: `Check that a log is exactly the one that a node signed: every entry in its
place, none changed, added or left out. With a folder, that of audit export,
nothing is asked of anybody; without one, the live log is read.

The keys are those of --key or of the cluster's --manifest. Without either, the
keys that came with the log are used: that finds damage, but not a forger who
replaced the keys as well. --older checks that checkpoints kept from earlier are
of this same history.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s: one folder at most", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.evidence(cmd.Context(), args)
			if err != nil {
				return err
			}
			return a.verify(e, keys, manifest, older)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "verifier `key` of a node (NAME+HASH+BASE64); repeat for more")
	cmd.Flags().StringVar(&manifest, "manifest", "", "the cluster's manifest.json, for its nodes' keys")
	cmd.Flags().StringArrayVar(&older, "older", nil, "checkpoint `file` kept from earlier; repeat for more")
	return cmd
}

// evidence is what a log is checked from.
type evidence struct {
	entries    []byte
	leaves     []byte // may be nil
	checkpoint []byte
	keys       []string
}

// evidence reads a folder of audit export, or the live log.
func (a *app) evidence(ctx context.Context, args []string) (evidence, error) {
	var e evidence
	if len(args) == 1 {
		dir := folder(args[0])
		var err1, err2, err3, err4 error
		var keys []byte
		e.entries, err1 = os.ReadFile(dir.file(entriesFile))
		e.checkpoint, err2 = os.ReadFile(dir.file(checkpointFile))
		keys, err3 = os.ReadFile(dir.file(keysFile))
		e.keys = strings.Fields(string(keys))
		if e.leaves, err4 = os.ReadFile(dir.file(leavesFile)); errors.Is(err4, fs.ErrNotExist) {
			err4 = nil
		}
		return e, errors.Join(err1, err2, err3, err4)
	}
	err := a.call(ctx, func(ctx context.Context, c *api.Client) error {
		cp, err := c.AuditCheckpoint(ctx)
		if err != nil {
			return err
		}
		cluster, err := c.Cluster(ctx)
		if err != nil {
			return err
		}
		for _, n := range cluster.Nodes {
			e.keys = append(e.keys, n.AuditKey)
		}
		var entries bytes.Buffer
		err = copyEntries(ctx, c, &entries, io.Discard, cp.Size)
		e.entries, e.checkpoint = entries.Bytes(), []byte(cp.Checkpoint)
		return err
	})
	return e, err
}

// verified is the answer of `audit verify`.
type verified struct {
	TrustDomain string   `json:"trust_domain"`
	Epoch       uint64   `json:"epoch"`
	Entries     int64    `json:"entries"`
	Root        string   `json:"root"`
	Signers     []string `json:"signers"`
	Older       int      `json:"older_checkpoints"`
}

func (a *app) verify(e evidence, keys []string, manifest string, older []string) error {
	if manifest != "" {
		m, err := ca.LoadManifest(manifest)
		if err != nil {
			return err
		}
		for _, n := range m.Nodes {
			keys = append(keys, n.AuditKey)
		}
	}
	if len(keys) == 0 {
		fmt.Fprintln(a.stderr, "warning: using the keys that came with the log; give --manifest or --key to be sure whose log it is")
		keys = e.keys
	}
	verifiers, err := audit.Verifiers(keys...)
	if err != nil {
		return usagef("%w", err)
	}
	ev := audit.Evidence{Entries: bytes.NewReader(e.entries), Checkpoint: e.checkpoint, Verifiers: verifiers}
	if e.leaves != nil {
		ev.Leaves = bytes.NewReader(e.leaves)
	}
	for _, file := range older {
		signed, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		ev.Older = append(ev.Older, signed)
	}
	r, err := ev.Verify()
	if err != nil {
		return err
	}
	v := verified{r.TrustDomain, r.Epoch, r.Checkpoint.Size, r.Checkpoint.Root.String(), r.Signers, r.Older}
	return a.print(v, func(w *tabular) {
		w.field("log", "verified: nothing changed, added or left out")
		w.field("of", v.TrustDomain+", epoch "+strconv.FormatUint(v.Epoch, 10))
		w.field("entries", strconv.FormatInt(v.Entries, 10))
		if v.Entries > 0 {
			w.field("from", w.when(r.First))
			w.field("to", w.when(r.Last))
		}
		w.field("root", v.Root)
		w.field("signed by", strings.Join(v.Signers, "\n"))
		if v.Older > 0 {
			w.field("older", strconv.Itoa(v.Older)+" checkpoints are of the same history")
		}
	})
}
