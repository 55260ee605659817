package config

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

// Places are the lines of a file's keys, for mistakes that show only when values are looked at
// together.
type Places struct {
	file  string
	lines map[string]int
}

// Lines finds the places of the keys of a document: "revocation.max_staleness", "rules[0].name".
func Lines(file string, data []byte) (Places, error) {
	top, err := document(file, data)
	if err != nil {
		return Places{}, err
	}
	p := Places{file, make(map[string]int)}
	p.walk("", top)
	return p, nil
}

func (p Places) walk(path string, n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			full := join(path, n.Content[i].Value)
			p.lines[full] = n.Content[i].Line
			p.walk(full, n.Content[i+1])
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			full := fmt.Sprintf("%s[%d]", path, i)
			p.lines[full] = item.Line
			p.walk(full, item)
		}
	case yaml.DocumentNode, yaml.ScalarNode, yaml.AliasNode:
	}
}

// Mistake is what is wrong with a key's value. A key that is not there has the line of what it
// would be in.
func (p Places) Mistake(key, text string) error {
	for at := key; at != ""; at = parent(at) {
		if line, ok := p.lines[at]; ok {
			return &Mistake{p.file, line, key + ": " + text}
		}
	}
	return &Mistake{p.file, 1, key + ": " + text}
}

// parent is the path of what holds the key at path; "" at the top.
func parent(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '.' || path[i] == '[' {
			return path[:i]
		}
	}
	return ""
}
