package demo

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitWords(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"request create payments --allow 'GET /a b' --for 30m", []string{"request", "create", "payments", "--allow", "GET /a b", "--for", "30m"}},
		{"  a   b ", []string{"a", "b"}},
		{`a ''`, []string{"a", ""}},
		{`a'b c'd`, []string{"ab cd"}},
		{`'$(rm -rf /)'`, []string{"$(rm -rf /)"}},
		{"", nil},
	} {
		got, err := splitWords(c.line)
		if err != nil {
			t.Errorf("splitWords(%q): %v", c.line, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("splitWords(%q) (-want +got):\n%s", c.line, diff)
		}
	}
	for _, line := range []string{"a 'b", "a $(b)", "a; b", "a `b`", `a "b"`, "a\nb", "a > b"} {
		if got, err := splitWords(line); err == nil {
			t.Errorf("splitWords(%q) = %q, want an error", line, got)
		}
	}
}
