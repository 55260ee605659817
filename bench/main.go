package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A suite is a set of figures that are measured together.
type suite struct {
	name string
	run  func(ctx context.Context, r *report) error
}

func suites() []suite {
	return []suite{
		{"scope", benchScope},
		{"control", benchControl},
		{"proxy", benchProxy},
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == upstreamWord {
		os.Exit(upstreamMain(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", os.Getenv("ONLY"), "one suite: scope, control or proxy")
	part := flags.String("part", "", "one part of the control suite: writes, mint, approve, revoke, expiry or failover")
	binary := flags.String("hallpass", "bin/hallpass", "the binary to measure")
	peers := flags.String("peers", ".bin/peers", "folder of the peers that bench/setup builds")
	pairs := flags.Int("pairs", 5, "turns that ours and theirs take")
	limit := flags.Duration("limit", 20*time.Minute, "give up after this long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	all := suites()
	if *only != "" && !slices.ContainsFunc(all, func(s suite) bool { return s.name == *only }) {
		return fmt.Errorf("-only %q: want scope, control or proxy", *only)
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "hallpass-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // scratch
	var failed []error
	for _, s := range all {
		if *only != "" && s.name != *only {
			continue
		}
		r := &report{out: stdout, log: stderr, dir: dir, binary: *binary, part: *part, peers: *peers, pairs: *pairs}
		if err := s.run(ctx, r); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return errors.Join(failed...)
}

// report is where a suite prints and what it needs to know.
type report struct {
	out, log io.Writer
	dir      string // scratch, removed at the end
	binary   string
	part     string // of a suite; empty: all
	peers    string // folder of the peers that bench/setup built
	pairs    int
}

// figure prints one measured value.
func (r *report) figure(name string, value float64, unit string) {
	fmt.Fprintf(r.out, "%s %s %s\n", name, significant(value), unit)
}

// missing prints that a figure could not be taken since its peer is not there.
func (r *report) missing(names ...string) {
	for _, name := range names {
		fmt.Fprintf(r.out, "%s missing\n", name)
	}
}

// note tells the person who runs this something about the run.
func (r *report) note(format string, args ...any) {
	fmt.Fprintf(r.log, "bench: "+format+"\n", args...)
}

// peer finds a program that bench/setup built, and says which version it is.
func (r *report) peer(name string) (path string, ok bool) {
	path = filepath.Join(r.peers, name)
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		r.note("%s is not here: bench/setup builds it", name)
		return "", false
	}
	r.note("%s is %s %s, built with %s", name, info.Main.Path, info.Main.Version, info.GoVersion)
	return path, true
}

// significant writes three significant digits without an exponent.
func significant(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return strings.TrimRight(fmt.Sprintf("%.4f", v), "0")
	}
}

// median returns the middle of values, 0 of none.
func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile returns the q-quantile of values by the nearest rank, 0 of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(q*float64(len(sorted)) + 0.9999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}
