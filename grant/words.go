package grant

import "strings"

// Words says the permission in plain words: "may GET or HEAD anything below /accounts/". It is
// for people to read, not for programs; "" for the zero Permission.
func (p Permission) Words() string {
	pp := p.parts()
	switch pp.kind {
	case KindHTTP:
		return "may " + pp.methodWords() + " " + pp.pathWords()
	case KindGRPC:
		service := string(appendURLText(nil, pp.a))
		if pp.b == "" {
			return "may call any gRPC method of " + service
		}
		return "may call the gRPC method " + string(appendURLText(nil, pp.b)) + " of " + service
	case KindPostgres:
		return "may open the Postgres database " + writeSQLName(pp.a) + " as role " + writeSQLName(pp.b)
	case KindTCP:
		return "may open TCP connections and send anything over them"
	default:
		return ""
	}
}

func (pp parts) methodWords() string {
	if len(pp.methods) == 0 {
		return "use any method on"
	}
	last := len(pp.methods) - 1
	if last == 0 {
		return pp.methods[0]
	}
	return strings.Join(pp.methods[:last], ", ") + " or " + pp.methods[last]
}

func (pp parts) pathWords() string {
	path := pp.pathText()
	words := "exactly " + path
	if below, ok := strings.CutSuffix(path, "**"); ok {
		words = "anything below " + below
	}
	for _, s := range pp.segs {
		if s.kind == segAny {
			return strings.TrimPrefix(words, "exactly ") + " (each * is one segment)"
		}
	}
	return words
}

// Words says the scope in plain words, one permission a line: "at payments:" and then
// "  may POST exactly /refunds". It is for people to read; "" for the zero Scope.
func (s Scope) Words() string {
	if s.IsZero() {
		return ""
	}
	var b strings.Builder
	b.WriteString("at " + s.service + ":")
	for _, p := range s.Permissions() {
		b.WriteString("\n  " + p.Words())
	}
	return b.String()
}
