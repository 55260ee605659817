package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	stands map[[2]string]result
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
	start := time.Now()
	done := func(why, output string) (outcome, error) {
		return outcome{mutant: m, why: why, output: output, took: time.Since(start)}, nil
	}
	source, err := os.ReadFile(filepath.Join(r.root, filepath.FromSlash(m.File)))
	if err != nil {
		return done(err.Error(), "")
	}
	changed, err := m.apply(source)
	if err != nil {
		return done(err.Error(), "")
	}
	key := [2]string{m.Package, m.Test}
	if _, ok := r.stands[key]; !ok {
		if r.stands[key], err = r.test(ctx, m, ""); err != nil {
			return outcome{}, err
		}
	}
	if as := r.stands[key]; as.verdict != passed {
		return done("with the guard in place: "+as.verdict.String(), as.output)
	}
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return outcome{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	overlay, err := writeOverlay(dir, filepath.Join(r.root, filepath.FromSlash(m.File)), changed)
	if err != nil {
		return outcome{}, err
	}
	got, err := r.test(ctx, m, overlay)
	switch {
	case err != nil:
		return outcome{}, err
	case got.verdict == failed:
		return done("", got.output)
	default:
		return done("without the guard: "+got.verdict.String(), got.output)
	}
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
	args := []string{
		"test", "-json", "-count=1", "-run", "^" + m.Test + "$", "-timeout", r.timeout.String(),
	}
	if overlay != "" {
		args = append(args, "-overlay="+overlay)
	}
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", append(args, m.Package)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.root, &out, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return result{}, fmt.Errorf("go test %s: %w", m.Package, err)
	}
	if ctx.Err() != nil {
		return result{}, ctx.Err()
	}
	return judge(m.Test, out.Bytes(), stderr.String(), err == nil)
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
