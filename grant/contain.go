package grant

import "slices"

// Covers tells whether p allows every call that q allows. A false may err on the safe side, a
// true never does. The zero Permission covers nothing and is covered by none.
func (p Permission) Covers(q Permission) bool {
	if p.IsZero() || q.IsZero() {
		return false
	}
	return p.parts().covers(q.parts())
}

func (pp parts) covers(qq parts) bool {
	if pp.kind != qq.kind {
		return false
	}
	switch pp.kind {
	case KindHTTP:
		return methodsCover(pp.methods, qq.methods) && pathCovers(pp.segs, qq.segs)
	case KindGRPC:
		return pp.a == qq.a && (pp.b == "" || pp.b == qq.b)
	case KindPostgres:
		return pp.a == qq.a && pp.b == qq.b
	case KindTCP:
		return true
	default:
		return false
	}
}

// Overlaps tells whether some call is allowed by both. A true may err on the safe side, a false
// never does. The zero Permission allows no call, so it overlaps with nothing.
func (p Permission) Overlaps(q Permission) bool {
	if p.IsZero() || q.IsZero() {
		return false
	}
	a, b := p.parts(), q.parts()
	if a.kind != b.kind {
		return false
	}
	switch a.kind {
	case KindHTTP:
		return methodsMeet(a.methods, b.methods) && pathsMeet(a.segs, b.segs)
	case KindGRPC:
		return a.a == b.a && (a.b == "" || b.b == "" || a.b == b.b)
	case KindPostgres:
		return a.a == b.a && a.b == b.b
	case KindTCP:
		return true
	default:
		return true
	}
}

// Covers tells whether s allows every call that o allows: they are of one service, and each of
// o's permissions, method by method for http, is covered by one of s's. What only several of
// s's together would cover is not. The zero Scope covers nothing and is covered by none.
func (s Scope) Covers(o Scope) bool {
	if s.IsZero() || o.IsZero() || s.service != o.service {
		return false
	}
	var have []parts
	for _, p := range s.Permissions() {
		have = append(have, p.parts())
	}
	for _, q := range o.Permissions() {
		for _, one := range q.parts().perMethod() {
			if !slices.ContainsFunc(have, func(p parts) bool { return p.covers(one) }) {
				return false
			}
		}
	}
	return true
}

// perMethod is pp taken apart into permissions of one method each.
func (pp parts) perMethod() []parts {
	if len(pp.methods) < 2 {
		return []parts{pp}
	}
	ones := make([]parts, 0, len(pp.methods))
	for i := range pp.methods {
		one := pp
		one.methods = pp.methods[i : i+1]
		ones = append(ones, one)
	}
	return ones
}

// methodsCover tells whether a has all of b; none means every method.
func methodsCover(a, b []string) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == 0
	}
	for _, m := range b {
		if !slices.Contains(a, m) {
			return false
		}
	}
	return true
}

func methodsMeet(a, b []string) bool {
	if len(a) == 0 || len(b) == 0 {
		return true
	}
	return slices.ContainsFunc(a, func(m string) bool { return slices.Contains(b, m) })
}

// pathCovers tells whether pattern a matches every path that b matches.
func pathCovers(a, b []pseg) bool {
	for i, s := range a {
		if i == len(b) {
			return false
		}
		switch t := b[i]; {
		case s.kind == segRest:
			return true // whatever b has from here on is at least one segment
		case s.kind == segAny && (t.kind == segAny || t.kind == segText):
		case s == t:
		default:
			return false
		}
	}
	return len(a) == len(b)
}

// pathsMeet tells whether some path matches both patterns.
func pathsMeet(a, b []pseg) bool {
	for i := range min(len(a), len(b)) {
		switch s, t := a[i], b[i]; {
		case s.kind == segRest || t.kind == segRest:
			return true
		case s.kind == segAny && (t.kind == segAny || t.kind == segText):
		case t.kind == segAny && s.kind == segText:
		case s == t:
		default:
			return false
		}
	}
	return len(a) == len(b)
}
