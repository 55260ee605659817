package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
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
		Short: "The log of every change: tail, export, prove, verify, read access logs",
	}
	cmd.AddCommand(a.newAuditTail(), a.newAuditExport(), a.newAuditCheckpoint(), a.newAuditKeys(), a.newAuditProve(), a.newAuditVerify(),
		a.newAuditCheckAccess(), a.newAuditAccess())
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
	_, err := fmt.Fprintln(a.stdout, entryLine(e))
	return err
}

// entryLine is an entry for people.
func entryLine(e audit.Entry) string {
	who := e.Actor
	if who == "" {
		who = "the cluster"
	}
	return fmt.Sprintf("%6d  %s  %-16s %s  %s  %s", e.Index, e.Time.Format("2006-01-02 15:04:05.000Z"),
		safeLine(e.Kind), safeLine(who), safeLine(e.Object), safeLine(string(e.Details)))
}

func (a *app) newAuditExport() *cobra.Command {
	var out string
	var require int
	cmd := &cobra.Command{
		Use:   "export --out FOLDER",
		Short: "Write the whole log with a signed checkpoint, for `audit verify`",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usagef("no folder given: --out FOLDER")
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.export(ctx, c, out, require)
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "new `folder` to write")
	cmd.Flags().IntVar(&require, "require", 0, requireUsage)
	return cmd
}

// requireUsage is of the flag --require, wherever it is.
const requireUsage = "how many `nodes` must have cosigned the log's head"

// head asks for the log's signed head, again for a while when fewer nodes than required have
// cosigned it, as when one of them is behind. The keys are those that the cluster names: who does
// not believe it verifies afterwards.
func (a *app) head(ctx context.Context, c *api.Client, require int) (cp api.AuditCheckpoint, cluster api.Cluster, err error) {
	if cluster, err = c.Cluster(ctx); err != nil {
		return cp, cluster, err
	}
	for deadline := a.now().Add(a.timeout); ; {
		if cp, err = c.AuditCheckpoint(ctx); err != nil || require == 0 {
			return cp, cluster, err
		}
		if err = cosigned([]byte(cp.Checkpoint), cluster, require); err == nil || !a.now().Before(deadline) {
			return cp, cluster, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return cp, cluster, ctx.Err()
		}
	}
}

// cosigned checks that enough of the nodes that the cluster names cosigned a head.
func cosigned(head []byte, cluster api.Cluster, require int) error {
	verifiers, err := audit.Verifiers(auditKeys(cluster)...)
	if err != nil {
		return err
	}
	r, _, err := audit.Growth{Older: head, Newer: head, Verifiers: verifiers}.Verify()
	if err != nil {
		return err
	}
	return r.Require(require)
}

func (a *app) export(ctx context.Context, c *api.Client, out string, require int) error {
	cp, cluster, err := a.head(ctx, c, require)
	if err != nil {
		return err
	}
	if err := os.Mkdir(out, 0o700); err != nil {
		return err
	}
	entries, err := newFile(folder(out).file(entriesFile))
	if err != nil {
		return err
	}
	leaves, err := newFile(folder(out).file(leavesFile))
	if err != nil {
		return errors.Join(err, entries.close())
	}
	err = copyEntries(ctx, c, entries, leaves, cp.Size)
	if err := errors.Join(err, entries.close(), leaves.close()); err != nil {
		return err
	}
	keys := strings.Join(append(auditKeys(cluster), ""), "\n")
	if err := errors.Join(folder(out).write(checkpointFile, cp.Checkpoint), folder(out).write(keysFile, keys)); err != nil {
		return err
	}
	a.next("hallpass audit verify %s --manifest manifest.json", out)
	return a.print(map[string]any{"folder": out, "entries": cp.Size}, func(w *tabular) {
		w.line("%d entries in %s", cp.Size, out)
	})
}

// exportFile is a new file of an export, which only its owner reads.
type exportFile struct {
	*bufio.Writer

	file *os.File
}

func newFile(path string) (exportFile, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	return exportFile{bufio.NewWriterSize(file, 1<<20), file}, err
}

func (f exportFile) close() error { return errors.Join(f.Flush(), f.file.Sync(), f.file.Close()) }

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

func (a *app) newAuditCheckpoint() *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint",
		Short: "Print the log's signed head, to be kept where the cluster cannot reach it",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				cp, err := c.AuditCheckpoint(ctx)
				if err != nil {
					return err
				}
				if a.output == "table" { // byte for byte: it is signed
					_, err = io.WriteString(a.stdout, cp.Checkpoint)
					return err
				}
				return a.print(cp, nil)
			})
		},
	}
}

func (a *app) newAuditKeys() *cobra.Command {
	return &cobra.Command{
		Use:   "keys",
		Short: "Print the nodes' public audit keys, one a line, for `audit verify --keys`",
		Long: `Print the keys that the nodes sign checkpoints with, one a line. Compare them
with the manifest, which the offline root has signed, before you rely on them: a
cluster that forged its log would also give you the keys of the forger.

A node cosigns with the same key. Programs that want a verifier key of its own for
that, as C2SP tlog-cosignature has it, find it after the others; audit verify takes
both, and needs the first alone.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				cluster, err := c.Cluster(ctx)
				if err != nil {
					return err
				}
				keys, cosigners := auditKeys(cluster), []string{}
				for _, key := range keys {
					cosigner, err := audit.CosignerKey(key)
					if err != nil {
						return err
					}
					cosigners = append(cosigners, cosigner)
				}
				return a.print(map[string]any{"keys": keys, "cosigner_keys": cosigners}, func(w *tabular) {
					for _, key := range append(slices.Clip(keys), cosigners...) {
						w.line("%s", key)
					}
				})
			})
		},
	}
}

func auditKeys(cluster api.Cluster) (keys []string) {
	for _, n := range cluster.Nodes {
		keys = append(keys, n.AuditKey)
	}
	return keys
}
