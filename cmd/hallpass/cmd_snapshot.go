package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/control"
)

func (a *app) newSnapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Backups of the cluster: save, inspect, restore",
		Long: `Backups of the cluster: its state, and its audit log. A snapshot holds no private
key, and everything else there is to know about who may do what: keep it as you
keep the audit log. See docs/operations.md for how to come back from one.`,
	}
	cmd.AddCommand(a.newSnapshotSave(), a.newSnapshotInspect(), a.newSnapshotRestore())
	return cmd
}

func (a *app) newSnapshotSave() *cobra.Command {
	var without bool
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Take a snapshot of the running cluster; for admins",
		Long: `Take a snapshot of the running cluster, of all that it had acknowledged before. It
is read back and checked before it gets its name: FILE is a whole snapshot, or as
it was before. Only its owner can read it.

--without-audit-bodies leaves out the entries of the audit log, and keeps what they
are checked by. To restore from such a snapshot takes the entries from a node's disk or
an export beside it: take it where the audit log is kept elsewhere.`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var info control.SnapshotInfo
			err := a.call(cmd.Context(), func(ctx context.Context, c *api.Client) (err error) {
				info, err = saveSnapshot(ctx, c, args[0], !without)
				return err
			})
			if err != nil {
				return err
			}
			a.next("keep it where the nodes' disks are not, and its SHA-256 somewhere else")
			return a.printSnapshot(info)
		},
	}
	cmd.Flags().BoolVar(&without, "without-audit-bodies", false, "leave out the entries of the audit log")
	return cmd
}

// saveSnapshot puts a snapshot in place in one step, once it has been read back from the disk.
func saveSnapshot(ctx context.Context, c *api.Client, path string, bodies bool) (info control.SnapshotInfo, err error) {
	if was, err := os.Stat(path); err == nil && !was.Mode().IsRegular() {
		return info, fmt.Errorf("%s is not a file: give the name of the snapshot to write", path)
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-") // 0600
	if err != nil {
		return info, fmt.Errorf("no file can be made in %s: %w", dir, errors.Unwrap(err)) // the name that was tried says nothing
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	out := bufio.NewWriterSize(tmp, 1<<20)
	_, err = c.Snapshot(ctx, bodies, out)
	if err = errors.Join(err, out.Flush(), tmp.Sync(), tmp.Close()); err != nil {
		return info, err
	}
	if info, err = control.InspectSnapshot(tmp.Name()); err != nil {
		return info, fmt.Errorf("what came is no whole snapshot, and was deleted: %w", err)
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return info, err
	}
	return info, syncFolder(dir)
}

// syncFolder returns once the names in a folder have reached the disk.
func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (a *app) newSnapshotInspect() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "Say what a snapshot is of, after reading all of it",
		Long: `Say what a snapshot is of, after reading all of it. It works offline. Every checksum
is checked, the state against its hash, and the audit log's entries against the root
that is in the state. A damaged file ends with status 1 and says where the damage is.

That the file is the cluster's own it cannot say: compare the SHA-256 with the one you
kept. That the audit root is one that nodes have signed says that the log in it is
theirs, and nothing of the policy, the persons and the grants.`,
		Args: exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			info, err := control.InspectSnapshot(args[0])
			if err != nil {
				return err
			}
			return a.printSnapshot(info)
		},
	}
}

func (a *app) printSnapshot(s control.SnapshotInfo) error {
	return a.print(s, func(w *tabular) {
		w.field("cluster", s.Cluster)
		w.field("trust domain", s.TrustDomain)
		w.field("grants", s.GrantTrustDomain)
		w.field("lineage", s.Lineage)
		w.field("epoch", strconv.FormatUint(s.Epoch, 10))
		w.field("index", strconv.FormatUint(s.Index, 10))
		w.field("term", strconv.FormatUint(s.Term, 10))
		w.field("newest", w.when(s.Newest))
		w.field("audit log", fmt.Sprintf("%d entries, %s", s.AuditSize, map[bool]string{true: "all in it and checked", false: "none in it"}[s.AuditBodies]))
		w.field("audit root", s.AuditRoot)
		w.field("state hash", s.StateHash)
		w.field("manifest", strconv.FormatUint(s.Manifest, 10))
		w.field("commands", strconv.Itoa(s.Commands))
		w.field("written by", s.Node)
		w.field("bytes", strconv.FormatInt(s.Bytes, 10))
		w.field("sha256", s.SHA256)
		w.line("")
		w.row("MEMBER", "ROLE", "RAFT")
		for _, m := range s.Members {
			w.row(m.ID, string(m.Role), m.Address)
		}
	})
}
