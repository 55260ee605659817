package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
)

// Clocks returns every use, in the files of a pure package, of a function that reads a clock,
// waits, or draws a random identifier. A state machine that looks at a clock is another function
// on every node.
func Clocks(p Package) ([]string, error) {
	forbidden := map[string][]string{
		"time": {
			"Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Sleep",
		},
		"github.com/google/uuid": {
			"New", "NewString", "NewRandom", "NewUUID", "NewV6", "NewV7", "Must",
		},
	}
	var bad []string
	fset := token.NewFileSet()
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		names := map[string][]string{} // the package's name in this file → what it may not call
		for _, imp := range file.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil || forbidden[path] == nil {
				continue
			}
			local := filepath.Base(path)
			if imp.Name != nil {
				local = imp.Name.Name
			}
			if local == "." {
				bad = append(bad, fmt.Sprintf("%s: imports %s under no name", fset.Position(imp.Pos()), path))
			}
			names[local] = forbidden[path]
		}
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(names[x.Name], sel.Sel.Name) {
				bad = append(bad, fmt.Sprintf("%s: %s.%s", fset.Position(sel.Pos()), x.Name, sel.Sel.Name))
			}
			return true
		})
	}
	return bad, nil
}
