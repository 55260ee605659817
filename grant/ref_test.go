package grant

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A second reading of the grammar, written from SPEC.md with other means than the package: one
// regular expression, and rules checked on its parts. It is slow and says little; it is there
// to disagree.

const (
	refText = `(?:[A-Za-z0-9.-]|__|_[0-9A-F]{2})+`
	refPSeg = `(?:` + refText + `|_any)`
	refPerm = `(?:tcp` +
		`|postgres/` + refText + `/` + refText +
		`|grpc/` + refText + `/` + refPSeg +
		`|http/(?:_any|[A-Z]+(?:\.[A-Z]+)*)(?:/` + refPSeg + `)*/(?:` + refPSeg + `|_rest|_empty))`
)

var refID = regexp.MustCompile(`^spiffe://grants\.acme\.test/v1/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)` +
	`/_can/(` + refPerm + `(?:/_and/` + refPerm + `)*)` +
	`/_for/(` + refText + `)((?:/` + refText + `)+)` +
	`/_id/([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})$`)

var (
	refSegment = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	refDomain  = regexp.MustCompile(`^[a-z0-9._-]+$`)
	refEscaped = regexp.MustCompile(`[^A-Za-z0-9.-]`)
	refDots    = regexp.MustCompile(`//|/\.\.?(/|$)`)
)

type refScope struct {
	service string
	perms   []string
	subject string
	grantID string
}

// refParse reads uri, or says why not.
func refParse(uri string) (refScope, error) {
	if len(uri) > 2048 {
		return refScope{}, fmt.Errorf("%d bytes", len(uri))
	}
	m := refID.FindStringSubmatch(uri)
	if m == nil {
		return refScope{}, fmt.Errorf("not of the grammar")
	}
	perms := strings.Split(m[2], "/_and/")
	paths := map[string]bool{}
	for i, perm := range perms {
		if i > 0 && perms[i-1] >= perm {
			return refScope{}, fmt.Errorf("not ascending")
		}
		if err := refCheckPerm(perm, paths); err != nil {
			return refScope{}, err
		}
	}
	var subject strings.Builder
	subject.WriteString("spiffe://")
	for i, seg := range strings.Split(m[3]+m[4], "/") {
		text, err := refDecode(seg)
		if err != nil {
			return refScope{}, err
		}
		charset := refSegment
		if i == 0 {
			charset = refDomain
		} else {
			subject.WriteString("/")
		}
		if !charset.MatchString(text) || i > 0 && (text == "." || text == "..") {
			return refScope{}, fmt.Errorf("subject %q", text)
		}
		subject.WriteString(text)
	}
	return refScope{m[1], perms, subject.String(), m[5]}, nil
}

func refCheckPerm(perm string, paths map[string]bool) error {
	segs := strings.Split(perm, "/")
	texts := segs[1:]
	if segs[0] == "http" {
		methods := strings.Split(segs[1], ".")
		if !slices.IsSorted(methods) || len(slices.Compact(slices.Clone(methods))) != len(methods) {
			return fmt.Errorf("methods %q", segs[1])
		}
		path := strings.Join(segs[2:], "/")
		if paths[path] {
			return fmt.Errorf("path %q twice", path)
		}
		paths[path] = true
		texts = segs[2:]
	}
	for _, seg := range texts {
		if seg == "_any" || seg == "_rest" || seg == "_empty" {
			continue
		}
		text, err := refDecode(seg)
		if err != nil {
			return err
		}
		if segs[0] == "postgres" && len(text) > 63 {
			return fmt.Errorf("name of %d bytes", len(text))
		}
		if segs[0] == "http" && (strings.ContainsAny(text, "/\\\x7f") || text == "." || text == ".." ||
			strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 })) {
			return fmt.Errorf("path segment %q", text)
		}
	}
	return nil
}

// refDecode turns our escapes into a URL's and lets net/url decode them; then it spells the
// text anew.
func refDecode(seg string) (string, error) {
	text, err := url.PathUnescape(strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(seg, "__", "%5f"), "_", "%"), "%5f", "%5F"))
	if err != nil || !utf8.ValidString(text) {
		return "", fmt.Errorf("text %q", seg)
	}
	spelled := refEscaped.ReplaceAllStringFunc(latin(text), func(s string) string {
		if s == "_" {
			return "__"
		}
		return fmt.Sprintf("_%02X", []rune(s)[0])
	})
	switch text {
	case ".":
		spelled = "_2E"
	case "..":
		spelled = "_2E."
	}
	if spelled != seg {
		return "", fmt.Errorf("%q is not spelled %q", text, seg)
	}
	return text, nil
}

// latin turns each byte of s into one rune, so that a regular expression sees bytes.
func latin(s string) string {
	runes := make([]rune, 0, len(s))
	for i := range len(s) {
		runes = append(runes, rune(s[i]))
	}
	return string(runes)
}

// refMatch says whether the encoded http permission allows the request, segment by segment.
// text is a decoded path.
func refMatch(perm, method, text string) bool {
	segs := strings.Split(perm, "/")
	if segs[1] != "_any" && !slices.Contains(strings.Split(segs[1], "."), method) {
		return false
	}
	want, have := segs[2:], strings.Split(text, "/")[1:]
	for i, w := range want {
		if i == len(have) {
			return false
		}
		switch w {
		case "_rest":
			return true
		case "_any":
			if have[i] == "" {
				return false
			}
		case "_empty":
			if have[i] != "" {
				return false
			}
		default:
			t, err := refDecode(w)
			if err != nil || t != have[i] {
				return false
			}
		}
	}
	return len(want) == len(have)
}

var (
	refTarget    = regexp.MustCompile(`^(/(?:[^%/?#\\;\x00-\x20\x7f-\xff]|%[0-9A-Fa-f]{2})*)+(?:\?[^\x00-\x20\x7f#]*)?$`)
	refForbidden = regexp.MustCompile(`(?i)%(?:2f|5c|3b|7f|[01][0-9a-f]|2d|2e|5f|7e|3[0-9]|4[1-9a-f]|5[0-9a]|6[1-9a-f]|7[0-9a])`)
)

// refPath reads a target strictly, or says that it is refused.
func refPath(target string) (text string, ok bool) {
	if !refTarget.MatchString(latin(target)) {
		return "", false
	}
	raw, _, _ := strings.Cut(target, "?")
	if refForbidden.MatchString(raw) || refDots.MatchString(raw) {
		return "", false
	}
	text, err := url.PathUnescape(raw)
	if err != nil || !utf8.ValidString(text) {
		return "", false
	}
	return text, true
}
