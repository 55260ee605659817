package approval

import (
	"fmt"
	"slices"
	"strings"
)

func (s *scenario) expectState(m []string, _ expectedOutcome) {
	now := MillisOf(s.w.now)
	var got string
	if m[0][0] == 'c' {
		c, err := Read(s.w.a).Change(s.id(m[0]))
		if err != nil {
			s.fatalf("%v", err)
		}
		got = string(c.StateAt(now))
	} else {
		got = string(s.w.request(s.id(m[0])).StateAt(now))
	}
	if got != m[1] {
		s.fatalf("it is %s", got)
	}
}

func (s *scenario) expectGrant(m []string, _ expectedOutcome) {
	g := s.w.grant(s.id(m[0]))
	o := options(m[2])
	if got := string(g.StateAt(MillisOf(s.w.now))); got != m[1] {
		s.fatalf("it is %s", got)
	}
	for name, at := range map[string]Millis{"from": g.NotBefore, "until": g.Expiry} {
		if o[name] != "" && at.Time() != s.w.now.Add(s.duration(o[name])) {
			s.fatalf("%s is in %s", name, at.Time().Sub(s.w.now))
		}
	}
}

func (s *scenario) expectVotes(m []string, _ expectedOutcome) {
	var got []string
	for _, v := range s.w.grant(s.id(m[0])).Votes {
		got = append(got, v.Person+"="+v.Group)
	}
	slices.Sort(got)
	if want := strings.Fields(m[1]); !slices.Equal(got, want) {
		s.fatalf("votes %q", got)
	}
}

func (s *scenario) expectNeeds(m []string, _ expectedOutcome) {
	if got := or(describe(s.w.request(s.id(m[0])).Current().Requirements), "nobody"); got != m[1] {
		s.fatalf("it needs %s", got)
	}
}

func (s *scenario) expectAllows(m []string, _ expectedOutcome) {
	r := s.w.request(s.id(m[0]))
	v := r.Current()
	if !slices.Equal(v.Permissions, s.texts(r.Service, m[1])) || v.DurationMS != s.duration(m[2]).Milliseconds() {
		s.fatalf("it allows %q for %d ms", v.Permissions, v.DurationMS)
	}
}

func (s *scenario) expectRevision(m []string, _ expectedOutcome) {
	policyRevision, directoryRevision := s.w.revisions()
	got := directoryRevision
	if m[0] == "policy" {
		got = policyRevision
	}
	if got != s.number(m[1], 0) {
		s.fatalf("it is %d", got)
	}
}

func (s *scenario) expectDue(m []string, _ expectedOutcome) {
	if d := Read(s.w.a).Due(MillisOf(s.w.now), Retention); d.Now != (m[0] == "due") {
		s.fatalf("due: %+v", d)
	}
}

func (s *scenario) expectFeed(m []string, _ expectedOutcome) {
	f, err := Read(s.w.a).Feed()
	if err != nil {
		s.fatalf("%v", err)
	}
	var got, want []string
	for _, e := range slices.Concat(f.Grants, f.Issuers) {
		got = append(got, fmt.Sprintf("%s@%s", e.ID, e.Until.Time().Sub(s.w.now)))
	}
	for w := range strings.FieldsSeq(m[0]) {
		if w == "empty" {
			continue
		}
		name, until, _ := strings.Cut(w, "@")
		id := s.names[name]
		if node, ok := strings.CutPrefix(name, "issuer:"); ok {
			id = s.issuer(node, RoleGrant)
		}
		want = append(want, fmt.Sprintf("%s@%s", id, s.duration(until)))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.fatalf("the feed is %q, not %q", got, want)
	}
}
