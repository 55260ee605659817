package grant

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrPermission is returned when a permission, as text, cannot be read.
	ErrPermission = errors.New("bad permission")

	// ErrScope is returned when a service name and a set of permissions make no scope:
	// a bad service name, no permission at all, or one thing said twice.
	ErrScope = errors.New("bad scope")

	// ErrID is returned when a URI is not the SPIFFE ID of a grant in the trust domain asked
	// for, or when the parts given do not make one.
	ErrID = errors.New("bad grant ID")

	// ErrTooLong is returned when a grant's SPIFFE ID would pass, or passes, MaxIDLength.
	ErrTooLong = errors.New("too long")

	// ErrAmbiguousPath is returned when two parsers could read a request's path in two ways.
	// The answer to such a request is 400, never a guess.
	ErrAmbiguousPath = errors.New("ambiguous path")
)

// shownInput is how much of a refused input an error repeats, in bytes: enough to recognize
// it, too little for a request to fill a log with.
const shownInput = 80

// mistake is an error in an input: what was wrong, where, and what would be right.
type mistake struct {
	class error  // the sentinel
	input string // what was being read
	at    int    // byte offset in input; -1: all of it
	what  string
	want  string // may be empty
}

// Error quotes the input, so that a control byte in it cannot forge a second log line.
func (m *mistake) Error() string {
	var b strings.Builder
	b.WriteString(m.class.Error())
	b.WriteString(" ")
	b.WriteString(quoted(m.input))
	b.WriteString(": ")
	if m.at >= 0 {
		fmt.Fprintf(&b, "at byte %d: ", m.at)
	}
	b.WriteString(m.what)
	if m.want != "" {
		b.WriteString("; ")
		b.WriteString(m.want)
	}
	return b.String()
}

func (m *mistake) Unwrap() error { return m.class }

// quoted is s in ASCII and in quotes, cut to shownInput bytes.
func quoted(s string) string {
	if len(s) <= shownInput {
		return fmt.Sprintf("%+q", s)
	}
	return fmt.Sprintf("%+q… (%d bytes)", s[:shownInput], len(s))
}

// tooLong is the error for n bytes of what, of which no grant could carry more than MaxIDLength.
func tooLong(class error, what string, n int) error {
	return fmt.Errorf("%w: %w: %s takes %d bytes, a SPIFFE ID has room for %d; ask for fewer or shorter permissions",
		class, ErrTooLong, what, n, MaxIDLength)
}
