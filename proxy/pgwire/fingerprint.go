package pgwire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
)

// Fingerprint names the form of a statement: 16 hex digits that are the same for statements that [Normalize] makes the same.
func Fingerprint(sql []byte) string {
	sum := sha256.Sum256(Normalize(sql))
	return hex.EncodeToString(sum[:8])
}

// Normalize is a statement without its values: its tokens in lower case, one space between them, ? for a constant and for a
// list of them, no comments. It is for telling statements apart in a log. It is no parser: a
// server with standard_conforming_strings off reads some of them otherwise, which shows in a fingerprint, and nowhere else.
func Normalize(sql []byte) []byte {
	n := normalizer{in: sql, out: make([]byte, 0, len(sql))}
	for n.at < len(n.in) {
		n.token()
	}
	return bytes.TrimRight(n.out, " ;")
}

type normalizer struct {
	in, out []byte
	at      int
}

func (n *normalizer) byteAt(i int) byte {
	if i < len(n.in) {
		return n.in[i]
	}
	return 0
}

func (n *normalizer) token() {
	c, next := n.in[n.at], n.byteAt(n.at+1)
	switch {
	case c == ' ' || c >= '\t' && c <= '\r':
		n.at++
	case c == '-' && next == '-':
		for n.at < len(n.in) && n.in[n.at] != '\n' {
			n.at++
		}
	case c == '/' && next == '*':
		n.blockComment()
	case c == '\'':
		n.quoted('\'', false)
		n.value()
	case c == '"':
		from := n.at
		n.quoted('"', false)
		n.emit(n.in[from:n.at])
	case c == '$' && n.dollarQuoted():
		n.value()
	case c >= '0' && c <= '9' || c == '.' && next >= '0' && next <= '9':
		n.number()
		n.value()
	case isWord(c):
		n.word()
	default:
		n.emit(n.in[n.at : n.at+1])
		n.at++
	}
}

// emit writes a token.
func (n *normalizer) emit(token []byte) {
	if len(n.out) > 0 {
		n.out = append(n.out, ' ')
	}
	n.out = append(n.out, token...)
}

// value writes ?, once for a list of them.
func (n *normalizer) value() {
	if list, ok := bytes.CutSuffix(n.out, []byte("? ,")); ok && (len(list) == 0 || list[len(list)-1] == ' ') {
		n.out = n.out[:len(n.out)-len(" ,")]
		return
	}
	n.emit([]byte{'?'})
}

// quoted passes what stands between two of the quote, a doubled one within it.
func (n *normalizer) quoted(quote byte, escapes bool) {
	for n.at++; n.at < len(n.in); n.at++ {
		switch c := n.in[n.at]; {
		case escapes && c == '\\':
			n.at++
		case c == quote && n.byteAt(n.at+1) == quote:
			n.at++
		case c == quote:
			n.at++
			return
		}
	}
	n.at = len(n.in)
}

// blockComment passes a comment, and those within it.
func (n *normalizer) blockComment() {
	for depth := 0; n.at < len(n.in); {
		switch c, next := n.in[n.at], n.byteAt(n.at+1); {
		case c == '/' && next == '*':
			depth++
			n.at += 2
		case c == '*' && next == '/':
			n.at += 2
			if depth--; depth == 0 {
				return
			}
		default:
			n.at++
		}
	}
	n.at = len(n.in)
}

// dollarQuoted passes $tag$…$tag$, if that is what begins here.
func (n *normalizer) dollarQuoted() bool {
	end := n.at + 1
	for end < len(n.in) && isWord(n.in[end]) && n.in[end] != '$' {
		end++
	}
	first := n.byteAt(n.at + 1)
	if n.byteAt(end) != '$' || first >= '0' && first <= '9' {
		return false
	}
	tag := string(n.in[n.at : end+1])
	for i := end + 1; i+len(tag) <= len(n.in); i++ {
		if string(n.in[i:i+len(tag)]) == tag {
			n.at = i + len(tag)
			return true
		}
	}
	n.at = len(n.in)
	return true
}

func (n *normalizer) number() {
	for n.at < len(n.in) {
		c := n.in[n.at]
		exponent := (c == '+' || c == '-') && (n.in[n.at-1] == 'e' || n.in[n.at-1] == 'E')
		if !isWord(c) && c != '.' && !exponent {
			return
		}
		n.at++
	}
}

// word passes a name or key word, or the prefix of a string such as E'…'.
func (n *normalizer) word() {
	from := n.at
	for n.at < len(n.in) && (isWord(n.in[n.at]) || n.in[n.at] == '$') {
		n.at++
	}
	text := n.in[from:n.at]
	if n.byteAt(n.at) == '\'' && len(text) == 1 {
		switch text[0] | 0x20 {
		case 'e':
			n.quoted('\'', true)
			n.value()
			return
		case 'b', 'x', 'n':
			n.quoted('\'', false)
			n.value()
			return
		}
	}
	at := len(n.out)
	n.emit(text)
	for i, c := range n.out[at:] {
		if c >= 'A' && c <= 'Z' {
			n.out[at+i] = c | 0x20
		}
	}
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
