// Package notify tells others what happens: webhooks, mail, chat and pagers, each a
// target that an operator named in the nodes' configuration.
//
// Nothing is kept of a message before it is sent. The audit log is replicated and in
// order, and each of its entries that a target is told of is one delivery, whose id
// follows from the entry and the target: every leader comes to the same id. What is
// replicated besides is how far each target is (approval.Target).
//
//	audit log ─► runner of a target ─► channel ─► receiver
//	    ▲            │    (in order a request; one that waits holds up no other)
//	    │            └─ settle: position, what is open, what is dead
//	    └────────────────────┘ (one command, one entry, which is told to nobody)
//
// The leader sends first and settles afterwards. One that dies in between leaves a
// delivery that the next sends again under the same id: at least once, and a receiver
// that remembers ids acts once. Mail and chat, which people read, do the remembering
// where they can: see the channels.
//
// Trust: a target's address is written by who runs the node, and may lie anywhere,
// the node's own network included; nobody else can choose it, neither by a request
// nor by a redirect, which is not followed. What a receiver answers is bounded, and
// only its status is kept. Texts in a message are other people's: they are escaped
// for the form that they are put into. Secrets and addresses are in no log, no answer
// and no audit entry; what is said of a target is its name and its host.
//
// No target decides anything. A message has a link, and whoever follows it decides in
// the console or on the command line, with their own certificate. Where the policy lets
// it, Slack's have buttons besides, which say what was shown; what is pressed comes in
// by another process: see package bridge.
package notify
