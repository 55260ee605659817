package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/policy"
	"github.com/hallpass/hallpass/policy/condition"
)

func (a *app) newPolicyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Who may ask for what and who must approve: show, validate, test, diff, propose, schema",
	}
	cmd.AddCommand(a.newPolicyShow(), a.newPolicyValidate(), a.newPolicyTest(), a.newPolicyDiff(), a.newPolicyPropose(),
		a.newPolicySchema())
	return cmd
}

func (a *app) newPolicyShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Print the policy in force",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				p, err := c.Policy(ctx)
				if err != nil {
					return err
				}
				return a.print(p, func(w *tabular) {
					w.line("# revision %d", p.Revision)
					for line := range strings.Lines(p.YAML) {
						w.line("%s", strings.TrimRight(line, "\n"))
					}
				})
			})
		},
	}
}

func (a *app) newPolicyValidate() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE",
		Short: "Check a policy file, offline; every mistake names its line and rule",
		Args:  exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			s, _, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			groups := s.Policy().Groups()
			return a.print(map[string]any{"valid": true, "groups": groups}, func(w *tabular) {
				w.line("%s is valid; it names the groups %s", args[0], strings.Join(groups, ", "))
			})
		},
	}
}

// readPolicy reads and compiles a policy file, without running its tests.
func readPolicy(file string) (*condition.Set, []byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	p, err := policy.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	s, err := condition.Compile(p)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	return s, text, nil
}

// testedPolicy is one test of a policy file, as `policy test` shows it.
type testedPolicy struct {
	Line    int    `json:"line"`
	Name    string `json:"name"`
	Passed  bool   `json:"passed"`
	Outcome string `json:"outcome"`
	Wrong   string `json:"wrong,omitempty"`
}

func (a *app) newPolicyTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test FILE [FILE …]",
		Short: "Run the tests that policy files carry, offline",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("needs FILE")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			failed := 0
			shown := make(map[string][]testedPolicy)
			for _, file := range args {
				s, _, err := readPolicy(file)
				if err != nil {
					return err
				}
				all := runPolicyTests(cmd.Context(), s)
				shown[file] = all
				for _, t := range all {
					if !t.Passed {
						failed++
					}
				}
			}
			err := a.print(shown, func(w *tabular) {
				for _, file := range args {
					tabulateTests(w, file, shown[file])
				}
			})
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d tests failed: a policy is proposed only when all of its tests pass", failed)
			}
			return err
		},
	}
}

func runPolicyTests(ctx context.Context, s *condition.Set) []testedPolicy {
	all := []testedPolicy{}
	for _, t := range s.Policy().Tests() {
		out := s.Decide(ctx, t.Request)
		wrong := t.Failed(out)
		all = append(all, testedPolicy{t.Line, t.Name, wrong == "", out.String(), wrong})
	}
	return all
}

func tabulateTests(w *tabular, file string, all []testedPolicy) {
	passed := 0
	for _, t := range all {
		if t.Passed {
			passed++
			w.line("ok    %s: %s", t.Name, t.Outcome)
		} else {
			w.line("FAIL  %s:%d: %s: %s", file, t.Line, t.Name, t.Wrong)
		}
	}
	w.line("%s: %d of %d tests passed", file, passed, len(all))
}

// policyDiff is what `policy diff` answers.
type policyDiff struct {
	Revision uint64         `json:"revision"` // of the policy in force
	Text     string         `json:"text"`
	Changes  []changedTests `json:"changes"`
}

// changedTests is a test of the file to which the policy in force gives another answer.
type changedTests struct {
	Name string `json:"name"`
	Now  string `json:"now"`
	Then string `json:"then"`
}

func (a *app) newPolicyDiff() *cobra.Command {
	return &cobra.Command{
		Use:   "diff FILE",
		Short: "Show how a policy file differs from the policy in force, in its text and in what its tests ask",
		Args:  exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			then, text, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd.Context(), func(ctx context.Context, c *api.Client) error {
				in, err := c.Policy(ctx)
				if err != nil {
					return err
				}
				out, err := diffPolicies(ctx, in, args[0], text, then)
				if err != nil {
					return err
				}
				return a.print(out, func(w *tabular) {
					for line := range strings.Lines(out.Text) {
						w.line("%s", strings.TrimRight(line, "\n"))
					}
					for _, ch := range out.Changes {
						w.line("test %q", ch.Name)
						w.line("  now:  %s", ch.Now)
						w.line("  then: %s", ch.Then)
					}
					if out.Text == "" {
						w.line("no difference to revision %d", out.Revision)
					}
				})
			})
		},
	}
}

func diffPolicies(ctx context.Context, in api.Policy, file string, text []byte, then *condition.Set) (policyDiff, error) {
	out := policyDiff{Revision: in.Revision, Changes: []changedTests{}}
	out.Text = string(diff.Diff(fmt.Sprintf("revision %d", in.Revision), []byte(in.YAML), file, text))
	p := &policy.Policy{}
	var err error
	if in.YAML != "" {
		if p, err = policy.Parse([]byte(in.YAML)); err != nil {
			return out, fmt.Errorf("the policy in force: %w", err)
		}
	}
	now, err := condition.Compile(p)
	if err != nil {
		return out, fmt.Errorf("the policy in force: %w", err)
	}
	for _, t := range then.Policy().Tests() {
		was, is := now.Decide(ctx, t.Request), then.Decide(ctx, t.Request)
		if was.String() != is.String() {
			out.Changes = append(out.Changes, changedTests{t.Name, was.String(), is.String()})
		}
	}
	return out, nil
}

func (a *app) newPolicyPropose() *cobra.Command {
	var base uint64
	cmd := &cobra.Command{
		Use:   "propose FILE",
		Short: "Propose a policy whose tests pass; it is in force once two admins other than you approve",
		Args:  exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, text, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			failed, err := s.Test(cmd.Context())
			if err == nil && len(failed) > 0 {
				err = policy.Refused(failed)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.propose(cmd.Context(), api.ChangeSpec{Kind: api.ChangePolicySet, YAML: string(text)}, base)
		},
	}
	addBase(cmd, &base)
	return cmd
}

func (a *app) newPolicySchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of policy files, for editors",
		Args:  exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			if a.output == "yaml" {
				return errors.New("a JSON Schema is JSON: leave -o out")
			}
			_, err := a.stdout.Write(policy.Schema())
			return err
		},
	}
}
