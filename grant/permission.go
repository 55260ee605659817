package grant

import (
	"slices"
	"strings"
)

// Kind says which protocol a permission speaks of. The zero Kind is invalid.
type Kind uint8

// The kinds of permission, each named in a SPIFFE ID by its String.
const (
	KindHTTP     Kind = iota + 1 // METHODS and a path pattern
	KindGRPC                     // a gRPC service and one method, or all
	KindPostgres                 // a database and the role to open it as
	KindTCP                      // the whole byte stream
)

// String is "http", "grpc", "postgres", "tcp", or "" for the zero Kind.
func (k Kind) String() string {
	switch k {
	case KindHTTP:
		return "http"
	case KindGRPC:
		return "grpc"
	case KindPostgres:
		return "postgres"
	case KindTCP:
		return "tcp"
	default:
		return ""
	}
}

// Permission is one thing that may be done at a service: "GET /accounts/**", "tcp". Two
// permissions are == exactly if they mean the same. The zero Permission is invalid and allows
// nothing.
type Permission struct {
	enc string // its spelling in a SPIFFE ID, canonical: "http/GET/accounts/_rest"
}

// Kind is the permission's kind, or zero for the zero Permission.
func (p Permission) Kind() Kind {
	word, _, _ := strings.Cut(p.enc, "/")
	for k := KindHTTP; k <= KindTCP; k++ {
		if k.String() == word {
			return k
		}
	}
	return 0
}

// IsZero tells the zero Permission.
func (p Permission) IsZero() bool { return p.enc == "" }

// TCPPermission is the permission "tcp".
func TCPPermission() Permission { return Permission{enc: "tcp"} }

// HTTPPermission is the smallest permission that allows method on path. Methods that are not
// upper-case words have no name in a permission, so only "*" allows them. The error is
// ErrPermission if method is no HTTP token or path is zero, and also ErrTooLong if no
// certificate could carry the permission.
func HTTPPermission(method string, path Path) (Permission, error) {
	if !isToken(method) {
		return Permission{}, &mistake{ErrPermission, method, -1, "not an HTTP method", `write one as in "GET"`}
	}
	if path.IsZero() {
		return Permission{}, &mistake{ErrPermission, "", -1, "no path", "read one with ParsePath"}
	}
	pp := parts{kind: KindHTTP}
	if isMethodWord(method) {
		pp.methods = []string{method}
	}
	for seg := range strings.SplitSeq(path.text[1:], "/") {
		if seg == "" {
			pp.segs = append(pp.segs, pseg{kind: segEmpty})
			continue
		}
		pp.segs = append(pp.segs, pseg{kind: segText, text: seg})
	}
	return pp.permission(ErrPermission)
}

// GRPCPermission is the smallest permission that allows the gRPC call whose :path is path. The
// error is ErrPermission if it is not /SERVICE/METHOD, free of escapes.
func GRPCPermission(path Path) (Permission, error) {
	service, method, ok := path.grpc()
	if !ok {
		return Permission{}, &mistake{ErrPermission, path.raw, -1, "not the path of a gRPC call", `it has the form "/package.Service/Method", without escapes`}
	}
	return parts{kind: KindGRPC, a: service, b: method}.permission(ErrPermission)
}

// PostgresPermission is the permission to open db as role. The error is ErrPermission unless both are names that
// PostgreSQL can have: 1 to 63 bytes of UTF-8 without NUL.
func PostgresPermission(db, role string) (Permission, error) {
	for _, name := range []string{db, role} {
		if name == "" || len(name) > maxName || invalidUTF8(name) >= 0 || strings.Contains(name, "\x00") {
			return Permission{}, &mistake{ErrPermission, name, -1, "not a name", "Postgres names have 1 to 63 bytes of UTF-8"}
		}
	}
	return parts{kind: KindPostgres, a: db, b: role}.permission(ErrPermission)
}

// Postgres is the database and the role of a postgres permission; ok is false for other kinds.
func (p Permission) Postgres() (db, role string, ok bool) {
	pp := p.parts()
	if pp.kind != KindPostgres {
		return "", "", false
	}
	return pp.a, pp.b, true
}

// parts is a permission taken apart.
type parts struct {
	kind Kind
	// methods are http's, ascending; none: every method
	methods []string
	segs    []pseg
	// a and b are postgres' DB and ROLE, or grpc's SERVICE and METHOD ("": every method)
	a, b string
}

// pseg is one segment of an http permission's path.
type pseg struct {
	kind segKind
	text string // of segText
}

type segKind uint8

const (
	segText  segKind = iota + 1
	segAny           // exactly one segment, not empty
	segRest          // last: at least one segment, possibly empty
	segEmpty         // last: a trailing slash
)

// permission encodes pp, which its maker has checked but for its length.
func (pp parts) permission(class error) (Permission, error) {
	enc := pp.encode()
	if len(enc) > MaxIDLength {
		return Permission{}, tooLong(class, "one permission alone", len(enc))
	}
	return Permission{enc: enc}, nil
}

// encode is PERM of the grammar.
func (pp parts) encode() string {
	b := append(make([]byte, 0, 64), pp.kind.String()...)
	switch pp.kind {
	case KindHTTP:
		b = append(b, '/')
		b = append(b, pp.encodeMethods()...)
		for _, s := range pp.segs {
			b = append(b, '/')
			switch s.kind {
			case segText:
				b = appendIDText(b, s.text)
			case segAny:
				b = append(b, tokenAny...)
			case segRest:
				b = append(b, tokenRest...)
			case segEmpty:
				b = append(b, tokenEmpty...)
			}
		}
	case KindGRPC:
		b = appendIDText(append(b, '/'), pp.a)
		b = append(b, '/')
		if pp.b == "" {
			b = append(b, tokenAny...)
		} else {
			b = appendIDText(b, pp.b)
		}
	case KindPostgres:
		b = appendIDText(append(b, '/'), pp.a)
		b = appendIDText(append(b, '/'), pp.b)
	case KindTCP:
	}
	return string(b)
}

func (pp parts) encodeMethods() string {
	if len(pp.methods) == 0 {
		return tokenAny
	}
	return strings.Join(pp.methods, ".")
}

// parts takes p apart; the zero Permission has the zero parts.
func (p Permission) parts() parts {
	if p.IsZero() {
		return parts{}
	}
	pp, err := readPermission(&cursor{class: ErrPermission, in: p.enc})
	if err != nil {
		return parts{} // cannot be: enc was written by encode
	}
	return pp
}

// sortedMethods is methods ascending, with repetitions dropped.
func sortedMethods(methods []string) []string {
	methods = slices.Clone(methods)
	slices.Sort(methods)
	return slices.Compact(methods)
}

// isMethodWord tells whether a permission can name the method m: upper-case letters only.
func isMethodWord(m string) bool {
	for i := range len(m) {
		if m[i] < 'A' || m[i] > 'Z' {
			return false
		}
	}
	return m != ""
}

// isToken tells whether m is an HTTP token (RFC 9110 §5.6.2), as methods are.
func isToken(m string) bool {
	for i := range len(m) {
		if c := m[i]; !isAlnum(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return m != ""
}
