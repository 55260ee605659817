package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

const good = `invariant: 5 One person, one vote
package: ./vote
test: TestInvariant05_OnePersonOneVote
file: vote/vote.go
-- guard --
	if voter == requester {
		return false
	}
-- without --
	_ = voter
`

func TestReadCatalogue(t *testing.T) {
	got, err := readCatalogue(fstest.MapFS{
		"05-one-vote.txtar": {Data: []byte(good)}, "README.md": {Data: []byte("no mutant")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Mutant{{
		Name: "05-one-vote", Invariant: 5, Package: "./vote", Test: "TestInvariant05_OnePersonOneVote",
		File:  "vote/vote.go",
		Guard: []byte("\tif voter == requester {\n\t\treturn false\n\t}\n"), Without: []byte("\t_ = voter\n"),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("catalogue (-want +got):\n%s", diff)
	}
}

func TestReadCatalogueRefuses(t *testing.T) {
	tests := []struct{ name, file, old, new, want string }{
		{"unknown key", "", "package:", "pakage:", "KEY: VALUE"},
		{"a key twice", "", "package: ./vote", "package: ./vote\npackage: ./other", "KEY: VALUE"},
		{"no test", "", "test: TestInvariant05_OnePersonOneVote\n", "", "no test"},
		{"a trap besides an invariant", "", "package: ./vote", "package: ./vote\ntrap: a hole", "one of invariant, trap and fuzz"},
		{"a trap in an invariant's file", "", "invariant: 5 One person, one vote", "trap: a hole", "trap-NAME.txtar"},
		{"another invariant's name", "", "One person, one vote", "One reading", `is "One person, one vote"`},
		{"an invariant too many", "", "5 One", "14 One", "its number"},
		{"another invariant's test", "", "TestInvariant05_", "TestInvariant06_", "TestInvariant05_NAME"},
		{"a pattern for a test", "", "TestInvariant05_OnePersonOneVote", "TestInvariant05_.*", "TestInvariant05_NAME"},
		{"another invariant's file name", "06-one-vote.txtar", "", "", "05-NAME.txtar"},
		{"a package outside the module", "", "./vote", "./../vote", "./PATH"},
		{"a package pattern", "", "./vote", "all", "./PATH"},
		{"a test for a file", "", "vote/vote.go", "vote/vote_test.go", "non-test"},
		{"a file outside the module", "", "vote/vote.go", "../vote.go", "non-test"},
		{"no second section", "", "-- without --", "", "sections"},
		{"an empty guard", "", "-- guard --", "-- guard --\n-- without --\nx\n-- more --", "sections"},
		{"nothing taken away", "", "\t_ = voter\n", "\tif voter == requester {\n\t\treturn false\n\t}\n", "taken away"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := tt.file
			if name == "" {
				name = "05-one-vote.txtar"
			}
			text := strings.Replace(good, tt.old, tt.new, 1)
			_, err := readCatalogue(fstest.MapFS{name: {Data: []byte(text)}})
			if !errors.Is(err, errCatalogue) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want one that says %q", err, tt.want)
			}
		})
	}
}

func TestReadCatalogueOfTraps(t *testing.T) {
	text := strings.Replace(good, "invariant: 5 One person, one vote", "trap: a hole in the road", 1)
	text = strings.Replace(text, "TestInvariant05_OnePersonOneVote", "TestHole", 1)
	got, err := readCatalogue(fstest.MapFS{"trap-hole.txtar": {Data: []byte(text)}})
	if err != nil || len(got) != 1 || got[0].Trap != "a hole in the road" || got[0].Invariant != 0 || got[0].Test != "TestHole" {
		t.Errorf("readCatalogue = %+v, %v", got, err)
	}
	_, err = readCatalogue(fstest.MapFS{"trap-hole.txtar": {Data: []byte(strings.Replace(text, "TestHole", "TestHole|.*", 1))}})
	if err == nil {
		t.Error("a pattern was taken for a test's name")
	}
}

func TestMissing(t *testing.T) {
	var mutants []Mutant
	for i := range invariants() {
		if i+1 != 7 {
			mutants = append(mutants, Mutant{Invariant: i + 1})
		}
	}
	if diff := cmp.Diff([]string{"invariant 7 What was approved is what was shown has no mutant"}, missing(mutants)); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if got := len(invariants()); got != 13 {
		t.Errorf("%d invariants, want 13", got)
	}
}

func TestApplyWantsTheGuardOnce(t *testing.T) {
	m := Mutant{File: "f.go", Guard: []byte("a\n"), Without: []byte("b\n")}
	for source, n := range map[string]int{"": 0, "a\na\n": 2, "b\n": 0} {
		if _, err := m.apply([]byte(source)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("occurs %d times", n)) {
			t.Errorf("apply(%q): %v", source, err)
		}
	}
	got, err := m.apply([]byte("1\na\n2\n"))
	if err != nil || string(got) != "1\nb\n2\n" {
		t.Errorf("apply = %q, %v", got, err)
	}
}

// module writes a module of one package with a guard, and a catalogue of one mutant, changed as
// the edits say, and returns its root.
func module(t *testing.T, edits map[string]string) string {
	t.Helper()
	files := map[string]string{
		"go.mod": "module example.test/m\n\ngo 1.26\n",
		"vote/vote.go": `package vote

func Counts(voter, requester string) bool {
	if voter == requester {
		return false
	}
	return true
}
`,
		"vote/vote_test.go": `package vote

import "testing"

func TestInvariant05_OnePersonOneVote(t *testing.T) {
	if Counts("alice", "alice") {
		t.Error("alice voted for herself")
	}
}
`,
		"catalogue/05-one-vote.txtar": good,
	}
	maps.Copy(files, edits)
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestRun(t *testing.T) {
	const head = "package vote\n\nimport \"testing\"\n\n"
	tests := []struct {
		name   string
		edits  map[string]string
		killed bool
		want   string
	}{
		{"the guard is tested", nil, true, "killed    05-one-vote "},
		{"the test looks away", map[string]string{
			"vote/vote_test.go": head + "func TestInvariant05_OnePersonOneVote(*testing.T) { Counts(\"a\", \"b\") }\n",
		}, false, "without the guard: the test passes"},
		{"no test of that name", map[string]string{
			"vote/vote_test.go": head + "func TestInvariant05_OnePersonOneVoteToo(*testing.T) {}\n",
		}, false, "with the guard in place: there is no such test"},
		{"the test is skipped", map[string]string{
			"vote/vote_test.go": head + "func TestInvariant05_OnePersonOneVote(t *testing.T) { t.SkipNow" + "() }\n",
		}, false, "with the guard in place: the test did not run to its own end"},
		{"the test fails anyway", map[string]string{
			"vote/vote_test.go": head + "func TestInvariant05_OnePersonOneVote(t *testing.T) { t.Error(1) }\n",
		}, false, "with the guard in place: the test fails"},
		{"a mutant that does not compile", map[string]string{
			"catalogue/05-one-vote.txtar": strings.Replace(good, "\t_ = voter", "\t_ = nobody", 1),
		}, false, "without the guard: it does not compile"},
		{"a mutant that never ends", map[string]string{
			"catalogue/05-one-vote.txtar": strings.Replace(good, "\t_ = voter", "\tselect {}", 1),
		}, false, "without the guard: the test ran out of time"},
		{"the whole run dies outside the test", map[string]string{
			"vote/vote_test.go": head + "func TestMain(*testing.M) { if Counts(\"a\", \"a\") { panic(1) } }\n\nfunc TestInvariant05_OnePersonOneVote(*testing.T) {}\n",
		}, false, "with the guard in place: there is no such test"},
		{"the guard was moved", map[string]string{
			"vote/vote.go": "package vote\n\nfunc Counts(voter, requester string) bool { return voter != requester }\n",
		}, false, "the guard occurs 0 times in vote/vote.go"},
		{"the file is gone", map[string]string{
			"catalogue/05-one-vote.txtar": strings.Replace(good, "vote/vote.go", "vote/gone.go", 1),
		}, false, "gone.go"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := module(t, tt.edits)
			before, err := os.ReadFile(filepath.Join(root, "vote", "vote.go"))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = run(t.Context(), []string{"-root", root, "-catalogue", "catalogue", "-only", "5", "-timeout", "20s"}, &out, &out)
			if (err == nil) != tt.killed || err != nil && !errors.Is(err, errSurvived) {
				t.Errorf("run: %v, killed should be %v", err, tt.killed)
			}
			last := "mutants: 0 killed, 1 survived\n"
			if tt.killed {
				last = "mutants: 1 killed, 0 survived\n"
			}
			if !strings.Contains(out.String(), tt.want) || !strings.HasSuffix(out.String(), last) {
				t.Errorf("want %q and at the end %q, got:\n%s", tt.want, last, &out)
			}
			after, err := os.ReadFile(filepath.Join(root, "vote", "vote.go"))
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("the source was changed (%v)", err)
			}
		})
	}
}

func TestRunNamesTheInvariantsWithoutMutant(t *testing.T) {
	root := module(t, nil)
	var out bytes.Buffer
	err := run(t.Context(), []string{"-root", root, "-catalogue", "catalogue"}, &out, &out)
	if !errors.Is(err, errSurvived) {
		t.Errorf("run: %v, want errSurvived", err)
	}
	if got := strings.Count(out.String(), "MISSING "); got != 12 || !strings.HasSuffix(out.String(), "mutants: 1 killed, 0 survived\n") {
		t.Errorf("want 12 missing invariants, got:\n%s", &out)
	}
}

// TestRunOfSome: what is left out of a run is not missed, and a name that none has is no run.
func TestRunOfSome(t *testing.T) {
	root := module(t, map[string]string{"vote/fuzz_test.go": "package vote\n\nimport \"testing\"\n\n// FuzzCounts: nothing.\nfunc FuzzCounts(f *testing.F) { f.Fuzz(func(*testing.T, string) {}) }\n"})
	for _, tt := range []struct {
		args []string
		want string
		ok   bool
	}{
		{[]string{"-name", "^05-"}, "mutants: 1 killed, 0 survived\n", true},
		{[]string{"-name", "other"}, "mutants: 0 killed, 0 survived\n", false},
		{[]string{"-list"}, "./vote FuzzCounts\n", true},
	} {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"-root", root, "-catalogue", "catalogue"}, tt.args...), &out, &out)
		if (err == nil) != tt.ok || !strings.HasSuffix(out.String(), tt.want) || strings.Contains(out.String(), "MISSING") {
			t.Errorf("%v: %v\n%s", tt.args, err, &out)
		}
	}
}

// The catalogue that ships is complete and well formed; whether its mutants die is `make mutants`.
func TestTheCatalogue(t *testing.T) {
	mutants, err := readCatalogue(os.DirFS("catalogue"))
	if err != nil {
		t.Fatal(err)
	}
	if none := missing(mutants); none != nil {
		t.Error(strings.Join(none, "; "))
	}
	names := make([]string, 0, len(mutants))
	for _, m := range mutants {
		names = append(names, m.File)
		source, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(m.File)))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := m.apply(source); err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
	slices.Sort(names)
	t.Logf("guards in %v", slices.Compact(names))
}
