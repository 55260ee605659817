package notify

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/hallpass/hallpass/approval"
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
	return clean(err.Error())
}

// clean cuts words to what a cause may be: one line of visible text.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, " "))
	if len(text) > approval.MaxCause {
		text = strings.ToValidUTF8(text[:approval.MaxCause], "")
	}
	return text
}
