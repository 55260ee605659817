// Package kms opens the key management systems in which the keys of a cluster's
// roots may live: a PKCS#11 token, a key service of a cloud, a TPM. It is the only
// place that go.step.sm/crypto's KMS are reached from, in one file, which is built
// with the tag kms alone: the plain binary stays one file without cgo, and without
// the clouds' libraries.
//
//	ca ──OpenKMS──► Open ──URI──► redact, PIN from its source ──► step.go (tag kms) ──► token, cloud
//	                                                          └─► none.go (no tag): ErrNoKMS
//
// # Who may reach it
//
// The command line and the signer. A control node and a proxy do not, at any depth:
// a node that could open the KMS would hold the right that is kept from it.
//
// # Secrets
//
// A URI goes into a folder, into error messages, and onto command lines, which
// every user of a machine can read. So a URI with a secret in it is refused, and
// not repeated: a PIN comes from a file that its owner alone may read, or from the
// environment (pin-source=env:NAME), and no message has it. A PIN that cannot be
// read is never replaced by an empty one: tokens count wrong PINs, and lock.
package kms
