package grant

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// specBlock is the lines of the one fenced block of SPEC.md that is marked name, in columns.
func specBlock(t *testing.T, name string) [][]string {
	t.Helper()
	spec, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(spec), "```"+name+"\n")
	block, _, closed := strings.Cut(rest, "\n```")
	if !ok || !closed {
		t.Fatalf("SPEC.md has no block %s", name)
	}
	var lines [][]string
	for line := range strings.SplitSeq(block, "\n") {
		lines = append(lines, regexp.MustCompile(` {2,}`).Split(line, -1))
	}
	return lines
}

func TestSpecPermissions(t *testing.T) {
	for _, line := range specBlock(t, "permissions") {
		p := mustPermission(t, line[0])
		if p.String() != line[0] || p.enc != line[1] {
			t.Errorf("SPEC.md says %q is %s; it is %q, %s", line[0], line[1], p, p.enc)
		}
	}
}

func TestSpecPaths(t *testing.T) {
	for _, line := range specBlock(t, "paths") {
		p, err := ParsePath(line[0], PathOptions{})
		if got := p.Text(); err == nil && got != line[1] || (err != nil) != (line[1] == "refused") {
			t.Errorf("SPEC.md says %q is %s; it is %q, %v", line[0], line[1], got, err)
		}
	}
}

func TestSpecHidden(t *testing.T) {
	said := make(map[rune]bool)
	for _, line := range specBlock(t, "hidden") {
		for _, span := range line {
			first, last, ok := strings.Cut(span, "-")
			if !ok {
				last = first
			}
			from, err1 := strconv.ParseInt(first, 16, 32)
			to, err2 := strconv.ParseInt(last, 16, 32)
			if err1 != nil || err2 != nil || from > to {
				t.Fatalf("span %q", span)
			}
			for r := from; r <= to; r++ {
				said[rune(r)] = true
			}
		}
	}
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if isHidden(r) != said[r] {
			t.Errorf("%U: hidden is %t, SPEC.md says %t", r, isHidden(r), said[r])
		}
	}
}

func TestSpecContainment(t *testing.T) {
	for _, line := range specBlock(t, "contain") {
		p, q := mustPermission(t, line[0]), mustPermission(t, line[2])
		got := "neither"
		if p.Overlaps(q) {
			got = "overlaps"
		}
		if p.Covers(q) {
			got = "covers"
		}
		if got != line[1] {
			t.Errorf("SPEC.md says %q %s %q; it is %s", p, line[1], q, got)
		}
	}
}
