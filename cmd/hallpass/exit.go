package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/approval/api"
)

// Exit statuses, the same for every command.
const (
	exitOK              = 0
	exitError           = 1
	exitUsage           = 2
	exitDenied          = 3
	exitPending         = 4
	exitUnauthenticated = 5
)

// statusError is an error that knows the exit status it stands for. A nil err prints nothing.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// usagef makes an error for a command line that cannot be understood.
func usagef(format string, args ...any) error {
	return &statusError{exitUsage, fmt.Errorf(format, args...)}
}

// deniedf makes an error for access that is not given.
func deniedf(format string, args ...any) error {
	return &statusError{exitDenied, fmt.Errorf(format, args...)}
}

// pendingf makes an error for what is not decided yet.
func pendingf(format string, args ...any) error {
	return &statusError{exitPending, fmt.Errorf(format, args...)}
}

// unauthenticatedf makes an error for an identity that is missing or not accepted.
func unauthenticatedf(format string, args ...any) error {
	return &statusError{exitUnauthenticated, fmt.Errorf(format, args...)}
}

// exitStatus returns the status that stands for err: the one place where errors become statuses.
func exitStatus(err error) int {
	var known *statusError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &known):
		return known.status
	case errors.Is(err, api.ErrUnauthenticated), hasCode(err, api.CodeUnauthorized):
		return exitUnauthenticated
	case errors.Is(err, api.ErrDenied):
		return exitDenied
	case errors.Is(err, context.DeadlineExceeded):
		return exitPending
	default:
		return exitError
	}
}

func hasCode(err error, code api.Code) bool {
	var p *api.Problem
	return errors.As(err, &p) && p.Code == code
}

// fail prints err to stderr in words that say what to do next, and returns the exit status.
func (a *app) fail(cmd *cobra.Command, err error) int {
	status := exitStatus(err)
	if status == exitOK {
		return exitOK
	}
	var known *statusError
	if errors.As(err, &known) && known.err == nil {
		return status
	}
	a.complain(err)
	if status == exitUsage && cmd != nil {
		fmt.Fprintf(a.stderr, "next: %s --help\n", cmd.CommandPath())
	}
	return status
}

// complain prints one error. A problem document is printed with its detail, what to do next and
// the ids by which an operator finds it in the logs.
func (a *app) complain(err error) {
	var p *api.Problem
	if !errors.As(err, &p) {
		fmt.Fprintln(a.stderr, "hallpass:", safeText(err.Error()))
		return
	}
	text := p.Title
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	// What was wrapped around the problem says which call it was.
	if before, _, found := strings.Cut(err.Error(), p.Error()); found && before != "" {
		text = before + text
	}
	fmt.Fprintln(a.stderr, "hallpass:", safeText(text))
	if p.Next != "" {
		fmt.Fprintln(a.stderr, "next:", safeText(p.Next))
	}
	var ids []string
	if p.RequestID != "" {
		ids = append(ids, "request "+p.RequestID)
	}
	if p.TraceID != "" {
		ids = append(ids, "trace "+p.TraceID)
	}
	if len(ids) > 0 {
		fmt.Fprintln(a.stderr, "logs:", safeText(strings.Join(ids, ", ")))
	}
}
