package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// withFuzz is a module with a fuzz target and a bug to plant for it.
func withFuzz(t *testing.T, edits map[string]string) string {
	t.Helper()
	files := map[string]string{
		"vote/vote_test.go": `package vote

import "testing"

// FuzzCounts: nobody votes for themselves, and anyone else does.
func FuzzCounts(f *testing.F) {
	f.Add("alice", "bob")
	f.Fuzz(func(t *testing.T, a, b string) {
		if Counts(a, b) != (a != b) {
			t.Errorf("%q for %q", a, b)
		}
	})
}
`,
		"planted/fuzz-vote.txtar": `fuzz: a voter whose name ends in an exclamation
package: ./vote
test: FuzzCounts
file: vote/vote.go
-- guard --
	return true
-- without --
	return voter == "" || voter[len(voter)-1] != '!'
`,
		"catalogue/05-one-vote.txtar": good,
	}
	maps.Copy(files, edits)
	return module(t, files)
}

// TestJudgePlant: only an input that fuzzing made, and that fails, counts.
func TestJudgePlant(t *testing.T) {
	for name, tt := range map[string]struct {
		output string
		ok     bool
		want   string
	}{
		"found":   {"fuzz: elapsed: 0s, gathering baseline coverage: 0/1 completed\nfuzz: elapsed: 0s, gathering baseline coverage: 1/1 completed, now fuzzing with 1 workers\n--- FAIL: FuzzX (0.13s)\n    --- FAIL: FuzzX (0.00s)\n    Failing input written to testdata/fuzz/FuzzX/9c\n", false, ""},
		"a seed":  {"fuzz: elapsed: 0s, gathering baseline coverage: 0/1 completed\nfailure while testing seed corpus entry: FuzzX/seed#0\nfuzz: elapsed: 0s, gathering baseline coverage: 0/1 completed\n--- FAIL: FuzzX (0.02s)\n", false, "a seed finds it"},
		"nothing": {"fuzz: elapsed: 1s, execs: 7 (1/sec), new interesting: 0 (total: 1)\nPASS\n", true, "does not find it in time"},
		"no end":  {"panic: in TestMain\n", false, "not run to its own end"},
	} {
		if got := judgePlant(tt.output, tt.ok); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// TestMirror: a target finds its package's files and data where it runs, and of
// crashers of before it finds none; what it writes there is not among the sources.
func TestMirror(t *testing.T) {
	root := withFuzz(t, map[string]string{"vote/testdata/x.json": "{}", "vote/testdata/fuzz/FuzzCounts/old": "go test fuzz v1\n", "other/y": "y"})
	home := filepath.Join(t.TempDir(), "package")
	if err := mirror(filepath.Join(root, "vote"), home); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vote.go", "testdata/x.json", "../other/y", "../go.mod"} {
		if _, err := os.ReadFile(filepath.Join(home, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(home, "testdata", "fuzz")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("old crashers: %v", err)
	}
	crasher := filepath.Join(home, "testdata", "fuzz", "FuzzCounts")
	if err := errors.Join(os.MkdirAll(crasher, 0o700), os.WriteFile(filepath.Join(crasher, "new"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "vote", "testdata", "fuzz", "FuzzCounts", "new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a crasher among the sources: %v", err)
	}
}

func TestUnproven(t *testing.T) {
	root := withFuzz(t, map[string]string{"vote/more_test.go": "package vote\n\nimport \"testing\"\n\nfunc FuzzMore(f *testing.F) { f.Fuzz(func(*testing.T, string) {}) }\n"})
	targets, err := fuzzTargets(root)
	if err != nil {
		t.Fatal(err)
	}
	planted, err := readCatalogue(os.DirFS(filepath.Join(root, "planted")))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"./vote FuzzMore does not say what it holds against what it reads", "./vote FuzzMore has no planted bug"}
	if diff := cmp.Diff(want, unproven(targets, planted)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The bugs that ship are well formed and can be planted, and no target is without; whether they are found is `make fuzz-planted`.
func TestThePlanted(t *testing.T) {
	planted, err := readCatalogue(os.DirFS("planted"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range planted {
		source, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(m.File)))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := m.apply(source); err != nil || m.Plant == "" {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
	targets, err := fuzzTargets(filepath.Join("..", ".."))
	if err != nil || len(targets) == 0 {
		t.Fatalf("%d targets, %v", len(targets), err)
	}
	for _, what := range unproven(targets, planted) {
		t.Error(what)
	}
}
