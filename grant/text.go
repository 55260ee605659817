package grant

import (
	"strings"
	"unicode/utf8"
)

// The two spellings of a piece of text: in a SPIFFE ID ("_20" for a space) and in a URL path
// ("%20"). Both writers are canonical; both readers tell only what a spelling means, and leave
// it to their callers to refuse spellings that are not the canonical one.

const upperHex = "0123456789ABCDEF"

// appendIDText appends text as one segment of a SPIFFE ID: [A-Za-z0-9.-] as is, "_" as "__",
// any other byte as "_" and two upper-case hex digits. "." and ".." would be dot segments, so
// they are "_2E" and "_2E.".
func appendIDText(dst []byte, text string) []byte {
	if text == "." || text == ".." {
		return append(append(dst, "_2E"...), text[1:]...)
	}
	for i := range len(text) {
		switch c := text[i]; {
		case isAlnum(c) || c == '.' || c == '-':
			dst = append(dst, c)
		case c == '_':
			dst = append(dst, "__"...)
		default:
			dst = append(dst, '_', upperHex[c>>4], upperHex[c&15])
		}
	}
	return dst
}

// readIDText reads one segment of a SPIFFE ID as text. On a mistake, problem says what and at
// says where in seg. Tokens (_any, _and, …) are no text: no token begins with "__" or with "_"
// and two upper-case hex digits, and no text begins otherwise with "_".
func readIDText(seg string) (text string, at int, problem string) {
	if seg == "" {
		return "", 0, "empty segment"
	}
	if strings.IndexByte(seg, '_') < 0 {
		text = seg
	} else {
		b := make([]byte, 0, len(seg))
		for i := 0; i < len(seg); i++ {
			c := seg[i]
			if c != '_' {
				b = append(b, c)
				continue
			}
			rest := seg[i+1:]
			switch {
			case strings.HasPrefix(rest, "_"):
				b = append(b, '_')
				i++
			case len(rest) >= 2 && isUpperHex(rest[0]) && isUpperHex(rest[1]):
				b = append(b, unhex(rest[0])<<4|unhex(rest[1]))
				i += 2
			default:
				return "", i, "unknown token or bad escape " + quoted(seg)
			}
		}
		text = string(b)
	}
	if i := invalidUTF8(text); i >= 0 {
		return "", 0, "the text is not UTF-8"
	}
	return text, 0, ""
}

// appendURLText appends text as one segment of a URL path: RFC 3986 pchar as is, but for "*",
// which would be a wildcard; all else percent-encoded.
func appendURLText(dst []byte, text string) []byte {
	for i := range len(text) {
		c := text[i]
		if isAlnum(c) || strings.IndexByte("-._~!$&'()+,;=:@", c) >= 0 {
			dst = append(dst, c)
			continue
		}
		dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
	}
	return dst
}

// readURLText reads one segment of the text form of a permission. It takes any spelling that
// can mean one thing only: bytes that a careful writer would have encoded may be given raw, and
// the other way round. What looks like a query, a fragment, a wildcard or a placeholder of
// another language is refused, since its writer may have meant that.
func readURLText(seg string) (text string, at int, problem, want string) {
	b := make([]byte, 0, len(seg))
	for i := 0; i < len(seg); i++ {
		c := seg[i]
		switch {
		case c == '%':
			if len(seg)-i < 3 || !isHex(seg[i+1]) || !isHex(seg[i+2]) {
				return "", i, `"%" without two hex digits`, `write "%25" for a percent sign`
			}
			b = append(b, unhex(seg[i+1])<<4|unhex(seg[i+2]))
			i += 2
		case c == '*':
			return "", i, `"*" inside a segment`, `it stands for a whole segment only: write "%2A" for an asterisk`
		case c == '?' || c == '#':
			return "", i, "a query or fragment is not matched", `leave it out, or write "` + percent(c) + `" for the character`
		case c == '{' || c == '}':
			return "", i, "a placeholder in braces", `write "*" for one segment, or "` + percent(c) + `" for the character`
		case c == ' ' || isControl(c):
			return "", i, "a space or control byte", `write "` + percent(c) + `"`
		default:
			b = append(b, c)
		}
	}
	if i := invalidUTF8(string(b)); i >= 0 {
		return "", 0, "the text is not UTF-8", "percent-encode the bytes of UTF-8"
	}
	return string(b), 0, "", ""
}

// checkPathText says why text cannot be a segment of an http permission's path, or "".
func checkPathText(text string) (problem string) {
	if text == "." || text == ".." {
		return "dot segment"
	}
	for i := range len(text) {
		if c := text[i]; c == '/' || c == '\\' || isControl(c) {
			return "forbidden byte " + percent(c) + " in a path segment"
		}
	}
	return ""
}

func percent(c byte) string { return string([]byte{'%', upperHex[c>>4], upperHex[c&15]}) }

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isControl(c byte) bool { return c < 0x20 || c == 0x7f }

func isUpperHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' }

func isHex(c byte) bool { return isUpperHex(c) || c >= 'a' && c <= 'f' }

// unhex is the value of one hex digit.
func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	default:
		return c - 'a' + 10
	}
}

// invalidUTF8 is the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(s string) int {
	if utf8.ValidString(s) {
		return -1
	}
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}
