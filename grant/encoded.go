package grant

import "strings"

// The words of the grammar that are not text. None can be read as text (see readIDText).
const (
	tokenCan   = "_can"
	tokenAnd   = "_and"
	tokenFor   = "_for"
	tokenID    = "_id"
	tokenAny   = "_any"
	tokenRest  = "_rest"
	tokenEmpty = "_empty"
)

const maxName = 63 // bytes of a Postgres name (NAMEDATALEN - 1)

// cursor walks the segments of an encoded form, from byte at to the end of in.
type cursor struct {
	class error
	in    string
	at    int  // where the next segment begins
	done  bool // the last segment has been taken
}

// peek is the next segment, "" when there is none.
func (c *cursor) peek() string {
	if c.done {
		return ""
	}
	seg, _, _ := strings.Cut(c.in[c.at:], "/")
	return seg
}

// next takes a segment and says where it began; "" when there is none left.
func (c *cursor) next() (seg string, at int) {
	seg, at = c.peek(), c.at
	switch {
	case c.done:
	case at+len(seg) == len(c.in):
		c.at, c.done = len(c.in), true
	default:
		c.at += len(seg) + 1
	}
	return seg, at
}

// expect takes the segment want.
func (c *cursor) expect(want string) error {
	if c.done {
		return c.fail(c.at, "it ends too early", `"`+want+`" is expected here`)
	}
	if seg, at := c.next(); seg != want {
		return c.fail(at, "found "+quoted(seg), `"`+want+`" is expected here`)
	}
	return nil
}

// text takes a segment and reads it as text; name says what it is.
func (c *cursor) text(name string) (string, error) {
	if c.done {
		return "", c.fail(c.at, "it ends too early", name+" is expected here")
	}
	seg, at := c.next()
	text, off, problem := readIDText(seg)
	if problem != "" {
		return "", c.fail(at+off, problem, name+" is expected here")
	}
	return text, nil
}

func (c *cursor) fail(at int, what, want string) error {
	return &mistake{c.class, c.in, at, what, want}
}

// atPermissionEnd tells whether the permission being read has no segment left.
func (c *cursor) atPermissionEnd() bool {
	next := c.peek()
	return c.done || next == tokenAnd || next == tokenFor
}

// readPermission reads PERM of the grammar. It reads what the spelling means; whether it is
// the canonical spelling is for the caller to see, by writing it again.
func readPermission(c *cursor) (parts, error) {
	kind, at := c.next()
	switch kind {
	case "http":
		return readHTTP(c)
	case "grpc":
		service, err := c.text("a gRPC service")
		if err != nil {
			return parts{}, err
		}
		if c.peek() == tokenAny {
			c.next()
			return parts{kind: KindGRPC, a: service}, nil
		}
		method, err := c.text(`a gRPC method or "_any"`)
		return parts{kind: KindGRPC, a: service, b: method}, err
	case "postgres":
		db, err := readName(c, "a database")
		if err != nil {
			return parts{}, err
		}
		role, err := readName(c, "a role")
		return parts{kind: KindPostgres, a: db, b: role}, err
	case "tcp":
		return parts{kind: KindTCP}, nil
	default:
		return parts{}, c.fail(at, "unknown kind "+quoted(kind), "the kinds are http, grpc, postgres and tcp")
	}
}

func readName(c *cursor, name string) (string, error) {
	at := c.at
	text, err := c.text(name)
	if err == nil && len(text) > maxName {
		err = c.fail(at, name+" of "+itoa(len(text))+" bytes", "Postgres names have 1 to 63")
	}
	return text, err
}

func readHTTP(c *cursor) (parts, error) {
	pp := parts{kind: KindHTTP}
	methods, at := c.next()
	if methods != tokenAny {
		for m := range strings.SplitSeq(methods, ".") {
			if !isMethodWord(m) {
				return parts{}, c.fail(at, quoted(methods)+" are no methods", `write upper-case words joined by ".", or "_any"`)
			}
			pp.methods = append(pp.methods, m)
		}
		pp.methods = sortedMethods(pp.methods)
	}
	for !c.atPermissionEnd() {
		if last := len(pp.segs) - 1; last >= 0 && (pp.segs[last].kind == segRest || pp.segs[last].kind == segEmpty) {
			return parts{}, c.fail(c.at, "a segment after _rest or _empty", "these come last only")
		}
		seg, at := c.next()
		switch seg {
		case tokenAny:
			pp.segs = append(pp.segs, pseg{kind: segAny})
		case tokenRest:
			pp.segs = append(pp.segs, pseg{kind: segRest})
		case tokenEmpty:
			pp.segs = append(pp.segs, pseg{kind: segEmpty})
		default:
			text, off, problem := readIDText(seg)
			if problem == "" {
				problem = checkPathText(text)
			}
			if problem != "" {
				return parts{}, c.fail(at+off, problem, "a path segment is expected here")
			}
			pp.segs = append(pp.segs, pseg{kind: segText, text: text})
		}
	}
	if len(pp.segs) == 0 {
		return parts{}, c.fail(c.at, "an http permission without a path", `the path "/" is written "_empty"`)
	}
	return pp, nil
}
