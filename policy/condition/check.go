package condition

import (
	"context"
	"fmt"

	"github.com/hallpass/hallpass/policy"
)

// Check reads a policy, compiles its conditions and runs the tests that it
// carries: all that a policy must pass before it is proposed. The error is a
// [*policy.ParseError] that lists what is wrong, or that of the context.
func Check(ctx context.Context, text []byte) (*Set, error) {
	p, err := policy.Parse(text)
	if err != nil {
		return nil, err
	}
	s, err := Compile(p)
	if err != nil {
		return nil, err
	}
	failed, err := s.Test(ctx)
	if err != nil {
		return nil, err
	}
	if len(failed) > 0 {
		return nil, policy.Refused(failed)
	}
	return s, nil
}

// Policy is what the set was compiled from.
func (s *Set) Policy() *policy.Policy { return s.policy }

// Test runs the tests that the policy carries and returns those that fail. An
// error is the context's: tests that were not run must not count as passed.
func (s *Set) Test(ctx context.Context) ([]policy.Mistake, error) {
	var failed []policy.Mistake
	for _, t := range s.policy.Tests() {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("tests of the policy: %w", err)
		}
		if wrong := t.Failed(s.Decide(ctx, t.Request)); wrong != "" {
			failed = append(failed, policy.Mistake{Line: t.Line, Text: fmt.Sprintf("test %q: %s", t.Name, wrong)})
		}
	}
	return failed, nil
}

// Decide answers and decides. A condition that fails denies.
func (s *Set) Decide(ctx context.Context, r policy.Request) policy.Outcome {
	answers, err := s.Answer(ctx, r)
	if err != nil {
		return policy.Outcome{Reason: err.Error() + "; an admin has to mend the policy"}
	}
	r.Answers = answers
	return policy.Decide(s.policy, r)
}
