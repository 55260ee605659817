package policy_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/hallpass/hallpass/policy"
)

// TestParseRefuses runs testdata/refused.txtar: every mistake is named with
// its line, its rule, and what would be right.
func TestParseRefuses(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/refused.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range archive.Files {
		t.Run(file.Name, func(t *testing.T) {
			var want []string
			for line := range strings.Lines(string(file.Data)) {
				if mistake, ok := strings.CutPrefix(line, "#! "); ok {
					want = append(want, strings.TrimSpace(mistake))
				}
			}
			p, err := policy.Parse(file.Data)
			var refused *policy.ParseError
			if p != nil || !errors.As(err, &refused) || !errors.Is(err, policy.ErrPolicy) {
				t.Fatalf("Parse = %v, %v; want a ParseError", p, err)
			}
			var got []string
			for i, m := range refused.Mistakes {
				got = append(got, m.String())
				if i < len(want) {
					if start, ok := strings.CutSuffix(want[i], "…"); ok && strings.HasPrefix(got[i], start) {
						got[i] = want[i]
					}
				}
				if !strings.Contains(err.Error(), m.String()) {
					t.Errorf("the error does not say %q", m)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseLimits(t *testing.T) {
	many := func(n int) string {
		var b strings.Builder
		b.WriteString("version: 1\nrules:\n")
		for i := range n {
			fmt.Fprintf(&b, "  - {name: r%d, service: payments, requesters: [group:a], permissions: [tcp], auto: true, max_duration: 1h}\n", i)
		}
		return b.String()
	}
	if _, err := policy.Parse([]byte(many(policy.MaxRules))); err != nil {
		t.Errorf("as many rules as there may be: %v", err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"one rule more", many(policy.MaxRules + 1), "1001 rules: at most 1000"},
		{"a byte more", "#" + strings.Repeat(" ", policy.MaxSize), "262145 bytes: a policy has at most 262144"},
		{"not UTF-8", "version: 1 # \xff", "not UTF-8"},
		{"UTF-16", "\xff\xfev\x00e\x00r\x00", "not UTF-8"},
		{"a long list", "version: 1\nrules:\n  - {name: a, requesters: [" + strings.Repeat("group:a, ", 101) + "]}", "101 elements: at most 100"},
		{"endless mistakes", "version: 1\nrules:\n" + strings.Repeat("  - {}\n", 100), "and 550 more mistakes"},
		{"a long denial", "version: 1\nrules:\n  - {name: a, deny: " + strings.Repeat("a", 501) + "}", "501 bytes: at most 500"},
		{"a deep well", "version: 1\nrules: " + strings.Repeat("[", 20000) + strings.Repeat("]", 20000), "not YAML"},
	} {
		if _, err := policy.Parse([]byte(c.text)); !errors.Is(err, policy.ErrPolicy) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ErrPolicy about %q", c.name, err, c.want)
		}
	}
}

func TestExamplePolicy(t *testing.T) {
	text, err := os.ReadFile("../examples/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"agents-operators", "contractors", "engineers", "payments-owners", "security"}
	if diff := cmp.Diff(want, p.Groups()); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	if len(p.Names()) == 0 {
		t.Error("no rules")
	}
}

func TestValidName(t *testing.T) {
	for b := range 256 {
		c := string([]byte{byte(b)})
		letter := strings.Contains("abcdefghijklmnopqrstuvwxyz0123456789", c)
		if err := policy.ValidName(c); (err == nil) != letter {
			t.Errorf("ValidName(%q) = %v", c, err)
		}
		inner := letter || strings.Contains("._-", c)
		if err := policy.ValidName("a" + c); (err == nil) != inner {
			t.Errorf("ValidName(%q) = %v", "a"+c, err)
		}
	}
	for _, name := range []string{"", strings.Repeat("a", 64)} {
		if err := policy.ValidName(name); !errors.Is(err, policy.ErrName) {
			t.Errorf("ValidName(%q) = %v, want ErrName", name, err)
		}
	}
	if err := policy.ValidName(strings.Repeat("a", 63)); err != nil {
		t.Error(err)
	}
}
