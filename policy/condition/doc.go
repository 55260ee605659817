// Package condition answers the conditions of a policy: the CEL expressions that
// its rules have under match.
//
// # Duty
//
// [Compile] checks every condition of a policy against the types of what it may
// look at, and names each mistake with its line and rule. [Set.Answer] evaluates
// those that a request raises, and [Set.Test] runs the tests that the policy
// carries.
//
//	policy.Questions ─► Answer ─► []policy.Answer ─► in the command ─► policy.Decide
//	                    (leader, before the commit)                    (every node, in Apply)
//
// # Trust
//
// The state machine never evaluates a condition, and cannot: it reaches neither
// this package nor cel-go, which is a test. Two releases of cel-go may come to
// two answers, or one of them to an error, and two nodes would come to two
// states. The leader answers, and its answers travel in the command together
// with the revisions of policy and directory; Apply refuses the command unless
// they are to exactly the questions that the policy in force has about it. They
// are in the audit leaf, where anyone can ask the same again.
//
// # What it refuses
//
// A condition sees the request, and nothing else: no clock, no files, no names
// of time zones (which would be read from files), no network. It costs at most
// what [CostLimit] says, whatever is asked, and is cut off when its context
// ends. One that fails (a label that is not there, a cost beyond the limit)
// denies the whole request: were the rule left out instead, what it demands would
// be, too.
package condition
