package condition

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/env"

	"github.com/hallpass/hallpass/grant"
	"github.com/hallpass/hallpass/policy"
)

// Limits of a condition, besides that of its length.
const (
	// CostLimit is how much one evaluation may cost, in cel-go's units: about one
	// a step, one for ten bytes that are read.
	CostLimit = 20_000

	maxDepth = 32
	// checkEvery is after how many steps of a loop the context is looked at.
	checkEvery = 100
)

// ErrCondition is returned when a condition could not be evaluated. The request is
// to be denied.
var ErrCondition = errors.New("a condition of the policy cannot be evaluated")

// Set is a policy with its conditions, compiled. It is immutable and may be used
// from several goroutines.
type Set struct {
	policy   *policy.Policy
	programs map[string]cel.Program // by rule
}

// Compile checks and compiles the conditions of a policy. The error is a
// [*policy.ParseError] with all mistakes.
func Compile(p *policy.Policy) (*Set, error) {
	s := &Set{policy: p, programs: make(map[string]cel.Program)}
	if !p.Conditional() {
		return s, nil
	}
	environment, err := newEnvironment()
	if err != nil {
		return nil, fmt.Errorf("conditions: %w", err)
	}
	var mistakes []policy.Mistake
	for _, q := range p.Conditions() {
		program, wrong := compile(environment, q)
		mistakes = append(mistakes, wrong...)
		s.programs[q.Rule] = program
	}
	if len(mistakes) > 0 {
		return nil, policy.Refused(mistakes)
	}
	return s, nil
}

// newEnvironment declares what a condition may look at and do.
func newEnvironment() (*cel.Env, error) {
	texts := cel.ListType(cel.StringType)
	return cel.NewCustomEnv(
		cel.StdLib(cel.StdLibSubset(env.NewLibrarySubset().AddExcludedFunctions(byZone()...))),
		cel.ParserRecursionLimit(maxDepth),
		cel.DefaultUTCTimeZone(true),
		cel.Variable("requester.id", cel.StringType),
		cel.Variable("requester.trust_domain", cel.StringType),
		cel.Variable("requester.path", cel.StringType),
		cel.Variable("requester.groups", texts),
		cel.Variable("subject.id", cel.StringType),
		cel.Variable("subject.trust_domain", cel.StringType),
		cel.Variable("subject.path", cel.StringType),
		cel.Variable("service.name", cel.StringType),
		cel.Variable("service.tier", cel.StringType),
		cel.Variable("service.labels", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("request.permissions", texts),
		cel.Variable("request.writes", cel.BoolType),
		cel.Variable("request.duration", cel.DurationType),
		cel.Variable("request.reason", cel.StringType),
		cel.Variable("request.start", cel.TimestampType),
	)
}

// byZone are the overloads that take a time zone by name. They would read the
// zone from files, and a node with other files would answer otherwise.
func byZone() []*env.Function {
	var all []*env.Function
	for function, overload := range map[string]string{
		"getFullYear": "timestamp_to_year_with_tz", "getMonth": "timestamp_to_month_with_tz",
		"getDayOfYear": "timestamp_to_day_of_year_with_tz", "getDayOfMonth": "timestamp_to_day_of_month_with_tz",
		"getDate": "timestamp_to_day_of_month_1_based_with_tz", "getDayOfWeek": "timestamp_to_day_of_week_with_tz",
		"getHours": "timestamp_to_hours_with_tz", "getMinutes": "timestamp_to_minutes_with_tz",
		"getSeconds": "timestamp_to_seconds_tz", "getMilliseconds": "timestamp_to_milliseconds_with_tz",
	} {
		all = append(all, env.NewFunction(function, env.NewOverload(overload, nil, nil)))
	}
	return all
}

func compile(environment *cel.Env, q policy.Question) (cel.Program, []policy.Mistake) {
	mistake := func(line int, text string) policy.Mistake {
		return policy.Mistake{Line: q.Line(line), Rule: fmt.Sprintf("%q", q.Rule), Text: "match: " + text}
	}
	tree, issues := environment.Compile(q.Match)
	if issues.Err() != nil {
		var all []policy.Mistake
		for _, e := range issues.Errors() {
			text := strings.ReplaceAll(e.Message, " (in container '')", "")
			all = append(all, mistake(e.Location.Line(), text))
		}
		return nil, all
	}
	if !tree.OutputType().IsExactType(cel.BoolType) {
		return nil, []policy.Mistake{mistake(1, fmt.Sprintf("it is a %s: write something that is true or false, such as request.writes", tree.OutputType()))}
	}
	program, err := environment.Program(tree, cel.CostLimit(CostLimit), cel.InterruptCheckFrequency(checkEvery), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, []policy.Mistake{mistake(1, err.Error())}
	}
	return program, nil
}

// Answer answers the questions that the policy has about a request. Errors wrap
// [ErrCondition].
func (s *Set) Answer(ctx context.Context, r policy.Request) ([]policy.Answer, error) {
	questions := policy.Questions(s.policy, r)
	if len(questions) == 0 {
		return nil, nil
	}
	look := s.sees(r)
	answers := make([]policy.Answer, 0, len(questions))
	for _, q := range questions {
		holds, err := evaluate(ctx, s.programs[q.Rule], look)
		if err != nil {
			return nil, fmt.Errorf("%w: rule %q: %w", ErrCondition, q.Rule, err)
		}
		answers = append(answers, policy.Answer{Rule: q.Rule, Holds: holds})
	}
	return answers, nil
}

func evaluate(ctx context.Context, program cel.Program, look map[string]any) (bool, error) {
	if program == nil {
		return false, errors.New("it was not compiled")
	}
	value, _, err := program.ContextEval(ctx, look)
	if err != nil {
		return false, err
	}
	holds, ok := value.Value().(bool)
	if !ok {
		return false, fmt.Errorf("it is a %s", value.Type().TypeName())
	}
	return holds, nil
}

// sees is what conditions see of a request.
func (s *Set) sees(r policy.Request) map[string]any {
	service := r.Scope.Service()
	tier, labels := s.policy.Service(service)
	if labels == nil {
		labels = map[string]string{}
	}
	permissions := r.Scope.Permissions()
	return map[string]any{
		"requester.id": r.Requester.String(), "requester.trust_domain": r.Requester.TrustDomain().Name(),
		"requester.path": r.Requester.Path(), "requester.groups": append([]string{}, r.Groups...),
		"subject.id": r.Subject.String(), "subject.trust_domain": r.Subject.TrustDomain().Name(), "subject.path": r.Subject.Path(),
		"service.name": service, "service.tier": tier, "service.labels": maps.Clone(labels),
		"request.permissions": r.Scope.Texts(), "request.writes": writes(permissions), "request.duration": r.Duration,
		"request.reason": r.Reason, "request.start": r.Start.UTC(),
	}
}

// writes reports whether a scope may change anything: it is not of HTTP alone, or
// has a method other than GET, HEAD and OPTIONS. What a gRPC method or a database
// role does, its name does not say.
func writes(permissions []grant.Permission) bool {
	for _, p := range permissions {
		methods, _, _ := strings.Cut(p.String(), " ")
		if p.Kind() != grant.KindHTTP {
			return true
		}
		for method := range strings.SplitSeq(methods, ",") {
			if method != "GET" && method != "HEAD" && method != "OPTIONS" {
				return true
			}
		}
	}
	return false
}
