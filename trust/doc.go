// Package trust says which roots a trust domain has, and how that changes while
// everything runs.
//
// # Duty
//
// Whoever verifies certificates of a trust domain begins with anchors: the roots
// that an operator put into a file. A [Document] replaces roots: it is numbered,
// lists the roots that are in force and those that are retired, and is signed by
// a root. A [Set] is the anchors and the newest document that followed from them.
//
//	anchors {A} ─► 1: roots A B, signed by A ─► 2: roots B, retired A, signed by B ─► …
//	               both are in force: the          A's certificates end here,
//	               overlap                         whatever files still say A
//
// Nodes, proxies and auditors follow the same documents, each from its own
// anchors. A document carries all the signatures that its maker could give it, so
// that who missed the one before can still take it when it pins any of them.
//
// # What is refused
//
// A document that no root in force has signed: whoever brings documents (a
// control node, a file, somebody on the network) can withhold them and nothing
// else. A document whose number is not above the newest one's: an old document,
// replayed, would bring back a root that was retired because it was stolen. Two
// documents of one number that differ. A document that would leave no root. A
// document with a second spelling: Parse writes it again and compares.
//
// A root that no document names is left alone. Anchors may come from elsewhere as
// well, from SPIRE for one, and Hallpass has no say in those.
//
// # What it cannot do
//
// Take a stolen root's power to sign documents away from those who have not heard
// of its successor. Who holds a root in force can make the next document, so an
// operator's own anchors come first: documents that do not follow from the
// anchors count for nothing, also those that counted before.
//
// The package is pure: no clock, no network, no files.
package trust
