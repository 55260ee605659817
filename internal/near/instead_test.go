package near

import (
	"bytes"
	"slices"
	"testing"
)

// TestInstead: the number, or word, that is pointed at becomes another, and nothing else does.
func TestInstead(t *testing.T) {
	text := []byte("a: 12\nb: 3h\n")
	for at, want := range map[uint16][]string{
		0: {"a: 0\nb: 3h\n", "a: 012\nb: 3h\n"}, 1: {"a: 12\nb: 0h\n", "a: 12\nb: -1h\n"}, 2: {"a: 0\nb: 3h\n"},
	} {
		got := Number(text, at)
		for _, w := range want {
			if !slices.ContainsFunc(got, func(g []byte) bool { return string(g) == w }) {
				t.Errorf("at %d there is no %q in %q", at, w, got)
			}
		}
	}
	if got := Word([]byte("a: ['b/c']"), 1); !slices.ContainsFunc(got, func(g []byte) bool { return string(g) == "a: ['b/']" }) {
		t.Errorf("%q", got)
	}
	if got := Word([]byte(" "), 1); got != nil {
		t.Errorf("%q", got)
	}
	if got := Number([]byte("none"), 7); got != nil {
		t.Errorf("%q", got)
	}
	if !bytes.Equal(text, []byte("a: 12\nb: 3h\n")) {
		t.Error("the input was changed")
	}
}
