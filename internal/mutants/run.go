package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// verdict is what one `go test -json -run '^TEST$'` came to.
type verdict uint8

const (
	_          verdict = iota
	passed             // the test ran and passed
	failed             // the test ran and failed by its own word
	notBuilt           // the package or its tests do not compile
	noTest             // there is no test of that name
	ranTooLong         // the time ran out, which says nothing of the guard
	broken             // skipped, or go test failed and not through this test
)

func (v verdict) String() string {
	switch v {
	case passed:
		return "the test passes"
	case failed:
		return "the test fails"
	case notBuilt:
		return "it does not compile"
	case noTest:
		return "there is no such test"
	case ranTooLong:
		return "the test ran out of time"
	default:
		return "the test did not run to its own end"
	}
}

// runner runs mutants in the module at root.
type runner struct {
	root    string
	timeout time.Duration // for one test run
	// stands remembers, by package and test, how the test does on the code as it is.
	stands map[[2]string]result // guarded by mu
	mu     sync.Mutex
}

// stand runs all tests of a package together on the code as it is, which is
// compiled once then. Unless all of them pass, each is run by itself when it is due.
func (r *runner) stand(ctx context.Context, mutants []Mutant) error {
	m := mutants[0]
	for _, other := range mutants[1:] {
		m.Test += "|" + other.Test
	}
	out, err := r.goTest(ctx, m.Package, "^("+m.Test+")$", "")
	if err != nil || !out.ok {
		return err
	}
	for _, m := range mutants {
		got, err := judge(m.Test, out.stdout, out.stderr, out.ok)
		if err != nil {
			return err
		}
		r.stands[[2]string{m.Package, m.Test}] = got
	}
	return nil
}

// result is a verdict and what the test printed.
type result struct {
	verdict verdict
	output  string
}

// outcome is what became of one mutant. why is empty when it was killed.
type outcome struct {
	mutant Mutant
	why    string
	output string
	took   time.Duration
}

func (o outcome) killed() bool { return o.why == "" }

// run takes one guard away. An error means that the runner itself could not work.
func (r *runner) run(ctx context.Context, m Mutant) (outcome, error) {
	return r.changed(m, func(_, overlay string) (why, output string, err error) {
		as, err := r.standing(ctx, m)
		if err != nil || as.verdict != passed {
			return "with the guard in place: " + as.verdict.String(), as.output, err
		}
		got, err := r.test(ctx, m, overlay)
		if err != nil || got.verdict != failed {
			return "without the guard: " + got.verdict.String(), got.output, err
		}
		return "", got.output, nil
	})
}

// changed has do work with a mutant's code, which overlay puts in the place of what is there,
// and with a folder until it returns.
func (r *runner) changed(m Mutant, do func(dir, overlay string) (why, output string, err error)) (outcome, error) {
	start := time.Now()
	file := filepath.Join(r.root, filepath.FromSlash(m.File))
	source, err := os.ReadFile(file)
	if err == nil {
		source, err = m.apply(source)
	}
	if err != nil {
		return outcome{mutant: m, why: err.Error()}, nil
	}
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return outcome{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	overlay, err := writeOverlay(dir, file, source)
	if err != nil {
		return outcome{}, err
	}
	why, output, err := do(dir, overlay)
	return outcome{mutant: m, why: why, output: output, took: time.Since(start)}, err
}

// atOnce is how many mutants run at once: most of a run is one compiler or one test
// that waits.
const atOnce = 2

// standTogether runs the tests of mutants on the code as it is, a package at a time.
func (r *runner) standTogether(ctx context.Context, mutants []Mutant) error {
	byPackage := map[string][]Mutant{}
	for _, m := range mutants {
		byPackage[m.Package] = append(byPackage[m.Package], m)
	}
	for _, pkg := range slices.Sorted(maps.Keys(byPackage)) {
		if err := r.stand(ctx, byPackage[pkg]); err != nil {
			return err
		}
	}
	return nil
}

// each does one thing with every mutant, and tells of each when it is through.
func (r *runner) each(ctx context.Context, mutants []Mutant, do func(context.Context, Mutant) (outcome, error), tell func(outcome)) error {
	var wg sync.WaitGroup
	var mu sync.Mutex // owns failed, and lets one tell at a time
	var failed error
	next := make(chan Mutant)
	for range atOnce {
		wg.Go(func() {
			for m := range next {
				o, err := do(ctx, m)
				mu.Lock()
				if failed = errors.Join(failed, err); err == nil {
					tell(o)
				}
				mu.Unlock()
			}
		})
	}
	for _, m := range mutants {
		if ctx.Err() != nil {
			break
		}
		next <- m
	}
	close(next)
	wg.Wait()
	return failed
}

// standing is how a mutant's test does on the code as it is.
func (r *runner) standing(ctx context.Context, m Mutant) (result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := [2]string{m.Package, m.Test}
	as, ok := r.stands[key]
	if ok {
		return as, nil
	}
	as, err := r.test(ctx, m, "")
	if err == nil {
		r.stands[key] = as
	}
	return as, err
}

// writeOverlay writes changed to dir and the JSON that puts it in the place of file.
func writeOverlay(dir, file string, changed []byte) (string, error) {
	replacement := filepath.Join(dir, filepath.Base(file))
	if err := os.WriteFile(replacement, changed, 0o600); err != nil {
		return "", err
	}
	doc, err := json.Marshal(map[string]map[string]string{"Replace": {file: replacement}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, doc, 0o600)
}

// test runs the mutant's test alone, on the code as it is when overlay is "".
func (r *runner) test(ctx context.Context, m Mutant, overlay string) (result, error) {
	out, err := r.goTest(ctx, m.Package, "^"+m.Test+"$", overlay)
	if err != nil {
		return result{}, err
	}
	return judge(m.Test, out.stdout, out.stderr, out.ok)
}

// ran is what one run of go test came to.
type ran struct {
	stdout []byte
	stderr string
	ok     bool
}

func (r *runner) goTest(ctx context.Context, pkg, tests, overlay string) (ran, error) {
	args := []string{"test", "-json", "-count=1", "-run", tests, "-timeout", r.timeout.String()}
	if overlay != "" {
		args = append(args, "-overlay="+overlay)
	}
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.root, &out, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return ran{}, fmt.Errorf("go test %s: %w", pkg, err)
	}
	return ran{out.Bytes(), stderr.String(), err == nil}, ctx.Err()
}

// event is the part of `go test -json` (cmd/test2json) that judge reads.
type event struct {
	Action string
	Test   string
	Output string
}

// judge reads the events of one run. Only the test's own "fail" counts as a failure: a compile
// error, a panic in TestMain or an empty -run would otherwise pass for a kill.
func judge(test string, stdout []byte, stderr string, ok bool) (result, error) {
	var output strings.Builder
	var action string
	var buildFailed, timedOut bool
	lines := bufio.NewScanner(bytes.NewReader(stdout))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return result{}, fmt.Errorf("go test -json: %w", err)
		}
		switch e.Action {
		case "build-fail":
			buildFailed = true
		case "pass", "fail", "skip":
			if e.Test == test {
				action = e.Action
			}
		case "output", "build-output":
			output.WriteString(e.Output)
			timedOut = timedOut || strings.HasPrefix(e.Output, "panic: test timed out after ")
		}
	}
	if err := lines.Err(); err != nil {
		return result{}, err
	}
	output.WriteString(stderr)
	res := result{verdict: broken, output: output.String()}
	switch {
	case buildFailed:
		res.verdict = notBuilt
	case timedOut:
		res.verdict = ranTooLong
	case action == "fail":
		res.verdict = failed
	case ok && action == "pass":
		res.verdict = passed
	case ok && action == "":
		res.verdict = noTest
	}
	return res, nil
}
