package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// ErrConfig is returned when a file, a variable or a flag does not fit the struct.
var ErrConfig = errors.New("bad configuration")

// Mistake is one thing wrong in a file. It wraps ErrConfig.
type Mistake struct {
	File string
	Line int
	Text string
}

// Error gives "FILE:LINE: what is wrong".
func (m *Mistake) Error() string { return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Text) }

// Unwrap makes errors.Is(err, ErrConfig) true.
func (m *Mistake) Unwrap() error { return ErrConfig }

// Load reads the file into the struct that out points to. See Decode.
func Load(file string, out any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return Decode(file, data, out)
}

// Decode reads YAML into the struct that out points to; what the document does not name stays as
// it is. file is used in errors. The error joins one *Mistake for each thing that is wrong.
func Decode(file string, data []byte, out any) error {
	top, err := document(file, data)
	if err != nil {
		return err
	}
	d := &decoder{file: file, root: reflect.TypeOf(out).Elem()}
	d.node(top, reflect.ValueOf(out).Elem(), "")
	return errors.Join(d.mistakes...)
}

// TopKeys returns the keys at the top of a document, whatever they are, in its order.
func TopKeys(file string, data []byte) ([]string, error) {
	top, err := document(file, data)
	if err != nil {
		return nil, err
	}
	if top.Kind != yaml.MappingNode {
		return nil, &Mistake{file, top.Line, "the file: want keys and values, got " + what(top)}
	}
	var keys []string
	for i := 0; i < len(top.Content); i += 2 {
		keys = append(keys, top.Content[i].Value)
	}
	return keys, nil
}

// document parses the one document that a file may hold.
func document(file string, data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, &Mistake{file, 1, "the file is empty"}
	} else if err != nil {
		return nil, syntax(file, err)
	}
	if err := dec.Decode(&second); err == nil {
		return nil, &Mistake{file, second.Line, "a second document: a file holds one"}
	} else if !errors.Is(err, io.EOF) {
		return nil, syntax(file, err)
	}
	return doc.Content[0], nil
}

// syntax turns the parser's "yaml: line 3: …" into our form.
func syntax(file string, err error) error {
	line, text := 1, strings.TrimPrefix(err.Error(), "yaml: ")
	if n, _ := fmt.Sscanf(text, "line %d:", &line); n == 1 {
		_, text, _ = strings.Cut(text, ": ")
	}
	return &Mistake{file, line, text}
}

type decoder struct {
	file     string
	root     reflect.Type
	mistakes []error
}

func (d *decoder) wrong(n *yaml.Node, format string, args ...any) {
	d.mistakes = append(d.mistakes, &Mistake{d.file, n.Line, fmt.Sprintf(format, args...)})
}

// node reads n into v. path is the key that n is the value of, "" at the top.
func (d *decoder) node(n *yaml.Node, v reflect.Value, path string) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.wrong(n, "%s: aliases and anchors are not read: write the value out", name(path))
	case isLeaf(v.Type()):
		d.leaf(n, v, path)
	case v.Kind() == reflect.Struct:
		d.mapping(n, v, path)
	case v.Kind() == reflect.Slice:
		d.sequence(n, v, path)
	default:
		d.wrong(n, "%s: cannot be configured", name(path))
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, "%s: want keys and values, got %s", name(path), what(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		full := join(path, key.Value)
		field, ok := fieldOf(v, key.Value)
		switch {
		case key.Kind != yaml.ScalarNode:
			d.wrong(key, "%s: a key is one word", name(path))
		case seen[key.Value] != 0:
			d.wrong(key, "%s: given twice, first on line %d", full, seen[key.Value])
		case !ok:
			d.wrong(key, "%s: unknown key; %s", full, d.hint(v.Type(), path, key.Value))
		default:
			seen[key.Value] = key.Line
			d.node(value, field, full)
		}
	}
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.wrong(n, "%s: want a list, got %s", name(path), what(n))
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		d.node(item, list.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(list)
}

func (d *decoder) leaf(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		d.wrong(n, "%s: want %s, got %s", name(path), kindName(v.Type()), what(n))
		return
	}
	// A text is taken as it is written, even where YAML would read a number ("node: 1").
	if err := setText(v, n.Value); err != nil {
		d.wrong(n, "%s: want %s, got %q%s", name(path), kindName(v.Type()), n.Value, because(err))
	}
}

// hint names the nearest known key, or the section that has the key, or what there is.
func (d *decoder) hint(at reflect.Type, path, key string) string {
	known := keysOf(at)
	if near := nearest(key, known); near != "" {
		return "did you mean " + join(path, near) + "?"
	}
	for _, f := range leaves(reflect.New(d.root).Elem(), "") {
		if base := f.Path[strings.LastIndex(f.Path, ".")+1:]; base == key {
			return "it belongs at " + f.Path
		}
	}
	return "known here: " + strings.Join(known, ", ")
}

func because(err error) string {
	if errors.Is(err, errKind) {
		return ""
	}
	return ": " + err.Error()
}

func name(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func what(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys and values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	default:
		return fmt.Sprintf("%q", n.Value)
	}
}

func kindName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration such as 10s or 5m"
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()),
		reflect.PointerTo(t).Implements(reflect.TypeFor[yaml.Unmarshaler]()):
		return "a " + strings.ToLower(t.Name())
	case t.Kind() == reflect.String:
		return "a text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	default:
		return "a whole number"
	}
}
