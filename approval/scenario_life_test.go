package approval

import (
	"slices"
	"strings"
)

func (s *scenario) breaksGlass(m []string, want expectedOutcome) { s.asks(m, want, true) }

func (s *scenario) reviews(m []string, want expectedOutcome) {
	o := options(m[2])
	s.do(m[0], CloseReview{Request: s.id(m[1]), Finding: or(o["finding"], "the queue was restarted, and nothing else")}, o, want)
}

func (s *scenario) expectReviews(m []string, _ expectedOutcome) {
	open, _, err := Read(s.w.a).Reviews(Filter{})
	if err != nil {
		s.fatalf("%v", err)
	}
	var got, want []string
	for _, r := range open {
		got = append(got, r.ID)
	}
	for name := range strings.FieldsSeq(m[0]) {
		if name != "none" {
			want = append(want, s.id(name))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.fatalf("open are the reviews of %q, not %q", got, want)
	}
}

// expectReview is "closed", or "waits for" its groups.
func (s *scenario) expectReview(m []string, _ expectedOutcome) {
	r := s.w.request(s.id(m[0]))
	if r.Review == nil {
		s.fatalf("it has no review")
	}
	got := "waits for " + strings.Join(Read(s.w.a).OpenReview(r), " and ")
	if r.Review.Closed != 0 {
		got = "closed"
	}
	if got != m[1] {
		s.fatalf("it %s", got)
	}
}

// extends asks for what the grant is; only= and of= are what a stolen node asks for.
func (s *scenario) extends(m []string, want expectedOutcome) {
	o := options(m[4])
	b := CreateRequest{ID: s.id(m[3]), Extends: s.id(m[1]), Duration: s.duration(m[2]).Milliseconds(), Reason: or(o["reason"], "not done yet")}
	b.PolicyRevision, b.DirectoryRevision = s.w.revisions()
	b.Service, b.Permissions, b.Subject = "payments", []string{"tcp"}, spiffe(m[0])
	g, err := Read(s.w.a).Grant(b.Extends)
	if err == nil {
		b.Service, b.Permissions, b.Subject = g.Service, g.Permissions, g.Subject
	}
	if o["only"] != "" {
		b.Permissions = s.texts(b.Service, o["only"])
	}
	if o["of"] != "" {
		b.Subject = spiffe(o["of"])
	}
	if o["start"] != "" {
		b.Start = s.w.now.Add(s.duration(o["start"])).UnixMilli()
	}
	if o["key"] != "" {
		b.CSRKey = sha256Hex([]byte(o["key"]))
	}
	b.Answers = s.answers(o["answers"], func() []Answer { return s.w.answersToCreate(spiffe(m[0]), b) })
	s.do(m[0], b, o, want)
}

// delegates asks as the subject of a grant for another. delegable= and start= are what a
// stolen node asks for.
func (s *scenario) delegates(m []string, want expectedOutcome) {
	o := options(m[6])
	b := CreateRequest{
		ID: s.id(m[5]), Parent: s.id(m[1]), Subject: spiffe(m[2]), Service: or(o["service"], "payments"),
		Duration: s.duration(m[4]).Milliseconds(), Reason: or(o["reason"], "for its part of it"), Delegable: o["delegable"] != "",
	}
	b.PolicyRevision, b.DirectoryRevision = s.w.revisions()
	b.Permissions = s.texts(b.Service, m[3])
	if o["start"] != "" {
		b.Start = s.w.now.Add(s.duration(o["start"])).UnixMilli()
	}
	s.do(m[0], b, o, want)
}
