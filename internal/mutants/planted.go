package main

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	plantFileName = regexp.MustCompile(`^fuzz-[a-z0-9-]+\.txtar$`)
	plantTestName = regexp.MustCompile(`^Fuzz[A-Za-z0-9_]+$`)
)

func (m Mutant) checkPlant(file string) error {
	if !plantFileName.MatchString(file) {
		return errors.New("file name: want fuzz-NAME.txtar")
	}
	if !plantTestName.MatchString(m.Test) {
		return fmt.Errorf("test: want the name of one fuzz target, got %q", m.Test)
	}
	return nil
}

// plant puts a bug in the place of the guard and fuzzes the target, from its seeds alone, until
// it has found the bug or the time is up. That the seeds find it is not enough: then it is the
// seeds that are good, and nothing is known of the fuzzing.
func (r *runner) plant(ctx context.Context, m Mutant) (outcome, error) {
	var began time.Time // to fuzz: building counts for nothing
	o, err := r.changed(m, func(dir, overlay string) (why, output string, err error) {
		bin := filepath.Join(dir, "planted.test")
		build := exec.CommandContext(ctx, "go", "test", "-c", "-fuzz", "^"+m.Test+"$", "-overlay="+overlay, "-o", bin, m.Package)
		build.Dir = r.root
		if out, err := build.CombinedOutput(); err != nil {
			return "with the bug: " + notBuilt.String(), string(out), ctx.Err()
		}
		// A crasher is written where the target runs, and must not come to lie among the sources.
		home := filepath.Join(dir, "run", "package")
		if err := mirror(filepath.Join(r.root, filepath.FromSlash(strings.TrimPrefix(m.Package, "./"))), home); err != nil {
			return "", "", err
		}
		began = time.Now()
		ctx, cancel := context.WithTimeout(ctx, r.timeout+2*time.Minute)
		defer cancel()
		// Else each input that reaches new code is made smaller for a minute before the next is tried.
		run := exec.CommandContext(ctx, bin, "-test.run=^$", "-test.fuzz=^"+m.Test+"$", "-test.fuzztime="+r.timeout.String(), "-test.fuzzminimizetime=10x",
			"-test.fuzzcachedir="+filepath.Join(dir, "cache"), "-test.parallel=1")
		run.Dir = home
		out, err := run.CombinedOutput()
		if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
			return "", "", fmt.Errorf("%s: %w", m.Test, err)
		}
		return judgePlant(string(out), err == nil), string(out), nil
	})
	if !began.IsZero() {
		o.took = time.Since(began)
	}
	return o, err
}

// judgePlant says why a run does not show that fuzzing finds the bug, or "".
func judgePlant(output string, ok bool) string {
	switch {
	case strings.Contains(output, "failure while testing seed corpus entry"), strings.Contains(output, "gathering baseline coverage") && strings.Contains(output, "seed#"):
		return "a seed finds it: plant what only fuzzing finds"
	case strings.Contains(output, "Failing input written to "):
		return ""
	case ok:
		return "fuzzing does not find it in time"
	default:
		return "the target did not run to its own end"
	}
}

// mirror makes home stand for a package's folder: its files, as links, and its test data, but not
// the crashers of before.
func mirror(dir, home string) error {
	link := func(from, to string, except string) error {
		all, err := os.ReadDir(from)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		for _, e := range all {
			if e.Name() == except {
				continue
			}
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(
		link(dir, home, "testdata"),
		link(filepath.Join(dir, "testdata"), filepath.Join(home, "testdata"), "fuzz"),
		// What a target reads from elsewhere in the module is beside its package.
		link(filepath.Dir(dir), filepath.Dir(home), filepath.Base(dir)),
	)
}

// fuzzTarget is a fuzz target of the module.
type fuzzTarget struct {
	pkg, name string
	doc       string // what it holds against what it reads
}

// fuzzTargets finds every fuzz target under root.
func fuzzTargets(root string) ([]fuzzTarget, error) {
	var all []fuzzTarget
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || nestedModule(path)):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && plantTestName.MatchString(f.Name.Name) {
				all = append(all, fuzzTarget{"./" + filepath.ToSlash(rel), f.Name.Name, f.Doc.Text()})
			}
		}
		return nil
	})
	return all, err
}

func nestedModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// unproven says which targets no planted bug was found by, and which do not say what they check.
func unproven(targets []fuzzTarget, planted []Mutant) []string {
	var all []string
	for _, t := range targets {
		if strings.TrimSpace(t.doc) == "" {
			all = append(all, fmt.Sprintf("%s %s does not say what it holds against what it reads", t.pkg, t.name))
		}
		if !slices.ContainsFunc(planted, func(m Mutant) bool { return m.Package == t.pkg && m.Test == t.name }) {
			all = append(all, fmt.Sprintf("%s %s has no planted bug", t.pkg, t.name))
		}
	}
	return all
}
