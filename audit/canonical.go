package audit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	maxDepth   = 32
	maxInteger = 1<<53 - 1
)

var errJSON = errors.New("not acceptable JSON")

// appendCanonical appends src, one JSON value, to dst in the form of RFC 8785.
// It refuses what parsers disagree on: duplicate member names, numbers that
// are not integers of at most 53 bits, invalid UTF-8, lone surrogates, deep
// nesting and anything after the value.
func appendCanonical(dst, src []byte) ([]byte, error) {
	r := jsonReader{src: src}
	dst, err := r.value(dst, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w at byte %d", errJSON, err, r.pos)
	}
	r.space()
	if r.pos != len(src) {
		return nil, fmt.Errorf("%w: something after the value at byte %d", errJSON, r.pos)
	}
	return dst, nil
}

// jsonReader reads RFC 8259 JSON and writes it canonically as it goes.
type jsonReader struct {
	src []byte
	pos int
}

func (r *jsonReader) space() {
	for r.pos < len(r.src) {
		switch r.src[r.pos] {
		case ' ', '\t', '\n', '\r':
			r.pos++
		default:
			return
		}
	}
}

// next skips white space and returns the next byte without consuming it; 0 at
// the end.
func (r *jsonReader) next() byte {
	r.space()
	if r.pos == len(r.src) {
		return 0
	}
	return r.src[r.pos]
}

func (r *jsonReader) value(dst []byte, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, errors.New("nested too deeply")
	}
	switch c := r.next(); {
	case c == '{':
		return r.object(dst, depth)
	case c == '[':
		return r.array(dst, depth)
	case c == '"':
		s, err := r.text()
		if err != nil {
			return nil, err
		}
		return appendString(dst, s), nil
	case c == '-' || '0' <= c && c <= '9':
		return r.integer(dst)
	default:
		for _, word := range []string{"true", "false", "null"} {
			if bytes.HasPrefix(r.src[r.pos:], []byte(word)) {
				r.pos += len(word)
				return append(dst, word...), nil
			}
		}
		return nil, errors.New("no value")
	}
}

func (r *jsonReader) array(dst []byte, depth int) ([]byte, error) {
	r.pos++
	dst = append(dst, '[')
	if r.next() == ']' {
		r.pos++
		return append(dst, ']'), nil
	}
	for {
		var err error
		if dst, err = r.value(dst, depth+1); err != nil {
			return nil, err
		}
		switch r.next() {
		case ',':
			r.pos++
			dst = append(dst, ',')
		case ']':
			r.pos++
			return append(dst, ']'), nil
		default:
			return nil, errors.New("an array without end")
		}
	}
}

// jsonMember is a member of an object and where it was written.
type jsonMember struct {
	name     string
	from, to int
}

func (r *jsonReader) object(dst []byte, depth int) ([]byte, error) {
	r.pos++
	dst = append(dst, '{')
	if r.next() == '}' {
		r.pos++
		return append(dst, '}'), nil
	}
	var room [12]jsonMember
	members, begin, sorted := room[:0], len(dst), true
	for {
		m, err := r.member(&dst, depth)
		if err != nil {
			return nil, err
		}
		members = append(members, m)
		if n := len(members); n > 1 && compareNames(members[n-2].name, m.name) >= 0 {
			sorted = false
		}
		switch r.next() {
		case ',':
			r.pos++
			dst = append(dst, ',')
		case '}':
			r.pos++
			if !sorted {
				if dst, err = inOrder(dst, begin, members); err != nil {
					return nil, err
				}
			}
			return append(dst, '}'), nil
		default:
			return nil, errors.New("an object without end")
		}
	}
}

// member appends one member, its name and its value.
func (r *jsonReader) member(dst *[]byte, depth int) (m jsonMember, err error) {
	if r.next() != '"' {
		return m, errors.New("a member without a name")
	}
	if m.name, err = r.text(); err != nil {
		return m, err
	}
	if r.next() != ':' {
		return m, errors.New("a member without a value")
	}
	r.pos++
	m.from = len(*dst)
	if *dst, err = r.value(append(appendString(*dst, m.name), ':'), depth+1); err != nil {
		return m, err
	}
	m.to = len(*dst)
	return m, nil
}

// inOrder sorts the members that were written to dst from begin on.
func inOrder(dst []byte, begin int, members []jsonMember) ([]byte, error) {
	slices.SortFunc(members, func(a, b jsonMember) int { return compareNames(a.name, b.name) })
	written := bytes.Clone(dst)
	dst = dst[:begin]
	for i, m := range members {
		if i > 0 {
			// A repeated name is read as the first by some parsers and as the
			// last by others: two auditors, two histories.
			if m.name == members[i-1].name {
				return nil, fmt.Errorf("member %q twice", m.name)
			}
			dst = append(dst, ',')
		}
		dst = append(dst, written[m.from:m.to]...)
	}
	return dst, nil
}

// compareNames orders names by their UTF-16 code units (RFC 8785 §3.2.3), which
// for ASCII is by their bytes.
func compareNames(a, b string) int {
	if isASCII(a) && isASCII(b) {
		return strings.Compare(a, b)
	}
	return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// integer reads an integer as RFC 8785 would write it. Fractions and larger
// numbers are refused: parsers round them, each in its own way.
func (r *jsonReader) integer(dst []byte) ([]byte, error) {
	start := r.pos
	for r.pos < len(r.src) && bytes.IndexByte([]byte("+-.eE0123456789"), r.src[r.pos]) >= 0 {
		r.pos++
	}
	digits := string(r.src[start:r.pos])
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < -maxInteger || n > maxInteger || strconv.FormatInt(n, 10) != digits {
		return nil, fmt.Errorf("%q is not an integer of at most 53 bits", digits)
	}
	return append(dst, digits...), nil
}

func (r *jsonReader) text() (string, error) {
	r.pos++
	plain := r.pos
	for r.pos < len(r.src) && isPlain(r.src[r.pos]) {
		r.pos++
	}
	out := r.src[plain:r.pos:r.pos] // what is appended goes elsewhere
	for r.pos < len(r.src) {
		switch c := r.src[r.pos]; {
		case c == '"':
			r.pos++
			return string(out), nil
		case c == '\\':
			var err error
			if out, err = r.escape(out); err != nil {
				return "", err
			}
		case c < ' ':
			return "", errors.New("a control byte in a string")
		default:
			char, size := utf8.DecodeRune(r.src[r.pos:])
			if char == utf8.RuneError && size <= 1 {
				return "", errors.New("invalid UTF-8 in a string")
			}
			out = append(out, r.src[r.pos:r.pos+size]...)
			r.pos += size
		}
	}
	return "", errors.New("a string without end")
}

func (r *jsonReader) escape(out []byte) ([]byte, error) {
	if r.pos+1 >= len(r.src) {
		return nil, errors.New("a string without end")
	}
	c := r.src[r.pos+1]
	if c == 'u' {
		return r.unicode(out)
	}
	const from, to = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	i := bytes.IndexByte([]byte(from), c)
	if i < 0 {
		return nil, errors.New("an unknown escape")
	}
	r.pos += 2
	return append(out, to[i]), nil
}

func (r *jsonReader) unicode(out []byte) ([]byte, error) {
	char, ok := r.hex4()
	if !ok {
		return nil, errors.New("a malformed \\u escape")
	}
	if utf16.IsSurrogate(char) {
		low, ok := r.hex4()
		if char = utf16.DecodeRune(char, low); !ok || char == utf8.RuneError {
			// Parsers turn a lone surrogate into U+FFFD, into three bytes of
			// WTF-8, or into an error.
			return nil, errors.New("a lone surrogate")
		}
	}
	return utf8.AppendRune(out, char), nil
}

// hex4 consumes a \uXXXX escape.
func (r *jsonReader) hex4() (rune, bool) {
	if len(r.src)-r.pos < 6 || r.src[r.pos] != '\\' || r.src[r.pos+1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(r.src[r.pos+2:r.pos+6]), 16, 16)
	if err != nil {
		return 0, false
	}
	r.pos += 6
	return rune(n), true
}

// isPlain reports whether a byte stands for itself in a string, by itself.
func isPlain(c byte) bool { return c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf }

// appendString appends s as RFC 8785 §3.2.2.2 writes a string.
func appendString(dst []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	plain := 0
	for plain < len(s) && isPlain(s[plain]) {
		plain++
	}
	dst = append(append(dst, '"'), s[:plain]...)
	for i := plain; i < len(s); i++ {
		switch c := s[i]; c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			if c < ' ' {
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
			} else {
				dst = append(dst, c)
			}
		}
	}
	return append(dst, '"')
}
