// Package emergency says what an emergency grant issuer is, and what the journal
// says that its custodians keep: the way in when the whole control plane is gone.
//
// # Duty
//
// A grant certificate is normally made by a node, after a quorum has committed it.
// An emergency grant issuer is made ahead by the offline roots and held by several
// custodians, so that some of them together can make grant certificates while no
// node lives. What it is stands in its own certificate, under the root's
// signature, and nowhere else:
//
//	grants root ──signs──► emergency issuer: path length 0, the name constraints of
//	     │                 a node's grant issuer, and a CRITICAL extension, the mark
//	     │                      │
//	     └──► node issuers      └──signs──► grant certificates, an hour at the most
//
// Since the mark is critical, RFC 5280 has every verifier refuse the chain that
// does not know it: a stock proxy and an older one of ours as well. Ours refuse it
// too, unless their service says that it admits emergencies. Who has the issuer's
// key can neither take the mark out nor put it into another issuer.
//
// # The journal
//
// Each certificate is written down before it is signed: a [Record] a line, which
// names the one before by its hash and is signed with the issuer's key. The
// cluster takes the journal in afterwards, record by record. A line that was
// changed, taken out or put elsewhere breaks the chain; a journal that was cut
// short says less than one that was brought before, or less than the certificates
// that proxies were shown.
//
// # Limits
//
// [CheckLeaf] is asked by those who make certificates, by proxies who are shown
// them, and by the cluster that takes records in. So the hour holds for a thief of
// the key as well, and a grant's end follows from its id: it can be revoked by id
// before anybody has brought its record.
//
// The package is pure: no clock, no network, no files, no randomness.
package emergency
