package faults

import (
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const importFailpoint = "import \"github.com/hallpass/hallpass/internal/faults/failpoint\"\n"

// Edit replaces a text that MUST occur in a file exactly once.
type Edit struct {
	File     string // slash separated, from the module's root
	Old, New string
	Place    string // the failpoint it puts in; "" for a smaller threshold
}

// before puts a failpoint in front of a line, of which anchor is the beginning.
func before(file, anchor, place string) Edit {
	return Edit{file, anchor, hit(place) + "; " + anchor, place}
}

func hit(place string) string { return "failpoint.Hit(" + strconv.Quote(place) + ")" }

// Overlay writes changed copies of the files to dir and returns the name of the JSON that `go build
// -overlay` takes. root is the module's.
func Overlay(root, dir string, edits []Edit) (string, error) {
	texts := make(map[string]string)
	for _, e := range edits {
		if _, ok := texts[e.File]; !ok {
			text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(e.File)))
			if err != nil {
				return "", err
			}
			texts[e.File] = string(text)
		}
		if n := strings.Count(texts[e.File], e.Old); n != 1 {
			return "", fmt.Errorf("%s has %d times, not once: %q", e.File, n, e.Old)
		}
		texts[e.File] = strings.Replace(texts[e.File], e.Old, e.New, 1)
	}
	replace := make(map[string]string)
	for file, text := range texts {
		if strings.Contains(text, "failpoint.Hit(") {
			clause := strings.Index(text, "\npackage ")
			if strings.HasPrefix(text, "package ") {
				clause = -1
			}
			end := clause + 1 + strings.Index(text[clause+1:], "\n") + 1
			text = text[:end] + importFailpoint + text[end:]
		}
		if _, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution); err != nil {
			return "", err
		}
		changed := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(root, filepath.FromSlash(file))] = changed
	}
	doc, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, doc, 0o600)
}
