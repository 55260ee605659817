package policy_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/hallpass/hallpass/policy"
)

var fence = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// TestPolicyPage runs docs/policy.md: each yaml block is a policy, each cases
// block is decided by the policy before it, and each refused block makes
// exactly the mistakes of the text block after it.
func TestPolicyPage(t *testing.T) {
	page, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	var p *policy.Policy
	var refused []string
	cases := 0
	for _, block := range fence.FindAllStringSubmatch(string(page), -1) {
		kind, text := block[1], block[2]
		switch kind {
		case "yaml":
			if p, err = policy.Parse([]byte(text)); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
		case "cases":
			for line := range strings.Lines(text) {
				r, want := parseCase(t, strings.TrimSpace(line))
				if got := describe(decided(t, p, r)); got != want {
					t.Errorf("%s\n got: %s", line, got)
				}
				cases++
			}
		case "refused":
			_, err := policy.Parse([]byte(text))
			parsed, ok := errors.AsType[*policy.ParseError](err)
			if !ok {
				t.Fatalf("%v, want a ParseError\n%s", err, text)
			}
			for _, m := range parsed.Mistakes {
				refused = append(refused, m.String())
			}
		case "text":
			checkRefusals(t, refused, strings.Split(strings.TrimSpace(text), "\n"))
		default:
			t.Errorf("a block of %q is run by nothing", kind)
		}
	}
	if cases == 0 || refused == nil {
		t.Error("the page shows no cases or no refusal")
	}
}

func checkRefusals(t *testing.T, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d mistakes, the page says %d: %q", len(got), len(want), got)
	}
	for i := range want {
		start, cut := strings.CutSuffix(want[i], "…")
		if got[i] != want[i] && (!cut || !strings.HasPrefix(got[i], start)) {
			t.Errorf("mistake %q, the page says %q", got[i], want[i])
		}
	}
}
