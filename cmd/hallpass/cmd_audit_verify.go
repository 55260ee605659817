package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/ca"
)

// verifying is what `audit verify` was told.
type verifying struct {
	keys     []string
	keysFile string
	manifest string
	older    []string
	since    string
	save     string
	require  int
}

func (a *app) newAuditVerify() *cobra.Command {
	var v verifying
	cmd := &cobra.Command{
		Use:   "verify [FOLDER|BUNDLE]",
		Short: "Check an export, a bundle or the live log with nothing but public keys",
		Long: `Check that a log is exactly the one that a node signed: every entry in its
place, none changed, added or left out. With a folder, that of audit export,
nothing is asked of anybody; without one, the live log is read. With a bundle,
the file of audit prove, the entries in it are shown to be in the log.

--since FILE, a checkpoint kept from earlier, checks that the log has only grown
since. Of the live log it asks for no more than a proof of that, however long the
log is. --save FILE keeps the newer checkpoint, once it is verified, for the next
time. The two may be the same file.

--require K refuses a head that fewer than K nodes have cosigned. A node cosigns
what agrees with the log that it applied itself, so that a single node, or a thief
of its keys, cannot show you a log of its own: 2 of three nodes, 3 of five.

The keys are those of --key, --keys or the cluster's --manifest. Without any, the
keys that came with the log are used: that finds damage, but not a forger who
replaced the keys as well. --older checks that checkpoints kept from earlier are
of this same history.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s: one folder or bundle at most", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if v.require < 0 {
				return usagef("--require %d: a number of nodes", v.require)
			}
			switch isFile, err := regular(args); {
			case err != nil:
				return err
			case isFile:
				return a.verifyBundle(args[0], v)
			case len(args) == 0 && v.since != "" && len(v.older) == 0:
				return a.verifySince(cmd.Context(), v)
			}
			if len(args) == 1 {
				return exported(folder(args[0]), func(e evidence) error { return a.verify(e, v) })
			}
			return a.verifyLive(cmd.Context(), v)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&v.keys, "key", nil, "verifier `key` of a node (NAME+HASH+BASE64); repeat for more")
	flags.StringVar(&v.keysFile, "keys", "", "`file` of verifier keys, one a line: see audit keys")
	flags.StringVar(&v.manifest, "manifest", "", "the cluster's manifest.json, for its nodes' keys")
	flags.StringArrayVar(&v.older, "older", nil, "checkpoint `file` kept from earlier; repeat for more")
	flags.StringVar(&v.since, "since", "", "checkpoint `file` kept from earlier: has the log only grown?")
	flags.IntVar(&v.require, "require", 0, requireUsage)
	flags.StringVar(&v.save, "save", "", "`file` to keep the verified checkpoint in")
	return cmd
}

// regular reports whether the argument is a file rather than a folder.
func regular(args []string) (bool, error) {
	if len(args) == 0 {
		return false, nil
	}
	info, err := os.Stat(args[0])
	return err == nil && info.Mode().IsRegular(), err
}

// verifiers are the keys to believe: those given, or else those that came with the log, of which
// the caller is warned.
func (a *app) verifiers(v verifying, came []string) (note.Verifiers, error) {
	keys := v.keys
	if v.keysFile != "" {
		text, err := os.ReadFile(v.keysFile)
		if err != nil {
			return nil, err
		}
		keys = append(keys, strings.Fields(string(text))...)
	}
	if v.manifest != "" {
		m, err := ca.LoadManifest(v.manifest)
		if err != nil {
			return nil, err
		}
		for _, n := range m.Nodes {
			keys = append(keys, n.AuditKey)
		}
	}
	if len(keys) == 0 && len(came) > 0 {
		fmt.Fprintln(a.stderr, "warning: using the keys that came with the log; give --manifest, --keys or --key to be sure whose log it is")
		keys = came
	}
	verifiers, err := audit.Verifiers(keys...)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return verifiers, nil
}

// keep writes the checkpoint that was verified, if told to.
func (v verifying) keep(checkpoint []byte) error {
	if v.save == "" {
		return nil
	}
	return folder(filepath.Dir(v.save)).write(filepath.Base(v.save), string(checkpoint))
}

// evidence is what a log is checked from. A log of years is read as it comes, and not held.
type evidence struct {
	entries    io.Reader
	leaves     io.Reader // may be nil
	checkpoint []byte
	keys       []string
}

// exported opens a folder of audit export.
func exported(dir folder, fn func(evidence) error) (err error) {
	var e evidence
	keys, err1 := os.ReadFile(dir.file(keysFile))
	checkpoint, err2 := os.ReadFile(dir.file(checkpointFile))
	e.keys, e.checkpoint = strings.Fields(string(keys)), checkpoint
	entries, err3 := os.Open(dir.file(entriesFile))
	if err3 == nil {
		defer func() { _ = entries.Close() }() // only read
		e.entries = entries
	}
	leaves, err4 := os.Open(dir.file(leavesFile))
	switch {
	case err4 == nil:
		defer func() { _ = leaves.Close() }() // only read
		e.leaves = leaves
	case errors.Is(err4, fs.ErrNotExist):
		err4 = nil
	}
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	return fn(e)
}

// verifyLive checks the live log.
func (a *app) verifyLive(ctx context.Context, v verifying) error {
	return a.call(ctx, func(ctx context.Context, c *api.Client) error {
		cp, cluster, err := a.head(ctx, c, v.require)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		entries, w := io.Pipe()
		done := make(chan struct{})
		go func() { // ends with the log, or with who reads it
			defer close(done)
			w.CloseWithError(copyEntries(ctx, c, w, io.Discard, cp.Size))
		}()
		err = a.verify(evidence{entries: entries, checkpoint: []byte(cp.Checkpoint), keys: auditKeys(cluster)}, v)
		cancel()
		_ = entries.Close() // never fails
		<-done
		return err
	})
}

// verified is the answer of `audit verify`.
type verified struct {
	TrustDomain string   `json:"trust_domain"`
	Epoch       uint64   `json:"epoch"`
	Entries     int64    `json:"entries"`
	Root        string   `json:"root"`
	Signers     []string `json:"signers"`
	Cosigners   []string `json:"cosigners"`
	Older       int      `json:"older_checkpoints"`
	Since       *int64   `json:"since,omitempty"`
	Grant       string   `json:"grant,omitempty"`
	Proven      []uint64 `json:"proven_entries,omitempty"`
}

func verifiedOf(r audit.Report) verified {
	return verified{
		TrustDomain: r.TrustDomain, Epoch: r.Epoch, Entries: r.Checkpoint.Size, Root: r.Checkpoint.Root.String(),
		Signers: r.Signers, Cosigners: slices.Concat([]string{}, r.Cosigners), Older: r.Older,
	}
}

// head prints which log it was.
func (v verified) head(w *tabular) {
	w.field("of", v.TrustDomain+", epoch "+strconv.FormatUint(v.Epoch, 10))
	w.field("entries", strconv.FormatInt(v.Entries, 10))
	w.field("root", v.Root)
	w.field("signed by", strings.Join(v.Signers, "\n"))
	if len(v.Cosigners) > 0 {
		w.field("cosigned by", strings.Join(v.Cosigners, "\n"))
	}
}

// verifyEvidence checks a whole log.
func (a *app) verifyEvidence(e evidence, v verifying) (audit.Report, error) {
	verifiers, err := a.verifiers(v, e.keys)
	if err != nil {
		return audit.Report{}, err
	}
	ev := audit.Evidence{Entries: e.entries, Leaves: e.leaves, Checkpoint: e.checkpoint, Verifiers: verifiers}
	older := v.older
	if v.since != "" {
		older = append(older, v.since)
	}
	for _, file := range older {
		signed, err := os.ReadFile(file)
		if err != nil {
			return audit.Report{}, err
		}
		ev.Older = append(ev.Older, signed)
	}
	r, err := ev.Verify()
	if err == nil {
		err = r.Require(v.require)
	}
	return r, err
}

func (a *app) verify(e evidence, v verifying) error {
	r, err := a.verifyEvidence(e, v)
	if err != nil {
		return err
	}
	if err := v.keep(e.checkpoint); err != nil {
		return err
	}
	out := verifiedOf(r)
	return a.print(out, func(w *tabular) {
		w.field("log", "verified: nothing changed, added or left out")
		out.head(w)
		if out.Entries > 0 {
			w.field("from", w.when(r.First))
			w.field("to", w.when(r.Last))
		}
		if out.Older > 0 {
			w.field("older", strconv.Itoa(out.Older)+" checkpoints are of the same history")
		}
	})
}

// verifySince checks that the live log extends a checkpoint kept from earlier.
func (a *app) verifySince(ctx context.Context, v verifying) error {
	older, err := os.ReadFile(v.since)
	if err != nil {
		return err
	}
	return a.call(ctx, func(ctx context.Context, c *api.Client) error {
		cp, cluster, err := a.head(ctx, c, v.require)
		if err != nil {
			return err
		}
		verifiers, err := a.verifiers(v, auditKeys(cluster))
		if err != nil {
			return err
		}
		r, from, err := audit.Growth{
			Older: older, Newer: []byte(cp.Checkpoint), Verifiers: verifiers,
			Proof: func(older, newer int64) ([]tlog.Hash, error) {
				proof, err := c.ConsistencyProof(ctx, uint64(older), uint64(newer))
				if err != nil {
					return nil, err
				}
				return parseHashes(proof.Hashes)
			},
		}.Verify()
		if err == nil {
			err = r.Require(v.require)
		}
		if err != nil {
			return err
		}
		if err := v.keep([]byte(cp.Checkpoint)); err != nil {
			return err
		}
		out := verifiedOf(r)
		out.Since = &from.Size
		return a.print(out, func(w *tabular) {
			w.field("log", fmt.Sprintf("append-only: it begins with the %d entries of %s, and %d were added", from.Size, v.since, r.Checkpoint.Size-from.Size))
			out.head(w)
		})
	})
}

func parseHashes(texts []string) (hashes []tlog.Hash, err error) {
	for _, text := range texts {
		h, err := tlog.ParseHash(text)
		if err != nil {
			return nil, fmt.Errorf("%w: not a hash: %q", audit.ErrProof, text)
		}
		hashes = append(hashes, h)
	}
	return hashes, nil
}

// verifyBundle checks a file of audit prove. Nothing is asked of anybody.
func (a *app) verifyBundle(path string, v verifying) error {
	if v.since != "" || len(v.older) > 0 {
		return usagef("--since and --older are for a whole log: a bundle shows some of its entries")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b, err := audit.ParseBundle(data)
	if err != nil {
		return err
	}
	// There are no keys in it to fall back to: who made it could have put his own there.
	if len(v.keys) == 0 && v.keysFile == "" && v.manifest == "" {
		return usagef("whose log is it? Give the nodes' public keys: --keys, --key or --manifest")
	}
	verifiers, err := a.verifiers(v, nil)
	if err != nil {
		return err
	}
	r, entries, err := b.Verify(verifiers)
	if err == nil {
		err = r.Require(v.require)
	}
	if err != nil {
		return err
	}
	if err := v.keep(b.Checkpoint); err != nil {
		return err
	}
	out := verifiedOf(r)
	out.Grant = b.Grant
	for _, e := range entries {
		out.Proven = append(out.Proven, e.Index)
	}
	return a.print(out, func(w *tabular) {
		w.field("bundle", fmt.Sprintf("verified: these %d entries are in the log, as they are written here", len(entries)))
		w.field("grant", out.Grant)
		out.head(w)
		w.flush()
		for _, e := range entries {
			w.line("%s", entryLine(e))
		}
	})
}
