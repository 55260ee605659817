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

// byComma reads names with commas between.
func byComma(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func (s *scenario) standsIn(m []string, want expectedOutcome) {
	o := options(m[4])
	until := s.w.now.Add(s.duration(m[3])).UnixMilli()
	s.do(m[0], NameStandIn{Group: m[2], By: m[1], Until: until, Reason: or(o["reason"], "on holiday")}, o, want)
}

func (s *scenario) endsStandIn(m []string, want expectedOutcome) {
	s.do(m[0], EndStandIn{Group: m[2], For: m[1]}, options(m[3]), want)
}

// expectIn compares who is in a group now, by the index, with the scenario's line.
func (s *scenario) expectIn(m []string, _ expectedOutcome) {
	persons, err := Read(s.w.a).Persons()
	if err != nil {
		s.fatalf("%v", err)
	}
	var in []string
	for _, p := range persons {
		if slices.Contains(Read(s.w.a).GroupsOf(p.Name), m[0]) {
			in = append(in, p.Name)
		}
	}
	if got := strings.Join(in, " "); got != m[1] {
		s.fatalf("%s are in it", got)
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
