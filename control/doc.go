// Package control is a control node: the API in front, the replicated approval
// state machine behind it, and the node's issuers beside both.
//
//	caller ─mTLS─► tls: whose identity? ─► api.Handler ─┬─ leader: backend ─► Command ─► raftstore ─► approval.Apply
//	                                                    └─ follower: forward, whole, to the leader
//	backend: ca.Prepare ─► commit the record ─► ca.Sign ─► the certificate leaves
//
// # Who is asking
//
// A connection is of one caller: the SPIFFE ID of the identity it showed, whose
// chain was checked against the identity roots in the handshake. A grant
// certificate is turned away there; it opens its scope at its service and
// nothing here. Tickets are off, and a connection is cut when its certificate
// ends. Any node takes any call. A follower forwards what the leader must
// answer, with the caller's chain, over the store's own pinned TLS; the leader
// checks the chain again, and the audit leaf names the follower that vouches
// for the handshake. Writes go by a stream of calls, on which a chain comes once
// and frames share writes (callwire.go); everything else, and what goes to a node
// that knows no such streams, by HTTP/2. Whether a remembered chain still is good
// is asked with each call. While nobody leads a follower waits up to a second for
// who is next; what was not sent to one leader is sent to another, and nothing
// else is.
//
// # What is written
//
// Every write becomes one command with its time, ids and revisions in it. What
// this package checks before is courtesy, so that the answer is quick and says
// what to do; what counts is checked where the command is applied. A write
// whose outcome is unknown is answered so ("ambiguous"), never repeated by the
// node: only the caller knows whether it carries an Idempotency-Key.
//
// # What is signed
//
// A certificate is built up to its signature, its record is committed, and only
// the very record that a quorum has committed is signed. Without a quorum
// nothing is. When the commit's outcome is unknown the node looks again after a
// barrier, and does not sign what it cannot find. A leader that dies between
// commit and signature leaves a record without a certificate; the next one
// commits a record of its own issuer and signs that.
//
// # What is read
//
// Reads are linearizable: the leader confirms with a quorum that it still leads
// before each. With ?stale=true a node answers from its own state. The
// revocation feed is served by every node from its own state, with the time at
// which a quorum last confirmed it, by the leader's clock. A node that hears of
// no leader goes on serving it, and that time ages.
//
// # What a leader does besides
//
// It bootstraps an empty cluster from the manifest, and every second expires
// what is due. Each duty is a command that does nothing the second time.
//
// # Whose time
//
// Commands carry the leader's clock, and time in the state never goes back. So
// nodes compare their clocks, and one that differs from the other voters' median
// by more than the skew neither leads nor proposes; nor does one that was never
// compared, or whose clock was set since. Whatever is written, signed, vouched
// for or read as of now asks for that with the very time it uses, so that a jump
// shows at once and not at the next comparison.
//
// # Trade-offs
//
// A stolen node can claim any caller of its own trust domain whose public chain
// it knows, in calls it forwards: the leader sees the chain, not the handshake.
// The audit leaf names the node. Signing decisions with the approver's own key
// closes this.
package control
