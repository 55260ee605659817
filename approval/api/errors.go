package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/hallpass/hallpass/approval"
)

// GetHeaders gives the headers that belong to a problem.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.RetryAfter+time.Second-1)/time.Second)))
	}
	return h
}

// problemOf is the one place where errors become what a caller sees. Whatever
// is not meant for callers becomes "internal error".
func problemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		c := *p // the original may be shared
		return &c
	}
	if ae, ok := errors.AsType[*approval.Error](err); ok {
		return NewProblem(approvalCode(ae.Code), ae.Detail, ae.Next)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		p := NewProblem(CodeUnavailable, "the call was not done in time", "try again, with the same Idempotency-Key if it was a POST")
		p.RetryAfter = time.Second
		return p
	}
	return NewProblem(CodeInternal, "the server failed; its log says why, under this request's id", "")
}

func approvalCode(c approval.Code) Code {
	switch c {
	case approval.CodeNotFound:
		return CodeNotFound
	case approval.CodeDenied:
		return CodeDenied
	case approval.CodeConflict:
		return CodeConflict
	case approval.CodeStale, approval.CodeStaleRevision:
		return CodeStale
	case approval.CodeInvalid:
		return CodeInvalid
	case approval.CodeExpired:
		return CodeExpired
	case approval.CodeLimit:
		return CodeLimit
	case approval.CodeIdempotencyMismatch:
		return CodeMismatch
	case approval.CodeInternal:
		return CodeInternal
	default:
		return CodeInternal
	}
}
