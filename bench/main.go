package main

import (
	"cmp"
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
		{"size", benchSize},
		{"console", benchConsole},
		{"proxy", benchProxy},
	}
}

func main() {
	if code, ok := words(os.Args[1:]); ok {
		os.Exit(code)
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
	only := flags.String("only", os.Getenv("ONLY"), "one suite: scope, control, size, console or proxy")
	part := flags.String("part", "", "one part of a suite: writes, mint, approve, revoke, expiry or failover of control; restart, rebuild, reads or join of size; http, grpc or tcp of proxy, and of http conn, http1, http2 or idle")
	binary := flags.String("hallpass", "bin/hallpass", "the binary to measure")
	peers := flags.String("peers", ".bin/peers", "folder of the peers that bench/setup builds")
	seeds := flags.String("seeds", ".bin/seeds", "folder of the clusters that were seeded, which later runs go on with")
	scale := flags.Float64("scale", 0, "size of the seeded cluster: 1, the default with -only size, is a million grants and ten million audit entries; else 0.02")
	against := flags.String("against", "", "peers of proxy to compare with, with commas between; empty: all")
	pairs := flags.Int("pairs", 5, "turns that ours and theirs take")
	limit := flags.Duration("limit", 0, "give up after this long; the default is 20m, and 3h with -only size, which seeds first")
	if err := flags.Parse(args); err != nil {
		return err
	}
	all := suites()
	if *only != "" && !slices.ContainsFunc(all, func(s suite) bool { return s.name == *only }) {
		return fmt.Errorf("-only %q: want scope, control, size, console or proxy", *only)
	}
	if *only == "size" {
		*scale, *limit = cmp.Or(*scale, 1), cmp.Or(*limit, 3*time.Hour)
	}
	*scale, *limit = cmp.Or(*scale, 0.02), cmp.Or(*limit, 20*time.Minute)
	if *scale < 0.001 || *scale > 1 {
		return fmt.Errorf("-scale %g: want 0.001 to 1", *scale)
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
		if !chosen(s.name, *only, *part) {
			continue
		}
		r := &report{out: stdout, log: stderr, dir: dir, binary: *binary, part: *part, peers: *peers, seeds: *seeds, scale: *scale, pairs: *pairs, against: *against}
		if err := s.run(ctx, r); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return errors.Join(failed...)
}

// chosen says whether a suite is run. That of control has the one of size with it, at
// the scale of a run of everything; at full size that is a run of its own.
func chosen(name, only, part string) bool {
	return only == "" || name == only || name == "size" && only == "control" && part == ""
}

// report is where a suite prints and what it needs to know.
type report struct {
	out, log io.Writer
	dir      string // scratch, removed at the end
	binary   string
	part     string // of a suite; empty: all
	peers    string // folder of the peers that bench/setup built
	seeds    string // folder of seeded clusters
	scale    float64
	pairs    int
	against  string // peers of the proxy; empty: all
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
