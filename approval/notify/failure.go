package notify

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/grant"
)

// Failure is why a delivery was not taken. Its text is shown to admins and kept in the
// audit log: it never holds a secret, an address beyond its host, or what a receiver
// wrote.
type Failure struct {
	Cause string
	// Gone says that the receiver wants no more: the target is paused.
	Gone bool
	// Permanent says that trying again is of no use.
	Permanent bool
	// After is how long the receiver asks to be left alone, 0 if it does not.
	After time.Duration
}

// Error implements error.
func (f *Failure) Error() string { return f.Cause }

// failed is a Failure that is tried again, in the words of err.
func failed(err error) *Failure {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	return &Failure{Cause: causeOf(err)}
}

// causeOf is an error in words for admins. The URL that net/http puts in front is left
// out: what is in it lets whoever reads the log post in the target's name.
func causeOf(err error) string {
	var u *url.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &u):
		err = u.Err
	}
	if !ours(err) {
		return "the answer cannot be read" // and is quoted by the error
	}
	return clean(err.Error())
}

// ours says whether the words of an error are this program's and the system's. Other errors quote
// what the receiver wrote, and a cause is in the audit log for good.
func ours(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.Canceled) {
		return true
	}
	for _, is := range []func() bool{
		func() bool { _, ok := errors.AsType[*net.OpError](err); return ok },
		func() bool { _, ok := errors.AsType[*net.DNSError](err); return ok },
		func() bool { _, ok := errors.AsType[*tls.CertificateVerificationError](err); return ok },
		func() bool { _, ok := errors.AsType[tls.RecordHeaderError](err); return ok },
		func() bool { _, ok := errors.AsType[syscall.Errno](err); return ok },
	} {
		if is() {
			return true
		}
	}
	return false
}

// clean cuts words to what a cause may be: one line of visible text.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar && !grant.HiddenInText(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, " "))
	if len(text) > approval.MaxCause {
		text = strings.ToValidUTF8(text[:approval.MaxCause], "")
	}
	return text
}
