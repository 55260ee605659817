// Package audit is the tamper-evident log of everything a Hallpass cluster
// decided.
//
// # Duty
//
// Every accepted change of the cluster's state is one [Entry]. Its canonical
// JSON is one leaf of an RFC 6962 Merkle tree, written in the same transaction
// as the change itself. A node signs the tree's head as a [Checkpoint], a C2SP
// tlog-checkpoint in a signed note; proofs connect one entry to a checkpoint
// (inclusion) and an older checkpoint to a newer one (consistency).
//
//	change ─► Entry ─► canonical JSON ─► leaf ─┐
//	change ─► Entry ─► canonical JSON ─► leaf ─┼─► root ─► Checkpoint ─► signed note
//	change ─► Entry ─► canonical JSON ─► leaf ─┘            (origin carries the epoch)
//
// # Trust boundary
//
// Whoever holds an export of the entries, a signed checkpoint and the nodes'
// public keys can run [Verify] and needs to trust nobody else: not the server
// that gave the export, not the disk it lay on, not the network between. What
// a log like this cannot show is a lie told at the time of writing, or a head
// that a stolen key signed for a second history; for the latter, keep
// checkpoints elsewhere and hand them to [Evidence.Older], or to [Growth],
// which needs no entries. A [Bundle] shows one grant to somebody who is not
// to see the others; that it shows all about it, only the whole log proves.
//
// # What it refuses
//
//   - A body with two spellings: [ParseEntry] encodes again and compares, so
//     white space, key order, escapes, duplicate keys, fractions and lone
//     surrogates are all refused, never repaired.
//   - An entry whose index is not its place in the log.
//   - A checkpoint without a valid signature by a known key, of a malformed
//     origin, or with anything between the root and the signatures.
//   - A bundle with a byte that nothing vouches for.
//   - A private key file that others may read.
//
// The package has no clock, no network and, but for key files, no files: the
// state machine calls it with its own storage behind [HashStore].
package audit
