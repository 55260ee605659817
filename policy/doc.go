// Package policy says who may ask for what, who must approve it, and for how
// long it may last.
//
// # Duty
//
// [Parse] reads the policy's YAML; [Decide] is a pure function from a policy
// and a request to an [Outcome]. Both run inside the replicated state machine
// on every node, so neither has a clock, randomness, files or a network.
//
//	YAML ─► Parse ─► Policy ─┐
//	                         ├─► Decide ─► Outcome: denied and why, or
//	requester, groups,      ─┘             granted at once, or
//	subject, scope, duration,              these groups must approve, so many each
//	reason, answers
//
// A rule may have a condition, an expression in CEL. Here that is a text:
// [Questions] says which conditions a request raises, whoever asks has them
// answered by package condition, and Decide takes the answers as a part of the
// request: exactly those, or it denies. So Decide stays the same function on
// every node, whatever release of the evaluator it was built with.
//
// # How rules combine
//
// A rule applies to a request when its requesters, subjects and service match
// and one of its permissions overlaps one of the request's: there is a call
// that both allow. Of the rules that apply, the strictest wins in every
// respect on its own:
//
//   - one that denies, denies;
//   - each requested permission must lie wholly within the permissions of a
//     rule that does not deny;
//   - every group that any of them names must approve, as often as the most
//     demanding of them says;
//   - once the longest of their times has passed, those whom they escalate to may
//     approve in their place, beside those that the others require;
//   - the shortest max_duration and the shortest certificate_ttl hold;
//   - the reason must match what each of them demands of it;
//   - a grant is automatic only when all of them are.
//
// So adding a rule that applies never loosens what others demand, and asking
// for less never demands more. What no rule allows is denied; a nil, empty or
// zero [Policy] denies everything.
//
// # What it refuses
//
// A policy is refused as a whole for any mistake, and every mistake is named
// with its line, its rule and what would be right: unknown or repeated keys,
// two rules of one name, a rule for nobody, a rule that both needs approval
// and does not, approvals below one, durations of nothing or of more than 30
// days, patterns that would match more than they seem to, and the parts of
// YAML that two readers could take in two ways (anchors, aliases, merges,
// tags, several documents).
package policy
