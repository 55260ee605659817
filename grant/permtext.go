package grant

import (
	"fmt"
	"strconv"
	"strings"
)

func itoa(n int) string { return strconv.Itoa(n) }

// ParsePermission reads the text form that people write: "GET,HEAD /accounts/**",
// "grpc bank.Ledger/*", `postgres "my db" as read_only`, "tcp" (SPEC.md §3). It is lenient in
// the order of methods and in escaping, never in meaning: what could be meant in two ways is
// refused. The error is ErrPermission, says at which byte and what would be right, and is also
// ErrTooLong when no certificate could carry the permission.
func ParsePermission(text string) (Permission, error) {
	if i := invalidUTF8(text); i >= 0 {
		return Permission{}, &mistake{ErrPermission, text, i, "not UTF-8", "percent-encode the bytes of UTF-8"}
	}
	word, _, more := strings.Cut(text, " ")
	t := &textReader{in: text, at: len(word) + 1}
	var (
		pp  parts
		err error
	)
	switch {
	case word == "":
		err = t.fail(0, "it does not begin with a word", `write "GET /path", "grpc Service/Method", "postgres DB as ROLE" or "tcp"`)
	case word == "tcp" && !more:
		return TCPPermission(), nil
	case word == "tcp":
		err = t.fail(len(word), "tcp takes nothing", `write "tcp"`)
	case strings.HasPrefix(word, "/"):
		err = t.fail(0, "a path without methods", `write "GET " before it, or "* " for every method`)
	case !more:
		err = t.fail(len(word), "nothing follows "+quoted(word), `write "GET /path", "grpc Service/Method", "postgres DB as ROLE" or "tcp"`)
	case word == "grpc":
		pp, err = t.grpc()
	case word == "postgres":
		pp, err = t.postgres()
	default:
		pp, err = t.http(word)
	}
	if err != nil {
		return Permission{}, err
	}
	return pp.permission(ErrPermission)
}

// shorten is s, cut to what an error may repeat.
func shorten(s string) string {
	if len(s) <= shownInput {
		return s
	}
	return s[:shownInput] + "…"
}

// textReader reads the text form from byte at on.
type textReader struct {
	in string
	at int
}

func (t *textReader) fail(at int, what, want string) error {
	return &mistake{ErrPermission, t.in, at, what, want}
}

func (t *textReader) http(methods string) (parts, error) {
	pp := parts{kind: KindHTTP}
	if methods != "*" {
		at := 0
		for m := range strings.SplitSeq(methods, ",") {
			if !isMethodWord(m) {
				return parts{}, t.fail(at, quoted(m)+" is no method", methodHint(m))
			}
			pp.methods = append(pp.methods, m)
			at += len(m) + 1
		}
		sorted := sortedMethods(pp.methods)
		if len(sorted) < len(pp.methods) {
			return parts{}, t.fail(0, "a method twice", `write "`+shorten(strings.Join(sorted, ","))+`"`)
		}
		pp.methods = sorted
	}
	path := t.in[t.at:]
	if !strings.HasPrefix(path, "/") {
		return parts{}, t.fail(t.at, `the path does not begin with "/"`, `write one space, then the path, as in "GET /accounts/**"`)
	}
	at := t.at + 1
	for seg := range strings.SplitSeq(path[1:], "/") {
		last := at+len(seg) == len(t.in)
		s, err := t.segment(seg, at, last)
		if err != nil {
			return parts{}, err
		}
		pp.segs = append(pp.segs, s)
		at += len(seg) + 1
	}
	return pp, nil
}

// methodHint is what to write in place of m, which is no method.
func methodHint(m string) string {
	switch up := strings.ToUpper(m); {
	case m == "":
		return `write methods with one comma between, as in "GET,HEAD"`
	case m == "*":
		return `write "*" alone for every method`
	case m == "any":
		return `write "*" for every method`
	case isMethodWord(up) && len(up) == len(m):
		return `methods are upper-case: write "` + shorten(up) + `"; the other kinds are grpc, postgres and tcp`
	default:
		return "methods are upper-case words; the other kinds are grpc, postgres and tcp"
	}
}

// segment reads seg, which begins at byte at and ends the text if last.
func (t *textReader) segment(seg string, at int, last bool) (pseg, error) {
	switch {
	case seg == "*":
		return pseg{kind: segAny}, nil
	case seg == "**" && last:
		return pseg{kind: segRest}, nil
	case seg == "**":
		return pseg{}, t.fail(at, `"**" before the end of the path`, `it comes last only; write "*" for one segment`)
	case seg == "" && last:
		return pseg{kind: segEmpty}, nil
	case seg == "":
		return pseg{}, t.fail(at, "an empty segment", "write one slash")
	}
	text, off, problem, want := readURLText(seg)
	if problem != "" {
		return pseg{}, t.fail(at+off, problem, want)
	}
	if problem := checkPathText(text); problem != "" {
		return pseg{}, t.fail(at, problem, "no request with it is ever forwarded")
	}
	return pseg{kind: segText, text: text}, nil
}

func (t *textReader) grpc() (parts, error) {
	const form = `write "grpc package.Service/Method", or "grpc package.Service/*" for every method`
	service, method, ok := strings.Cut(t.in[t.at:], "/")
	if !ok || service == "" || method == "" || strings.Contains(method, "/") {
		return parts{}, t.fail(t.at, "not a service, one slash and a method", form)
	}
	if service == "*" {
		return parts{}, t.fail(t.at, "every service", "a gRPC service is always named: "+form)
	}
	pp := parts{kind: KindGRPC}
	var (
		off           int
		problem, want string
	)
	pp.a, off, problem, want = readURLText(service)
	if problem != "" {
		return parts{}, t.fail(t.at+off, problem, want)
	}
	if method == "*" {
		return pp, nil
	}
	pp.b, off, problem, want = readURLText(method)
	if problem != "" {
		return parts{}, t.fail(t.at+len(service)+1+off, problem, want)
	}
	return pp, nil
}

func (t *textReader) postgres() (parts, error) {
	db, err := t.sqlName("a database")
	if err != nil {
		return parts{}, err
	}
	const as = " as "
	if !strings.HasPrefix(t.in[t.at:], as) {
		return parts{}, t.fail(t.at, "the role is missing", `write "postgres DB as ROLE", names that are not plain in double quotes`)
	}
	t.at += len(as)
	role, err := t.sqlName("a role")
	if err != nil {
		return parts{}, err
	}
	if t.at != len(t.in) {
		return parts{}, t.fail(t.at, "more after the role", `write "postgres DB as ROLE", names that are not plain in double quotes`)
	}
	return parts{kind: KindPostgres, a: db, b: role}, nil
}

// String is the canonical text form; "" for the zero Permission.
func (p Permission) String() string {
	pp := p.parts()
	switch pp.kind {
	case KindHTTP:
		methods := "*"
		if len(pp.methods) > 0 {
			methods = strings.Join(pp.methods, ",")
		}
		return methods + " " + pp.pathText()
	case KindGRPC:
		b := append(appendURLText([]byte("grpc "), pp.a), '/')
		if pp.b == "" {
			return string(append(b, '*'))
		}
		return string(appendURLText(b, pp.b))
	case KindPostgres:
		return "postgres " + writeSQLName(pp.a) + " as " + writeSQLName(pp.b)
	case KindTCP:
		return "tcp"
	default:
		return ""
	}
}

// pathText is the path of an http permission in the text form.
func (pp parts) pathText() string {
	b := make([]byte, 0, 64)
	for _, s := range pp.segs {
		b = append(b, '/')
		switch s.kind {
		case segText:
			b = appendURLText(b, s.text)
		case segAny:
			b = append(b, '*')
		case segRest:
			b = append(b, "**"...)
		case segEmpty:
		}
	}
	return string(b)
}

// MarshalText is String; the zero Permission is an error.
func (p Permission) MarshalText() ([]byte, error) {
	if p.IsZero() {
		return nil, fmt.Errorf("%w: the zero permission has no text", ErrPermission)
	}
	return []byte(p.String()), nil
}

// UnmarshalText is ParsePermission.
func (p *Permission) UnmarshalText(text []byte) error {
	q, err := ParsePermission(string(text))
	if err != nil {
		return err
	}
	*p = q
	return nil
}
