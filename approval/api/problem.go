package api

import (
	"fmt"
	"net/http"
	"time"
)

// Code is a short stable name of what went wrong, for programs.
type Code string

// Codes of problems.
const (
	CodeNotFound      Code = "not_found"
	CodeDenied        Code = "denied"
	CodeConflict      Code = "conflict"
	CodeStale         Code = "stale"
	CodeInvalid       Code = "invalid"
	CodeExpired       Code = "expired"
	CodeLimit         Code = "limited"
	CodeMismatch      Code = "idempotency_mismatch"
	CodeMethod        Code = "method_not_allowed"
	CodeNotAcceptable Code = "not_acceptable"
	CodeMediaType     Code = "unsupported_media_type"
	CodeTooLarge      Code = "too_large"
	CodeTimeout       Code = "timeout"
	CodeUnauthorized  Code = "unauthenticated"
	CodeNoLeader      Code = "no_leader"
	CodeAmbiguous     Code = "ambiguous"
	CodeUnavailable   Code = "unavailable"
	CodeInternal      Code = "internal"
)

// sentinel is an error that stands for every Problem of its code.
type sentinel Code

func (s sentinel) Error() string { return string(s) }

// Sentinel errors: errors.Is(err, api.ErrStale) works on what a Client returns.
var (
	// ErrNotFound is returned when the object does not exist or is not the caller's to see.
	ErrNotFound error = sentinel(CodeNotFound)
	// ErrDenied is returned when the caller may not do this.
	ErrDenied error = sentinel(CodeDenied)
	// ErrConflict is returned when the object is not in a state that allows it.
	ErrConflict error = sentinel(CodeConflict)
	// ErrStale is returned when what was shown is not what is there any more.
	ErrStale error = sentinel(CodeStale)
	// ErrInvalid is returned when the request cannot be understood.
	ErrInvalid error = sentinel(CodeInvalid)
	// ErrExpired is returned when the object's time is over.
	ErrExpired error = sentinel(CodeExpired)
	// ErrLimit is returned when the caller has too many of these.
	ErrLimit error = sentinel(CodeLimit)
	// ErrNoLeader is returned when the cluster has no leader or no quorum.
	ErrNoLeader error = sentinel(CodeNoLeader)
	// ErrAmbiguous is returned when a write may or may not have happened. The
	// same Idempotency-Key makes asking again safe.
	ErrAmbiguous error = sentinel(CodeAmbiguous)
	// ErrUnavailable is returned when this node cannot answer now.
	ErrUnavailable error = sentinel(CodeUnavailable)
	// ErrInternal is returned when the server failed; the details are in its log.
	ErrInternal error = sentinel(CodeInternal)
)

// Problem is an error answer (RFC 9457, application/problem+json), and the
// error that Client methods return for one.
type Problem struct {
	Type       string        `json:"type" doc:"urn:hallpass:problem:CODE"`
	Title      string        `json:"title"`
	Status     int           `json:"status"`
	Detail     string        `json:"detail,omitempty"`
	Code       Code          `json:"code"`
	Next       string        `json:"next,omitempty" doc:"the next thing to do"`
	RequestID  string        `json:"request_id,omitempty"`
	TraceID    string        `json:"trace_id,omitempty"`
	RetryAfter time.Duration `json:"-"`
}

// Error implements error.
func (p *Problem) Error() string {
	text := p.Title
	if text == "" {
		text = string(p.Code)
	}
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	if p.Next != "" {
		text += fmt.Sprintf(" (%s)", p.Next)
	}
	return text
}

// Is reports whether target is the sentinel of p's code.
func (p *Problem) Is(target error) bool {
	if p.Code == CodeUnauthorized && target == ErrUnauthenticated {
		return true
	}
	s, ok := target.(sentinel)
	return ok && Code(s) == p.Code
}

// GetStatus gives the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType gives the media type of a problem.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// NewProblem makes a Problem with the status and title of its code.
func NewProblem(code Code, detail, next string) *Problem {
	status, title := codeStatus(code)
	return &Problem{
		Type: "urn:hallpass:problem:" + string(code), Title: title,
		Status: status, Code: code, Detail: detail, Next: next,
	}
}

// codeStatus is the one place where codes become HTTP statuses.
func codeStatus(code Code) (status int, title string) {
	switch code {
	case CodeNotFound:
		return http.StatusNotFound, "not found"
	case CodeDenied:
		return http.StatusForbidden, "denied"
	case CodeConflict:
		return http.StatusConflict, "conflict"
	case CodeStale:
		return http.StatusConflict, "changed since"
	case CodeInvalid:
		return http.StatusUnprocessableEntity, "invalid"
	case CodeExpired:
		return http.StatusGone, "expired"
	case CodeLimit:
		return http.StatusTooManyRequests, "too many"
	case CodeMismatch:
		return http.StatusUnprocessableEntity, "Idempotency-Key used before with another body"
	case CodeMethod:
		return http.StatusMethodNotAllowed, "method not allowed"
	case CodeNotAcceptable:
		return http.StatusNotAcceptable, "not acceptable"
	case CodeMediaType:
		return http.StatusUnsupportedMediaType, "unsupported media type"
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge, "too large"
	case CodeTimeout:
		return http.StatusRequestTimeout, "too slow"
	case CodeUnauthorized:
		return http.StatusUnauthorized, "not authenticated"
	case CodeNoLeader:
		return http.StatusServiceUnavailable, "no leader"
	case CodeAmbiguous:
		return http.StatusServiceUnavailable, "outcome unknown"
	case CodeUnavailable:
		return http.StatusServiceUnavailable, "unavailable"
	case CodeInternal:
		return http.StatusInternalServerError, "internal error"
	default:
		return http.StatusInternalServerError, "internal error"
	}
}
