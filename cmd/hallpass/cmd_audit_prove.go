package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

const (
	// proofSkew is how much earlier than its id says a request may stand in the log: the clocks of
	// the node that made the id and of the one that led may differ.
	proofSkew = 10 * time.Minute
	// proofTail is how long after a grant's end entries about it are still looked for.
	proofTail = 24 * time.Hour
)

func (a *app) newAuditProve() *cobra.Command {
	var out string
	var require int
	cmd := &cobra.Command{
		Use:   "prove GRANT",
		Short: "Write a bundle that proves offline what the log says of one grant",
		Long: `Write what the log says of a grant, or of the request for it: who asked, who
decided, each certificate, how it ended. With each entry goes the proof that it
is in the log, and with all of them the log's signed head, so that an auditor who
has the nodes' public keys checks the file without asking anybody:

    hallpass audit verify FILE --keys KEYS

The bundle shows that these entries are in the log. That there are no others
about the grant, only the whole log shows: audit export.

--require K writes nothing unless K nodes have cosigned the head: see audit verify.`,
		Args: exactArgs("grant"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = args[0] + ".bundle"
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				return a.prove(ctx, c, args[0], out, require)
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` to write; GRANT.bundle if none is given")
	cmd.Flags().IntVar(&require, "require", 0, requireUsage)
	return cmd
}

func (a *app) prove(ctx context.Context, c *api.Client, grant, out string, require int) error {
	id, err := uuid.Parse(grant)
	if err != nil || id.Version() != 7 || id.String() != grant {
		return usagef("%q is not the id of a grant", grant)
	}
	cp, _, err := a.head(ctx, c, require)
	if err != nil {
		return err
	}
	b := audit.Bundle{Grant: grant, Checkpoint: []byte(cp.Checkpoint)}
	sec, nsec := id.Time().UnixTime()
	about, err := entriesAbout(ctx, c, grant, time.Unix(sec, nsec).Add(-proofSkew), cp.Size)
	if err != nil {
		return err
	}
	if len(about) == 0 {
		return fmt.Errorf("the log has no entry about %s", grant)
	}
	for _, found := range about {
		proof, err := c.InclusionProof(ctx, found.index, cp.Size)
		if err != nil {
			return err
		}
		hashes, err := parseHashes(proof.Hashes)
		if err != nil {
			return err
		}
		b.Entries = append(b.Entries, audit.Proven{Body: found.body, Proof: hashes})
	}
	if err := writeNew(out, b.Encode()); err != nil {
		return err
	}
	a.next("hallpass audit verify %s --manifest manifest.json", out)
	return a.print(map[string]any{"bundle": out, "grant": grant, "entries": len(about)}, func(w *tabular) {
		w.line("%d entries about %s in %s", len(about), grant, filepath.Clean(out))
	})
}

// found is an entry about a grant.
type found struct {
	index uint64
	body  json.RawMessage
}

// entriesAbout reads the entries about a grant among the first size of the log, from a time on.
func entriesAbout(ctx context.Context, c *api.Client, grant string, from time.Time, size uint64) (about []found, err error) {
	at, err := firstSince(ctx, c, from, size)
	if err != nil {
		return nil, err
	}
	var until time.Time // zero while it has not ended
	review := false     // of a broken glass is open
	err = eachEntry(ctx, c, at, size, func(e audit.Entry, body []byte) (more bool, err error) {
		if e.Concerns(grant) {
			about = append(about, found{e.Index, body})
			if e.Ends(grant) {
				until = e.Time.Add(proofTail)
			}
			opened, closed := e.Review(grant)
			review = (review || opened) && !closed
		}
		return review || until.IsZero() || !e.Time.After(until), nil
	})
	return about, err
}

// writeNew writes a file that was not there.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // for others to check
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
