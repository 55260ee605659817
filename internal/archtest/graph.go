package archtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
)

// Module is the path that our own packages begin with.
const Module = "github.com/hallpass/hallpass"

// Package is what `go list` says of one package, without its tests.
type Package struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

// Graph is every package that ours are built from, by import path.
type Graph map[string]Package

// Load asks `go list -deps` for the graph of every package below dir. tags are build tags, comma
// separated.
func Load(ctx context.Context, dir, tags string) (Graph, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-tags", tags,
		"-json=ImportPath,Dir,GoFiles,Imports", "./...")
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list in %s: %w: %s", dir, err, stderr.Bytes())
	}
	g := Graph{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return g, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list in %s: %w", dir, err)
		}
		g[p.ImportPath] = p
	}
}

// Ours returns our packages' short names ("grant", "approval/api"), sorted.
func (g Graph) Ours() []string {
	var names []string
	for path := range g {
		if name, ok := short(path); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Path returns the chain of imports from one package to the first that target accepts, both
// included, or nil when there is none.
func (g Graph) Path(from string, target func(importPath string) bool) []string {
	came := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at != from && target(at) {
			var chain []string
			for p := at; p != ""; p = came[p] {
				chain = append(chain, p)
			}
			slices.Reverse(chain)
			return chain
		}
		for _, next := range g[at].Imports {
			if _, seen := came[next]; !seen {
				came[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}

// short cuts the module off an import path of ours; the module's own root is ".".
func short(importPath string) (string, bool) {
	if importPath == Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, Module+"/")
}

// below reports whether name is room or lies in it: "approval/api" is below "approval".
func below(name, room string) bool {
	return name == room || strings.HasPrefix(name, room+"/")
}
