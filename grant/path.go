package grant

import (
	"strings"
	"unicode/utf8"
)

// PathOptions widens what ParsePath takes. The zero value is the strict one.
type PathOptions struct {
	// AllowSemicolon takes ";" in a segment, behind at least one other character. Servlet
	// containers cut what follows it before they route, others do not: allow it only for a
	// service that is known to be among the others.
	AllowSemicolon bool
}

// Path is the path of a request's target, read once: the reading that the Matcher decides on is
// of the very bytes in Raw, which are what has to be forwarded. The zero Path is invalid and
// matches nothing.
type Path struct {
	raw   string // as in the target
	text  string // decoded; "/" in it is always a separator
	query string // behind the "?"
	asked bool   // there was a "?"
}

// ParsePath reads a request's target as it stands on the request line or in :path. The error
// is ErrAmbiguousPath for whatever two parsers could read in two ways (SPEC.md §5 has the
// list): the request is to be refused with 400. Nothing is repaired.
//
// It allocates only for a path that has escapes, or an error.
func ParsePath(target string, opts PathOptions) (Path, error) {
	if target == "" || target[0] != '/' {
		return Path{}, ambiguous(target, 0, "the target is not a path", `it begins with "/"`)
	}
	end, escaped, start := len(target), false, 1
scan:
	for i := 1; i < len(target); i++ {
		switch c := target[i]; {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '-' && c <= '9' && c != '/':
		case c == '/':
			if err := checkSegment(target, start, i, opts); err != nil {
				return Path{}, err
			}
			if start == i {
				return Path{}, ambiguous(target, i, "an empty segment", "one slash separates segments")
			}
			start = i + 1
		case c == '?':
			end = i
			break scan
		case c == '%':
			if err := checkEscape(target, i, opts); err != nil {
				return Path{}, err
			}
			escaped = true
			i += 2
		case refusedRaw(c) || c == ';' && !opts.AllowSemicolon:
			return Path{}, ambiguous(target, i, "a raw byte "+percent(c), "no path is read alike by all with it")
		}
	}
	if err := checkSegment(target, start, end, opts); err != nil {
		return Path{}, err
	}
	p := Path{raw: target[:end], text: target[:end]}
	if end < len(target) {
		p.query, p.asked = target[end+1:], true
		if err := checkQuery(target, end+1); err != nil {
			return Path{}, err
		}
	}
	if escaped {
		p.text = unescape(p.raw)
		if !utf8.ValidString(p.text) {
			return Path{}, ambiguous(target, 0, "the decoded path is not UTF-8", "escapes spell UTF-8")
		}
	}
	return p, nil
}

func ambiguous(target string, at int, what, want string) error {
	return &mistake{ErrAmbiguousPath, target, at, what, want}
}

// refusedRaw tells the bytes that no path has unescaped: controls, space, "#" and "\", which
// some read as the end, as a fragment or as a slash, and non-ASCII, which some read as Latin-1.
func refusedRaw(c byte) bool {
	return c <= ' ' || c >= 0x7f || c == '\\' || c == '#'
}

// checkEscape sees to the escape at target[i]: two hex digits, of a byte that has to be
// escaped in some path. An escaped unreserved byte is the second spelling of that byte; an
// escaped slash or backslash is a separator to some; a decoder behind us may unescape "%3B".
func checkEscape(target string, i int, opts PathOptions) error {
	if len(target)-i < 3 || !isHex(target[i+1]) || !isHex(target[i+2]) {
		return ambiguous(target, i, "a bad escape", "two hex digits follow %")
	}
	switch c := unhex(target[i+1])<<4 | unhex(target[i+2]); {
	case isAlnum(c) || strings.IndexByte("-._~", c) >= 0:
		return ambiguous(target, i, "an escaped "+quoted(string(c)), "it is written as is")
	case c == '/' || c == '\\' || isControl(c) || c == ';' && !opts.AllowSemicolon:
		return ambiguous(target, i, "an escaped byte "+percent(c), "no path is read alike by all with it")
	}
	return nil
}

// checkSegment refuses target[start:end] if it is a dot segment, or one to a server that cuts
// path parameters off: "..;x" is ".." to it, and ";x" is empty.
func checkSegment(target string, start, end int, opts PathOptions) error {
	name := target[start:end]
	if opts.AllowSemicolon {
		name = cutParameters(name)
		if name == "" && start < end {
			return ambiguous(target, start, `a segment that begins with ";"`, "some read it as an empty one")
		}
	}
	if name == "." || name == ".." {
		return ambiguous(target, start, "a dot segment", "resolve it before sending")
	}
	return nil
}

// cutParameters is the segment up to its first ";", raw or escaped.
func cutParameters(seg string) string {
	for i := range len(seg) {
		if seg[i] == ';' || seg[i] == '%' && (strings.HasPrefix(seg[i:], "%3B") || strings.HasPrefix(seg[i:], "%3b")) {
			return seg[:i]
		}
	}
	return seg
}

// checkQuery refuses what would let a query end the target early: a server that cuts the
// request line there would take the rest for a version or for headers.
func checkQuery(target string, start int) error {
	for i := start; i < len(target); i++ {
		if c := target[i]; c <= ' ' || c == 0x7f || c == '#' {
			return ambiguous(target, i, "a raw byte "+percent(c)+" in the query", "it is written escaped")
		}
	}
	return nil
}

// unescape decodes raw, all of whose escapes have been checked.
func unescape(raw string) string {
	b := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '%' {
			b = append(b, raw[i])
			continue
		}
		b = append(b, unhex(raw[i+1])<<4|unhex(raw[i+2]))
		i += 2
	}
	return string(b)
}

// Raw is the path as it came, without the query: what is forwarded, byte for byte.
func (p Path) Raw() string { return p.raw }

// Text is the path decoded, once. Each "/" in it separates segments.
func (p Path) Text() string { return p.text }

// Query is what followed the "?", as it came; ok is false if there was no "?".
func (p Path) Query() (query string, ok bool) { return p.query, p.asked }

// IsZero tells the zero Path.
func (p Path) IsZero() bool { return p == Path{} }

// grpc takes the path of a gRPC call apart. gRPC servers look up the raw path while HTTP ones
// decode it, so a path with escapes is no call's.
func (p *Path) grpc() (service, method string, ok bool) {
	if p.text == "" || len(p.raw) != len(p.text) {
		return "", "", false
	}
	i := strings.IndexByte(p.text[1:], '/') + 1
	if i <= 1 || i == len(p.text)-1 || strings.IndexByte(p.text[i+1:], '/') >= 0 {
		return "", "", false
	}
	return p.text[1:i], p.text[i+1:], true
}
