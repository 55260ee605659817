package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Field is one setting: a leaf of the struct.
type Field struct {
	// Path is the keys that lead to it: "listen.api".
	Path string
	// Doc is its `doc` tag.
	Doc   string
	value reflect.Value
}

// Fields returns every setting of the struct that out points to, in its order: texts, numbers,
// booleans, durations and lists of texts. Lists of structs can be set in a file only.
func Fields(out any) []Field { return leaves(reflect.ValueOf(out).Elem(), "") }

// Env is the name of the variable that overrides the field: "HALLPASS_LISTEN_API".
func (f Field) Env() string {
	return "HALLPASS_" + strings.ToUpper(strings.ReplaceAll(f.Path, ".", "_"))
}

// Flag is the name of the flag that overrides the field: "listen-api".
func (f Field) Flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(f.Path) }

// Bool reports whether the field is a yes or no.
func (f Field) Bool() bool { return f.value.Kind() == reflect.Bool }

// Set parses text into the field. A list is given with commas.
func (f Field) Set(text string) error {
	if f.value.Kind() == reflect.Slice {
		list := reflect.MakeSlice(f.value.Type(), 0, 0)
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			value := reflect.New(f.value.Type().Elem()).Elem()
			if err := setText(value, item); err != nil {
				return fmt.Errorf("%w: %s: want %s, got %q%s", ErrConfig, f.Path, kindName(value.Type()), item, because(err))
			}
			list = reflect.Append(list, value)
		}
		f.value.Set(list)
		return nil
	}
	if err := setText(f.value, text); err != nil {
		return fmt.Errorf("%w: %s: want %s, got %q%s", ErrConfig, f.Path, kindName(f.value.Type()), text, because(err))
	}
	return nil
}

// String gives the value as Set would read it.
func (f Field) String() string {
	switch v := f.value.Interface().(type) {
	case []string:
		return strings.Join(v, ",")
	case encoding.TextMarshaler:
		text, err := v.MarshalText()
		if err != nil {
			return ""
		}
		return string(text)
	case yaml.Marshaler:
		text, err := v.MarshalYAML()
		if err != nil {
			return ""
		}
		return fmt.Sprint(text)
	default:
		return fmt.Sprint(v)
	}
}

// Environ sets the fields for which environ ("NAME=value" entries) has a variable. A variable
// that begins with HALLPASS_ and is neither a field's nor in others is an error, as an unknown
// key in the file is.
func Environ(fields []Field, environ, others []string) error {
	byName := map[string]Field{}
	known := slices.Clone(others)
	for _, f := range fields {
		byName[f.Env()] = f
		known = append(known, f.Env())
	}
	var mistakes []error
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "HALLPASS_") || slices.Contains(others, name) {
			continue
		}
		f, ok := byName[name]
		if !ok {
			hint := "unset it"
			if near := nearest(name, known); near != "" {
				hint = "did you mean " + near + "?"
			}
			mistakes = append(mistakes, fmt.Errorf("%w: unknown variable %s; %s", ErrConfig, name, hint))
			continue
		}
		if err := f.Set(value); err != nil {
			mistakes = append(mistakes, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(mistakes...)
}

// leaves walks the struct v.
func leaves(v reflect.Value, path string) []Field {
	var out []Field
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key := keyOf(f)
		if key == "" {
			continue
		}
		full, value := join(path, key), v.Field(i)
		switch {
		case isLeaf(f.Type), f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.String:
			out = append(out, Field{full, f.Tag.Get("doc"), value})
		case f.Type.Kind() == reflect.Struct:
			out = append(out, leaves(value, full)...)
		}
	}
	return out
}

// keyOf returns the key of a struct field, "" when it has none.
func keyOf(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if !f.IsExported() || key == "-" {
		return ""
	}
	return key
}

func keysOf(t reflect.Type) []string {
	var keys []string
	for f := range t.Fields() {
		if key := keyOf(f); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if k := keyOf(v.Type().Field(i)); k != "" && k == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// isLeaf reports whether a value of type t is written as one scalar.
func isLeaf(t reflect.Type) bool {
	if pt := reflect.PointerTo(t); pt.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) ||
		pt.Implements(reflect.TypeFor[yaml.Unmarshaler]()) {
		return true
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint64:
		return true
	default:
		return false
	}
}

// errKind is returned when a text is not of the field's kind; the caller says what is wanted.
var errKind = errors.New("another kind of value")

// setText parses text into the leaf v.
func setText(v reflect.Value, text string) error {
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		return u.UnmarshalText([]byte(text))
	}
	if u, ok := reflect.TypeAssert[yaml.Unmarshaler](v.Addr()); ok {
		return u.UnmarshalYAML(&yaml.Node{Kind: yaml.ScalarNode, Value: text})
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(text)
		if err != nil {
			return errKind
		}
		v.SetInt(int64(d))
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return errKind
		}
		v.SetBool(text == "true")
	case reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return errKind
		}
		v.SetUint(n)
	default:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return errKind
		}
		v.SetInt(n)
	}
	return nil
}

// nearest returns the known word that a person most likely meant, "" when none is near.
func nearest(word string, known []string) string {
	best, bestDistance := "", max(2, len(word)/3)+1
	for _, k := range known {
		if d := editDistance(word, k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// editDistance counts the single-byte edits between two words (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j+1]+1, row[j]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
