package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
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
	catalogue := flags.String("catalogue", "internal/mutants/catalogue", "folder of the *.txtar files, from the root")
	only := flags.Int("only", 0, "run the mutants of this invariant alone")
	verbose := flags.Bool("v", false, "print what each failing test said")
	timeout := flags.Duration("timeout", 3*time.Minute, "for one run of one test")
	if err := flags.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if *root == "" {
		var err error
		if *root, err = moduleRoot(ctx); err != nil {
			return err
		}
	}
	mutants, err := readCatalogue(os.DirFS(filepath.Join(*root, filepath.FromSlash(*catalogue))))
	if err != nil {
		return err
	}
	r := &runner{root: *root, timeout: *timeout, stands: map[[2]string]result{}}
	killed, survived := 0, 0
	for _, m := range mutants {
		if *only != 0 && m.Invariant != *only {
			continue
		}
		o, err := r.run(ctx, m)
		if err != nil {
			return err
		}
		report(stdout, o, *verbose)
		if o.killed() {
			killed++
		} else {
			survived++
		}
	}
	var none []string
	if *only == 0 {
		none = missing(mutants)
	}
	for _, name := range none {
		fmt.Fprintf(stdout, "MISSING   invariant %s has no mutant\n", name)
	}
	fmt.Fprintf(stdout, "mutants: %d killed, %d survived\n", killed, survived)
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
