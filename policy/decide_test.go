package policy_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
	"github.com/hallpass/hallpass/policy/condition"
)

// A case reads: WHO[+GROUP…] [for SUBJECT] wants|breaks the glass of|wants to delegate at SERVICE: PERMISSION[; …] lasting DURATION [of TOTAL in all] [because "REASON"] [at TIME] -> OUTCOME
var caseLine = regexp.MustCompile(`^([^\s+]+)((?:\+[^\s+]+)*)(?: for (\S+))? (?:wants|(breaks the glass of|wants to delegate at)) (\S+): (.+) lasting (\S+)(?: of (\S+) in all)?(?: because "([^"]*)")?(?: at (\S+))? -> (.+)$`)

// TestDecide runs the cases of each file in testdata/decide against its policy.
func TestDecide(t *testing.T) {
	files, err := filepath.Glob("testdata/decide/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			text, cases := sections(t, file, "policy.yaml", "cases")
			p, err := policy.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(cases) {
				line = strings.TrimSpace(line)
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				r, want := parseCase(t, line)
				got := decided(t, p, r)
				if text := describe(got); text != want {
					t.Errorf("%s\n got: %s", line, text)
				}
				checkOutcome(t, got)
			}
		})
	}
}

func sections(t *testing.T, file, first, second string) (string, string) {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(archive.Files) != 2 || archive.Files[0].Name != first || archive.Files[1].Name != second {
		t.Fatalf("%s does not have exactly %s and %s", file, first, second)
	}
	return string(archive.Files[0].Data), string(archive.Files[1].Data)
}

func parseCase(t *testing.T, line string) (policy.Request, string) {
	t.Helper()
	m := caseLine.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("not a case: %s", line)
	}
	r := policy.Request{Requester: spiffe(t, m[1]), Subject: spiffe(t, m[1]), Scope: scope(t, m[5], m[6]), BreakGlass: m[4] == "breaks the glass of", Delegable: m[4] == "wants to delegate at"}
	for group := range strings.SplitSeq(m[2], "+") {
		if group != "" {
			r.Groups = append(r.Groups, group)
		}
	}
	if m[3] != "" {
		r.Subject = spiffe(t, m[3])
	}
	var err error
	if r.Duration, err = time.ParseDuration(m[7]); err != nil {
		t.Fatal(err)
	}
	if m[8] != "" {
		if r.Total, err = time.ParseDuration(m[8]); err != nil {
			t.Fatal(err)
		}
	}
	r.Reason = m[9]
	if m[10] != "" {
		if r.Start, err = time.Parse(time.RFC3339, m[10]); err != nil {
			t.Fatal(err)
		}
	}
	return r, m[11]
}

// decided is what the policy says once its conditions are answered.
func decided(t *testing.T, p *policy.Policy, r policy.Request) policy.Outcome {
	t.Helper()
	s, err := condition.Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return s.Decide(t.Context(), r)
}

// spiffe reads "user/alice" as alice of acme.test, and "nobody" as no ID.
func spiffe(t *testing.T, text string) spiffeid.ID {
	t.Helper()
	if text == "nobody" {
		return spiffeid.ID{}
	}
	if !strings.HasPrefix(text, "spiffe://") {
		text = "spiffe://acme.test/" + text
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func scope(t *testing.T, service, permissions string) grant.Scope {
	t.Helper()
	if service == "nothing" {
		return grant.Scope{}
	}
	s, err := grant.ParseScope(service, strings.Split(permissions, "; "))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func describe(o policy.Outcome) string {
	if !o.Allowed {
		return "denied: " + o.Reason
	}
	by := "auto"
	if !o.Auto {
		var groups []string
		for _, r := range o.Require {
			groups = append(groups, fmt.Sprintf("%s:%d", r.Group, r.Approvals))
		}
		by = "require " + strings.Join(groups, ",")
	}
	if e := o.Escalation; e != nil {
		var groups []string
		for _, r := range e.Require {
			groups = append(groups, fmt.Sprintf("%s:%d", r.Group, r.Approvals))
		}
		by += "; after " + short(e.After) + " " + strings.Join(groups, ",")
	}
	if b := o.BreakGlass; b != nil {
		var groups []string
		for _, r := range b.Review {
			groups = append(groups, r.Group)
		}
		by = "broken glass without " + strings.TrimPrefix(by, "require ") + "; review " + strings.Join(groups, ",") + " within " + short(b.ReviewWithin)
	}
	if d := o.Delegation; d != nil {
		by += fmt.Sprintf("; %d at a time for %s to %s", d.Most, short(d.MaxDuration), strings.Join(d.To, ","))
	}
	if len(o.Notify) > 0 {
		by += "; tells " + strings.Join(o.Notify, ",")
	}
	step := ""
	if o.StepUp != 0 {
		step = "step up " + short(o.StepUp) + "; "
	}
	if len(o.Channels) > 0 {
		step += "also by " + strings.Join(o.Channels, ",") + "; "
	}
	return fmt.Sprintf("%s; max %s; ttl %s; %srules %s", by, short(o.MaxDuration), short(o.CertificateTTL), step, strings.Join(o.Rules, ","))
}

func short(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	if d%time.Minute == 0 {
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// checkOutcome checks what holds of every outcome.
func checkOutcome(t interface {
	Helper()
	Fatalf(format string, args ...any)
}, o policy.Outcome,
) {
	t.Helper()
	switch {
	case !o.Allowed:
		if o.Auto || o.Require != nil || o.BreakGlass != nil || o.Escalation != nil || o.CertificateTTL != 0 || o.Reason == "" {
			t.Fatalf("a denial that promises something or gives no reason: %+v", o)
		}
	case o.Auto == (len(o.Require) > 0):
		t.Fatalf("neither or both of auto and require: %+v", o)
	case o.BreakGlass != nil && (o.Auto || len(o.BreakGlass.Review) == 0 || o.BreakGlass.ReviewWithin < policy.MinReviewWithin):
		t.Fatalf("a glass that nobody looks at: %+v", o)
	case o.Escalation != nil && (o.Auto || o.BreakGlass != nil || len(o.Escalation.Require) == 0 || o.Escalation.After < policy.MinEscalate):
		t.Fatalf("an escalation of nothing, or to nobody: %+v", o)
	case len(o.Rules) == 0 || o.Reason != "":
		t.Fatalf("allowed by no rule, or with a reason why not: %+v", o)
	case o.CertificateTTL < policy.MinDuration || o.CertificateTTL > o.MaxDuration || o.MaxDuration > policy.MaxDuration:
		t.Fatalf("durations out of range: %+v", o)
	}
	for i, r := range o.Require {
		if r.Approvals < 1 || i > 0 && o.Require[i-1].Group >= r.Group {
			t.Fatalf("requirements not sorted, repeated or empty: %+v", o)
		}
	}
}
