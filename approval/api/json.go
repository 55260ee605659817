package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// maxDepth is how deep a body may nest; ours nest three deep.
const maxDepth = 16

// UnmarshalStrict decodes a body that every JSON parser reads alike. Go's own
// takes the last of two equal names and folds case, so a filter in front that
// takes the first would see another decision than we do.
func UnmarshalStrict(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	if deeper(data, maxDepth) {
		return errors.New("nested too deep")
	}
	if !json.Valid(data) {
		if err := json.NewDecoder(bytes.NewReader(data)).Decode(new(json.RawMessage)); err != nil {
			return fmt.Errorf("not JSON: %w", err)
		}
		return errors.New("text after the JSON value")
	}
	r := strictReader{rest: data}
	if err := r.value(); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// deeper reports whether text nests deeper than the limit, JSON or not.
func deeper(text []byte, limit int) bool {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > limit {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// strictReader goes through valid JSON.
type strictReader struct{ rest []byte }

// next skips to the next token and returns its first byte.
func (r *strictReader) next() byte {
	for r.rest[0] == ' ' || r.rest[0] == '\t' || r.rest[0] == '\r' || r.rest[0] == '\n' {
		r.rest = r.rest[1:]
	}
	return r.rest[0]
}

// value reads one value and refuses objects that name a member twice, or in
// letters that our members do not have.
func (r *strictReader) value() error {
	switch first := r.next(); first {
	case '{', '[':
		return r.members(first == '{')
	case '"':
		r.text()
	default: // a number, or a word
		end := bytes.IndexAny(r.rest, ",]} \t\r\n")
		if end < 0 {
			end = len(r.rest)
		}
		r.rest = r.rest[end:]
	}
	return nil
}

// members reads an object, or an array, from its bracket on.
func (r *strictReader) members(named bool) error {
	var few []string
	var many map[string]bool // in place of few when there are more
	r.rest = r.rest[1:]
	for {
		switch r.next() {
		case '}', ']':
			r.rest = r.rest[1:]
			return nil
		case ',':
			r.rest = r.rest[1:]
			r.next()
		}
		if named {
			name := r.name()
			if slices.Contains(few, name) || many[name] {
				return fmt.Errorf("member %q is there twice", name)
			}
			if !plainName(name) {
				return fmt.Errorf("unknown member %q: members are lower-case words", name)
			}
			if few = append(few, name); len(few) > 16 {
				if many == nil {
					many = make(map[string]bool)
				}
				for _, name := range few {
					many[name] = true
				}
				few = few[:0]
			}
			r.next() // the colon
			r.rest = r.rest[1:]
		}
		if err := r.value(); err != nil {
			return err
		}
	}
}

// text reads a string and returns what is between its quotes.
func (r *strictReader) text() []byte {
	for i := 1; ; i++ {
		switch r.rest[i] {
		case '\\':
			i++
		case '"':
			text := r.rest[1:i]
			r.rest = r.rest[i+1:]
			return text
		}
	}
}

// name reads the name of a member.
func (r *strictReader) name() string {
	quoted := r.rest
	text := r.text()
	if bytes.IndexByte(text, '\\') < 0 {
		return string(text)
	}
	var name string
	_ = json.Unmarshal(quoted[:len(text)+2], &name) // it is valid
	return name
}

func plainName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != ""
}
