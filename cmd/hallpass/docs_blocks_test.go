package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// block is a fenced piece of a page.
type block struct {
	page     string // its file's name: "operations.md"
	line     int    // of the fence
	language string
	text     string
	run      string // NAME of <!-- run: NAME --> on the line before it
	notRun   string // REASON of <!-- not run: REASON --> there
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

var (
	runMark    = regexp.MustCompile(`^<!-- run: ([a-z][a-z0-9-]*) -->$`)
	notRunMark = regexp.MustCompile(`^<!-- not run: (\S.*\S) -->$`)
)

// blocksOf reads the blocks of a page. Those in a list are indented; their text is not.
func blocksOf(page, text string) []block {
	var out []block
	var inside *block
	before, indent, n := "", "", 0
	for line := range strings.Lines(text) {
		n++
		bare := strings.TrimSpace(line)
		mark, isFence := strings.CutPrefix(bare, "```")
		switch {
		case isFence && inside == nil:
			indent = line[:strings.Index(line, "`")]
			inside = &block{page: page, line: n, language: mark}
			if m := runMark.FindStringSubmatch(before); m != nil {
				inside.run = m[1]
			}
			if m := notRunMark.FindStringSubmatch(before); m != nil {
				inside.notRun = m[1]
			}
		case isFence:
			out = append(out, *inside)
			inside = nil
		case inside != nil:
			inside.text += strings.TrimPrefix(line, indent)
		}
		before = bare
	}
	return out
}

// pageBlocks are the blocks of README.md and docs/*.md.
func pageBlocks(t *testing.T) []block {
	t.Helper()
	var out []block
	for file, text := range pages(t) {
		out = append(out, blocksOf(filepath.Base(file), text)...)
	}
	return out
}

var looksTyped = regexp.MustCompile(`(?m)^\s*(\$ |hallpass |curl |openssl |make |docker )`)

// checkMark says what is wrong with how a block is marked: what a reader may type is run by a
// test, or the page says, where the writers see it, why not.
func checkMark(b block) error {
	switch b.language {
	case "sh", "python":
		if b.run == "" && b.notRun == "" {
			return fmt.Errorf("%s: say in the line before it who runs it: <!-- run: NAME -->, and run NAME in a test, or <!-- not run: REASON -->", b)
		}
		if b.notRun != "" && !strings.Contains(b.notRun, " ") {
			return fmt.Errorf("%s: %q is no reason", b, b.notRun)
		}
	case "", "text", "yaml", "json", "cases", "refused":
		if b.run != "" || b.notRun != "" {
			return fmt.Errorf("%s: only sh and python are run", b)
		}
		if at := looksTyped.FindString(b.text); b.language != "yaml" && at != "" {
			return fmt.Errorf("%s: a line begins with %q: make the block sh", b, strings.TrimSpace(at))
		}
	default:
		return fmt.Errorf("%s: language %q: write sh", b, b.language)
	}
	return nil
}

// Every block that a reader may type is run by a test, or says why not. README's are run by
// deploy against containers, those of docs/ by TestPagesRun against processes.
func TestPageBlocksAreMarked(t *testing.T) {
	compose, err := os.ReadFile(filepath.Join("..", "..", "deploy", "compose_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]block{}
	for _, b := range pageBlocks(t) {
		if err := checkMark(b); err != nil {
			t.Error(err)
		}
		if b.run == "" {
			continue
		}
		key := b.page + " " + b.run
		if other, twice := seen[key]; twice {
			t.Errorf("%s has the name of %s", b, other)
		}
		seen[key] = b
		if b.page == "README.md" && !strings.Contains(string(compose), fmt.Sprintf("readme(t, c, %q)", b.run)) {
			t.Errorf("%s: deploy/compose_test.go does not run it", b)
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d blocks are run", len(seen))
	}
}

// What TestPageBlocksAreMarked stands on sees what it must.
func TestMarksAreRead(t *testing.T) {
	page := "text\n<!-- run: one -->\n```sh\na\n```\n\n1. item\n\n   <!-- not run: no such machine -->\n   ```sh\n   b\n     c\n   ```\n"
	got := fmt.Sprintf("%+q", []any{blocksOf("x.md", page)[0].run, blocksOf("x.md", page)[1].notRun, blocksOf("x.md", page)[1].text})
	if want := `["one" "no such machine" "b\n  c\n"]`; got != want {
		t.Errorf("read %s, want %s", got, want)
	}
	for _, bad := range []string{
		"```sh\nls\n```\n", "<!-- run: x -->\n\n```sh\nls\n```\n", "<!-- run: x y -->\n```sh\nls\n```\n", "<!-- not run: later -->\n```sh\nls\n```\n",
		"```bash\nls\n```\n", "```\nhallpass status\n```\n", "```text\n$ ls\n```\n", "<!-- run: x -->\n```yaml\na: 1\n```\n", "```python\npass\n```\n",
	} {
		if err := checkMark(blocksOf("x.md", bad)[0]); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}
