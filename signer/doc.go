// Package signer renews the certificates of control nodes with roots whose keys
// are in a KMS. It is a process of its own, on a machine of its own, and alone has
// the right to use those keys: who steals a node steals what the node signs with,
// for days, and nothing that could make it more.
//
//	                 ┌─ signer ───────────────────────────────┐
//	KMS ◄─ sign ─────│ folder of ca init, without a key in it │── POST /v1/issuers ──► cluster
//	                 │ manifest, issued.jsonl, renewed/       │◄─ GET /v1/issuers ──── each node
//	                 └────────────────────────────────────────┘
//
// # What it signs
//
// Successors of what it signed last, and nothing else: the same keys, the same
// names, for nodes in the manifest, when a little less than half of their life is
// over (ca.Renewer). It takes no request from anybody. A node that wants new keys is
// reported, and an operator has them signed with `ca sign-node --renew`.
//
// # What it asks
//
// The nodes have one say: no. Before it signs it asks every node, each by its own
// certificate, which issuers are denied, and signs when a majority has answered and
// none of them has denied the key. So a node that was stolen and denied gets no
// successor unless the thief keeps the signer from all the others; and a signer
// whose clock is off signs nothing, for what it signed would live in another time.
//
// # What it may do
//
// It calls the API as service/signer, an identity that it signs for itself, with a
// key in memory. That is no person: it sees the issuers, which are public, and
// installs what a root has signed. Each installation has its audit leaf.
//
// When the KMS does not answer, it warns: the issuers live on, and there is time. A
// PIN that the KMS refused is not tried again until the signer is started again.
package signer
