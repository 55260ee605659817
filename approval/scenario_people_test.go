package approval

import (
	"fmt"
	"slices"
)

// escalates is what the leader does of each request that has waited for long enough.
func (s *scenario) escalates(m []string, want expectedOutcome) {
	actor := m[0]
	if actor == "leader" {
		actor = ""
	}
	id := s.id(m[1])
	if actor == "" && want.word == "" {
		if due := Read(s.w.a).ToEscalate(MillisOf(s.w.now), 100); !slices.Contains(due, id) {
			s.fatalf("the leader finds that %q are to be escalated", due)
		}
	}
	s.do(actor, EscalateRequest{Request: id}, options(m[2]), want)
}

func (s *scenario) expectEscalates(m []string, _ expectedOutcome) {
	r := s.w.request(s.id(m[0]))
	got := "never"
	switch at := r.Escalates(); {
	case r.Alternative() != nil:
		got = "escalated to " + describe(r.Alternative())
	case at != 0:
		got = fmt.Sprintf("in %s to %s", at.Time().Sub(s.w.now), describe(r.Current().Escalation.Requirements))
	}
	if got != m[1] {
		s.fatalf("it is %s", got)
	}
}
