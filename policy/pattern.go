package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	groupPrefix = "group:"
	idPrefix    = "spiffe://"
)

// pattern matches the SPIFFE IDs of callers. Exactly one of group, id and
// prefix is set.
type pattern struct {
	group  string
	id     spiffeid.ID
	prefix string // ends in "/"
	deep   bool   // prefix/**: any number of segments, not just one
}

func (p pattern) matches(id spiffeid.ID, groups []string) bool {
	switch {
	case p.group != "":
		return slices.Contains(groups, p.group)
	case p.prefix != "":
		rest, ok := strings.CutPrefix(id.String(), p.prefix)
		return ok && rest != "" && (p.deep || !strings.Contains(rest, "/"))
	default:
		// The zero pattern must not match the zero ID of a request that
		// forgot to say who asks.
		return !p.id.IsZero() && p.id == id
	}
}

func (p pattern) String() string {
	switch {
	case p.group != "":
		return groupPrefix + p.group
	case p.deep:
		return p.prefix + "**"
	case p.prefix != "":
		return p.prefix + "*"
	default:
		return p.id.String()
	}
}

func anyMatches(patterns []pattern, id spiffeid.ID, groups []string) bool {
	return slices.ContainsFunc(patterns, func(p pattern) bool { return p.matches(id, groups) })
}

// parsePattern reads "group:NAME", an exact SPIFFE ID, or one with a trailing
// /* (one more segment) or /** (one or more).
func parsePattern(text string) (pattern, error) {
	if name, ok := strings.CutPrefix(text, groupPrefix); ok {
		if err := ValidName(name); err != nil {
			return pattern{}, err
		}
		return pattern{group: name}, nil
	}
	if text == "*" || text == "**" || text == idPrefix+"*" || text == idPrefix+"**" {
		return pattern{}, fmt.Errorf("%q names everyone of every trust domain: write spiffe://TRUST-DOMAIN/**", text)
	}
	if !strings.HasPrefix(text, idPrefix) {
		return pattern{}, fmt.Errorf("%q is neither group:NAME nor a SPIFFE ID (spiffe://…)", text)
	}
	base, deep := strings.CutSuffix(text, "/**")
	shallow := false
	if !deep {
		base, shallow = strings.CutSuffix(text, "/*")
	}
	if strings.Contains(base, "*") {
		return pattern{}, fmt.Errorf("%q: a wildcard stands only at the end, as /* (one segment) or /** (one or more), and never for a trust domain", text)
	}
	id, err := spiffeid.FromString(base)
	if err != nil {
		return pattern{}, fmt.Errorf("%q is not a SPIFFE ID: %w", text, err)
	}
	switch {
	case deep || shallow:
		return pattern{prefix: id.String() + "/", deep: deep}, nil
	case id.Path() == "":
		return pattern{}, errors.New("a trust domain alone names nobody: write " + id.String() + "/** for all of it")
	default:
		return pattern{id: id}, nil
	}
}
