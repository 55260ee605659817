package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sort"
	"time"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
)

// eachEntry gives fn the entries of the live log from one on, up to another and
// without it, while fn wants more. A node that gives one in another's place is
// found out.
func eachEntry(ctx context.Context, c *api.Client, from, to uint64, fn func(e audit.Entry, body []byte) (more bool, err error)) error {
	for from < to {
		run, err := c.AuditEntries(ctx, from, 1000)
		if err != nil {
			return err
		}
		if len(run.Entries) == 0 {
			return fmt.Errorf("the log ends at entry %d, before entry %d", from, to)
		}
		for _, body := range run.Entries[:min(uint64(len(run.Entries)), to-from)] {
			e, err := audit.ParseEntry(body)
			if err == nil && e.Index != from {
				err = fmt.Errorf("entry %d stands in its place", e.Index)
			}
			if err != nil {
				return fmt.Errorf("entry %d: %w", from, err)
			}
			if more, err := fn(e, body); err != nil || !more {
				return err
			}
			from++
		}
	}
	return nil
}

// firstSince finds the first entry that is not before a time: the log's time never runs back.
func firstSince(ctx context.Context, c *api.Client, from time.Time, size uint64) (uint64, error) {
	var err error
	first := sort.Search(int(size), func(i int) bool {
		if err != nil {
			return true
		}
		var run api.AuditEntries
		if run, err = c.AuditEntries(ctx, uint64(i), 1); err != nil || len(run.Entries) == 0 {
			return true
		}
		var e audit.Entry
		if e, err = audit.ParseEntry(run.Entries[0]); err != nil {
			return true
		}
		return !e.Time.Before(from)
	})
	return uint64(first), err
}

// exportFlags are those of a command that can read an export instead of the live log.
func (v *verifying) exportFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&v.keys, "key", nil, "verifier `key` of a node, for --export; repeat for more")
	flags.StringVar(&v.keysFile, "keys", "", "`file` of verifier keys, one a line, for --export")
	flags.StringVar(&v.manifest, "manifest", "", "the cluster's manifest.json, for --export")
	flags.IntVar(&v.require, "require", 0, requireUsage+", for --export")
}

// eachExported gives fn the entries of an export. What it was given counts once all
// of that is verified, which it is when no error comes back.
func (a *app) eachExported(export string, v verifying, fn func(audit.Entry) error) error {
	return exported(folder(export), func(e evidence) error {
		lines := &eachLine{fn: func(line []byte) error {
			entry, err := audit.ParseEntry(line)
			if err != nil {
				return nil //nolint:nilerr // whoever verifies says so, and where
			}
			return fn(entry)
		}}
		e.entries = io.TeeReader(e.entries, lines)
		if _, err := a.verifyEvidence(e, v); err != nil {
			return err
		}
		return lines.end()
	})
}

// eachLine gives the lines of what is written to fn.
type eachLine struct {
	fn   func(line []byte) error
	part []byte // of a line whose end has not come
}

// end gives a last line that nothing ended.
func (e *eachLine) end() error {
	if len(e.part) == 0 {
		return nil
	}
	return e.fn(e.part)
}

// Write implements io.Writer.
func (e *eachLine) Write(p []byte) (int, error) {
	rest := p
	for {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if e.part = append(e.part, line...); !whole {
			return len(p), nil
		}
		if err := e.fn(e.part); err != nil {
			return 0, err
		}
		e.part, rest = e.part[:0], after
	}
}
