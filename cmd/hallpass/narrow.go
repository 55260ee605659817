package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/hallpass/hallpass/grant"
)

// maxCalls is how many different gRPC methods are told one by one.
const maxCalls = 16

// useShape is the least pattern that covers requests, however many they are.
type useShape struct {
	methods  map[string]bool
	segments []string // "*" is one that differed
	rest     bool     // "**" follows
	begun    bool
	calls    map[string]bool // whole paths, while they are few
	many     bool
}

// add takes a request in; a path is as on the wire, without its query.
func (s *useShape) add(method, path string) {
	if method == "" || !strings.HasPrefix(path, "/") {
		return // a connection
	}
	if s.methods == nil {
		s.methods, s.calls = map[string]bool{}, map[string]bool{}
	}
	s.methods[method] = true
	if s.calls[path] = true; len(s.calls) > maxCalls {
		s.many, s.calls = true, map[string]bool{}
	}
	// A "*" that somebody asked for is no pattern.
	next := strings.Split(strings.ReplaceAll(path[1:], "*", "%2A"), "/")
	if !s.begun {
		s.segments, s.begun = next, true
		return
	}
	s.merge(next)
}

// merge widens the pattern until it covers one path more.
func (s *useShape) merge(next []string) {
	fits := func(i int) bool { return next[i] == s.segments[i] || s.segments[i] == "*" && next[i] != "" }
	differ := func(i int) bool { return !fits(i) && (next[i] == "" || s.segments[i] == "") }
	if !s.rest && len(next) == len(s.segments) {
		one := true
		for i := range next {
			one = one && !differ(i)
		}
		if one {
			for i := range next {
				if !fits(i) {
					s.segments[i] = "*"
				}
			}
			return
		}
	}
	// "**" takes at least one segment, so what stands before it is shorter than any path.
	most := min(len(s.segments), len(next)-1)
	if !s.rest {
		most = min(most, len(s.segments)-1)
	}
	k := 0
	for k < most && fits(k) {
		k++
	}
	s.segments, s.rest = s.segments[:k], true
}

// narrow is the least that covers the use and lies within what was granted; where
// that cannot be told it is what was granted.
func (s *useShape) narrow(granted grant.Permission) []grant.Permission {
	whole := []grant.Permission{granted}
	switch {
	case !s.begun:
		return whole
	case granted.Kind() == grant.KindGRPC:
		if s.many {
			return whole
		}
		var calls []grant.Permission
		for _, path := range slices.Sorted(maps.Keys(s.calls)) {
			p, err := grant.ParsePermission("grpc " + path[1:])
			if err != nil || !granted.Covers(p) {
				return whole
			}
			calls = append(calls, p)
		}
		return calls
	case granted.Kind() != grant.KindHTTP:
		return whole
	}
	text := strings.Join(slices.Sorted(maps.Keys(s.methods)), ",") + " /" + strings.Join(s.segments, "/")
	if s.rest {
		if len(s.segments) > 0 {
			text += "/"
		}
		text += "**"
	}
	p, err := grant.ParsePermission(text)
	if err != nil || !granted.Covers(p) {
		return whole
	}
	return []grant.Permission{p}
}
