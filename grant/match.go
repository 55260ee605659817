package grant

import (
	"slices"
	"strings"
)

// Matcher answers which requests a scope allows. It is made once for a certificate and used
// for each of its requests, by any number of goroutines; its methods allocate nothing. A nil or
// zero Matcher allows nothing.
type Matcher struct {
	http     pathNode
	grpc     []pairRule
	postgres []pairRule
	tcp      bool
}

// pathNode stands for what a path may begin with, up to and with a slash, and says how it may go
// on. There is one rule at most for each end, since methods of one path are merged.
type pathNode struct {
	texts []textNode // a segment that is one of these; ascending
	any   *pathNode  // any one segment that is not empty
	end   *httpRule  // nothing: the slash was not there after all
	empty *httpRule  // nothing: the slash is the last byte
	rest  *httpRule  // anything
}

// textNode is the node that follows a segment that is text.
type textNode struct {
	text string
	node *pathNode
}

// httpRule is an http permission without its path.
type httpRule struct {
	known      uint16 // the methods that methodBit knows
	any        bool
	others     []string // the methods that it does not
	permission Permission
}

// pairRule is a grpc or postgres permission made ready; b is "" for every gRPC method.
type pairRule struct {
	a, b       string
	permission Permission
}

// Matcher makes s ready to answer requests.
func (s Scope) Matcher() *Matcher {
	m := new(Matcher)
	for _, p := range s.Permissions() {
		pp := p.parts()
		switch pp.kind {
		case KindHTTP:
			m.http.add(pp.segs, newHTTPRule(p, pp.methods))
		case KindGRPC:
			m.grpc = append(m.grpc, pairRule{pp.a, pp.b, p})
		case KindPostgres:
			m.postgres = append(m.postgres, pairRule{pp.a, pp.b, p})
		case KindTCP:
			m.tcp = true
		}
	}
	return m
}

func newHTTPRule(p Permission, methods []string) *httpRule {
	r := &httpRule{permission: p, any: len(methods) == 0}
	for _, m := range methods {
		if bit := methodBit(m); bit != 0 {
			r.known |= bit
		} else {
			r.others = append(r.others, m)
		}
	}
	return r
}

// add adds a rule for the path of segs.
func (n *pathNode) add(segs []pseg, r *httpRule) {
	for _, s := range segs {
		switch s.kind {
		case segText:
			i, ok := slices.BinarySearchFunc(n.texts, s.text, textNode.compare)
			if !ok {
				n.texts = slices.Insert(n.texts, i, textNode{s.text, new(pathNode)})
			}
			n = n.texts[i].node
		case segAny:
			if n.any == nil {
				n.any = new(pathNode)
			}
			n = n.any
		case segRest:
			n.rest = r
			return
		case segEmpty:
			n.empty = r
			return
		}
	}
	n.end = r
}

// HTTP tells whether the scope allows method on path, and by which permission: of several, the
// one whose path is nearest, text before * before **, from the left. Methods are compared byte
// for byte. Calls of gRPC go to GRPC instead.
func (m *Matcher) HTTP(method string, path *Path) (Permission, bool) {
	if m == nil || path == nil || path.text == "" {
		return Permission{}, false
	}
	bit := methodBit(method)
	if bit == 0 && !isToken(method) {
		return Permission{}, false
	}
	if r := m.http.find(path.text[1:], method, bit); r != nil {
		return r.permission, true
	}
	return Permission{}, false
}

// find is the nearest rule for text, which follows the node's slash, that has the method; or nil.
func (n *pathNode) find(text, method string, bit uint16) *httpRule {
	for text != "" {
		before, after, ok := strings.Cut(text, "/")
		if !ok {
			return firstWith(method, bit, n.named(text).ending(), n.any.ending(), n.rest)
		}
		named, below := n.named(before), after
		next := named
		if next == nil {
			next = n.any
		}
		switch {
		case next == nil:
			return firstWith(method, bit, n.rest)
		case n.rest == nil && (next == n.any || n.any == nil):
			n, text = next, below // the only way on
			continue
		}
		if r := next.find(below, method, bit); r != nil {
			return r
		}
		if next != n.any && n.any != nil {
			if r := n.any.find(below, method, bit); r != nil {
				return r
			}
		}
		return firstWith(method, bit, n.rest)
	}
	return firstWith(method, bit, n.empty, n.rest)
}

func (t textNode) compare(text string) int { return strings.Compare(t.text, text) }

// named is the node that follows the segment seg because it is that text, or nil.
func (n *pathNode) named(seg string) *pathNode {
	const few = 8 // up to which looking at each is the fastest
	if len(n.texts) > few {
		i, ok := slices.BinarySearchFunc(n.texts, seg, textNode.compare)
		if !ok {
			return nil
		}
		return n.texts[i].node
	}
	for i := range n.texts {
		if n.texts[i].text == seg {
			return n.texts[i].node
		}
	}
	return nil
}

// ending is the rule for a path that ends before the node's slash.
func (n *pathNode) ending() *httpRule {
	if n == nil {
		return nil
	}
	return n.end
}

// firstWith is the first of the rules that allows the method, whose methodBit is bit.
func firstWith(method string, bit uint16, rules ...*httpRule) *httpRule {
	for _, r := range rules {
		if r != nil && (r.known&bit != 0 || r.any || bit == 0 && slices.Contains(r.others, method)) {
			return r
		}
	}
	return nil
}

// GRPC tells whether the scope allows the gRPC call of path, and by which permission, the one
// that names the method if there is one. Every call of gRPC is a POST to /SERVICE/METHOD.
func (m *Matcher) GRPC(method string, path *Path) (Permission, bool) {
	if m == nil || path == nil || method != "POST" {
		return Permission{}, false
	}
	service, name, ok := path.grpc()
	if !ok {
		return Permission{}, false
	}
	var all *pairRule
	for i := range m.grpc {
		switch r := &m.grpc[i]; {
		case r.a != service:
		case r.b == name:
			return r.permission, true
		case r.b == "":
			all = r
		}
	}
	if all != nil {
		return all.permission, true
	}
	return Permission{}, false
}

// TCP tells whether the scope allows the whole byte stream.
func (m *Matcher) TCP() bool { return m != nil && m.tcp }

// Postgres tells whether the scope allows opening db as role. Names are compared byte for byte.
func (m *Matcher) Postgres(db, role string) bool {
	if m == nil {
		return false
	}
	for i := range m.postgres {
		if r := &m.postgres[i]; r.a == db && r.b == role {
			return true
		}
	}
	return false
}

// methodBit is the bit of a method of RFC 9110 or RFC 5789, 0 for others.
func methodBit(m string) uint16 {
	switch m {
	case "GET":
		return 1 << 0
	case "HEAD":
		return 1 << 1
	case "POST":
		return 1 << 2
	case "PUT":
		return 1 << 3
	case "DELETE":
		return 1 << 4
	case "PATCH":
		return 1 << 5
	case "OPTIONS":
		return 1 << 6
	case "CONNECT":
		return 1 << 7
	case "TRACE":
		return 1 << 8
	default:
		return 0
	}
}
