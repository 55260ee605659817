package approval

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/hallpass/hallpass/grant"
)

// TestScenarios runs testdata/*.txt. Each is a story about the default cluster
// of newWorld, one step a line, in a small language: see testdata/README.md.
// After every step all invariants are checked, on two replicas.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 40 {
		t.Fatalf("%d scenarios", len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &scenario{t: t, w: newWorld(t), names: map[string]string{}, sections: map[string]string{}}
			for _, f := range archive.Files {
				s.sections[f.Name] = string(f.Data)
			}
			for i, line := range strings.Split(string(archive.Comment), "\n") {
				if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
					s.line = fmt.Sprintf("%s:%d: %s", file, i+1, line)
					s.step(line)
				}
			}
		})
	}
}

type scenario struct {
	t        *testing.T
	w        *world
	line     string
	names    map[string]string // of requests and changes → id
	sections map[string]string
}

func (s *scenario) fatalf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\n\t%s", s.line, fmt.Sprintf(format, args...))
}

// outcome is what a line says should come of it, after "=>".
type expectedOutcome struct {
	word string // "", unchanged, replayed or an error code
	text string
}

func (s *scenario) step(line string) {
	line, after, _ := strings.Cut(line, " => ")
	word, text, _ := strings.Cut(after, " ")
	want := expectedOutcome{word, strings.Trim(text, `"`)}
	for _, v := range verbs {
		if m := v.pattern.FindStringSubmatch(line); m != nil {
			v.run(s, m[1:], want)
			return
		}
	}
	s.fatalf("what does that mean?")
}

type verb struct {
	pattern *regexp.Regexp
	run     func(s *scenario, m []string, want expectedOutcome)
}

const opts = `((?: [a-z]+=(?:"[^"]*"|\S+))*)$`

var verbs = []verb{
	{regexp.MustCompile(`^wait (\S+)$`), (*scenario).wait},
	{regexp.MustCompile(`^via (\S+)$`), func(s *scenario, m []string, _ expectedOutcome) { s.w.node = m[0] }},
	{regexp.MustCompile(`^tick` + opts), (*scenario).tick},
	{regexp.MustCompile(`^(\S+) requests (\S+) (.+) for (\S+) as (\S+)` + opts), (*scenario).requests},
	{regexp.MustCompile(`^(\S+) breaks the glass of (\S+) (.+) for (\S+) as (\S+)` + opts), (*scenario).breaksGlass},
	{regexp.MustCompile(`^(\S+) delegates (r\d) to (\S+) (.+) for (\S+) as (r\d)` + opts), (*scenario).delegates},
	{regexp.MustCompile(`^(\S+) extends (r\d) for (\S+) as (r\d)` + opts), (*scenario).extends},
	{regexp.MustCompile(`^(\S+) escalates (r\d)` + opts), (*scenario).escalates},
	{regexp.MustCompile(`^(\S+) reviews (r\d)` + opts), (*scenario).reviews},
	{regexp.MustCompile(`^expect open reviews (.*)$`), (*scenario).expectReviews},
	{regexp.MustCompile(`^expect review of (r\d) (.*)$`), (*scenario).expectReview},
	{regexp.MustCompile(`^(\S+) (approves|denies) (c\d)` + opts), (*scenario).decidesChange},
	{regexp.MustCompile(`^(\S+) (approves|denies) (r\d)` + opts), (*scenario).decides},
	{regexp.MustCompile(`^(\S+) cancels (\S+)` + opts), (*scenario).cancels},
	{regexp.MustCompile(`^(\S+) fetches (r\d)` + opts), (*scenario).fetches},
	{regexp.MustCompile(`^(\S+) revokes (r\d)` + opts), (*scenario).revokes},
	{regexp.MustCompile(`^(\S+) returns (r\d)` + opts), (*scenario).returns},
	{regexp.MustCompile(`^(\S+) blocks (\S+)` + opts), (*scenario).blocks},
	{regexp.MustCompile(`^(\S+) denies issuer (\S+)` + opts), (*scenario).deniesIssuer},
	{regexp.MustCompile(`^(\S+) issues (\S+)` + opts), (*scenario).issues},
	{regexp.MustCompile(`^(\S+) installs (n\d)/(identity|grant|api)(?: as (i\d))?` + opts), (*scenario).installs},
	{regexp.MustCompile(`^(\S+) publishes (identity|grant) roots (\d+)` + opts), (*scenario).publishes},
	{regexp.MustCompile(`^(\S+) adopts manifest (\d+)` + opts), (*scenario).adopts},
	{regexp.MustCompile(`^(\S+) (joins|promotes|hands over to) (n\d)` + opts), (*scenario).joins},
	{regexp.MustCompile(`^(\S+) removes (n\d)` + opts), (*scenario).removes},
	{regexp.MustCompile(`^(\S+) raises version (\d+)` + opts), (*scenario).raises},
	{regexp.MustCompile(`^expect nodes (.*)$`), (*scenario).expectNodes},
	{regexp.MustCompile(`^expect (identity|grant) roots (.*)$`), (*scenario).expectRoots},
	{regexp.MustCompile(`^(\S+) proposes (policy|group|person|no group|no person|unblock) (\S+)(?: =(.*?))? as (c\d)` + opts), (*scenario).proposes},
	{regexp.MustCompile(`^expect feed (.*)$`), (*scenario).expectFeed},
	{regexp.MustCompile(`^expect grant (r\d) (\S+)` + opts), (*scenario).expectGrant},
	{regexp.MustCompile(`^expect votes (r\d) (.*)$`), (*scenario).expectVotes},
	{regexp.MustCompile(`^expect (r\d) needs (.*)$`), (*scenario).expectNeeds},
	{regexp.MustCompile(`^expect (r\d) escalates (.*)$`), (*scenario).expectEscalates},
	{regexp.MustCompile(`^(\S+) hands over (\S+)` + opts), (*scenario).handsOver},
	{regexp.MustCompile(`^(\S+) hears that (.+) (?:is|are) on call in (\S+) for (\S+)` + opts), (*scenario).hears},
	{regexp.MustCompile(`^expect on call in (\S+) (.*)$`), (*scenario).expectOnCall},
	{regexp.MustCompile(`^(\S+) has (\S+) stand in in (\S+) for (\S+)` + opts), (*scenario).standsIn},
	{regexp.MustCompile(`^(\S+) ends the standing in for (\S+) in (\S+)` + opts), (*scenario).endsStandIn},
	{regexp.MustCompile(`^expect in (\S+): (.*)$`), (*scenario).expectIn},
	{regexp.MustCompile(`^expect (r\d) allows (.*) for (\S+)$`), (*scenario).expectAllows},
	{regexp.MustCompile(`^expect (policy|directory) revision (\d+)$`), (*scenario).expectRevision},
	{regexp.MustCompile(`^expect (due|nothing due)$`), (*scenario).expectDue},
	{regexp.MustCompile(`^expect ([rc]\d) (\S+)$`), (*scenario).expectState},
}

// options reads name=value pairs.
func options(text string) map[string]string {
	all := map[string]string{}
	for _, m := range regexp.MustCompile(`([a-z]+)=("[^"]*"|\S+)`).FindAllStringSubmatch(text, -1) {
		all[m[1]] = strings.Trim(m[2], `"`)
	}
	return all
}

func (s *scenario) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.fatalf("%v", err)
	}
	return d
}

func (s *scenario) number(text string, otherwise uint64) uint64 {
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		s.fatalf("%v", err)
	}
	return n
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// do applies a command and compares what came of it.
func (s *scenario) do(actor string, body Body, o map[string]string, want expectedOutcome) Result {
	s.t.Helper()
	c := s.w.command(actor, body)
	if o["idem"] != "" {
		c.Idem = &Idem{Key: o["idem"], BodyHash: sha256Hex([]byte(o["body"]))}
	}
	r := s.w.applyCommand(c)
	switch {
	case r.Err != nil && string(r.Err.Code) != want.word:
		s.fatalf("refused: %v", r.Err)
	case r.Err != nil && !strings.Contains(r.Err.Detail+"\n"+r.Err.Next, want.text):
		s.fatalf("refused: %v (%s), without %q", r.Err, r.Err.Next, want.text)
	case r.Err == nil && want.word == "unchanged" && !r.Changed && !r.Replayed:
	case r.Err == nil && want.word == "replayed" && r.Replayed:
	case r.Err == nil && (want.word != "" || !r.Changed):
		s.fatalf("accepted, changed=%v replayed=%v", r.Changed, r.Replayed)
	}
	return r
}

func (s *scenario) id(name string) string {
	id, ok := s.names[name]
	if !ok {
		s.names[name] = s.w.id()
		id = s.names[name]
	}
	return id
}

func (s *scenario) texts(service, list string) []string {
	scope, err := grant.ParseScope(service, strings.Split(list, " & "))
	if err != nil {
		s.fatalf("%v", err)
	}
	return scope.Texts()
}

func (s *scenario) wait(m []string, _ expectedOutcome) { s.w.now = s.w.now.Add(s.duration(m[0])) }

func (s *scenario) tick(m []string, want expectedOutcome) { s.do("", aTick(), options(m[0]), want) }

func (s *scenario) requests(m []string, want expectedOutcome) { s.asks(m, want, false) }

func (s *scenario) asks(m []string, want expectedOutcome, breakGlass bool) {
	o := options(m[5])
	b := s.w.create(m[1], s.texts(m[1], m[2]), s.duration(m[3]))
	b.ID = s.id(m[4])
	b.Subject = spiffe(or(o["subject"], m[0]))
	b.Reason = or(o["reason"], b.Reason)
	b.PolicyRevision = s.number(o["policy"], b.PolicyRevision)
	b.DirectoryRevision = s.number(o["directory"], b.DirectoryRevision)
	if o["start"] != "" {
		b.Start = s.w.now.Add(s.duration(o["start"])).UnixMilli()
	}
	if o["key"] != "" {
		b.CSRKey = sha256Hex([]byte(o["key"]))
	}
	b.BreakGlass, b.Delegable = breakGlass, o["delegable"] != ""
	if o["bundles"] != "" {
		b.Bundles = strings.Split(o["bundles"], ",")
	}
	b.Answers = s.answers(o["answers"], func() []Answer { return s.w.answersToCreate(spiffe(m[0]), b) })
	s.do(m[0], b, o, want)
}

// answers are what the leader says of conditions, or, where a line has answers=,
// what a stolen one does: "none", or "rule=true,other=false".
func (s *scenario) answers(lie string, honest func() []Answer) []Answer {
	if lie == "" {
		return honest()
	}
	var all []Answer
	for part := range strings.SplitSeq(lie, ",") {
		if rule, holds, ok := strings.Cut(part, "="); ok {
			all = append(all, Answer{rule, holds == "true"})
		}
	}
	return all
}

func verdictOf(word string) Verdict {
	if word == "denies" {
		return Deny
	}
	return Approve
}

func (s *scenario) decides(m []string, want expectedOutcome) {
	o := options(m[3])
	id := s.id(m[2])
	b := DecideRequest{Request: id, Verdict: verdictOf(m[1])}
	if r, err := Read(s.w.a).Request(id); err == nil {
		b = s.w.decide(id, b.Verdict)
		if o["seen"] != "" {
			b.Hash = r.Revisions[s.number(o["seen"], 0)-1].Hash
		}
		if o["only"] != "" {
			b.Permissions = s.texts(r.Service, o["only"])
		}
	}
	if o["for"] != "" {
		b.Duration = s.duration(o["for"]).Milliseconds()
	}
	b.Comment = o["comment"]
	b.PolicyRevision = s.number(o["policy"], b.PolicyRevision)
	b.DirectoryRevision = s.number(o["directory"], b.DirectoryRevision)
	if r, err := Read(s.w.a).Request(id); err == nil && b.Verdict == Approve {
		b.Answers = s.answers(o["answers"], func() []Answer { return s.w.answers(r, nil, 0) })
		b.Narrowed = s.answers(o["narrowed"], func() []Answer { return s.w.narrowed(r, b) })
	}
	s.do(m[0], b, o, want)
}

func (s *scenario) decidesChange(m []string, want expectedOutcome) {
	o := options(m[3])
	b := DecideChange{Change: s.id(m[2]), Verdict: verdictOf(m[1]), Comment: o["comment"]}
	if c, err := Read(s.w.a).Change(b.Change); err == nil {
		b.Hash = c.Hash
	}
	if o["seen"] != "" {
		c, err := Read(s.w.a).Change(s.id(o["seen"]))
		if err != nil {
			s.fatalf("%v", err)
		}
		b.Hash = c.Hash
	}
	s.do(m[0], b, o, want)
}

func (s *scenario) cancels(m []string, want expectedOutcome) {
	var b Body = CancelRequest{Request: s.id(m[1])}
	if m[1][0] == 'c' {
		b = CancelChange{Change: s.id(m[1])}
	}
	s.do(m[0], b, options(m[2]), want)
}

func (s *scenario) fetches(m []string, want expectedOutcome) {
	o := options(m[2])
	b := IssueGrant{Grant: s.id(m[1]), Serial: "1", TBSHash: sha256Hex(nil), Key: sha256Hex(nil), CSRBy: spiffe(m[0])}
	if _, err := Read(s.w.a).Grant(b.Grant); err == nil {
		b = s.w.issue(b.Grant)
	}
	if o["ends"] != "" {
		b.NotAfter = s.w.now.Add(s.duration(o["ends"])).UnixMilli()
	}
	if o["begins"] != "" {
		b.NotBefore = s.w.now.Add(s.duration(o["begins"])).UnixMilli()
	}
	if o["issuer"] != "" {
		b.Issuer = s.issuer(o["issuer"], RoleGrant)
	}
	if o["key"] != "" {
		b.Key = sha256Hex([]byte(o["key"]))
	}
	if o["csrby"] != "" {
		b.CSRBy = spiffe(o["csrby"])
	}
	b.Serial = or(o["serial"], b.Serial)
	s.do(m[0], b, o, want)
}

func (s *scenario) revokes(m []string, want expectedOutcome) {
	o := options(m[2])
	s.do(m[0], RevokeGrant{Grant: s.id(m[1]), Reason: or(o["reason"], "no longer needed")}, o, want)
}

func (s *scenario) returns(m []string, want expectedOutcome) {
	s.do(m[0], ReturnGrant{Grant: s.id(m[1])}, options(m[2]), want)
}

func (s *scenario) blocks(m []string, want expectedOutcome) {
	o := options(m[2])
	s.do(m[0], BlockSubject{Subject: spiffe(m[1]), Reason: or(o["reason"], "stolen laptop")}, o, want)
}

func (s *scenario) deniesIssuer(m []string, want expectedOutcome) {
	s.do(m[0], DenyIssuer{Issuer: s.issuer(m[1], RoleGrant), Reason: "stolen node"}, options(m[2]), want)
}

func (s *scenario) issues(m []string, want expectedOutcome) {
	o := options(m[2])
	s.w.seq++
	s.do(m[0], IssueIdentity{
		Serial:  or(o["serial"], fmt.Sprintf("%x", 0x2000_0000+s.w.seq)),
		TBSHash: sha256Hex(fmt.Appendf(nil, "tbs %d", s.w.seq)), Key: sha256Hex([]byte("key")),
		Issuer: s.issuer(or(o["issuer"], "n1"), RoleIdentity), SPIFFEID: spiffe(m[1]),
		NotBefore: s.w.now.UnixMilli(), NotAfter: s.w.now.Add(s.duration(or(o["for"], "1h"))).UnixMilli(),
	}, o, want)
}

func (s *scenario) proposes(m []string, want expectedOutcome) {
	actor, what, name, rest, o := m[0], m[1], m[2], m[3], options(m[5])
	policyRevision, base := s.w.revisions()
	var e Edit
	switch what {
	case "policy":
		e, base = Edit{Kind: EditPolicySet, YAML: s.sections[name]}, policyRevision
	case "group":
		e = Edit{Kind: EditGroupSet, Group: &Group{Name: name, Members: strings.Fields(rest), OnCall: s.onCall(o), Substitutes: byComma(o["substitutes"])}}
	case "no group":
		e = Edit{Kind: EditGroupDelete, Name: name}
	case "no person":
		e = Edit{Kind: EditPersonDelete, Name: name}
	case "unblock":
		e = Edit{Kind: EditSubjectUnblock, Subject: spiffe(name)}
	case "person":
		ids, owned, _ := strings.Cut(rest, " owning ")
		e = Edit{Kind: EditPersonSet, Person: &Person{Name: name, IDs: spiffes(ids), Owns: spiffes(owned)}}
	}
	b := ProposeChange{ID: s.id(m[4]), Edit: e, BaseRevision: s.number(o["base"], base)}
	s.do(actor, b, o, want)
}

func spiffes(names string) []string {
	var all []string
	for n := range strings.FieldsSeq(names) {
		all = append(all, spiffe(n))
	}
	return all
}
