package approval

import (
	"fmt"
	"slices"
	"strings"
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

// onCall is how members take turns: "order=bob,dave every=8h" by a rota, "otherwise=nobody" by a resolver.
func (s *scenario) onCall(o map[string]string) *OnCall {
	switch {
	case o["order"] != "":
		return &OnCall{
			Order: strings.Split(o["order"], ","), From: MillisOf(s.w.now.Add(s.duration(or(o["from"], "0s")))),
			EveryMS: s.duration(or(o["every"], "8h")).Milliseconds(), AtOnce: int(s.number(o["once"], 1)), Otherwise: Otherwise(o["otherwise"]), Resolver: o["resolver"] != "",
		}
	case o["otherwise"] != "":
		return &OnCall{Resolver: true, Otherwise: Otherwise(o["otherwise"])}
	default:
		return nil
	}
}

// handsOver is what the leader does of each group whose turn, or whose resolver's word, has ended.
func (s *scenario) handsOver(m []string, want expectedOutcome) {
	actor := m[0]
	if actor == "leader" {
		actor = ""
	}
	if actor == "" && want.word == "" {
		if due := Read(s.w.a).DutiesDue(MillisOf(s.w.now), 100); !slices.Contains(due, m[1]) {
			s.fatalf("the leader finds that %q are due", due)
		}
	}
	s.do(actor, SetDuty{Group: m[1]}, options(m[2]), want)
}

// hears is what the leader does with what a resolver said.
func (s *scenario) hears(m []string, want expectedOutcome) {
	actor := m[0]
	if actor == "leader" {
		actor = ""
	}
	persons := []string{}
	if m[1] != "nobody" {
		persons = strings.Fields(m[1])
	}
	s.do(actor, SetDuty{Group: m[2], Persons: persons, Until: MillisOf(s.w.now.Add(s.duration(m[3])))}, options(m[4]), want)
}

// expectOnCall compares who is in a group now, and until when.
func (s *scenario) expectOnCall(m []string, _ expectedOutcome) {
	var in []string
	persons, err := Read(s.w.a).Persons()
	if err != nil {
		s.fatalf("%v", err)
	}
	for _, p := range persons {
		if Read(s.w.a).isMember(p.Name, m[0]) {
			in = append(in, p.Name)
		}
	}
	got := or(strings.Join(in, " "), "nobody")
	if d, ok, err := Read(s.w.a).Duty(m[0]); ok && err == nil {
		got += fmt.Sprintf(" for %s", d.Until.Time().Sub(s.w.now))
	}
	if got != m[1] {
		s.fatalf("on call are %s", got)
	}
}
