package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallpass/hallpass/bench/seed"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/internal/demo"
	"github.com/hallpass/hallpass/raftstore"
)

// seededCluster is a stage whose nodes have lived for long. Nothing of it was
// started.
type seededCluster struct {
	stage *demo.Stage
	dir   string // where it is; removed at the end
	scale float64
	done  seed.Done
}

func (c seededCluster) close() {
	c.stage.Close()
	_ = os.RemoveAll(c.dir) // scratch
}

// keptSeed is what is written beside a seeded folder that is kept for later runs.
type keptSeed struct {
	Addresses []string  `json:"addresses"`
	Until     time.Time `json:"until"` // the people's identities are good
	Done      seed.Done `json:"done"`
}

const (
	keptFile = "seed.json"
	keptLife = 20 * 24 * time.Hour // the identities are good for 30 days
)

// seededAt makes a seeded cluster, or goes on with a copy of one that an earlier
// run has made with the same code: at full size that takes longer than all else.
func seededAt(ctx context.Context, r *report, options func(dir string) demo.Options) (seededCluster, error) {
	key, err := codeHash(".", "approval", "audit", "grant", "policy", "trust", "raftstore", "bench/seed", "internal/demo", "go.mod")
	if err != nil {
		return seededCluster{}, fmt.Errorf("bench is run in the folder of the module: %w", err)
	}
	kept, err := filepath.Abs(filepath.Join(r.seeds, fmt.Sprintf("%g-%s", r.scale, key[:16])))
	if err != nil {
		return seededCluster{}, err
	}
	c, err := openSeeded(r, kept, options)
	if err == nil {
		r.note("the seeded cluster is the one of an earlier run, in %s", kept)
		return c, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		r.note("the seeded cluster of an earlier run cannot be used: %v", err)
	}
	if err := makeSeeded(ctx, r, kept, options); err != nil {
		return c, fmt.Errorf("seed a cluster: %w", err)
	}
	return openSeeded(r, kept, options)
}

// codeHash is a hash of the sources that a seeded folder depends on.
func codeHash(root string, paths ...string) (string, error) {
	h := sha256.New()
	for _, p := range paths {
		err := filepath.WalkDir(filepath.Join(root, p), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && d.Name() == "api" || d.IsDir() && d.Name() == "testdata" {
				return fs.SkipDir
			}
			if d.IsDir() || strings.HasSuffix(path, "_test.go") || !strings.HasSuffix(path, ".go") && d.Name() != "go.mod" {
				return nil
			}
			text, err := os.ReadFile(path)
			_, _ = h.Write(append(fmt.Appendf(nil, "%s %d\n", path, len(text)), text...)) // a hash's Write never fails
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// makeSeeded seeds a cluster into a folder that is there only once it is whole.
func makeSeeded(ctx context.Context, r *report, kept string, options func(dir string) demo.Options) error {
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		return err
	}
	work := kept + ".new"
	if err := errors.Join(os.RemoveAll(work), os.RemoveAll(kept)); err != nil {
		return err
	}
	stage, err := demo.NewStage(options(work))
	if err != nil {
		return err
	}
	defer stage.Close()
	if err := stage.Found(ctx); err != nil {
		return err
	}
	m, err := ca.LoadManifest(stage.Manifest())
	if err != nil {
		return err
	}
	dirs := make(map[string]string)
	for _, n := range m.Nodes {
		dirs[n.ID] = stage.DataDir(n.ID)
	}
	now := time.Now()
	plan := seed.Plan{
		Grants: int(fullGrants * r.scale), Entries: int(fullEntries * r.scale),
		// A smaller cluster is one that is used less, not one that is younger: what goes by age stays in proportion.
		Days: fullDays, End: now, Seed: 1,
	}
	r.note("seeding %d grants and %d audit entries: this is done once for this code and kept in %s", plan.Grants, plan.Entries, kept)
	done, err := seed.Cluster(ctx, plan, m, dirs, raftstore.LogBolt, func(d seed.Done) {
		r.note("seeding: %d entries after %.0f s", d.Entries, d.Took.Seconds())
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(keptSeed{Addresses: stage.Addresses(), Until: now.Add(keptLife), Done: done})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, keptFile), text, 0o600); err != nil {
		return err
	}
	return os.Rename(work, kept)
}

// openSeeded makes a stage of a copy of a seeded folder.
func openSeeded(r *report, kept string, options func(dir string) demo.Options) (c seededCluster, err error) {
	text, err := os.ReadFile(filepath.Join(kept, keptFile))
	if err != nil {
		return c, err
	}
	var k keptSeed
	if err := json.Unmarshal(text, &k); err != nil {
		return c, err
	}
	if time.Now().After(k.Until) {
		return c, fmt.Errorf("it is too old: its certificates end soon after %s", k.Until.Format(time.DateOnly))
	}
	// Beside the folder that it is copied from, so that segments can be linked.
	c = seededCluster{dir: fmt.Sprintf("%s.run-%d", kept, os.Getpid()), scale: r.scale, done: k.Done}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}()
	if err := copyStage(c.dir, kept); err != nil {
		return c, err
	}
	o := options(c.dir)
	o.Again = k.Addresses
	if c.stage, err = demo.NewStage(o); err != nil {
		return c, err
	}
	d := k.Done
	r.note("seeded: %d requests (%d pending), %d grants (%d live), %d audit entries, by %d commands in %.0f s, %.0f µs each; the snapshot took %.1f s",
		d.Requests, d.Pending, d.Grants, d.Live, d.Entries, d.Commands, d.Took.Seconds(), d.Took.Seconds()/float64(max(d.Commands, 1))*1e6, d.SnapshotTook.Seconds())
	return c, nil
}

// copyStage copies a stage's folder without its links. What a node's data has that
// never changes is not copied but linked.
func copyStage(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			return nil
		case d.IsDir() && d.Name() == "data" && slices.Contains([]string{"n1", "n2", "n3"}, filepath.Dir(name)):
			if err := raftstore.CopySeeded(target, path); err != nil {
				return err
			}
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		}
		return copyPrivate(target, path)
	})
}

func copyPrivate(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
