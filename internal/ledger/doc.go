// Package ledger keeps what a cluster has said yes to, while tests break the cluster, and asks
// afterwards whether it still stands by all of it.
//
// Writers ask, approve, deny, withdraw, mint and revoke without pause, each call under one
// Idempotency-Key until it is answered. What was answered is an [Entry]. The checks take the word
// of one node at a time, out of its own state, so that a node that lost something cannot hide
// behind the leader:
//
//	Check           every acknowledged request, decision and revocation is there
//	CheckIssuances  every certificate in the log is in the record of its grant
//	CheckLog        each of them is in the audit log once, every certificate that was handed out is
//	                there as it is, and no serial number has two certificates
//	CheckFetch      a live grant still gives a certificate, to be found in the log
//
// It trusts nothing of the cluster but the certificates' bytes, which it hashes itself.
package ledger
