// Package records is the form of a proxy's access log: lines of JSON, each a
// leaf of a Merkle tree (RFC 6962 §2.1), so that a root that was noted elsewhere
// tells whether a line before it was changed, taken out or put in since.
//
//	{"kind":"log","log":"5f…","previous":{…}}   begins a tree, and is its first leaf
//	{"kind":"request",…}                         a leaf each, the bytes without "\n"
//	…
//	{"kind":"log",…}                             begins the next tree: the proxy was started anew
//
// A tree is of one run of one proxy, and of one file: a rotated file's last root
// is in the next one's first line. A Tree keeps the roots of its complete
// subtrees only, so that a log of any length costs its proxy a kilobyte; whoever
// verifies has the lines and needs no proofs.
//
// Lines are hashed as they stand, those that are no JSON included: what a crash
// has torn is a leaf of the tree that it ends.
package records
