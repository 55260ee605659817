package ca

import "errors"

var (
	// ErrProfile is returned when a certificate that is about to be signed breaks a
	// rule of RFC 5280: a defect of this program, not of a request.
	ErrProfile = errors.New("ca: the certificate breaks RFC 5280")

	// ErrInvalid is returned when a specification, an option or a file asks for
	// something no certificate of ours may say.
	ErrInvalid = errors.New("ca: invalid")

	// ErrExists is returned when a command would overwrite a key, a root or a
	// manifest that is already there.
	ErrExists = errors.New("ca: already exists")

	// ErrExpired is returned when there is no time left: the grant has ended, or
	// the issuer has.
	ErrExpired = errors.New("ca: expired")

	// ErrCSR is returned when a certificate signing request is not one, carries
	// a key we do not certify, or is not signed by that key.
	ErrCSR = errors.New("ca: bad certificate signing request")

	// ErrKey is returned when a public key is of a kind we do not certify, or a
	// private key does not belong to its certificate.
	ErrKey = errors.New("ca: bad key")

	// ErrNotCommitted is returned when a signature is asked for something that
	// nobody committed, or for something other than what was committed.
	ErrNotCommitted = errors.New("ca: refusing to sign: not what was committed")

	// ErrTicketSpent is returned by the second and every later use of a Ticket.
	ErrTicketSpent = errors.New("ca: this ticket was used before")

	// ErrRefused is returned by the certificate authority operations that would
	// go round an approval: renewal and passive revocation.
	ErrRefused = errors.New("ca: refused")

	// ErrManifest is returned when a manifest is not what `ca sign-node` wrote.
	ErrManifest = errors.New("ca: bad manifest")

	// ErrUntrusted is returned when a certificate chain does not prove an
	// identity of the trust domain.
	ErrUntrusted = errors.New("ca: not an identity of this trust domain")
)
