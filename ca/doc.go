// Package ca makes certificates and nothing else: the two roots of a cluster in
// an offline folder, for every node an issuer of identities and an issuer of
// grants, identities, and the certificates of grants. It decides nothing. Who
// may have what is decided, and logged, before it is asked.
//
// # Two domains
//
// Identities live in one trust domain (acme.test), grants in another
// (grants.acme.test), each under its own root. The two roots never stand in one
// pool: in a shared domain whoever admits "any member" would admit a grant
// certificate as if it were its subject.
//
//	offline folder                     node n1 (its keys never leave it)
//	  identity-root ──signs──┬──────►   identity issuer ──► identities of services, nodes
//	                         ├──────►   API certificate
//	                         └──────►   identities of the first admins
//	  grants-root ────signs─────────►   grants issuer ────► grant certificates
//
// A node's issuers have path length 0 and name constraints, so that what a thief
// of the node can sign is bounded by what other people's verifiers check: a
// grant issuer speaks for the grants domain and can name no host, address or
// mailbox; an identity issuer can name the hosts it was told. The latter has no
// URI constraint, because rustls refuses every chain with one: VerifyIdentity
// checks the URI.
//
// # Prepare, commit, sign, compare
//
// Nothing unlogged leaves: an issuer signs what a quorum has committed, and
// nothing else, also when this process crashes, loses its quorum or has a bug.
//
//	PrepareGrant ─► TBSCertificate, read by the lints, signed by nobody
//	     │
//	     ▼ Record {serial, SHA-256 of the TBS, issuer, times, key}
//	  commit (not here: control and the replicated log)
//	     │
//	     ▼ Record, as it was read back
//	Ticket.Sign ── equal to the ticket's? ── not spent? ─► gate
//	     │                                                 │
//	     │                                     the key signs this one digest, once
//	     ▼
//	  the signature is verified, and the signed TBS compared with the prepared one
//
// The order is what makes it safe to stop anywhere. Before the commit there is a
// draft, and no signature at all. After it there is a record of a certificate
// that may not exist; that only makes an auditor look for it. There is no moment
// with a certificate and no record. A commit whose outcome is unknown is never
// signed: whoever asks again gets a new ticket with a new serial.
//
// The last check is in the key itself. Issuers sign with ECDSA on P-256, so the
// digest that the key is handed is the SHA-256 of the TBSCertificate: the very
// hash in the record. The gate around the key holds the hashes that were
// committed, gives each away once, and is all that smallstep's code sees of the
// key. The certificate authority that smallstep's code sees refuses to renew,
// since a renewal is one more certificate of a grant, committed like the first.
//
// The offline roots go the same way: their commit is a line in issued.jsonl, on
// disk before the key is used.
//
// # Roots in a KMS
//
// The keys of the roots may be in a KMS instead of the folder, which then has in
// NAME.kms where. This package knows a KMS as an interface that its caller opens;
// all that a root signs goes the way above, through the gate, with either. A
// Renewer renews nodes with such roots by itself: what was signed last, here, again.
//
// # What a certificate says
//
// A grant certificate has an empty subject, one critical SAN with one URI (the
// grant's SPIFFE ID), keyUsage digitalSignature, and clientAuth alone. That last
// point deviates from the SVID document, which wants both extended key usages,
// so that a grant can never be served with; GrantSpec.StrictSVID sets both.
// NotBefore is backdated by the skew. NotAfter is the earliest of the time of
// minting plus the life asked for, the grant's expiry and the issuer's end,
// rounded down: up would outlive the grant. A CSR gives its public key, proven by
// its signature, and nothing else.
//
// Keys are ECDSA on P-256 or P-384 for leaves and on P-256 for authorities; see
// CheckPublicKey for why. Serials are 17 bytes, 134 bits of them random.
//
// # What is trusted, and what is refused
//
// The manifest is public and signed by the identity root; LoadManifest takes it
// whole, in the one spelling it was written in, or says which field is wrong.
// Private keys in files that others may read are refused. Nothing that exists is
// overwritten: no root, no key, no manifest unless asked.
//
// Whoever holds the offline folder can be anyone, and whoever holds a node's keys
// can sign as that node, past all of this, until its issuers are denied. What
// the log then lacks is the alarm: a serial that was never committed.
package ca
