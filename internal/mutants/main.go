package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// errSurvived is returned when a mutant survived or an invariant has none.
var errSurvived = errors.New("an invariant is not guarded by its test")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.Is(err, errSurvived):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	flags.SetOutput(stderr)
	root := flags.String("root", "", "the module's root (default: that of the current folder)")
	catalogue := flags.String("catalogue", "", "folder of the *.txtar files, from the root (default: internal/mutants/catalogue, or planted)")
	only := flags.Int("only", 0, "run the mutants of this invariant alone")
	name := flags.String("name", "", "run those alone whose file's name this regular expression matches")
	planted := flags.Bool("fuzz", false, "plant the bugs of internal/mutants/planted instead, for the fuzz targets to find within the time-out")
	target := flags.String("target", "", "with -fuzz: this target alone")
	list := flags.Bool("list", false, "print the fuzz targets, as PACKAGE NAME, and do nothing")
	verbose := flags.Bool("v", false, "print what each failing test said")
	timeout := flags.Duration("timeout", 0, "for one run of one test (default: 3m, or 1m of fuzzing)")
	if err := flags.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if *root == "" {
		var err error
		if *root, err = moduleRoot(ctx); err != nil {
			return err
		}
	}
	targets, err := fuzzTargets(*root)
	if err != nil {
		return err
	}
	if *list {
		for _, t := range targets {
			fmt.Fprintln(stdout, t.pkg, t.name)
		}
		return nil
	}
	folder, limit := "internal/mutants/catalogue", 3*time.Minute
	if *planted {
		folder, limit = "internal/mutants/planted", time.Minute
	}
	mutants, err := readCatalogue(os.DirFS(filepath.Join(*root, filepath.FromSlash(cmp.Or(*catalogue, folder)))))
	if err != nil {
		return err
	}
	named, err := regexp.Compile(*name)
	if err != nil {
		return err
	}
	wanted := slices.DeleteFunc(slices.Clone(mutants), func(m Mutant) bool {
		return *only != 0 && m.Invariant != *only || !named.MatchString(m.Name) || *target != "" && m.Test != *target
	})
	r := &runner{root: *root, timeout: cmp.Or(*timeout, limit), stands: map[[2]string]result{}}
	var none []string // of what there should be
	last, do := "mutants: %d killed, %d survived\n", r.run
	switch whole := *only == 0 && *name == "" && *target == ""; {
	case *planted:
		last, do = "planted: %d found, %d not\n", r.plant
		if whole {
			none = unproven(targets, mutants)
		}
	case whole:
		none = missing(mutants)
	}
	if !*planted {
		if err := r.standTogether(ctx, wanted); err != nil {
			return err
		}
	}
	killed, survived := 0, 0
	if err := r.each(ctx, wanted, do, func(o outcome) {
		report(stdout, o, *verbose)
		if o.killed() {
			killed++
		} else {
			survived++
		}
	}); err != nil {
		return err
	}
	for _, what := range none {
		fmt.Fprintln(stdout, "MISSING  ", what)
	}
	fmt.Fprintf(stdout, last, killed, survived)
	if survived > 0 || len(none) > 0 || killed == 0 {
		return errSurvived
	}
	return nil
}

// report prints one line an outcome, and, for a survivor or with verbose, the test's own words.
func report(w io.Writer, o outcome, verbose bool) {
	word := "killed  "
	if !o.killed() {
		word = "SURVIVED"
	}
	fmt.Fprintf(w, "%s  %-45s %s %.1fs", word, o.mutant.Name, o.mutant.Test, o.took.Seconds())
	if !o.killed() {
		fmt.Fprintf(w, ": %s", o.why)
	}
	fmt.Fprintln(w)
	if verbose || !o.killed() {
		for line := range strings.Lines(strings.TrimSpace(o.output)) {
			fmt.Fprintf(w, "          | %s\n", strings.TrimRight(line, "\n"))
		}
	}
}

// moduleRoot returns the folder of the go.mod that the current folder belongs to.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	file := string(bytes.TrimSpace(out))
	if file == "" || file == os.DevNull {
		return "", errors.New("run it inside the module")
	}
	return filepath.Dir(file), nil
}
