package demo

import (
	"io"
	"path/filepath"
	"testing"
)

// TestRelativeFolder: --dir is meant from where the command was typed; what it starts runs in
// other folders.
func TestRelativeFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	s, err := NewStage(Options{Binary: "hallpass", Out: io.Discard, Dir: "here"})
	if err != nil {
		t.Fatal(err)
	}
	if dir := s.DataDir("n1"); !filepath.IsAbs(dir) {
		t.Errorf("the data of n1 are in %s", dir)
	}
	if _, err := NewStage(Options{Binary: "hallpass", Out: io.Discard, Dir: "here"}); err == nil {
		t.Error("a folder that is there was taken")
	}
}
