// Package approval is the state machine of the control plane: who may ask for
// what, who has decided what, which grants live, which certificates were issued,
// and the audit log of all of it. Every node applies the same commands in the
// same order and comes to the same state, byte for byte.
//
//	handler ── Command{now, ids, actor, body} ── Encode ──► replicated log
//	                                                            │
//	                         ┌──────────────────────────────────▼──────────┐
//	                         │ Apply                                       │
//	                         │  decode    one spelling, exact fields       │
//	                         │  begin     effective time, node, who asks   │
//	                         │  replay?   idempotency key seen before      │
//	                         │  perform   all checks, then the change      │ ──► Result
//	                         │  finish    one audit leaf, kept result      │
//	                         └──────────────────────┬──────────────────────┘
//	                                                ▼ all of it, or nothing
//	Read ◄──────────────────────────────────────── ordered keys
//
// # Duty
//
// A [Command] is one thing that someone wants: open a request, decide on it,
// record a certificate, revoke a grant, change the policy. Its body is one struct
// a kind, in deterministic CBOR with exact fields; bytes that are not the one
// encoding of a command are refused. [Apply] looks at the state through a [Tx],
// decides, and either writes all effects together with exactly one leaf of the
// audit log, or writes nothing and says why in an [Error] made for the person who
// asked. [Read] answers questions. [CheckInvariants] recomputes everything that
// must hold.
//
// It is pure. Time, ids and serial numbers arrive in the command; there is no
// clock, no randomness, no network and no file. Effective time is the later of
// the command's and the last accepted one's, so a node whose clock is behind
// revives nothing. What has run out counts as ended from that moment in every
// check; a [Tick], which the leader sends when [State.Due] says so, only makes
// the lists say it too. No bytes make it panic: a command that could would stop
// every node, again after each restart.
//
// # Trust boundary
//
// The actor is whoever the asserting node verified, and the node is a member;
// both are in the audit leaf. Nothing else in a command is believed because a
// handler checked it: the policy is decided again here, and persons, groups,
// revisions, liveness, lifetimes, issuers and serials are looked at here, where
// the change is made. An honest node checks before it proposes as a courtesy.
//
// # How votes count
//
// Votes count persons, not SPIFFE IDs. Whoever asked, whom it is for, who owns
// either, and who gave the key have a stake and no vote. Each required group needs
// its number of approvals, and a person in two groups fills one seat only, so
// who sits where is a bipartite matching ([State.Standing]). It is done anew at
// every vote with everyone as they are then. A decision names the hash of the
// revision it was shown, and narrowing makes a new revision; an approval stands
// where what is asked lies within what its person saw. If the policy in force
// would treat the request differently from the one it was made under, nothing goes
// on: ask again.
//
// Policy, groups, persons and blocks change by a [Change] that two admins other
// than its author approve, on the revision that it was proposed for. The
// bootstrap alone is exempt, and audited.
//
// # Without an approval of its own
//
// Where the policy lets them, a person breaks the glass (breakglass.go): a grant at
// once, and a [Review] that others close. A request may extend a grant (extension.go),
// and one that was approved as delegable lets its subject make others of it
// (delegation.go), which end with it.
//
// # What it refuses
//
// Besides the unauthorized: a second life. A vote, a serial, a request or change
// id and a revocation are spent once. Nothing is issued after a revocation, a
// block or the denial of its issuer; nothing outlives its grant, its issuer or
// what policy allows. What was cut short is on the [Feed] until the last of its
// certificates is over; a denied issuer until it would have ended itself, because
// who has stolen its key signs without telling us.
//
// # What is kept
//
// A request and its grant are one record (stored.go), in which nothing stands
// twice: a cluster keeps a million of them and sends them all in a snapshot. What
// ended longer ago than the leader's tick says is forgotten, by a command with the
// time in it as everything else. Records of certificates go a week after the
// certificate. The audit log keeps all of it: the bodies of its leaves are beside
// the state, and in the state are the hashes that no body can be without.
//
// # Bounds
//
// Each list that is asked for is a range of keys, newest first; the table is in
// keys.go. The work of one command does not grow with the state, and the limits
// in limits.go keep everything else small: pending requests of one requester, live
// grants of one subject, decisions on one request, what one tick ends.
package approval
