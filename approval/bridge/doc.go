// Package bridge brings in what persons decide by the buttons in Slack: a process of
// its own, beside the cluster.
//
//	Slack ─POST, signed─► Bridge ─API, with its own identity─► the cluster
//	  ▲                     │
//	  └────outcome──────────┘ (to Slack's hooks and nowhere else)
//
// # Duty
//
// A [Bridge] verifies that Slack has sent a call, reads out of it whose account pressed
// which button, asks the API for that decision, and tells Slack what came of it. It
// knows no person, no rule and no request: whose the account is, and whether the
// policy lets that person decide this in Slack, the cluster says when it applies the
// command.
//
// # Trust boundary
//
// It is reached by Slack, so by everyone: the attacker is whoever finds its address,
// whoever has recorded a call, and whoever writes in the workspace. Nothing of a call is
// parsed before its signature holds. Whoever has the signing secret and can reach the
// bridge, or has the bridge itself, is every person that has an account: what that is
// good for is bounded in the state machine, not here.
//
// # What it refuses
//
// A signature that is not Slack's, a time more than five minutes off, a call that was
// there before, bodies over 256 KiB, other workspaces, guests of them, and anything that
// is no button of ours. A decision carries the hash of what the message showed. An
// answer is sent to Slack's host alone, over TLS, and no redirect is followed: a
// response_url is part of the call.
package bridge
