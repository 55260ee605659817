package grant

import (
	"strings"
	"unicode/utf8"
)

// Names of databases and roles, as SQL writes them: orders, "my db", and U&"a\200Bb" for names
// with characters that do not show.

// writeSQLName is the canonical spelling of name.
func writeSQLName(name string) string {
	if isPlainSQLName(name) {
		return name
	}
	hidden := strings.ContainsFunc(name, isHidden)
	var b strings.Builder
	if hidden {
		b.WriteString("U&")
	}
	b.WriteByte('"')
	for _, r := range name {
		switch {
		case r == '"':
			b.WriteString(`""`)
		case hidden && r == '\\':
			b.WriteString(`\\`)
		case isHidden(r) && r > 0xFFFF:
			b.WriteString(`\+`)
			writeHex(&b, r, 6)
		case isHidden(r):
			b.WriteByte('\\')
			writeHex(&b, r, 4)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func writeHex(b *strings.Builder, r rune, digits int) {
	for i := digits - 1; i >= 0; i-- {
		b.WriteByte(upperHex[r>>(4*i)&15])
	}
}

// isPlainSQLName tells whether name is written without quotes: a lower-case SQL identifier,
// other than "as", which would be read as the word between the names.
func isPlainSQLName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if c != '_' && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != "" && name != "as"
}

// isHidden tells the characters that do not show, or that change how those around them show:
// controls, format and bidirectional characters, spaces other than U+0020, fillers and
// variation selectors. Raw in the text form they would let a requester show an approver one
// name and ask for another, or draw a line of their own in a table. The list is fixed here, not
// taken from Go's Unicode tables, so that every build writes every name alike.
func isHidden(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7F && r <= 0xA0, r == 0xAD, r == 0x034F, r == 0x061C,
		r == 0x115F, r == 0x1160, r == 0x1680, r == 0x17B4, r == 0x17B5,
		r >= 0x180B && r <= 0x180F, r >= 0x2000 && r <= 0x200F, r >= 0x2028 && r <= 0x202F,
		r >= 0x205F && r <= 0x206F, r == 0x2800, r == 0x3000, r == 0x3164,
		r >= 0xFE00 && r <= 0xFE0F, r == 0xFEFF, r == 0xFFA0, r >= 0xFFF0 && r <= 0xFFFB,
		r >= 0x13430 && r <= 0x1345F, r >= 0x1BCA0 && r <= 0x1BCA3, r >= 0x1D173 && r <= 0x1D17A, r >= 0xE0000 && r <= 0xE0FFF:
		return true
	default:
		return false
	}
}

// HiddenInText reports whether a character hides something in running text that people decide
// by: one that does not show, or that changes how those around it show. It allows of these what
// people do type: tabs and line ends, the spaces of French and Japanese, joiners, and what
// chooses the form of an emoji. Like the list that names go by, it is fixed here, so that every
// build of every node refuses the same.
func HiddenInText(r rune) bool {
	switch r {
	case '\t', '\n', 0xA0, 0x2009, 0x200C, 0x200D, 0x202F, 0x3000, 0xFE0E, 0xFE0F:
		return false
	case 0xFFFD, 0xFFFE, 0xFFFF:
		return true
	}
	return isHidden(r)
}

// sqlName reads one name and moves behind it; what says whose.
func (t *textReader) sqlName(what string) (string, error) {
	start := t.at
	var (
		name string
		err  error
	)
	switch rest := t.in[start:]; {
	case strings.HasPrefix(rest, `"`):
		t.at++
		name, err = t.quotedName(false)
	case strings.HasPrefix(rest, `U&"`):
		t.at += 3
		name, err = t.quotedName(true)
	default:
		name, err = t.bareName(what)
	}
	if err != nil {
		return "", err
	}
	if name == "" || len(name) > maxName {
		return "", t.fail(start, what+" of "+itoa(len(name))+" bytes", "Postgres names have 1 to 63")
	}
	return name, nil
}

// bareName reads a name without quotes. SQL would fold an upper-case letter there to lower
// case and our own reading would not: it has to be quoted.
func (t *textReader) bareName(what string) (string, error) {
	start := t.at
	for ; t.at < len(t.in) && t.in[t.at] != ' '; t.at++ {
		c := t.in[t.at]
		if c != '_' && c != '-' && c != '$' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return "", t.fail(t.at, quoted(t.in[t.at:t.at+1])+" in a name without quotes", "put the name in double quotes")
		}
	}
	switch name := t.in[start:t.at]; name {
	case "":
		return "", t.fail(start, what+" is missing", `write "postgres DB as ROLE", with single spaces`)
	case "as":
		return "", t.fail(start, `"as" where `+what+" is expected", `put the name in double quotes if it is "as"`)
	default:
		return name, nil
	}
}

// quotedName reads on to the closing quote; escapes says that it began with U&".
func (t *textReader) quotedName(escapes bool) (string, error) {
	start := t.at - 1
	var b strings.Builder
	for t.at < len(t.in) {
		c := t.in[t.at]
		t.at++
		switch {
		case c == '"' && strings.HasPrefix(t.in[t.at:], `"`):
			b.WriteByte('"')
			t.at++
		case c == '"':
			return b.String(), nil
		case c == '\\' && escapes:
			r, err := t.unicodeEscape()
			if err != nil {
				return "", err
			}
			b.WriteRune(r)
		default:
			b.WriteByte(c)
		}
	}
	return "", t.fail(start, "a quote that is not closed", `close it with ", and double each " inside`)
}

// unicodeEscape reads what follows a backslash in U&"…": XXXX, +XXXXXX or another backslash.
func (t *textReader) unicodeEscape() (rune, error) {
	rest, digits := t.in[t.at:], 4
	if strings.HasPrefix(rest, `\`) {
		t.at++
		return '\\', nil
	}
	start := t.at - 1
	if strings.HasPrefix(rest, "+") {
		rest, digits = rest[1:], 6
		t.at++
	}
	var r rune
	for i := range digits {
		if i >= len(rest) || !isHex(rest[i]) {
			return 0, t.fail(start, "a bad escape", `write \XXXX, \+XXXXXX or \\ in U&"…"`)
		}
		r = r<<4 | rune(unhex(rest[i]))
	}
	t.at += digits
	if !utf8.ValidRune(r) {
		return 0, t.fail(start, "an escape that is no character", "surrogates are not written in halves")
	}
	return r, nil
}
