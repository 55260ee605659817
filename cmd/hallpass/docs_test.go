package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/internal/config"
)

// pages returns README.md and docs/*.md, by their path from here.
func pages(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	out := map[string]string{}
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out[file] = string(text)
	}
	return out
}

// fence splits a page into prose and the blocks of one language.
func fence(text, language string) (prose string, blocks []string) {
	var block *strings.Builder
	inside, wanted := false, false
	for line := range strings.Lines(text) {
		mark, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && !inside:
			inside, wanted, block = true, mark == language, new(strings.Builder)
		case isFence:
			if wanted {
				blocks = append(blocks, block.String())
			}
			inside = false
		case inside:
			block.WriteString(line)
		default:
			prose += line
		}
	}
	return prose, blocks
}

// anchors are the names that a page's headings can be linked by.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	prose, _ := fence(text, "")
	drop := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	for line := range strings.Lines(prose) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			out[strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-")] = true
		}
	}
	return out
}

var links = regexp.MustCompile(`\[([^][]*)\]\(([^()\s]+)\)`)

// Every relative link of the pages leads to a file, and to a heading where it names one.
func TestPageLinks(t *testing.T) {
	for file, text := range pages(t) {
		prose, _ := fence(text, "")
		for _, m := range links.FindAllStringSubmatch(prose, -1) {
			if err := follow(file, m[2]); err != nil {
				t.Errorf("%s: [%s](%s): %v", file, m[1], m[2], err)
			}
		}
	}
}

func follow(file, link string) error {
	if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return nil
	}
	path, anchor, _ := strings.Cut(link, "#")
	target := file
	if path != "" {
		target = filepath.Join(filepath.Dir(file), path)
	}
	if _, err := os.Stat(target); err != nil || anchor == "" {
		return err
	}
	text, err := os.ReadFile(target)
	if err == nil && !anchors(string(text))[anchor] {
		err = fmt.Errorf("there is no heading #%s", anchor)
	}
	return err
}

// The security page names the test of each promise.
func TestPageInvariants(t *testing.T) {
	text := pages(t)["../../docs/security.md"]
	for n := 1; n <= 13; n++ {
		found := false
		for _, m := range linkedTests(text) {
			found = found || strings.HasPrefix(m.name, fmt.Sprintf("TestInvariant%02d_", n))
		}
		if !found {
			t.Errorf("invariant %d has no test on the page", n)
		}
	}
}

// linkedTest is a test that a page links, in a file named from the repository's root.
type linkedTest struct{ name, file string }

// missing says what is wrong when it is not there.
func (l linkedTest) missing() error {
	code, err := os.ReadFile(filepath.Join("..", "..", l.file))
	if err == nil && !strings.Contains(string(code), "\nfunc "+l.name+"(") {
		err = fmt.Errorf("%s is not in %s", l.name, l.file)
	}
	return err
}

// linkedTests are the tests that a page of docs/ names with the file that has them.
func linkedTests(text string) (out []linkedTest) {
	for _, m := range regexp.MustCompile("\\[`(Test\\w+)`\\]\\((?:\\.\\./)?([^)]+)\\)").FindAllStringSubmatch(text, -1) {
		out = append(out, linkedTest{m[1], m[2]})
	}
	return out
}

// Every test that a page links is in the file that the link leads to.
func TestPageTests(t *testing.T) {
	n := 0
	for page, text := range pages(t) {
		for _, l := range linkedTests(text) {
			n++
			if err := l.missing(); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d tests are linked", n)
	}
	for _, l := range []linkedTest{{"TestPageTests", "cmd/hallpass/docs_run_test.go"}, {"TestPage", "cmd/hallpass/docs_test.go"}, {"TestPageTests", "nowhere_test.go"}} {
		if l.missing() == nil {
			t.Errorf("%v passes", l)
		}
	}
}

// hallpassCalls finds the command lines of a shell script that begin with hallpass, also in $(…), and
// splits each into words, the way a shell does as far as the pages need it.
func hallpassCalls(script string) (out [][]string) {
	script = strings.ReplaceAll(script, "\\\n", " ")
	for _, at := range regexp.MustCompile(`(?m)(^\s*|[(;&|]\s*|\b(?:until|while|if|do|then)\s+)hallpass(\s|$)`).FindAllStringSubmatchIndex(script, -1) {
		line := script[at[3]:]
		if begin := strings.LastIndexByte(script[:at[3]], '\n') + 1; strings.Contains(script[begin:at[3]], "#") {
			continue // a comment
		}
		out = append(out, shellWords(line)[1:])
	}
	return out
}

// shellWords splits off the words up to where the shell would end the command.
func shellWords(line string) (words []string) {
	var word strings.Builder
	var quote rune
	open := false
	end := func() {
		if open {
			words = append(words, word.String())
		}
		word.Reset()
		open = false
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == ' ' || r == '\t':
			end()
		case strings.ContainsRune("\n;&|)<>", r) || r == '#' && !open:
			end()
			return words
		default:
			open = true
			word.WriteRune(r)
		}
	}
	end()
	return words
}

// parseCall checks a command line against the real commands, without running it.
func parseCall(args []string) error {
	root := (&app{environ: func() []string { return nil }}).newRoot()
	root.InitDefaultHelpCmd()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	words := cmd.Flags().Args()
	if holdsOthers(cmd) {
		return fmt.Errorf("%q does nothing by itself: %w", cmd.CommandPath(), errors.Join(cmd.ValidateArgs(words), errUnclear))
	}
	return cmd.ValidateArgs(words)
}

// holdsOthers says that a command is there for its subcommands alone; server is not.
func holdsOthers(cmd *cobra.Command) bool {
	return cmd.HasAvailableSubCommands() && !strings.Contains(cmd.Use, " ")
}

// Every hallpass command line of the pages is one that the binary takes.
func TestPageCommands(t *testing.T) {
	total := 0
	for file, text := range pages(t) {
		_, blocks := fence(text, "sh")
		for _, block := range blocks {
			for _, call := range hallpassCalls(block) {
				total++
				if err := parseCall(call); err != nil {
					t.Errorf("%s: hallpass %q: %v", file, call, err)
				}
			}
		}
	}
	if total < 40 {
		t.Errorf("only %d commands found on the pages", total)
	}
}

// What TestPageCommands stands on finds commands, and mistakes in them.
func TestPageCommandsAreRead(t *testing.T) {
	script := "# hallpass no\nID=$(hallpass request create payments --allow 'GET /a b' --for 30m --reason \"x y\" -q)\n" +
		"until hallpass health localhost:1; do :; done\nhallpass ca \\\n  init --dir ca | cat # and\n"
	got := fmt.Sprintf("%q", hallpassCalls(script))
	want := `[["request" "create" "payments" "--allow" "GET /a b" "--for" "30m" "--reason" "x y" "-q"] ["health" "localhost:1"] ["ca" "init" "--dir" "ca"]]`
	if got != want {
		t.Errorf("read %s\nwant %s", got, want)
	}
	for _, bad := range []string{"ca", "ca innit", "status --sever x", "grant cert", "request create payments --for 30", "bogus", "server stop"} {
		if parseCall(strings.Fields(bad)) == nil {
			t.Errorf("hallpass %s passes", bad)
		}
	}
	for _, good := range []string{"--identity x request get $ID", "server --config f", "server init --dir d", "config validate f"} {
		if err := parseCall(strings.Fields(good)); err != nil {
			t.Errorf("hallpass %s: %v", good, err)
		}
	}
}

// The operations page has every setting of a server, and its files are ones that are taken.
func TestPageSettings(t *testing.T) {
	text := pages(t)["../../docs/operations.md"]
	for _, f := range config.Fields(new(signerSettings)) {
		if !strings.Contains(text, "| `"+f.Path+"` |") {
			t.Errorf("%s is not on the page", f.Path)
		}
	}
	var settings serverSettings
	for _, s := range []any{&settings, new(processSettings)} {
		for _, f := range config.Fields(s) {
			if row := fmt.Sprintf("`%s`, `--%s`", f.Env(), f.Flag()); !strings.Contains(text, row) {
				t.Errorf("%s is not on the page", row)
			}
		}
	}
	for _, f := range config.Fields(&settings) {
		if !strings.Contains(text, "| `"+f.Path+"` |") {
			t.Errorf("%s is not on the page", f.Path)
		}
	}
	_, blocks := fence(text, "yaml")
	for _, block := range blocks {
		if strings.HasPrefix(block, "# server.yaml, the part") {
			block = restOfServer + block
		}
		file := filepath.Join(t.TempDir(), "page.yaml")
		if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		if strings.HasPrefix(block, "# seed.yaml") {
			_, err = readSeed(t.Context(), file)
		} else if strings.HasPrefix(block, "# signer.yaml") {
			err = validateFile("signer", file)
		} else {
			err = validateFile("server", file)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if len(blocks) != 4 {
		t.Errorf("%d files on the page", len(blocks))
	}
}

// The comparison says of Hallpass what a test shows, and of others what a page of theirs says.
func TestPageCompare(t *testing.T) {
	ours, theirs := 0, 0
	for line := range strings.Lines(pages(t)["../../docs/compare.md"]) {
		who, says, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		switch {
		case !ok || !strings.HasPrefix(line, "| "):
		case strings.HasPrefix(who, "**Hallpass**"):
			ours++
			if len(linkedTests(says)) == 0 {
				t.Errorf("no test shows %q", line)
			}
		case who != "product":
			theirs++
			if !strings.Contains(line, "](https://") && !strings.Contains(says, "ot documented") {
				t.Errorf("no page shows %q", line)
			}
		}
	}
	if ours < 10 || theirs < 40 {
		t.Errorf("%d lines of ours and %d of theirs", ours, theirs)
	}
}
