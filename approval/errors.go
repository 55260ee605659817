package approval

import (
	"errors"
	"fmt"
	"strings"
)

// Code says what kind of refusal an Error is; it is part of the API.
type Code string

// The codes.
const (
	CodeNotFound            Code = "not_found"
	CodeDenied              Code = "denied"
	CodeConflict            Code = "conflict"
	CodeStale               Code = "stale"
	CodeStaleRevision       Code = "stale_revision"
	CodeInvalid             Code = "invalid"
	CodeExpired             Code = "expired"
	CodeLimit               Code = "limited"
	CodeIdempotencyMismatch Code = "idempotency_mismatch"
	CodeInternal            Code = "internal"
)

var (
	// ErrNotFound is returned when the object named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrDenied is returned when the actor may not do what was asked.
	ErrDenied = errors.New("denied")
	// ErrConflict is returned when the object is in a state that does not
	// allow what was asked, or exists already.
	ErrConflict = errors.New("conflict")
	// ErrStale is returned when the command names a hash or a revision that is
	// no longer the current one, or when policy has changed under a request.
	ErrStale = errors.New("stale")
	// ErrStaleRevision is returned, besides ErrStale, when only the policy or
	// directory revision in the command is out of date: the same command, built
	// again from the current state, may be accepted.
	ErrStaleRevision = errors.New("stale revision")
	// ErrInvalid is returned when the command makes no sense whatever the state.
	ErrInvalid = errors.New("invalid")
	// ErrExpired is returned when the request, change or grant has run out.
	ErrExpired = errors.New("expired")
	// ErrLimit is returned when a cap on how much one may have is reached.
	ErrLimit = errors.New("limit reached")
	// ErrIdempotencyMismatch is returned when an idempotency key is used again
	// for something else.
	ErrIdempotencyMismatch = errors.New("idempotency key used for another call")
	// ErrInternal is returned when the stored state contradicts itself.
	ErrInternal = errors.New("internal error")
)

// Error is a refusal: what was wrong and what to do next, in words for the
// person who asked. It is part of the replicated result, so that each node
// gives the same.
type Error struct {
	Code   Code   `json:"code" cbor:"1,keyasint"`
	Detail string `json:"detail" cbor:"2,keyasint"`
	Next   string `json:"next,omitempty" cbor:"3,keyasint,omitempty"`
}

// Error implements error.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Detail }

// Is makes errors.Is work with the sentinels of this package.
func (e *Error) Is(target error) bool {
	switch e.Code {
	case CodeNotFound:
		return target == ErrNotFound
	case CodeDenied:
		return target == ErrDenied
	case CodeConflict:
		return target == ErrConflict
	case CodeStale:
		return target == ErrStale
	case CodeStaleRevision:
		return target == ErrStale || target == ErrStaleRevision
	case CodeInvalid:
		return target == ErrInvalid
	case CodeExpired:
		return target == ErrExpired
	case CodeLimit:
		return target == ErrLimit
	case CodeIdempotencyMismatch:
		return target == ErrIdempotencyMismatch
	case CodeInternal:
		return target == ErrInternal
	}
	return false
}

// then adds what to do next.
func (e *Error) then(next string) *Error {
	e.Next = next
	return e
}

func notFound(format string, args ...any) *Error { return refusal(CodeNotFound, format, args) }
func denied(format string, args ...any) *Error   { return refusal(CodeDenied, format, args) }
func conflict(format string, args ...any) *Error { return refusal(CodeConflict, format, args) }
func stale(format string, args ...any) *Error    { return refusal(CodeStale, format, args) }
func invalid(format string, args ...any) *Error  { return refusal(CodeInvalid, format, args) }
func expired(format string, args ...any) *Error  { return refusal(CodeExpired, format, args) }
func limited(format string, args ...any) *Error  { return refusal(CodeLimit, format, args) }

func refusal(code Code, format string, args []any) *Error {
	detail := fmt.Sprintf(format, args...)
	if len(detail) > maxDetail {
		detail = strings.ToValidUTF8(detail[:maxDetail], "") + "…"
	}
	return &Error{Code: code, Detail: detail}
}
