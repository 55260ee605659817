package faults

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The source changes; the places stay where they mean something, or this says which has gone.
func TestEachPlaceIsInTheSource(t *testing.T) {
	root := filepath.Join("..", "..")
	for _, e := range Edits() {
		if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(e.File))); err != nil { // the cache of go test sees it
			t.Error(err)
		}
	}
	overlay, err := Overlay(root, t.TempDir(), Edits())
	if err != nil {
		t.Fatalf("%v: say in places.go where it is now", err)
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(overlay), "control_mint.go"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "failpoint.Hit("); n != 3 {
		t.Errorf("control/mint.go has %d failpoints", n)
	}
}

func TestAnEditFindsItsText(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.go"), []byte("package f\n\nfunc f() {\n\tg()\n\tg()\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for old, want := range map[string]string{"g()": "has 2 times", "h()": "has 0 times", "func f() {": "expected"} {
		_, err := Overlay(dir, t.TempDir(), []Edit{{File: "f.go", Old: old, New: "}"}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want one that says %q", old, err, want)
		}
	}
}

func TestEachPlaceHasAName(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range Places() {
		if p.Place == "" || seen[p.Place] {
			t.Errorf("the name %q is taken or none", p.Place)
		}
		seen[p.Place] = true
	}
}
