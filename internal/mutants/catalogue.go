package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"
)

// invariants returns the names of the invariants of docs/architecture.md, in its order; number N
// is at index N-1.
func invariants() []string {
	return []string{
		"Nothing unlogged leaves",
		"Access ends with the certificate",
		"Nor with a late start",
		"The certificate alone",
		"One person, one vote",
		"No one makes an approver alone",
		"What was approved is what was shown",
		"A grant is not an identity",
		"Empty means denied",
		"One reading",
		"Every change has one audit leaf",
		"Spent once, cut for good",
		"Authority is checked where it is applied",
	}
}

// Mutant is one catalogue file: a guard, and the test that must notice its absence. The guard is an invariant's, or keeps
// away from a trap of what the invariants stand on.
type Mutant struct {
	Name      string // the file's name without .txtar: "05-one-person"
	Invariant int    // 1 up; 0 for a trap
	Trap      string // what would happen; "" for an invariant
	Plant     string // the bug that fuzzing must find; "" for the others
	Package   string // "./approval"
	Test      string // "TestInvariant05_OnePersonOneVote"
	File      string // slash separated, from the module's root
	Guard     []byte
	Without   []byte
}

// errCatalogue is returned when a catalogue file is not in the format of the package doc.
var errCatalogue = errors.New("bad catalogue file")

var (
	fileName = regexp.MustCompile(`^(\d\d)-[a-z0-9-]+\.txtar$`)
	testName = regexp.MustCompile(`^TestInvariant(\d\d)_[A-Za-z0-9]+$`)

	trapFileName = regexp.MustCompile(`^trap-[a-z0-9-]+\.txtar$`)
	trapTestName = regexp.MustCompile(`^Test[A-Za-z0-9_]+$`)
)

// readCatalogue reads every *.txtar at the top of fsys, in the order of their names.
func readCatalogue(fsys fs.FS) ([]Mutant, error) {
	files, err := fs.Glob(fsys, "*.txtar")
	if err != nil {
		return nil, err
	}
	mutants := make([]Mutant, 0, len(files))
	for _, name := range files {
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		m, err := parseMutant(name, data)
		if err != nil {
			return nil, fmt.Errorf("%w %s: %w", errCatalogue, name, err)
		}
		mutants = append(mutants, m)
	}
	return mutants, nil
}

func parseMutant(name string, data []byte) (Mutant, error) {
	ar := txtar.Parse(data)
	head, err := parseHeader(string(ar.Comment))
	if err != nil {
		return Mutant{}, err
	}
	m := Mutant{
		Name:    strings.TrimSuffix(name, ".txtar"),
		Package: head["package"], Test: head["test"], File: head["file"],
	}
	m.Trap, m.Plant = head["trap"], head["fuzz"]
	switch {
	case m.Trap != "":
		err = m.checkTrap(name)
	case m.Plant != "":
		err = m.checkPlant(name)
	default:
		m.Invariant, err = checkInvariant(head["invariant"], name, m.Test)
	}
	if err != nil {
		return Mutant{}, err
	}
	if rest, ok := strings.CutPrefix(m.Package, "./"); !ok || path.Clean(rest) != rest || strings.HasPrefix(rest, "..") {
		return Mutant{}, fmt.Errorf("package: want ./PATH, got %q", m.Package)
	}
	if path.Clean(m.File) != m.File || !fs.ValidPath(m.File) || strings.HasSuffix(m.File, "_test.go") || !strings.HasSuffix(m.File, ".go") {
		return Mutant{}, fmt.Errorf("file: want a path of non-test Go code, got %q", m.File)
	}
	if len(ar.Files) != 2 || ar.Files[0].Name != "guard" || ar.Files[1].Name != "without" {
		return Mutant{}, errors.New("want the sections guard and without, in this order")
	}
	m.Guard, m.Without = ar.Files[0].Data, ar.Files[1].Data
	if len(bytes.TrimSpace(m.Guard)) == 0 || bytes.Equal(m.Guard, m.Without) {
		return Mutant{}, errors.New("the guard is empty, or is not taken away")
	}
	return m, nil
}

// checkInvariant returns the number of the invariant that text names, after which file and test must be named.
func checkInvariant(text, file, test string) (n int, err error) {
	number, title, _ := strings.Cut(text, " ")
	if n, err = strconv.Atoi(number); err != nil || n < 1 || n > len(invariants()) {
		return 0, fmt.Errorf("invariant: want its number and name, got %q", text)
	}
	if want := invariants()[n-1]; title != want {
		return 0, fmt.Errorf("invariant %d is %q, not %q", n, want, title)
	}
	two := fmt.Sprintf("%02d", n)
	if sub := fileName.FindStringSubmatch(file); sub == nil || sub[1] != two {
		return 0, fmt.Errorf("file name: want %s-NAME.txtar", two)
	}
	if sub := testName.FindStringSubmatch(test); sub == nil || sub[1] != two {
		return 0, fmt.Errorf("test: want TestInvariant%s_NAME, got %q", two, test)
	}
	return n, nil
}

func (m Mutant) checkTrap(file string) error {
	if !trapFileName.MatchString(file) {
		return errors.New("file name: want trap-NAME.txtar")
	}
	if !trapTestName.MatchString(m.Test) {
		return fmt.Errorf("test: want the name of one test, got %q", m.Test)
	}
	return nil
}

// parseHeader reads "key: value" lines: each key once and no other, with one of invariant, trap and fuzz.
func parseHeader(text string) (map[string]string, error) {
	keys := []string{"invariant", "trap", "fuzz", "package", "test", "file"}
	head := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok || !slices.Contains(keys, key) || head[key] != "" {
			return nil, fmt.Errorf("header line %q: want each of %v once, as KEY: VALUE", line, keys)
		}
		head[key] = strings.TrimSpace(value)
	}
	kinds := 0
	for _, key := range keys[:3] {
		if head[key] != "" {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, errors.New("header: want one of invariant, trap and fuzz")
	}
	for _, key := range keys[3:] {
		if head[key] == "" {
			return nil, fmt.Errorf("header: no %s", key)
		}
	}
	return head, nil
}

// missing says which invariants no mutant tests.
func missing(mutants []Mutant) []string {
	var names []string
	for i, name := range invariants() {
		if !slices.ContainsFunc(mutants, func(m Mutant) bool { return m.Invariant == i+1 }) {
			names = append(names, fmt.Sprintf("invariant %d %s has no mutant", i+1, name))
		}
	}
	return names
}

// apply returns source without the guard, which must occur in it exactly once: a guard written
// twice would leave a second one standing, and one that is gone would test nothing.
func (m Mutant) apply(source []byte) ([]byte, error) {
	if n := bytes.Count(source, m.Guard); n != 1 {
		return nil, fmt.Errorf("the guard occurs %d times in %s, not once", n, m.File)
	}
	return bytes.Replace(source, m.Guard, m.Without, 1), nil
}
