//go:build compose

package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// block gives the shell block of a page that follows <!-- run: NAME -->.
func block(t *testing.T, page, name string, pairs ...string) string {
	t.Helper()
	return marked(t, page, "run: "+name, pairs...)
}

// marked gives the one block that follows <!-- MARK -->. What the page calls a thing, and what it is
// called here, are the pairs. All of them must be there to be replaced: the block is not what the
// test takes it for otherwise.
func marked(t *testing.T, page, mark string, pairs ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(page)))
	if err != nil {
		t.Fatal(err)
	}
	begin := "<!-- " + mark + " -->\n```sh\n"
	before, block, ok := strings.Cut(string(text), begin)
	block, _, end := strings.Cut(block, "```\n")
	if !ok || !end || strings.Contains(before+block, begin) {
		t.Fatalf("%s has no one block %q", page, mark)
	}
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(block, pairs[i]) {
			t.Fatalf("the block %q of %s does not say %q:\n%s", mark, page, pairs[i], block)
		}
	}
	return strings.NewReplacer(pairs...).Replace(block)
}

// operations gives a block of docs/operations.md.
func operations(t *testing.T, name string, pairs ...string) string {
	t.Helper()
	return block(t, "docs/operations.md", name, pairs...)
}

// withPorts puts the cluster's ports where the text has those of `make up`.
func (c *cluster) withPorts(t *testing.T, text string) string {
	t.Helper()
	var pairs []string
	for service, port := range map[string]int{"n1": 8441, "n2": 8442, "n3": 8443, "proxy": 9443} {
		pairs = append(pairs, fmt.Sprintf("https://localhost:%d", port), c.url(service))
	}
	out := strings.NewReplacer(pairs...).Replace(text)
	if out == text {
		t.Fatal("the block names none of the cluster's addresses")
	}
	return out
}
