package near

import (
	"slices"
	"testing"
)

func TestOf(t *testing.T) {
	for _, tt := range []struct {
		at   uint16
		want []string
	}{
		{0, []string{"ab", "xab", "abx", "xb", "b", "Ab", "aab"}},
		{4, []string{"ab", "axb", "abx", "ax", "a", "aB", "abb"}},
		{2, []string{"ab", "abx", "abx"}},
	} {
		if got := Of("ab", tt.at, 'x'); !slices.Equal(got, tt.want) {
			t.Errorf("at %d: %q, want %q", tt.at, got, tt.want)
		}
	}
	if got := Of([]byte{}, 7, 'x'); len(got) != 3 || string(got[1]) != "x" {
		t.Errorf("of nothing: %q", got)
	}
}
