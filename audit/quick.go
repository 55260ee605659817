package audit

import (
	"bytes"
	"unicode/utf8"
)

// quickReader goes through JSON without taking it apart.
type quickReader struct{ rest []byte }

// plainlyCanonical reports whether src is one JSON value that appendCanonical
// would append as it is, as far as that shows at a glance: most entries are
// written in that form, and taking them apart costs as much as all else of an
// entry. It may say no to one that is; it never says yes to one that is not.
func plainlyCanonical(src []byte) bool {
	r := quickReader{src}
	return r.value(0) && len(r.rest) == 0
}

// is consumes the byte c if it is next.
func (r *quickReader) is(c byte) bool {
	if len(r.rest) == 0 || r.rest[0] != c {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

func (r *quickReader) value(depth int) bool {
	if depth > maxDepth || len(r.rest) == 0 {
		return false
	}
	switch c := r.rest[0]; {
	case c == '{':
		return r.object(depth)
	case c == '[':
		return r.array(depth)
	case c == '"':
		_, ok := r.text()
		return ok
	case '0' <= c && c <= '9':
		return r.integer()
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(r.rest, []byte(word)) {
			r.rest = r.rest[len(word):]
			return true
		}
	}
	return false
}

func (r *quickReader) array(depth int) bool {
	r.is('[')
	if r.is(']') {
		return true
	}
	for r.value(depth + 1) {
		if !r.is(',') {
			return r.is(']')
		}
	}
	return false
}

// object reads one whose members are in ascending order, which of ASCII is the
// same in bytes and in UTF-16.
func (r *quickReader) object(depth int) bool {
	r.is('{')
	if r.is('}') {
		return true
	}
	var last []byte
	for first := true; ; first = false {
		name, ok := r.text()
		if !ok || !ascii(name) || !first && bytes.Compare(last, name) >= 0 || !r.is(':') || !r.value(depth+1) {
			return false
		}
		if last = name; !r.is(',') {
			return r.is('}')
		}
	}
}

// integer reads one of at most 15 digits, which has less than 53 bits.
func (r *quickReader) integer() bool {
	n := 0
	for n < len(r.rest) && '0' <= r.rest[n] && r.rest[n] <= '9' {
		n++
	}
	ok := n == 1 || n > 1 && n <= 15 && r.rest[0] != '0'
	r.rest = r.rest[n:]
	return ok
}

// text reads a string in which nothing is escaped, or had to be.
func (r *quickReader) text() ([]byte, bool) {
	if !r.is('"') {
		return nil, false
	}
	for i, c := range r.rest {
		switch {
		case c == '"':
			text := r.rest[:i]
			r.rest = r.rest[i+1:]
			return text, ascii(text) || utf8.Valid(text)
		case c == '\\' || c < ' ':
			return nil, false
		}
	}
	return nil, false
}

func ascii(text []byte) bool {
	for _, c := range text {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
